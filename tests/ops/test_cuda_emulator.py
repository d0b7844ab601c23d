"""The unmodified CUDA kernels on an emulated device, compared with the reference."""

import pytest
import torch
from cuda_emulator import COMPILER, Emulator, Libraries
from dcnv3_cases import make_problem
from gpu_cases import (
    ADVERSARIAL,
    CASES,
    LARGE,
    RANDOM,
    TILES,
    check,
    make_case,
    run,
    with_points_at,
)

from src.ops import dcnv3_reference
from src.ops._arguments import make_window

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the emulator is compiled with g++")
TYPES = [torch.float32, torch.bfloat16, torch.float16]


# Only float64 is compiled for a quick run.
QUICK = [*list(RANDOM)[:20], *list(ADVERSARIAL)[1::4]]
KIB = 1024
# Devices on which a block of the backward owns a whole map of LARGE, has only tiles, or no room.
DEVICES = {
    "whole_maps": {"block_shared": 227 * KIB},
    "tiles": {"block_shared": 64 * KIB, "multiprocessors": 132},
    "no_copies": {"block_shared": 20 * KIB},
}
QUICK_TILES = ["tiles_far_offsets", "tiles_one_position", "tiles_channels_20"]


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
        # A row of 1024 points needs what sm_86 has.
        block_shared=99 * KIB if "points" in name else (99, 40, 24)[number // 6 % 3] * KIB,
        padding=number % 4,
    )
    check(emulator, name)


PACKED = [*list(RANDOM)[:24], *ADVERSARIAL, *TILES]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n in [*QUICK[::2], *QUICK_TILES] else pytest.mark.slow)
        for n in PACKED
    ],
)
def test_packed_rows(libraries, name):
    """Offsets and weights in the rows of DCNv4."""
    number = PACKED.index(name)
    emulator = Emulator(
        libraries,
        packed=True,
        vectors=number % 3 > 0,
        backwards=number % 2 > 0,
        deterministic=number % 4 == 3 and "nan" not in name and "inf" not in name,
        multiprocessors=(1, 20, 132)[number // 2 % 3],
        block_shared=99 * KIB if "points" in name else (99, 40, 24)[number // 6 % 3] * KIB,
        padding=number % 4,
    )
    check(emulator, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKED)
def test_packed_rows_of_other_types(libraries, name):
    """One type per case, in turn; the rows are float32 in two of five cases."""
    number = PACKED.index(name)
    dtype = TYPES[number % 3]
    rows_dtype = torch.float32 if number % 5 < 2 else dtype
    check(Emulator(libraries, packed=True, backwards=number % 2 > 0), name, dtype, rows_dtype)


def cut(emulator, problem):
    """How the backward is cut into blocks, as a triple: maps, tiles, or pixels of no copy."""
    defaults = {"offset_scale": 1.0, "remove_center": False, "mask_softmax": False}
    window = make_window(**(defaults | problem.kwargs))
    return emulator.cut(problem.input, problem.offset, problem.mask, window)


def test_the_devices_differ_in_how_the_backward_is_cut(libraries):
    problem = make_case("tiles")
    cuts = {name: cut(Emulator(libraries, **device), problem) for name, device in DEVICES.items()}
    assert [cut.whole_map for cut in cuts.values()] == [1, 0, 0]
    assert (cuts["whole_maps"].copy_height, cuts["whole_maps"].copy_width) == (19, 22)
    assert (cuts["tiles"].tile_height, cuts["tiles"].tile_width) == (4, 4)
    assert (cuts["tiles"].copy_height, cuts["tiles"].copy_width) == (15, 15)
    assert cuts["no_copies"].copy_height == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK_TILES else pytest.mark.slow) for n in TILES]
)
def test_tiles(libraries, name, device):
    check(Emulator(libraries, **DEVICES[device]), name)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [name for name in TILES if "nan" not in name])
def test_tiles_deterministic(libraries, name, device):
    check(Emulator(libraries, deterministic=True, **DEVICES[device]), name)


@pytest.mark.parametrize("device", list(DEVICES)[:2])
@pytest.mark.parametrize("size", [1e-36, 1.0, 1e30])
@pytest.mark.parametrize(
    "dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)]
)
def test_sums_do_not_overflow(libraries, device, size, dtype):
    """All points of a block meet in one pixel, with gradients of one sign."""
    problem = with_points_at(8.0, 6.0)(make_problem(**LARGE, dtype=dtype))
    tensors = problem.tensors()
    for emulator in (Emulator(libraries, **DEVICES[device]), dcnv3_reference):
        output = emulator(*tensors, **problem.kwargs)
        (grad,) = torch.autograd.grad(output, tensors[:1], torch.full_like(output, size))
        if emulator is not dcnv3_reference:
            got = grad
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(got / size, grad / size, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("device", list(DEVICES))
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_gradients_that_are_not_finite_stay_where_they_are(libraries, device, value):
    """They reach the pixels that their points touch, and the others keep their sums."""
    problem = make_problem(**LARGE)
    tensors = problem.tensors()
    results = []
    for operator in (Emulator(libraries, **DEVICES[device]), dcnv3_reference):
        output = operator(*tensors, **problem.kwargs)
        upstream = torch.ones_like(output)
        upstream[0, 7, 9, 3] = value
        results.append(torch.autograd.grad(output, tensors[:1], upstream)[0])
    assert 0 < results[1].isfinite().logical_not().sum() <= 36
    torch.testing.assert_close(*results, equal_nan=True)


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
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TYPES)
def test_deterministic_results_do_not_depend_on_the_order(libraries, dtype, device):
    problem = make_problem(**LARGE, dtype=dtype, offset_std=4.0)
    forwards, backwards = (
        run(Emulator(libraries, deterministic=True, backwards=order, **DEVICES[device]), problem)
        for order in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_non_finite_gradients_are_propagated(libraries):
    problem = make_case("channels_8")
    tensors = problem.tensors()
    output = Emulator(libraries, deterministic=True)(*tensors, **problem.kwargs)
    (grad,) = torch.autograd.grad(output, tensors[:1], output.detach() * float("inf"))
    assert grad.isnan().all()


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_single_gradients(libraries, wanted):
    """A kernel writes only the requested gradients."""
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


def test_the_emulator_detects_deadlocks(libraries):
    assert b"wait at different places" in libraries[torch.float64].emulate_deadlock()


def test_the_emulator_detects_missing_barriers(libraries):
    emulate = libraries[torch.float64].emulate_hazard
    assert emulate(True) is None
    assert b"without a barrier" in emulate(False)


@pytest.mark.parametrize(("stride", "wavefronts"), [(0, 1), (1, 1), (2, 2), (32, 32), (33, 1)])
def test_the_emulator_counts_bank_conflicts(libraries, stride, wavefronts):
    assert libraries[torch.float64].emulate_conflicts(stride) == wavefronts


def test_the_emulator_detects_out_of_bounds_writes(libraries):
    problem = make_case("channels_8")
    emulator = Emulator(libraries, vectors=False, shift=1)
    with pytest.raises(AssertionError, match="wrote outside its arrays"):
        emulator(problem.input, problem.offset, problem.mask, **problem.kwargs)
