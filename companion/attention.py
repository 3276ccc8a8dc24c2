"""Attention: boolean masks, scaled dot-product attention, multi-head attention.

Masks are bool tensors in which ``True`` means *may attend*, broadcastable to ``(batch, heads, query, key)``
and combined with ``&``. A query that may attend nowhere gets zeros, never NaN.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence

from companion.cache import KeyValueCache
from companion.checks import (
    check_broadcasts,
    check_device,
    check_floating,
    check_like,
    check_like_weights,
    check_mask,
    check_sequence,
    check_window,
)
from companion.dropout import draws_quickly, drop
from companion.linear import Linear, linear

GPU_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Without cuDNN's: it plans anew for each shape, which costs 0.1 s on an H100, and batches of texts have many."""

FEWEST_FOR_CUDNN = 1_024
"""Positions from which on cuDNN's kernel is taken all the same, without a mask: it is the fastest of long sequences."""

MOST_BYTES_OF_SCORES = 2**22
"""Where attention is not fused on a CPU, scores formed at a time take so many at most, or are those of one head."""


class AttentionOutput(NamedTuple):
    """What attention returns.

    Attributes:
        output: The mixed values, ``(..., query, d)``.
        weights: The attention weights, ``(..., query, key)``; ``None`` where they are not asked for.

    Example:
        >>> query = key = value = torch.eye(2)[None]
        >>> output, weights = scaled_dot_product_attention(query, key, value)
        >>> torch.equal(output, weights @ value)
        True
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


def causal_mask(length: int, *, device: torch.device | str | None = None) -> Bool[Tensor, "query key"]:
    """Let position i attend to the positions 0 to i (Vaswani et al., 2017, section 3.2.3).

    Args:
        length: The number of positions, of queries and of keys alike.
        device: Where to make the mask.

    Returns:
        A lower triangular mask of shape ``(length, length)``.

    Example:
        >>> causal_mask(3).int().tolist()
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def sliding_window_mask(
    length: int, window: int, *, device: torch.device | str | None = None
) -> Bool[Tensor, "query key"]:
    """Let each position attend to itself and to the ``window - 1`` positions on either side of it.

    This is the local attention of Longformer (Beltagy et al., 2020, arXiv:2004.05150, section 3.1). Joined with
    `causal_mask` by ``&`` it leaves the last ``window`` positions, as in Mistral 7B (Jiang et al., 2023,
    arXiv:2310.06825, section 2).

    Args:
        length: The number of positions, of queries and of keys alike.
        window: How far it reaches, the position itself included; 1 or more.
        device: Where to make the mask.

    Returns:
        A mask of shape ``(length, length)``, ``True`` where ``|query - key| < window``.

    Raises:
        ValueError: If ``window`` is not positive.

    Example:
        >>> sliding_window_mask(4, 2).int().tolist()
        [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
        >>> (sliding_window_mask(4, 2) & causal_mask(4)).int().tolist()
        [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    """
    check_window(window)
    position = torch.arange(length, device=device)
    return (position[:, None] - position).abs() < window


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
    where the weights are not asked for `MultiHeadAttention` takes PyTorch's fused kernel instead or, in some training
    on a CPU, two products.

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
        TypeError: If ``mask`` is not bool, another input not floating, or ``key`` or ``value`` of another dtype than
            ``query``.
        ValueError: If a shape or a device does not fit.

    Example:
        >>> query = key = torch.eye(2)[None]
        >>> scaled_dot_product_attention(query, key, torch.eye(2)[None], mask=causal_mask(2)).weights[0, 0]
        tensor([1., 0.])
    """
    _check_queries_keys_values(query, key, value)
    _check_mask_and_bias(query, key, mask, bias)
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    if mask is None and bias is None:
        weights = scores.softmax(dim=-1)
    else:
        nowhere = scores.isneginf().all(dim=-1, keepdim=True)
        weights = scores.masked_fill(nowhere, 0.0).softmax(dim=-1).masked_fill(nowhere, 0.0)
    weights = F.dropout(weights, dropout_p)
    return AttentionOutput(weights @ value, weights)


class MultiHeadAttention(nn.Module):
    r"""Attention in ``num_heads`` subspaces at once: ``concat(head_1 ... head_h) @ W_O`` (section 3.2.2).

    Each head projects queries, keys and values to ``head_dim`` dimensions and attends there. The three
    projections stand one under the other in ``in_proj``, so that self-attention makes them with one product.

    Args:
        d_model: Width of the inputs and of the output.
        num_heads: Number of heads, of queries.
        head_dim: Width of a head; ``None`` = ``d_model / num_heads``.
        num_kv_heads: Number of heads of keys and values, each shared by ``num_heads / num_kv_heads`` heads of queries
            (grouped-query attention, Ainslie et al., 2023, arXiv:2305.13245); 1 is multi-query attention (Shazeer,
            2019, arXiv:1911.02150); ``None`` = ``num_heads``.
        dropout: Dropout probability of the attention weights, in training only.
        bias: Whether the projections add a bias.
        rotary: What turns the queries and keys of self-attention by their positions, such as a
            `companion.RotaryEmbedding` of ``head_dim``, called with ``(batch, heads, length, head_dim)`` and the number
            of positions in the cache.

    Raises:
        ValueError: If ``num_heads`` does not divide ``d_model`` and no ``head_dim`` is given, if ``num_kv_heads`` does
            not divide ``num_heads``, or if ``dropout`` is no probability.

    Example:
        >>> attention = MultiHeadAttention(d_model=16, num_heads=2)
        >>> attention(torch.zeros(1, 3, 16), mask=causal_mask(3), need_weights=True).weights[0, 0, 1]
        tensor([0.5000, 0.5000, 0.0000], grad_fn=<SelectBackward0>)
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        num_kv_heads: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        rotary: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or (head_dim is None and d_model % num_heads):
            raise ValueError(f"num_heads={num_heads} does not divide d_model={d_model}; choose one that does")
        head_dim = d_model // num_heads if head_dim is None else head_dim
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if head_dim < 1:
            raise ValueError(f"head_dim={head_dim}; choose 1 or more")
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(f"num_kv_heads={num_kv_heads} does not divide num_heads={num_heads}; choose one that does")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout={dropout} is not a probability; choose 0 <= dropout < 1")
        self.d_model = d_model
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.num_kv_heads = num_kv_heads
        self.dropout = dropout
        self.rotary = rotary
        self._heads = (num_heads, num_kv_heads, num_kv_heads)
        widths = [heads * head_dim for heads in self._heads]
        self.in_proj = Linear(d_model, sum(widths), bias=bias)
        self.out_proj = Linear(num_heads * head_dim, d_model, bias=bias)
        for weight in (*self.in_proj.weight.split(widths), self.out_proj.weight):
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
        cache: KeyValueCache | None = None,
        lengths: Sequence[int] | None = None,
        need_weights: bool = False,
    ) -> AttentionOutput:
        """Attend from ``query`` to ``key`` and ``value``.

        Args:
            query: ``(batch, query, d_model)``.
            key: ``(batch, key, d_model)``; left out, or the same tensor, it is ``query`` (self-attention).
            value: ``(batch, key, d_model)``; left out, it is ``key``.
            mask: Bool, broadcastable to ``(batch, heads, query, key)``; ``True`` = may attend.
            bias: Added to the scaled scores, broadcastable to ``(batch, heads, query, key)``.
            cache: Keys and values of earlier calls. Self-attention attends to them and to those of this call, which
                it adds; ``key`` in the shapes above then counts both. Cross-attention projects its memory once.
            lengths: Those of the sequences that ``query`` holds, packed one after the other into a batch of 1. Each
                attends within itself; ``mask`` and ``bias`` are then the longest one's, and others take their corner.
            need_weights: Take the explicit path, which returns the weights.

        Returns:
            The output ``(batch, query, d_model)``, and the weights ``(batch, heads, query, key)`` where
            ``need_weights``, else ``None``.

        Raises:
            TypeError: If ``mask`` is not bool, ``bias`` not floating, or an input of another dtype than the module.
            ValueError: If a shape or a device does not fit, ``value`` is given without ``key``, ``key`` to a module
                with rotary positions, which two sequences do not share, or ``lengths`` beside ``key``, ``cache`` or
                ``need_weights``.
        """
        if lengths is not None:
            self._check("query", query)
            _check_lengths(lengths, query, alone=key is None and cache is None and not need_weights)
        q, k, v = self._project(query, key, value, cache, lengths)
        weights = None
        if need_weights:
            k, v = self._share_heads(k), self._share_heads(v)
            dropout_p = self.dropout if self.training else 0.0
            heads, weights = scaled_dot_product_attention(q, k, v, mask, bias=bias, dropout_p=dropout_p)
        elif lengths is None:
            heads = self._attend(q, k, v, mask, bias)
        else:
            heads = self._attend_packed(q, k, v, mask, bias, list(lengths))
        return AttentionOutput(self.out_proj(heads.transpose(1, 2).flatten(2)), weights)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None) -> Tensor:
        return _fast_attention(q, k, v, mask, bias, self.dropout if self.training else 0.0)

    def _attend_packed(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, lengths: list[int]
    ) -> Tensor:
        """Let each sequence attend within itself, so that no score is computed that a mask would hide."""
        if mask is None and bias is None and _takes_packed(q):
            dropout_p = self.dropout if self.training else 0.0
            return _attend_at_once(q, self._share_heads(k), self._share_heads(v), lengths, dropout_p)
        sequences = zip(lengths, q.split(lengths, dim=2), k.split(lengths, dim=2), v.split(lengths, dim=2), strict=True)
        return torch.cat(
            [self._attend(q, k, v, _corner(mask, length), _corner(bias, length)) for length, q, k, v in sequences],
            dim=2,
        )

    def _project(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        cache: KeyValueCache | None,
        lengths: Sequence[int] | None = None,
    ) -> tuple[Tensor, ...]:
        if key is None and value is not None:
            raise ValueError("value is given without key; give both, or neither for self-attention")
        key = query if key is None else key
        value = key if value is None else value
        self._check("query", query)
        if key is query and value is query:
            return self._project_self(query, cache, lengths)
        for name, x in (("key", key), ("value", value)):
            if x.size(0) != query.size(0):
                raise ValueError(f"{name} has batch {x.size(0)}; expected {query.size(0)}, the query's")
        k, v = self._project_memory(key, value) if cache is None else cache.once(self, key, value, self._project_memory)
        return self._project_rows(query, 0), k, v

    def _check(self, name: str, x: Tensor) -> None:
        check_sequence(name, x, self.d_model)
        check_like_weights(name, x, self.in_proj)

    def _project_self(
        self, x: Tensor, cache: KeyValueCache | None, lengths: Sequence[int] | None
    ) -> tuple[Tensor, ...]:
        q, k, v = self._split_heads(self.in_proj(x)).split(self._heads, dim=1)
        if self.rotary is not None and lengths is not None:
            q, k = (self._turn_packed(part, list(lengths)) for part in (q, k))
        elif self.rotary is not None:
            offset = 0 if cache is None else cache.length_in(self)
            q, k = self.rotary(q, offset), self.rotary(k, offset)
        return (q, k, v) if cache is None else (q, *cache.extend(self, k, v))

    def _turn_packed(self, x: Tensor, lengths: list[int]) -> Tensor:
        """Turn packed queries or keys by their positions in their sequences; a GPU turns all at once, padded."""
        assert self.rotary is not None
        if not x.is_cuda:
            return torch.cat([self.rotary(part, 0) for part in x.split(lengths, dim=2)], dim=2)
        padded = pad_sequence(list(x.squeeze(0).transpose(0, 1).split(lengths)), batch_first=True).transpose(1, 2)
        turned = self.rotary(padded, 0)
        return torch.cat([row[:, :length] for row, length in zip(turned, lengths, strict=True)], dim=1).unsqueeze(0)

    def _project_memory(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.rotary is not None:
            raise ValueError("key is given to an attention with rotary positions; leave it out, or make one without")
        self._check("key", key)
        self._check("value", value)
        if key.size(1) != value.size(1):
            raise ValueError(f"value has length {value.size(1)}; expected {key.size(1)}, the key's")
        return self._project_rows(key, 1), self._project_rows(value, 2)

    def _project_rows(self, x: Tensor, which: int) -> Tensor:
        """Apply one of the three projections that stand in ``in_proj``."""
        start = self.head_dim * sum(self._heads[:which])
        rows = slice(start, start + self.head_dim * self._heads[which])
        bias = None if self.in_proj.bias is None else self.in_proj.bias[rows]
        return self._split_heads(linear(x, self.in_proj.weight[rows], bias))

    def _share_heads(self, x: Tensor) -> Tensor:
        """Repeat each head of keys or values for the heads of queries that share it."""
        return x if self.num_kv_heads == self.num_heads else x.repeat_interleave(self.num_heads // self.num_kv_heads, 1)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (b, n, h * d) -> (b, h, n, d)

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

        Example:
            >>> theirs, x = nn.MultiheadAttention(16, 2, batch_first=True), torch.randn(1, 3, 16)
            >>> ours = MultiHeadAttention.from_torch(theirs)
            >>> torch.allclose(ours(x).output, theirs(x, x, x)[0], atol=1e-6)
            True
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


def _fast_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None, dropout_p: float
) -> Tensor:
    if mask is not None or bias is not None:
        _check_mask_and_bias(query, key, mask, bias)
    if bias is not None:
        bias = bias.to(query.dtype)
        mask = bias if mask is None else bias.masked_fill(~mask, -math.inf)
    if mask is not None:
        mask = torch.atleast_2d(mask)  # the kernel takes no fewer dimensions
    grouped = key.size(1) != query.size(1)
    if not grouped and _is_faster_unfused(query, key, mask, dropout_p):
        return _attend_unfused(query, key, value, mask, dropout_p)
    if _is_faster_in_float32(query, key):
        with torch.autocast("cpu", enabled=False):
            q, k, v = query.float(), key.float(), value.float()
            mask = mask.float() if mask is not None and mask.is_floating_point() else mask
            return F.scaled_dot_product_attention(q, k, v, mask, dropout_p, enable_gqa=grouped).to(query.dtype)
    with _choose_kernels(query, key, mask):
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_p, enable_gqa=grouped)


