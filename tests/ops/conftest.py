import pytest
import torch


@pytest.fixture
def threads():
    """Set the number of threads for one test: `threads(3)`."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
