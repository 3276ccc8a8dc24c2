"""Efficient attention: forms that need not compare every query with every key, so that cost grows linearly with length.

The name is that of the survey by Tay et al., 2020 (arXiv:2009.06732). The modules are a `companion.MultiHeadAttention`
in all but how a head attends: their weights have the same names and shapes, so that a state dict of one loads into
another, and either may take the place of an encoder layer's ``attention``.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion.attention import AttentionOutput, MultiHeadAttention
from companion.cache import KeyValueCache
from companion.checks import check_broadcasts, check_device, check_floating, check_like, check_mask, check_window


def linear_attention(
    query: Float[Tensor, "batch heads query d_k"],
    key: Float[Tensor, "batch heads key d_k"],
    value: Float[Tensor, "batch heads key d_v"],
    mask: Tensor | None = None,
) -> Float[Tensor, "batch heads query d_v"]:
    r"""Attend with the weights ``phi(q_i) . phi(k_j) / sum_j phi(q_i) . phi(k_j)``, where ``phi(x) = elu(x) + 1``.

    Katharopoulos et al., 2020 (arXiv:2006.16236). No softmax stands between the two products, so that
    ``phi(K)^T V`` is formed first: ``d_k`` by ``d_v`` a head, whatever the length. Time and memory grow with the number
    of queries and of keys, not with their product. It is another function than softmax attention, not a faster way
    to the same one.

    Args:
        query: ``(batch, heads, query, d_k)``.
        key: ``(batch, heads, key, d_k)``.
        value: ``(batch, heads, key, d_v)``.
        mask: Bool, the same for every query: broadcastable to ``(batch, heads, 1, key)``; ``True`` = may attend.

    Returns:
        ``(batch, heads, query, d_v)``; zeros where no key may be attended to.

    Raises:
        TypeError: If ``mask`` is not bool, another input not floating, or ``key`` or ``value`` of another dtype than
            ``query``.
        ValueError: If a shape or a device does not fit.

    Example:
        >>> query, key, value = torch.randn(3, 1, 2, 5, 4)
        >>> weights = (F.elu(query) + 1) @ (F.elu(key) + 1).mT  # what it never forms
        >>> expected = weights / weights.sum(dim=-1, keepdim=True) @ value
        >>> torch.allclose(linear_attention(query, key, value), expected, atol=1e-5)
        True
    """
    _check_queries_keys_values(query, key, value)
    query, key = _features(query), _features(key)
    if mask is not None:
        _check_mask(mask, query, (*query.shape[:2], 1, key.size(-2)))
        key = key.masked_fill(~torch.atleast_2d(mask).mT, 0.0)
    key_sum = key.sum(dim=-2).unsqueeze(-1)  # (b, h, d_k, 1)
    normaliser = query @ key_sum  # (b, h, q, 1)
    return query @ (key.mT @ value) / normaliser.masked_fill(normaliser == 0, 1.0)


def sliding_window_attention(
    query: Float[Tensor, "batch heads length d_k"],
    key: Float[Tensor, "batch heads length d_k"],
    value: Float[Tensor, "batch heads length d_v"],
    window: int,
    mask: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
) -> Float[Tensor, "batch heads length d_v"]:
    """Attend to the positions at a distance below ``window``, and compute ``3 * window`` scores a query to do so.

    The local attention of Longformer (Beltagy et al., 2020, arXiv:2004.05150), whose window counts both sides where
    this one counts one, the position included: what full attention gives under a `sliding_window_mask`. The sequence is
    cut into blocks of ``window`` positions, and each block attends to itself and to the blocks on either side, so that
    time and memory grow with ``length * window``.

    Args:
        query: ``(batch, heads, length, d_k)``.
        key: ``(batch, heads, length, d_k)``.
        value: ``(batch, heads, length, d_v)``.
        window: How far it reaches, the position itself included; 1 or more.
        mask: Bool, the same for every query and head: broadcastable to ``(batch, 1, 1, length)``; ``True`` = may
            attend.
        dropout_p: The probability with which a weight is set to zero; the others are scaled by ``1 / (1 - p)``.

    Returns:
        ``(batch, heads, length, d_v)``; zeros where no key may be attended to.

    Raises:
        TypeError: If ``mask`` is not bool, another input not floating, or ``key`` or ``value`` of another dtype than
            ``query``.
        ValueError: If ``window`` is not positive, or a shape or a device does not fit.

    Example:
        >>> query, key, value = torch.randn(3, 1, 2, 50, 4)
        >>> full = scaled_dot_product_attention(query, key, value, sliding_window_mask(50, 8)).output
        >>> torch.allclose(sliding_window_attention(query, key, value, 8), full, atol=1e-6)
        True
    """
    check_window(window)
    _check_queries_keys_values(query, key, value)
    batch, _, length, _ = query.shape
    if key.size(-2) != length:
        raise ValueError(f"key has length {key.size(-2)}; expected {length}, the query's")
    may_attend = torch.ones(batch, 1, length, 1, dtype=torch.bool, device=query.device)
    if mask is not None:
        _check_mask(mask, query, (batch, 1, 1, length))
        may_attend = may_attend & torch.atleast_2d(mask).mT
    block = min(window, max(length, 1))
    position = torch.arange(3 * block, device=query.device)
    near = (position[block : 2 * block, None] - position).abs() < window  # (q, k), the same for every block
    query = _cut(query, block)  # (b, blocks, h, q, d_k)
    key, value, may_attend = (_add_neighbours(_cut(x, block)) for x in (key, value, may_attend))
    q, k, v, near = (x.flatten(0, 1) for x in (query, key, value, near & may_attend.mT))
    output = F.scaled_dot_product_attention(q, k, v, near, dropout_p)
    return output.unflatten(0, query.shape[:2]).transpose(1, 2).flatten(2, 3)[:, :, :length]


class _EfficientAttention(MultiHeadAttention):
    """Self-attention whose heads attend by another function of queries, keys, values and a mask of keys."""

    def forward(
        self,
        query: Float[Tensor, "batch query d_model"],
        key: Float[Tensor, "batch key d_model"] | None = None,
        value: Float[Tensor, "batch key d_model"] | None = None,
        mask: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        cache: KeyValueCache | None = None,
        lengths: Sequence[int] | None = None,
        need_weights: bool = False,
    ) -> AttentionOutput:
        """Attend from each position of ``query`` to the others.

        Args:
            query: ``(batch, length, d_model)``.
            key: Left out, or the same tensor.
            value: Left out, or the same tensor.
            mask: Bool, the same for every query: broadcastable to ``(batch, 1, 1, length)``; ``True`` = may attend.
            bias: Left out: there is no matrix of scores to add it to.
            cache: Left out.
            lengths: Those of packed sequences, as in `MultiHeadAttention`; ``mask`` is then the longest one's.
            need_weights: Left ``False``: there is no matrix of weights to return.

        Returns:
            The output ``(batch, length, d_model)``, and ``None`` for the weights.

        Raises:
            TypeError: If ``mask`` is not bool, or ``query`` of another dtype than the module.
            ValueError: If a shape or a device does not fit, or an argument is given that is to be left out.
        """
        for name, x in (("key", key), ("value", value)):
            if x is not None and x is not query:
                raise ValueError(f"{name} is given to {type(self).__name__}, which is self-attention; leave it out")
        for name, given in (("bias", bias is not None), ("cache", cache is not None), ("need_weights", need_weights)):
            if given:
                raise ValueError(f"{name} is given to {type(self).__name__}, which has no use for it; leave it out")
        return super().forward(query, mask=mask, lengths=lengths)


class LinearAttention(_EfficientAttention):
    """Multi-head self-attention by `linear_attention`, at a cost linear in the length.

    Args:
        d_model: Width of the input and of the output.
        num_heads: Number of heads.
        head_dim: Width of a head; ``None`` = ``d_model / num_heads``.
        bias: Whether the projections add a bias.

    Raises:
        ValueError: If ``num_heads`` does not divide ``d_model`` and no ``head_dim`` is given.

    Example:
        >>> layer = EncoderLayer(d_model=16, num_heads=2, d_ff=32)
        >>> linear = LinearAttention(d_model=16, num_heads=2)
        >>> linear.load_state_dict(layer.attention.state_dict())
        <All keys matched successfully>
        >>> layer.attention = linear
        >>> layer(torch.randn(1, 5, 16)).shape
        torch.Size([1, 5, 16])
    """

    def __init__(self, d_model: int, num_heads: int, *, head_dim: int | None = None, bias: bool = True) -> None:
        super().__init__(d_model, num_heads, head_dim=head_dim, bias=bias)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None) -> Tensor:
        return linear_attention(q, k, v, mask)


class SlidingWindowAttention(_EfficientAttention):
    """Multi-head self-attention by `sliding_window_attention`: each position sees those at a distance below ``window``.

    A stack of ``num_layers`` layers reaches ``num_layers * (window - 1)`` positions to either side.

    Args:
        d_model: Width of the input and of the output.
        num_heads: Number of heads.
        window: How far it reaches, the position itself included; 1 or more.
        head_dim: Width of a head; ``None`` = ``d_model / num_heads``.
        dropout: Dropout probability of the attention weights, in training only.
        bias: Whether the projections add a bias.
        rotary: As in `MultiHeadAttention`.

    Raises:
        ValueError: If ``window`` is not positive, if ``num_heads`` does not divide ``d_model`` and no ``head_dim`` is
            given, or if ``dropout`` is no probability.

    Example:
        >>> full, x = MultiHeadAttention(d_model=16, num_heads=2), torch.randn(1, 50, 16)
        >>> local = SlidingWindowAttention(d_model=16, num_heads=2, window=8)
        >>> local.load_state_dict(full.state_dict())
        <All keys matched successfully>
        >>> torch.allclose(local(x).output, full(x, mask=sliding_window_mask(50, 8)).output, atol=1e-6)
        True
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        window: int,
        *,
        head_dim: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        rotary: nn.Module | None = None,
    ) -> None:
        check_window(window)
        super().__init__(d_model, num_heads, head_dim=head_dim, dropout=dropout, bias=bias, rotary=rotary)
        self.window = window

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None) -> Tensor:
        dropout_p = self.dropout if self.training else 0.0
        return sliding_window_attention(q, k, v, self.window, mask, dropout_p=dropout_p)


