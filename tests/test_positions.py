import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.positions import LearnedPositionalEmbedding, SinusoidalPositionalEncoding, sinusoidal_encoding

exactly = partial(torch.testing.assert_close, rtol=0, atol=0)
FLOAT32_ROUNDING = 2**-25  # half the distance of float32 numbers below 1

BOTH = pytest.mark.parametrize("module", [SinusoidalPositionalEncoding, LearnedPositionalEmbedding])


@pytest.mark.parametrize(
    ("position", "column", "d_model", "expected"),
    [
        (0, 0, 4, 0.0),
        (0, 1, 4, 1.0),
        (1, 0, 4, 0.8414709848),  # sin 1
        (1, 1, 4, 0.5403023059),  # cos 1
        (3, 2, 4, 0.0299955002),  # sin 0.03
        (3, 3, 4, 0.9995500337),  # cos 0.03
        (2, 2, 6, 0.0926985008),  # sin(2 / 10000^(1/3)) = sin 0.0928317767
        (5, 5, 6, 0.9999419806),  # cos(5 / 10000^(2/3)) = cos 0.0107721735
    ],
)
def test_entries_worked_out_by_hand(position, column, d_model, expected):
    table = sinusoidal_encoding(position + 1, d_model)
    assert table[position, column].item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("d_model", [2, 6, 64])
def test_every_entry_is_the_papers_sinusoid_to_the_last_bit_of_float32(d_model):
    table = sinusoidal_encoding(20_000, d_model)
    assert table.dtype == torch.float32
    for position in (0, 1, 2, 511, 512, 9_999, 19_999):
        for i in range(d_model // 2):
            angle = position / 10_000 ** (2 * i / d_model)
            pair = table[position, 2 * i : 2 * i + 2].tolist()
            # Angles of up to 20000 carry an error of their own, 20000 * 2^-52 at most.
            assert pair == pytest.approx([math.sin(angle), math.cos(angle)], abs=FLOAT32_ROUNDING + 1e-11)


@settings(max_examples=15, deadline=None)
@given(position=st.integers(0, 1000), shift=st.integers(0, 1000), half=st.integers(1, 16))
def test_a_shift_rotates_each_pair_by_an_angle_that_depends_on_the_shift_alone(position, shift, half):
    table = sinusoidal_encoding(2001, 2 * half).double().numpy().reshape(2001, half, 2)
    angle = shift * np.power(10_000.0, -np.arange(half) / half)
    sine, cosine = table[position].T
    rotated = np.stack(
        [sine * np.cos(angle) + cosine * np.sin(angle), cosine * np.cos(angle) - sine * np.sin(angle)], axis=-1
    )
    np.testing.assert_allclose(rotated, table[position + shift], rtol=0, atol=3 * FLOAT32_ROUNDING)


def test_wavelengths_run_geometrically_from_2_pi_towards_10000_times_2_pi():
    length, d_model = 2_000, 32
    table = sinusoidal_encoding(length, d_model).double().numpy()
    phase = np.unwrap(np.arctan2(table[:, 0::2], table[:, 1::2]), axis=0)
    wavelengths = 2 * np.pi * (length - 1) / (phase[-1] - phase[0])
    expected = 2 * np.pi * np.geomspace(1, 10_000, d_model // 2 + 1)[:-1]
    np.testing.assert_allclose(wavelengths, expected, rtol=1e-5)


def test_no_two_positions_share_a_row():
    table = sinusoidal_encoding(512, 8).double()
    assert torch.cdist(table, table).fill_diagonal_(1).min() > 1e-2


@BOTH
@pytest.mark.parametrize("length", [1, 5, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_each_position_gets_its_row_added(module, length, dtype):
    positions, x = module(8, 6), torch.randn(3, length, 6, dtype=dtype)
    if module is LearnedPositionalEmbedding:
        positions.to(dtype)
        table = positions.table.detach()
    else:
        table = sinusoidal_encoding(8, 6).to(dtype)
    expected = torch.stack([torch.stack([x[b, i] + table[i] for i in range(length)]) for b in range(3)])
    exactly(positions(x).detach(), expected)


@BOTH
def test_the_gradient_passes_unchanged_to_the_input(module):
    x, upstream = torch.randn(2, 5, 6, requires_grad=True), torch.randn(2, 5, 6)
    module(8, 6)(x).backward(upstream)
    exactly(x.grad, upstream)


def test_learned_rows_get_the_gradients_of_their_position_and_unused_rows_none():
    positions, upstream = LearnedPositionalEmbedding(8, 6), torch.randn(3, 5, 6)
    positions(torch.randn(3, 5, 6)).backward(upstream)
    expected = torch.zeros(8, 6)
    for text in upstream:
        expected[:5] += text
    torch.testing.assert_close(positions.table.grad, expected)
    assert (positions.table.grad[5:] == 0).all()


def test_sinusoids_are_neither_learned_nor_saved_but_follow_the_module():
    positions = SinusoidalPositionalEncoding(8, 6)
    assert list(positions.parameters()) == []
    assert positions.state_dict() == {}
    assert positions.to("meta").table.is_meta


def test_learned_positions_are_saved_and_differ_from_the_start():
    positions = LearnedPositionalEmbedding(8, 6)
    exactly(positions.state_dict()["table"], positions.table.detach())
    assert torch.cdist(positions.table, positions.table).fill_diagonal_(1).min() > 1e-3


@pytest.mark.unhooked
@pytest.mark.parametrize("make", [sinusoidal_encoding, SinusoidalPositionalEncoding])
def test_an_odd_width_is_refused(make):
    with pytest.raises(ValueError, match="d_model=7 is odd"):
        make(5, 7)


@pytest.mark.unhooked
@BOTH
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 9, 6), "x has length 9; .*max_length=8"),
        ((2, 5, 4), r"x has shape \(2, 5, 4\); expected \(batch, length, d_model=6\)"),
        ((5, 6), r"x has shape \(5, 6\); expected \(batch, length, d_model=6\)"),
    ],
)
def test_what_the_table_does_not_fit_is_refused(module, shape, message):
    with pytest.raises(ValueError, match=message):
        module(8, 6)(torch.zeros(shape))
