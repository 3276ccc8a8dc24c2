import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.positions import (
    LearnedPositionalEmbedding,
    RotaryEmbedding,
    SinusoidalPositionalEncoding,
    alibi_bias,
    sinusoidal_encoding,
)

close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)
exactly = partial(torch.testing.assert_close, rtol=0, atol=0)
FLOAT32_ROUNDING = 2**-25  # half the distance of float32 numbers below 1

property_test = settings(max_examples=15)

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


@property_test
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
@pytest.mark.parametrize("lengths", [[1] * 8, [3, 5], [8]], ids=str)
def test_with_an_offset_each_part_gets_the_rows_it_has_in_the_whole(module, lengths):
    positions, x = module(8, 6), torch.randn(3, 8, 6)
    parts = [positions(part, offset=sum(lengths[:i])) for i, part in enumerate(x.split(lengths, dim=1))]
    exactly(torch.cat(parts, dim=1), positions(x))


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


def test_learned_positions_start_small():
    table = LearnedPositionalEmbedding(512, 64).table
    # The deviation of N draws scatters by 1 / sqrt(2 N), here 0.4 %.
    assert table.std().item() == pytest.approx(0.02, rel=0.02)


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
        ((2, 9, 6), "x has length 9; the position table ends at max_length=8"),
        ((2, 5, 4), r"x has shape \(2, 5, 4\); expected \(batch, length, d_model=6\)"),
        ((5, 6), r"x has shape \(5, 6\); expected \(batch, length, d_model=6\)"),
    ],
)
def test_what_the_table_does_not_fit_is_refused(module, shape, message):
    with pytest.raises(ValueError, match=message):
        module(8, 6)(torch.zeros(shape))


@pytest.mark.unhooked
@BOTH
@pytest.mark.parametrize(
    ("x", "offset", "error", "message"),
    [
        (torch.zeros(2, 5, 6), 4, ValueError, "x has length 5 after offset=4; the position table ends at max_length=8"),
        (torch.zeros(2, 5, 6), -1, ValueError, "x has length 5 after offset=-1; the position table ends"),
        (torch.zeros(2, 5, 6).long(), 0, TypeError, "x has dtype torch.int64; expected a floating one"),
        (torch.zeros(2, 5, 6, device="meta"), 0, ValueError, "x is on meta; expected cpu, the table's"),
    ],
)
def test_an_input_past_the_table_or_of_another_kind_is_refused(module, x, offset, error, message):
    with pytest.raises(error, match=f"^{message}"):
        module(8, 6)(x, offset)


@BOTH
def test_the_last_row_of_the_table_can_be_used(module):
    positions, x = module(8, 6), torch.randn(2, 5, 6)
    exactly(positions(x, offset=3), x + positions.table[3:8])


