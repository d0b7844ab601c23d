"""Command lines and checks that have to run on a GPU once, several at a time.

Each line has a limit and leaves a row: passed, failed with its last words, or killed. Lines of a
chain follow one another, since they use what the line before has made.
"""

from __future__ import annotations

import argparse
import csv
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import Rows
from benchmarks.gpu.sections import parser
from benchmarks.gpu.session import (
    Stopped,
    end_all,
    is_stopped,
    last_line,
    run_within,
    stop_on_sigterm,
)

SECTION = "first run"
AT_ONCE = 4
MOST_LOGGED = 4000
"""Characters of a line's output that go into the log."""
TOY_CLASSES = {"classification": 10, "detection": 10, "segmentation": 11}
TOY_FOLDERS = {"classification": "imagenet", "detection": "coco", "segmentation": "ade20k"}


# Name, task, recipe, batch and further flags of the networks whose memory is planned and measured.
PEAKS: list[tuple[Any, ...]] = [
    ("T, N=128", "classification", "classification/internimage_t_1k_224", 128),
    ("Mask R-CNN-T, N=2", "detection", "detection/mask_rcnn_internimage_t_fpn_1x_coco", 2),
    (
        *(
            "UPerNet-T, N=4",
            "segmentation",
            "segmentation/upernet_internimage_t_512_160k_ade20k",
            4,
        ),
        *("--trainer.sync_batchnorm", "false"),
    ),
    ("B, N=64", "classification", "classification/internimage_b_1k_224", 64),
    (
        *("H at 224, N=16", "classification", "classification/internimage_h_22kto1k_640", 16),
        *("--data.image_size", 224),
    ),
]


@dataclass(frozen=True)
class Line:
    """A command with a limit.

    Attributes:
        name: Its name in the rows.
        command: What is run.
        seconds: Its limit.
        run: The run folder that it makes, whose losses are shown.
        shows: The last line of its output with this text is shown.
    """

    name: str
    command: list[str]
    seconds: float = 90
    run: Path | None = None
    shows: str = ""


def src(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "src", *map(str, arguments)]


class Lines:
    """The lines for a device, a work folder and a data folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = "gpu" if args.device == "cuda" else "cpu"
        self.toy, self.runs = args.work / "toy", args.work / "runs"

    def prepare(self) -> Line:
        """Draw the toy data."""
        return Line("toy data", src("prepare", "toy", "--root", self.toy))

    def fit(
        self, name: str, task: str, *flags: object, device: str | None = None, epochs: int = 1
    ) -> Line:
        """Training on toy data."""
        command = src("fit", "--config", f"configs/toy/{task}.yaml", *self._run_flags(name, device))
        command += ["--data.root", str(self.toy / TOY_FOLDERS[task])]
        command += ["--trainer.max_epochs", str(epochs), "--trainer.check_val_every_n_epoch", "1"]
        return Line(name, [*command, *map(str, flags)], run=self.runs / _folder(name))

    def after(self, line: Line, command: str, name: str, *flags: object) -> Line:
        """Another command on the run of a line."""
        config = line.command[line.command.index("--config") + 1]
        root = line.command[line.command.index("--data.root") + 1]
        own = ["--config", config, "--data.root", root, *self._run_flags(line.name, None)]
        return Line(name, src(command, *own, *flags))

    def check(self, name: str, what: str, *flags: object, seconds: float = 90) -> Line:
        """A check of `benchmarks.gpu.checks`."""
        command = [sys.executable, "-m", "benchmarks.gpu.checks", what]
        command += ["--device", self.args.device, *map(str, flags)]
        if self.args.peers is not None:
            command += ["--peers", str(self.args.peers)]
        return Line(name, command, seconds)

    def peak(self, name: str, task: str, config: str, batch: int, *flags: object) -> Line:
        """The planner's number against the measured peak."""
        own = ["--config", f"configs/{config}.yaml", "--data.batch_size", batch]
        own += ["--data.root", self.toy / TOY_FOLDERS[task], "--data.num_workers", 2]
        own += ["--trainer.accelerator", self.device, "--trainer.precision", "bf16-mixed"]
        own += ["--trainer.devices", 1]
        if task == "segmentation":
            own += ["--data.class_names", self.toy / "ade20k" / "classes.txt"]
        classes = ["--num_classes", TOY_CLASSES[task]]
        return self.check(f"peak: {name}", "peak", *classes, *own, *flags, seconds=150)

    def _run_flags(self, name: str, device: str | None) -> list[str]:
        flags = ["--name", _folder(name), "--trainer.default_root_dir", str(self.runs)]
        return [*flags, "--trainer.accelerator", device or self.device, "--trainer.devices", "1"]

    def chains(self) -> list[list[Line]]:
        """All lines that need the toy data, in order of value."""
        precisions = ["bf16-mixed", "16-mixed"] if self.device == "gpu" else ["bf16-mixed"]
        fits = {
            (task, kind): self.fit(f"fit {task} {kind}", task, "--trainer.precision", kind)
            for kind in precisions
            for task in TOY_FOLDERS
        }
        first = fits["classification", "bf16-mixed"]
        predict = self.toy / "imagenet" / "predict"
        export = self.after(
            first, "export", "export check", "--ckpt_path", "last", "--check", predict
        )
        resume = [
            self.fit("resume", "classification", device="cpu"),
            self.fit("resume", "classification", "--ckpt_path", "last", epochs=2),
            self.fit("resume", "classification", "--ckpt_path", "last", device="cpu", epochs=3),
        ]
        names = ("resume: CPU", "resume: CPU to device", "resume: device to CPU")
        resume = [
            Line(name, line.command, run=line.run) for name, line in zip(names, resume, strict=True)
        ]
        found = [[first, export], *([line] for key, line in fits.items() if line is not first)]
        # To the numbers of the line without it, as far as rounding allows.
        compiled = self.fit(
            "fit classification compiled",
            "classification",
            *("--trainer.precision", "bf16-mixed", "--model.compile", "true"),
        )
        found += [[compiled]]
        found += [
            [self.fit(name, "classification", "--trainer.strategy", name)]
            for name in ("fsdp2", "fsdp1")
        ]
        found += [resume, *([line] for line in self._checks())]
        return found

    def _checks(self) -> list[Line]:
        dino = ("--data.root", self.toy / "coco")
        lines = [
            self.check("CUDA graphs: a training step", "cuda_graphs"),
            self.check("DINO against the CPU", "dino", "--config", "configs/toy/dino.yaml", *dino),
            *(
                self.check(
                    f"compiled and eager: {task}",
                    "compiled",
                    *("--config", f"configs/toy/{task}.yaml", "--data.root", self.toy / folder),
                )
                for task, folder in TOY_FOLDERS.items()
            ),
        ]
        if self.device == "cpu":
            return [*lines, self.peak("toy", "classification", "toy/classification", 8)]
        return [*lines, *(self.peak(*arguments) for arguments in PEAKS)]

    def files(self) -> list[Line]:
        """From an ImageNet folder: training, evaluation, prediction, and the rate of loading."""
        data = self.args.data
        name, config = "from files", "configs/classification/internimage_nano_96.yaml"
        own = ["--config", config, "--data.root", data, *self._run_flags(name, None)]
        own += ["--data.num_workers", 4, "--trainer.precision", "bf16-mixed"]
        many = self.args.work / "many"  # so that epochs are long enough to measure
        rate = ["--data.root", many, "--data.batch_size", 128, "--data.num_workers", 16]
        rate += ["--trainer.precision", "bf16-mixed", "--trainer.accelerator", self.device]
        large = "configs/classification/internimage_t_1k_224.yaml"
        benchmark = ["benchmark", "--config", large, *rate]
        return [
            Line(
                "from files: fit",
                src("fit", *own, "--trainer.max_epochs", 3),
                run=self.runs / _folder(name),
            ),
            Line("from files: test", src("test", *own, "--ckpt_path", "last")),
            Line(
                "from files: predict",
                src("predict", *own, "--ckpt_path", "last", "--data.predict_dir", data / "val"),
            ),
            self.check("from files: links", "links", "--root", data, "--links", many),
            Line("from files: rate of T", src(*benchmark), shows="| training |"),
            Line(
                "from files: rate of T without loading",
                src(*benchmark, "--one_batch"),
                shows="| training |",
            ),
        ]


