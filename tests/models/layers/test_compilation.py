"""Compiled parts: the same results, few graphs, no graph breaks."""

import copy
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from src.errors import UserError
from src.models import InternImage
from src.models.layers import compilation
from src.models.layers.compilation import Compilation, check_compiler, compile_parts
from src.models.layers.low_rank import add_low_rank

TINY = {"channels": 8, "depths": [3, 2], "groups": [1, 2], "layer_scale": 1.0}


@pytest.fixture
def graphs(monkeypatch):
    """Number of graphs so far; graphs run without a C++ compiler, which takes long."""
    torch._dynamo.reset()
    counters.clear()
    compile_ = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(
        compilation.torch, "compile", lambda f, options, **rest: compile_(f, **rest)
    )
    compilation._compiled.cache_clear()
    yield lambda: counters["stats"]["unique_graphs"]
    assert not counters["graph_break"]
    compilation._compiled.cache_clear()


def network(**arguments):
    torch.manual_seed(0)
    return InternImage(5, **TINY | arguments)


def step(model, images, **autocast):
    """Loss and gradients of one step."""
    torch.manual_seed(1)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, **autocast):
        loss = model(images).float().square().sum()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_same_step(graphs, checkpointing):
    model = network(drop_path_rate=0.3, grad_checkpointing=checkpointing)
    images = torch.randn(4, 3, 64, 64)
    eager = step(model, images, enabled=False)
    names = list(model.state_dict())
    compile_parts(model, Compilation())
    torch.testing.assert_close(step(model, images, enabled=False), eager, rtol=1e-4, atol=1e-4)
    assert list(model.state_dict()) == names


@pytest.mark.slow
def test_low_rank_factors(graphs):
    model = network()
    add_low_rank([model.levels], 4)
    for name, parameter in model.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(parameter, std=0.1)
    images = torch.randn(2, 3, 64, 64)

    def trained():
        model.zero_grad()
        loss = model(images).square().sum()
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]

    eager = trained()
    compile_parts(model, Compilation())
    torch.testing.assert_close(trained(), eager, rtol=1e-4, atol=1e-4)
    assert graphs() > 0


def test_blocks_share_their_graphs(graphs):
    """Drop path has another rate in each block; a deeper network has no more graphs."""
    images = torch.randn(4, 3, 64, 64)
    model = network(drop_path_rate=0.3)
    compile_parts(model, Compilation())
    step(model, images, enabled=False)
    few = graphs()
    assert few == 2  # one for each stage, although the first block has no drop path
    deep = network(drop_path_rate=0.3, depths=[5, 6])
    compile_parts(deep, Compilation())
    step(deep, images, enabled=False)
    assert graphs() == few


def test_under_autocast(graphs):
    model = network()
    images = torch.randn(4, 3, 64, 64)
    (eager, *_) = step(model, images)
    compile_parts(model, Compilation())
    (compiled, *_) = step(model, images)
    torch.testing.assert_close(compiled, eager, rtol=2e-2, atol=1e-3)


def test_all_sizes_at_once(graphs):
    model = network(channels=4).eval()  # blocks of these widths never run as one operator
    compile_parts(model, Compilation(dynamic=True))
    counts = []
    for size in ((64, 96), (96, 64), (128, 80), (72, 104)):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            out = model(images)
            assert out.isfinite().all()
        counts.append(graphs())
    assert counts == [2] * 4  # one for the width of each stage


def test_a_copy_runs_with_its_own_weights(graphs):
    model = network().eval()
    compile_parts(model, Compilation())
    images = torch.randn(2, 3, 64, 64)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
        assert not torch.equal(model(images), other(images))


def test_errors():
    with pytest.raises(UserError, match="mode of compilation must be one of"):
        compile_parts(network(), Compilation("fastest"))
    with pytest.raises(UserError, match="Nothing in Linear can be compiled"):
        compile_parts(torch.nn.Linear(1, 1), Compilation())
    no_compiler = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with no_compiler, pytest.raises(UserError, match="needs a C\\+\\+ compiler"):
        check_compiler("cpu")