def _choose_kernels(query: Tensor, key: Tensor, mask: Tensor | None) -> AbstractContextManager[Any]:
    if not query.is_cuda:
        return nullcontext()
    long = mask is None and query.size(-2) == key.size(-2) >= FEWEST_FOR_CUDNN
    if long and query.dtype in (torch.bfloat16, torch.float16) and not torch.compiler.is_compiling():
        return sdpa_kernel([SDPBackend.CUDNN_ATTENTION, *GPU_KERNELS], set_priority=True)
    return sdpa_kernel(GPU_KERNELS)


def _attend_unfused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float) -> Tensor:
    """Attend by two products; the mask is of the kernel's kinds, bool or what is added to the scores.

    A query that may attend nowhere attends to all keys, and gets 0 at the end.
    """
    if mask is None:
        return _attend_by_parts(query, key, value, None, dropout_p)
    bias = query.new_zeros(()).masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else mask
    nowhere = (bias == -math.inf).all(dim=-1, keepdim=True)
    return _attend_by_parts(query, key, value, bias.masked_fill(nowhere, 0.0), dropout_p).masked_fill(nowhere, 0.0)


def _attend_by_parts(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout_p: float) -> Tensor:
    """Attend to few texts or heads at a time, which keeps their scores close to the processor."""
    texts, heads, length, _ = query.shape
    if bias is not None:
        bias = bias.expand(texts, heads, length, key.size(-2))
    size = texts * heads * length * key.size(-2) * query.element_size()
    if texts * heads > 1 and size > MOST_BYTES_OF_SCORES:
        dim = 0 if texts > 1 else 1
        halves = zip(query.chunk(2, dim), key.chunk(2, dim), value.chunk(2, dim), strict=True)
        biases = (None, None) if bias is None else bias.chunk(2, dim)
        parts = [_attend_by_parts(*half, b, dropout_p) for half, b in zip(halves, biases, strict=True)]
        return torch.cat(parts, dim)
    scores = query / math.sqrt(query.size(-1)) @ key.transpose(-2, -1)
    weights = (scores if bias is None else scores + bias).softmax(dim=-1)
    return drop(weights, dropout_p) @ value


