import numpy as np
import pytest
import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from src.errors import UserError
from src.tasks import ClassificationTask


class Lookup(nn.Module):
    """Logits that do not depend on the image: the mean of its channels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, num_classes))

    def forward(self, image: Tensor) -> Tensor:
        return image.mean((2, 3)) @ self.weight


def task(**settings: object) -> ClassificationTask:
    made = ClassificationTask(num_classes=7, network=Lookup, **settings)
    made.configure_model()
    made.log = lambda *_, **__: None
    return made


@pytest.fixture
def batch() -> dict[str, object]:
    random = torch.Generator().manual_seed(0)
    image = torch.randn(6, 3, 4, 4, generator=random)
    label = torch.randint(0, 7, (6,), generator=random)
    return {"image": image, "label": label, "path": [f"{i}.png" for i in range(6)]}


def test_loss_without_mixup_equals_timm_label_smoothing(batch: dict) -> None:
    made = task(label_smoothing=0.3)
    logits = made.network(batch["image"])
    expected = LabelSmoothingCrossEntropy(0.3)(logits, batch["label"])
    torch.testing.assert_close(made.training_step(batch, 0), expected)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)])
def test_loss_with_mixup_equals_timm(batch: dict, mixup: float, cutmix: float) -> None:
    made = task(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.1)
    mix = Mixup(mixup, cutmix, prob=1.0, switch_prob=0.5, label_smoothing=0.1, num_classes=7)
    np.random.seed(3)  # noqa: NPY002  random generator of Mixup
    image, target = mix(batch["image"].clone(), batch["label"])
    expected = SoftTargetCrossEntropy()(made.network(image), target)
    np.random.seed(3)  # noqa: NPY002  random generator of Mixup
    torch.testing.assert_close(made.training_step(batch, 0), expected)


def test_mixup_does_not_change_the_batch(batch: dict) -> None:
    before = batch["image"].clone()
    task(cutmix_alpha=1.0).training_step(batch, 0)
    assert torch.equal(batch["image"], before)


def test_an_odd_batch_is_mixed_too(batch: dict) -> None:
    odd = {"image": batch["image"][:5], "label": batch["label"][:5], "path": batch["path"][:5]}
    assert task(mixup_alpha=0.8).training_step(odd, 0).isfinite()


@pytest.mark.parametrize("setting", ["mixup_prob", "mixup_switch_prob"])
def test_warning_about_mixup_settings_without_mixup(setting: str) -> None:
    with pytest.warns(UserWarning, match=f"{setting}=0.25 has no effect"):
        task(**{setting: 0.25})


@pytest.mark.parametrize(
    ("setting", "value"),
    [("mixup_alpha", -1), ("mixup_prob", 2), ("label_smoothing", 1.0), ("cutmix_alpha", -0.1)],
)
def test_invalid_values_are_refused(setting: str, value: float) -> None:
    with pytest.raises(UserError, match=f"model.{setting}: expected"):
        task(**{setting: value})


def test_accuracies_count_images(batch: dict) -> None:
    made = task()
    made.log_dict = lambda *_, **__: None
    made.validation_step(batch, 0)
    made.validation_step({"image": batch["image"][:2], "label": batch["label"][:2]}, 1)
    logits = made.network(torch.cat([batch["image"], batch["image"][:2]]))
    label = torch.cat([batch["label"], batch["label"][:2]])
    best = logits.topk(5).indices == label[:, None]
    result = made.metrics_of("val").compute()
    assert result["val/top1"] == pytest.approx(best[:, 0].float().mean().item())
    assert result["val/top5"] == pytest.approx(best.any(1).float().mean().item())


def test_predictions_are_sorted(batch: dict) -> None:
    made = task()
    found = made.predict_step(batch, 0)
    probabilities = made.network(batch["image"]).softmax(-1)
    assert found["path"] == batch["path"]
    assert found["index"].shape == found["probability"].shape == (6, 5)
    assert torch.equal(found["index"][:, 0], probabilities.argmax(-1))
    torch.testing.assert_close(probabilities.gather(1, found["index"]), found["probability"])
    assert (found["probability"].diff(dim=1) <= 0).all()


def test_one_class_is_refused() -> None:
    with pytest.raises(UserError, match="at least two classes"):
        ClassificationTask(num_classes=1, network=Lookup)
