"""Results of predictions: text, rows, chosen objects and drawings."""

import dataclasses
import inspect
import json
import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from src.errors import UserError
from src.inference import Classification, Detection, Prediction, Segmentation
from src.metrics.coco_results import to_results
from src.types import Detections


def test_the_text_of_a_prediction_is_short():
    result = Classification(
        "a.png", ["cat", "dog"], True, torch.tensor([1, 0]), torch.tensor([0.75, 0.25])
    )
    assert repr(result) == "Classification(dog 75.0%, cat 25.0%)"
    label_map = torch.tensor([[1, 1, 0, 1]], dtype=torch.uint8)
    scene = Segmentation("a.png", ["cat", "dog"], True, label_map, [(0, 0, 0)] * 2)
    assert repr(scene) == "Segmentation(dog 75.0%, cat 25.0%)"
    label_map = torch.ones(100, 100, dtype=torch.uint8)
    label_map[0, 0] = 0
    scene = dataclasses.replace(scene, label_map=label_map)
    assert repr(scene) == "Segmentation(dog 100.0%, cat <0.1%)"
    assert repr(detection(0.9, 0.5)) == "Detection(2 objects: dog 90.0%, cat 50.0%)"
    assert repr(detection(0.9)) == "Detection(1 object: dog 90.0%)"
    assert repr(detection()) == "Detection(0 objects)"


def test_the_text_of_a_detection_says_how_many_objects_are_drawn():
    weak = "Detection(2 objects, none above 0.3, the default of plot: dog 7.2%, cat 5.0%)"
    assert repr(detection(0.072, 0.05)) == weak
    some = "2 objects, 1 above 0.3, the default of plot: dog 90.0%, cat 29.9%"
    assert str(detection(0.9, 0.299)) == some
    assert str(detection(0.9, 0.3)) == "2 objects: dog 90.0%, cat 30.0%"


def detection(*scores: float) -> Detection:
    """A dog, then cats, of an image of four pixels."""
    found = Detections(
        boxes=torch.tensor([[0.0, 0, 2, 1]]).repeat(len(scores), 1),
        scores=torch.tensor(scores),
        labels=torch.tensor([1, *[0] * len(scores)])[: len(scores)],
        masks=torch.ones(len(scores), 2, 2, dtype=torch.bool),
    )
    results = to_results(found, 1)
    return Detection("a.png", ["cat", "dog"], True, (2, 2), results, has_masks=True)