def _takes_packed(query: Tensor) -> bool:
    """Tell whether the kernel of `_attend_at_once`, which is for NVIDIA's GPUs, takes this device, dtype and width."""
    on_nvidia = query.is_cuda and torch.version.hip is None
    return on_nvidia and query.dtype != torch.float64 and query.size(-1) % 8 == 0


def _attend_at_once(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], dropout_p: float) -> Tensor:
    """Let packed sequences attend, each within itself, by one call.

    The kernel is that of PyTorch's nested tensors, which spend far longer on the way to it; the public ``varlen_attn``
    takes neither float32 nor dropout.
    """
    starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(query.device, non_blocking=True)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    attend, longest = torch.ops.aten._efficient_attention_forward, max(lengths)
    output, *_ = attend(q, k, v, None, starts, starts, longest, longest, dropout_p, 0, torch.is_grad_enabled())
    return output.transpose(1, 2)


def _corner(x: Tensor | None, length: int) -> Tensor | None:
    """Cut a mask or a bias of the longest sequence to what concerns one of this length."""
    return None if x is None else torch.atleast_2d(x)[..., :length, :length]


def _is_faster_unfused(query: Tensor, key: Tensor, mask: Tensor | None, dropout_p: float) -> bool:
    """Tell whether a CPU is to train by two products, because they beat PyTorch's function there.

    With dropout, for which that function leaves its fused kernel, they always do. Without, they do in bf16 where it is
    neither masked nor biased, up to 2,048 keys: beyond, the weights that the backward pass needs would take more memory
    than the speed is worth. In bf16 they round scores, as the explicit path does; the kernel keeps them in float32.
    """
    if query.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    short = mask is None and query.dtype == torch.bfloat16 and key.size(-2) <= 2_048
    return short or (dropout_p > 0 and draws_quickly(query))


