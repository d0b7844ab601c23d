"""Fused optimizers, whose kernels PyTorch has for the CPU as well."""

import copy

import torch

from src.optim.fused import unscale_before_step, use_fused


def trained(parameter, steps, optimizer):
    for _ in range(steps):
        parameter.grad = parameter.detach().sin()
        optimizer.step()


def make(**settings):
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(16))
    return parameter, torch.optim.AdamW([parameter], lr=0.1, **settings)


def test_same_result_also_after_resuming():
    plain, optimizer = make()
    trained(plain, 2, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    fused = torch.nn.Parameter(plain.detach().clone())
    resumed = use_fused(torch.optim.AdamW([fused], lr=0.1))
    resumed.load_state_dict(state)
    trained(plain, 2, optimizer)
    trained(fused, 2, resumed)
    torch.testing.assert_close(fused, plain)


def test_chosen_settings_stay():
    assert use_fused(make()[1]).param_groups[0]["fused"] is True
    assert use_fused(make(fused=False)[1]).param_groups[0]["fused"] is False
    assert not use_fused(make(foreach=True)[1]).param_groups[0]["fused"]
    without = torch.optim.LBFGS([torch.nn.Parameter(torch.ones(1))])
    assert "fused" not in use_fused(without).param_groups[0]


def test_gradients_of_a_fused_optimizer_are_unscaled_before_they_are_clipped():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], fused=True)
    assert optimizer._step_supports_amp_scaling  # with which Lightning refuses to clip
    unscale_before_step(optimizer)
    assert not optimizer._step_supports_amp_scaling
