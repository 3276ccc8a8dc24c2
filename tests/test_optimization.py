import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from companion.optimization import TrainingConfig, learning_rate_factor, parameter_groups


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
