"""ALBERT's heads: for pre-training, for labels of whole inputs, for spans that answer a question."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from companion.albert.config import AlbertConfig
from companion.albert.model import AlbertModel, initialize
from companion.dropout import Dropout
from companion.feed_forward import ACTIVATIONS


class AlbertPreTrainingOutput(NamedTuple):
    """What an `AlbertForPreTraining` returns.

    Attributes:
        prediction_logits: For each token the logits of the vocabulary, ``(batch, length, vocab_size)``; for masked
            positions alone ``(masked, vocab_size)``.
        sop_logits: The logits of "in order" and "swapped", ``(batch, 2)``.

    Example:
        >>> config = AlbertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, intermediate_size=16)
        >>> prediction_logits, sop_logits = AlbertForPreTraining(config)(torch.tensor([[2, 5, 3, 6, 3]]))
        >>> prediction_logits.shape, sop_logits.shape
        (torch.Size([1, 5, 9]), torch.Size([1, 2]))
    """

    prediction_logits: Tensor
    sop_logits: Tensor


class AlbertSpanOutput(NamedTuple):
    """What an `AlbertForQuestionAnswering` returns.

    Attributes:
        start_logits: For each token the logit that the answer begins there, ``(batch, length)``.
        end_logits: That it ends there, ``(batch, length)``.

    Example:
        >>> config = AlbertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, intermediate_size=16)
        >>> start_logits, end_logits = AlbertForQuestionAnswering(config)(torch.tensor([[2, 5, 3, 6, 7, 3]]))
        >>> start_logits.shape == end_logits.shape == (1, 6)
        True
    """

    start_logits: Tensor
    end_logits: Tensor


class MaskedLanguageHead(nn.Module):
    """From hidden states to logits of the vocabulary, with the word embeddings as the last map (section 3.1).

    Args:
        config: The model's shape.
    """

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.embedding_size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self, hidden: Float[Tensor, "*batch hidden"], embedding: Float[Tensor, "vocab embedding"]
    ) -> Float[Tensor, "*batch vocab"]:
        """Compute ``norm(activation(dense(hidden))) @ embedding.T + bias``."""
        return F.linear(self.norm(self.activation(self.dense(hidden))), embedding, self.bias)


class AlbertForMaskedLM(nn.Module):
    """An ALBERT that names the words behind masks.

    Args:
        config: Its shape.

    Example:
        >>> config = AlbertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, intermediate_size=16)
        >>> AlbertForMaskedLM(config)(torch.tensor([[2, 5, 4, 6, 3]])).shape
        torch.Size([1, 5, 9])
    """

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__()
        self.config = config
        self.albert = AlbertModel(config, add_pooling_layer=False)
        self.predictions = MaskedLanguageHead(config)
        initialize(self.predictions, config)

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length vocab"]:
        """Return the logits of the vocabulary for each token.

        Args:
            input_ids: As in `AlbertModel`.
            attention_mask: As in `AlbertModel`.
            token_type_ids: As in `AlbertModel`.

        Returns:
            Logits, ``(batch, length, vocab_size)``.

        Raises:
            TypeError: As `AlbertModel`.
            ValueError: As `AlbertModel`.
        """
        hidden, _ = self.albert(input_ids, attention_mask, token_type_ids)
        return self.predictions(hidden, self.albert.embeddings.word.weight)


class AlbertForPreTraining(nn.Module):
    """An ALBERT with the two heads that it is pre-trained with (section 3.1).

    One names the words behind masks, the other says whether two segments are in order. No dropout stands before the
    latter, as in Google's code; Hugging Face's has some.

    Args:
        config: Its shape.

    Example:
        >>> config = AlbertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, intermediate_size=16)
        >>> model, ids = AlbertForPreTraining(config), torch.tensor([[2, 5, 4, 3, 4, 3]])
        >>> some, _ = model(ids, masked=ids == 4)
        >>> torch.allclose(some, model(ids).prediction_logits[ids == 4])
        True
    """

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__()
        self.config = config
        self.albert = AlbertModel(config)
        self.predictions = MaskedLanguageHead(config)
        self.sop_classifier = nn.Linear(config.hidden_size, 2)
        initialize(self.predictions, config)
        initialize(self.sop_classifier, config)

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
        *,
        masked: Bool[Tensor, "batch length"] | None = None,
    ) -> AlbertPreTrainingOutput:
        """Return the logits of both heads.

        Args:
            input_ids: As in `AlbertModel`.
            attention_mask: As in `AlbertModel`.
            token_type_ids: As in `AlbertModel`.
            masked: The positions whose words are to be named, ``(batch, length)``; ``None`` = all. The loss needs no
                others.

        Returns:
            The logits of the vocabulary, for each position or for the masked ones in a row, and those of the order.

        Raises:
            TypeError: As `AlbertModel`.
            ValueError: As `AlbertModel`.
        """
        skip_padding = masked is not None and _hides_none(attention_mask, masked)
        hidden, pooled = self.albert(input_ids, attention_mask, token_type_ids, skip_padding=skip_padding)
        words = self.predictions(hidden if masked is None else hidden[masked], self.albert.embeddings.word.weight)
        return AlbertPreTrainingOutput(words, self.sop_classifier(pooled))


class AlbertForSequenceClassification(nn.Module):
    """An ALBERT that labels its input: dropout and a linear map on the pooler's output.

    Args:
        config: Its shape.

    Example:
        >>> config = AlbertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, intermediate_size=16)
        >>> classifier = AlbertForSequenceClassification(config)
        >>> classifier.albert = AlbertForPreTraining(config).albert  # fine-tune what was pre-trained
        >>> classifier(torch.tensor([[2, 5, 6, 3]])).shape
        torch.Size([1, 2])
    """

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__()
        self.config = config
        self.albert = AlbertModel(config)
        self.dropout = Dropout(config.classifier_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        initialize(self.classifier, config)

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch labels"]:
        """Return the logits of the labels.

        Args:
            input_ids: As in `AlbertModel`.
            attention_mask: As in `AlbertModel`.
            token_type_ids: As in `AlbertModel`.

        Returns:
            Logits, ``(batch, num_labels)``.

        Raises:
            TypeError: As `AlbertModel`.
            ValueError: As `AlbertModel`.
        """
        _, pooled = self.albert(input_ids, attention_mask, token_type_ids, skip_padding=True)
        return self.classifier(self.dropout(pooled))


class AlbertForQuestionAnswering(nn.Module):
    """An ALBERT that finds the span of a text that answers a question: ``[CLS] question [SEP] text [SEP]``.

    Args:
        config: Its shape.

    Example:
        >>> config = AlbertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, intermediate_size=16)
        >>> model, ids = AlbertForQuestionAnswering(config), torch.tensor([[2, 5, 3, 6, 7, 3]])
        >>> model(ids, token_type_ids=torch.tensor([[0, 0, 0, 1, 1, 1]])).start_logits.softmax(dim=-1).sum().round()
        tensor(1., grad_fn=<RoundBackward0>)
    """

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__()
        self.config = config
        self.albert = AlbertModel(config, add_pooling_layer=False)
        self.span = nn.Linear(config.hidden_size, 2)
        initialize(self.span, config)

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
    ) -> AlbertSpanOutput:
        """Return the logits of the span's ends for each token.

        Args:
            input_ids: As in `AlbertModel`.
            attention_mask: As in `AlbertModel`.
            token_type_ids: As in `AlbertModel`.

        Returns:
            Start and end logits, ``(batch, length)`` each.

        Raises:
            TypeError: As `AlbertModel`.
            ValueError: As `AlbertModel`.
        """
        hidden, _ = self.albert(input_ids, attention_mask, token_type_ids)
        start, end = self.span(hidden).unbind(dim=-1)
        return AlbertSpanOutput(start, end)


def _hides_none(attention_mask: Tensor | None, masked: Tensor) -> bool:
    """Tell whether all masked positions may be attended to; on a CPU alone, since a GPU would have to be waited for."""
    if attention_mask is None or torch.compiler.is_compiling() or attention_mask.shape != masked.shape:
        return False
    return attention_mask.device == masked.device == torch.device("cpu") and bool(attention_mask[masked].all())
