import re

import pytest
import torch

from companion.checks import (
    check_broadcasts,
    check_device,
    check_floating,
    check_ids,
    check_like,
    check_mask,
    check_sequence,
    check_window,
)

X = torch.zeros(2, 3, 4)
TABLE = torch.zeros(9, 4)
IDS = torch.ones(2, 3, dtype=torch.long)


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 1, 4), (0, 5, 4)])
def test_a_sequence_of_the_right_width_passes(shape):
    assert check_sequence("x", torch.zeros(shape), 4) is None


@pytest.mark.parametrize("shape", [(4,), (3, 4), (1, 2, 3, 4), (2, 3, 5), (2, 4, 3)])
def test_a_sequence_of_another_shape_is_named_with_what_came_and_was_expected(shape):
    message = re.escape(f"memory has shape {shape}; expected (batch, length, d_model=4)")
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_sequence("memory", torch.zeros(shape), 4)


def test_another_device_is_named():
    assert check_device("mask", X, TABLE, "query") is None
    with pytest.raises(ValueError, match=r"^mask is on meta; expected cpu, the query's$"):
        check_device("mask", X.to("meta"), TABLE, "query")
    with pytest.raises(ValueError, match=r"^x is on meta; expected cpu, the module's$"):
        check_like("x", X.to("meta"), TABLE, "module")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_another_dtype_is_named(dtype):
    with pytest.raises(TypeError, match=f"^x has dtype {dtype}; expected torch.float32, the module's$"):
        check_like("x", X.to(dtype), TABLE, "module")
    assert check_like("x", X.to(dtype), TABLE.to(dtype), "module") is None


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_a_dtype_that_is_not_floating_is_named(dtype):
    assert check_floating("query", X.bfloat16()) is None
    with pytest.raises(TypeError, match=f"^query has dtype {dtype}; expected a floating one$"):
        check_floating("query", X.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_under_autocast_the_dtypes_it_casts_pass_and_no_other(dtype):
    with torch.autocast("cpu", torch.bfloat16):
        assert check_like("x", X.to(dtype), TABLE, "module") is None
        assert torch.nn.Linear(4, 1)(X.to(dtype)).dtype == torch.bfloat16
        for other in (torch.int64, torch.float64):
            with pytest.raises(TypeError, match=f"^x has dtype {other}; expected torch.float32"):
                check_like("x", X.to(other), TABLE, "module")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_ids_of_any_length_up_to_the_longest_pass(dtype):
    assert check_ids("ids", IDS.to(dtype), TABLE, 3) is None
    assert check_ids("ids", IDS[:, :0].to(dtype), TABLE, 3) is None


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (IDS.float(), TypeError, "ids has dtype torch.float32; expected torch.int64, token ids"),
        (IDS.bool(), TypeError, "ids has dtype torch.bool; expected torch.int64, token ids"),
        (IDS[0], ValueError, "ids has shape (3,); expected (batch, length)"),
        (IDS[None], ValueError, "ids has shape (1, 2, 3); expected (batch, length)"),
        (torch.ones(2, 4).long(), ValueError, "ids has length 4; expected at most max_length=3"),
        (IDS.to("meta"), ValueError, "ids is on meta; expected cpu, the embedding's"),
    ],
)
def test_ids_that_do_not_fit_are_named(ids, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        check_ids("ids", ids, TABLE, 3)


def test_tensors_of_shape_alone_pass_and_their_dtype_is_named():
    meta = X.to("meta")
    assert check_like("x", meta, TABLE.to("meta"), "module") is None
    with pytest.raises(TypeError, match=r"^x has dtype torch.float64; expected torch.float32, the module's$"):
        check_like("x", meta.double(), TABLE.to("meta"), "module")


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_a_mask_that_is_not_bool_is_named(dtype):
    assert check_mask(torch.ones(2, dtype=torch.bool)) is None
    with pytest.raises(
        TypeError, match=f"^mask has dtype {dtype}; expected torch.bool, True where a query may attend$"
    ):
        check_mask(torch.ones(2, dtype=dtype))


@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (1, 1, 4), (2, 3, 4)])
def test_a_shape_that_broadcasts_passes(shape):
    assert check_broadcasts("bias", torch.zeros(shape), (2, 3, 4)) is None


def test_a_dimension_of_no_entries_is_a_size_as_any_other():
    assert check_broadcasts("bias", torch.zeros(1, 4), (0, 4)) is None
    with pytest.raises(ValueError, match=r"^bias has shape \(0, 4\); expected one that broadcasts to \(2, 4\)$"):
        check_broadcasts("bias", torch.zeros(0, 4), (2, 4))


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 3, 1, 4), (1, 2, 3, 4), (3, 3, 4)])
def test_a_shape_that_does_not_broadcast_is_named_with_the_remark(shape):
    message = re.escape(f"bias has shape {shape}; expected one that broadcasts to (2, 3, 4), the same for all")
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_broadcasts("bias", torch.zeros(shape), (2, 3, 4), ", the same for all")


def test_a_window_without_a_position_is_named():
    assert check_window(1) is None
    with pytest.raises(ValueError, match=r"^window=0; choose 1 or more, for each position sees itself$"):
        check_window(0)
