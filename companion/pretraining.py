"""Pre-training ALBERT: masked words, pairs of segments, the batches of them, and their loss.

The two tasks of Lan et al., 2020, sections 3.1 and 4.1: to name the words behind masks, and to say whether two
segments of a text have been swapped.
"""

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader

from companion.batching import LengthBucketSampler, mix_seed, pad_batch
from companion.configs import check_choices, check_positive
from companion.losses import LossOutput
from companion.text import SentencePieceTokenizer

SentenceTask = Literal["sop", "nsp", "none"]


@dataclass(frozen=True, kw_only=True)
class PreTrainingTask:
    """What a model is pre-trained to do.

    Attributes:
        sentence_task: ``"sop"`` for `sentence_order_pairs`, ``"nsp"`` for `next_sentence_pairs` among the windows of a
            batch, ``"none"`` for windows of one segment.
        mask_probability: The chance of a word to be hidden, as in `mask_tokens`.
        max_n: The longest n-gram that is hidden, in words, as in `mask_tokens`.

    Raises:
        ValueError: If a value is out of range; the message names the field and what would do.

    Example:
        >>> PreTrainingTask(mask_probability=0.0)
        Traceback (most recent call last):
        ValueError: mask_probability=0.0; choose 0 < mask_probability < 1
    """

    sentence_task: SentenceTask = "sop"
    mask_probability: float = 0.15
    max_n: int = 3

    def __post_init__(self) -> None:
        check_choices(self, sentence_task=SentenceTask)
        if not 0 < self.mask_probability < 1:
            raise ValueError(f"mask_probability={self.mask_probability}; choose 0 < mask_probability < 1")
        check_positive(self, "max_n")


IGNORED = -100
"""The label of what the loss leaves out, as in PyTorch's cross-entropy."""

_LEAD_IN = 30
"""Words before the first one, after which a word's chance to be chosen no longer depends on where the choice began."""


class MaskedTokens(NamedTuple):
    """Token ids with some of them hidden.

    Attributes:
        input_ids: What the model sees.
        labels: The id that stood there, where one is to be named; -100 elsewhere.

    Example:
        >>> ids = torch.arange(5, 105)[None]
        >>> masked, labels = mask_tokens(ids, vocab_size=105, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(torch.where(labels == -100, masked, labels), ids)
        True
    """

    input_ids: Tensor
    labels: Tensor


