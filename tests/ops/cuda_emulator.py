"""The CUDA kernels of src/ops/csrc/cuda on the CPU: builds tests/ops/emulator and calls it.

The headers with the device functions are compiled as they are; emulator/cuda_runtime.h has the
device. Every array that a kernel sees lies between guards of NaN bytes, so that reads outside spoil
results and writes outside are found.
"""

import ctypes
import hashlib
import shutil
import subprocess
from pathlib import Path

import torch
from dcnv3_cases import ROOT
from filelock import FileLock
from torch import Tensor

from src.ops._arguments import make_window, output_size
from src.ops.fixed_point import fixed_point_unit
from src.ops.packed import pack, unpack

SOURCES = [ROOT / "src/ops/csrc/cuda", ROOT / "src/ops/csrc", ROOT / "tests/ops/emulator"]
COMPILER = shutil.which("g++")
FLAGS = ["-std=c++17", "-O1", "-g0", "-mf16c", "-mfma", "-fPIC", "-shared", "-Wno-unknown-pragmas"]
FLAGS += ["-fno-strict-aliasing"]  # as nvcc
FLAGS += ["-DINTERNIMAGE_MAX_GRID=2"]  # so that images take two axes of the grid
FLAGS += ["-fsanitize=alignment,shift,signed-integer-overflow", "-fno-sanitize-recover=all"]
TYPES = {
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "__half",
    torch.bfloat16: "__nv_bfloat16",
}
GUARD = 256  # bytes on either side of an array

SIZES = (
    "batch height width channels groups out_height out_width kernel_h kernel_w stride_h stride_w "
)
SIZES += "pad_h pad_w dilation_h dilation_w"


