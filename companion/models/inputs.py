"""What goes into the stacks: embeddings and positions, and the mean that comes out of one."""

import torch
from torch import Tensor, nn

from companion.configs import ClassifierConfig, Seq2SeqConfig
from companion.positions import LearnedPositionalEmbedding, RotaryEmbedding, SinusoidalPositionalEncoding, alibi_bias


def drop_words(input_ids: Tensor, probability: float, replacement: int, pad_id: int) -> Tensor:
    """Put ``replacement`` in the place of each token with a probability; padding stays."""
    dropped = torch.rand(input_ids.shape, device=input_ids.device) < probability
    return input_ids.masked_fill(dropped & (input_ids != pad_id), replacement)


def make_embedding(vocab_size: int, config: ClassifierConfig | Seq2SeqConfig, std: float) -> nn.Embedding:
    """Make normal vectors of this deviation; padding's is 0."""
    embedding = nn.Embedding(vocab_size, config.d_model, padding_idx=config.pad_id)
    nn.init.normal_(embedding.weight, std=std)
    nn.init.zeros_(embedding.weight[config.pad_id])
    return embedding


def make_positions(config: ClassifierConfig | Seq2SeqConfig) -> nn.Module | None:
    """Make the table that is added to the embeddings, where one is."""
    if config.positions == "sinusoidal":
        return SinusoidalPositionalEncoding(config.max_length, config.d_model)
    if config.positions == "learned":
        return LearnedPositionalEmbedding(config.max_length, config.d_model)
    return None


def add_positions(x: Tensor, positions: nn.Module | None, offset: int = 0) -> Tensor:
    """Add the rows of the table from ``offset`` on."""
    return x if positions is None else positions(x, offset)


def make_rotary(config: ClassifierConfig | Seq2SeqConfig, head_dim: int | None = None) -> nn.Module | None:
    """Make what turns queries and keys, where something does."""
    return RotaryEmbedding(head_dim or config.d_model // config.num_heads) if config.positions == "rotary" else None


def make_bias(
    config: ClassifierConfig | Seq2SeqConfig, query_length: int, key_length: int, device: torch.device
) -> Tensor | None:
    """Make what is added to the scores, where something is."""
    if config.positions != "alibi":
        return None
    return alibi_bias(config.num_heads, query_length, key_length, device=device)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Average over the positions where ``mask``; zeros where there is none."""
    weights = mask.unsqueeze(-1).to(x.dtype)
    return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
