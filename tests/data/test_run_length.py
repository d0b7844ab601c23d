"""Run lengths are those that pycocotools wrote, and damaged codes are refused."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from src.data.run_length import run_lengths


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 1])
def test_compressed_text_gives_the_runs_of_the_mask(seed, share):
    rng = np.random.default_rng(seed)
    mask = (rng.random(rng.integers(1, 300, 2)) < share).astype(np.uint8)
    text = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    runs = run_lengths(text)
    inside = np.arange(len(runs)) % 2
    assert np.array_equal(np.repeat(inside, runs), mask.T.reshape(-1))


def test_a_list_is_taken_as_it_is():
    assert run_lengths([3, 0, 5]).tolist() == [3, 0, 5]


@pytest.mark.parametrize("counts", [None, 5, [[1], [2]], [0.5], ["1"]])
def test_anything_else_is_refused(counts):
    with pytest.raises(ValueError, match="neither whole numbers nor"):
        run_lengths(counts)


@pytest.mark.parametrize("counts", ["", "é", "~", "P", "oooooooo0"])
def test_damaged_text_is_refused(counts):
    with pytest.raises(ValueError, match="damaged"):
        run_lengths(counts)
