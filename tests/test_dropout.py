"""Dropout against its definition, against the distribution of independent draws, and against ``torch.nn.Dropout``."""

import math
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from gradients import gradients
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from companion.dropout import Dropout, drop

QUICK = [torch.float32, torch.bfloat16]
SHAPES = [(), (0,), (3, 0), (1,), (2,), (3,), (4,), (5,), (7, 3), (2, 3, 5), (4, 8)]
STEP = 2**-16

quick_dtypes = pytest.mark.parametrize("dtype", QUICK, ids=str)
property_test = settings(max_examples=25)
statistical_test = settings(max_examples=25, derandomize=True)  # a rare deviation is to come always or never
probabilities = st.floats(0.05, 0.95)


def five_deviations(p, draws):
    return 5 * math.sqrt(p * (1 - p) / draws)


def dropped(p, *shape):
    return drop(torch.ones(shape), p) == 0


# --- What is drawn ----------------------------------------------------------------------------------------------------


@statistical_test
@given(probabilities, st.integers(0, 2**32 - 1), st.sampled_from(QUICK))
def test_the_share_of_zeros_is_the_probability_in_each_quarter_of_a_draw(p, seed, dtype):
    """One number of 64 bits serves four elements, in the order in which they stand."""
    torch.manual_seed(seed)
    zero = drop(torch.ones(100_000, dtype=dtype), p).view(-1, 4) == 0
    shares = zero.double().mean(dim=0)
    assert shares.mean().item() == pytest.approx(p, abs=five_deviations(p, zero.numel()) + STEP)
    torch.testing.assert_close(shares, torch.full_like(shares, p), rtol=0, atol=five_deviations(p, len(zero)) + STEP)


@statistical_test
@given(probabilities, st.integers(0, 2**32 - 1))
def test_elements_are_dropped_independently_of_those_next_to_them(p, seed):
    """The correlation of n independent pairs deviates from 0 by 1 / sqrt(n)."""
    torch.manual_seed(seed)
    zero = dropped(p, 100_000).double()
    for lag in (1, 2, 3, 4, 5, 8):
        pair = torch.stack([zero[:-lag], zero[lag:]])
        assert abs(torch.corrcoef(pair)[0, 1].item()) < 5 / math.sqrt(pair.size(1)), lag
    within = torch.corrcoef(zero.view(-1, 4).T) - torch.eye(4)
    assert within.abs().max() < 5 / math.sqrt(len(zero) / 4)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_each_of_the_16_patterns_of_a_draw_comes_as_often_as_independent_draws_have_it(p):
    zero = dropped(p, 400_000).view(-1, 4)
    found = Counter(map(tuple, zero.tolist()))
    for pattern in torch.cartesian_prod(*[torch.tensor([False, True])] * 4).tolist():
        expected = math.prod(p if zero else 1 - p for zero in pattern)
        assert found[tuple(pattern)] / len(zero) == pytest.approx(expected, abs=five_deviations(expected, len(zero)))


def test_the_16_bits_are_uniform():
    """A draw stands between two of 64 thresholds if it is kept at one and dropped at the other: a chi-square test.

    Among independent uniform draws the statistic exceeds 122 once in 100,000 times.
    """
    below = []
    for threshold in range(1, 64):
        torch.manual_seed(1)
        below.append(dropped(threshold / 64, 64_000).sum().item())
    counts = torch.tensor([0, *below, 64_000], dtype=torch.float64).diff()
    assert counts.min() >= 0  # the same draws each time
    assert ((counts - 1000) ** 2 / 1000).sum() < 122


@pytest.mark.parametrize(("p", "step"), [(STEP, 1), (3 * STEP, 3), (1 - STEP, 2**16 - 1), (0.5 + STEP, 2**15 + 1)])
def test_probabilities_are_told_apart_to_the_last_of_16_bits(p, step, monkeypatch):
    every = torch.arange(-(2**15), 2**15).short().view(torch.int64)
    monkeypatch.setattr(torch.Tensor, "random_", lambda draws, *_: draws.copy_(every))
    assert dropped(p, 2**16).sum() == step


@pytest.mark.parametrize(("p", "low", "high"), [(1e-9, 0, 0), (1 - 1e-9, 1_000_000 - 45, 1_000_000)])
def test_next_to_0_nothing_is_dropped_and_next_to_1_nearly_all(p, low, high):
    """The probability goes to the nearest of 2^16 that leaves a chance of being kept, which is 2^-16 at least."""
    assert low <= dropped(p, 1_000_000).sum() <= high


@pytest.mark.parametrize("p", [0.2, 0.7])
def test_a_seed_gives_the_same_mask_and_the_next_call_another(p):
    x = torch.randn(50, 3)
    torch.manual_seed(3)
    first, second = drop(x, p), drop(x, p)
    torch.manual_seed(3)
    assert torch.equal(drop(x, p), first)
    assert not torch.equal(first, second)


def test_a_seed_gives_the_same_mask_whatever_the_number_of_threads():
    code = """
import hashlib, torch
from companion.dropout import drop
torch.manual_seed(3)
print(torch.get_num_threads(), hashlib.sha256(drop(torch.ones(1_000_003), 0.3).numpy().tobytes()).hexdigest())
"""
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for threads in "12"
    ]
    (one, alone), (two, together) = runs
    assert (one, two) == ("1", "2")
    assert alone == together


# --- What becomes of elements -----------------------------------------------------------------------------------------


