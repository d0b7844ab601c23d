"""Checkpoints with invalid entries, and settings with classes of other packages."""

import copy
from pathlib import Path

import pytest
import torch

from src.cli import main
from src.errors import UserError
from src.models.building import build_network
from src.models.weights import load_official, to_official
from src.serialization import check_finite, read_checkpoint
from src.tasks import ClassificationTask
from tests.serialization.fuzzing import CLASSES, SPEC, checkpoint

NAME = "network.patch_embed.conv1.weight"


@pytest.fixture(scope="module")
def whole():
    return checkpoint(build_network(SPEC, len(CLASSES)))


@pytest.fixture
def read(whole, tmp_path):
    """Write a checkpoint with changed content and read it."""

    def change(edit):
        content = copy.deepcopy(whole)
        edit(content)
        torch.save(content, tmp_path / "last.ckpt")
        content = read_checkpoint(tmp_path / "last.ckpt")
        check_finite(content, tmp_path / "last.ckpt")
        return content

    return change


def test_a_valid_checkpoint_is_read(read, whole):
    content = read(lambda content: None)
    assert content.keys() == whole.keys()
    assert torch.equal(content["state_dict"][NAME], whole["state_dict"][NAME])


def put(*path, value):
    """Function that sets a value at the given keys."""

    def edit(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return edit


def take(key):
    return lambda content: content.pop(key)


FIRST = ("optimizer_states", 0)
WRONG = {
    "no version": take("pytorch-lightning_version"),
    "a version of nothing": put("pytorch-lightning_version", value=""),
    "a version that is a number": put("pytorch-lightning_version", value=2.6),
    "an ancient version": put("pytorch-lightning_version", value="0.7.1"),
    "a version of letters": put("pytorch-lightning_version", value="2.x.y"),
    "weights that are a list": put("state_dict", value=[1, 2]),
    "weights that are missing": take("state_dict"),
    "weights that are None": put("state_dict", value=None),
    "a weight that is a list": put("state_dict", NAME, value=[1.0]),
    "a weight that is None": put("state_dict", NAME, value=None),
    "a name that is a number": put("state_dict", 7, value=torch.zeros(2)),
    "a name of a thousand letters": put("state_dict", "a" * 1000, value=torch.zeros(2)),
    "a name with line breaks": put("state_dict", "a\nerror: b", value=torch.zeros(2)),
    "other weights in training": put("current_model_state", value={"a": torch.zeros(2)}),
    "an epoch that is a text": put("epoch", value="one"),
    "an epoch that is true": put("epoch", value=True),
    "a negative epoch": put("epoch", value=-1),
    "an endless step": put("global_step", value=10**30),
    "a step that is a tensor": put("global_step", value=torch.tensor(3)),
    "loops that are a list": put("loops", value=[]),
    "loops without validation": lambda c: c["loops"].pop("validate_loop"),
    "loops with a tensor": put("loops", "fit_loop", "epoch_progress", value=torch.zeros(2)),
    "loops with a negative count": put(
        "loops", "fit_loop", "epoch_progress", "total", "ready", value=-(10**20)
    ),
    "callbacks that are a list": put("callbacks", value=[{}]),
    "a callback that is a number": put("callbacks", "EMA", value=3),
    "a callback with a number as a name": put("callbacks", 3, value={}),
    "a path that is a number": put("callbacks", "Checkpoint", value={"best_model_path": 3}),
    "a path with a zero byte": put("callbacks", "Checkpoint", value={"best_model_path": "a\0b"}),
    "best models that are a list": put("callbacks", "Checkpoint", value={"best_k_models": [1]}),
    "a score that is a text": put("callbacks", "Checkpoint", value={"best_model_score": "high"}),
    "optimizers that are a dictionary": put("optimizer_states", value={}),
    "an optimizer that is None": put("optimizer_states", value=[None]),
    "an optimizer without groups": lambda c: c["optimizer_states"][0].pop("param_groups"),
    "groups that are a number": put(*FIRST, "param_groups", value=4),
    "groups that are texts": put(*FIRST, "param_groups", value=["a"]),
    "a group without parameters": lambda c: c["optimizer_states"][0]["param_groups"][0].pop(
        "params"
    ),
    "a parameter twice": put(*FIRST, "param_groups", 0, "params", value=[0, 0]),
    "a parameter in no group": put(*FIRST, "state", 10**6, value={}),
    "a state that is a list": put(*FIRST, "state", value=[]),
    "moments that are a list": put(*FIRST, "state", 0, value=[1]),
    "a rate that is a text": put(*FIRST, "param_groups", 0, "lr", value="fast"),
    "a rate that is NaN": put(*FIRST, "param_groups", 0, "lr", value=float("nan")),
    "schedules that are None": put("lr_schedulers", value=None),
    "a schedule that is a number": put("lr_schedulers", value=[3]),
    "a schedule that replaces the optimizer": put("lr_schedulers", value=[{"optimizer": 3}]),
    "a schedule that replaces its class": put("lr_schedulers", value=[{"__class__": 3}]),
    "settings that are a list": put("hyper_parameters", value=[1]),
    "settings with a tensor": put("hyper_parameters", "network", value=torch.zeros(2)),
    "class names that are numbers": put("class_names", value=[1, 2]),
    "an endless class name": put("class_names", value=["a" * 1000]),
    "an endless name of a moment": put(*FIRST, "state", 0, value={"a" * 1000: torch.zeros(2)}),
    "a description that is a list": put("optimization", value=[1]),
    "a description with rates that are texts": put("optimization", value={"current_lr": ["x"]}),
    "a description with another entry": put("optimization", value={"class": "os.system"}),
    "an average that is a text": put("averaging_state", value={"n_averaged": "x"}),
    "a scale that is a text": put("MixedPrecision", value={"scale": "x"}),
    "NaN in a weight": put("state_dict", NAME, value=torch.full((2, 3, 3, 3), torch.nan)),
    "infinity in a moment": put(*FIRST, "state", 0, "exp_avg", value=torch.tensor([torch.inf])),
    "a complex weight": put("state_dict", NAME, value=torch.zeros(2, dtype=torch.complex64)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_invalid_entries(kind, read):
    with pytest.raises(UserError, match=r"last\.ckpt") as caught:
        read(WRONG[kind])
    assert "\n" not in str(caught.value)


LATER = {
    "a count that is a text": put(
        "loops", "fit_loop", "epoch_progress", "total", "ready", value="6"
    ),
    "a count that is None": put(
        "loops", "fit_loop", "epoch_progress", "current", "ready", value=None
    ),
    "a method among the counts": put(
        "loops", "fit_loop", "epoch_progress", "total", "reset", value=3
    ),
    "a list as progress": put("loops", "fit_loop", "epoch_loop.batch_progress", value=[3]),
    "no progress": take("loops"),
    "no schedules": take("lr_schedulers"),
    "a callback of texts": put("callbacks", "EMA", "latest_update_step", value="x"),
    "moments of another shape": put(*FIRST, "state", 0, "exp_avg", value=torch.zeros(3)),
    "moments of texts": put(*FIRST, "state", 0, "exp_avg", value="x"),
    "two optimizers": lambda c: c["optimizer_states"].append(c["optimizer_states"][0]),
    "a schedule without its step": put("lr_schedulers", value=[{}]),
    "a schedule whose step is a text": put("lr_schedulers", value=[{"last_epoch": "x"}]),
    "two schedules": lambda c: c["lr_schedulers"].append(c["lr_schedulers"][0]),
}


@pytest.mark.parametrize("kind", LATER)
def test_entries_that_do_not_match_the_run(kind, trained, tmp_path, capsys):
    saved = trained / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    content = torch.load(saved, weights_only=True)
    LATER[kind](content)
    torch.save(content, tmp_path / "odd.ckpt")
    arguments = ["-c", str(trained / "tiny.yaml"), "--ckpt_path", str(tmp_path / "odd.ckpt")]
    arguments += ["--trainer.default_root_dir", str(tmp_path / "runs"), "--trainer.max_epochs", "3"]
    assert main(["fit", *arguments]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert printed.splitlines()[-1].startswith("error: ")


# Settings


def command(mark: Path, class_path: str = "torch.fx.symbolic_trace"):
    """Network description that would run a shell command."""
    shell = {"cmd": f"touch {mark}", "encoding": None, "errors": None}
    return {
        "class_path": class_path,
        "init_args": {"root": "subprocess.getoutput", "concrete_args": shell},
    }


FOREIGN = (
    "torch.fx.symbolic_trace",
    "subprocess.getoutput",
    "os.system",
    "torch.load",
    "torch.nn.Sequential",
    "builtins.eval",
    "timm.create_model",
    "elsewhere.InternImage",
    "src.cli.main",
    "src.tasks.ClassificationTask",
    "src.models.internimage.classifier.torch.load",
)


@pytest.mark.parametrize("name", FOREIGN)
def test_settings_can_only_use_networks_of_this_project(name, whole, tmp_path, capsys):
    mark = tmp_path / "mark"
    content = copy.deepcopy(whole)
    content["hyper_parameters"]["network"] = command(mark, name)
    torch.save(content, tmp_path / "last.ckpt")
    arguments = ["--official", "--output", str(tmp_path / "out.pth")]
    assert main(["consolidate", str(tmp_path / "last.ckpt"), *arguments]) == 2
    assert not mark.exists()
    assert "no such class in this project" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such class in this project"):
        ClassificationTask.load_from_checkpoint(tmp_path / "last.ckpt")
    assert not mark.exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"_instantiator": "os.system", "_class_path": "src.tasks.ClassificationTask"},
        {"_instantiator": "lightning.pytorch.cli.instantiate_module", "_class_path": "os.system"},
        {"_class_path": "subprocess.Popen"},
        {"optimizer": {"class_path": "os.system", "init_args": {}}},
        {"lr_scheduler": {"class_path": "torch.load", "init_args": {"f": "x"}}},
        {"lr_scheduler": "os.system"},
        {"label_smoothing": [1]},
        {"num_classes": "3"},
        {"num_classes": 10**12},
        {"nothing": 1},
    ],
)
def test_a_task_is_built_from_known_classes_only(settings, whole, tmp_path):
    content = copy.deepcopy(whole)
    content["hyper_parameters"] |= settings
    torch.save(content, tmp_path / "last.ckpt")
    if settings.get("_instantiator") == "os.system":  # not used
        ClassificationTask.load_from_checkpoint(tmp_path / "last.ckpt")
        return
    with pytest.raises(UserError):
        ClassificationTask.load_from_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("kernel_size", 10001),
        ("channels", "many"),
        ("channels", 2**40),
        ("channels", 2.5),
        ("channels", True),
        ("depths", [10**9, 1, 1, 1]),
        ("depths", [[1], 1, 1, 1]),
        ("depths", "1111"),
        ("groups", [0, 0, 0, 0]),
        ("mlp_ratio", float("inf")),
        ("drop_path_rate", {}),
        ("layer_scale", {"class_path": "os.system"}),
        ("speed", 1),
    ],
)
def test_arguments_have_limits(argument, value):
    spec = {"class_path": "InternImage", "init_args": SPEC["init_args"] | {argument: value}}
    with pytest.raises(UserError), torch.device("meta"):
        build_network(spec, 3)


