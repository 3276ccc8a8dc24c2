"""Attention: boolean masks, scaled dot-product attention, multi-head attention.

Masks are bool tensors in which ``True`` means *may attend*, broadcastable to ``(batch, heads, query, key)``
and combined with ``&``. A query that may attend nowhere gets zeros, never NaN.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class AttentionOutput(NamedTuple):
    """What attention returns.

    Attributes:
        output: The mixed values, ``(..., query, d)``.
        weights: The attention weights, ``(..., query, key)``; ``None`` on the fused path, which never forms them.
    """

    output: Tensor
    weights: Tensor | None


def padding_mask(input_ids: Int[Tensor, "batch length"], pad_id: int = 0) -> Bool[Tensor, "batch 1 1 length"]:
    """Let every query attend to the keys that are not padding.

    Args:
        input_ids: Token ids, ``(batch, length)``.
        pad_id: The id that marks padding.

    Returns:
        A mask of shape ``(batch, 1, 1, length)``, ``True`` where a token stands.

    Example:
        >>> padding_mask(torch.tensor([[7, 4, 0]])).tolist()
        [[[[True, True, False]]]]
    """
    return (input_ids != pad_id)[:, None, None, :]


def causal_mask(length: int) -> Bool[Tensor, "query key"]:
    """Let position i attend to the positions 0 to i (Vaswani et al., 2017, section 3.2.3).

    Args:
        length: The number of positions, of queries and of keys alike.

    Returns:
        A lower triangular mask of shape ``(length, length)``.

    Example:
        >>> causal_mask(3).int().tolist()
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    return torch.ones(length, length, dtype=torch.bool).tril()


def scaled_dot_product_attention(
    query: Float[Tensor, "*batch query d_k"],
    key: Float[Tensor, "*batch key d_k"],
    value: Float[Tensor, "*batch key d_v"],
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    dropout_p: float = 0.0,
) -> AttentionOutput:
    r"""Attend explicitly, weights and all: ``softmax(query @ key.T / sqrt(d_k) + bias) @ value``.

    Equation (1) of Vaswani et al., 2017. The score matrix is formed, so memory grows with ``query * key``;
    `MultiHeadAttention` takes PyTorch's fused kernel instead where the weights are not asked for.

    Args:
        query: ``(..., query, d_k)``.
        key: ``(..., key, d_k)``.
        value: ``(..., key, d_v)``.
        mask: Bool, broadcastable to ``(..., query, key)``; ``True`` = may attend.
        bias: Added to the scaled scores, broadcastable to ``(..., query, key)``.
        dropout_p: The probability with which a weight is set to zero; the others are scaled by ``1 / (1 - p)``.

    Returns:
        The output ``(..., query, d_v)`` and the weights ``(..., query, key)``, dropout included. Each row of
        weights sums to 1, or to 0 where the query may attend nowhere.

    Raises:
        TypeError: If ``mask`` is not bool, or ``bias`` not floating.
        ValueError: If a shape does not fit.

    Example:
        >>> query = key = torch.eye(2)[None]
        >>> scaled_dot_product_attention(query, key, torch.eye(2)[None], mask=causal_mask(2)).weights[0, 0]
        tensor([1., 0.])
    """
    _check_attention_inputs(query, key, value, mask, bias)
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    nowhere = scores.isneginf().all(dim=-1, keepdim=True)
    weights = scores.masked_fill(nowhere, 0.0).softmax(dim=-1).masked_fill(nowhere, 0.0)
    weights = F.dropout(weights, dropout_p)
    return AttentionOutput(weights @ value, weights)


