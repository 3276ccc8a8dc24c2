"""The exercises of the chapter on ALBERT: parameters, n-grams, the input of sentence-order prediction, the loss."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.exercises.comparison import as_number, as_pair, call, compare, is_same, random_tensors


def check_albert_parameters(f: Callable[..., Any]) -> None:
    """Check a count of parameters: ``f(vocab_size, embedding_size, hidden_size, num_layers) -> int``.

    Those of an ALBERT without its pooler: the word embeddings (positions and token types are left out), the map to the
    hidden width and its bias, and the one layer that all ``num_layers`` share: four projections, two feed-forward maps
    with an inner width of ``4 hidden_size``, two LayerNorms, all with biases.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_albert_parameters(lambda v, e, h, layers: v * h + 12 * h * h + 13 * h)
        Traceback (most recent call last):
        AssertionError: The embeddings are as wide as the layers: they are V x E, and a map E x H with its bias follows.
    """
    v, e, h, layers = 50, 5, 8, 3
    embeddings, mapped, layer = v * e, e * h + h, 12 * h * h + 13 * h
    right = embeddings + mapped + layer
    compare(
        f"number of parameters with V={v}, E={e}, H={h} and {layers} layers",
        as_number(call(f, v, e, h, layers), int),
        torch.tensor(right),
        {
            sentence: torch.tensor(wrong)
            for sentence, wrong in {
                "The embeddings are as wide as the layers: they are V x E, and a map E x H with its bias follows.": (
                    v * h + layer
                ),
                "The layers share nothing: all of them have one set of parameters.": right + (layers - 1) * layer,
                "This is BERT, with wide embeddings and a set of parameters for each layer.": v * h + layers * layer,
                "The map from E to H is forgotten: it has E x H weights and a bias.": embeddings + layer,
                "The bias of the map from E to H is forgotten: add H.": right - h,
                "The layer is counted without biases and LayerNorms: add 13 H.": right - 13 * h,
                "The LayerNorms (or as many, the biases of the four projections) are forgotten: add 4 H.": right
                - 4 * h,
                "The biases of the feed-forward maps are forgotten: add 5 H.": right - 5 * h,
                "The inner width of the feed-forward network is H: it is 4 H.": right - 6 * h * h - 3 * h,
            }.items()
        },
    )
    print("Right: narrow embeddings, the map to the layers' width, and one layer for all.")


def check_ngram_lengths(f: Callable[..., Any]) -> None:
    """Check the distribution of the lengths of masked n-grams: ``f(max_n) -> probabilities`` of 1 to ``max_n``.

    ``p(n) = (1 / n) / sum_k (1 / k)``, a tensor of shape ``(max_n,)`` (Lan et al., 2020, section 4.1).

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_ngram_lengths(lambda max_n: torch.full((max_n,), 1 / max_n))
        Traceback (most recent call last):
        AssertionError: All lengths are equally likely: p(n) is proportional to 1 / n.
    """
    for max_n in (3, 5):
        n = torch.arange(1, max_n + 1, dtype=torch.float64)
        weights = 1 / n
        compare(
            f"probabilities with max_n={max_n}",
            call(f, max_n),
            weights / weights.sum(),
            {
                "All lengths are equally likely: p(n) is proportional to 1 / n.": torch.full_like(n, 1 / max_n),
                "The probabilities do not sum to 1: divide by the sum of 1 / k.": weights,
                "p(n) is proportional to n, so that long n-grams are likely: to 1 / n.": n / n.sum(),
                "Each length is half as likely as the one before: p(n) is proportional to 1 / n.": (
                    0.5**n / (0.5**n).sum()
                ),
                "p(n) falls with the square of n: it is proportional to 1 / n.": weights**2 / (weights**2).sum(),
                "This is a softmax of 1 / n: divide 1 / n by its sum.": weights.softmax(0),
                "The sum of 1 / k begins at 0 or ends before max_n: it goes from 1 to max_n.": (
                    weights / weights[:-1].sum()
                ),
            },
            atol=1e-6,
            any_float=True,
        )
    print("Right: one word twice as likely as two, three times as likely as three.")


def check_sentence_order(f: Callable[..., Any]) -> None:
    """Check the input of sentence-order prediction: ``f(first, second, swapped) -> (input_ids, token_type_ids)``.

    ``first`` and ``second`` are lists of token ids, in the order of the text. The input is ``[CLS] A [SEP] B [SEP]``,
    with ids 2 and 3 for ``[CLS]`` and ``[SEP]``; where ``swapped``, A is the second segment. The type is 1 in B and its
    ``[SEP]``, 0 before. Both are lists, or tensors of one dimension.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_sentence_order(lambda a, b, swapped: ([2, *a, 3, *b, 3], [0] * (len(a) + 2) + [1] * (len(b) + 1)))
        Traceback (most recent call last):
        AssertionError: The segments are not swapped where swapped is true: A is the second one then.
    """
    first, second = [11, 12, 13], [21]

    def build(a: list[int], b: list[int], early: int = 0) -> tuple[list[int], list[int]]:
        return [2, *a, 3, *b, 3], [0] * (len(a) + 2 - early) + [1] * (len(b) + 1 + early)

    for swapped in (False, True):
        a, b = (second, first) if swapped else (first, second)
        ids, types = build(a, b)
        got = as_pair(call(f, list(first), list(second), swapped), "(input_ids, token_type_ids)")
        found = [_as_ids(part) for part in got]
        mistakes: dict[str, tuple[list[int], list[int]]] = {
            "[CLS] is missing: it comes first.": (ids[1:], types[1:]),
            "The last [SEP] is missing: one ends each segment.": (ids[:-1], types[:-1]),
            "The [SEP] between the segments is missing: one ends each segment.": (
                [2, *a, *b, 3],
                [0] * (len(a) + 1) + [1] * (len(b) + 1),
            ),
            "The first [SEP] is of type 1: it belongs to A, which it ends.": build(a, b, early=1),
            "All types are 0: they are 1 in B and in its [SEP].": (ids, [0] * len(ids)),
            "The types are the wrong way round: 0 in A, 1 in B.": (ids, [1 - kind for kind in types]),
            "The last [SEP] is of type 0: it belongs to B, which it ends.": (ids, [*types[:-1], 0]),
        }
        if swapped:
            plain, own = build(first, second)
            mistakes |= {
                "The segments are not swapped where swapped is true: A is the second one then.": (plain, own),
                "The types are swapped with the segments, which gives the answer away: the type is that of the place, "
                "0 in A and 1 in B, whichever segment stands there.": (
                    ids,
                    [0, *[1] * (len(a) + 1), *[0] * (len(b) + 1)],
                ),
                "The types are those of the text's order: count them for the segments as they stand.": (ids, own),
            }
        else:
            mistakes["The segments are swapped where swapped is false."] = build(b, a)
        for sentence, wrong in mistakes.items():
            if all(is_same(part, torch.tensor(other), 0.5) for part, other in zip(found, wrong, strict=True)):
                raise AssertionError(sentence)
        compare("input ids", found[0], torch.tensor(ids), {})
        compare("token type ids", found[1], torch.tensor(types), {})
    print("Right: [CLS] A [SEP] B [SEP], swapped or not, and types that do not tell which.")


def _as_ids(part: object) -> object:
    """Make a tensor of a list of ids."""
    return torch.tensor(part) if isinstance(part, list | tuple) else part


def check_masked_loss(f: Callable[..., Any]) -> None:
    """Check the masked-language loss: ``f(logits, labels) -> loss``, a mean over the masked positions alone.

    ``logits`` is ``(batch, length, vocab)``; ``labels`` is ``(batch, length)``, with the id to name where a token is
    masked, and -100 elsewhere. The loss is the mean cross-entropy in nats, over all masked positions of the batch.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_masked_loss(lambda logits, labels: F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
        Right: the mean over the masked positions, and nothing else.
    """
    (logits,) = random_tensors((3, 4, 6))
    labels = torch.tensor([[-100, 5, -100, 2], [-100, 4, 1, 3], [-100, -100, -100, -100]])
    masked = labels != -100
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    as_zero = F.cross_entropy(logits.transpose(1, 2), labels.clamp(min=0), reduction="none")
    rows: Tensor = losses.sum(dim=1)[:2] / masked.sum(dim=1)[:2]
    compare(
        "loss",
        call(f, logits, labels),
        losses.sum() / masked.sum(),
        {
            "The mean is over all positions: divide by the number of masked ones.": losses.mean(),
            "The losses are summed: divide by the number of masked positions.": losses.sum(),
            "The loss is that of all positions, a label of -100 counted as token 0: leave those out.": as_zero.mean(),
            "Each text counts alike, however many masks it has: take one mean over all masked positions.": rows.mean(),
            "The sum is divided by the number of texts: divide by that of the masked positions.": losses.sum() / 3,
            "The sign is wrong: the loss is minus the log-probability.": -losses.sum() / masked.sum(),
        },
        atol=1e-6,
        any_float=True,
    )
    print("Right: the mean over the masked positions, and nothing else.")
