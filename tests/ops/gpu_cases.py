"""Test cases for all GPU kernels, in the emulator, the interpreter and on a device.

Random windows and some fifty adversarial calls. Of 160 random windows only as many are taken as are
needed to have each pair of values of two arguments, such as a kernel of 5 with 20 channels per
group: pairs of arguments decide which code of a kernel runs. `check` compares an operator with the
reference in float64, on the values that the operator gets.
"""

import itertools
import random
from dataclasses import replace

import torch
from dcnv3_cases import Problem, assert_same, make_problem

from src.ops import dcnv3_reference

INF, NAN = float("inf"), float("nan")


def random_window(number):
    """Arguments of `make_problem`: any batch, map, channels and window that fit together."""
    choose = random.Random(number)
    kernel = choose.choice([1, 2, 3, 3, 3, 3, (3, 1), (2, 3), 5])
    sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    dilation = choose.choice([1, 1, 1, 2, (1, 2)])
    spans = dilation if isinstance(dilation, tuple) else (dilation, dilation)
    height, width = choose.randint(1, 7), choose.randint(1, 7)
    padding = tuple(
        choose.randint(least := max(0, (span * (side - 1) + 2 - size) // 2), least + 2)
        for side, span, size in zip(sides, spans, (height, width), strict=True)
    )
    return {
        "n": choose.choice([1, 1, 2, 3, 5]) if kernel != 5 else 1,
        "height": height,
        "width": width,
        "groups": choose.choice([1, 2, 3]),
        "group_channels": choose.choice([1, 7, 8, 16, 16, 20, 24, 32, 64]),
        "kernel_size": kernel,
        "stride": choose.choice([1, 1, 1, 2, (1, 3), (2, 1)]),
        "padding": padding,
        "dilation": dilation,
        "offset_scale": choose.choice([1.0, 1.0, 2.0, 0.5]),
        "remove_center": kernel in (3, 5) and choose.random() < 0.25,
        "mask_softmax": choose.random() < 0.7,
        "offset_std": choose.choice([0.0, 0.3, 1.5, 1.5, 4.0, 30.0]),
        "seed": number,
    }


def pairs_of(window):
    """Pairs of values of a window's arguments; sizes and padding follow from the others."""
    free = {k: v for k, v in window.items() if k not in ("height", "width", "padding", "seed")}
    return set(itertools.combinations(free.items(), 2))


def covering(windows):
    """Names of windows, the most different ones first, that have all pairs of values."""
    pairs = {name: pairs_of(window) for name, window in windows.items()}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        chosen.append(max(pairs, key=lambda name: len(pairs[name] & missing)))
        missing -= pairs[chosen[-1]]
    return chosen


def with_values(part, positions, value):
    """Change that sets every `positions`-th element of input, offset or mask to a value."""

    def change(problem):
        tensor = getattr(problem, part).clone()
        tensor.view(-1)[::positions] = value
        return replace(problem, **{part: tensor})

    return change


def with_border(value):
    """Change that fills the outermost pixels of the input."""

    def change(problem):
        x = problem.input.clone()
        x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1] = value, value, value, value
        return replace(problem, input=x)

    return change


def with_offset(value):
    """Change that sets all offsets to the same value."""

    def change(problem):
        return replace(problem, offset=torch.full_like(problem.offset, value))

    return change


def with_points_at(x, y):
    """Change that moves all points to one position; for windows of 3, stride and dilation 1."""

    def change(problem):
        n, height, width, values = problem.offset.shape
        offset = torch.empty(n, height, width, values // 18, 3, 3, 2, dtype=problem.offset.dtype)
        taps = torch.arange(-1, 2)
        offset[..., 0] = x - torch.arange(width)[:, None, None, None] - taps[:, None]
        offset[..., 1] = y - torch.arange(height)[:, None, None, None, None] - taps
        return replace(problem, offset=offset.flatten(3))

    return change


def as_views(problem):
    """Strided input; offset and mask as slices of one tensor."""
    packed = torch.cat((problem.mask, problem.offset, problem.mask[..., :1]), dim=-1)
    mask, offset, _ = packed.split([problem.mask.shape[-1], problem.offset.shape[-1], 1], dim=-1)
    x = problem.input.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    return replace(problem, input=x, offset=offset, mask=mask)


SMALL = {"n": 2, "height": 4, "width": 5, "mask_softmax": True}
# name: arguments of make_problem, and changes of the problem
ADVERSARIAL = {
    **{f"channels_{c}": ({**SMALL, "group_channels": c}, []) for c in (1, 2, 3, 4, 7, 8, 12, 16)},
    **{f"channels_{c}": ({**SMALL, "group_channels": c}, []) for c in (20, 24, 32, 48, 64, 72)},
    **{f"channels_{c}": ({**SMALL, "n": 1, "group_channels": c}, []) for c in (130, 256, 264)},
    **{f"batch_{n}": ({**SMALL, "n": n, "group_channels": 16}, []) for n in (0, 1, 3, 5)},
    **{
        f"offset_{value}": (SMALL, [with_values("offset", 7, value)])
        for value in (NAN, INF, -INF, 1e30, -1e30, 3e9)
    },
    **{
        f"all_offsets_{value}": ({**SMALL, "group_channels": 16}, [with_offset(value)])
        for value in (0.0, -1.0, 1.0, -2.0, 0.5, NAN, 100.0)
    },
    **{f"border_{v}": ({**SMALL, "offset_std": 3.0}, [with_border(v)]) for v in (INF, NAN)},
    **{f"pixel_{value}": (SMALL, [with_values("input", 53, value)]) for value in (INF, -INF, NAN)},
    **{f"logit_{v}": (SMALL, [with_values("mask", 19, v)]) for v in (NAN, INF, -INF, 1e4)},
    "weight_nan": ({**SMALL, "mask_softmax": False}, [with_values("mask", 19, NAN)]),
    "weight_nan_outside": (
        {**SMALL, "mask_softmax": False},
        [with_values("mask", 1, NAN), with_offset(50.0)],
    ),
    "views": ({**SMALL, "group_channels": 16}, [as_views]),
    "views_odd_groups": ({**SMALL, "groups": 3, "group_channels": 16}, [as_views]),
    "views_one_pixel": ({**SMALL, "height": 1, "width": 1}, [as_views]),
    "padding_2x1": ({**SMALL, "padding": (2, 1)}, []),
    "padding_0x3": ({**SMALL, "padding": (0, 3)}, []),
    "one_pixel": ({**SMALL, "height": 1, "width": 1}, []),
    "one_row": ({**SMALL, "height": 1, "width": 9}, []),
    "one_column": ({**SMALL, "height": 9, "width": 1}, []),
    "many_groups": ({**SMALL, "n": 1, "groups": 33, "group_channels": 4}, []),
    "more_rows_than_a_block": ({"height": 9, "width": 8, "groups": 2, "group_channels": 16}, []),
    "kernel_7": (
        {**SMALL, "n": 1, "height": 3, "kernel_size": 7, "padding": 3, "remove_center": True},
        [],
    ),
    "points_1024": (
        {"n": 1, "height": 1, "width": 2, "kernel_size": 32, "padding": 16, "mask_softmax": True,
         "groups": 1, "group_channels": 4},
        [],
    ),
}  # fmt: skip
# More pixels than a tile of the CUDA backward and its halo have.
LARGE = {"n": 1, "height": 19, "width": 22, "groups": 1, "group_channels": 16, "mask_softmax": True}
TILES = {
    "tiles": (LARGE, []),
    "tiles_of_two_images": ({**LARGE, "n": 2, "groups": 2, "group_channels": 8}, []),
    "tiles_far_offsets": ({**LARGE, "offset_std": 15.0}, []),
    "tiles_all_far": (LARGE, [with_offset(9.25)]),
    "tiles_one_position": (LARGE, [with_points_at(8.25, 6.5)]),
    "tiles_one_position_at_the_border": (LARGE, [with_points_at(21.5, -0.75)]),
    "tiles_logit_nan": (LARGE, [with_values("mask", 401, NAN)]),
    "tiles_weights": ({**LARGE, "mask_softmax": False}, []),
    "tiles_weight_nan": ({**LARGE, "mask_softmax": False}, [with_values("mask", 401, NAN)]),
    "tiles_views": ({**LARGE, "groups": 2}, [as_views]),
    "tiles_channels_7": ({**LARGE, "group_channels": 7}, []),
    "tiles_channels_20": ({**LARGE, "group_channels": 20}, []),
    "tiles_stride_2": ({**LARGE, "stride": 2, "dilation": (1, 2), "padding": (3, 1)}, []),
    "tiles_of_one_column": ({**LARGE, "height": 40, "width": 1}, []),
    "tiles_narrow": ({**LARGE, "height": 3, "width": 40, "group_channels": 8}, []),
    "tiles_kernel_5": ({**LARGE, "height": 11, "kernel_size": 5, "padding": 2}, []),
    "tiles_scaled_window": ({**LARGE, "offset_scale": -2.5}, []),
}
WINDOWS = {f"random_{i}": random_window(i) for i in range(160)}
RANDOM = {name: (WINDOWS[name], []) for name in covering(WINDOWS)}
CASES = RANDOM | ADVERSARIAL | TILES
# Cases that take only seconds in the interpreter.
FEW = ["random_0", "random_14", "random_27", "batch_0"]

# Stages of InternImage: height and width, groups, channels of a group.
STAGES = {"T.s1": (56, 4, 16), "T.s3": (14, 16, 16), "H.s3": (14, 40, 32)}


def make_case(name, dtype=torch.float64, side_dtype=None):
    """The problem of a case in a dtype, offset and mask in another one."""
    arguments, changes = CASES[name]
    problem = make_problem(**arguments)
    problem = Problem(
        problem.input.to(dtype),
        problem.offset.to(side_dtype or dtype),
        problem.mask.to(side_dtype or dtype),
        problem.kwargs,
    )
    for change in changes:
        problem = change(problem)
    return problem


def run(operator, problem, dtype=None):
    """Output and gradients; views stay views, unless `dtype` makes copies."""
    tensors = [
        t.detach().to(dtype or t.dtype).requires_grad_()
        for t in (problem.input, problem.offset, problem.mask)
    ]
    output = operator(*tensors, **problem.kwargs)
    seed = torch.Generator().manual_seed(1)
    grad = torch.randn(output.shape, generator=seed, dtype=torch.float64).to(problem.input.dtype)
    return output.detach(), *torch.autograd.grad(output, tensors, grad.to(output))


def check(operator, name, dtype=torch.float64, side_dtype=None):
    """Compare an operator with the reference on a case; 16-bit results are rounded once."""
    problem = make_case(name, dtype, side_dtype)
    got = run(operator, problem)
    on_cpu = Problem(problem.input.cpu(), problem.offset.cpu(), problem.mask.cpu(), problem.kwargs)
    want = run(dcnv3_reference, on_cpu, torch.float64)
    assert [t.dtype for t in got] == [dtype, dtype, *[side_dtype or dtype] * 2]
    tolerance = {"rtol": 1e-10, "atol": 1e-10}
    if dtype != torch.float64:
        tolerance = {"rtol": max(1e-4, torch.finfo(dtype).eps), "atol": 2e-4}
    assert_same([t.double().cpu() for t in got], want, **tolerance)


def additions_of_corners(problem, group_channels):
    """Additions of four channels if every corner of every point went to global memory."""
    n, height, width, _ = problem.offset.shape
    offset = problem.offset.double().view(n, height, width, -1, 3, 3, 2)
    taps = torch.arange(-1, 2)
    x = torch.arange(width)[:, None, None, None] + taps[:, None] + offset[..., 0]
    y = torch.arange(height)[:, None, None, None, None] + taps + offset[..., 1]
    counts = (x > -1) & (x < width) & (y > -1) & (y < height)
    inside = [
        [(at.floor() + side >= 0) & (at.floor() + side < size) for side in (0, 1)]
        for at, size in ((x, width), (y, height))
    ]
    corners = sum(int((counts & a & b).sum()) for a in inside[0] for b in inside[1])
    return corners * group_channels // 4
