"""The article's model: the classifier that this book began with, made runnable, and what it lacks, piece by piece."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.attention import MultiHeadAttention, padding_mask
from companion.checks import check_ids
from companion.feed_forward import FeedForward
from companion.positions import SinusoidalPositionalEncoding


@dataclass(frozen=True, kw_only=True)
class ArticleConfig:
    """The shape of an `ArticleClassifier`: the article's, and the pieces that it lacks, each of them off.

    Attributes:
        vocab_size: Number of tokens.
        d_model: Width.
        num_heads: Attention heads.
        head_dim: Width of a head; Keras's ``key_dim``.
        max_length: The longest input, in tokens.
        pad_id: The id of padding.
        unknown_id: The id of the unknown token.
        mask: Padding is neither attended to nor averaged.
        positions: The embeddings are multiplied by the root of their width and get sinusoids added, as in sections
            3.4 and 3.5 of Vaswani et al., 2017. (Without the product the sinusoids would be 25 times as large.)
        residual_norm: A residual connection with LayerNorm around the attention, in the place of the concatenation.
        feed_forward: A feed-forward network within a residual connection with LayerNorm, in the place of the dense
            layer; only with ``residual_norm``.
        d_ff: Its inner width.

    Raises:
        ValueError: If a value is out of range; the message names the field and what would do.

    Example:
        >>> ArticleConfig(feed_forward=True)
        Traceback (most recent call last):
        ValueError: feed_forward=True needs residual_norm=True
    """

    vocab_size: int = 10_000
    d_model: int = 64
    num_heads: int = 2
    head_dim: int = 64
    max_length: int = 512
    pad_id: int = 0
    unknown_id: int = 1
    mask: bool = False
    positions: bool = False
    residual_norm: bool = False
    feed_forward: bool = False
    d_ff: int = 256

    def __post_init__(self) -> None:
        for field in ("vocab_size", "d_model", "num_heads", "head_dim", "max_length", "d_ff"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)}; choose 1 or more")
        for field in ("pad_id", "unknown_id"):
            if not 0 <= getattr(self, field) < self.vocab_size:
                raise ValueError(f"{field}={getattr(self, field)}; choose 0 <= {field} < vocab_size={self.vocab_size}")
        if self.positions and self.d_model % 2:
            raise ValueError(f"d_model={self.d_model} is odd; positions need an even one")
        if self.feed_forward and not self.residual_norm:
            raise ValueError("feed_forward=True needs residual_norm=True")


class ArticleClassifier(nn.Module):
    """Embedding, self-attention, both concatenated, a dense layer, the mean over the positions, one logit.

    Of the article's Keras code it keeps the layers, their widths and how Keras initialises them: embeddings uniform
    in +-0.05, matrices Glorot uniform, biases 0. To run at all it needs a mean over the positions, which the article
    leaves out; with neither mask nor padding in its code, padding takes part in attention and mean. With all pieces
    of the config on it is one post-norm `EncoderLayer` between embedding and mean.

    Args:
        config: Its shape.

    Example:
        >>> ids = torch.tensor([[5, 6, 7, 0]])
        >>> model = ArticleClassifier(ArticleConfig())
        >>> torch.allclose(model(ids), model(ids[:, :3]))  # padding counts
        False
        >>> model = ArticleClassifier(ArticleConfig(mask=True))
        >>> torch.allclose(model(ids), model(ids[:, :3]), atol=1e-6)
        True
    """

    def __init__(self, config: ArticleConfig) -> None:
        super().__init__()
        self.config = config
        d_model = config.d_model
        self.embedding = nn.Embedding(config.vocab_size, d_model)
        self.positions = SinusoidalPositionalEncoding(config.max_length, d_model) if config.positions else None
        self.attention = MultiHeadAttention(d_model, config.num_heads, head_dim=config.head_dim)
        if config.residual_norm:
            self.attention_norm = nn.LayerNorm(d_model)
        if config.feed_forward:
            self.feed_forward = FeedForward(d_model, config.d_ff, activation="relu")
            self.feed_forward_norm = nn.LayerNorm(d_model)
        else:
            self.dense = nn.Linear(d_model if config.residual_norm else 2 * d_model, d_model)
        self.output = nn.Linear(d_model, 1)
        nn.init.uniform_(self.embedding.weight, -0.05, 0.05)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.attention.in_proj:  # which holds three matrices
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, input_ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch"]:
        """Return the logit of the positive class.

        Args:
            input_ids: Token ids, ``(batch, length)``, padded with ``config.pad_id``.

        Returns:
            Logits, ``(batch,)``; their sigmoid is the article's output.

        Raises:
            TypeError: If the input is not of an integer dtype.
            ValueError: If it is not two-dimensional, longer than ``config.max_length``, or on another device.
        """
        config = self.config
        check_ids("input_ids", input_ids, self.embedding.weight, config.max_length)
        mask = padding_mask(input_ids, config.pad_id) if config.mask else None
        x = self.embedding(input_ids)
        if self.positions is not None:
            x = self.positions(math.sqrt(config.d_model) * x)
        attended = self.attention(x, mask=mask).output
        x = self.attention_norm(x + attended) if config.residual_norm else torch.cat((x, attended), dim=-1)
        x = self.feed_forward_norm(x + self.feed_forward(x)) if config.feed_forward else F.relu(self.dense(x))
        if mask is None:
            mean = x.mean(dim=1)
        else:
            kept = mask[:, 0, 0, :, None].to(x.dtype)
            mean = (kept * x).sum(dim=1) / kept.sum(dim=1).clamp(min=1.0)
        return self.output(mean).squeeze(-1)
