"""Checkpoint folders: nothing in them is executed, and no file outside is opened."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from src.cli import main
from src.distributed import consolidate
from src.errors import UserError
from src.models.building import build_network
from src.serialization import Folder
from src.serialization.parallel import RestrictedReader
from tests.serialization.fuzzing import CLASSES, SPEC, checkpoint, write_sharded


class Runs:
    """Pickled as a function call with a side effect."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.fixture
def network():
    return build_network(SPEC, len(CLASSES))


@pytest.fixture
def folder(tmp_path, network):
    path = tmp_path / "last.ckpt"
    write_sharded(path, checkpoint(network))
    return path


@pytest.fixture
def metadata(folder):
    """Function that changes the metadata of a folder."""

    def change(edit):
        path = folder / ".metadata"
        description = pickle.loads(path.read_bytes())
        edit(description)
        path.write_bytes(pickle.dumps(description))
        return folder

    return change


def test_a_folder_is_read(folder, network):
    content = consolidate(folder)
    for name, value in network.state_dict().items():
        assert torch.equal(content["state_dict"][f"network.{name}"], value)
    (state,) = content["optimizer_states"]
    assert state["param_groups"][0]["betas"] == (0.9, 0.999)
    assert len(state["state"]) == len(list(network.parameters()))


def test_shards_are_loaded_by_pytorch(folder, network):
    from torch.distributed.checkpoint.state_dict_loader import load

    wanted = {f"network.{n}": torch.zeros_like(v) for n, v in network.state_dict().items()}
    load({"state_dict": wanted}, storage_reader=RestrictedReader(Folder(folder)), no_dist=True)
    for name, value in network.state_dict().items():
        assert torch.equal(wanted[f"network.{name}"], value)


@pytest.mark.parametrize("file", [".metadata", "meta.pt", "__0_0.distcp"])
@pytest.mark.parametrize("command", ["consolidate", "official"])
def test_nothing_in_a_folder_is_executed(file, command, folder, tmp_path, capsys):
    mark = tmp_path / "mark"
    payload = pickle.dumps(Runs(mark))
    if file == "__0_0.distcp":
        _replace_bytes_entry(folder, payload)
    else:
        (folder / file).write_bytes(payload)
    flags = ["--official"] if command == "official" else []
    output = ["--output", str(tmp_path / "out.ckpt")]
    code = main(["consolidate", str(folder), *output, *flags])
    assert not mark.exists()
    if code:
        printed = capsys.readouterr().err
        assert printed.startswith("error: ")
        assert printed.count("\n") == 1
    else:  # without the optimizer the payload is not read
        assert (file, command) == ("__0_0.distcp", "official")


def _replace_bytes_entry(folder: Path, payload: bytes) -> None:
    """Replace the first value that is not a tensor by a pickle."""
    description = pickle.loads((folder / ".metadata").read_bytes())
    place = next(p for i, p in description.storage_data.items() if i.offset is None)
    with (folder / place.relative_path).open("r+b") as file:
        file.seek(place.offset)
        file.write(payload.ljust(place.length, b"\0"))


def _first(description):
    index = next(i for i in description.storage_data if i.offset is not None)
    return description.storage_data[index]


def _entry(description):
    return next(e for e in description.state_dict_metadata.values() if getattr(e, "chunks", None))


def elsewhere(name):
    def edit(description):
        _first(description).relative_path = name

    return edit


def place(**changes):
    def edit(description):
        vars(_first(description)).update(changes)

    return edit


def entry(**changes):
    def edit(description):
        vars(_entry(description)).update(changes)

    return edit


def chunk(**changes):
    def edit(description):
        vars(_entry(description).chunks[0]).update(changes)

    return edit


def path_of(path):
    def edit(description):
        description.planner_data[next(iter(description.planner_data))] = path

    return edit


WRONG = {
    "a file above": (elsewhere("../secret.distcp"), "not in its folder"),
    "an absolute file": (elsewhere("/etc/passwd"), "not in its folder"),
    "a file in a folder": (elsewhere("a/b.distcp"), "not in its folder"),
    "an empty name": (elsewhere(""), "not in its folder"),
    "a missing file": (elsewhere("__9_9.distcp"), "missing"),
    "a name that is none": (elsewhere(5), "an invalid location"),
    "a start beyond the end": (place(offset=2**40), "truncated"),
    "a length beyond the end": (place(length=2**40), "truncated"),
    "a negative start": (place(offset=-8), "an invalid location"),
    "compression": (place(transform_descriptors=["zstd"]), "compressed"),
    "2 to the power of 50 values": (entry(size=torch.Size([2**50])), "has an invalid shape"),
    "more values than pieces": (entry(size=torch.Size([10**6])), "dimensions|cover"),
    "no pieces": (entry(chunks=[]), "cover"),
    "an offset that is none": (chunk(offsets=torch.Size([3, 3, 3])), "dimensions"),
    "a list index of a billion": (path_of(("optimizer_0", "state", 10**9)), "invalid path"),
    "a path to nowhere": (path_of(()), "invalid path"),
    "a number first": (path_of((0, "x")), "invalid path"),
    "another's path": (path_of(("state_dict", "network.head.bias")), "same path"),
    "no list of tensors": (lambda d: vars(d).update(state_dict_metadata=None), "list of tensors"),
    "a list of places": (lambda d: vars(d).update(storage_data=[]), "list of tensors"),
    "a text as description": (lambda d: vars(d).clear(), "empty|another object|list of tensors"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_invalid_metadata(kind, metadata):
    edit, match = WRONG[kind]
    path = metadata(edit)
    with pytest.raises(UserError, match=match) as caught:
        consolidate(path)
    assert "\n" not in str(caught.value)


def test_overlapping_shards(metadata):
    def edit(description):
        entry = _entry(description)
        entry.chunks.append(entry.chunks[0])
        entry.size = torch.Size([2 * entry.size[0], *entry.size[1:]])

    with pytest.raises(UserError, match=r"overlap|cover"):
        consolidate(metadata(edit))


def test_entries_with_the_same_byte_range(metadata):
    """Otherwise a small file could be read a thousand times."""

    def edit(description):
        places = description.storage_data
        largest = max(places.values(), key=lambda place: place.length)
        for index in places:
            if index.offset is not None:
                places[index] = largest

    with pytest.raises(UserError, match=r"same byte range|shard"):
        consolidate(metadata(edit))


def test_a_link_to_a_file_outside_the_folder(folder, tmp_path):
    (folder / "__0_0.distcp").rename(tmp_path / "outside")
    (folder / "__0_0.distcp").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="a link to a file outside its folder"):
        consolidate(folder)


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_no_command_executes_a_folder(command, trained, tmp_path, capsys):
    mark, folder = tmp_path / "mark", tmp_path / "bad.ckpt"
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Runs(mark)))
    torch.save({"pytorch-lightning_version": "2.6.6"}, folder / "meta.pt")
    arguments = ["-c", str(trained / "tiny.yaml"), "--ckpt_path", str(folder)]
    arguments += ["--trainer.default_root_dir", str(tmp_path / "runs")]
    assert main([command, *arguments]) == 2
    assert not mark.exists()
    assert "refers to posix.mkdir" in capsys.readouterr().err
