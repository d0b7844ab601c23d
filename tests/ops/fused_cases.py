"""Checks of src.ops.fused, on a device or in Triton's interpreter, against PyTorch in float64."""

from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from src.models import InternImage
from src.ops import cpu_linear, fused

ROUNDING = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.float16: 2**-10,
    torch.bfloat16: 2**-7,
}
"""Accepted difference relative to the largest value; 16-bit results are rounded once.

Triton's interpreter rounds bfloat16 towards zero.
"""


def use_interpreter():
    """Run the Triton kernels on CPU tensors."""
    for name in fused.EMPTY:
        torch.library.impl(f"internimage::{name}", "CPU", partial(fused.run, name))


class Names(TorchDispatchMode):
    """Records the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def switched(is_on):
    """Use the kernels on every device, or on none; yields the names of the operators that ran."""
    was_available = fused.is_available
    had_mlp = cpu_linear.HAS_KERNELS  # without it, MLPs use these kernels
    fused.is_available = lambda x: is_on
    cpu_linear.HAS_KERNELS = False
    try:
        with Names() as mode:
            yield mode.names
    finally:
        fused.is_available = was_available
        cpu_linear.HAS_KERNELS = had_mlp


def plain_norm(x, weight, bias, eps):
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def plain_norm_gelu(x, weight, bias, eps):
    return F.gelu(plain_norm(x, weight, bias, eps))


def plain_fork(x, weight, bias, eps):
    return plain_norm(x, weight, bias, eps), x


def tensors_of(shape, dtype, device):
    generator = torch.Generator().manual_seed(0)
    x = 3 + 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    weight, bias = torch.randn(2, shape[-1], generator=generator, dtype=torch.float64)
    return [t.to(device, dtype).requires_grad_() for t in (x, weight, bias)]


def gradients(function, tensors, *args):
    """Results and gradients, with random upstream gradients that are the same for every dtype."""
    results = function(*tensors, *args)
    results = results if isinstance(results, tuple) else (results,)
    upstream = [
        torch.randn(r.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        .bfloat16()  # few enough bits for every dtype
        .to(r.device, r.dtype)
        for i, r in enumerate(results)
    ]
    return [*results, *torch.autograd.grad(results, tensors, upstream)]


def compare(operator, plain, tensors, *args):
    exact = [t.detach().double().requires_grad_() for t in tensors]
    got, want = gradients(operator, tensors, *args), gradients(plain, exact, *args)
    for result, expected in zip(got, want, strict=True):
        assert result.dtype == tensors[0].dtype
        assert result.shape == expected.shape
        if expected.numel():
            error = (result.double() - expected).abs().max()
            accepted = ROUNDING[result.dtype] * expected.abs().max()
            assert error <= accepted, (error, accepted, expected.shape)


def check_norm(shape, dtype="float64", device="cpu"):
    """LayerNorm with GELU, and LayerNorm with a residual connection."""
    tensors = tensors_of(shape, getattr(torch, dtype), device)
    compare(fused.layer_norm_gelu, plain_norm_gelu, tensors, 1e-6)
    compare(fused.layer_norm_fork, plain_fork, tensors, 1e-6)


def check_unused_results(device="cpu"):
    """Either result of `layer_norm_fork` may have no gradient."""
    tensors = tensors_of((5, 12), torch.float64, device)
    compare(lambda *a: fused.layer_norm_fork(*a)[0], plain_norm, tensors, 1e-6)
    x, *parameters = tensors
    _, residual = fused.layer_norm_fork(x, *parameters, 1e-6)
    grads = torch.autograd.grad(residual.sum(), tensors, allow_unused=True)
    assert torch.equal(grads[0], torch.ones_like(x))
    assert grads[1:] == (None, None)


def check_bias_gelu(shape, dtype="float64", device="cpu"):
    x, _, bias = tensors_of(shape, getattr(torch, dtype), device)
    compare(fused.bias_gelu, lambda x, bias: F.gelu(x + bias), [x, bias])


def check_strided(device="cpu"):
    """Feature maps and gradients that are not contiguous."""
    x, weight, bias = tensors_of((3, 6, 4), torch.float64, device)
    tensors = [x.detach().transpose(0, 1).requires_grad_(), weight, bias]

    def transposed(operator, *args):
        results = operator(*args)
        results = results if isinstance(results, tuple) else (results,)
        return tuple(r.transpose(0, 1) for r in results)

    for operator, plain in (
        (fused.layer_norm_gelu, plain_norm_gelu),
        (fused.layer_norm_fork, plain_fork),
    ):
        compare(partial(transposed, operator), partial(transposed, plain), tensors, 1e-6)


def check_several_tiles_of_a_program():
    """Programs whose number is limited process several tiles each."""
    limit = fused.MAX_PROGRAMS
    fused.MAX_PROGRAMS = 3
    try:
        check_norm((301, 60))
        check_bias_gelu((301, 60))
    finally:
        fused.MAX_PROGRAMS = limit


def check_schemas(device="cpu"):
    """Schema and shape inference agree with the kernels."""
    x, weight, bias = (t.detach() for t in tensors_of((70, 12), torch.float32, device))
    operators, tests = torch.ops.internimage, ("test_schema", "test_faketensor")
    for operator, args in (
        (operators.layer_norm, (x, weight, bias, 1e-6, True)),
        (operators.layer_norm_backward, (x, x, x, weight, bias, 1e-6, False)),
        (operators.layer_norm_backward, (x, None, x, weight, bias, 1e-6, True)),
        (operators.bias_gelu, (x, bias)),
        (operators.bias_gelu_backward, (x, x, bias)),
    ):
        torch.library.opcheck(operator.default, args, test_utils=tests)


SHARES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 0.05}
"""Accepted difference of a gradient relative to its length, beside that of PyTorch's layers."""

