import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from src.data.samplers.distributed import DistributedBatchSampler
from src.errors import UserError
from src.models import InternImage
from src.tasks import ClassificationTask
from src.tasks.optimization import global_batch_size


def tiny(num_classes: int = 4, **settings: object) -> InternImage:
    arch = {"channels": 8, "depths": (1, 1, 1, 1), "groups": (1, 2, 4, 8)}
    return InternImage(num_classes=num_classes, **(arch | settings))


def task(**settings: object) -> ClassificationTask:
    return ClassificationTask(num_classes=4, network=tiny, **settings)


def test_the_network_is_built_once_in_configure_model() -> None:
    built = task()
    assert built.network is None
    with pytest.raises(RuntimeError, match="configure_model"):
        _ = built.evaluation_network
    built.configure_model()
    network = built.network
    built.configure_model()
    assert built.network is network
    assert network.head.out_features == 4


def test_the_network_can_be_built_on_the_meta_device() -> None:
    built = task()
    with torch.device("meta"):
        built.configure_model()
    assert all(parameter.is_meta for parameter in built.network.parameters())


def test_weights_are_loaded_from_a_file(tmp_path) -> None:
    source = tiny()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "weights.pth")
    built = task(weights=str(tmp_path / "weights.pth"))
    built.configure_model()
    for name, value in built.network.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])


def test_groups_of_the_recipe_with_layer_decay() -> None:
    built = task(layer_decay=0.5, dcn_lr_scale=0.1)
    built.configure_model()
    scales = {group["lr_scale"] for group in built.parameter_groups()}
    assert scales == {1.0, 0.5, 0.25, 0.125, 0.1, 0.05, 0.025, 0.0125}


@pytest.mark.parametrize(("images", "used"), [(20, 20), (100, 64)])
def test_the_learning_rate_is_scaled_to_the_actual_batch_size(images, used) -> None:
    data = TensorDataset(torch.zeros(images))
    loader = DataLoader(data, batch_size=64, sampler=DistributedBatchSampler(data, 64))
    trainer = SimpleNamespace(train_dataloader=loader, world_size=2, accumulate_grad_batches=3)
    assert global_batch_size(trainer) == used * 2 * 3


def test_warning_about_a_setting_without_effect() -> None:
    built = task(dcn_lr_scale=0.1)
    built.configure_model()
    with pytest.warns(UserWarning, match=r"dcn_lr_scale=0.1 has no effect without layer_decay"):
        groups = built.parameter_groups()
    assert {group["lr_scale"] for group in groups} == {1.0}


def test_layer_decay_needs_a_network_with_depths() -> None:
    built = ClassificationTask(num_classes=2, network=lambda num_classes: nn.Linear(2, 2))
    built.layer_decay = 0.9
    built.configure_model()
    with pytest.raises(UserError, match="needs a network with `depths`, got Linear"):
        built.parameter_groups()


@pytest.mark.parametrize(("setting", "value"), [("num_classes", 0), ("reference_batch_size", 0)])
def test_invalid_numbers_are_refused(setting: str, value: int) -> None:
    with pytest.raises(UserError, match="at least 1"):
        ClassificationTask(**({"num_classes": 4, "network": tiny} | {setting: value}))


def test_hyperparameters_are_plain() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hparams = task(label_smoothing=0.3).hparams
    assert hparams["label_smoothing"] == 0.3
    assert "network" not in hparams
    assert "optimizer" not in hparams
