"""Models: the classifier, and the config that describes it."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.attention import padding_mask
from companion.layers import Activation, Encoder
from companion.positions import LearnedPositionalEmbedding, SinusoidalPositionalEncoding

Positions = Literal["sinusoidal", "learned", "none"]


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The shape of a `TextClassifier`.

    Attributes:
        vocab_size: Number of tokens; on the command line, the most that the vocabulary may hold.
        d_model: Width.
        num_heads: Attention heads a layer.
        d_ff: Inner width of the feed-forward networks.
        num_layers: Encoder layers.
        max_length: The longest input, in tokens.
        dropout: Dropout probability of the layers, as in `EncoderLayer`.
        attention_dropout: That of the attention weights; it keeps a CPU from the fused kernel.
        embedding_dropout: That of the embeddings.
        word_dropout: The probability with which training replaces a token by the unknown one.
        positions: How positions enter: ``"sinusoidal"``, ``"learned"`` or ``"none"``.
        norm_first: Pre-norm instead of post-norm.
        activation: The feed-forward networks', ``"gelu"`` or ``"relu"``.
        pad_id: The id of padding.
        unknown_id: The id of the unknown token.

    Raises:
        ValueError: If a value is out of range; the message names the field and what would do.
    """

    vocab_size: int = 30_000
    d_model: int = 64
    num_heads: int = 2
    d_ff: int = 256
    num_layers: int = 1
    max_length: int = 512
    dropout: float = 0.1
    attention_dropout: float = 0.0
    embedding_dropout: float = 0.1
    word_dropout: float = 0.0
    positions: Positions = "learned"
    norm_first: bool = False
    activation: Activation = "gelu"
    pad_id: int = 0
    unknown_id: int = 1

    def __post_init__(self) -> None:
        for field in ("vocab_size", "d_model", "num_heads", "d_ff", "num_layers", "max_length"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)}; choose 1 or more")
        if self.d_model % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} does not divide d_model={self.d_model}")
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ValueError(f"d_model={self.d_model} is odd; sinusoidal positions need an even one")
        for field in ("dropout", "attention_dropout", "embedding_dropout", "word_dropout"):
            if not 0.0 <= getattr(self, field) < 1.0:
                raise ValueError(f"{field}={getattr(self, field)}; choose 0 <= {field} < 1")
        for field in ("pad_id", "unknown_id"):
            if not 0 <= getattr(self, field) < self.vocab_size:
                raise ValueError(f"{field}={getattr(self, field)}; choose 0 <= {field} < vocab_size={self.vocab_size}")
        for field, choices in (("positions", Positions), ("activation", Activation)):
            if getattr(self, field) not in get_args(choices):
                raise ValueError(f"{field}={getattr(self, field)!r}; choose one of {get_args(choices)}")


class TextClassifier(nn.Module):
    """Embedding, positions, encoder, the mean over the tokens, one logit.

    Args:
        config: Its shape.

    Example:
        >>> model = TextClassifier(ClassifierConfig(vocab_size=100))
        >>> model(torch.tensor([[5, 6, 7], [8, 0, 0]])).shape
        torch.Size([2])
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model, padding_idx=config.pad_id)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.zeros_(self.embedding.weight[config.pad_id])
        self.positions = _positions(config)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.encoder = Encoder(
            config.num_layers,
            config.d_model,
            config.num_heads,
            config.d_ff,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            norm_first=config.norm_first,
            activation=config.activation,
        )
        self.output = nn.Linear(config.d_model, 1)

    def forward(self, input_ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch"]:
        """Return the logit of the positive class; padding does not change it.

        Args:
            input_ids: Token ids, ``(batch, length)``, padded with ``config.pad_id``.

        Returns:
            Logits, ``(batch,)``; their sigmoid is the probability of label 1.

        Raises:
            ValueError: If the input is not two-dimensional, or longer than ``config.max_length``.
        """
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; expected (batch, length)")
        if input_ids.size(1) > self.config.max_length:
            raise ValueError(
                f"input_ids has length {input_ids.size(1)}; expected at most max_length={self.config.max_length}"
            )
        mask = padding_mask(input_ids, self.config.pad_id)
        if self.training and self.config.word_dropout > 0:
            input_ids = self._drop_words(input_ids)
        x = self.dropout(self.positions(self.embedding(input_ids)))
        x = self.encoder(x, mask)
        return self.output(_masked_mean(x, mask[:, 0, 0])).squeeze(-1)

    def _drop_words(self, input_ids: Tensor) -> Tensor:
        dropped = torch.rand(input_ids.shape, device=input_ids.device) < self.config.word_dropout
        return input_ids.masked_fill(dropped & (input_ids != self.config.pad_id), self.config.unknown_id)


def _positions(config: ClassifierConfig) -> nn.Module:
    if config.positions == "sinusoidal":
        return SinusoidalPositionalEncoding(config.max_length, config.d_model)
    if config.positions == "learned":
        return LearnedPositionalEmbedding(config.max_length, config.d_model)
    return nn.Identity()


def _masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Average over the positions where ``mask``; zeros where there is none."""
    weights = mask.unsqueeze(-1).to(x.dtype)
    return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
