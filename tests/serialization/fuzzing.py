"""Mutate files at random and read them in a monitored child process with limits.

    python -m tests.serialization.fuzzing --mutations 2000 --seed 0

Every file must be read or raise a one-line `UserError` within 20 seconds and 2 GB, without a crash
and without side effects that a file could cause: processes, connections, imports, compiled code,
Python's unpickler, files opened for writing.
"""

from __future__ import annotations

import argparse
import contextlib
import encodings.cp437  # noqa: F401  used by zipfile for names of members
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from src.cli.commands.consolidate import official
from src.distributed import consolidate
from src.errors import UserError
from src.hub import Pretrained
from src.models.building import build_network
from src.models.weights import load_official, to_official
from src.serialization import check_finite, read_checkpoint

SECONDS, BYTES = 20, 2 * 2**30
SPEC = {
    "class_path": "InternImage",
    "init_args": {"channels": 4, "depths": [1, 1, 1, 1], "groups": [1, 1, 2, 4]},
}
CLASSES = ["cat", "dog"]
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.chmod",
    "os.symlink",
    "os.link",
    "subprocess.",
    "socket.",
    "pty.",
    "exec",
    "compile",
    "pickle.find_class",
    "marshal.",
    "ctypes.",
    "shutil.",
    "tempfile.",
    "import",
)
"""Python audit events that readers must not cause."""


@dataclass
class Container:
    """A kind of file.

    Attributes:
        file: The file to mutate.
        read: Reads the model or checkpoint that the file is a part of.
        inner: Pickle in an archive that is mutated separately.
    """

    file: Path
    read: Callable[[], Any]
    inner: str | None = None


@dataclass
class Result:
    """Results for one kind of file."""

    read: int = 0
    refused: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def checkpoint(network: torch.nn.Module) -> dict[str, Any]:
    """Content of a training checkpoint."""
    counts = {"total": {"ready": 6, "completed": 6}, "current": {"ready": 3, "completed": 3}}
    loops = ("fit_loop", "validate_loop", "test_loop", "predict_loop")
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {
        "epoch": 1,
        "global_step": 6,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": weights,
        "loops": {loop: {"state_dict": {}, "epoch_progress": counts} for loop in loops},
        "callbacks": {"EMA": {"latest_update_step": 6}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"last_epoch": 6}],
        "hparams_name": "kwargs",
        "hyper_parameters": {
            "_class_path": "src.tasks.ClassificationTask",
            "num_classes": len(CLASSES),
            "network": SPEC,
        },
        "class_names": CLASSES,
    }


def containers(folder: Path) -> dict[str, Container]:
    """Write one file of each kind."""
    network = build_network(SPEC, len(CLASSES))
    weights = to_official(network)
    content = checkpoint(network)

    def weight_file(path: Path) -> Callable[[], Any]:
        return lambda: load_official(network, path)

    def checkpoint_file(path: Path) -> Callable[[], Any]:
        def read() -> None:
            found = read_checkpoint(path)
            check_finite(found, path)
            official(found)

        return read

    torch.save({"model": weights}, folder / "weights.pth")
    torch.save({"model": weights}, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(weights, folder / "weights.safetensors")
    torch.save(content, folder / "last.ckpt")
    shards = folder / "shards"
    shards.mkdir()
    names = list(weights)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: weights[name] for name in part}, shards / file)
    index = shards / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {name: f for f, part in halves.items() for name in part}})
    )
    sharded = folder / "sharded.ckpt"
    write_sharded(sharded, checkpoint(torch.nn.Linear(4, 3)))  # few entries, each of every kind
    model = folder / "model"
    Pretrained(network, SPEC, CLASSES, "classification", {"mean": [0.5]}).save_pretrained(model)
    return {
        "pth": Container(folder / "weights.pth", weight_file(folder / "weights.pth"), "data.pkl"),
        "legacy pth": Container(folder / "old.pth", weight_file(folder / "old.pth")),
        "safetensors": Container(
            folder / "weights.safetensors", weight_file(folder / "weights.safetensors")
        ),
        "ckpt": Container(folder / "last.ckpt", checkpoint_file(folder / "last.ckpt"), "data.pkl"),
        ".metadata": Container(sharded / ".metadata", lambda: consolidate(sharded)),
        "meta.pt": Container(sharded / "meta.pt", lambda: consolidate(sharded), "data.pkl"),
        "distcp": Container(sharded / "__0_0.distcp", lambda: consolidate(sharded)),
        "index.json": Container(index, weight_file(index)),
        "config.json": Container(model / "config.json", lambda: Pretrained.from_pretrained(model)),
    }


