"""A text classifier on ALBERT, for texts longer than its position table."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.albert.config import AlbertConfig
from companion.albert.model import AlbertModel, initialize
from companion.checks import check_ids
from companion.configs import check_ids as check_id_fields
from companion.configs import check_positive, check_probabilities
from companion.dropout import Dropout
from companion.models import drop_words


@dataclass(frozen=True, kw_only=True)
class AlbertTextConfig(AlbertConfig):
    """The shape of an `AlbertTextClassifier`: that of an ALBERT, and the text's.

    Attributes:
        max_length: The longest input, in tokens; longer ones than ``max_position_embeddings`` allows are read in
            windows.
        word_dropout: The probability with which training hides a token behind the mask.
        unknown_id: The id of the unknown token.
        mask_id: The id of the mask.

    Raises:
        ValueError: If a value is out of range; the message names the field and what would do.

    Example:
        >>> AlbertTextConfig(max_position_embeddings=2)
        Traceback (most recent call last):
        ValueError: max_position_embeddings=2 has no room for a token between [CLS] and [SEP]; choose 3 or more
    """

    max_length: int = 1_024
    word_dropout: float = 0.0
    unknown_id: int = 1
    mask_id: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "max_length")
        check_probabilities(self, "word_dropout")
        check_id_fields(self, "vocab_size", "unknown_id", "mask_id")
        if self.max_position_embeddings < 3:
            places = f"max_position_embeddings={self.max_position_embeddings}"
            raise ValueError(f"{places} has no room for a token between [CLS] and [SEP]; choose 3 or more")

    @property
    def pad_id(self) -> int:
        """The id of padding, as the other classifiers' configs name it."""
        return self.pad_token_id


class AlbertTextClassifier(nn.Module):
    """An ALBERT that reads a text in windows of ``[CLS] tokens [SEP]`` and averages its vectors into one logit.

    Where the released models cut a text off behind 512 tokens, this one reads on: as many windows of equal length as
    it takes, each with positions from 0. The mean is over all tokens of all windows.

    Args:
        config: Its shape.

    Example:
        >>> config = AlbertTextConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, intermediate_size=16)
        >>> model = AlbertTextClassifier(config).eval()
        >>> model(torch.tensor([[5, 6, 7], [8, 0, 0]])).shape
        torch.Size([2])
    """

    def __init__(self, config: AlbertTextConfig) -> None:
        super().__init__()
        self.config = config
        self.albert = AlbertModel(config, add_pooling_layer=False)
        self.dropout = Dropout(config.classifier_dropout_prob)
        self.output = nn.Linear(config.hidden_size, 1)
        initialize(self.output, config)

    def forward(self, input_ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch"]:
        """Return the logit of the positive class; padding does not change it.

        Args:
            input_ids: Token ids without special ones, ``(batch, length)``, padded at the end with ``pad_token_id``.

        Returns:
            Logits, ``(batch,)``; their sigmoid is the probability of label 1.

        Raises:
            TypeError: If the input is not of an integer dtype.
            ValueError: If it is not two-dimensional, longer than ``config.max_length``, or on another device.
        """
        check_ids("input_ids", input_ids, self.albert.embeddings.word.weight, self.config.max_length)
        if self.training and self.config.word_dropout > 0:
            input_ids = drop_words(input_ids, self.config.word_dropout, self.config.mask_id, self.config.pad_id)
        windows, text = self._windows(input_ids)
        mask = windows != self.config.pad_token_id
        hidden, _ = self.albert(windows, mask, skip_padding=True)
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        sums = hidden.new_zeros(len(input_ids), hidden.size(-1)).index_add(0, text, (hidden * weights).sum(dim=1))
        counts = hidden.new_zeros(len(input_ids), 1).index_add(0, text, weights.sum(dim=1))
        return self.output(self.dropout(sums / counts.clamp(min=1.0))).squeeze(-1)

    def _windows(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cut each text into windows between special tokens; return these, and the text of each."""
        config = self.config
        lengths = (input_ids != config.pad_token_id).sum(dim=1)
        counts = (-(-lengths // (config.max_position_embeddings - 2))).clamp(min=1)
        text = torch.arange(len(input_ids), device=input_ids.device).repeat_interleave(counts)
        number = torch.arange(len(text), device=input_ids.device) - (counts.cumsum(0) - counts)[text]
        starts, ends = (lengths[text] * edge // counts[text] for edge in (number, number + 1))
        sizes = ends - starts
        places = torch.arange(int(sizes.max()), device=input_ids.device)
        source = (starts[:, None] + places).clamp(max=input_ids.size(1) - 1)
        tokens = input_ids[text[:, None], source].masked_fill(places >= sizes[:, None], config.pad_token_id)
        windows = F.pad(F.pad(tokens, (1, 0), value=config.bos_token_id), (0, 1), value=config.pad_token_id)
        return windows.scatter(1, sizes[:, None] + 1, config.eos_token_id), text
