"""The exercises of the chapter on IMDB: log-count ratios, a mean over parts, calibration, deletion."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.exercises.comparison import as_number, call, compare, random_tensors


def check_log_count_ratio(f: Callable[..., Any]) -> None:
    """Check log-count ratios (Wang & Manning, 2012, section 2.1): ``f(positive, negative, alpha=1.0) -> ratios``.

    ``positive`` and ``negative``, float ``(ngrams,)``, say how many positive and how many negative texts hold each
    n-gram. With ``p = positive + alpha`` and ``q = negative + alpha`` the ratios, ``(ngrams,)``, are
    ``log((p / p.sum()) / (q / q.sum()))``.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_log_count_ratio(lambda positive, negative, alpha=1.0: torch.log(positive / negative))
        Traceback (most recent call last):
        AssertionError: Neither alpha nor a sum is there: add alpha to every count, then divide by their sum.
    """
    # In float32, as counts are that a reader has collected in torch.zeros(ngrams).
    positive, negative = torch.tensor([12.0, 0.0, 3.0, 7.0, 1.0]), torch.tensor([2.0, 4.0, 0.0, 5.0, 1.0])

    def ratios(alpha: float, in_sum: float, after: float = 0.0) -> Tensor:
        p, q = ((count + alpha) / (count + in_sum).sum() + after for count in (positive.double(), negative.double()))
        return (p / q).log()

    right = ratios(1.0, 1.0)
    compare(
        "ratios",
        call(f, positive, negative),
        right,
        {
            "Neither alpha nor a sum is there: add alpha to every count, then divide by their sum.": (
                positive / negative
            ).log(),
            "alpha is missing, and the log of a count of 0 is infinite: add alpha to every count.": ratios(0.0, 0.0),
            "alpha is added after the division by the sum: add it to the counts.": ratios(0.0, 0.0, after=1.0),
            "The sums are those of the counts without alpha: add it to the counts first, then sum.": ratios(1.0, 0.0),
            "alpha is added to the sums once: it is in each of the counts that are summed.": ratios(
                1.0, 1 / len(positive)
            ),
            "The counts are not divided, or in both classes by the same number (of texts, of n-grams), which cancels: "
            "divide by each class's own sum.": ((positive + 1) / (negative + 1)).log(),
            "The ratio is upside down: the positive class stands above.": -right,
            "The logarithm is that to base 2: take the natural one.": right.exp().log2(),
            "The logarithm is that to base 10: take the natural one.": right.exp().log10(),
            "The logarithm is missing: take it of the ratio.": right.exp(),
        },
        atol=1e-5,
        any_float=True,
    )
    compare(
        "ratios with alpha=0.5",
        call(f, positive, negative, 0.5),
        ratios(0.5, 0.5),
        {"The argument alpha is ignored: put it in the place of 1.": right},
        atol=1e-5,
        any_float=True,
    )
    print("Right: counts with alpha, each class by its own sum, and the log of their ratio.")


def check_mean_loss(f: Callable[..., Any]) -> None:
    """Check the mean loss over micro-batches or processes: ``f(parts) -> mean``.

    ``parts`` is a list of pairs ``(loss_sum, count)``: the losses of a part's examples summed, and how many examples
    there are. The mean, a number, is over all examples.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_mean_loss(lambda parts: sum(loss_sum / count for loss_sum, count in parts) / len(parts))
        Traceback (most recent call last):
        AssertionError: This is the mean of the parts' means, in which an example of a small part counts for more: ...
    """
    parts = [(6.0, 4), (1.5, 3), (9.0, 10), (4.4, 2)]
    loss_sums, counts = torch.tensor(parts, dtype=torch.float64).T
    means = loss_sums / counts
    compare(
        "mean",
        as_number(call(f, list(parts)), float),
        loss_sums.sum() / counts.sum(),
        {
            "This is the mean of the parts' means, in which an example of a small part counts for more: divide the sum "
            "of the sums by the sum of the counts.": means.mean(),
            "The parts' means are added up: divide the sum of the sums by the sum of the counts.": means.sum(),
            "The sum of the losses is divided by the number of parts: divide it by the number of examples.": (
                loss_sums.mean()
            ),
            "The sum of the losses is not divided: divide it by the number of examples.": loss_sums.sum(),
            "The last part is forgotten: it belongs to both sums.": loss_sums[:-1].sum() / counts[:-1].sum(),
            "Only the last part is taken: add up all of them first, then divide.": means[-1],
        },
        atol=1e-6,  # it may be a float32 tensor
    )
    print("Right: one sum of losses, divided once by one sum of counts.")


def check_calibration_error(f: Callable[..., Any]) -> None:
    """Check the expected calibration error: ``f(probabilities, labels, num_bins=10) -> error``.

    Equation 3 of Guo et al., 2017, arXiv:1706.04599, for the probability of the positive class: the sum over bins of
    ``count / n * |mean label - mean probability|``, a number. ``probabilities`` and ``labels`` (0 or 1) are float
    ``(n,)``; the bins are of equal width and cover 0 to 1, both included.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_calibration_error(lambda probabilities, labels, num_bins=10: (probabilities - labels).abs().mean())
        Traceback (most recent call last):
        AssertionError: There are no bins: take the means of labels and probabilities in each bin, then their ...
    """
    # In float32, as a model's probabilities are; none at the edge of a bin, until 1 and 0 follow.
    probabilities = torch.tensor([0.04, 0.09, 0.25, 0.61, 0.72, 0.87, 0.88, 0.92, 0.93])
    labels = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    n = len(labels)

    def bins(probabilities: Tensor, labels: Tensor, num_bins: int = 10) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return of each bin that is not empty its number, share of the examples, mean label, mean probability."""
        index = (probabilities * num_bins).long().clamp(max=num_bins - 1)
        filled, index, count = index.unique(return_inverse=True, return_counts=True)
        member = F.one_hot(index).T.double() / count[:, None]
        return filled, count.double() / len(labels), member @ labels.double(), member @ probabilities.double()

    def error(probabilities: Tensor, labels: Tensor, num_bins: int = 10) -> Tensor:
        _, share, label, probability = bins(probabilities, labels, num_bins)
        return share @ (label - probability).abs()

    filled, share, label, probability = bins(probabilities, labels)
    gap = label - probability
    right = share @ gap.abs()
    correct = ((probabilities > 0.5) == labels).double()
    compare(
        "error",
        as_number(call(f, probabilities, labels), float),
        right,
        {
            "Empty bins give NaN, the mean of nothing: leave them out.": torch.tensor(torch.nan),
            "The gaps of the bins are averaged over all bins: weight each by its share of the examples, count / n.": (
                gap.abs().sum() / 10
            ),
            "The gaps are averaged over the bins that are not empty: weight each by its share of the examples, "
            "count / n.": gap.abs().mean(),
            "The gaps are added up unweighted: weight each by its share of the examples, count / n.": gap.abs().sum(),
            "The gaps are weighted by the counts: divide by the number of examples.": n * right,
            "The largest gap is taken: sum all gaps, each weighted by its share of the examples, count / n.": (
                gap.abs().max()
            ),
            "The gaps keep their sign and cancel: take the absolute value in each bin.": share @ gap,
            "The gaps keep their sign and cancel, here to less than 0: take the absolute value in each bin.": (
                share @ -gap
            ),
            "The gaps are squared: take their absolute value.": share @ gap.square(),
            "The middle of the bin stands in place of the probabilities: take their mean in the bin.": (
                share @ (label - (filled + 0.5) / 10).abs()
            ),
            "The accuracy of the predicted label stands in place of the share of positives: take the mean label.": (
                share @ (bins(probabilities, correct)[2] - probability).abs()
            ),
            "The confidence in the predicted label is measured: take the probability of the positive class and the "
            "mean label.": error(torch.maximum(probabilities, 1 - probabilities), correct),
            "There are no bins: take the means of labels and probabilities in each bin, then their difference.": (
                (labels - probabilities).abs().mean()
            ),
        },
        atol=1e-6,
    )
    compare(
        "error with num_bins=5",
        as_number(call(f, probabilities, labels, 5), float),
        error(probabilities, labels, 5),
        {"The argument num_bins is ignored: put it in the place of 10.": right},
        atol=1e-6,
    )
    for edge, its_label, place in ((1.0, 0.0, "last"), (0.0, 1.0, "first")):
        with_edge = torch.cat((probabilities, torch.tensor([edge]))), torch.cat((labels, torch.tensor([its_label])))
        compare(
            f"error with a probability of {edge:.0f}",
            as_number(call(f, *with_edge), float),
            error(*with_edge),
            {
                f"A probability of {edge:.0f} is in no bin: the {place} one includes it.": right * n / (n + 1),
                f"A probability of {edge:.0f} has a bin of its own: the {place} one includes it.": (
                    (right * n + 1) / (n + 1)
                ),
            },
            atol=1e-6,
        )
    print("Right: the gap of each bin, weighted by its share of the examples.")


