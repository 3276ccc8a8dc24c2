"""Layers: the feed-forward network, the encoder layer and the stack of them."""

import copy
from collections.abc import Callable
from typing import Literal, cast, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion.attention import MultiHeadAttention

Activation = Literal["relu", "gelu"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class FeedForward(nn.Module):
    """Two maps with a non-linearity between, the same at every position (Vaswani et al., 2017, equation 2).

    Args:
        d_model: Width of input and output.
        d_ff: Width in between.
        activation: ``"gelu"`` or the paper's ``"relu"``.
        dropout: Dropout probability after the activation.

    Raises:
        ValueError: If ``activation`` is not one of these.
    """

    def __init__(self, d_model: int, d_ff: int, *, activation: Activation = "gelu", dropout: float = 0.0) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is unknown; choose one of {get_args(Activation)}")
        self.activation = activation
        self.inner = nn.Linear(d_model, d_ff)
        self.outer = nn.Linear(d_ff, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Compute ``outer(dropout(activation(inner(x))))``, position by position.

        Args:
            x: ``(..., d_model)``.

        Returns:
            A tensor of the same shape.
        """
        return self.outer(self.dropout(_ACTIVATIONS[self.activation](self.inner(x))))


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each inside a residual connection with layer normalisation.

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
        activation: The feed-forward network's, ``"gelu"`` or ``"relu"``.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        *,
        dropout: float = 0.0,
        attention_dropout: float | None = None,
        norm_first: bool = False,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        attention_dropout = dropout if attention_dropout is None else attention_dropout
        self.attention = MultiHeadAttention(d_model, num_heads, dropout=attention_dropout)
        self.attention_norm = nn.LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, d_ff, activation=activation, dropout=dropout)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch length d_model"],
        mask: Tensor | None = None,
        *,
        bias: Tensor | None = None,
    ) -> Float[Tensor, "batch length d_model"]:
        """Apply the layer.

        Args:
            x: ``(batch, length, d_model)``.
            mask: Bool, broadcastable to ``(batch, heads, length, length)``; ``True`` = may attend.
            bias: Added to the scaled scores, broadcastable to the same shape.

        Returns:
            A tensor of the shape of ``x``.

        Raises:
            TypeError: If ``mask`` is not bool.
            ValueError: If a shape does not fit.
        """
        if self.norm_first:
            x = x + self._attend(self.attention_norm(x), mask, bias)
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(x + self._attend(x, mask, bias))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))

    def _attend(self, x: Tensor, mask: Tensor | None, bias: Tensor | None) -> Tensor:
        return self.dropout(self.attention(x, mask=mask, bias=bias).output)

    @classmethod
    def from_torch(cls, module: nn.TransformerEncoderLayer) -> "EncoderLayer":
        """Take over the weights and settings of a ``torch.nn.TransformerEncoderLayer``.

        Args:
            module: The layer to copy; it is left as it was.

        Returns:
            A layer that computes the same, in the same mode.

        Raises:
            ValueError: If its activation is neither ReLU nor GELU.
        """
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
        layer.feed_forward.inner = copy.deepcopy(module.linear1)
        layer.feed_forward.outer = copy.deepcopy(module.linear2)
        layer.feed_forward_norm = copy.deepcopy(module.norm2)
        return layer.train(module.training)


class Encoder(nn.Module):
    """A stack of encoder layers.

    A post-norm stack ends normalised already; a pre-norm stack adds one normalisation at its end.

    Args:
        num_layers: Number of layers.
        d_model: Width.
        num_heads: Number of attention heads.
        d_ff: Inner width of the feed-forward networks.
        dropout: As in `EncoderLayer`.
        attention_dropout: As in `EncoderLayer`.
        norm_first: Pre-norm instead of post-norm.
        activation: ``"gelu"`` or ``"relu"``.
    """

    norm: nn.Module

    def __init__(
        self,
        num_layers: int,
        d_model: int,
        num_heads: int,
        d_ff: int,
        *,
        dropout: float = 0.0,
        attention_dropout: float | None = None,
        norm_first: bool = False,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(
                d_model,
                num_heads,
                d_ff,
                dropout=dropout,
                attention_dropout=attention_dropout,
                norm_first=norm_first,
                activation=activation,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(d_model) if norm_first else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "batch length d_model"],
        mask: Tensor | None = None,
        *,
        bias: Tensor | None = None,
    ) -> Float[Tensor, "batch length d_model"]:
        """Apply layer after layer.

        Args:
            x: ``(batch, length, d_model)``.
            mask: Bool, broadcastable to ``(batch, heads, length, length)``; ``True`` = may attend.
            bias: Added to the scaled scores of every layer, broadcastable to the same shape.

        Returns:
            A tensor of the shape of ``x``.
        """
        for layer in self.layers:
            x = layer(x, mask, bias=bias)
        return self.norm(x)

    @classmethod
    def from_torch(cls, module: nn.TransformerEncoder) -> "Encoder":
        """Take over the weights and settings of a ``torch.nn.TransformerEncoder``, final norm included.

        Args:
            module: The stack to copy; it is left as it was.

        Returns:
            A stack that computes the same, in the same mode.
        """
        layers = [EncoderLayer.from_torch(cast(nn.TransformerEncoderLayer, layer)) for layer in module.layers]
        encoder = cls(0, layers[0].attention.d_model, layers[0].attention.num_heads, 1)
        encoder.layers = nn.ModuleList(layers)
        encoder.norm = nn.Identity() if module.norm is None else copy.deepcopy(module.norm)
        return encoder.train(module.training)


def _activation_name(activation: object) -> Activation:
    if activation is F.relu or isinstance(activation, nn.ReLU):
        return "relu"
    if activation is F.gelu or (isinstance(activation, nn.GELU) and activation.approximate == "none"):
        return "gelu"
    raise ValueError(f"activation {activation!r} is unknown; from_torch takes relu and gelu")
