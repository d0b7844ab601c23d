"""``configs/callbacks/images.yaml`` in the three tasks, read back from TensorBoard's events."""

from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.loggers import Logger, MLFlowLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.callbacks import LoggedImages
from src.callbacks.logged_images import log_image
from src.cli import main
from src.data.transforms.batches import Normalization
from src.errors import UserError
from tests.cli.tiny import ROOT, TASKS, write_data, write_recipe

FILE = str(ROOT / "configs" / "callbacks" / "images.yaml")


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
    batch, pair = events.Images("train/batch")[0], events.Images("val/image_0")[0]
    assert batch.width > batch.height
    assert pair.width > 2 * 360


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
