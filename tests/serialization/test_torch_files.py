"""Tensors are read from files of ``torch.save`` with any other content; nothing is executed."""

import argparse
import os
import pickle
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from src.errors import UserError
from src.serialization import read_weights

WEIGHT = torch.arange(6.0).reshape(2, 3)


class EasyDict(dict):
    """A configuration dictionary with attribute access, as in many projects."""

    def __setattr__(self, name, value):
        self[name] = value
        super().__setattr__(name, value)


class SlottedDict(dict):
    __slots__ = ("frozen",)


class Steps(list):
    """A subclass of list."""


class Run:
    def __init__(self):
        self.epoch, self.history = 3, [0.1, 0.2]


Version = namedtuple("Version", ["major", "minor"])


def easy_dict():
    config = EasyDict()
    config.depths, config.nested = [1, 1, 2, 1], EasyDict(lr=0.1)
    return config


FOREIGN = {
    "numpy scalar": np.float64(83.5),
    "numpy array": np.arange(3),
    "namespace": argparse.Namespace(lr=0.1, steps=[1, 2]),
    "path": Path("runs/1"),
    "named tuple": Version(2, 1),
    "object": Run(),
    "frozen set": frozenset({1, 2}),
    "easy dictionary": easy_dict(),
    "default dictionary": defaultdict(list, {"loss": [0.1]}),
    "counter": Counter("abc"),
    "deque": deque([0.1, 0.2], maxlen=5),
    "list subclass": Steps([1, 2, 3]),
    "empty containers": [EasyDict(), Steps(), deque(), defaultdict(int)],
}


@pytest.fixture(params=["zip", "legacy"])
def save(request, tmp_path):
    """Write a file in either format of PyTorch and return its path."""

    def write(content, **options):
        path = tmp_path / "file.pth"
        zipped = request.param == "zip"
        torch.save(content, path, _use_new_zipfile_serialization=zipped, **options)
        return path

    return write


@pytest.mark.parametrize("kind", FOREIGN)
def test_tensors_next_to_an_object_of_another_class(kind, save):
    content = read_weights(save({"state_dict": {"w": WEIGHT}, "meta": FOREIGN[kind]}))
    assert torch.equal(content["state_dict"]["w"], WEIGHT)


def test_containers_of_other_classes_keep_their_entries(save):
    content = read_weights(
        save({"model": EasyDict(w=WEIGHT), "last": deque([WEIGHT]), "steps": Steps([1, 2])})
    )
    assert type(content["model"]) is OrderedDict
    assert torch.equal(content["model"]["w"], WEIGHT)
    assert type(content["last"]) is list
    assert torch.equal(content["last"][0], WEIGHT)
    assert content["steps"] == [1, 2]


def test_other_objects_become_placeholders(save):
    run = read_weights(save({"run": Run()}))["run"]
    assert "Run, not read" in repr(run)
    assert type(run) is not Run
    assert not hasattr(run, "epoch")


def test_shared_storage_and_half_precision_are_kept(save):
    content = read_weights(save({"a": WEIGHT, "b": WEIGHT[1], "c": WEIGHT.half()}))
    assert content["a"].untyped_storage().data_ptr() == content["b"].untyped_storage().data_ptr()
    assert content["c"].dtype == torch.float16
    assert torch.equal(content["b"], WEIGHT[1])


def listed_steps():
    steps = Steps([1, 2])
    steps.unit = "epochs"
    return steps


def slotted_dict():
    content = SlottedDict(a=1)
    content.frozen = True
    return content


@pytest.mark.parametrize("odd", [listed_steps, slotted_dict])
def test_containers_with_attributes_keep_their_items(odd, save):
    content = read_weights(save({"w": WEIGHT, "odd": odd()}))
    assert content["odd"] in ([1, 2], {"a": 1})


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_later_pickle_protocols_are_read(protocol, save):
    content = read_weights(save({"w": WEIGHT, "run": Run()}, pickle_protocol=protocol))
    assert torch.equal(content["w"], WEIGHT)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [0, 1])
def test_error_names_text_pickle_protocols(protocol, tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"w": WEIGHT}, path, pickle_protocol=protocol)
    with pytest.raises(UserError, match=r"file\.pth.*pickle protocol"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer"),
        (b"\n<!DOCTYPE html>\n<html>", "it is a web page"),
        (b"<HTML lang='en'>", "it is a web page"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "it is not a file of torch.save"),
        (b"\x89PNG\r\n\x1a\n", "it is not a file of torch.save"),
        (b"Not Found", "it is not a file of torch.save"),
        (b"Invalid name", "it is not a file of torch.save"),
    ],
)
def test_error_names_another_format(content, reason, tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    message = r"file\.pth \(.*it is damaged, incomplete or has another format \(" + reason
    with pytest.raises(UserError, match=message + r".*\)\. Download or copy it again\.$"):
        read_weights(path)


def test_error_names_a_pointer_in_place_of_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match=r"it is a Git LFS pointer; `git lfs pull`"):
        read_weights(path)


@pytest.mark.parametrize("old", [b"cos\nsystem\n(S'touch x'\ntR.", b"(S'touch x'\nios\nsystem\n."])
def test_pickles_of_protocol_0_are_refused(old, tmp_path):
    (tmp_path / "file.pth").write_bytes(old)
    with pytest.raises(UserError, match=r"is refused: its pickle protocol is not supported"):
        read_weights(tmp_path / "file.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_error_names_a_torchscript_program(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "program.pth")
    with pytest.raises(UserError, match=r"program\.pth.*TorchScript"):
        read_weights(tmp_path / "program.pth")


class Calls:
    """Pickled as a function call with a side effect."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class BuildsAfter(Calls):
    """Pickle that sets the state of the result of the call."""

    def __reduce__(self):
        return (*self.call, {"__class__": 1, "__setstate__": 2})


class FillsAfter(Calls):
    """Pickle that adds list items and dictionary entries to the result of the call."""

    def __reduce__(self):
        return (*self.call, None, iter([1, 2]), iter([("a", 1)]))


@pytest.mark.parametrize("form", [Calls, BuildsAfter, FillsAfter])
@pytest.mark.parametrize("how", ["exec", "eval", "system", "mkdir", "getattr"])
def test_nothing_in_a_file_is_executed(how, form, save, tmp_path):
    marker = tmp_path / "executed"
    payload = {
        "exec": form(exec, f"open({str(marker)!r}, 'w').close()"),
        "eval": form(eval, f"open({str(marker)!r}, 'w')"),
        "system": form(os.system, f"touch {marker}"),
        "mkdir": form(os.mkdir, str(marker)),
        "getattr": form(getattr, Path(marker), "touch"),
    }[how]
    path = save({"state_dict": {"w": WEIGHT}, "payload": payload})
    with suppress(UserError):  # some are refused, the others become placeholders
        read_weights(path)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_nothing_is_executed_with_any_pickle_protocol(protocol, save, tmp_path):
    marker = tmp_path / "executed"
    payload = Calls(exec, f"open({str(marker)!r}, 'w').close()")
    path = save({"w": WEIGHT, "payload": payload}, pickle_protocol=protocol)
    with suppress(UserError):
        read_weights(path)
    assert not marker.exists()


def test_a_payload_before_the_content_of_a_legacy_file_is_not_executed(tmp_path):
    marker = tmp_path / "executed"
    with (tmp_path / "plain.pth").open("wb") as file:
        for _ in range(4):
            pickle.dump(Calls(os.mkdir, str(marker)), file, protocol=2)
    with pytest.raises(UserError, match=r"not a file of torch\.save"):
        read_weights(tmp_path / "plain.pth")
    assert not marker.exists()
