import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.decoding import beam_search, best_spans, greedy_search

pytestmark = pytest.mark.usefixtures("one_thread")

PAD, EOS, START, A, B = range(5)
ABSURD = 50.0  # a log-probability that would win wherever it counted

property_test = settings(max_examples=30)
seeds = st.integers(0, 10**6)
penalties = st.sampled_from([0.0, 0.3, 0.6, 1.0, 2.5])


class Model:
    """Log-probabilities from the whole history. Padding, and what follows the end of a row, get an absurd one."""

    def __init__(self, next_log_probs, vocab=5, pad_id=PAD, eos_id=EOS, dtype=torch.float64):
        self.next_log_probs, self.vocab, self.dtype = next_log_probs, vocab, dtype
        self.pad_id, self.eos_id = pad_id, eos_id
        self.calls = []

    def ended(self, ids):
        return len(ids) > 1 and ids[-1] == self.eos_id

    def steps(self, ids):
        """What may follow: pairs of a token and its log-probability."""
        log_probs = torch.tensor(self.next_log_probs(ids), dtype=self.dtype, device="cpu").tolist()
        return [(token, log_prob) for token, log_prob in enumerate(log_probs) if token != self.pad_id]

    def row(self, ids):
        row = [ABSURD] * self.vocab
        if self.eos_id not in ids[1:]:
            for token, log_prob in self.steps(tuple(ids)):
                row[token] = log_prob
        return row

    def __call__(self, ids, rows):
        self.calls.append((ids, rows))
        return torch.tensor([self.row(row) for row in ids.tolist()], dtype=self.dtype, device="cpu")


def random_model(seed, **settings):
    def next_log_probs(ids):
        draw = random.Random(hash((seed, *ids)))
        odds = [math.exp(draw.gauss(0, 1.5)) for _ in range(5)]
        return [math.log(odd / sum(odds)) for odd in odds]

    return Model(next_log_probs, **settings)


def coarse_model(seed, **settings):
    """Make log-probabilities of 0, -1, -2 or none at all: many hypotheses have the same."""
    choices = [0.0, -1.0, -1.0, -2.0, -math.inf]
    return Model(lambda ids: random.Random(hash((seed, *ids))).choices(choices, k=5), **settings)


def written(logs, **settings):
    """Make a model of a dict from histories to the log-probabilities of tokens; the rest is impossible."""
    return Model(lambda ids: [logs.get(ids, {}).get(token, -math.inf) for token in range(5)], **settings)


def search(function, model, starts, **settings):
    ids = {"eos_id": model.eos_id, "pad_id": model.pad_id}
    return function(model, torch.tensor(starts)[:, None], **ids | settings)


def padded(rows, pad_id=PAD):
    length = max(map(len, rows))
    return [[*row, *[pad_id] * (length - len(row))] for row in rows]


def score(log_prob, ids, length_penalty):
    return log_prob / ((5 + len(ids) - 1) / 6) ** length_penalty


def outcomes(model, ids, max_length, log_prob=0.0):
    """Yield every sequence that ends, and every one that is cut off, with its log-probability."""
    if len(ids) == max_length or model.ended(ids):
        yield log_prob, ids
    else:
        for token, step in model.steps(ids):
            yield from outcomes(model, (*ids, token), max_length, log_prob + step)


def greedy_by_loop(model, start, max_length):
    ids = (start,)
    while len(ids) < max_length and not model.ended(ids):
        ids = (*ids, max(model.steps(ids), key=lambda step: step[1])[0])
    return ids


def beams_by_loop(model, start, max_length, num_beams, length_penalty):
    """Return the best hypothesis, and the step after which none could overtake the best that had ended."""
    beams, decided = [(0.0, (start,))], None
    for step in range(1, max_length):
        candidates = []
        for log_prob, ids in beams:
            if model.ended(ids):
                candidates.append((log_prob, ids))
            else:
                candidates += [(log_prob + more, (*ids, token)) for token, more in model.steps(ids)]
        beams = sorted(candidates, key=lambda beam: score(*beam, length_penalty), reverse=True)[:num_beams]
        ended = [score(*beam, length_penalty) for beam in beams if model.ended(beam[1])]
        hopes = [score(beam[0], range(max_length), length_penalty) for beam in beams if not model.ended(beam[1])]
        if decided is None and ended and max(ended) >= max(hopes, default=-math.inf):
            decided = step
    return beams[0][1], decided or max_length - 1


