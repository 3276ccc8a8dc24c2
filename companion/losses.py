"""Losses: what a model's errors on a batch add up to, and their means over many batches."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.batching import LabelledBatch, Seq2SeqBatch
from companion.decoding import best_spans


class LossOutput(NamedTuple):
    """What a loss function returns: sums, so that means come out right whatever the batch sizes.

    Attributes:
        loss_sum: The loss summed over the examples (or masked tokens), a scalar.
        count: How many there were.
        metrics: Further sums over them, such as the number that came out right under ``"accuracy"``; reported
            divided by the count. ``"tokens"``, the number of tokens without padding, gives the tokens per second.

    Example:
        >>> def squared_error(model, batch):
        ...     errors = (model(batch) - 1).square()
        ...     return LossOutput(errors.sum(), len(errors), {"exact": (errors == 0).sum()})
        >>> batches = [torch.tensor([1.0, 1.0, 3.0]), torch.tensor([2.0])]
        >>> evaluate(nn.Identity(), batches, loss_fn=squared_error)
        {'loss': 1.25, 'exact': 0.5}
    """

    loss_sum: Tensor
    count: int | Tensor  # pyright: ignore[reportIncompatibleMethodOverride]
    metrics: Mapping[str, float | Tensor]


LossFunction = Callable[[nn.Module, Any], LossOutput]


def classification_loss(model: nn.Module, batch: LabelledBatch) -> LossOutput:
    """Binary cross-entropy of a classifier's logits.

    Args:
        model: A model from ids ``(batch, length)`` to logits ``(batch,)``.
        batch: Ids and labels.

    Returns:
        The summed cross-entropy in nats, the number of examples, and the sums of ``accuracy`` and ``tokens``.

    Example:
        >>> model = TextClassifier(ClassifierConfig(vocab_size=9, d_model=4, num_heads=1, d_ff=4, max_length=8))
        >>> _ = nn.init.zeros_(model.output.weight), nn.init.zeros_(model.output.bias)  # every logit is 0
        >>> batch = LabelledBatch(torch.tensor([[5, 6], [7, 0]]), torch.tensor([1.0, 0.0]))
        >>> loss = classification_loss(model, batch)
        >>> round(loss.loss_sum.item() / loss.count, 3), loss.metrics["tokens"].item()
        (0.693, 3)
    """
    logits = model(batch.input_ids)
    return LossOutput(
        F.binary_cross_entropy_with_logits(logits, batch.labels, reduction="sum"),
        len(batch.labels),
        {"accuracy": ((logits > 0) == (batch.labels > 0.5)).sum(), "tokens": (batch.input_ids != 0).sum()},
    )


def tagging_loss(model: nn.Module, batch: LabelledBatch) -> LossOutput:
    """Cross-entropy of the logits of each token's label; a label of 0 is left out.

    Args:
        model: A model from ids ``(batch, length)`` to logits ``(batch, length, num_labels)``.
        batch: Ids, and labels ``(batch, length)``.

    Returns:
        The summed cross-entropy in nats, the number of labels, and the sums of ``accuracy`` and ``tokens``.

    Example:
        >>> model = nn.Embedding.from_pretrained(torch.eye(8))  # its logit is 1 for the id itself, else 0
        >>> loss = tagging_loss(model, LabelledBatch(torch.tensor([[5, 6], [7, 0]]), torch.tensor([[5, 1], [0, 0]])))
        >>> loss.count.item(), loss.metrics["accuracy"].item(), loss.metrics["tokens"].item()
        (2, 1, 3)
    """
    logits, labelled = model(batch.input_ids), batch.labels != 0
    return LossOutput(
        F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=0, reduction="sum"),
        labelled.sum(),
        {
            "accuracy": ((logits.argmax(dim=-1) == batch.labels) & labelled).sum(),
            "tokens": (batch.input_ids != 0).sum(),
        },
    )


def span_loss(model: nn.Module, batch: LabelledBatch) -> LossOutput:
    """Mean of the cross-entropies of a span's first and of its last position.

    It is half the sum in Devlin et al., 2019, section 4.2 (arXiv:1810.04805), as in their code.

    Args:
        model: A model from ids ``(batch, length)`` to start and end logits ``(batch, length)``.
        batch: Ids, and the spans ``(batch, 2)``.

    Returns:
        The summed loss in nats, the number of examples, and the sums of ``accuracy``, both ends right, and ``tokens``.

    Example:
        >>> model = SpanExtractor(SpanConfig(vocab_size=9, d_model=4, num_heads=1, d_ff=4)).eval()
        >>> _ = nn.init.zeros_(model.output.weight), nn.init.zeros_(model.output.bias)  # every logit is 0
        >>> loss = span_loss(model, LabelledBatch(torch.tensor([[2, 5, 3, 6, 7]]), torch.tensor([[3, 4]])))
        >>> round(loss.loss_sum.item(), 3), loss.metrics["accuracy"].item()  # the logarithm of three positions
        (1.099, 0)
    """
    ends, labels = model(batch.input_ids), batch.labels
    first, last = (F.cross_entropy(logits, labels[:, end], reduction="sum") for end, logits in enumerate(ends))
    return LossOutput(
        (first + last) / 2,
        len(labels),
        {
            "accuracy": (best_spans(*(logits.detach() for logits in ends)) == labels).all(dim=1).sum(),
            "tokens": (batch.input_ids != 0).sum(),
        },
    )


def seq2seq_loss(model: nn.Module, batch: Seq2SeqBatch) -> LossOutput:
    """Cross-entropy of each next token of the target, given the right ones before it: `Seq2SeqTransformer.loss`.

    Args:
        model: A `companion.Seq2SeqTransformer`.
        batch: Sources and targets.

    Returns:
        The summed loss in nats, with smoothed labels, the number of tokens predicted, and the sums of ``accuracy`` and
        ``tokens``, those of both sides.

    Example:
        >>> config = Seq2SeqConfig(source_vocab_size=9, target_vocab_size=9, d_model=16, num_layers=1)
        >>> batch = Seq2SeqBatch(torch.tensor([[5, 6]]), torch.tensor([[2, 7, 3]]))
        >>> seq2seq_loss(Seq2SeqTransformer(config), batch).count.item()  # 7 and 3
        2
    """
    labels = batch.target_ids[:, 1:]
    logits = model(batch.source_ids, batch.target_ids[:, :-1])
    unwrapped: Any = getattr(model, "module", model)  # several processes wrap it
    loss_sum, count = unwrapped.loss(logits, labels)
    return LossOutput(
        loss_sum,
        count,
        {
            "accuracy": ((logits.argmax(dim=-1) == labels) & (labels != 0)).sum(),
            "tokens": (batch.source_ids != 0).sum() + (batch.target_ids != 0).sum(),
        },
    )


class LossSums:
    """Sums of loss, count and metrics over batches, in float64, so that batches in a row add up without rounding.

    Args:
        sums: What there is to begin with; nothing, unless it goes on from a checkpoint.
    """

    def __init__(self, sums: Mapping[str, Tensor] | None = None) -> None:
        self.sums = dict(sums or {})

    def add(self, loss: LossOutput) -> None:
        """Add those of a batch."""
        device = loss.loss_sum.device
        for name, value in {"loss": loss.loss_sum, "count": loss.count, **loss.metrics}.items():
            value = torch.as_tensor(value, device=device).detach().to(sum_dtype(device))
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def means(self) -> tuple[dict[str, float], int]:
        """Return the means over all examples, and the number of tokens, 0 where the loss does not count them."""
        values = {name: value.item() for name, value in self.sums.items()}
        count, tokens = values.pop("count"), int(values.pop("tokens", 0))
        return {name: value / count for name, value in values.items()}, tokens


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the widest float that a device computes with; Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
