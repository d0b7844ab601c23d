"""Meaning of the names in files of ``torch.save``: tensors and plain values.

Every tensor is validated against the size of its storage before it is created.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, UntypedStorage

from src.serialization.limits import (
    DIMENSIONS,
    OVERLAP,
    OVERLAP_FREE,
    Damaged,
    Refusal,
    shown,
)
from src.serialization.pickles import Foreign, Name, check_keys

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
    "UntypedStorage": torch.uint8,
}
"""Dtype by the class name of a storage."""

_DTYPES = {
    f"torch.{name}": dtype
    for name in dir(torch)
    if isinstance(dtype := getattr(torch, name), torch.dtype)
}
_ODD = {
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse",
    "torch._utils._rebuild_qtensor": "quantised",
    "torch._utils._rebuild_meta_tensor_no_storage": "on the meta device, without values",
    "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_wrapper_subclass": "of a tensor subclass",
    "torch._utils._rebuild_device_tensor_from_numpy": "on an unsupported device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "on an unsupported device",
    "torch.distributed.tensor.DTensor": "a part of a distributed tensor",
    "torch.distributed._tensor.api.DTensor": "a part of a distributed tensor",
}


class Odd:
    """A tensor of an unsupported kind."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<tensor, {self.kind}>"


class Storages(Protocol):
    """Storages of a file."""

    size: int
    """Size of the file in bytes."""

    def get(self, key: str, nbytes: int) -> UntypedStorage:
        """Storage with a key and the given size."""


@dataclass(frozen=True)
class Stored:
    """A storage and the dtype of its values."""

    memory: UntypedStorage
    dtype: torch.dtype


