import pytest
from torch.utils.data import DataLoader, Dataset

from src.errors import UserError

SENTENCE = "The file cat.jpg is broken: see line 3.\nReplace it."


class Failing(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise UserError(SENTENCE)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_message_is_the_same_with_workers(num_workers):
    with pytest.raises(UserError) as caught:
        next(iter(DataLoader(Failing(), num_workers=num_workers)))
    assert str(caught.value) == SENTENCE


def test_a_user_error_is_a_value_error():
    with pytest.raises(ValueError, match=r"not a number"):
        raise UserError("not a number")


def test_a_message_that_looks_like_a_worker_traceback_is_kept():
    assert str(UserError("Caught UserError in the act")) == "Caught UserError in the act"


def test_control_characters_of_file_names_are_escaped(tmp_path, capsys):
    from src.cli import main

    folder = tmp_path / "photos"
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        (folder / label / "a\x1b[2J\r.jpg").write_bytes(b"no image")
    assert main(["prepare", "from-folder", str(folder), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "\\x1b[2J\\r.jpg cannot be read" in error
    assert "\x1b" not in error
