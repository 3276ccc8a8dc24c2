"""What the checks share: inputs, the call of a reader's function, and the comparison that names a mistake."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Draw float64 tensors, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def call(f: Callable[..., Any], *args: Any) -> Any:
    """Call a reader's function with copies."""
    result = f(*(arg.clone() if isinstance(arg, Tensor) else arg for arg in args))
    if result is None:
        raise AssertionError("f returned None: it has no return yet.")
    return result


def as_pair(result: object, names: str) -> tuple[object, object]:
    """Take a pair apart."""
    if not isinstance(result, tuple | list) or len(result) != 2:
        many = f" of {len(result)}" if isinstance(result, tuple | list) else ""
        raise AssertionError(f"f returned type {type(result).__name__}{many}; expected a pair, {names}.")
    return result[0], result[1]


def as_number(result: object, kind: type) -> Tensor:
    """Make a tensor of a number, such as `compare` takes; an int does for a float."""
    if isinstance(result, Tensor | np.generic) and result.ndim == 0:
        result = result.item()
    if not isinstance(result, kind | int):
        raise AssertionError(f"f returned type {type(result).__name__}; expected a number, {kind.__name__}.")
    return torch.tensor(result, dtype=torch.float64 if kind is float else torch.int64)


def without_leading_ones(got: Any, dim: int) -> Any:
    """Drop leading axes of size 1, until ``dim`` axes are left."""
    if isinstance(got, Tensor) and got.dim() > dim and got.shape[:-dim].numel() == 1:
        return got.reshape(got.shape[-dim:])
    return got


def broadcast(got: Any, like: Tensor) -> Any:
    """Expand ``(batch, 1, 1, key)`` or the like; what lacks an axis stays as it is, since it might fit by chance."""
    if not isinstance(got, Tensor) or got.dim() != like.dim():
        return got
    fits = all(size in (1, wanted) for size, wanted in zip(got.shape, like.shape, strict=True))
    return got.expand(like.shape) if fits else got


def is_same(got: object, wanted: Tensor, atol: float) -> bool:
    """Say whether a result has this shape and these values, NaN equal to NaN."""
    return (
        isinstance(got, Tensor)
        and got.shape == wanted.shape
        and torch.allclose(got.detach().cpu().double(), wanted.double(), rtol=0, atol=atol, equal_nan=True)
    )


def compare(
    what: str,
    got: object,
    expected: Tensor,
    mistakes: Mapping[str, Tensor],
    atol: float = 1e-9,
    any_float: bool = False,
) -> None:
    """Raise the sentence of the mistake that ``got`` shows, or else one that says how it differs from ``expected``.

    Args:
        what: The name of the result.
        got: What f returned.
        expected: What it is to return.
        mistakes: What each usual mistake returns in its place, under the sentence that names it.
        atol: How far from ``expected`` a value may be; a mistake is recognised within 1e-3.
        any_float: Whether another floating dtype than that of ``expected`` is right too.
    """
    fits = isinstance(got, Tensor) and (got.dtype == expected.dtype or (any_float and got.is_floating_point()))
    if fits and is_same(got, expected, atol):
        return
    for sentence, wrong in mistakes.items():
        if is_same(got, wrong, 1e-3):
            raise AssertionError(sentence)
    shape = tuple(expected.shape)
    if not isinstance(got, Tensor):
        came = "None" if got is None else f"type {type(got).__name__}"
        raise AssertionError(f"f returned {came} for the {what}; expected a tensor of shape {shape}.")
    if got.shape != expected.shape:
        raise AssertionError(f"f returned shape {tuple(got.shape)} for the {what}; expected {shape}.")
    if not fits:
        raise AssertionError(f"f returned {got.dtype} for the {what}; expected {expected.dtype}.")
    came, wanted = got.detach().cpu().double(), expected.double()
    index = tuple((~torch.isclose(came, wanted, rtol=0, atol=atol)).nonzero()[0].tolist())
    where = f" at {list(index)}, the first entry that differs" if index else ""
    came, wanted = came[index].item(), wanted[index].item()
    digits = 4 if f"{came:.4g}" != f"{wanted:.4g}" else 12
    raise AssertionError(f"f returned {came:.{digits}g} for the {what}{where}; expected {wanted:.{digits}g}.")
