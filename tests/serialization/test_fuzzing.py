"""Mutated files of every kind are read or refused with a one-line error."""

import os
from pathlib import Path

import pytest

from tests.serialization import fuzzing

KINDS = (
    "pth",
    "legacy pth",
    "safetensors",
    "ckpt",
    ".metadata",
    "meta.pt",
    "distcp",
    "index.json",
    "config.json",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, fuzzing.Container]:
    return fuzzing.containers(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize(
    "mutations", [100, pytest.param(2000, marks=pytest.mark.slow)], ids=["quick", "thorough"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_read_or_refused(
    files: dict[str, fuzzing.Container], kind: str, mutations: int
) -> None:
    result = fuzzing.run(files[kind], mutations, seed=1)
    assert result.failures == []
    assert result.read + result.refused == mutations
    assert result.refused > mutations / 4  # the mutations reach the reader


def test_side_effects_are_detected(files: dict[str, fuzzing.Container], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    readings = []

    def read() -> None:
        readings.append(None)
        if len(readings) > 5:  # the first ones are part of the setup
            os.system(f"touch {mark}")

    watched = fuzzing.Container(files["pth"].file, read)
    result = fuzzing.run(watched, 1, seed=0)
    assert "os.system" in result.failures[0]
