"""Classifiers: of texts, of tokens, of the ends of a span."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.attention import causal_mask
from companion.checks import check_ids
from companion.configs import ClassifierConfig, SpanConfig, TokenClassifierConfig
from companion.decoding import best_spans
from companion.dropout import Dropout
from companion.layers import Encoder
from companion.models.inputs import (
    add_positions,
    drop_words,
    make_bias,
    make_embedding,
    make_positions,
    make_rotary,
    masked_mean,
)
from companion.packing import encode_tokens


class _Classifier(nn.Module):
    """What the classifiers have in common: embedding, positions, encoder, a map to the logits."""

    def __init__(self, config: ClassifierConfig, num_logits: int, *, embedding_std: float | None = None) -> None:
        super().__init__()
        self.config = config
        as_positions = 1.0 if config.positions == "sinusoidal" else 0.02  # as large as what is added to it
        std = as_positions if embedding_std is None else embedding_std
        self.embedding = make_embedding(config.num_embeddings, config, std)
        self.positions = make_positions(config)
        self.dropout = Dropout(config.embedding_dropout)
        self.encoder = Encoder(
            config.num_layers,
            config.d_model,
            config.num_heads,
            config.d_ff,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            norm_first=config.norm_first,
            activation=config.activation,
            rotary=make_rotary(config),
        )
        self.output = nn.Linear(config.d_model, num_logits)

    def _check(self, input_ids: Tensor) -> None:
        check_ids("input_ids", input_ids, self.embedding.weight, self.config.max_length)

    def _encode(self, input_ids: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.dropout(add_positions(self._embed(input_ids), self.positions))
        bias = make_bias(self.config, x.size(1), x.size(1), x.device)
        return encode_tokens(self.encoder, x, tokens, mask, bias=bias)

    def _embed(self, input_ids: Tensor) -> Tensor:
        if self.training and self.config.word_dropout > 0:
            input_ids = drop_words(input_ids, self.config.word_dropout, self.config.unknown_id, self.config.pad_id)
        return self.embedding(input_ids)


class TextClassifier(_Classifier):
    """Embedding, positions, encoder, the mean over the tokens, one logit.

    Args:
        config: Its shape.

    Example:
        >>> model = TextClassifier(ClassifierConfig(vocab_size=100))
        >>> model(torch.tensor([[5, 6, 7], [8, 0, 0]])).shape
        torch.Size([2])
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__(config, num_logits=1)

    def forward(self, input_ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch"]:
        """Return the logit of the positive class; padding does not change it.

        Args:
            input_ids: Token ids, ``(batch, length)``, padded with ``config.pad_id``.

        Returns:
            Logits, ``(batch,)``; their sigmoid is the probability of label 1.

        Raises:
            TypeError: If the input is not of an integer dtype.
            ValueError: If it is not two-dimensional, longer than ``config.max_length``, or on another device.
        """
        self._check(input_ids)
        tokens = input_ids != self.config.pad_id
        return self.output(masked_mean(self._encode(input_ids, tokens), tokens)).squeeze(-1)


class TokenClassifier(_Classifier):
    """Embedding, positions, encoder, logits for each token; where causal, a language model.

    Args:
        config: Its shape.

    Example:
        >>> model = TokenClassifier(TokenClassifierConfig(vocab_size=12, num_labels=12, causal=True)).eval()
        >>> ids = torch.tensor([[5, 6, 7]])
        >>> torch.allclose(model(ids)[:, :2], model(ids[:, :2]), atol=1e-6)  # the last token changes nothing before it
        True
    """

    def __init__(self, config: TokenClassifierConfig) -> None:
        super().__init__(config, config.num_labels)
        self.causal = config.causal

    def forward(self, input_ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length labels"]:
        """Return the logits of each token's label; padding does not change those of the tokens.

        Args:
            input_ids: Token ids, ``(batch, length)``, padded with ``config.pad_id``.

        Returns:
            Logits, ``(batch, length, num_labels)``.

        Raises:
            TypeError: If the input is not of an integer dtype.
            ValueError: If it is not two-dimensional, longer than ``config.max_length``, or on another device.
        """
        self._check(input_ids)
        mask = causal_mask(input_ids.size(1), device=input_ids.device) if self.causal else None
        return self.output(self._encode(input_ids, input_ids != self.config.pad_id, mask))


class SpanOutput(NamedTuple):
    """What a `SpanExtractor` returns.

    Attributes:
        start_logits: For each token the logit that the answer begins there, ``(batch, length)``; ``-inf`` where it
            cannot.
        end_logits: That it ends there, ``(batch, length)``.

    Example:
        >>> model = SpanExtractor(SpanConfig(vocab_size=9, d_model=4, num_heads=1, d_ff=4)).eval()
        >>> start_logits, end_logits = model(torch.tensor([[2, 5, 3, 6, 7]]))
        >>> start_logits.isfinite().tolist()
        [[True, False, False, True, True]]
    """

    start_logits: Tensor
    end_logits: Tensor


class SpanExtractor(_Classifier):
    """Embedding, positions, encoder, and two logits for each token: that an answer begins there, that it ends there.

    The input is a first token, the question, a separator, the text: ``[CLS] question [SEP] text``. The first token
    stands for "no answer" (Devlin et al., 2019, section 4.3, arXiv:1810.04805). Fresh embeddings have variance 1;
    with a deviation of 0.02, that of the other classifiers, `toy.questions` took longer to learn.

    Args:
        config: Its shape.

    Example:
        >>> model = SpanExtractor(SpanConfig(vocab_size=9, separator_id=3)).eval()
        >>> start, end = model.extract(torch.tensor([[2, 5, 3, 6, 7, 8]]))[0]
        >>> start == end == 0 or 3 <= start <= end <= 5
        tensor(True)
    """

    def __init__(self, config: SpanConfig) -> None:
        super().__init__(config, num_logits=2, embedding_std=1.0)
        self.separator_id = config.separator_id

    def forward(self, input_ids: Int[Tensor, "batch length"]) -> SpanOutput:
        """Return the logits of the ends; padding does not change those of the tokens.

        Args:
            input_ids: ``(batch, length)``, each row with a separator, padded with ``config.pad_id``.

        Returns:
            Start and end logits, ``(batch, length)`` each; ``-inf`` but for the first token and those of the text.

        Raises:
            TypeError: If the input is not of an integer dtype.
            ValueError: If it is not two-dimensional, longer than ``config.max_length``, or on another device, or if
                a row has no separator.
        """
        self._check(input_ids)
        separated = (input_ids == self.separator_id).cumsum(dim=1)
        if not (separated[:, -1] > 0).all():
            row = int((separated[:, -1] == 0).nonzero()[0])
            raise ValueError(f"row {row} of input_ids has no separator, id {self.separator_id}")
        tokens = input_ids != self.config.pad_id
        may_answer = (separated > 0) & (input_ids != self.separator_id) & tokens
        may_answer[:, 0] = True
        logits = self.output(self._encode(input_ids, tokens)).masked_fill(~may_answer.unsqueeze(-1), -torch.inf)
        return SpanOutput(*logits.unbind(dim=-1))

    @torch.no_grad()
    def extract(
        self, input_ids: Int[Tensor, "batch length"], *, max_length: int | None = None
    ) -> Int[Tensor, "batch 2"]:
        """Return the most probable answer, in the model's mode: call ``eval()`` first, or dropout takes part.

        Args:
            input_ids: As in `forward`.
            max_length: As in `best_spans`.

        Returns:
            The first and the last position of each answer, ``(batch, 2)``; both 0 where there is none.

        Raises:
            TypeError: As `forward`.
            ValueError: As `forward` and `best_spans`.
        """
        return best_spans(*self(input_ids), max_length=max_length)