class _Model(nn.Module):
    """A logit for each text: the mean over its tokens of what id and position add up to; 0 is padding."""

    def __init__(self) -> None:
        super().__init__()
        embedding, positions = random_tensors((10, 4), (8, 4))
        self.embedding = nn.Embedding.from_pretrained(embedding)
        self.positions = nn.Buffer(positions)

    def forward(self, input_ids: Tensor) -> Tensor:
        if input_ids.dim() != 2:
            shape = tuple(input_ids.shape)
            raise AssertionError(f"f gives the model ids of shape {shape}: it reads a batch, such as input_ids[None].")
        scores = (self.embedding(input_ids) + self.positions[: input_ids.size(1)]).tanh().sum(-1)
        mask = input_ids != 0
        return (scores * mask).sum(-1) / mask.sum(-1)


def check_deletion(f: Callable[..., Any]) -> None:
    """Check what each token does to the logit: ``f(model, input_ids) -> effects``.

    ``model`` maps ids ``(batch, length)``, padded with 0, to logits ``(batch,)``; ``input_ids`` is one text,
    ``(length,)``, of two tokens at least. The effects, ``(length,)``, are the logit of the text minus the logit of the
    text without the token, so that what speaks for the positive class is positive.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_deletion(lambda model, input_ids: model(input_ids))
        Traceback (most recent call last):
        AssertionError: f gives the model ids of shape (5,): it reads a batch, such as input_ids[None].
    """
    model, ids = _Model(), torch.tensor([5, 7, 4, 7, 8])

    def logits(texts: list[Tensor]) -> Tensor:
        return torch.cat([model(text[None]) for text in texts])

    def replaced(by: int) -> Tensor:
        return logits([ids.where(torch.arange(5) != i, torch.tensor(by)) for i in range(5)])

    whole = model(ids[None])
    without = logits([torch.cat((ids[:i], ids[i + 1 :])) for i in range(5)])
    right = whole - without
    remove = "leave it out, so that those after it move up"
    compare(
        "effects",
        call(f, model, ids),
        right,
        {
            f"The token is replaced by padding, 0: {remove}.": whole - replaced(0),
            f"The token is replaced by the unknown one, 1: {remove}.": whole - replaced(1),
            "The sign is wrong: subtract the logit without the token from that of the whole text.": -right,
            "The absolute value is taken: keep the sign, which says for which class the token speaks.": right.abs(),
            "Probabilities are subtracted: subtract logits, without a sigmoid.": whole.sigmoid() - without.sigmoid(),
            "The logit without the token is returned: subtract it from that of the whole text.": without,
            "All tokens up to this one are left out: leave out this one alone.": (
                whole - logits([ids[i + 1 :] for i in range(5)])
            ),
            "All tokens from this one on are left out: leave out this one alone.": (
                whole - logits([ids[:i] for i in range(5)])
            ),
            "Every token of the same id is left out: leave out the one at this position alone.": (
                whole - logits([ids[ids != ids[i]] for i in range(5)])
            ),
        },
        atol=1e-6,  # they may be float32
        any_float=True,
    )
    print("Right: the logit of the text minus that without the token, one token at a time.")