def mask_tokens(
    input_ids: Int[Tensor, "batch length"],
    *,
    vocab_size: int,
    mask_id: int = 4,
    special_ids: Collection[int] = (0, 1, 2, 3),
    continues: Bool[Tensor, "vocab"] | None = None,
    probability: float = 0.15,
    max_n: int = 3,
    generator: Generator | None = None,
) -> MaskedTokens:
    r"""Choose n-grams of whole words, and hide them (Lan et al., 2020, section 4.1).

    A word is chosen with ``probability``, within an n-gram of length n, drawn with
    :math:`p(n) = \frac{1/n}{\sum_{k=1}^{N} 1/k}`, N = ``max_n``. Of the tokens chosen, 80 % become the mask, 10 % a
    random token, and 10 % stay as they are (Devlin et al., 2019, arXiv:1810.04805, section 3.1).

    An n-gram that meets the end of a segment goes on in the next one.

    Args:
        input_ids: Token ids, ``(batch, length)``.
        vocab_size: Number of tokens; a random token is any but the mask and the special ones.
        mask_id: The id of the mask.
        special_ids: Ids that are never chosen: padding, unknown, ``[CLS]``, ``[SEP]``.
        continues: For each token whether it continues a word, ``(vocab_size,)``; ``None`` = none does.
        probability: The chance of a word to be chosen.
        max_n: The longest n-gram, in words; 1 chooses single words.
        generator: What draws; ``None`` = PyTorch's default one.

    Returns:
        The ids with some hidden, and the labels.

    Raises:
        ValueError: If ``probability`` is not between 0 and 1, ``max_n`` not positive, or all tokens are special.

    Example:
        >>> ids = torch.randint(5, 1_000, (64, 512))
        >>> masked, labels = mask_tokens(ids, vocab_size=1_000)
        >>> chosen = labels != -100
        >>> f"{chosen.float().mean():.2f} {(masked[chosen] == 4).float().mean():.1f}"
        '0.15 0.8'
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability={probability}; choose 0 < probability < 1")
    if max_n < 1:
        raise ValueError(f"max_n={max_n}; choose 1 or more")
    hidden = sorted({*special_ids, mask_id})
    if len(hidden) >= vocab_size:
        raise ValueError(f"vocab_size={vocab_size} has no room for any but the special tokens; choose more")
    hidden_ids = torch.tensor(hidden, device=input_ids.device)
    open_ = ~torch.isin(input_ids, hidden_ids)
    starts = open_.clone()
    if continues is not None:
        starts[:, 1:] &= ~continues[input_ids[:, 1:]] | ~open_[:, :-1]
    word = starts.flatten().cumsum(0) - 1
    chosen_words = _choose_words(int(starts.sum()), probability, max_n, generator).to(input_ids.device)
    chosen = torch.zeros_like(open_)
    chosen[open_] = chosen_words[word[open_.flatten()]]
    ordinary = torch.ones(vocab_size, dtype=torch.bool).index_fill_(0, hidden_ids.cpu(), False).nonzero().squeeze(1)
    fate = torch.rand(input_ids.shape, generator=generator).to(input_ids.device)
    random = ordinary[torch.randint(len(ordinary), input_ids.shape, generator=generator)].to(input_ids)
    seen = input_ids.masked_fill(chosen & (fate < 0.8), mask_id)
    seen = torch.where(chosen & (fate >= 0.9), random, seen)
    return MaskedTokens(seen, input_ids.masked_fill(~chosen, IGNORED))


def _choose_words(count: int, probability: float, max_n: int, generator: Generator | None) -> Tensor:
    """Let gaps and n-grams take turns along ``count`` words, so that each word is chosen with ``probability``."""
    weights = 1 / torch.arange(1, max_n + 1, dtype=torch.float64)
    mean_n = max_n / weights.sum().item()
    start = probability / (probability + mean_n * (1 - probability))  # the chance that an n-gram begins at a free word
    total = count + _LEAD_IN * max_n
    n = 1 + torch.multinomial(weights, total, replacement=True, generator=generator)
    gaps = torch.empty(total, dtype=torch.float64).geometric_(start, generator=generator).long() - 1
    ends = (gaps + n).cumsum(0)
    steps = torch.zeros(total + 1, dtype=torch.long)
    for edge, step in ((ends - n, 1), (ends, -1)):
        inside = edge[edge <= total]
        steps.index_add_(0, inside, torch.full_like(inside, step))
    return steps.cumsum(0)[total - count : total] > 0


class SegmentPair(NamedTuple):
    """Two segments and whether they belong together as they stand.

    Attributes:
        first: Token ids of the first one.
        second: Those of the second one.
        label: 0 = the second follows the first one in their text, 1 = it does not.

    Example:
        >>> pair = SegmentPair([5, 6], [7, 8], 0)
        >>> [*pair.first, *pair.second]
        [5, 6, 7, 8]
    """

    first: Sequence[int]
    second: Sequence[int]
    label: int


def sentence_order_pairs(
    sequences: Sequence[Sequence[int]],
    *,
    ends: Collection[int] = (),
    generator: Generator | None = None,
) -> list[SegmentPair]:
    """Cut each text in two and swap the parts of every other one, by chance (Lan et al., 2020, section 3.1).

    Args:
        sequences: Token ids of texts, of two tokens or more.
        ends: Ids that end a sentence: the cut is behind one of them, where one stands within the text, else anywhere.
        generator: What draws; ``None`` = PyTorch's default one.

    Returns:
        A pair for each text, in their order; label 1 = swapped, as in Hugging Face's ``sentence_order_label``.

    Raises:
        ValueError: If a text has fewer than two tokens.

    Example:
        >>> pairs = sentence_order_pairs([[5, 6, 9, 7, 8]] * 4, ends={9}, generator=torch.Generator().manual_seed(0))
        >>> {pair.label: (pair.first, pair.second) for pair in pairs}
        {1: ([7, 8], [5, 6, 9]), 0: ([5, 6, 9], [7, 8])}
    """
    ended = frozenset(ends)
    swapped = _flip_coins(len(sequences), generator)
    halves = [_cut(sequence, ended, generator) for sequence in sequences]
    return [
        SegmentPair(second, first, 1) if swap else SegmentPair(first, second, 0)
        for (first, second), swap in zip(halves, swapped, strict=True)
    ]


def next_sentence_pairs(
    sequences: Sequence[Sequence[int]],
    *,
    ends: Collection[int] = (),
    generator: Generator | None = None,
) -> list[SegmentPair]:
    """Cut each text in two and give every other one, by chance, another text's second part: the task of BERT.

    This is next-sentence prediction (Devlin et al., 2019, arXiv:1810.04805, section 3.1), which ALBERT does without.

    Args:
        sequences: As in `sentence_order_pairs`; of a single text the label is 0.
        ends: As in `sentence_order_pairs`.
        generator: As in `sentence_order_pairs`.

    Returns:
        A pair for each text, in their order; label 1 = the second part is another text's.

    Raises:
        ValueError: If a text has fewer than two tokens.

    Example:
        >>> pairs = next_sentence_pairs([[5, 6], [7, 8]], generator=torch.Generator().manual_seed(0))
        >>> [pair for pair in pairs if pair.label == 1]
        [SegmentPair(first=[5], second=[8], label=1)]
    """
    ended, count = frozenset(ends), len(sequences)
    replaced = _flip_coins(count, generator) if count > 1 else [False] * count
    halves = [_cut(sequence, ended, generator) for sequence in sequences]
    shifts = torch.randint(1, max(count, 2), (count,), generator=generator).tolist()
    return [
        SegmentPair(first, halves[(place + shift) % count][1], 1) if replace else SegmentPair(first, second, 0)
        for place, ((first, second), shift, replace) in enumerate(zip(halves, shifts, replaced, strict=True))
    ]


def _flip_coins(count: int, generator: Generator | None) -> list[bool]:
    return (torch.rand(count, generator=generator) < 0.5).tolist()


def _cut(
    sequence: Sequence[int], ends: frozenset[int], generator: Generator | None
) -> tuple[Sequence[int], Sequence[int]]:
    if len(sequence) < 2:
        raise ValueError(f"a text has {len(sequence)} tokens; it takes two to be cut in two")
    places = _cuts(sequence, ends) or range(1, len(sequence))
    place = places[int(torch.randint(len(places), (), generator=generator))]
    return sequence[:place], sequence[place:]


class PreTrainingBatch(NamedTuple):
    """A batch for an `AlbertForPreTraining`.

    Attributes:
        input_ids: ``[CLS] A [SEP] B [SEP]`` or ``[CLS] A [SEP]``, some of it hidden, ``(batch, length)``; 0 = padding.
        token_type_ids: 1 in B and its ``[SEP]``, 0 elsewhere, ``(batch, length)``.
        labels: The ids behind the masks, -100 elsewhere, ``(batch, length)``.
        sentence_labels: Those of `SegmentPair`, ``(batch,)``; -100 where there is no B.

    Example:
        >>> texts = [review.text for review in toy.reviews(200)]
        >>> tokenizer = SentencePieceTokenizer.train(texts, vocab_size=60, path="spiece.model")
        >>> ids = [tokenizer.encode(text) for text in texts]
        >>> batch = next(iter(pretraining_batches(ids, tokenizer, max_length=64, max_tokens=512)))
        >>> torch.equal(batch.sentence_labels, (batch.sentence_labels == 1).long())
        True
    """

    input_ids: Tensor
    token_type_ids: Tensor
    labels: Tensor
    sentence_labels: Tensor


def pretraining_batches(
    sequences: Sequence[Sequence[int]],
    tokenizer: SentencePieceTokenizer,
    task: PreTrainingTask | None = None,
    *,
    max_length: int,
    max_tokens: int,
    shuffle: bool = True,
    seed: int = 0,
) -> DataLoader[PreTrainingBatch]:
    """Cut texts into windows, the windows into segments, and hide words in them; anew in every epoch.

    A window holds whole sentences of a text, as many as it has room for; a sentence longer than that is cut into
    windows of equal length, of its own. A window that does not hold two sentences makes no pair, and is left out where
    the task takes pairs: wherever it were cut, a segment would end within a sentence, which tells the order. (The
    paper's windows are 512 tokens long, but for a tenth that is cut shorter.)

    Args:
        sequences: Token ids of texts, without special ones.
        tokenizer: The tokenizer that made them.
        task: What there is to do; ``None`` = as in the paper.
        max_length: The longest input, special tokens included.
        max_tokens: As in `LengthBucketSampler`.
        shuffle: As in `LengthBucketSampler`.
        seed: As in `LengthBucketSampler`; of cuts, swaps and masks too, which depend on it, on the epoch and on the
            batch alone.

    Returns:
        An iterable of `PreTrainingBatch`.

    Raises:
        ValueError: If a window has no room for three tokens, no text has two, no window two sentences where the task
            takes pairs, or the sampler refuses the lengths.

    Example:
        >>> texts = [review.text for review in toy.reviews(200)]
        >>> tokenizer = SentencePieceTokenizer.train(texts, vocab_size=60, path="spiece.model")
        >>> ids = [tokenizer.encode(text) for text in texts]
        >>> batches = pretraining_batches(ids, tokenizer, max_length=64, max_tokens=512, shuffle=False)
        >>> first = next(iter(batches))
        >>> torch.equal(first.input_ids, next(iter(batches)).input_ids)
        True
    """
    task = task or PreTrainingTask()
    room = max_length - 2 - (task.sentence_task != "none")
    if room < 3:
        raise ValueError(f"max_length={max_length} has no room for three tokens beside the special ones; choose more")
    ends = _sentence_ends(tokenizer)
    windows = [window for sequence in sequences for window in _windows(sequence, room, ends)]
    if task.sentence_task != "none":
        windows = [window for window in windows if _cuts(window, ends)]
        if not windows:
            raise ValueError(f"no window of max_length={max_length} holds two sentences; choose sentence_task='none'")
    lengths = [len(window) + max_length - room for window in windows]
    sampler = LengthBucketSampler(lengths, max_tokens, shuffle=shuffle, seed=seed)
    collate = _Collate(tokenizer, ends, task, lambda first: mix_seed(seed, sampler.epoch, first))
    return DataLoader(list(enumerate(windows)), batch_sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]


def _sentence_ends(tokenizer: SentencePieceTokenizer) -> frozenset[int]:
    pieces = tokenizer.vocabulary.decode(range(len(tokenizer.vocabulary)))
    return frozenset(index for index, piece in enumerate(pieces) if piece.endswith((".", "!", "?")))


def _windows(sequence: Sequence[int], room: int, ends: frozenset[int]) -> list[Sequence[int]]:
    windows, start = [], 0
    for sentence, end in itertools.pairwise([0, *_cuts(sequence, ends), len(sequence)]):
        if end - start > room:
            windows.append(sequence[start:sentence])
            start = sentence
        if end - start > room:
            count = -(-(end - start) // room)
            edges = [start + (end - start) * edge // count for edge in range(count + 1)]
            windows += [sequence[first:last] for first, last in itertools.pairwise(edges)]
            start = end
    windows.append(sequence[start:])
    return [window for window in windows if len(window) > 1]


def _cuts(sequence: Sequence[int], ends: frozenset[int]) -> list[int]:
    """Return the places behind the ends of sentences, but for that of the last one."""
    return [place for place in range(1, len(sequence)) if sequence[place - 1] in ends]


class _Collate:
    """Make a batch of windows and their numbers."""

    def __init__(
        self,
        tokenizer: SentencePieceTokenizer,
        ends: frozenset[int],
        task: PreTrainingTask,
        seed_of: Callable[[int], int],
    ) -> None:
        self.cls_id, self.sep_id, self.mask_id = tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id
        self.continues = tokenizer.continues_word
        self.ends = ends
        self.task = task
        self.seed_of = seed_of

    def __call__(self, examples: list[tuple[int, Sequence[int]]]) -> PreTrainingBatch:
        generator = torch.Generator().manual_seed(self.seed_of(examples[0][0]))
        windows = [window for _, window in examples]
        if self.task.sentence_task == "none":
            pairs = [SegmentPair(window, (), IGNORED) for window in windows]
        elif self.task.sentence_task == "sop":
            pairs = sentence_order_pairs(windows, ends=self.ends, generator=generator)
        else:
            drawn = next_sentence_pairs(windows, ends=self.ends, generator=generator)
            longest = max(map(len, windows))  # which another window's second part must not exceed
            pairs = [
                SegmentPair(first, self._shorten(second, longest - len(first)), label) for first, second, label in drawn
            ]
        firsts = [[self.cls_id, *first, self.sep_id] for first, _, _ in pairs]
        seconds = [[*second, self.sep_id] if second else [] for _, second, _ in pairs]
        masked = mask_tokens(
            pad_batch([[*first, *second] for first, second in zip(firsts, seconds, strict=True)]),
            vocab_size=len(self.continues),
            mask_id=self.mask_id,
            special_ids=(0, 1, self.cls_id, self.sep_id),
            continues=self.continues,
            probability=self.task.mask_probability,
            max_n=self.task.max_n,
            generator=generator,
        )
        types = [[*[0] * len(first), *[1] * len(second)] for first, second in zip(firsts, seconds, strict=True)]
        return PreTrainingBatch(
            masked.input_ids, pad_batch(types), masked.labels, torch.tensor([label for _, _, label in pairs])
        )

    def _shorten(self, second: Sequence[int], room: int) -> Sequence[int]:
        """Cut another window's second part to the sentences that fit; within the first one, if that does not."""
        if len(second) <= room:
            return second
        return second[: max((place for place in _cuts(second, self.ends) if place <= room), default=room)]


def pretraining_loss(model: nn.Module, batch: PreTrainingBatch) -> LossOutput:
    """Cross-entropy of the masked words, computed at their positions alone, plus that of the sentence task.

    Args:
        model: An `AlbertForPreTraining`.
        batch: The batch.

    Returns:
        The two losses, each a mean in nats over what it is of, added and multiplied by the number of masked tokens;
        that number; and with the same factor the metrics ``mlm_loss``, ``mlm_accuracy`` and, where the batch has
        pairs, ``sentence_loss`` and ``sentence_accuracy``.

    Example:
        >>> config = AlbertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, intermediate_size=16)
        >>> ids, types, labels = torch.tensor([[[2, 4, 3]], [[0, 0, 0]], [[-100, 7, -100]]])
        >>> batch = PreTrainingBatch(ids, types, labels, torch.tensor([-100]))
        >>> loss = pretraining_loss(AlbertForPreTraining(config), batch)
        >>> abs(loss.loss_sum.item() - torch.tensor(9.0).log().item()) < 1, loss.count.item()
        (True, 1)
    """
    masked = batch.labels != IGNORED
    words, order = model(batch.input_ids, batch.input_ids != 0, batch.token_type_ids, masked=masked)
    labels, count = batch.labels[masked], masked.sum()
    mlm_loss = F.cross_entropy(words.float(), labels, reduction="sum")
    metrics = {
        "mlm_loss": mlm_loss.detach(),
        "mlm_accuracy": (words.argmax(dim=-1) == labels).sum(),
        "tokens": (batch.input_ids != 0).sum(),
    }
    if (batch.sentence_labels == IGNORED).all():
        return LossOutput(mlm_loss + 0 * order.sum(), count, metrics)
    sentence_loss = F.cross_entropy(order.float(), batch.sentence_labels) * count
    right = (order.argmax(dim=-1) == batch.sentence_labels).float().mean() * count
    metrics |= {"sentence_loss": sentence_loss.detach(), "sentence_accuracy": right}
    return LossOutput(mlm_loss + sentence_loss, count, metrics)
