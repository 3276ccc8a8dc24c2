import copy
import importlib.util
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from companion.optimization import (
    TrainingConfig,
    learning_rate_factor,
    make_optimizer,
    parameter_groups,
)


@given(st.floats(0, 1), st.floats(0, 0.99))
def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing(progress, warmup):
    expected = min(progress / warmup if warmup else 1.0, (1 - progress) / (1 - warmup))
    assert learning_rate_factor(progress, warmup) == pytest.approx(expected, abs=1e-12)
    assert learning_rate_factor(1.0, warmup) == 0.0
    assert learning_rate_factor(warmup, warmup) == 1.0


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("gradient_accumulation_steps", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("max_grad_norm", -1.0),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
        ("seed", -1),
        ("warmup_fraction", 1.0),
        ("warmup_fraction", -0.1),
        ("warmup_fraction", math.nan),
        ("mixed_precision", "fp8"),
        ("mixed_precision", "no"),
        ("optimizer", "sgd"),
        ("optimizer", "LAMB"),
    ],
)
def test_a_setting_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=re.escape(f"{field}={value!r}; choose")):
        TrainingConfig(**{field: value})


def test_matrices_decay_and_vectors_do_not_and_what_is_frozen_is_left_out():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    model[3].requires_grad_(False)
    decaying, others = parameter_groups(model, 0.25)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.25, 0.0)
    assert [id(p) for p in decaying["params"]] == [id(model[0].weight), id(model[1].weight)]
    assert [id(p) for p in others["params"]] == [id(model[1].bias), id(model[2].weight), id(model[2].bias)]


def adamw(weight, gradients, rate, decay):
    """Update as Loshchilov and Hutter, 2019, algorithm 2, says, with PyTorch's default betas and epsilon."""
    mean = square = torch.zeros_like(weight)
    for number, gradient in enumerate(gradients, start=1):
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        corrected = mean / (1 - 0.9**number) / ((square / (1 - 0.999**number)).sqrt() + 1e-8)
        weight = weight - rate * decay * weight - rate * corrected
    return weight


def lamb(weight, gradients, rate, decay):
    """Update as You et al., 2020, algorithm 2, says, without correcting the moments, the weights' norm cut at 10."""
    mean = square = torch.zeros_like(weight)
    for gradient in gradients:
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        update = mean / (square.sqrt() + 1e-6) + decay * weight
        norm = weight.square().sum().sqrt().clamp(max=10.0)
        ratio = norm / (update.square().sum().sqrt() + 1e-6) if norm > 0 else 1.0
        weight = weight - rate * ratio * update
    return weight


@pytest.mark.parametrize(("optimizer", "plain"), [("adamw", adamw), ("lamb", lamb)])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_updates_are_those_of_a_plain_implementation_and_matrices_alone_decay(optimizer, plain, decay):
    """One matrix has a norm of more than 10, one of less; the norm of a bias is 0 to begin with."""
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Embedding(7, 3)).double()
    with torch.no_grad():
        model[0].weight.mul_(20)
        model[1].bias.zero_()
    assert model[0].weight.norm() > 10 > model[1].weight.norm()
    config = TrainingConfig(optimizer=optimizer, learning_rate=0.03, weight_decay=decay)
    made = make_optimizer(model, config)
    begun = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    gradients = {name: torch.randn(3, *weight.shape, dtype=torch.float64) for name, weight in begun.items()}
    for number in range(3):
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name][number].clone()
        made.step()
    for name, parameter in model.named_parameters():
        decays = name in ("0.weight", "1.weight", "3.weight")
        expected = plain(begun[name], gradients[name], 0.03, decay if decays else 0.0)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-13)


def test_fused_updates_are_those_of_torch_one_operation_at_a_time():
    model = nn.Sequential(nn.Linear(33, 17), nn.LayerNorm(17), nn.Linear(17, 3))
    twin = copy.deepcopy(model)
    config = TrainingConfig(learning_rate=0.01, weight_decay=0.1)
    fused = make_optimizer(model, config)
    plain = torch.optim.AdamW(parameter_groups(twin, 0.1), lr=0.01, fused=False, foreach=False)
    assert [group["fused"] for group in fused.param_groups] == [True, True]
    for _ in range(20):
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
        fused.step()
        plain.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        # Each of 20 updates rounds the weight by half an epsilon at most, and what is added to it by a few.
        largest = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=20 * torch.finfo(torch.float32).eps * largest)


@pytest.mark.unhooked
def test_lamb_needs_its_package_and_adamw_does_not(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == "pytorch_optimizer" else found(name, *args)
    )
    assert TrainingConfig().optimizer == "adamw"
    with pytest.raises(ValueError, match=r"^optimizer='lamb' needs a package .*; pip install pytorch-optimizer$"):
        TrainingConfig(optimizer="lamb")
