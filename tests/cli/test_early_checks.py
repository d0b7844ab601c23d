"""Runs and images that are missing are reported before PyTorch is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from src.export.files import OPSETS, WRITERS
from src.export.names import DCN_FORMS, FORMATS

ROOT = Path(__file__).resolve().parents[2]
RUN = "import sys; from src.cli import main; code = main(sys.argv[1:])"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("export --name no-such", "There is no run runs/no-such in the current folder"),
        (
            "export --name x --format onx",
            "--format: expected onnx, pt2, aoti or safetensors",
        ),
        ("export --name x --check no-such", "for --check does not exist: no-such."),
        ("export -c configs/toy/classification.yaml --check no-such", "does not exist: no-such."),
        ("validate --name no-such", "There is no run runs/no-such in the current folder"),
        ("test --name=no-such --ckpt_path last", "There is no run runs/no-such"),
        ("predict --name no-such --data.predict_dir docs", "There is no run runs/no-such"),
        (
            "predict -c configs/toy/classification.yaml --data.predict_dir doc",
            "doc is neither a file nor a folder. Did you mean docs?",
        ),
        (
            "predict --name no-such photo.jpg",
            "Unexpected argument 'photo.jpg'; use --data.predict_dir photo.jpg for images",
        ),
    ],
)
def test_errors_come_without_pytorch(arguments: str, message: str) -> None:
    code = f"{RUN}; assert 'torch' not in sys.modules; sys.exit(code)"
    command = [sys.executable, "-c", code, *arguments.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "loading PyTorch" not in done.stderr


def test_the_names_of_formats_and_operators_are_those_that_are_written() -> None:
    assert (*WRITERS, "safetensors") == FORMATS
    assert tuple(OPSETS) == DCN_FORMS