class MultiHeadAttention(nn.Module):
    r"""Attention in ``num_heads`` subspaces at once: ``concat(head_1 ... head_h) @ W_O`` (section 3.2.2).

    Each head projects queries, keys and values to ``d_model / num_heads`` dimensions and attends there. The three
    projections stand one under the other in ``in_proj``, so that self-attention makes them with one product.

    Args:
        d_model: Width of the inputs and of the output.
        num_heads: Number of heads; it must divide ``d_model``.
        dropout: Dropout probability of the attention weights, in training only.
        bias: Whether the projections add a bias.

    Raises:
        ValueError: If ``num_heads`` does not divide ``d_model``.

    Example:
        >>> attention = MultiHeadAttention(d_model=16, num_heads=2)
        >>> attention(torch.zeros(1, 3, 16), mask=causal_mask(3), need_weights=True).weights[0, 0, 1]
        tensor([0.5000, 0.5000, 0.0000], grad_fn=<SelectBackward0>)
    """

    def __init__(self, d_model: int, num_heads: int, *, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        if num_heads < 1 or d_model % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide d_model={d_model}; choose one that does")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout={dropout} is not a probability; choose 0 <= dropout < 1")
        self.d_model = d_model
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)
        for weight in (*self.in_proj.weight.chunk(3), self.out_proj.weight):
            nn.init.xavier_uniform_(weight)
        if bias:
            nn.init.zeros_(self.in_proj.bias)
            nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Float[Tensor, "batch query d_model"],
        key: Float[Tensor, "batch key d_model"] | None = None,
        value: Float[Tensor, "batch key d_model"] | None = None,
        mask: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        need_weights: bool = False,
    ) -> AttentionOutput:
        """Attend from ``query`` to ``key`` and ``value``.

        Args:
            query: ``(batch, query, d_model)``.
            key: ``(batch, key, d_model)``; left out, it is ``query`` (self-attention).
            value: ``(batch, key, d_model)``; left out, it is ``key``.
            mask: Bool, broadcastable to ``(batch, heads, query, key)``; ``True`` = may attend.
            bias: Added to the scaled scores, broadcastable to ``(batch, heads, query, key)``.
            need_weights: Take the explicit path, which returns the weights.

        Returns:
            The output ``(batch, query, d_model)``, and the weights ``(batch, heads, query, key)`` where
            ``need_weights``, else ``None``.

        Raises:
            TypeError: If ``mask`` is not bool, or ``bias`` not floating.
            ValueError: If a shape does not fit, or ``value`` is given without ``key``.
        """
        q, k, v = (self._split_heads(x) for x in self._project(query, key, value))
        dropout_p = self.dropout if self.training else 0.0
        if need_weights:
            heads, weights = scaled_dot_product_attention(q, k, v, mask, bias=bias, dropout_p=dropout_p)
        else:
            heads, weights = _fused_attention(q, k, v, mask, bias, dropout_p), None
        return AttentionOutput(self.out_proj(heads.transpose(1, 2).flatten(2)), weights)

    def _project(self, query: Tensor, key: Tensor | None, value: Tensor | None) -> tuple[Tensor, ...]:
        if key is None and value is not None:
            raise ValueError("value is given without key; give both, or neither for self-attention")
        for name, x in (("query", query), ("key", key), ("value", value)):
            if x is not None and (x.dim() != 3 or x.size(-1) != self.d_model):
                raise ValueError(f"{name} has shape {tuple(x.shape)}; expected (batch, length, d_model={self.d_model})")
        if key is None:
            return self.in_proj(query).chunk(3, dim=-1)
        value = key if value is None else value
        biases = self.in_proj.bias.chunk(3) if self.in_proj.bias is not None else (None, None, None)
        inputs_and_parameters = zip((query, key, value), self.in_proj.weight.chunk(3), biases, strict=True)
        return tuple(F.linear(x, weight, bias) for x, weight, bias in inputs_and_parameters)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (b, n, d) -> (b, h, n, d / h)

    @classmethod
    def from_torch(cls, module: nn.MultiheadAttention) -> "MultiHeadAttention":
        """Take over the weights and settings of a ``torch.nn.MultiheadAttention``.

        Its masks mean the opposite: ``True`` there is *may not attend*. Ours is batch first whatever its
        ``batch_first`` says.

        Args:
            module: The module to copy; it is left as it was.

        Returns:
            A module that computes the same, on the same device, in the same dtype and mode.

        Raises:
            ValueError: If ``module`` has ``kdim``, ``vdim``, ``add_bias_kv`` or ``add_zero_attn`` set.
        """
        if module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn:
            raise ValueError("from_torch takes a MultiheadAttention without kdim, vdim, add_bias_kv and add_zero_attn")
        bias = module.in_proj_bias is not None
        attention = cls(module.embed_dim, module.num_heads, dropout=module.dropout, bias=bias)
        attention.to(module.in_proj_weight).train(module.training)
        with torch.no_grad():
            attention.in_proj.weight.copy_(module.in_proj_weight)
            attention.out_proj.weight.copy_(module.out_proj.weight)
            if bias:
                attention.in_proj.bias.copy_(module.in_proj_bias)
                attention.out_proj.bias.copy_(module.out_proj.bias)
        return attention


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None, dropout_p: float
) -> Tensor:
    _check_attention_inputs(query, key, value, mask, bias)
    if bias is not None:
        bias = bias.to(query.dtype)
        mask = bias if mask is None else bias.masked_fill(~mask, -math.inf)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p)


def _check_attention_inputs(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None
) -> None:
    if query.size(-1) != key.size(-1):
        raise ValueError(f"key has width {key.size(-1)}; expected the query's width {query.size(-1)}")
    if key.size(-2) != value.size(-2):
        raise ValueError(f"value has length {value.size(-2)}; expected the key's length {key.size(-2)}")
    batch = query.shape[:-2]
    for name, x in (("key", key), ("value", value)):
        if x.shape[:-2] != batch:
            raise ValueError(f"{name} has batch dimensions {tuple(x.shape[:-2])}; expected the query's {tuple(batch)}")
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}; expected torch.bool, True where a query may attend")
    if bias is not None and not bias.is_floating_point():
        raise TypeError(f"bias has dtype {bias.dtype}; expected a floating one, added to the scores")
    scores_shape = torch.Size((*query.shape[:-1], key.size(-2)))
    for name, x in (("mask", mask), ("bias", bias)):
        if x is not None and not _broadcasts(x.shape, scores_shape):
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; expected one that broadcasts to {tuple(scores_shape)}"
            )


def _broadcasts(shape: torch.Size, target: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, target) == target
    except RuntimeError:
        return False