def _is_faster_in_float32(query: Tensor, key: Tensor) -> bool:
    """Tell whether a CPU is to train in bf16 on short sequences, where the kernel's backward pass is slow.

    What is neither masked, biased nor grouped has gone by two products before.
    """
    on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16
    return on_cpu and torch.is_grad_enabled() and key.size(-2) <= 256


def _check_lengths(lengths: Sequence[int], query: Tensor, *, alone: bool) -> None:
    if not alone:
        raise ValueError("lengths are given beside key, cache or need_weights; packed sequences allow none of these")
    if query.size(0) != 1 or sum(lengths) != query.size(1) or not lengths or min(lengths) < 1:
        raise ValueError(
            f"query has shape {tuple(query.shape)}; expected (1, {sum(lengths)}, d_model), packed sequences of the "
            f"lengths {list(lengths)}, each 1 or more"
        )


def _check_queries_keys_values(query: Tensor, key: Tensor, value: Tensor) -> None:
    check_floating("query", query)
    if query.size(-1) != key.size(-1):
        raise ValueError(f"key has width {key.size(-1)}; expected the query's width {query.size(-1)}")
    if key.size(-2) != value.size(-2):
        raise ValueError(f"value has length {value.size(-2)}; expected the key's length {key.size(-2)}")
    batch = query.shape[:-2]
    for name, x in (("key", key), ("value", value)):
        check_like(name, x, query, "query")
        if x.shape[:-2] != batch:
            raise ValueError(f"{name} has batch dimensions {tuple(x.shape[:-2])}; expected the query's {tuple(batch)}")


def _check_mask_and_bias(query: Tensor, key: Tensor, mask: Tensor | None, bias: Tensor | None) -> None:
    if mask is not None:
        check_mask(mask)
    if bias is not None and not bias.is_floating_point():
        raise TypeError(f"bias has dtype {bias.dtype}; expected a floating one, added to the scores")
    scores = (*query.shape[:-1], key.size(-2))
    for name, x in (("mask", mask), ("bias", bias)):
        if x is not None:
            check_device(name, x, query, "query")
            check_broadcasts(name, x, scores)