# Unsupported kinds of weights

ODD = {
    "meta": lambda t: torch.empty_like(t, device="meta"),
    "sparse": lambda t: t.to_sparse(),
    "sparse rows": lambda t: t.flatten(1).to_sparse_csr(),
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "nested": lambda t: torch.nested.nested_tensor([t[0], t[1]]),
    "complex": lambda t: t.to(torch.complex64),
    "conjugate": lambda t: t.to(torch.complex64).conj(),
    "integer": lambda t: t.to(torch.int64),
    "bool": lambda t: t > 0,
    "NaN": lambda t: t * torch.nan,
    "infinite": lambda t: t / 0,
    "no dimensions": lambda t: torch.tensor(1.0),
    "empty": lambda t: torch.zeros(0),
    "empty rows": lambda t: torch.zeros(0, *t.shape[1:]),
    "none": lambda t: None,
    "a number": lambda t: 1.0,
    "a list": lambda t: [1.0],
    "another shape": lambda t: t[:1],
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["patch_embed.conv1.weight", "head.bias"])
@pytest.mark.filterwarnings("ignore")
def test_error_names_unsupported_weights(kind, name, tmp_path):
    network = build_network(SPEC, len(CLASSES))
    weights = to_official(network)
    if weights[name].dim() == 1 and kind in ("sparse rows", "another shape"):
        pytest.skip("has one dimension")
    weights[name] = ODD[kind](weights[name].clone())
    torch.save({"model": weights}, tmp_path / "file.pth")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as caught:
        load_official(network, tmp_path / "file.pth")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


KEPT = {
    "half": lambda t: t.half(),
    "double": lambda t: t.double(),
    "a parameter": torch.nn.Parameter,
    "a view": lambda t: torch.cat([t, t])[: len(t)],
    "a transposed view": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "with an attribute": lambda t: setattr(t, "origin", "x") or t,
}


@pytest.mark.parametrize("kind", KEPT)
def test_tensors_of_other_kinds_are_read(kind, tmp_path):
    network, other = (build_network(SPEC, len(CLASSES)) for _ in range(2))
    weights = to_official(network)
    name = "patch_embed.conv1.weight"
    weights[name] = KEPT[kind](weights[name].clone())
    torch.save({"model": weights}, tmp_path / "file.pth")
    load_official(other, tmp_path / "file.pth")
    expected = network.state_dict()[name]
    expected = expected.half().float() if kind == "half" else expected
    assert torch.equal(other.state_dict()[name], expected)
