"""Positions: what tells an otherwise order-blind attention where each token stands."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def sinusoidal_encoding(length: int, d_model: int) -> Float[Tensor, "length d_model"]:
    r"""Tabulate the sinusoids of Vaswani et al., 2017, section 3.5.

    ``PE(pos, 2i) = sin(pos / 10000^(2i / d_model))`` and ``PE(pos, 2i + 1)`` the cosine of the same angle, with
    wavelengths from 2 pi to 10000 * 2 pi.

    Args:
        length: Number of positions.
        d_model: Width; even.

    Returns:
        The float32 table, ``(length, d_model)``; its angles are computed in float64.

    Raises:
        ValueError: If ``d_model`` is odd.

    Example:
        >>> sinusoidal_encoding(2, 4)[1]
        tensor([0.8415, 0.5403, 0.0100, 0.9999])
    """
    if d_model % 2:
        raise ValueError(f"d_model={d_model} is odd; sines and cosines come in pairs, so choose an even one")
    position = torch.arange(length, dtype=torch.float64)[:, None]
    frequency = 10_000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    angle = position * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1).float()


class SinusoidalPositionalEncoding(nn.Module):
    """Add the table of `sinusoidal_encoding` to the input; nothing is learned.

    Args:
        max_length: The longest input, in positions.
        d_model: Width; even.
    """

    table: Tensor

    def __init__(self, max_length: int, d_model: int) -> None:
        super().__init__()
        self.register_buffer("table", sinusoidal_encoding(max_length, d_model), persistent=False)

    def forward(self, x: Float[Tensor, "batch length d_model"]) -> Float[Tensor, "batch length d_model"]:
        """Add to each position its row of the table.

        Args:
            x: ``(batch, length, d_model)``.

        Returns:
            A tensor of the same shape and dtype.

        Raises:
            ValueError: If ``length`` is past ``max_length``, or the width is another.
        """
        return x + _rows(self.table, x).to(x.dtype)


class LearnedPositionalEmbedding(nn.Module):
    """Add a learned vector for each position (Vaswani et al., 2017, table 3, row E).

    Args:
        max_length: The longest input, in positions.
        d_model: Width.
    """

    def __init__(self, max_length: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(max_length, d_model))
        nn.init.normal_(self.table, std=0.02)

    def forward(self, x: Float[Tensor, "batch length d_model"]) -> Float[Tensor, "batch length d_model"]:
        """Add to each position its learned vector.

        Args:
            x: ``(batch, length, d_model)``.

        Returns:
            A tensor of the same shape.

        Raises:
            ValueError: If ``length`` is past ``max_length``, or the width is another.
        """
        return x + _rows(self.table, x)


def _rows(table: Tensor, x: Tensor) -> Tensor:
    max_length, d_model = table.shape
    if x.dim() != 3 or x.size(-1) != d_model:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (batch, length, d_model={d_model})")
    if x.size(1) > max_length:
        raise ValueError(f"x has length {x.size(1)}; the position table ends at max_length={max_length}")
    return table[: x.size(1)]
