"""Layers: those of encoder and decoder, the stacks of them, and both stacks together."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypedDict, TypeVar, Unpack, cast, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion.attention import MultiHeadAttention
from companion.cache import KeyValueCache
from companion.checks import check_like_weights, check_sequence
from companion.dropout import Dropout
from companion.feed_forward import Activation, FeedForward

Norm = Literal["layer_norm", "rms_norm"]

_NORMS: dict[str, type[nn.LayerNorm] | type[nn.RMSNorm]] = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}


class LayerSettings(TypedDict, total=False):
    """What every layer of a stack is built with, beside its widths; `EncoderLayer` says what each means.

    Example:
        >>> from companion.layers import LayerSettings
        >>> settings: LayerSettings = {"norm_first": True, "activation": "swiglu"}
        >>> len(Encoder(2, 16, 2, 32, **settings).layers)
        2
    """

    dropout: float
    attention_dropout: float | None
    norm_first: bool
    norm: Norm
    activation: Activation
    head_dim: int | None
    num_kv_heads: int | None
    rotary: nn.Module | None


_AnyLayer = TypeVar("_AnyLayer", bound="_Layer")


class _Layer(nn.Module):
    """What encoder and decoder layers have in common: self-attention, a feed-forward network, "add & norm"."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        *,
        dropout: float = 0.0,
        attention_dropout: float | None = None,
        norm_first: bool = False,
        norm: Norm = "layer_norm",
        activation: Activation = "gelu",
        head_dim: int | None = None,
        num_kv_heads: int | None = None,
        rotary: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = MultiHeadAttention(
            d_model,
            num_heads,
            head_dim=head_dim,
            num_kv_heads=num_kv_heads,
            dropout=dropout if attention_dropout is None else attention_dropout,
            rotary=rotary,
        )
        self.attention_norm = _make_norm(norm, d_model)
        self.feed_forward = FeedForward(d_model, d_ff, activation=activation, dropout=dropout)
        self.feed_forward_norm = _make_norm(norm, d_model)
        self.dropout = Dropout(dropout)

    def _check(self, name: str, x: Tensor) -> None:
        check_sequence(name, x, self.attention.d_model)
        check_like_weights(name, x, self.attention_norm)

    def _add_and_norm(self, x: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_first:
            return x + self.dropout(sublayer(norm(x)))
        return norm(x + self.dropout(sublayer(x)))

    @classmethod
    def _copy(
        cls: type[_AnyLayer],
        module: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer,
        feed_forward_norm: nn.Module,
    ) -> _AnyLayer:
        """Take over what the layers of ``torch.nn`` have in common; they name the last norm differently."""
        layer = cls(
            module.self_attn.embed_dim,
            module.self_attn.num_heads,
            module.linear1.out_features,
            dropout=module.dropout.p,
            norm_first=module.norm_first,
            activation=_activation_name(module.activation),
        )
        layer.attention = MultiHeadAttention.from_torch(module.self_attn)
        layer.attention_norm = copy.deepcopy(module.norm1)
        for ours, theirs in ((layer.feed_forward.inner, module.linear1), (layer.feed_forward.outer, module.linear2)):
            ours.weight, ours.bias = copy.deepcopy(theirs.weight), copy.deepcopy(theirs.bias)
        layer.feed_forward_norm = copy.deepcopy(feed_forward_norm)
        return layer.train(module.training)


class EncoderLayer(_Layer):
    """Self-attention and a feed-forward network, each inside a residual connection with normalisation.

    Post-norm, ``x = norm(x + dropout(sublayer(x)))``, is section 3.1 of Vaswani et al., 2017; pre-norm,
    ``x = x + dropout(sublayer(norm(x)))``, is Xiong et al., 2020 (arXiv:2002.04745).

    Args:
        d_model: Width.
        num_heads: Number of attention heads.
        d_ff: Inner width of the feed-forward network.
        dropout: Dropout probability inside the feed-forward network and after each sublayer, as in
            ``torch.nn.TransformerEncoderLayer``.
        attention_dropout: That of the attention weights; ``None`` = as ``dropout``. PyTorch's fused kernel for the
            CPU works only where it is 0.
        norm_first: Pre-norm instead of post-norm.
        norm: ``"layer_norm"``, or ``"rms_norm"`` (Zhang & Sennrich, 2019, arXiv:1910.07467); both are PyTorch's.
        activation: The feed-forward network's, as in `FeedForward`.
        head_dim: As in `MultiHeadAttention`.
        num_kv_heads: As in `MultiHeadAttention`.
        rotary: As in `MultiHeadAttention`; one module may serve every layer.

    Raises:
        ValueError: If a setting is unknown, or a width does not fit.

    Example:
        >>> layer = EncoderLayer(d_model=16, num_heads=2, d_ff=32)
        >>> x, mask = torch.randn(1, 5, 16), torch.tensor([True, True, True, False, False])  # 2 of padding
        >>> torch.allclose(layer(x, mask)[:, :3], layer(x[:, :3]), atol=1e-6)
        True
    """

    def forward(
        self,
        x: Float[Tensor, "batch length d_model"],
        mask: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch length d_model"]:
        """Apply the layer.

        Args:
            x: ``(batch, length, d_model)``.
            mask: Bool, broadcastable to ``(batch, heads, length, length)``; ``True`` = may attend.
            bias: Added to the scaled scores, broadcastable to the same shape.
            lengths: Those of packed sequences, as in `MultiHeadAttention`.

        Returns:
            A tensor of the shape of ``x``.

        Raises:
            TypeError: If ``mask`` is not bool, or ``x`` of another dtype than the module.
            ValueError: If a shape or a device does not fit.
        """
        self._check("x", x)
        options: dict[str, Any] = {"mask": mask, "bias": bias, "lengths": lengths}
        x = self._add_and_norm(x, self.attention_norm, lambda y: self.attention(y, **options).output)
        return self._add_and_norm(x, self.feed_forward_norm, self.feed_forward)

    @classmethod
    def from_torch(cls, module: nn.TransformerEncoderLayer) -> "EncoderLayer":
        """Take over the weights and settings of a ``torch.nn.TransformerEncoderLayer``.

        Args:
            module: The layer to copy; it is left as it was.

        Returns:
            A layer that computes the same, in the same mode.

        Raises:
            ValueError: If its activation is neither ReLU nor GELU.

        Example:
            >>> theirs, x = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), torch.randn(1, 3, 16)
            >>> torch.allclose(EncoderLayer.from_torch(theirs)(x), theirs(x), atol=1e-6)
            True
        """
        return cls._copy(module, module.norm2)


class DecoderLayer(_Layer):
    """Self-attention, attention to a memory, and a feed-forward network (Vaswani et al., 2017, section 3.1).

    It is built as `EncoderLayer` is; ``rotary`` turns its self-attention alone.

    Args:
        d_model: Width, of the memory too.
        num_heads: Number of attention heads.
        d_ff: Inner width of the feed-forward network.
        **settings: As in `EncoderLayer`.

    Raises:
        ValueError: If a setting is unknown, or a width does not fit.

    Example:
        >>> layer, cache = DecoderLayer(d_model=16, num_heads=2, d_ff=32), KeyValueCache()
        >>> x, memory = torch.randn(1, 3, 16), torch.randn(1, 7, 16)
        >>> whole = layer(x, memory, causal_mask(3))
        >>> steps = [layer(token, memory, cache=cache) for token in x.split(1, dim=1)]
        >>> torch.allclose(torch.cat(steps, dim=1), whole, atol=1e-6)
        True
    """

    def __init__(self, d_model: int, num_heads: int, d_ff: int, **settings: Unpack[LayerSettings]) -> None:
        super().__init__(d_model, num_heads, d_ff, **settings)
        self.cross_attention = MultiHeadAttention(
            d_model,
            num_heads,
            head_dim=self.attention.head_dim,
            num_kv_heads=self.attention.num_kv_heads,
            dropout=self.attention.dropout,
        )
        self.cross_attention_norm = copy.deepcopy(self.attention_norm)

    def forward(
        self,
        x: Float[Tensor, "batch length d_model"],
        memory: Float[Tensor, "batch memory d_model"],
        mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch length d_model"]:
        """Apply the layer. Nothing keeps a token from seeing later ones but ``mask``: pass a `causal_mask`.

        Args:
            x: ``(batch, length, d_model)``.
            memory: What the encoder made, ``(batch, memory, d_model)``.
            mask: Bool, broadcastable to ``(batch, heads, length, length)``; ``True`` = may attend.
            memory_mask: Bool, broadcastable to ``(batch, heads, length, memory)``.
            bias: Added to the scaled scores of self-attention, broadcastable to the shape of ``mask``.
            cache: Keys and values of the tokens before ``x``, which ``mask`` and ``bias`` then count as keys too.

        Returns:
            A tensor of the shape of ``x``.

        Raises:
            TypeError: If a mask is not bool, or an input of another dtype than the module.
            ValueError: If a shape or a device does not fit, or ``memory`` is another tensor than the one that filled
                ``cache``.
        """
        self._check("x", x)
        self._check("memory", memory)
        if memory.size(0) != x.size(0):
            raise ValueError(f"memory has batch {memory.size(0)}; expected {x.size(0)}, that of x")
        attention, cross_attention = self.attention, self.cross_attention
        x = self._add_and_norm(x, self.attention_norm, lambda y: attention(y, mask=mask, bias=bias, cache=cache).output)
        x = self._add_and_norm(
            x, self.cross_attention_norm, lambda y: cross_attention(y, memory, mask=memory_mask, cache=cache).output
        )
        return self._add_and_norm(x, self.feed_forward_norm, self.feed_forward)

    @classmethod
    def from_torch(cls, module: nn.TransformerDecoderLayer) -> "DecoderLayer":
        """Take over the weights and settings of a ``torch.nn.TransformerDecoderLayer``.

        Args:
            module: The layer to copy; it is left as it was.

        Returns:
            A layer that computes the same, in the same mode.

        Raises:
            ValueError: If its activation is neither ReLU nor GELU.

        Example:
            >>> theirs = nn.TransformerDecoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
            >>> x, memory = torch.randn(1, 3, 16), torch.randn(1, 7, 16)
            >>> torch.allclose(DecoderLayer.from_torch(theirs)(x, memory), theirs(x, memory), atol=1e-6)
            True
        """
        layer = cls._copy(module, module.norm3)
        layer.cross_attention = MultiHeadAttention.from_torch(module.multihead_attn)
        layer.cross_attention_norm = copy.deepcopy(module.norm2)
        return layer


_AnyStack = TypeVar("_AnyStack", bound="_Stack")


class _Stack(nn.Module):
    """What encoder and decoder have in common: layers of one type, and a norm after the last where pre-norm."""

    layer_type: ClassVar[type[EncoderLayer] | type[DecoderLayer]]
    norm: nn.Module

    def __init__(
        self, num_layers: int, d_model: int, num_heads: int, d_ff: int, **settings: Unpack[LayerSettings]
    ) -> None:
        super().__init__()
        make = self.layer_type
        self.layers = nn.ModuleList(make(d_model, num_heads, d_ff, **settings) for _ in range(num_layers))
        pre_norm = settings.get("norm_first")
        self.norm = _make_norm(settings.get("norm", "layer_norm"), d_model) if pre_norm else nn.Identity()

    @classmethod
    def _copy(cls: type[_AnyStack], module: nn.TransformerEncoder | nn.TransformerDecoder) -> _AnyStack:
        """Take over the layers of a stack of ``torch.nn``, and its final norm where it has one."""
        stack = cls(0, 1, 1, 1)
        stack.layers.extend(cls.layer_type.from_torch(cast(Any, layer)) for layer in module.layers)
        stack.norm = nn.Identity() if module.norm is None else copy.deepcopy(module.norm)
        return stack.train(module.training)


class Encoder(_Stack):
    """A stack of encoder layers.

    A post-norm stack ends normalised already; a pre-norm stack adds one normalisation at its end.

    Args:
        num_layers: Number of layers.
        d_model: Width.
        num_heads: Number of attention heads.
        d_ff: Inner width of the feed-forward networks.
        **settings: As in `EncoderLayer`.

    Example:
        >>> encoder, x = Encoder(num_layers=2, d_model=16, num_heads=2, d_ff=32, norm_first=True), torch.randn(1, 3, 16)
        >>> first, second = encoder.layers
        >>> torch.equal(encoder(x), encoder.norm(second(first(x))))
        True
    """

    layer_type = EncoderLayer

    def forward(
        self,
        x: Float[Tensor, "batch length d_model"],
        mask: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch length d_model"]:
        """Apply layer after layer.

        Args:
            x: ``(batch, length, d_model)``.
            mask: Bool, broadcastable to ``(batch, heads, length, length)``; ``True`` = may attend.
            bias: Added to the scaled scores of every layer, broadcastable to the same shape.
            lengths: Those of packed sequences, as in `MultiHeadAttention`.

        Returns:
            A tensor of the shape of ``x``.
        """
        for layer in self.layers:
            x = layer(x, mask, bias=bias, lengths=lengths)
        return self.norm(x)

    @classmethod
    def from_torch(cls, module: nn.TransformerEncoder) -> "Encoder":
        """Take over the weights and settings of a ``torch.nn.TransformerEncoder``, final norm included.

        Args:
            module: The stack to copy; it is left as it was.

        Returns:
            A stack that computes the same, in the same mode.

        Example:
            >>> layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
            >>> theirs, x = nn.TransformerEncoder(layer, 2), torch.randn(1, 3, 16)
            >>> torch.allclose(Encoder.from_torch(theirs)(x), theirs(x), atol=1e-6)
            True
        """
        return cls._copy(module)


class Decoder(_Stack):
    """A stack of decoder layers over one memory; where pre-norm, with one normalisation at its end.

    Args:
        num_layers: Number of layers.
        d_model: Width, of the memory too.
        num_heads: Number of attention heads.
        d_ff: Inner width of the feed-forward networks.
        **settings: As in `EncoderLayer`.

    Example:
        >>> decoder = Decoder(num_layers=2, d_model=16, num_heads=2, d_ff=32)
        >>> x, memory, cache = torch.randn(1, 3, 16), torch.randn(1, 7, 16), KeyValueCache()
        >>> steps = [decoder(token, memory, cache=cache) for token in x.split(1, dim=1)]
        >>> torch.allclose(torch.cat(steps, dim=1), decoder(x, memory, causal_mask(3)), atol=1e-6)
        True
    """

    layer_type = DecoderLayer

    def forward(
        self,
        x: Float[Tensor, "batch length d_model"],
        memory: Float[Tensor, "batch memory d_model"],
        mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch length d_model"]:
        """Apply layer after layer, each with the same masks, bias and memory.

        Args:
            x: ``(batch, length, d_model)``.
            memory: What the encoder made, ``(batch, memory, d_model)``.
            mask: Bool, broadcastable to ``(batch, heads, length, length)``; ``True`` = may attend.
            memory_mask: Bool, broadcastable to ``(batch, heads, length, memory)``.
            bias: Added to the scaled scores of self-attention, broadcastable to the shape of ``mask``.
            cache: Keys and values of the tokens before ``x``; one serves all layers.

        Returns:
            A tensor of the shape of ``x``.
        """
        for layer in self.layers:
            x = layer(x, memory, mask, memory_mask, bias=bias, cache=cache)
        return self.norm(x)

    @classmethod
    def from_torch(cls, module: nn.TransformerDecoder) -> "Decoder":
        """Take over the weights and settings of a ``torch.nn.TransformerDecoder``, final norm included.

        Args:
            module: The stack to copy; it is left as it was.

        Returns:
            A stack that computes the same, in the same mode.

        Example:
            >>> layer = nn.TransformerDecoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
            >>> theirs, x, memory = nn.TransformerDecoder(layer, 2), torch.randn(1, 3, 16), torch.randn(1, 7, 16)
            >>> torch.allclose(Decoder.from_torch(theirs)(x, memory), theirs(x, memory), atol=1e-6)
            True
        """
        return cls._copy(module)


class EncoderDecoder(nn.Module):
    """An encoder, and a decoder over what it makes: figure 1 of Vaswani et al., 2017, between the embeddings.

    Args:
        num_layers: Number of layers of either stack.
        d_model: Width.
        num_heads: Number of attention heads.
        d_ff: Inner width of the feed-forward networks.
        **settings: As in `EncoderLayer`.

    Example:
        >>> model = EncoderDecoder(num_layers=2, d_model=16, num_heads=2, d_ff=32)
        >>> source, target = torch.randn(1, 7, 16), torch.randn(1, 3, 16)
        >>> output = model(source, target, target_mask=causal_mask(3))
        >>> torch.equal(output, model.decoder(target, model.encoder(source), causal_mask(3)))
        True
    """

    def __init__(
        self, num_layers: int, d_model: int, num_heads: int, d_ff: int, **settings: Unpack[LayerSettings]
    ) -> None:
        super().__init__()
        self.encoder = Encoder(num_layers, d_model, num_heads, d_ff, **settings)
        self.decoder = Decoder(num_layers, d_model, num_heads, d_ff, **settings)

    def forward(
        self,
        source: Float[Tensor, "batch source d_model"],
        target: Float[Tensor, "batch target d_model"],
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Float[Tensor, "batch target d_model"]:
        """Encode ``source``, then decode ``target`` over it.

        Args:
            source: ``(batch, source, d_model)``.
            target: ``(batch, target, d_model)``.
            source_mask: The encoder's, bool, broadcastable to ``(batch, heads, source, source)``.
            target_mask: The decoder's, broadcastable to ``(batch, heads, target, target)``; pass a `causal_mask`.
            memory_mask: That of the decoder's attention to the source, ``(batch, heads, target, source)``.

        Returns:
            A tensor of the shape of ``target``.
        """
        return self.decoder(target, self.encoder(source, source_mask), target_mask, memory_mask)

    @classmethod
    def from_torch(cls, module: nn.Transformer) -> "EncoderDecoder":
        """Take over the weights and settings of a ``torch.nn.Transformer``.

        It normalises after either stack, post-norm or not, and so does the copy.

        Args:
            module: The model to copy; it is left as it was.

        Returns:
            A model that computes the same, in the same mode.

        Example:
            >>> theirs = nn.Transformer(16, 2, 2, 2, 32, dropout=0.0, batch_first=True)
            >>> source, target = torch.randn(1, 7, 16), torch.randn(1, 3, 16)
            >>> torch.allclose(EncoderDecoder.from_torch(theirs)(source, target), theirs(source, target), atol=1e-6)
            True
        """
        model = cls(0, 1, 1, 1)
        model.encoder = Encoder.from_torch(module.encoder)
        model.decoder = Decoder.from_torch(module.decoder)
        return model.train(module.training)


def _make_norm(name: Norm, d_model: int) -> nn.Module:
    if name not in _NORMS:
        raise ValueError(f"norm={name!r} is unknown; choose one of {get_args(Norm)}")
    return _NORMS[name](d_model)


def _activation_name(activation: object) -> Activation:
    if activation is F.relu or isinstance(activation, nn.ReLU):
        return "relu"
    if activation is F.gelu:
        return "gelu"
    if isinstance(activation, nn.GELU):
        return "gelu" if activation.approximate == "none" else "gelu_new"
    raise ValueError(f"activation {activation!r} is unknown; from_torch takes relu and gelu")
