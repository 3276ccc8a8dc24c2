import dataclasses
import itertools

import pytest
import torch

from companion import experiments, toy
from companion.experiments import POSITIONS, position_ablation, train_and_test
from companion.text import Vocabulary

TASKS = {
    make.__name__: make
    for make in (experiments.reverse, experiments.histogram, experiments.sentiment, experiments.reverse_by_decoder)
}


@pytest.fixture(scope="module")
def stream():
    return experiments.language_model()


def small(task, examples=64, epochs=1):
    test = {length: sequences[:10] for length, sequences in task.test.items()}
    return dataclasses.replace(task, train=task.train[:examples], test=test, epochs=epochs)


@pytest.mark.parametrize("make", TASKS.values(), ids=TASKS)
def test_ids_and_labels_are_those_that_the_model_is_made_for(make):
    task = make()
    for sequences in (task.train, *task.test.values()):
        for ids, labels in sequences:
            assert len(ids) == len(labels)
            assert min(ids) >= 1
            assert max(ids) < task.vocab_size
            assert max(labels) < task.num_labels
    for length, sequences in task.test.items():
        assert max(len(ids) for ids, _ in sequences) <= length
    assert max(len(ids) for ids, _ in task.train) <= next(iter(task.test))


@pytest.mark.parametrize("make", TASKS.values(), ids=TASKS)
def test_what_is_tested_on_was_not_trained_on(make):
    task = make()
    trained_on = {tuple(ids) for ids, _ in task.train}
    assert all(tuple(ids) not in trained_on for sequences in task.test.values() for ids, _ in sequences)


def test_the_last_token_of_a_review_bears_its_verdict():
    task, reviews = experiments.sentiment(), toy.reviews(7_000)
    tagged = [*task.train, *next(iter(task.test.values()))]
    assert len(task.train) == 6_000
    for (ids, labels), review in zip(tagged, reviews, strict=True):
        assert len(ids) == len(review.text.split())
        assert labels == [0] * (len(ids) - 1) + [review.label + 1]


def test_only_the_mask_tells_causal_sentiment_from_sentiment():
    causal, both_ways = experiments.sentiment(causal=True), experiments.sentiment()
    assert (causal.causal, both_ways.causal) == (True, False)
    assert dataclasses.replace(causal, name=both_ways.name, causal=False) == both_ways


def test_a_decoder_reads_what_it_has_to_reverse_and_then_its_own_answer():
    for ids, labels in experiments.reverse_by_decoder().train[:50]:
        source, answer = ids[:8], labels[8:]
        assert answer == source[::-1]
        assert labels[:8] == [0] * 8
        assert ids[8:] == [33, *answer[:-1]]


def test_the_language_model_predicts_each_next_word_of_one_stream(stream):
    for length, windows in {32: stream.train, **stream.test}.items():
        assert {(len(ids), len(labels)) for ids, labels in windows} == {(length, length)}
        for (ids, labels), (following, _) in itertools.pairwise(windows):
            assert labels == [*ids[1:], following[0]]


def test_the_language_model_is_tested_on_the_same_words_at_every_length(stream):
    words = {length: [i for ids, _ in windows for i in ids] for length, windows in stream.test.items()}
    assert list(words) == [32, 64, 128, 256]
    assert all(words[length] == words[32] for length in words)
    reviews = toy.reviews(40_000)
    vocabulary = Vocabulary.build(review.text.split() for review in reviews)
    assert stream.vocab_size == stream.num_labels == len(vocabulary)
    whole = [i for review in reviews for i in vocabulary.encode(review.text.split())]
    trained_on = [i for ids, _ in stream.train for i in ids]
    assert trained_on[:500] == whole[:500]
    assert words[32] == whole[-32_769:][: len(words[32])]


def test_a_short_training_learns_what_needs_no_order():
    task = dataclasses.replace(experiments.histogram(), epochs=2)
    (row,) = train_and_test(task, "none")
    assert {name: row[name] for name in ("task", "positions", "seed", "length")} == {
        "task": "histogram",
        "positions": "none",
        "seed": 0,
        "length": 16,
    }
    assert row["accuracy"] > 0.45  # a third of the labels are the commonest one


@pytest.mark.parametrize("positions", POSITIONS)
def test_there_is_a_row_for_each_length(positions):
    rows = train_and_test(small(experiments.reverse()), positions)
    assert [row["length"] for row in rows] == [16, 32, 64]
    assert all(set(row) == {"task", "positions", "seed", "length", "accuracy", "loss"} for row in rows)


def test_the_same_seed_gives_the_same_figures():
    task = small(experiments.reverse())
    first = train_and_test(task, "learned", seed=1)
    torch.manual_seed(5)
    assert train_and_test(task, "learned", seed=1) == first


def test_the_seed_is_that_of_the_weights_the_batches_and_the_training(monkeypatch):
    seen = []

    def train(model, batches, config, **options):
        seen.append((model.embedding.weight.clone(), batches.batch_sampler.seed, config.seed))

    monkeypatch.setattr(experiments, "train", train)
    for seed in (1, 2):
        train_and_test(small(experiments.reverse()), "none", seed=seed)
    (one, *seeds), (other, *other_seeds) = seen
    assert (seeds, other_seeds) == ([1, 1], [2, 2])
    assert not torch.equal(one, other)


def test_fewer_epochs_than_the_task_s_can_be_asked_for():
    task = small(experiments.reverse(), epochs=3)
    assert train_and_test(task, "none", epochs=1) == train_and_test(dataclasses.replace(task, epochs=1), "none")
    assert train_and_test(task, "none", epochs=1) != train_and_test(task, "none")


def test_a_finished_run_is_not_repeated(tmp_path, monkeypatch):
    task = small(experiments.reverse())
    rows = train_and_test(task, "rotary", output=tmp_path / "run")

    def loss_fn(model, batch):
        assert not model.training
        return experiments_loss(model, batch)

    experiments_loss = experiments.tagging_loss
    monkeypatch.setattr(experiments, "tagging_loss", loss_fn)
    assert train_and_test(task, "rotary", output=tmp_path / "run") == rows


def test_the_ablation_trains_each_task_with_each_kind_of_positions_in_a_folder_of_its_own(tmp_path, monkeypatch):
    calls = []

    def recorded(task, positions, *, seed, output):
        calls.append((task.name, positions, seed, output))
        return [{"task": task.name, "positions": positions, "seed": seed}]

    monkeypatch.setattr(experiments, "train_and_test", recorded)
    rows = position_ablation(tmp_path, seeds=2)
    plan = {(task, positions) for task in ("reverse", "histogram", "sentiment") for positions in POSITIONS}
    plan |= {("language model", positions) for positions in POSITIONS}
    plan |= {("causal sentiment", "none"), ("causal reverse", "none"), ("causal reverse", "learned")}
    assert {(task, positions, seed) for task, positions, seed, _ in calls} == {
        (*pair, seed) for pair in plan for seed in (0, 1)
    }
    assert len({output for *_, output in calls}) == len(calls) == len(rows) == 2 * len(plan)
    assert {output.parent for *_, output in calls} == {tmp_path}
    assert all(set(output.name) <= set("abcdefghijklmnopqrstuvwxyz-0123456789") for *_, output in calls)


def test_no_seed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="seeds=0; choose 1 or more"):
        position_ablation(tmp_path / "runs", seeds=0)
    assert not (tmp_path / "runs").exists()
