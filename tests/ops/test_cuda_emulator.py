"""The CUDA kernels, unmodified, on an emulated device against the oracle."""

import pytest
import torch
from cuda_emulator import COMPILER, Emulator, Libraries
from dcnv3_cases import make_problem
from gpu_cases import ADVERSARIAL, CASES, RANDOM, check, make_case, run

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the emulator is compiled with g++")
TYPES = [torch.float32, torch.bfloat16, torch.float16]


# Only float64 is compiled for a quick run.
QUICK = [*list(RANDOM)[:20], *list(ADVERSARIAL)[1::4]]


@pytest.fixture(scope="module")
def libraries(request):
    return Libraries(request.config.cache.mkdir("cuda_emulator"))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in CASES]
)
def test_float64(libraries, name):
    """Alternating between the kernels, the orders of the threads, and the sizes of the blocks."""
    number = list(CASES).index(name)
    emulator = Emulator(
        libraries,
        vectors=number % 3 > 0,
        backwards=number % 2 > 0,
        multiprocessors=(1, 20, 132)[number // 2 % 3],
        padding=number % 4,
    )
    check(emulator, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*list(RANDOM)[:30], *ADVERSARIAL])
def test_other_types(libraries, name):
    """One type per case, in turn; offset and mask are float32 in two of five cases."""
    number = list(CASES).index(name)
    dtype = TYPES[number % 3]
    side_dtype = torch.float32 if number % 5 < 2 else dtype
    check(Emulator(libraries, backwards=number % 2 > 0), name, dtype, side_dtype)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK[:8] else pytest.mark.slow) for n in list(RANDOM)[:24]],
)
def test_deterministic(libraries, name):
    check(Emulator(libraries, deterministic=True), name)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TYPES)
def test_deterministic_means_the_same_bits_in_any_order(libraries, dtype):
    problem = make_problem(group_channels=16, height=9, dtype=dtype, mask_softmax=True)
    forwards, backwards = (
        run(Emulator(libraries, deterministic=True, backwards=order), problem)
        for order in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_a_gradient_that_is_not_finite_is_not_hidden(libraries):
    problem = make_case("channels_8")
    tensors = problem.tensors()
    output = Emulator(libraries, deterministic=True)(*tensors, **problem.kwargs)
    (grad,) = torch.autograd.grad(output, tensors[:1], output.detach() * float("inf"))
    assert grad.isnan().all()


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_single_gradients(libraries, wanted):
    """A kernel writes only the gradients that are asked for."""
    problem = make_case("channels_16")
    tensors = problem.tensors()
    both = []
    for emulator in (Emulator(libraries), Emulator(libraries, only=wanted)):
        output = emulator(*tensors, **problem.kwargs)
        both.append(torch.autograd.grad(output.square().sum(), tensors[wanted])[0])
    torch.testing.assert_close(*both)


@pytest.mark.parametrize(
    "divisor", [1, 2, 3, 7, 10, 64, 641, 65535, 2**16 + 1, 2**30 + 1, 2**31 - 1]
)
def test_division_by_multiplication(libraries, divisor):
    quotient = libraries[torch.float64].emulate_quotient
    most = 2**31 - 1
    multiples = {most // divisor * divisor, divisor, divisor * (most // divisor // 2)}
    for numerator in {n + d for n in multiples | {0, most} for d in (-1, 0, 1)}:
        if 0 <= numerator <= most:
            assert quotient(numerator, divisor) == numerator // divisor


def test_the_emulator_finds_threads_that_wait_for_each_other_in_vain(libraries):
    assert b"wait at different places" in libraries[torch.float64].emulate_deadlock()


def test_the_emulator_finds_writes_outside(libraries):
    problem = make_case("channels_8")
    emulator = Emulator(libraries, vectors=False, shift=1)
    with pytest.raises(AssertionError, match="wrote outside its arrays"):
        emulator(problem.input, problem.offset, problem.mask, **problem.kwargs)
