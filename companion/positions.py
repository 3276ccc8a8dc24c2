"""Positions: what tells an otherwise order-blind attention where each token stands.

Sinusoids and learned vectors are added to the input, rotary embeddings turn queries and keys, and ALiBi biases scores.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.checks import check_device, check_floating, check_sequence


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
    _check_even("d_model", d_model)
    angle = _angles(torch.arange(length, dtype=torch.float64), d_model, 10_000.0)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1).float()


class SinusoidalPositionalEncoding(nn.Module):
    """Add the table of `sinusoidal_encoding` to the input; nothing is learned.

    Args:
        max_length: The longest input, in positions.
        d_model: Width; even.

    Raises:
        ValueError: If ``d_model`` is odd.

    Example:
        >>> SinusoidalPositionalEncoding(max_length=8, d_model=4)(torch.zeros(1, 2, 4))[0, 1]
        tensor([0.8415, 0.5403, 0.0100, 0.9999])
    """

    table: Tensor

    def __init__(self, max_length: int, d_model: int) -> None:
        super().__init__()
        self.register_buffer("table", sinusoidal_encoding(max_length, d_model), persistent=False)

    def forward(
        self, x: Float[Tensor, "batch length d_model"], offset: int = 0
    ) -> Float[Tensor, "batch length d_model"]:
        """Add to each position its row of the table.

        Args:
            x: ``(batch, length, d_model)``.
            offset: The position of the first one, such as the length of a key-value cache.

        Returns:
            A tensor of the same shape and dtype.

        Raises:
            ValueError: If a position is past ``max_length``, the width or the device another.
        """
        return x + _rows(self.table, x, offset).to(x.dtype)


class LearnedPositionalEmbedding(nn.Module):
    """Add a learned vector for each position (Vaswani et al., 2017, table 3, row E).

    Args:
        max_length: The longest input, in positions.
        d_model: Width.

    Example:
        >>> positions = LearnedPositionalEmbedding(max_length=8, d_model=4)
        >>> x = torch.randn(1, 1, 4)
        >>> torch.equal(positions(x, offset=7), x + positions.table[7])
        True
    """

    def __init__(self, max_length: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(max_length, d_model))
        nn.init.normal_(self.table, std=0.02)

    def forward(
        self, x: Float[Tensor, "batch length d_model"], offset: int = 0
    ) -> Float[Tensor, "batch length d_model"]:
        """Add to each position its learned vector.

        Args:
            x: ``(batch, length, d_model)``.
            offset: The position of the first one, such as the length of a key-value cache.

        Returns:
            A tensor of the same shape.

        Raises:
            ValueError: If a position is past ``max_length``, the width or the device another.
        """
        return x + _rows(self.table, x, offset)


class RotaryEmbedding(nn.Module):
    r"""Turn each pair of features by an angle that grows with the position (RoPE, Su et al., 2021, arXiv:2104.09864).

    Equations (14), (15) and (34): features ``2i`` and ``2i + 1`` of position ``m`` are turned, as a point of the
    plane, by ``m / base^(2i / head_dim)``. A rotation keeps norms, and the product of a query turned by ``m`` with a
    key turned by ``n`` depends on ``m - n`` alone. Nothing is learned.

    Args:
        head_dim: Width of a head; even.
        base: The wavelengths run from 2 pi towards ``base`` times 2 pi.

    Raises:
        ValueError: If ``head_dim`` is odd, or ``base`` not positive.

    Example:
        >>> rotary = RotaryEmbedding(head_dim=2)
        >>> rotary(torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]]))  # turned by 0 and by 1 radian
        tensor([[[[1.0000, 0.0000],
                  [0.5403, 0.8415]]]])
    """

    def __init__(self, head_dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        _check_even("head_dim", head_dim)
        if base <= 0:
            raise ValueError(f"base={base}; choose a positive one")
        self.head_dim = head_dim
        self.base = base

    def forward(
        self, x: Float[Tensor, "batch heads length head_dim"], offset: int = 0
    ) -> Float[Tensor, "batch heads length head_dim"]:
        """Turn queries or keys by their positions.

        Args:
            x: ``(batch, heads, length, head_dim)``.
            offset: The position of the first one, such as the length of a key-value cache.

        Returns:
            A tensor of the same shape and dtype; the angles are computed in float64 (in float32 on devices of Apple,
            which have no other), the rotation in float32 or the dtype of ``x``, whichever is wider.

        Raises:
            TypeError: If ``x`` is not floating.
            ValueError: If its shape does not fit.
        """
        if x.dim() != 4 or x.size(-1) != self.head_dim:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (batch, heads, length, head_dim={self.head_dim})")
        check_floating("x", x)
        exact = torch.float32 if x.device.type == "mps" else torch.float64
        position = torch.arange(offset, offset + x.size(2), dtype=exact, device=x.device)
        angle = _angles(position, self.head_dim, self.base)
        dtype = torch.promote_types(x.dtype, torch.float32)
        cosine, sine = angle.cos().to(dtype), angle.sin().to(dtype)  # (n, d / 2)
        first, second = x[..., ::2], x[..., 1::2]
        turned = torch.stack((first * cosine - second * sine, first * sine + second * cosine), dim=-1)
        return turned.flatten(-2).to(x.dtype)


def alibi_bias(
    num_heads: int,
    query_length: int,
    key_length: int | None = None,
    *,
    device: torch.device | str | None = None,
) -> Float[Tensor, "heads query key"]:
    """Bias scores against distance, by a slope for each head (ALiBi, Press et al., 2022, arXiv:2108.12409, section 3).

    The slopes of ``n`` heads, a power of 2, are ``2^(-8 / n), 2^(-16 / n), ..., 2^-8``. For another number the paper's
    code takes those of the next lower power of 2, and then every other one of twice as many heads, from the first on.
    The paper's decoder never looks ahead; to keys after the query the distance is taken without its sign.

    Args:
        num_heads: Number of heads.
        query_length: Number of queries; the last one stands at the last key.
        key_length: Number of keys; ``None`` = ``query_length``.
        device: Where to make the bias.

    Returns:
        The float32 bias ``-slope * |query - key|``, ``(num_heads, query_length, key_length)``.

    Raises:
        ValueError: If there is no head, or there are fewer keys than queries.

    Example:
        >>> alibi_bias(2, 3)[0]
        tensor([[ 0.0000, -0.0625, -0.1250],
                [-0.0625,  0.0000, -0.0625],
                [-0.1250, -0.0625,  0.0000]])
        >>> alibi_bias(2, 1, key_length=3)[1]  # one more token, with a key-value cache of two
        tensor([[-0.0078, -0.0039,  0.0000]])
    """
    key_length = query_length if key_length is None else key_length
    if num_heads < 1:
        raise ValueError(f"num_heads={num_heads}; choose 1 or more")
    if key_length < query_length:
        raise ValueError(f"key_length={key_length}; expected at least query_length={query_length}")
    key = torch.arange(key_length, device=device)
    query = key[key_length - query_length :]
    distance = (query[:, None] - key).abs()
    slopes = torch.tensor(_alibi_slopes(num_heads), device=device)
    return slopes[:, None, None] * -distance


def _alibi_slopes(num_heads: int) -> list[float]:
    power = 2 ** (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * i / power) for i in range(1, power + 1)]
    return slopes + [2.0 ** (-4 * i / power) for i in range(1, 2 * (num_heads - power), 2)]


def _angles(position: Tensor, width: int, base: float) -> Tensor:
    """Multiply ``(length,)`` positions with the frequencies of ``width / 2`` pairs: ``(length, width / 2)``."""
    exponent = torch.arange(0, width, 2, dtype=position.dtype, device=position.device) / width
    return position[:, None] * base**-exponent


def _check_even(name: str, width: int) -> None:
    if width % 2:
        raise ValueError(f"{name}={width} is odd; sines and cosines come in pairs, so choose an even one")


def _rows(table: Tensor, x: Tensor, offset: int) -> Tensor:
    max_length, d_model = table.shape
    check_sequence("x", x, d_model)
    check_device("x", x, table, "table")
    check_floating("x", x)
    end = offset + x.size(1)
    if offset < 0 or end > max_length:
        after = f" after offset={offset}" if offset else ""
        raise ValueError(f"x has length {x.size(1)}{after}; the position table ends at max_length={max_length}")
    return table[offset:end]