def test_greedy_search_by_hand():
    after = torch.tensor(
        [
            [0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0],
            [0.9, 0.02, 0.01, 0.03, 0.04],
            [0.0, 0.4, 0.1, 0.2, 0.3],
            [0.0, 0.1, 0.1, 0.6, 0.2],
        ]
    ).log()
    ids = greedy_search(lambda ids, rows: after[ids[:, -1]], torch.tensor([[3], [2], [4]]), max_length=9, eos_id=1)
    assert ids.tolist() == [[3, 1, 0, 0], [2, 4, 3, 1], [4, 3, 1, 0]]


@property_test
@given(seed=seeds, max_length=st.integers(2, 7), ids=st.permutations(range(5)), dtype=st.sampled_from(["32", "64"]))
def test_greedy_search_equals_a_loop_over_each_row(seed, max_length, ids, dtype):
    pad_id, eos_id, *starts = ids
    model = random_model(seed, pad_id=pad_id, eos_id=eos_id, dtype=getattr(torch, f"float{dtype}"))
    expected = [greedy_by_loop(model, start, max_length) for start in starts]

    actual = search(greedy_search, model, starts, max_length=max_length)

    assert actual.tolist() == padded(expected, pad_id)
    assert actual.dtype == torch.int64
    assert len(model.calls) == max(map(len, expected)) - 1
    for step, (given_ids, rows) in enumerate(model.calls, start=1):
        assert torch.equal(given_ids, actual[:, :step])
        assert rows is None


@property_test
@given(seed=seeds, length_penalty=penalties, max_length=st.integers(2, 4), spare=st.sampled_from([0, 30]))
def test_beams_for_every_hypothesis_find_the_best_of_all(seed, length_penalty, max_length, spare):
    model = random_model(seed)
    every = [list(outcomes(model, (start,), max_length)) for start in (START, A)]

    actual = search(
        beam_search,
        model,
        [START, A],
        num_beams=len(every[0]) + spare,
        length_penalty=length_penalty,
        max_length=max_length,
    )

    best = [max(row, key=lambda outcome: score(*outcome, length_penalty))[1] for row in every]
    assert actual.tolist() == padded(best)


@property_test
@given(
    seed=seeds,
    num_beams=st.integers(1, 6),
    length_penalty=penalties,
    max_length=st.integers(2, 7),
    ids=st.permutations(range(5)),
    dtype=st.sampled_from(["32", "64"]),
)
def test_beam_search_equals_lists_of_hypotheses_and_stops_as_soon_as_none_can_overtake(
    seed, num_beams, length_penalty, max_length, ids, dtype
):
    pad_id, eos_id, *starts = ids
    model = random_model(seed, pad_id=pad_id, eos_id=eos_id, dtype=getattr(torch, f"float{dtype}"))
    expected, decided = zip(
        *(beams_by_loop(model, start, max_length, num_beams, length_penalty) for start in starts), strict=True
    )

    actual = search(
        beam_search, model, starts, num_beams=num_beams, length_penalty=length_penalty, max_length=max_length
    )

    assert actual.tolist() == padded(expected, pad_id)
    assert actual.dtype == torch.int64
    assert len(model.calls) == max(decided)


@property_test
@given(seed=seeds, length_penalty=penalties, max_length=st.integers(2, 8))
def test_one_beam_is_greedy_search_whatever_the_length_penalty(seed, length_penalty, max_length):
    model, starts = random_model(seed), [START, A, B]
    one = search(beam_search, model, starts, num_beams=1, length_penalty=length_penalty, max_length=max_length)
    assert torch.equal(one, search(greedy_search, model, starts, max_length=max_length))


