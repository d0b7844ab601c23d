"""The operator on a CUDA device: `make test-gpu`."""

from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
from dcnv3_cases import assert_same, grad_like, make_problem
from gpu_cases import ADVERSARIAL, CASES, as_views, check, run

import src.models  # noqa: F401  registers the networks
from src.ops import backends, dcnv3, dcnv4
from src.ops._arguments import make_window
from src.ops._load import LIBRARIES
from src.ops.packed import pack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def triton_kernels(*tensors, **kwargs):
    """Use Triton even if a compiled library is built."""
    pytest.importorskip("triton")
    from triton_operator import dcnv3_triton

    return dcnv3_triton(*tensors, **kwargs)


def packed_rows(input, offset, mask, mask_softmax=False, **kwargs):
    """DCNv4 with the arguments of DCNv3."""
    window = make_window(
        **({"offset_scale": 1.0, "remove_center": False} | kwargs), mask_softmax=False
    )
    return dcnv4(input, pack(offset, mask, window), **kwargs)


OPERATORS = {"dcnv3": dcnv3, "triton": triton_kernels}
WITHOUT_SOFTMAX = [name for name, (case, _) in CASES.items() if not case.get("mask_softmax")]


def on_gpu(operator):
    return lambda *tensors, **kwargs: operator(*(t.cuda() for t in tensors), **kwargs)


def gpu_problem(**arguments):
    problem = make_problem(**arguments)
    tensors = {name: getattr(problem, name).cuda() for name in ("input", "offset", "mask")}
    return replace(problem, **tensors)


def test_a_gpu_kernel_is_used():
    for operator in ("dcnv3", "dcnv4"):
        report = backends(operator)
        assert report["cuda"].startswith(("compiled (", "triton (")), report


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_every_case_in_every_dtype(name, dtype):
    for operator in OPERATORS.values():
        check(on_gpu(operator), name, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", WITHOUT_SOFTMAX)
def test_packed_rows_of_dcnv4(name, dtype):
    check(on_gpu(packed_rows), name, dtype)


def test_packed_rows_in_deterministic_mode(deterministic):
    problem = gpu_problem(n=2, height=19, width=22, groups=2, group_channels=16)
    first, second = (run(packed_rows, problem) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_float32_offsets_with_16_bit_input(name, dtype):
    for operator in OPERATORS.values():
        check(on_gpu(operator), name, dtype, torch.float32)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_of_one_tensor(operator, dtype):
    """Odd groups: rows of offset and mask begin at any address."""
    problem = gpu_problem(groups=3, group_channels=16, mask_softmax=True, dtype=dtype)
    views = as_views(problem)
    assert not views.offset.is_contiguous()
    got, want = (operator(p.input, p.offset, p.mask, **p.kwargs).clone() for p in (views, problem))
    assert torch.equal(got, want)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_gradcheck(operator):
    problem = gpu_problem(n=1, height=3, width=4, group_channels=3, mask_softmax=True)
    tensors = problem.tensors()
    assert torch.autograd.gradcheck(partial(operator, **problem.kwargs), tensors, nondet_tol=1e-12)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_deterministic_algorithms_are_bitwise_reproducible(deterministic, dtype):
    problem = gpu_problem(
        n=4, height=31, width=29, groups=4, group_channels=16, mask_softmax=True, dtype=dtype
    )
    first = run(dcnv3, problem)
    for _ in range(4):
        assert all(torch.equal(a, b) for a, b in zip(first, run(dcnv3, problem), strict=True))


@pytest.mark.parametrize("name", list(CASES)[:40])
def test_deterministic_gradients_are_correct(deterministic, name):
    check(on_gpu(dcnv3), name)


def test_more_images_than_a_grid_has_rows():
    problem = gpu_problem(n=70_000, height=2, width=1, group_channels=4, dtype=torch.float32)
    last = replace(problem, input=problem.input[-3:], offset=problem.offset[-3:])
    last.mask = problem.mask[-3:]
    whole = dcnv3(problem.input, problem.offset, problem.mask, **problem.kwargs)
    part = dcnv3(last.input, last.offset, last.mask, **last.kwargs)
    torch.testing.assert_close(whole[-3:], part)


@pytest.mark.slow
def test_tensors_of_more_than_2_to_the_31_elements():
    if torch.cuda.get_device_properties(0).total_memory < 60 * 2**30:
        pytest.skip("needs a GPU with 60 GiB")
    problem = gpu_problem(
        n=2, height=64, width=64, groups=4, group_channels=64, dtype=torch.bfloat16
    )
    copies = 2**31 // problem.input.numel() + 1
    tensors = [t.repeat(copies, 1, 1, 1).requires_grad_() for t in problem.tensors(None, False)]
    output = dcnv3(*tensors, **problem.kwargs)
    assert output.numel() > 2**31
    grad = grad_like(output[:2].cpu()).cuda()
    grads = torch.autograd.grad(output, tensors, grad.repeat(copies, 1, 1, 1))
    want = run(dcnv3, problem)
    torch.testing.assert_close(output[-2:].detach(), want[0])
    for got, expected in zip(grads, want[1:], strict=True):
        torch.testing.assert_close(got[-2:], expected, rtol=2e-2, atol=1e-2)


def test_cuda_graphs():
    problem = gpu_problem(groups=4, group_channels=16, mask_softmax=True, dtype=torch.bfloat16)
    leaves = problem.tensors()
    grad = grad_like(dcnv3(*leaves, **problem.kwargs).cpu()).cuda()

    def step():
        output = dcnv3(*leaves, **problem.kwargs)
        return output.detach(), *torch.autograd.grad(output, leaves, grad)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for leaf in leaves:
            leaf.mul_(0.5)
    graph.replay()
    assert_same(captured, step(), rtol=2e-2, atol=1e-2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one():
    problem = make_problem(group_channels=16)
    tensors = [t.detach().to("cuda:1") for t in problem.tensors()]
    assert torch.cuda.current_device() == 0
    got = dcnv3(*tensors, **problem.kwargs)
    torch.testing.assert_close(got.cpu(), dcnv3(*problem.tensors(), **problem.kwargs).detach())


def test_autocast():
    problem = gpu_problem(group_channels=16, mask_softmax=True, dtype=torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        output = dcnv3(*problem.tensors(), **problem.kwargs)
    assert output.dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_internimage_t_compiles_without_a_graph_break(training):
    torch.manual_seed(0)
    network = timm.create_model("internimage_t", drop_path_rate=0.0).cuda().train(training)
    images = torch.randn(2, 3, 224, 224, device="cuda")
    compiled = torch.compile(network, fullgraph=True)  # raises at a graph break
    want, got = network(images), compiled(images)
    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2)
    if training:
        got.float().square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_implementation_can_be_selected():
    assert LIBRARIES.kernel("cuda") == backends()["cuda"].split(" (")[0]
