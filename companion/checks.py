"""What the modules say of an input that does not fit: the argument, what came, what was expected."""

import torch
from torch import Tensor, nn


def printable(text: str) -> str:
    r"""Write signs without a shape, such as a line break or what turns a terminal's colours, as Python does.

    Example:
        >>> print(printable("a film\x1b[2J"))
        a film\x1b[2J
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def check_sequence(name: str, x: Tensor, d_model: int) -> None:
    """Ask for the shape ``(batch, length, d_model)``.

    Raises:
        ValueError: If ``x`` has another.
    """
    if x.dim() != 3 or x.size(-1) != d_model:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected (batch, length, d_model={d_model})")


def check_like(name: str, x: Tensor, other: Tensor, owner: str) -> None:
    """Ask for the device and the dtype of ``other``; under autocast those that it casts will do too.

    Raises:
        TypeError: If the dtype is another.
        ValueError: If the device is.
    """
    check_device(name, x, other, owner)
    if x.dtype != other.dtype and not _is_cast(x):
        raise TypeError(f"{name} has dtype {x.dtype}; expected {other.dtype}, the {owner}'s")


def check_like_weights(name: str, x: Tensor, module: nn.Module) -> None:
    """Ask for the device and the dtype of the weights that a module has itself, as `check_like` does.

    Raises:
        TypeError: If the dtype is another.
        ValueError: If the device is.
    """
    weights = next(
        weights for weights in module._parameters.values() if weights is not None
    )  # quicker than parameters()
    check_like(name, x, weights, "module")


def _is_cast(x: Tensor) -> bool:
    """Tell whether autocast, which knows no meta device, casts what comes in."""
    device = x.device.type
    cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return cast and x.dtype in (torch.float32, torch.bfloat16, torch.float16)


def check_floating(name: str, x: Tensor) -> None:
    """Ask for a floating dtype.

    Raises:
        TypeError: If ``x`` has another.
    """
    if not x.is_floating_point():
        raise TypeError(f"{name} has dtype {x.dtype}; expected a floating one")


def check_device(name: str, x: Tensor, other: Tensor, owner: str) -> None:
    """Ask for the device of ``other``.

    Raises:
        ValueError: If ``x`` is on another.
    """
    if x.device != other.device:
        raise ValueError(f"{name} is on {x.device}; expected {other.device}, the {owner}'s")


def check_mask(mask: Tensor, name: str = "mask", meaning: str = "a query may attend") -> None:
    """Ask for a bool mask; the message says what ``True`` means.

    Raises:
        TypeError: If its dtype is another.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} has dtype {mask.dtype}; expected torch.bool, True where {meaning}")


def check_broadcasts(name: str, x: Tensor, shape: tuple[int, ...], remark: str = "") -> None:
    """Ask for a shape that broadcasts to ``shape``; the message ends in the remark.

    Raises:
        ValueError: If it does not.
    """
    pairs = zip(reversed(x.shape), reversed(shape), strict=False)
    if x.dim() > len(shape) or any(size not in (1, expected) for size, expected in pairs):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected one that broadcasts to {shape}{remark}")


def check_window(window: int) -> None:
    """Ask for a window of one position or more.

    Raises:
        ValueError: If it has fewer.
    """
    if window < 1:
        raise ValueError(f"window={window}; choose 1 or more, for each position sees itself")


def check_ids(name: str, ids: Tensor, table: Tensor, max_length: int, field: str = "max_length") -> None:
    """Ask for integer ids of shape ``(batch, length)``, no longer than the field says, on the device of ``table``.

    Raises:
        TypeError: If the dtype is no integer one.
        ValueError: If the shape or the device is another, or the length too large.
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} has dtype {ids.dtype}; expected torch.int64, token ids")
    if ids.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(ids.shape)}; expected (batch, length)")
    if ids.size(1) > max_length:
        raise ValueError(f"{name} has length {ids.size(1)}; expected at most {field}={max_length}")
    check_device(name, ids, table, "embedding")
