"""Wrong options of ``export`` are reported before PyTorch is imported."""

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
        ("--name no-such", "There is no run runs/no-such in the current folder"),
        ("--name x --format onx", "export --format: expected onnx, pt2, aoti or safetensors"),
        ("--name x --check no-such", "for --check does not exist: no-such."),
        ("-c configs/toy/classification.yaml --check no-such", "does not exist: no-such."),
    ],
)
def test_errors_come_without_pytorch(arguments: str, message: str) -> None:
    code = f"{RUN}; assert 'torch' not in sys.modules; sys.exit(code)"
    command = [sys.executable, "-c", code, "export", *arguments.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "loading PyTorch" not in done.stderr


def test_the_names_of_formats_and_operators_are_those_that_are_written() -> None:
    assert (*WRITERS, "safetensors") == FORMATS
    assert tuple(OPSETS) == DCN_FORMS
