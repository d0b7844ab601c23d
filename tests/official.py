"""How far a result may be from the official numbers.

The fixtures hold the float64 run of the official code. A float64 run must agree with it to the
rounding of float64, or of float32 where an array is stored in float32: this proves the formulas.

A float32 run rounds at every step, and how depends on the processor: on its vector width, on fused
multiply-adds, on the library that multiplies. What may come of it is known beforehand and the same
everywhere: the official code was run in float32 too, and the fixtures hold how far that run was
from the float64 run (``f32_vs_f64``: of each array the largest difference, ``max_abs``, and the
largest value, ``scale``). A run of ours may be `FACTOR` times as far:

- A sum of ``n`` random terms in one chain, as in scalar code, has an error that grows with
  ``sqrt(n)``; in 16 chains, as in AVX-512 code, with ``sqrt(n / 16)``, which is 4 times smaller.
- The largest of many such errors varies by about 2 between two equally good orders of summation.

A single value can come out exact by luck. So the losses of a run share the largest difference among
them, relative to their values, and no difference counts for less than the spacing of float32.

Two ways through a network of our own, such as a compiled one, are compared by
`assert_same_network`.

Gradients, decisions and detections are compared given the values of the float64 run inside the
network (``tests/models/steps.py``): behind a step in a function, the sign of a ReLU input or the
order of two scores, rounding is not bounded by anything. ``tests/models/test_wrong_weights.py``
shows that no bound hides one wrong weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.testing import assert_close

FACTOR = 10
SPACING = torch.finfo(torch.float32).eps
DEPTH = 256
"""No network of the tests has more operations behind each other."""
FLOAT64 = 1e-11
"""Of a float64 run, as a share of the largest value; a network adds up some 1e4 spacings."""


@dataclass(frozen=True)
class OfficialNumbers:
    """What the official code computed, and how far its float32 run was from it.

    Attributes:
        arrays: Results by name, of the float64 run unless the name says otherwise.
        distances: ``max_abs`` and ``scale`` by name of the result.
        steps: ``n`` by name of a result of which every ``n``-th value is stored.
    """

    arrays: Mapping[str, Tensor]
    distances: Mapping[str, Mapping[str, float]]
    steps: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, spec: Mapping[str, Any], arrays: Mapping[str, Any]) -> OfficialNumbers:
        """Take them from the two files of a fixture."""
        tensors = {key: torch.as_tensor(np.asarray(value)) for key, value in arrays.items()}
        return cls(tensors, spec["f32_vs_f64"], spec.get("steps", {}))

    def part(self, value: Tensor, name: str) -> Tensor:
        """The values of a result that are stored."""
        return value.flatten()[:: self.steps[name]] if name in self.steps else value

    # ------------------------------------------------------------------ bounds

    def bound(self, name: str) -> float:
        """How far values of an array may be off in float32."""
        found = self.distances[name]
        return FACTOR * max(found["max_abs"], SPACING * found["scale"])

    def share(self, names: Iterable[str]) -> float:
        """Largest bound of some arrays, as a share of the largest value of each."""
        scales = {name: self.distances[name]["scale"] for name in names}
        return max(self.bound(name) / scale for name, scale in scales.items() if scale)

    @property
    def forward_share(self) -> float:
        """`share` of everything that a forward pass computes."""
        kinds = ("grad", "labels", "indices", "acc", "det_mask")
        return self.share(n for n in self.distances if not any(kind in n for kind in kinds))

    @property
    def backward_share(self) -> float:
        """The same of gradients: a backward pass has two products for each one of the forward."""
        return 3 * self.forward_share

    # ------------------------------------------------------------- comparisons

    def check(self, actual: Tensor, name: str, stored: str | None = None) -> None:
        """Compare with the array ``stored``, by default ``name``, within the bound of ``name``."""
        stored = stored or name
        close(self.part(actual, stored), self.arrays[stored], self.bound(name), name)

    def check_summary(self, actual: Tensor, name: str, like: str | None = None) -> None:
        """Compare the sum and the length of an array with ``<name>_sum_norm``.

        ``like`` is the name of a result with the bound of each value, by default ``name``.
        """
        each, count = self.bound(like or name), actual.numel()
        if actual.dtype == torch.float64:
            each = FLOAT64 * float(actual.abs().max())
        for i, (found, atol) in enumerate(
            ((actual.double().sum(), each * count), (actual.double().norm(), each * count**0.5))
        ):
            expected = self.arrays[f"{name}_sum_norm"][i]
            assert_close(found.detach(), expected, rtol=0, atol=atol, msg=named(name))

    def check_losses(self, losses: Mapping[str, Tensor], prefix: str) -> None:
        """Compare all losses of a run, by official name, with the arrays ``<prefix><name>``."""
        stored = {k for k in self.arrays if k.startswith(prefix) and not k.endswith("grad_norms")}
        assert {prefix + name for name in losses} == stored
        share = self.share(stored)
        for name, value in losses.items():
            expected = self.arrays[prefix + name]
            atol = share * float(expected.abs().max())
            close(value.view(expected.shape), expected, atol, name)

    def check_gradients(self, gradients: Mapping[str, Tensor], prefix: str = "grad/") -> None:
        """Compare gradients, by official name, with the arrays ``<prefix><name>``."""
        stored = [key for key in self.arrays if key.startswith(prefix)]
        assert len(stored) >= 5
        for key in stored:
            expected = self.arrays[key]
            atol = self.backward_share * float(expected.abs().max())
            close(self.part(gradients[key.removeprefix(prefix)], key), expected, atol, key)

    def check_gradient_norms(
        self, gradients: Mapping[str, Tensor], order: Iterable[str], stored: str = "grad_norms"
    ) -> None:
        """Compare the length of every gradient.

        A bias collects what the weights beside it collect, and some biases cancel (those of keys
        exactly, in the softmax): a gradient may be off by a share of the largest one of its module.
        """
        lengths = dict(zip(order, self.arrays[stored].tolist(), strict=True))
        assert lengths.keys() <= gradients.keys()
        dtype = next(iter(gradients.values())).dtype
        share = FLOAT64 if dtype == torch.float64 else self.backward_share
        wrong = {}
        for name, length in lengths.items():
            module = name.rpartition(".")[0]
            largest = max(other for key, other in lengths.items() if key.startswith(module))
            found = float(gradients[name].double().norm())
            if not abs(found - length) <= share * largest:
                wrong[name] = (found, length)
        assert not wrong, wrong


def close(actual: Tensor, expected: Tensor, float32: float, name: str) -> None:
    """Compare at the precision of the run and of the stored array.

    Args:
        actual: Result of a float64 or float32 run.
        expected: Official result of float64, perhaps stored as float32.
        float32: How far a float32 run may be off.
        name: For the message.
    """
    atol = float32
    if actual.dtype == torch.float64:
        share = FLOAT64 if expected.dtype == torch.float64 else SPACING / 2 + FLOAT64
        atol = share * max(float(expected.abs().max()), SPACING)
    assert_close(actual.detach().double(), expected.double(), rtol=0, atol=atol, msg=named(name))


def assert_same_network(actual: Any, expected: Any) -> None:
    """Compare results of two ways through one network in float32, tensors or lists of them.

    Each operation rounds by up to a spacing of the largest value, on both ways.
    """
    pairs = (
        [(actual, expected)] if isinstance(actual, Tensor) else zip(actual, expected, strict=True)
    )
    for found, wanted in pairs:
        largest = float(wanted.detach().abs().max()) if wanted.numel() else 0.0
        assert_close(found, wanted, rtol=0, atol=2 * DEPTH * SPACING * largest)


def named(name: str) -> Any:
    """Put a name before the message of `assert_close`."""
    return lambda message: f"{name}: {message}"


def check_choice(scores: Tensor, expected: Tensor, bound: float) -> None:
    """Compare the best of ``scores`` ``(N, K, ...)`` with the official one.

    Another choice is accepted where rounding decides: in float32, where both scores differ by less
    than they may both be off.
    """
    if scores.dtype == torch.float64:
        bound = 0.0
    chosen = scores.gather(1, expected.long()[:, None])[:, 0]
    assert (chosen >= scores.amax(1) - 2 * bound).all()