@property_test
@given(seed=seeds, num_beams=st.integers(1, 5), length_penalty=penalties)
def test_each_call_gets_what_the_beams_became_and_the_rows_they_continue(seed, num_beams, length_penalty):
    model, starts = random_model(seed), torch.tensor([[START], [A], [B]])
    search(beam_search, model, starts[:, 0].tolist(), num_beams=num_beams, length_penalty=length_penalty, max_length=7)

    before, rows = model.calls[0]
    assert before.tolist() == [[start] for start in (START, A, B) for _ in range(num_beams)]
    assert rows is None
    for ids, rows in model.calls[1:]:
        assert torch.equal(ids[:, :-1], before[rows])
        assert ids[:, 0].tolist() == model.calls[0][0][:, 0].tolist()
        before = ids


@property_test
@given(seed=seeds, num_beams=st.integers(1, 5))
def test_a_model_that_keeps_its_own_history_by_rows_decodes_the_same(seed, num_beams):
    model, histories = random_model(seed), []

    def stateful(ids, rows):
        nonlocal histories
        histories = [()] * len(ids) if rows is None else [histories[row] for row in rows.tolist()]
        histories = [(*history, last) for history, last in zip(histories, ids[:, -1].tolist(), strict=True)]
        return torch.tensor([model.row(history) for history in histories])

    settings = {"num_beams": num_beams, "length_penalty": 0.6, "max_length": 7}
    actual = beam_search(stateful, torch.tensor([[START], [A]]), eos_id=EOS, **settings)
    assert torch.equal(actual, search(beam_search, model, [START, A], **settings))


@property_test
@given(
    seed=seeds,
    length_penalty=st.sampled_from([0.0, 1.0]),
    max_length=st.integers(2, 4),
    ids=st.permutations(range(5)),
)
def test_of_hypotheses_that_tie_one_that_has_ended_or_is_cut_off_comes_out(seed, length_penalty, max_length, ids):
    pad_id, eos_id, *starts = ids
    model = coarse_model(seed, pad_id=pad_id, eos_id=eos_id)
    actual = search(
        beam_search, model, starts, num_beams=70, length_penalty=length_penalty, max_length=max_length
    ).tolist()
    for start, row in zip(starts, actual, strict=True):
        scores = {ids: score(log_prob, ids, length_penalty) for log_prob, ids in outcomes(model, (start,), max_length)}
        best = max(scores.values())
        if best > -math.inf:
            chosen = tuple(row[: row.index(pad_id)] if pad_id in row else row)
            assert chosen in scores
            assert scores[chosen] == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize(("eos_id", "other"), list(itertools.permutations([1, 3, 4], 2)))
def test_a_hypothesis_that_ties_with_one_that_has_ended_is_not_returned_half_done(eos_id, other):
    model = written({(START,): {eos_id: -1.0, other: -1.0}, (START, other): {eos_id: 0.0}}, eos_id=eos_id)
    for num_beams in (2, 3, 9):
        (row,) = search(beam_search, model, [START], num_beams=num_beams, max_length=9).tolist()
        assert row in ([START, eos_id], [START, other, eos_id])


def test_a_row_with_hypotheses_that_tie_comes_out_the_same_in_any_company():
    model = written(
        {
            (START,): {A: -1.0, B: -1.0},
            (START, A): {B: 0.0},
            (A,): {A: -0.1, B: -9.0},
            (A, A): {A: -0.1},
            (A, A, A): {B: -0.1},
        },
        eos_id=B,
    )
    (alone,) = search(beam_search, model, [START], num_beams=2, max_length=6).tolist()
    together = search(beam_search, model, [START, A], num_beams=2, max_length=6).tolist()
    assert together == padded([alone, [A, A, A, B]])