def _folder(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def run_chain(rows: Rows, chain: list[Line], logs: Path, lock: threading.Lock) -> None:
    """Run the lines of a chain that have no row, up to the first that does not pass."""
    for line in chain:
        if (done := rows.find(SECTION, line.name)) is None:
            log = logs / f"{_folder(line.name)}.txt"
            log.unlink(missing_ok=True)
            start = time.monotonic()
            code = run_within(line.command, line.seconds, log)
            if is_stopped():
                return  # it was ended with everything else, which says nothing about it
            seconds = round(time.monotonic() - start, 1)
            outcome = {0: "passed", None: f"killed after {seconds:.0f} s"}.get(code, "failed")
            detail = losses(line.run) if code == 0 and line.run else last_line(log, line.shows)
            with lock:
                print(log.read_text(errors="replace")[-MOST_LOGGED:], flush=True)
                rows.add(SECTION, line.name, outcome=outcome, seconds=seconds, detail=detail)
                done = rows.find(SECTION, line.name)
        if done is None or done["outcome"] != "passed":
            return


def losses(run: Path) -> str:
    """First and last training loss of the newest version of a run."""
    tables = sorted(run.glob("*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    if not tables:
        return "no metrics.csv"
    with tables[-1].open() as file:
        values = [row["train/loss"] for row in csv.DictReader(file) if row.get("train/loss")]
    if not values:
        return "no training loss in metrics.csv"
    return f"loss {float(values[0]):.3f} -> {float(values[-1]):.3f}, {len(values)} values"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("part", choices=("lines", "files"))
    args = options.parse_args()
    stop_on_sigterm()
    rows, lines, lock = Rows(args.out), Lines(args), threading.Lock()
    logs = args.work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    if args.part == "lines":
        run_chain(rows, [lines.prepare()], logs, lock)
    chains = lines.chains() if args.part == "lines" else [lines.files()]
    pool = ThreadPoolExecutor(AT_ONCE if args.device == "cuda" else 1)
    try:
        list(pool.map(lambda chain: run_chain(rows, chain, logs, lock), chains))
    except Stopped:
        end_all()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    main()