def rotation_matrix(position, head_dim, base=10_000.0):
    """Equation 15 of Su et al., 2021: a block for each pair on the diagonal."""
    matrix = torch.zeros(head_dim, head_dim, dtype=torch.float64)
    for i in range(head_dim // 2):
        angle = position * base ** (-2 * i / head_dim)
        block = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor(block, dtype=torch.float64)
    return matrix


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("head_dim", [2, 6, 8])
@pytest.mark.parametrize("base", [10_000.0, 100.0])
@pytest.mark.parametrize("offset", [0, 3, 1000])
def test_rotary_turns_each_position_by_the_papers_block_matrix_forward_and_backward(head_dim, base, offset):
    x = randn(2, 3, 5, head_dim)
    matrices = torch.stack([rotation_matrix(offset + i, head_dim, base) for i in range(5)])
    expected = torch.einsum("nij,bhnj->bhni", matrices, x)
    actual = RotaryEmbedding(head_dim, base)(x, offset)
    close(actual, expected)
    upstream = torch.randn_like(x)
    close(torch.autograd.grad(actual, x, upstream), torch.autograd.grad(expected, x, upstream))


def test_the_base_of_the_wavelengths_is_that_of_the_sinusoids():
    """A unit vector (0, 1) of a pair, turned by -angle, is (sin, cos): the sinusoidal table."""
    ones = torch.tensor([0.0, 1.0]).repeat(4).expand(1, 1, 6, 8).double()
    table = RotaryEmbedding(8)(ones)[0, 0] * torch.tensor([-1.0, 1.0]).repeat(4)
    torch.testing.assert_close(table.float(), sinusoidal_encoding(6, 8), rtol=0, atol=2 * FLOAT32_ROUNDING)


@property_test
@given(query=st.integers(0, 2000), key=st.integers(0, 2000), shift=st.integers(0, 2000), seed=st.integers(0, 2**31))
def test_rotary_scores_depend_on_the_offset_alone_and_norms_are_kept(query, key, shift, seed):
    torch.manual_seed(seed)
    rotary, q, k = RotaryEmbedding(8), randn(1, 1, 1, 8), randn(1, 1, 1, 8)
    score = (rotary(q, query) * rotary(k, key)).sum()
    # Angles of up to 4000 carry an error of 4000 * 2^-52 each.
    close((rotary(q, query + shift) * rotary(k, key + shift)).sum(), score)
    close(q.flatten() @ rotation_matrix(key - query, 8) @ k.flatten(), score)
    close(rotary(q, query).norm(), q.norm())


def test_rotary_leaves_the_first_position_and_takes_its_offset_as_the_position_of_the_first():
    rotary, x = RotaryEmbedding(6), randn(2, 3, 7, 6)
    exactly(rotary(x)[:, :, 0], x[:, :, 0])
    exactly(torch.cat([rotary(part, i) for i, part in enumerate(x.split(1, dim=2))], dim=2), rotary(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rotary_in_low_precision_rounds_its_result_once_even_far_out(dtype):
    x = torch.randn(1, 2, 5, 8).to(dtype)
    actual, exact = RotaryEmbedding(8)(x, 100_000), RotaryEmbedding(8)(x.double(), 100_000)
    assert actual.dtype == dtype
    # In float32: cosine, sine, two products and their sum round, by half an epsilon each, to values of at most the
    # norm of a pair. A narrower dtype rounds once more; what is computed in float32 before does not show.
    roundings = 5 if dtype == torch.float32 else 1.01
    bound = roundings / 2 * torch.finfo(dtype).eps * exact.abs().max().item() * math.sqrt(2)
    torch.testing.assert_close(actual.double(), exact, rtol=0, atol=bound)


def test_rotary_has_nothing_to_learn_or_to_save_and_keeps_no_state():
    rotary, x = RotaryEmbedding(8), randn(1, 1, 3, 8)
    first = rotary(x)
    rotary(x, 77), rotary(randn(2, 1, 9, 8))
    exactly(rotary(x), first)
    assert list(rotary.parameters()) == []
    assert rotary.state_dict() == {}


def test_rotary_works_where_its_input_is_and_with_a_base_below_one():
    assert RotaryEmbedding(8)(torch.zeros(1, 2, 3, 8, device="meta")).is_meta
    x = randn(1, 1, 3, 4)
    turned = torch.stack([rotation_matrix(i, 4, 0.5) @ x[0, 0, i] for i in range(3)])
    close(RotaryEmbedding(4, 0.5)(x)[0, 0], turned)


def test_gradcheck_of_rotary():
    assert torch.autograd.gradcheck(RotaryEmbedding(4), (randn(1, 2, 3, 4), 5))


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RotaryEmbedding(7), ValueError, "head_dim=7 is odd"),
        (lambda: RotaryEmbedding(8, 0.0), ValueError, "base=0.0; choose a positive one"),
        (lambda: RotaryEmbedding(8, -2.0), ValueError, "base=-2.0; choose a positive one"),
        (
            lambda: RotaryEmbedding(8)(torch.zeros(1, 2, 3, 6)),
            ValueError,
            r"x has shape \(1, 2, 3, 6\); expected \(batch, heads, length, head_dim=8\)",
        ),
        (lambda: RotaryEmbedding(8)(torch.zeros(2, 3, 8)), ValueError, r"x has shape \(2, 3, 8\); expected \(batch"),
        (lambda: RotaryEmbedding(8)(torch.zeros(1, 1, 2, 3, 8)), ValueError, r"x has shape \(1, 1, 2, 3, 8\)"),
        (lambda: RotaryEmbedding(8)(torch.zeros(1, 2, 3, 8).int()), TypeError, "x has dtype torch.int32; .*floating"),
        (lambda: alibi_bias(0, 3), ValueError, "num_heads=0; choose 1 or more"),
        (lambda: alibi_bias(-1, 3), ValueError, "num_heads=-1; choose 1 or more"),
        (lambda: alibi_bias(2, 3, 2), ValueError, "key_length=2; expected at least query_length=3"),
    ],
)
def test_what_rotary_and_alibi_cannot_do_is_refused(make, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make()


SLOPES = {
    1: [2**-8],
    2: [2**-4, 2**-8],
    8: [2**-1, 2**-2, 2**-3, 2**-4, 2**-5, 2**-6, 2**-7, 2**-8],
    # Those of 2 heads, then every other one of 4 heads, whose ratio is 2^-2.
    3: [2**-4, 2**-8, 2**-2],
    # Those of 4 heads, then every other one of 8 heads.
    6: [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3],
    7: [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3, 2**-5],
    12: [*(2**-i for i in range(1, 9)), *(2 ** -(i / 2) for i in (1, 3, 5, 7))],
}


@pytest.mark.parametrize("num_heads", SLOPES)
def test_alibi_has_the_papers_slopes(num_heads):
    bias = alibi_bias(num_heads, 2)
    torch.testing.assert_close(bias[:, 1, 0], -torch.tensor(SLOPES[num_heads], dtype=torch.float32), rtol=0, atol=0)


@pytest.mark.parametrize("lengths", [(1, None), (4, None), (4, 4), (1, 6), (3, 5)])
def test_alibi_is_the_slope_times_the_distance_with_the_last_query_at_the_last_key(lengths):
    queries, keys = lengths[0], lengths[1] or lengths[0]
    expected = torch.empty(6, queries, keys)
    for head, slope in enumerate(SLOPES[6]):
        for i in range(queries):
            for j in range(keys):
                expected[head, i, j] = -slope * abs(i + keys - queries - j)
    exactly(alibi_bias(6, *lengths), expected)


def test_alibi_is_made_where_it_is_asked_for():
    assert alibi_bias(2, 3, device="meta").is_meta
    assert alibi_bias(2, 3).device.type == "cpu"


@pytest.mark.unhooked
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    "module", [RotaryEmbedding(8), SinusoidalPositionalEncoding(9, 8), LearnedPositionalEmbedding(9, 8)], ids=repr
)
def test_positions_compile_to_one_graph_that_computes_the_same(module):
    x = randn(2, 3, 5, 8) if isinstance(module, RotaryEmbedding) else randn(2, 5, 8)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    upstream = torch.randn_like(x)
    for offset in (0, 4):
        actual, expected = compiled(x, offset), module(x, offset)
        close(actual, expected)
        close(torch.autograd.grad(actual, x, upstream), torch.autograd.grad(expected, x, upstream))