@pytest.mark.parametrize("eos_id", [EOS, START], ids=["start is not eos", "start is eos"])
def test_the_start_does_not_end_a_row_and_may_be_predicted_again(eos_id):
    chain = {(START,): {A: -0.1}, (START, A): {START: -0.1}, (START, A, START): {eos_id: -0.1}}
    model = written(chain, eos_id=eos_id)
    expected = [START, A, START] if eos_id == START else [START, A, START, EOS]
    assert search(greedy_search, model, [START], max_length=9).tolist() == [expected]
    assert search(beam_search, model, [START], num_beams=3, max_length=9).tolist() == [expected]


@pytest.mark.parametrize(
    ("max_length", "expected", "calls"),
    [
        (1, [START], 0),
        (2, [START, A], 1),
        (3, [START, A, A], 2),
        (4, [START, A, A, EOS], 3),
        (5, [START, A, A, EOS], 3),
    ],
)
@pytest.mark.parametrize("num_beams", [None, 1, 2, 9])
def test_a_row_is_cut_off_at_max_length_and_may_end_there(max_length, expected, calls, num_beams):
    model = written({(START,): {A: -1.0}, (START, A): {A: -1.0}, (START, A, A): {EOS: -1.0}})
    function, settings = (beam_search, {"num_beams": num_beams}) if num_beams else (greedy_search, {})
    assert search(function, model, [START], max_length=max_length, **settings).tolist() == [expected]
    assert len(model.calls) == calls


@pytest.mark.parametrize(
    ("long", "length_penalty", "expected"),
    [
        (1.32, 1.0, [START, A, B, EOS]),
        (1.35, 1.0, [START, EOS]),
        (1.76, 2.0, [START, A, B, EOS]),
        (1.80, 2.0, [START, EOS]),
        (1.18, 0.6, [START, A, B, EOS]),
        (1.20, 0.6, [START, EOS]),
        (1.01, 0.0, [START, EOS]),
        (0.99, 0.0, [START, A, B, EOS]),
    ],
)
def test_three_tokens_may_be_less_probable_than_one_by_8_sixths_to_the_length_penalty(long, length_penalty, expected):
    third = -long / 3
    model = written({(START,): {EOS: -1.0, A: third}, (START, A): {B: third}, (START, A, B): {EOS: third}})
    settings = {"num_beams": 2, "length_penalty": length_penalty, "max_length": 6}
    assert search(beam_search, model, [START], **settings).tolist() == [expected]


def test_the_length_penalty_is_none_unless_given():
    for long, expected in ((1.01, [START, EOS]), (0.99, [START, A, EOS])):
        model = written({(START,): {EOS: -1.0, A: -long / 2}, (START, A): {EOS: -long / 2}})
        assert search(beam_search, model, [START], num_beams=2, max_length=6).tolist() == [expected]


@pytest.mark.parametrize(
    ("log_prob", "length_penalty", "calls"), [(-4.1, 1.0, 1), (-4.0, 1.0, 1), (-3.9, 1.0, 3), (-3.0, 0.0, 1)]
)
def test_the_search_stops_where_the_rest_could_not_overtake_even_at_full_length_and_at_no_cost(
    log_prob, length_penalty, calls
):
    # With max_length=4 an unfinished hypothesis may reach 3 tokens: log P / (8 / 6), against -3 of what has ended.
    model = written({(START,): {EOS: -3.0, A: log_prob}, (START, A): {B: 0.0}, (START, A, B): {B: 0.0, EOS: -0.01}})
    search(beam_search, model, [START], num_beams=2, length_penalty=length_penalty, max_length=4)
    assert len(model.calls) == calls


def test_a_row_that_has_ended_waits_for_the_others():
    model = written(
        {
            (START,): {EOS: -0.1, A: -5.0},
            (A,): {A: -0.5, EOS: -8.0},
            (A, A): {A: -0.5},
            (A, A, A): {EOS: -0.5},
        }
    )
    ids = search(beam_search, model, [START, A], num_beams=2, max_length=9)
    assert ids.tolist() == [[START, EOS, PAD, PAD], [A, A, A, EOS]]
    assert len(model.calls) == 3