def odd_kind(tensor: Tensor) -> str | None:
    """Unsupported kind of a tensor, as in `Odd`, or ``None`` if it is supported."""
    if type(tensor) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return f"a {type(tensor).__name__}"
    if tensor.is_nested or tensor.layout != torch.strided:
        return "nested" if tensor.is_nested else "sparse"
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_meta:
        return "on the meta device, without values"
    return "complex" if tensor.is_complex() else None


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor with NaN or infinite values, or ``None``."""
    return next((name for name, tensor in tensors if not is_finite(tensor)), None)


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite, in one pass without additional memory."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.element_size() == 1:
        tensor = tensor.float()
    # If the sum is finite, all values are. Otherwise it may have overflowed: check the extremes.
    if bool(torch.isfinite(tensor.sum())):
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


class Meaning:
    """Meaning of names and references to storages in one pickle of ``torch.save``.

    Args:
        storages: Storages of the file.
    """

    def __init__(self, storages: Storages) -> None:
        self.storages = storages
        self._memory: dict[str, UntypedStorage] = {}
        self._bytes = 0

    def resolve(self, name: str) -> Any:
        """Meaning of a name."""
        name = name.replace("__builtin__.", "builtins.", 1)
        if name in _DTYPES:
            return _DTYPES[name]
        last = name.rpartition(".")[2]
        if name.startswith("torch.") and last in _STORAGES:
            return Name(name, _refuse_call)
        if name in _ODD:
            return Name(name, lambda _: Odd(_ODD[name]))
        make = getattr(self, _REBUILD[name]) if name in _REBUILD else _PLAIN.get(name)
        return Name(name, make or (lambda _: Foreign(name)))

    def storage(self, reference: Any) -> Any:
        """Storage of a persistent id."""
        if type(reference) is not tuple or len(reference) < 2:
            raise Damaged("a reference to a storage is malformed")
        if reference[0] == "module":  # a whole network in the oldest format
            return reference[1]
        if reference[0] != "storage" or len(reference) not in (5, 6):
            raise Damaged("a reference to a storage is malformed")
        _, kind, key, _, count = reference[:5]
        if len(reference) == 6 and reference[5] is not None:
            raise Refusal("it has views of storages, a format of PyTorch before 0.4")
        name = kind.name if isinstance(kind, Name) else kind
        dtype = _STORAGES.get(name.rpartition(".")[2]) if isinstance(name, str) else None
        if dtype is None:
            raise Refusal(f"it has a storage of the kind {shown(name)}")
        if not isinstance(key, (str, int)) or not _is_count(count):
            raise Damaged("a reference to a storage is malformed")
        key = str(key)
        if key not in self._memory:
            self._memory[key] = self.storages.get(key, count * dtype.itemsize)
        if self._memory[key].nbytes() != count * dtype.itemsize:
            raise Damaged(f"the storage {shown(key)} has inconsistent sizes")
        return Stored(self._memory[key], dtype)

    # ------------------------------------------------------------------ tensors

    def plain_tensor(self, arguments: tuple[Any, ...]) -> Any:
        """Call of ``_rebuild_tensor`` and ``_rebuild_tensor_v2``."""
        if len(arguments) < 4:
            raise Damaged("a tensor is malformed")
        if len(arguments) > 6 and arguments[6]:
            return Odd("a conjugate or negated view")
        stored = arguments[0]
        dtype = stored.dtype if isinstance(stored, Stored) else torch.uint8
        return self._tensor(stored, dtype, *arguments[1:4])

    def tensor_of_dtype(self, arguments: tuple[Any, ...]) -> Any:
        """Call of ``_rebuild_tensor_v3``, whose storage has no dtype."""
        if len(arguments) < 7 or not isinstance(arguments[6], torch.dtype):
            raise Damaged("a tensor is malformed")
        if len(arguments) > 7 and arguments[7]:
            return Odd("a conjugate or negated view")
        return self._tensor(arguments[0], arguments[6], *arguments[1:4])

    def parameter(self, arguments: tuple[Any, ...]) -> Any:
        """Call of ``_rebuild_parameter``: the tensor itself."""
        if not arguments or not isinstance(arguments[0], (Tensor, Odd)):
            raise Damaged("a parameter is malformed")
        return arguments[0]

    def from_type(self, arguments: tuple[Any, ...]) -> Any:
        """Call of ``_rebuild_from_type_v2``: a tensor with attributes, or of another class."""
        if len(arguments) != 4 or type(arguments[2]) is not tuple:
            raise Damaged("a tensor is malformed")
        function, kind = arguments[0], arguments[1]
        if not isinstance(function, Name) or not isinstance(kind, Name):
            raise Damaged("a tensor is malformed")
        if kind.name not in _TENSOR_CLASSES or function.name not in _REBUILD:
            return Odd(f"of the class {shown(kind.name)}")
        return function.make(arguments[2])

    def _tensor(self, stored: Any, dtype: torch.dtype, offset: Any, size: Any, stride: Any) -> Any:
        if not isinstance(stored, Stored) or type(size) is not tuple or type(stride) is not tuple:
            raise Damaged("a tensor is malformed")
        numbers = (offset, *size, *stride)
        if not all(map(_is_count, numbers)) or len(size) != len(stride):
            raise Damaged("a tensor is malformed")
        if len(size) > DIMENSIONS:
            raise Refusal(f"a tensor has {len(size)} dimensions")
        count = 1
        for length in size:
            count *= length
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if count and (last + 1) * dtype.itemsize > stored.memory.nbytes():
            raise Damaged(f"a tensor of shape {size} exceeds its storage")
        if max(size, default=0) > 2**48 or max(stride, default=0) > 2**48 or offset > 2**48:
            raise Damaged(f"a tensor has the shape {size}")
        self._bytes += count * dtype.itemsize
        if self._bytes > OVERLAP * self.storages.size + OVERLAP_FREE:
            raise Refusal("its tensors share storages so often that their total size is too large")
        if dtype.is_complex and count == 0:
            return Odd("complex")
        tensor = torch.empty(0, dtype=dtype)
        return tensor.set_(stored.memory, offset, size, stride)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _refuse_call(_: tuple[Any, ...]) -> Any:
    raise Refusal("it creates a storage directly")


def _ordered(arguments: tuple[Any, ...]) -> Any:
    pairs = arguments[0] if arguments and isinstance(arguments[0], (list, tuple)) else ()
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise Damaged("a dictionary is malformed")
    check_keys([pair[0] for pair in pairs])
    return OrderedDict(pairs)


def _set(arguments: tuple[Any, ...]) -> Any:
    items = arguments[0] if arguments else []
    if type(items) not in (list, tuple):
        raise Damaged("a set is malformed")
    check_keys(items)
    return set(items)


def _size(arguments: tuple[Any, ...]) -> Any:
    numbers = arguments[0] if arguments else ()
    if type(numbers) not in (tuple, list) or not all(map(_is_count, numbers)):
        raise Damaged("a shape is malformed")
    if len(numbers) > DIMENSIONS:
        raise Refusal(f"a shape has {len(numbers)} dimensions")
    return torch.Size(numbers)


def _bytes(arguments: tuple[Any, ...]) -> Any:
    if not arguments or type(arguments[0]) is not str or arguments[1:] not in ((), ("latin1",)):
        raise Damaged("bytes are malformed")
    try:
        return arguments[0].encode("latin-1")
    except UnicodeEncodeError as error:
        raise Damaged("bytes are malformed") from error


def _counter(arguments: tuple[Any, ...]) -> Any:
    counts = arguments[0] if arguments else {}
    if type(counts) is not dict or not all(type(count) is int for count in counts.values()):
        raise Damaged("a counter is malformed")
    return Counter(counts)


def _text(arguments: tuple[Any, ...]) -> Any:
    """Devices and layouts, which are not used."""
    return str(arguments[0]) if arguments and type(arguments[0]) is str else ""


_PLAIN: Mapping[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.Counter": _counter,
    "builtins.set": _set,
    "torch.Size": _size,
    "torch.device": _text,
    "torch.serialization._get_layout": _text,
    "_codecs.encode": _bytes,
}
_REBUILD = {
    "torch._utils._rebuild_tensor": "plain_tensor",
    "torch._utils._rebuild_tensor_v2": "plain_tensor",
    "torch._utils._rebuild_tensor_v3": "tensor_of_dtype",
    "torch._utils._rebuild_parameter": "parameter",
    "torch._utils._rebuild_parameter_with_state": "parameter",
    "torch._tensor._rebuild_from_type_v2": "from_type",
}
_TENSOR_CLASSES = {
    "torch.Tensor",
    "torch._C.TensorBase",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
}
