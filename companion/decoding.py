"""Decoding: greedy and beam search, for any model of the next token, and the best span, for one of a span's ends."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

NextLogProbs = Callable[[Tensor, Tensor | None], Tensor]
"""From the ids so far, ``(rows, length)``, to the log-probabilities of the next one, ``(rows, vocab)``.

The second argument names, for each row, the row of the call before that it continues: what a key-value cache has to be
reordered by. It is ``None`` where rows stay in their places.
"""


def greedy_search(
    next_log_probs: NextLogProbs, start: Int[Tensor, "batch 1"], *, max_length: int, eos_id: int, pad_id: int = 0
) -> Int[Tensor, "batch length"]:
    """Take the most probable token at each step, until each row has ended.

    Args:
        next_log_probs: The model, as `companion.decoding.NextLogProbs` says.
        start: The first id of each row, ``(batch, 1)``.
        max_length: The most ids a row may have, ``start`` included.
        eos_id: The id that ends a row.
        pad_id: The id that fills an ended row; never predicted.

    Returns:
        Ids, ``(batch, length)``, as long as the longest row.

    Example:
        >>> cycle = torch.tensor([[0.0, 0, 0, 1], [0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]).log()
        >>> greedy_search(lambda ids, rows: cycle[ids[:, -1]], torch.tensor([[0], [2]]), max_length=9, eos_id=1)
        tensor([[0, 3, 2, 1],
                [2, 1, 0, 0]])
    """
    ids = start
    finished = torch.zeros_like(start, dtype=torch.bool)  # (b, 1)
    while ids.size(1) < max_length and not finished.all():
        log_probs = _without(pad_id, next_log_probs(ids, None))
        token = log_probs.argmax(dim=-1, keepdim=True).masked_fill(finished, pad_id)
        ids = torch.cat((ids, token), dim=1)
        finished = finished | (token == eos_id)
    return ids


def beam_search(
    next_log_probs: NextLogProbs,
    start: Int[Tensor, "batch 1"],
    *,
    num_beams: int,
    length_penalty: float = 0.0,
    max_length: int,
    eos_id: int,
    pad_id: int = 0,
) -> Int[Tensor, "batch length"]:
    r"""Keep the ``num_beams`` best hypotheses of each row at each step, and return the best at the end.

    A hypothesis Y is ranked by ``log P(Y) / ((5 + |Y|) / 6)^length_penalty`` (Wu et al., 2016, arXiv:1609.08144,
    equation 14), where ``|Y|`` counts the tokens after ``start``. One that has ended stays among the best, at its rank,
    until better ones push it out. The search stops once no hypothesis can overtake the best that has ended.

    Args:
        next_log_probs: The model, as `companion.decoding.NextLogProbs` says; its rows are ``batch * num_beams``, the
            beams of a row beside each other.
        start: The first id of each row, ``(batch, 1)``.
        num_beams: How many hypotheses are kept; 1 is greedy search.
        length_penalty: 0 ranks by probability alone, which favours short outputs; Vaswani et al., 2017, section 6.1,
            took 0.6, with 4 beams.
        max_length: The most ids a row may have, ``start`` included.
        eos_id: The id that ends a row.
        pad_id: The id that fills an ended row; never predicted.

    Returns:
        Ids, ``(batch, length)``, as long as the longest row.

    Example:
        >>> after = torch.tensor([[0.0, 0, 0.6, 0.4], [0, 1, 0, 0], [0, 0.5, 0.25, 0.25], [0, 1, 0, 0]]).log()
        >>> for num_beams in (1, 2):  # 0.6 * 0.5 is less than 0.4 * 1
        ...     beam_search(
        ...         lambda ids, rows: after[ids[:, -1]],
        ...         torch.tensor([[0]]),
        ...         num_beams=num_beams,
        ...         max_length=4,
        ...         eos_id=1,
        ...     )
        tensor([[0, 2, 1]])
        tensor([[0, 3, 1]])
    """
    batch = start.size(0)
    first_rows = torch.arange(batch, device=start.device)[:, None] * num_beams  # (b, 1)
    ids, rows = start.repeat_interleave(num_beams, dim=0), None
    lengths = torch.zeros(batch, num_beams, dtype=torch.long, device=start.device)
    finished = torch.zeros_like(lengths, dtype=torch.bool)
    log_prob = torch.zeros_like(lengths, dtype=torch.float32)
    log_prob[:, 1:] = -torch.inf  # the beams of a row begin alike: one of them counts
    decided = torch.zeros_like(finished[:, 0])

    def rank(log_prob: Tensor, lengths: Tensor) -> Tensor:
        return log_prob / ((5 + lengths.to(log_prob.dtype)) / 6) ** length_penalty

    while ids.size(1) < max_length and not decided.all():
        steps = _without(pad_id, next_log_probs(ids, rows)).unflatten(0, (batch, num_beams))  # (b, k, v)
        steps = steps.masked_fill(finished[..., None], -torch.inf)
        steps[..., pad_id].masked_fill_(finished, 0.0)  # what has ended goes on with padding, at no cost
        candidates = log_prob[..., None] + steps
        lengths = lengths + ~finished
        best = rank(candidates, lengths[..., None]).flatten(1).topk(num_beams).indices  # (b, k)
        beam, token = best // steps.size(-1), best % steps.size(-1)
        log_prob, lengths = candidates.flatten(1).gather(1, best), lengths.gather(1, beam)
        finished = finished.gather(1, beam) | (token == eos_id)
        rows = (first_rows + beam).flatten()
        ids = torch.cat((ids[rows], token.view(-1, 1)), dim=1)
        ended = rank(log_prob, lengths).masked_fill(~finished, -torch.inf)
        reachable = rank(log_prob, torch.full_like(lengths, max_length - 1)).masked_fill(finished, -torch.inf)
        decided = ended.amax(dim=1) >= reachable.amax(dim=1)
        log_prob = log_prob.masked_fill(decided[:, None] & ~finished, -torch.inf)  # nor may a tie change it later
    winner = rank(log_prob, lengths).argmax(dim=1, keepdim=True)  # (b, 1)
    longest = max(lengths.gather(1, winner).flatten().tolist(), default=0)
    return ids[(first_rows + winner).flatten(), : 1 + longest]


def best_spans(
    start_logits: Float[Tensor, "batch length"],
    end_logits: Float[Tensor, "batch length"],
    *,
    max_length: int | None = None,
) -> Int[Tensor, "batch 2"]:
    """Return the span with the largest sum of start and end logit, position 0 standing for "no answer".

    No span ends before it starts, and none that starts at 0 goes on, as for the questions of SQuAD 2.0 in Devlin et
    al., 2019, section 4.3 (arXiv:1810.04805; their margin in favour of an answer is 0 here).

    Args:
        start_logits: ``(batch, length)``; ``-inf`` where no span may start.
        end_logits: ``(batch, length)``; ``-inf`` where none may end.
        max_length: The most tokens that a span may have; ``None`` = no bound.

    Returns:
        The first and the last position of each span, ``(batch, 2)``; both 0 where there is no answer.

    Raises:
        ValueError: If the shapes differ, or ``max_length`` is below 1.

    Example:
        >>> start = torch.tensor([[0.0, 1.0, 0.0, 3.0]])
        >>> end = torch.tensor([[0.0, 4.0, 2.0, 1.0]])  # the best end lies before the best start
        >>> best_spans(start, end)
        tensor([[1, 1]])
    """
    if start_logits.shape != end_logits.shape:
        raise ValueError(f"end_logits has shape {tuple(end_logits.shape)}; expected {tuple(start_logits.shape)}")
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length={max_length}; choose 1 or more")
    length = start_logits.size(1)
    position = torch.arange(length, device=start_logits.device)
    reach = position - position[:, None]  # (start, end)
    allowed = (reach >= 0) & (reach < (max_length or length))
    allowed[0, 1:] = False
    scores = start_logits[:, :, None] + end_logits[:, None, :]
    best = scores.masked_fill(~allowed, -torch.inf).flatten(1).argmax(dim=1)
    return torch.stack((best // length, best % length), dim=1)


def _without(pad_id: int, log_probs: Tensor) -> Tensor:
    log_probs = log_probs.clone()
    log_probs[:, pad_id] = -torch.inf
    return log_probs