def write_sharded(folder: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint folder like the strategy ``fsdp2``, with one rank."""
    from torch.distributed.checkpoint.state_dict_saver import save

    weights, state = content["state_dict"], content["optimizer_states"][0]
    names = list(weights)  # PyTorch saves sharded optimizer states by name
    groups = [g | {"params": [names[n] for n in g["params"]]} for g in state["param_groups"]]
    moments = {names[number]: values for number, values in state["state"].items()}
    parts = {"state_dict": weights, "optimizer_0": {"state": moments, "param_groups": groups}}
    save(dict(parts), checkpoint_id=folder, no_dist=True)
    rest = {k: v for k, v in content.items() if k not in ("state_dict", "optimizer_states")}
    torch.save(rest | {"group_sizes": [[len(state["state"])]]}, folder / "meta.pt")


# ------------------------------------------------------------------- mutations

NUMBERS = (b"\x00", b"\xff", b"\x7f", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00" * 8)
CODES = b"}]()NKMJGXUTtdluseabqrhjQRc0123.\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x8c\x90\x93\x94\x95"
TOKENS = (
    *(b"null", b"[]", b"{}", b"-1", b"1e999", b"NaN", b"9" * 5000, b'"../x.safetensors"'),
    *(b"true", b"0.5", b"[" * 3000, b'"os.system"', b"99999999", b'"\\u0000"'),
)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Apply one to four random mutations."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        if data:
            data = changed(data, chance)
    return data


def changed(data: bytes, chance: random.Random) -> bytes:
    """Apply a random mutation: flip bits; move, delete, duplicate or insert bytes; truncate."""
    at, other = chance.randrange(len(data)), chance.randrange(len(data))
    piece = data[at : at + chance.choice((1, 1, 2, 4, 8, 64, 1000))]
    before, after, rest = data[:at], data[at + 1 :], data[at + len(piece) :]
    number, code = chance.choice(NUMBERS), bytes([chance.choice(CODES)])
    match chance.randrange(10):
        case 0:
            return before + bytes([data[at] ^ 1 << chance.randrange(8)]) + after
        case 1:
            return before + chance.randbytes(len(piece)) + rest
        case 2:
            return before + rest
        case 3:
            return before + piece + data[at:]
        case 4:
            return data[:other] + piece + data[other + len(piece) :]
        case 5:
            return before
        case 6:
            return before + number + data[at + len(number) :]
        case 7:
            return before + code + after
        case 8:
            return before + code + data[at:]
        case _:
            return before + chance.choice(TOKENS) + rest


def damaged_value(data: bytes, chance: random.Random) -> bytes:
    """JSON file with one value replaced."""
    text = data.decode()
    starts = [i for i, c in enumerate(text) if c in ":[,"]
    at = chance.choice(starts) + 1
    end = min((i for i in (text.find(c, at) for c in ",]}") if i >= 0), default=at)
    return text[:at].encode() + chance.choice(TOKENS) + text[end:].encode()


def damaged_member(data: bytes, name: str, chance: random.Random) -> bytes:
    """Archive with one mutated member."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith(f"/{name}"):
                content = damaged(content, chance)
            new.writestr(info.filename, content)
    return out.getvalue()


def mutate(container: Container, whole: bytes, chance: random.Random) -> bytes:
    """Mutate a file."""
    if container.inner is not None and chance.random() < 0.6:
        return damaged_member(whole, container.inner, chance)
    if container.file.suffix == ".json" and chance.random() < 0.6:
        return damaged_value(whole, chance)
    if container.file.suffix == ".safetensors" and chance.random() < 0.7:
        length = int.from_bytes(whole[:8], "little")
        header = damaged(whole[8 : 8 + length], chance)
        return len(header).to_bytes(8, "little") + header + whole[8 + length :]
    return damaged(whole, chance)


# ------------------------------------------------------------------ monitoring


class AuditLog:
    """Records audit events that readers must not cause."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = (mode and set(str(mode)) & set("wax+")) or (flags or 0) & (
                os.O_WRONLY | os.O_RDWR | os.O_CREAT
            )
            if writes:
                self.seen.append(f"open {path} {mode}")
        elif event.startswith(FORBIDDEN):
            self.seen.append(f"{event} {str(arguments)[:200]}")


def run(container: Container, mutations: int, seed: int) -> Result:
    """Mutate one file many times and read it each time, in a child process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as report:
            try:
                _child(container, mutations, seed, report)
            except BaseException as error:
                print(json.dumps({"failure": f"the fuzzer itself: {error!r}"}), file=report)
            report.flush()
            os._exit(0)
    os.close(writing)
    result, last = Result(), -1
    with os.fdopen(reading) as report:
        for line in report:
            found = json.loads(line)
            last = found.get("number", last)
            result.read += found.get("outcome") == "read"
            result.refused += found.get("outcome") == "refused"
            result.seconds = max(result.seconds, found.get("seconds", 0.0))
            if "failure" in found:
                result.failures.append(f"mutation {last}: {found['failure']}")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        result.failures.append(f"the process ended with {code} after mutation {last}")
    return result


def _child(container: Container, mutations: int, seed: int, report: Any) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    whole = container.file.read_bytes()
    container.read()  # everything needed is imported now
    for message in (b"", b"PK", b"{", b"\x80\x02}"):
        container.file.write_bytes(message)
        with contextlib.suppress(UserError):
            container.read()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    watch = AuditLog()
    for number in range(mutations):
        chance = random.Random(f"{seed} {container.file.name} {number}")
        container.file.unlink()
        container.file.write_bytes(mutate(container, whole, chance))
        print(json.dumps({"number": number}), file=report, flush=True)
        signal.alarm(SECONDS)
        start = time.monotonic()
        watch.on = True
        answer = _read(container)
        watch.on = False
        signal.alarm(0)
        answer["seconds"] = time.monotonic() - start
        if watch.seen:
            answer["failure"] = f"caused {watch.seen[:3]}"
            watch.seen.clear()
        print(json.dumps(answer), file=report)
    container.file.write_bytes(whole)


def _read(container: Container) -> dict[str, Any]:
    try:
        container.read()
    except UserError as error:
        text = str(error)
        if "\n" in text or not text.isprintable() or len(text) > 2000:
            return {"failure": f"an error that is not one line: {text[:300]!r}"}
        return {"outcome": "refused"}
    except BaseException as error:
        import traceback

        where = traceback.extract_tb(error.__traceback__)[-1]
        return {"failure": f"{type(error).__name__}: {str(error)[:200]} ({where})"}
    return {"outcome": "read"}


def main() -> int:
    """Mutate every kind of file and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=2000, help="of each kind of file")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    failures: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for kind, container in containers(Path(folder)).items():
            start = time.monotonic()
            result = run(container, args.mutations, args.seed)
            print(
                f"{kind:12} {result.read:6} read {result.refused:6} refused"
                f" {len(result.failures):4} failures, slowest {result.seconds:.2f} s,"
                f" all {time.monotonic() - start:.0f} s",
                flush=True,
            )
            for failure in result.failures[:20]:
                print(f"    {failure}")
            failures[kind] = len(result.failures)
    return int(any(failures.values()))


if __name__ == "__main__":
    sys.exit(main())
