"""The operators of ONNX files: same values as PyTorch, and errors for files that are not valid."""

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from src.export.library import COPY, DOMAIN, installed_library
from src.models.internimage.blocks import Block, BlockOptions
from src.models.internimage.dcnv3 import DCNv3
from src.models.internimage.fused_block import FusedBlockModule
from src.ops import dcnv3, dcnv4
from src.ops.dcnv4 import dcnv4_columns

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(installed_library() is None, reason="the library is not built")


def session(operator, inputs, threads=1, **attributes):
    """Session of one node; weights are constants and missing inputs are ``None``."""
    names = ["" if value is None else f"input_{i}" for i, value in enumerate(inputs)]
    helper = onnx.helper
    node = helper.make_node(operator, names, ["out"], domain=DOMAIN, **attributes)
    given = {name: value for name, value in zip(names, inputs, strict=True) if name}
    first, *rest = given
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info(first, onnx.TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(given[name].numpy(), name) for name in rest],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(installed_library()))
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are tested here
    opened = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda x: torch.from_numpy(opened.run(None, {first: x.numpy()})[0])


def make(channels=32, groups=2, mlp_ratio=4.0, **options):
    torch.manual_seed(0)
    names = ("kernel_size", "dw_kernel_size", "offset_scale", "remove_center")
    names += ("center_feature_scale",)
    mixer = DCNv3(channels, groups, **{n: options.pop(n) for n in names if n in options})
    block = Block(channels, mixer, BlockOptions(mlp_ratio=mlp_ratio, **options)).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter.data, float(parameter.mean() == 1), 0.2)
    return block


def node_of(block, x, threads=1, changed=None, **attributes):
    """A block as a node, with other weights by number and other attributes."""
    module = FusedBlockModule(block)
    weights = [module.get_buffer(name) for name in module.names]
    for number, weight in (changed or {}).items():
        weights[number] = weight
    options = module.options._asdict()
    for name in ("remove_center", "has_gate"):
        options[name] = int(options[name])
    inputs = [x, *(weight if weight is not None and len(weight) else None for weight in weights)]
    return session("Block", inputs, threads, **{**options, **attributes})


