"""``python -m src benchmark``: speed, latency and memory on the device at hand."""

import json

import pytest
import torch

from src.cli import main
from tests.cli import tiny

SHORT = ["--warmup", "1", "--steps", "3"]


def benchmark(config, *flags):
    return main(["benchmark", "--config", str(config), *SHORT, *flags])


def rows_of(output):
    lines = [line for line in output.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_training_and_inference_of_a_recipe(tmp_path, monkeypatch, write_recipe, capsys):
    monkeypatch.chdir(tmp_path)
    config = write_recipe(tmp_path)
    assert benchmark(config, "--output", "results/speed.json") == 0
    training, inference = rows_of(capsys.readouterr().out)
    assert (training[""], inference[""]) == ("training", "inference")
    result = json.loads((tmp_path / "results" / "speed.json").read_text())
    assert result["recipe"] == "tiny"
    assert result["device"] == "CPU"
    assert result["torch"] == torch.__version__.split("+")[0]
    for row, name in ((training, "training"), (inference, "inference")):
        speed = result[name]
        assert row["images/s"] == f"{speed['images_per_second']:.1f}"
        assert speed["batch"] == 8 == int(row["N"])
        assert speed["images_per_second"] > 0
        assert 0 < speed["p50_ms"] <= speed["p95_ms"]
        assert 0 <= speed["waiting"] < 1
        assert speed["peak_bytes"] > 2**20
    # It keeps nothing but what was asked for.
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml", "results"}


def test_one_batch_waits_for_nothing(tmp_path, monkeypatch, write_recipe, capsys):
    monkeypatch.chdir(tmp_path)
    assert benchmark(write_recipe(tmp_path), "--one_batch", "--data.batch_size", "4") == 0
    training, inference = rows_of(capsys.readouterr().out)
    assert training["N"] == "4"
    assert float(training["waiting"].rstrip("%")) < 5
    assert float(inference["waiting"].rstrip("%")) < 5


def test_slow_loading_is_named(tmp_path, monkeypatch, write_recipe, capsys):
    """A tiny network on images that take long to load."""
    import time

    from src.data.datasets.image_folder import LabelledImages

    load = LabelledImages.__getitem__

    def slowly(dataset, index):
        time.sleep(0.02)
        return load(dataset, index)

    monkeypatch.setattr(LabelledImages, "__getitem__", slowly)
    monkeypatch.chdir(tmp_path)
    assert benchmark(write_recipe(tmp_path)) == 0
    output = capsys.readouterr().out
    training, _ = rows_of(output)
    assert float(training["waiting"].rstrip("%")) > 5
    assert "Training waited for images" in output
    assert "--data.num_workers (now 0)" in output


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--steps", "0"], "--warmup and --steps accept 1 or more, got 1, 0."),
        (["--trainer.devices", "2"], "benchmark measures one device, got 2"),
        (["--trainer.max_steps", "3"], "The training ended before 1 + 2 x 3 steps were measured"),
    ],
)
def test_mistakes_are_told(tmp_path, monkeypatch, write_recipe, capsys, flags, sentence):
    monkeypatch.chdir(tmp_path)
    assert benchmark(write_recipe(tmp_path), *flags) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_detectors_and_segmentors(tmp_path, monkeypatch, capsys, task):
    config = tiny.write_recipe(tmp_path, task, tiny.write_data(tmp_path / "data", task))
    monkeypatch.chdir(tmp_path)
    assert benchmark(config, "--steps", "2") == 0
    training, inference = rows_of(capsys.readouterr().out)
    assert float(training["images/s"]) > 0
    assert float(inference["images/s"]) > 0
