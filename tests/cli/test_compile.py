"""``model.compile`` in the four commands."""

import pytest
import torch
from torch._dynamo.utils import counters

from src.cli import build, main
from src.models.layers.compilation import RepeatedPart
from src.serialization import read_checkpoint


@pytest.fixture
def quick_compiler(monkeypatch):
    """Graphs are traced and checked, but not translated to C++, which takes long."""
    compile_ = torch.compile

    def without_inductor(function, mode, **options):
        return compile_(function, backend="aot_eager", **options)

    from src.models.layers import compilation

    torch._dynamo.reset()
    counters.clear()
    compilation._compiled.cache_clear()
    monkeypatch.setattr(compilation.torch, "compile", without_inductor)
    yield
    compilation._compiled.cache_clear()


def test_fit_and_evaluate(tmp_path, monkeypatch, write_recipe, quick_compiler):
    monkeypatch.chdir(tmp_path)
    config = str(write_recipe(tmp_path))
    assert main(["fit", "-c", config, "--model.compile", "true", "--trainer.max_epochs", "1"]) == 0
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]
    checkpoint = tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt"
    content = read_checkpoint(checkpoint)
    assert "compile" not in str(content["hyper_parameters"])
    for command in ("validate", "test"):
        flags = ["-c", config, "--ckpt_path", str(checkpoint), "--model.compile", "default"]
        assert main([command, *flags]) == 0


def test_task_decides_about_sizes(tmp_path, write_recipe):
    flags = ["--model.compile", "max-autotune-no-cudagraphs"]
    cli = build(["-c", str(write_recipe(tmp_path)), *flags])
    parts = [m for m in cli.model.network.modules() if isinstance(m, RepeatedPart)]
    assert parts
    assert {part.compilation for part in parts} == {("max-autotune-no-cudagraphs", False)}


def test_unknown_mode(tmp_path, write_recipe, capsys):
    assert main(["fit", "-c", str(write_recipe(tmp_path)), "--model.compile", "fastest"]) == 2
    assert "compile" in capsys.readouterr().err