OPTIONS = {
    "internimage_t": {"drop_path_rate": 0.5},
    "internimage_s": {"layer_scale": 0.5, "post_norm": True},
    "internimage_h": {"res_post_norm": True, "center_feature_scale": True},
    "flash_internimage": {"core_op": "DCNv4", "mlp_fc2_bias": False},
}


def make_network(options, device):
    torch.manual_seed(0)
    options = {"channels": 16, "depths": [1, 2], "groups": [1, 2], **options}
    network = InternImage(3, **options).to(device)
    for parameter in network.parameters():  # also those that are zero initially
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def step(network, model, dtype, device):
    """Gradients of all parameters of `network`, which is `model` or a wrapper of it."""
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    is_mixed = dtype == torch.bfloat16
    images = images.to(device, torch.float32 if is_mixed else dtype)
    torch.manual_seed(2)  # drop path
    with torch.autocast(torch.device(device).type, dtype, enabled=is_mixed):
        loss = F.cross_entropy(network(images), torch.tensor([0, 2], device=device))
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    return {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in grads.items()}


def check_network(name, wrapper=None, dtype="float64", device="cpu"):
    """A training step of a network has the same gradients with the kernels and without."""
    dtype = getattr(torch, dtype)
    network = make_network(OPTIONS[name], device).double()
    with switched(False) as ran:
        exact = step(network, network, torch.float64, device)
        network.to(torch.float32 if dtype == torch.bfloat16 else dtype)
        plain = step(network, network, dtype, device)
    assert not set(fused.EMPTY) & ran
    wrapped = WRAPPERS[wrapper](network)
    with switched(True) as ran:
        got = step(wrapped, network, dtype, device)
    assert set(fused.EMPTY) <= ran
    assert got.keys() == exact.keys()
    least = 1e-4 * max(grad.norm() for grad in exact.values())
    for key, want in exact.items():
        # In front of a BatchNorm, the gradient of a bias is zero up to rounding.
        accepted = SHARES[dtype] * want.norm().clamp(min=least)
        error, usual = ((grads[key] - want).norm() for grads in (got, plain))
        assert error <= accepted + 3 * usual, (key, error, accepted, usual)


def check_hooks(device="cpu"):
    """Modules with hooks are called."""
    block = make_network(OPTIONS["internimage_t"], device).levels[0].blocks[0]
    x = torch.randn(1, 4, 4, 16, device=device)
    modules = [block.norm1, block.dcn.dw_norm, block.dcn.act, block.norm2, block.mlp.fc1]
    with switched(True) as ran:
        out = block(x)
    assert {"layer_norm", "bias_gelu"} <= ran
    called = []
    for module in modules:
        module.register_forward_hook(lambda module, *_: called.append(module))
    with switched(True) as ran:
        torch.testing.assert_close(block(x), out)
    of_modules = {"layer_norm"} if device == "cpu" else set()  # a norm uses the kernel itself
    assert not (set(fused.EMPTY) - of_modules) & ran
    assert called == modules


def with_checkpointing(network):
    network.set_grad_checkpointing(True)
    return network


def with_ddp(network):
    start_process_group()
    return torch.nn.parallel.DistributedDataParallel(network)


def with_fsdp2(network):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    start_process_group()
    mesh = init_device_mesh(next(network.parameters()).device.type, (1,))
    for stage in network.levels:
        for block in stage.blocks:
            fully_shard(block, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def start_process_group():
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group(store=store, rank=0, world_size=1)


WRAPPERS = {
    None: lambda network: network,
    "checkpointing": with_checkpointing,
    "ddp": with_ddp,
    "fsdp2": with_fsdp2,
}