@pytest.mark.parametrize("name", ["save", "show", "to_json", "to_df"])
def test_methods_of_other_libraries_lead_to_ours(name, tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    result = dataclasses.replace(detection(0.75), source=tmp_path / "a.png")
    assert not hasattr(result, name)
    with pytest.raises(AttributeError, match=f"no attribute {name!r}; use ") as error:
        getattr(result, name)
    advice = str(error.value).split("; use ")[1]
    module = SimpleNamespace(DataFrame=list)  # pandas is not a requirement
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(Image.Image, "show", lambda image: None)
        done = eval(advice, {"result": result, "json": json, "pandas": module})
    assert (tmp_path / "prediction.png").exists() == (name == "save")
    if name == "to_json":
        assert json.loads(done) == result.rows()


LABEL_MAP = torch.tensor([[1, 1, 0, 1]], dtype=torch.uint8)
CLASSES = Classification("a.png", ["cat", "dog"], True, torch.tensor([1]), torch.tensor([0.75]))
SCENE = Segmentation("a.png", ["cat", "dog"], True, LABEL_MAP, [(0, 0, 0)] * 2)


@pytest.mark.parametrize(
    ("kind", "name", "attributes"),
    [
        ("detection", "mask", ["masks"]),
        ("detection", "label_map", ["masks"]),
        ("classification", "boxes", ["labels", "names", "scores"]),
        ("classification", "masks", ["labels", "names", "scores"]),
        ("classification", "probs", ["scores"]),
        ("segmentation", "boxes", ["label_map", "labels", "names"]),
        ("segmentation", "masks", ["label_map", "mask"]),
    ],
)
def test_attributes_of_another_task_lead_to_those_of_this_one(kind, name, attributes):
    kinds = {"classification": CLASSES, "segmentation": SCENE}
    result = kinds[kind] if kind in kinds else detection(0.75)
    assert not hasattr(result, name)
    with pytest.raises(AttributeError) as error:
        getattr(result, name)
    start, advice = str(error.value).split("; ")
    assert start == f"{type(result).__name__!r} object has no attribute {name!r}"
    assert [word for word in re.findall(r"\w+", advice) if hasattr(result, word)] == attributes


def test_other_missing_attributes_are_ordinary_errors():
    with pytest.raises(AttributeError, match=r"^'Detection' object has no attribute 'nothing'$"):
        _ = detection(0.75).nothing
    assert len(pickle.loads(pickle.dumps(detection(0.75)))) == 1


def test_rows_are_written_as_json() -> None:
    values = torch.tensor([1, 0])
    classes = Classification("a.png", ["cat", "dog"], True, values, torch.tensor([0.75, 0.25]))
    assert json.loads(json.dumps(classes.rows())) == [
        {"label": 1, "name": "dog", "score": 0.75},
        {"label": 0, "name": "cat", "score": 0.25},
    ]
    box = {"x1": 0.0, "y1": 0.0, "x2": 2.0, "y2": 1.0}
    assert json.loads(json.dumps(detection(0.75, 0.5).rows())) == [
        {"label": 1, "name": "dog", "score": 0.75, **box},
        {"label": 0, "name": "cat", "score": 0.5, **box},
    ]
    assert detection().rows() == []
    label_map = torch.tensor([[1, 1, 0, 1]], dtype=torch.uint8)
    scene = Segmentation("a.png", ["cat", "dog", "road"], True, label_map, [(0, 0, 0)] * 3)
    assert json.loads(json.dumps(scene.rows())) == [
        {"label": 1, "name": "dog", "pixels": 3, "share": 0.75},
        {"label": 0, "name": "cat", "pixels": 1, "share": 0.25},
    ]


def test_detections_are_counted_chosen_and_visited() -> None:
    result = detection(0.75, 0.5, 0.25)
    assert len(result) == 3
    assert not detection()
    assert [(len(one), one.names) for one in result] == [(1, ["dog"]), (1, ["cat"]), (1, ["cat"])]
    assert [float(one.scores) for one in result] == [0.75, 0.5, 0.25]
    for chosen, scores in (
        (0, [0.75]),
        (-1, [0.25]),
        (slice(2), [0.75, 0.5]),
        ([2, 0], [0.25, 0.75]),
        ([], []),
        (torch.tensor(1), [0.5]),
        (result.labels == 0, [0.5, 0.25]),
        (result.scores > 0.95, []),
        (result.labels.numpy() == 1, [0.75]),
    ):
        part = result[chosen]
        assert part.scores.tolist() == scores
        assert part.boxes.shape == (len(scores), 4)
        assert part.masks is not None
        assert part.masks.shape == (len(scores), 2, 2)
        assert (part.source, part.size) == ("a.png", (2, 2))
    for wrong in (3, result.labels[:2] == 0):
        with pytest.raises(IndexError):
            result[wrong]


def test_predictions_are_compared_by_identity() -> None:
    def predictions() -> list[Prediction]:
        values = torch.tensor([0, 1])
        return [
            Classification("a.png", ["cat", "dog"], True, values, values.float()),
            Detection("a.png", ["cat", "dog"], True, (2, 1)),
            Segmentation("a.png", ["cat", "dog"], True, values[:, None], [(0, 0, 0)] * 2),
        ]

    for result, equal in zip(predictions(), predictions(), strict=True):
        assert result == result
        assert result != equal
        assert result not in [equal]
        assert len({result, equal}) == 2


def test_plot_says_what_it_takes() -> None:
    names = ["cat", "dog"]
    classes = Classification("a.png", names, True, torch.tensor([1]), torch.tensor([0.75]))
    objects = Detection("a.png", names, True, (2, 1))
    areas = Segmentation("a.png", names, True, torch.zeros(2, 2), [(0, 0, 0)] * 2)
    for result, what in (
        (classes, "a classification takes no arguments"),
        (objects, "a detection takes one argument, score from 0 to 1"),
        (areas, "a segmentation takes one argument, opacity from 0 to 1"),
    ):
        saving = (
            rf"^plot of {what}, got 'x\.png'\. Save the image with plot\(\)\.save\('x\.png'\)\.$"
        )
        with pytest.raises(UserError, match=saving):
            result.plot("x.png")
        with pytest.raises(UserError, match=rf"^plot of {what}, got scale\.$"):
            result.plot(scale=2)
    with pytest.raises(UserError, match=r"argument, opacity from 0 to 1, got alpha\.$"):
        areas.plot(alpha=0.3)
    for wrong in (None, 2, -0.1, float("nan"), [0.5]):
        got = re.escape(f"from 0 to 1, got {wrong!r}.")
        for call in (objects.plot, areas.plot, objects.above):
            with pytest.raises(UserError, match=rf"takes .*(score|opacity) {got}$"):
                call(wrong)
    for right in (0, 1, np.float32(0.5), torch.tensor(0.5)):
        assert len(objects.above(right)) == 0
    with pytest.raises(UserError, match="above takes a score from 0 to 1, got 'x'"):
        objects.above("x")


def test_the_help_of_a_detection_starts_with_its_results() -> None:
    text = inspect.getdoc(Detection)
    assert text is not None
    listed = re.findall(r"^    (\w+):", text, re.MULTILINE)
    assert listed[:5] == ["boxes", "labels", "names", "scores", "masks"]
    assert listed[-1] == "results"
    assert all(hasattr(Detection("a.png", ["cat"], True, (2, 1)), name) for name in listed)


def test_a_misspelt_class_leads_to_the_closest_one() -> None:
    names = [f"class {number}" for number in range(10)] + ["road"]
    result = Segmentation("a.png", names, True, torch.zeros(2, 2), [(0, 0, 0)] * 11)
    expected = r"no class 'rod'\. Did you mean 'road'\? The classes .*, class 9 and 1 more\.$"
    with pytest.raises(UserError, match=expected):
        result.mask("rod")


def test_a_mask_is_chosen_by_name_or_number() -> None:
    label_map = torch.tensor([[1, 1, 0, 1]], dtype=torch.uint8)
    scene = Segmentation("a.png", ["cat", "dog", "road"], True, label_map, [(0, 0, 0)] * 3)
    dogs = [[True, True, False, True]]
    for chosen in ("dog", 1, np.int64(1), scene.labels[0], scene.rows()[0]["label"]):
        assert scene.mask(chosen).tolist() == dogs
    assert not scene.mask(2).any()
    for wrong in (3, -1):
        expected = rf"^There is no class {wrong}\. The classes are 0 \(cat\) to 2 \(road\)\.$"
        with pytest.raises(UserError, match=expected):
            scene.mask(wrong)
    for wrong in (None, True):
        with pytest.raises(UserError, match=rf"no class {wrong}\. The classes are cat, dog, road"):
            scene.mask(wrong)
