"""``configs/callbacks/images.yaml`` in the three tasks, read back from TensorBoard's events."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.loggers import Logger, MLFlowLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.callbacks import LoggedImages
from src.callbacks.logged_images import log_image
from src.cli import main
from src.data.classes.palette import distinct_palette
from src.data.transforms.batches import Normalization
from src.errors import UserError
from src.visualization import draw_classes, draw_instances, draw_label_map
from tests.cli.tiny import ROOT, TASKS, write_data, write_recipe

FILE = str(ROOT / "configs" / "callbacks" / "images.yaml")


def drawn_truth(task: str, root: Path, number: int) -> Image.Image:
    """Drawing of the annotations that ``write_data`` writes for a validation image."""
    if task == "classification":
        # Validation images are in the order of their classes: 0 and 2 are of class a.
        return draw_classes(Image.open(root / f"val/a/{2 * number}.png"), ["a"], [1.0])
    image = Image.open(root / f"images/{number}.png")
    if task == "segmentation":
        labels = np.asarray(Image.open(root / f"masks/{number}.png"))
        return draw_label_map(image, labels, ["a", "b"], distinct_palette(2))
    mask = np.zeros((image.height, image.width), bool)
    mask[2:18, 2:18] = True
    return draw_instances(
        image,
        boxes=[[2, 2, 16, 16]],
        masks=[mask],
        names=["ab"[number]],
        scores=[1.0],
        classes=[number],
    )


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_batch_and_predictions_are_logged(task: str, tmp_path: Path) -> None:
    config = write_recipe(tmp_path, task, write_data(tmp_path / "data", task))
    recipe = yaml.safe_load(config.read_text())
    recipe["trainer"] |= {"max_epochs": 2, "check_val_every_n_epoch": 1}
    config.write_text(yaml.safe_dump(recipe))
    # The first validation batch has two images.
    assert main(["fit", "-c", str(config), "-c", FILE]) == 0
    (folder,) = (tmp_path / "runs").glob("*/version_0")
    events = EventAccumulator(str(folder), {"images": 0}).Reload()
    assert events.Tags()["images"] == ["train/batch", "val/image_0", "val/image_1"]
    for tag in events.Tags()["images"]:
        assert len(events.Images(tag)) == 2  # one for each epoch
    batch = events.Images("train/batch")[0]
    assert batch.width > batch.height
    for number in range(2):
        first = events.Images(f"val/image_{number}")[0]
        pair = Image.open(io.BytesIO(first.encoded_image_string)).convert("RGB")
        truth = drawn_truth(task, tmp_path / "data", number)
        assert pair.width > 2 * 360
        left = pair.crop((0, 0, truth.width, truth.height))
        np.testing.assert_array_equal(np.asarray(left), np.asarray(truth))


def test_normalisation_is_inverted_exactly() -> None:
    normalise = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    assert torch.equal(normalise.inverse(normalise(pixels)), pixels)


def test_loggers_store_images_in_their_own_way() -> None:
    class Weights(Logger):
        name, version = "weights", 0
        logged: tuple = ()

        def log_metrics(self, *_: object, **__: object) -> None: ...

        def log_hyperparams(self, *_: object, **__: object) -> None: ...

        def log_image(self, key: str, images: list, step: int | None = None) -> None:
            self.logged = (key, images, step)

    class Client:
        logged: tuple = ()

        def log_image(self, run_id: str, image: object, *, key: str, step: int) -> None:
            self.logged = (run_id, image, key, step)

    class MLFlow(MLFlowLogger):
        run_id, experiment = "7", Client()

        def __init__(self) -> None: ...

    image = Image.new("RGB", (4, 4))
    weights, mlflow = Weights(), MLFlow()
    log_image(weights, "val/image_0", image, 3)
    log_image(mlflow, "val/image_0", image, 3)
    assert weights.logged == ("val/image_0", [image], 3)
    assert mlflow.experiment.logged == ("7", image, "val_image_0", 3)


@pytest.mark.parametrize(("settings", "message"), [({"number": 0}, "number"), ({"score": 2}, "sc")])
def test_invalid_values_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=rf"LoggedImages\.{message}"):
        LoggedImages(**settings)