@property_test
@given(probabilities, st.sampled_from(SHAPES), st.sampled_from(QUICK))
@example(1e-9, (7, 3), torch.float32)
@example(0.9999, (4, 8), torch.float32)
def test_elements_are_dropped_or_divided_by_the_share_that_is_kept(p, shape, dtype):
    x = torch.randn(shape).to(dtype)
    y = drop(x, p)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    kept = y != 0
    torch.testing.assert_close(y[kept], (x.double() / (1 - p)).to(dtype)[kept])


@quick_dtypes
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_mean_is_kept(p, dtype):
    """To five deviations, and in bf16 to the rounding of ``1 / (1 - p)``, which ``torch.nn.Dropout`` rounds too."""
    n = 200_000
    tolerance = 5 * math.sqrt(p / (1 - p) / n) + torch.finfo(dtype).eps
    assert drop(torch.ones(n, dtype=dtype), p).double().mean().item() == pytest.approx(1, abs=tolerance)


@quick_dtypes
@pytest.mark.parametrize("p", [0.3, 0.8])
def test_the_gradient_is_dropped_and_divided_as_the_input_is(p, dtype):
    x = torch.randn(6, 7, dtype=torch.float32).to(dtype).requires_grad_()
    torch.manual_seed(2)
    factors = drop(torch.ones_like(x), p)
    torch.manual_seed(2)
    y = drop(x, p)
    assert torch.equal(y, x * factors)
    (found,) = gradients(y, [x])
    (weighting,) = gradients(x + 0, [x])
    assert torch.equal(found, weighting * factors)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(5, 6).T,
        lambda: torch.randn(5, 12)[:, ::2],
        lambda: torch.randn(3).expand(4, 3),
        lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    ],
    ids=["transposed", "strided", "expanded", "channels last"],
)
def test_memory_may_be_laid_out_in_any_way(make):
    x = make()
    before = x.clone()
    torch.manual_seed(4)
    found = drop(x, 0.5)
    torch.manual_seed(4)
    assert torch.equal(found, drop(x.contiguous(), 0.5))
    assert torch.equal(x, before)
    assert not torch.equal(found, before)


def test_it_draws_where_the_input_is_whatever_the_default_device():
    x = torch.ones(40)
    with torch.device("meta"):
        assert set(drop(x, 0.5).tolist()) == {0.0, 2.0}
        assert drop(torch.ones(40), 0.5).is_meta


@pytest.mark.parametrize("randomness", ["same", "different"])
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_gradients_of_each_example_are_those_of_its_own_mask(randomness):
    x = torch.ones(8, 40)
    masks = torch.func.vmap(torch.func.grad(lambda row: drop(row, 0.5).sum()), randomness=randomness)(x)
    assert set(masks.flatten().tolist()) == {0.0, 2.0}
    assert len(set(map(tuple, masks.tolist()))) == (1 if randomness == "same" else 8)


# --- Where it is PyTorch's --------------------------------------------------------------------------------------------


def assert_same(ours, theirs, x):
    """Compare two ways of dropping, from the same seed: what they give, and how many numbers they draw."""
    torch.manual_seed(5)
    found, drawn = ours(x), torch.get_rng_state()
    torch.manual_seed(5)
    torch.testing.assert_close(found, theirs(x), rtol=0, atol=0)
    assert torch.equal(drawn, torch.get_rng_state())
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("p", [0.2, 0.7])
def test_in_other_dtypes_it_is_that_of_torch(dtype, p):
    found = assert_same(Dropout(p), nn.Dropout(p), torch.ones(300, dtype=dtype))
    assert 0 < found.count_nonzero() < 300


@quick_dtypes
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_where_nothing_or_all_is_dropped_it_is_that_of_torch(p, dtype):
    x = torch.tensor([1.0, -2.0, 0.0], dtype=dtype)
    assert torch.equal(assert_same(Dropout(p), nn.Dropout(p), x), x * (1 - p))


@pytest.mark.unhooked
@pytest.mark.usefixtures("fresh_compiler")
@quick_dtypes
def test_compiled_to_one_graph_it_is_that_of_torch(dtype):
    ours, theirs = (torch.compile(m, backend="aot_eager", fullgraph=True) for m in (Dropout(0.4), nn.Dropout(0.4)))
    found = assert_same(ours, theirs, torch.ones(300, dtype=dtype, requires_grad=True))
    assert 0 < found.count_nonzero() < 300


@pytest.mark.parametrize("dtype", [*QUICK, torch.float64], ids=str)
def test_in_evaluation_the_input_itself_comes_back(dtype):
    x = torch.randn(5, dtype=dtype)
    assert Dropout(0.9).eval()(x) is x
    state = torch.get_rng_state()
    Dropout(0.9).eval()(x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_what_is_no_probability_is_refused_as_torch_refuses_it(p):
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
        Dropout(p)
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
        drop(torch.ones(3), p)


def test_it_is_a_dropout_module_of_torch():
    assert isinstance(Dropout(), nn.Dropout)
    assert Dropout().p == nn.Dropout().p
    assert repr(Dropout(0.3)) == repr(nn.Dropout(0.3))
    torch.manual_seed(6)
    expected = drop(torch.ones(50), 0.3)
    torch.manual_seed(6)
    assert torch.equal(Dropout(0.3)(torch.ones(50)), expected)


@quick_dtypes
def test_in_dtypes_that_models_are_trained_in_it_draws_in_its_own_way(dtype):
    """The generator is asked for half as many numbers of 32 bits as there are elements."""
    torch.manual_seed(6)
    drop(torch.ones(51, dtype=dtype), 0.3)
    found = torch.get_rng_state()
    torch.manual_seed(6)
    torch.empty(13, dtype=torch.int64).random_()
    assert torch.equal(found, torch.get_rng_state())