def _features(x: Tensor) -> Tensor:
    """Return ``elu(x) + 1``, without what the sum would cancel of a small one."""
    return x.clamp(max=0).exp() + x.relu()


def _cut(x: Tensor, block: int) -> Tensor:
    """Cut ``(b, h, n, d)`` into ``(b, blocks, h, block, d)``, the last block filled up with zeros."""
    missing = -x.size(2) % block
    return F.pad(x, (0, 0, 0, missing)).unflatten(2, (-1, block)).transpose(1, 2)


def _add_neighbours(blocks: Tensor) -> Tensor:
    """Put each block between the one before and the one after, zeros at the ends: ``(b, blocks, h, 3 * block, d)``."""
    padded = F.pad(blocks, (0, 0, 0, 0, 0, 0, 1, 1))
    return torch.cat((padded[:, :-2], blocks, padded[:, 2:]), dim=3)


def _check_queries_keys_values(query: Tensor, key: Tensor, value: Tensor) -> None:
    check_floating("query", query)
    if query.dim() != 4:
        raise ValueError(f"query has shape {tuple(query.shape)}; expected (batch, heads, length, d_k)")
    batch, heads, _, width = query.shape
    for name, x, expected in (
        ("key", key, (batch, heads, *key.shape[2:3], width)),
        ("value", value, (batch, heads, *key.shape[2:3], *value.shape[3:])),
    ):
        check_like(name, x, query, "query")
        if x.dim() != 4 or tuple(x.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {tuple(expected)}")


def _check_mask(mask: Tensor, query: Tensor, shape: tuple[int, ...]) -> None:
    check_mask(mask)
    check_device("mask", mask, query, "query")
    check_broadcasts("mask", mask, shape, ", the same for every query")