class Request(ctypes.Structure):
    """One call: struct Request of emulator.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in SIZES.split()),
        ("offset_scale", ctypes.c_double),
        ("remove_center", ctypes.c_bool),
        ("mask_softmax", ctypes.c_bool),
        ("input", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("offset_stride", ctypes.c_int64),
        ("mask_stride", ctypes.c_int64),
        ("is_packed", ctypes.c_bool),
        ("multiprocessors", ctypes.c_int64),
        ("block_shared", ctypes.c_int64),
        ("is_offset_wide", ctypes.c_bool),
        ("is_mask_wide", ctypes.c_bool),
        ("wants_vectors", ctypes.c_bool),
        ("is_backwards", ctypes.c_bool),
        ("is_deterministic", ctypes.c_bool),
        ("is_counting", ctypes.c_bool),
        *((name, ctypes.c_void_p) for name in ("output", "grad", "grad_input")),
        *((name, ctypes.c_void_p) for name in ("grad_offset", "grad_mask", "unit")),
    ]


class Cut(ctypes.Structure):
    """How the backward is cut into blocks: struct Cut of emulator.cpp."""

    NAMES = "whole_map tile_height tile_width copy_height copy_width warps shared"
    _fields_ = [(name, ctypes.c_int64) for name in NAMES.split()]


class Counts(ctypes.Structure):
    """What a run has counted: struct Counts of emulator.cpp."""

    _fields_ = [(name, ctypes.c_int64) for name in ("additions", "wavefronts", "conflict_free")]


class Libraries:
    """The emulator for each dtype, built when it is first asked for, unless nothing has changed."""

    def __init__(self, folder: Path):
        self.folder = folder
        files = sorted(path for source in SOURCES for path in source.glob("*") if path.is_file())
        self.digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
        self.loaded = {}

    def __getitem__(self, dtype: torch.dtype) -> ctypes.CDLL:
        if dtype not in self.loaded:
            self.loaded[dtype] = emulator = ctypes.CDLL(str(self.build(TYPES[dtype])))
            for name in ("forward", "backward", "deadlock", "hazard"):
                getattr(emulator, f"emulate_{name}").restype = ctypes.c_char_p
            emulator.emulate_conflicts.restype = ctypes.c_int64
        return self.loaded[dtype]

    def build(self, type_name: str) -> Path:
        library = self.folder / f"{type_name}_{self.digest}.so"
        with FileLock(library.with_suffix(".lock")):  # one worker compiles, the others wait
            if library.exists():
                return library
            flags = [*FLAGS, f"-DINTERNIMAGE_TYPE={type_name}", *(f"-I{path}" for path in SOURCES)]
            source = ROOT / "tests/ops/emulator/emulator.cpp"
            target = library.with_suffix(".tmp")
            subprocess.run([COMPILER, *flags, str(source), "-o", str(target)], check=True)
            target.rename(library)
        return library


class Guarded:
    """A tensor between guards."""

    def __init__(self, like: Tensor, *, fill: float | None = None, dtype=None):
        dtype = dtype or like.dtype
        pad = GUARD // dtype.itemsize
        guard = 1 << 60 if dtype == torch.int64 else float("nan")
        self.whole = torch.full((like.numel() + 2 * pad,), guard, dtype=dtype)
        self.tensor = self.whole[pad : pad + like.numel()].view(like.shape)
        if fill is None:
            self.tensor.copy_(like)
        else:
            self.tensor.fill_(fill)
        self.before = self.whole.clone().view(torch.uint8)

    @property
    def pointer(self) -> int:
        return self.tensor.data_ptr()

    def check(self) -> Tensor:
        """The tensor, if its guards are as they were."""
        after = self.whole.view(torch.uint8)
        for part in (slice(None, GUARD), slice(-GUARD, None)):
            assert torch.equal(after[part], self.before[part]), "a kernel wrote outside its arrays"
        return self.tensor


class Emulator:
    """`emulator(input, offset, mask, **kwargs)`, with gradients, as `src.ops.dcnv3`.

    Args:
        libraries: The emulator for each dtype.
        vectors: Let kernels load 16 bytes at once where channels allow it.
        backwards: Threads take turns from the last to the first.
        deterministic: Accumulate the input gradient in fixed point.
        multiprocessors: Of the device; the more it has, the smaller are blocks.
        block_shared: Bytes of shared memory that the device gives to a block. It decides whether
            the backward owns whole maps, adds in tiles, or has room for neither.
        counting: Count additions and bank conflicts in `counts`, which takes time.
        padding: Values between rows of offset and mask, as in slices of a wider tensor.
        packed: Give the kernels packed rows, as DCNv4 does.
        only: Ask for one of the three gradients; the others are null pointers.
        shift: Lie about the output's place by this many values, to see the guards work.
    """

    def __init__(
        self,
        libraries,
        *,
        vectors=True,
        backwards=False,
        deterministic=False,
        multiprocessors=1,
        block_shared=99 * 1024,  # of sm_86, the least
        counting=False,
        padding=0,
        packed=False,
        only=None,
        shift=0,
    ):
        self.libraries = libraries
        self.vectors, self.backwards = vectors, backwards
        self.deterministic, self.padding = deterministic, padding
        self.multiprocessors, self.block_shared = multiprocessors, block_shared
        self.counting, self.counts = counting, {}
        self.packed, self.only, self.shift = packed, only, shift

    def __call__(self, input: Tensor, offset: Tensor, mask: Tensor, **kwargs) -> Tensor:
        kwargs = {"offset_scale": 1.0, "remove_center": False, "mask_softmax": False} | kwargs
        return _Function.apply(input, offset, mask, make_window(**kwargs), self)

    def request(self, window, input, offset, mask, **pointers) -> Request:
        """A request that keeps the arrays alive."""
        n, h, w, c = input.shape
        pairs = window.kernel_size, window.stride, window.padding, window.dilation
        sizes = (n, h, w, c, window.groups, *output_size(h, w, window), *sum(pairs, ()))
        arrays = [Guarded(input)]
        if self.packed:
            offset = mask = pack(offset, mask, window, torch.nan)
        for side in (offset, mask):
            rows = side.reshape(-1, side.shape[-1])
            arrays.append(
                Guarded(torch.nn.functional.pad(rows, (0, self.padding), value=torch.nan))
            )
        request = Request(
            *sizes,
            window.offset_scale,
            window.remove_center,
            window.mask_softmax,
            *(array.pointer for array in arrays),
            *(array.tensor.shape[-1] for array in arrays[1:]),
            self.packed,
            self.multiprocessors,
            self.block_shared,
            *(side.dtype != input.dtype for side in (offset, mask)),
            self.vectors,
            self.backwards,
            self.deterministic,
            self.counting,
            **{name: array.pointer for name, array in pointers.items()},
        )
        request.arrays = arrays, pointers
        return request

    def run(self, function, dtype, request) -> None:
        if (
            request.batch == 0
        ):  # there are no grids of nothing: the binding returns before it launches
            return
        library = self.libraries[dtype]
        error = getattr(library, function)(ctypes.byref(request))
        assert error is None, error.decode()
        self.counts[function] = counts = Counts()
        library.emulate_counts(ctypes.byref(counts))

    def cut(self, input: Tensor, offset: Tensor, mask: Tensor, window) -> Cut:
        """How the backward is cut into blocks."""
        cut = Cut(whole_map=True)
        if len(input) > 0:
            request = self.request(window, input, offset, mask)
            self.libraries[input.dtype].emulate_plan(ctypes.byref(request), ctypes.byref(cut))
        return cut


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, offset, mask, window, emulator):
        ctx.save_for_backward(input, offset, mask)
        ctx.window, ctx.emulator = window, emulator
        n, h, w, c = input.shape
        output = Guarded(input.new_empty(n, *output_size(h, w, window), c), fill=torch.nan)
        request = emulator.request(window, input, offset, mask, output=output)
        if emulator.shift:
            request.output += emulator.shift * input.element_size()
        emulator.run("emulate_forward", input.dtype, request)
        return output.check()

    @staticmethod
    def backward(ctx, grad):
        input, offset, mask = ctx.saved_tensors
        emulator, window = ctx.emulator, ctx.window
        sum_type = torch.float64 if input.dtype == torch.float64 else torch.float32
        accumulator = torch.int64 if emulator.deterministic else sum_type
        is_owned = emulator.cut(input, offset, mask, window).whole_map
        has_unit = emulator.deterministic and not is_owned
        # What blocks own they write; else they add.
        sums = {"fill": torch.nan} if is_owned else {"fill": 0, "dtype": accumulator}
        arrays = {
            "grad": Guarded(grad),
            "grad_input": Guarded(input, **sums),
            "grad_offset": Guarded(
                pack(offset, mask, window) if emulator.packed else offset, fill=torch.nan
            ),
            "grad_mask": Guarded(mask, fill=torch.nan),
        }
        if has_unit:
            unit = fixed_point_unit(grad, mask, window)
            arrays["unit"] = Guarded(unit)
        request = emulator.request(window, input, offset, mask, **arrays)
        for index, name in enumerate(("grad_input", "grad_offset", "grad_mask")):
            if emulator.only not in (None, index):
                setattr(request, name, None)
        emulator.run("emulate_backward", input.dtype, request)
        grad_input = arrays["grad_input"].check()
        if has_unit:
            grad_input = grad_input.double() / unit
        rest = arrays["grad_offset"].check(), arrays["grad_mask"].check()
        if emulator.packed:
            rows = rest[0]
            if emulator.only in (None, 1):
                assert rows[..., 3 * mask.shape[-1] :].count_nonzero() == 0
            rest = unpack(rows, window)
        return grad_input.to(input.dtype), *rest, None, None
