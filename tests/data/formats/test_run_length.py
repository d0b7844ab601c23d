"""Run lengths are those that pycocotools wrote, and damaged codes are refused."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from src.data.formats.run_length import fill_exactly, run_lengths


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


def is_whole(text, pixels):
    try:
        runs = run_lengths(text)
    except ValueError:
        return False
    return bool(((runs >= 0) & (runs <= pixels)).all() and runs.sum() == pixels)


def test_many_texts_at_once_are_judged_like_each_of_them():
    rng = np.random.default_rng(0)
    masks = [(rng.random(rng.integers(1, 40, 2)) < rng.random()) for _ in range(300)]
    texts = [
        coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        for mask in masks
    ]
    pixels = np.array([mask.size for mask in masks])
    assert fill_exactly(texts, pixels)
    refused = 0
    for number, text in enumerate(texts):
        letters = list(text)
        letters[rng.integers(len(letters))] = chr(rng.integers(40, 120))
        damaged = [*texts[:number], "".join(letters), *texts[number + 1 :]]
        assert fill_exactly(damaged, pixels) == is_whole("".join(letters), pixels[number])
        assert fill_exactly(["".join(letters)], pixels[number : number + 1]) == is_whole(
            "".join(letters), pixels[number]
        )
        refused += not fill_exactly(damaged, pixels)
    assert refused > 100


@pytest.mark.parametrize(
    "texts", [[], [""], ["PP3", ""], ["é"], ["P"], ["o" * 30 + "0"], ["\ud800"]]
)
def test_damaged_texts_are_found_among_others(texts):
    assert not fill_exactly(texts, np.full(len(texts), 3072))