VARIANTS = [
    {},
    {"layer_scale": 0.5},
    {"layer_scale": 0.5, "post_norm": True},
    {"post_norm": True},
    {"res_post_norm": True, "center_feature_scale": True},
    {"remove_center": True, "kernel_size": 5},
    {"channels": 48, "groups": 4, "mlp_ratio": 1.0},
    {"channels": 80, "groups": 5, "kernel_size": 5, "dw_kernel_size": 7},
    {"channels": 16, "groups": 1, "offset_scale": 2.0},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_a_block_is_that_of_pytorch(options):
    block = make(**options)
    run = node_of(block, torch.empty(0))
    for size in ((1, 1, 1), (2, 7, 9), (1, 16, 15), (0, 4, 4)):
        x = torch.randn(*size, block.dcn.channels)
        torch.testing.assert_close(run(x), block(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_block_is_independent_of_threads_and_other_images():
    block = make()
    x = torch.randn(3, 37, 23, 32)
    expected = node_of(block, x)(x)
    parallel = node_of(block, x, threads=3)
    for _ in range(5):  # the first runs learn the number of threads
        assert torch.equal(parallel(x), expected)
    assert torch.equal(parallel(x[1:2]), expected[1:2])


@pytest.mark.parametrize(
    ("window", "points", "out"),
    [
        ({"groups": 2, "stride": 2, "mask_softmax": True}, 9, (6, 8)),
        ({"groups": 1, "kernel_size": (1, 3), "padding": (0, 1), "dilation": (1, 2)}, 3, (12, 13)),
        ({"groups": 4, "padding": 1, "remove_center": True, "offset_scale": 0.5}, 8, (12, 15)),
    ],
)
def test_dcnv3(window, points, out):
    torch.manual_seed(0)
    groups = window["groups"]
    values = torch.randn(2, 12, 15, 16 * groups)
    window = {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1, **window}
    offset = 2 * torch.randn(2, *out, groups * points * 2)
    mask = torch.randn(2, *out, groups * points)
    run = session("DCNv3", [values, offset, mask], **attributes(window))
    torch.testing.assert_close(run(values), dcnv3(values, offset, mask, **window))


def test_dcnv4():
    torch.manual_seed(0)
    values = torch.randn(2, 12, 15, 48)
    rows = torch.randn(2, 12, 15, dcnv4_columns(3))
    window = {"groups": 3, "kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1}
    given = attributes(window)
    given.pop("mask_softmax")
    run = session("DCNv4", [values, rows], threads=2, **given)
    torch.testing.assert_close(run(values), dcnv4(values, rows, **window))


def attributes(window):
    """Attributes of DCNv3 for arguments of the function."""
    pairs = ("kernel_size", "stride", "padding", "dilation")
    given = {"offset_scale": 1.0, "remove_center": False, "mask_softmax": False, **window}
    given |= {n: [given[n]] * 2 if isinstance(given[n], int) else given[n] for n in pairs}
    return {n: int(v) if isinstance(v, bool) else v for n, v in given.items()}


def fails(run, x, message):
    with pytest.raises(Exception, match=message):
        run(x)


@pytest.mark.parametrize("number", range(22))
def test_a_weight_of_another_size_is_an_error(number):
    block = make(layer_scale=0.5, post_norm=True)
    x = torch.randn(1, 3, 3, 32)
    wrong = torch.ones(5)
    fails(node_of(block, x, changed={number: wrong}), x, f"input {number + 1} of a block must have")


def test_half_a_norm_is_an_error():
    x = torch.randn(1, 3, 3, 32)
    fails(node_of(make(), x, changed={1: None}), x, "a norm needs weight and bias")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden": 144}, "of a block must have"),
        ({"hidden": 2**62}, "multiples of 16"),
        ({"hidden": -16}, "multiples of 16"),
        ({"groups": 3}, "groups must divide"),
        ({"groups": 0}, "groups must divide"),
        ({"kernel_size": 4}, "odd"),
        ({"kernel_size": 2**40 + 1}, "two integers|points"),
        ({"kernel_size": -1}, "odd"),
        ({"dw_kernel_size": 5}, "of a block must have"),
        ({"dw_kernel_size": 2**33 + 1}, "odd"),
        ({"has_gate": 1, "groups": 32}, "of a block must have"),
    ],
)
def test_attributes_that_do_not_fit_the_weights_are_errors(changed, message):
    x = torch.randn(1, 3, 3, 32)
    fails(node_of(make(), x, **changed), x, message)


@pytest.mark.parametrize("shape", [(1, 3, 32), (1, 3, 3, 48), (1, 3, 3, 24), (1, 0, 3, 32)])
def test_feature_maps_that_do_not_fit_are_errors(shape):
    run = node_of(make(), torch.empty(0))
    fails(run, torch.zeros(shape), "block|window")


def test_a_missing_attribute_is_an_error():
    with pytest.raises(Exception, match="groups"):
        session("DCNv4", [torch.zeros(1, 2, 2, 16), torch.zeros(1, 2, 2, 32)])


def test_points_of_another_shape_are_errors():
    values = torch.randn(1, 4, 4, 16)
    given = attributes({"groups": 1, "kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1})
    short = [values, torch.zeros(1, 4, 4, 18), torch.zeros(1, 4, 3, 9)]
    fails(session("DCNv3", short, **given), values, "mask does not have the shape")
    narrow = [values, torch.zeros(1, 4, 4, 16), torch.zeros(1, 4, 4, 9)]
    fails(session("DCNv3", narrow, **given), values, "offset does not have the shape")
    huge = {**given, "padding": [2**62, 2**62]}
    fails(session("DCNv3", short, **huge), values, "padding must be two integers")


def test_an_older_runtime_is_refused():
    """The library asks for the functions of version 18; this runtime has those of version 1."""
    messages = []

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    def create_status(code, message):
        messages.append((code, message.decode()))
        return 1

    table = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p))

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    def get_api(version):
        return ctypes.addressof(table) if version == 1 else None

    version = ctypes.create_string_buffer(b"1.17.3")

    @ctypes.CFUNCTYPE(ctypes.c_void_p)
    def get_version():
        return ctypes.addressof(version)

    base = (ctypes.c_void_p * 2)(*(ctypes.cast(f, ctypes.c_void_p) for f in (get_api, get_version)))
    register = ctypes.CDLL(str(installed_library())).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, ctypes.byref(base)) == 1
    expected = "The operators of InternImage need ONNX Runtime 1.18 or later, and this is 1.17.3."
    assert messages == [(1, expected)]


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_smaller_vectors(capability, tmp_path):
    """Every CPU runs the operators; a process has the kernels of one instruction set."""
    block = make(channels=48, groups=3, res_post_norm=True, center_feature_scale=True)
    x = torch.randn(2, 9, 11, 48)
    with torch.no_grad():
        np.save(tmp_path / "expected.npy", block(x).numpy())
    torch.save((block, x), tmp_path / "block.pt")
    code = """
import sys, numpy, torch
from tests.ops.test_onnx_library import node_of
block, x = torch.load(sys.argv[1] + "/block.pt", weights_only=False)
expected = torch.from_numpy(numpy.load(sys.argv[1] + "/expected.npy"))
torch.testing.assert_close(node_of(block, x, threads=2)(x), expected, rtol=1e-4, atol=1e-4)
"""
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        check=True,
    )


def test_the_library_needs_libc_only(tmp_path):
    """It is copied to machines without PyTorch."""
    copy = tmp_path / COPY
    copy.write_bytes(installed_library().read_bytes())
    listed = subprocess.run(["ldd", str(copy)], capture_output=True, text=True, check=True).stdout
    names = {line.split()[0].split("/")[-1].split(".")[0] for line in listed.splitlines()}
    assert names <= {"linux-vdso", "libc", "libm", "ld-linux-x86-64", "ld-linux-aarch64"}
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", str(copy)], capture_output=True, text=True, check=True
    ).stdout
    assert [line.split()[-1] for line in symbols.splitlines()] == ["RegisterCustomOps"]