@pytest.mark.parametrize("num_beams", [2, 5, 20])
def test_beams_that_nothing_is_left_for_do_not_disturb(num_beams):
    model = written({(START,): {A: -2.0}, (START, A): {B: -1.0, EOS: -1.5}, (START, A, B): {EOS: -0.1}})
    ids = search(beam_search, model, [START, START], num_beams=num_beams, max_length=8)
    assert ids.tolist() == [[START, A, B, EOS]] * 2


@pytest.mark.parametrize("function", [greedy_search, beam_search])
def test_the_models_tensor_is_left_as_it_was(function):
    model, given = random_model(1), []

    def keep(ids, rows):
        log_probs = model(ids, rows)
        given.append((log_probs, log_probs.clone()))
        return log_probs

    settings = {"num_beams": 3} if function is beam_search else {}
    function(keep, torch.tensor([[START], [A]]), max_length=6, eos_id=EOS, **settings)
    assert len(given) > 1
    for after, before in given:
        assert torch.equal(after, before)


def test_log_probabilities_are_added_in_their_own_precision():
    gap = 1e-10
    model = written({(START,): {A: -1.0, B: -1.0 - gap}, (START, A): {EOS: -1.0 - 2 * gap}, (START, B): {EOS: -1.0}})
    ids = search(beam_search, model, [START], num_beams=2, max_length=4)
    assert ids.tolist() == [[START, B, EOS]]


def test_float64_ranks_of_unequal_lengths_are_exact():
    for gap, expected in ((1e-10, [START, A, EOS]), (-1e-10, [START, EOS])):
        long = -((7 / 6) ** 0.6) * (1 - gap)
        model = written({(START,): {EOS: -1.0, A: long}, (START, A): {EOS: 0.0}})
        ids = search(beam_search, model, [START], num_beams=2, length_penalty=0.6, max_length=4)
        assert ids.tolist() == [expected]


@pytest.mark.parametrize("function", [greedy_search, beam_search])
def test_everything_is_made_on_the_device_of_the_start(function):
    settings = {"num_beams": 3} if function is beam_search else {}
    model, start = random_model(5), torch.tensor([[START], [A]])
    expected = function(model, start, max_length=6, eos_id=EOS, **settings)
    with torch.device("meta"):
        actual = function(model, start, max_length=6, eos_id=EOS, **settings)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("function", [greedy_search, beam_search])
def test_no_rows_give_no_rows(function):
    settings = {"num_beams": 2} if function is beam_search else {}
    start = torch.empty(0, 1, dtype=torch.long)
    actual = function(lambda ids, rows: torch.empty(0, 5), start, max_length=4, eos_id=EOS, **settings)
    assert torch.equal(actual, start)


@given(seeds, st.integers(1, 9), st.none() | st.integers(1, 9))
@property_test
def test_the_best_span_is_that_of_every_allowed_pair_of_ends_tried(seed, length, max_length):
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, 3, length, generator=generator, dtype=torch.float64)
    shut = torch.rand(3, length, generator=generator) < 0.3
    shut[:, 0] = False
    start, end = start.masked_fill(shut, -math.inf), end.masked_fill(shut, -math.inf)
    pairs = [(0, 0)] + [(i, j) for i in range(1, length) for j in range(i, min(length, i + (max_length or length)))]
    expected = [max(pairs, key=lambda pair: start[row, pair[0]] + end[row, pair[1]]) for row in range(3)]
    assert best_spans(start, end, max_length=max_length).tolist() == [list(pair) for pair in expected]


@pytest.mark.unhooked
def test_spans_of_no_length_and_logits_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="max_length=0; choose 1 or more"):
        best_spans(torch.zeros(1, 3), torch.zeros(1, 3), max_length=0)
    with pytest.raises(ValueError, match=r"end_logits has shape \(1, 4\); expected \(1, 3\)"):
        best_spans(torch.zeros(1, 3), torch.zeros(1, 4))
