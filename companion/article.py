"""The article's model: the classifier that this book began with, made runnable, and what it lacks, piece by piece."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.attention import MultiHeadAttention, padding_mask
from companion.checks import check_ids
from companion.configs import ArticleConfig
from companion.feed_forward import FeedForward
from companion.models import masked_mean
from companion.positions import SinusoidalPositionalEncoding


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
        mean = x.mean(dim=1) if mask is None else masked_mean(x, mask[:, 0, 0])
        return self.output(mean).squeeze(-1)
