"""The loop, from within one process; tests/test_survival.py kills processes and starts several."""

import functools
import itertools
import json
import re
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from companion.batching import LabelledBatch, LengthBucketSampler, labelled_batches, pad_batch
from companion.losses import LossOutput, classification_loss
from companion.models import ClassifierConfig, TextClassifier
from companion.records import TrainingRecord
from companion.training import TrainingConfig, train

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = {"vocab_size": 30, "d_model": 8, "num_heads": 2, "d_ff": 16, "num_layers": 1, "max_length": 16}
CONFIG = TrainingConfig(epochs=3, learning_rate=0.01, mixed_precision="fp32", seed=3)


def classifier(dropout: float = 0.3) -> TextClassifier:
    torch.manual_seed(2)
    return TextClassifier(ClassifierConfig(**SHAPE, dropout=dropout, embedding_dropout=dropout))


def examples(number: int) -> tuple[list[list[int]], list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 12, (number,), generator=generator).tolist()
    sequences = [torch.randint(2, 30, (length,), generator=generator).tolist() for length in lengths]
    return sequences, [int(max(sequence) > 22) for sequence in sequences]


def batches(number: int = 45) -> DataLoader:
    return labelled_batches(*examples(number), max_tokens=60, seed=5)


def dev() -> DataLoader:
    return labelled_batches(*examples(20), max_tokens=60, shuffle=False)


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def without_seconds(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in history]


def losses_of_updates(batches: list[LabelledBatch], steps: int) -> list[float]:
    """Train without dropout, and return the mean loss that each update follows."""
    seen = []

    def loss_fn(model, batch):
        loss = classification_loss(model, batch)
        seen.append((loss.loss_sum.item(), loss.count))
        return loss

    config = TrainingConfig(epochs=4, learning_rate=0.02, gradient_accumulation_steps=steps, mixed_precision="fp32")
    train(classifier(dropout=0.0), batches, config, loss_fn=loss_fn)
    groups = [seen[start : start + steps] for start in range(0, len(seen), steps)]
    return [sum(loss for loss, _ in group) / sum(count for _, count in group) for group in groups]


@pytest.mark.parametrize("steps", [2, 4])
def test_accumulated_batches_have_the_losses_of_batches_as_many_times_as_large(steps):
    sequences, labels = examples(48)
    sizes = [1, 5, 2, 4, 3, 1, 6, 2, 7, 1, 9, 7]  # the lengths differ within and between batches
    cuts = [0, *itertools.accumulate(sizes)]

    def batch(start: int, end: int) -> LabelledBatch:
        return LabelledBatch(pad_batch(sequences[start:end]), torch.tensor(labels[start:end], dtype=torch.float32))

    small = [batch(start, end) for start, end in itertools.pairwise(cuts)]
    large = [batch(start, end) for start, end in itertools.pairwise(cuts[::steps])]
    assert len({one.input_ids.size(1) for one in small}) > 3
    one, other = losses_of_updates(small, steps), losses_of_updates(large, 1)
    assert len(one) == 4 * 12 // steps
    assert one == pytest.approx(other, abs=1e-6)
    assert one[-1] < one[0] - 0.01


class Stop(Exception):
    pass


def drawing_batches() -> DataLoader:
    """Make batches that draw random numbers while they are put together, as masking does."""
    sequences, labels = examples(45)

    def collate(numbers):
        ids = pad_batch([sequences[number] for number in numbers])
        ids = ids.masked_fill((torch.rand(ids.shape) < 0.2) & (ids != 0), 1)
        return LabelledBatch(ids, torch.tensor([float(labels[number]) for number in numbers]))

    sampler = LengthBucketSampler([len(sequence) for sequence in sequences], 60, seed=5)
    return DataLoader(range(45), batch_sampler=sampler, collate_fn=collate)


@functools.cache
def uninterrupted(config: TrainingConfig) -> tuple[dict[str, torch.Tensor], TrainingRecord]:
    model = classifier()
    record = train(model, drawing_batches(), config, loss_fn=classification_loss, eval_batches=dev())
    return weights_of(model), record


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("every", [1, 2, 3, 100])
@pytest.mark.parametrize("call", [2, 6, 7, 11, 18])
def test_a_run_stopped_anywhere_repeats_the_uninterrupted_one_from_its_last_checkpoint(tmp_path, steps, every, call):
    config = TrainingConfig(**{**vars(CONFIG), "gradient_accumulation_steps": steps})
    weights, expected = uninterrupted(config)
    per_epoch = len(drawing_batches())
    calls = itertools.count(1)

    def stopping(model, batch):
        if model.training and next(calls) == call:
            raise Stop
        return classification_loss(model, batch)

    run = tmp_path / "run"
    settings = {"eval_batches": dev(), "output": run, "checkpoint_every": every}
    with pytest.raises(Stop):
        train(classifier(), drawing_batches(), config, loss_fn=stopping, **settings)

    # The last update before the stop that had a checkpoint, counted without the package.
    ends = [*range(steps, per_epoch, steps), per_epoch]
    done = [(epoch, end) for epoch in range(3) for end in ends if epoch * per_epoch + end < call]
    kept = [(epoch, end) for n, (epoch, end) in enumerate(done, start=1) if n % every == 0 or end == per_epoch]
    redone = per_epoch * 3 - (kept[-1][0] * per_epoch + kept[-1][1] if kept else 0)

    torch.manual_seed(99)
    model, trained = classifier(), []

    def counting(model, batch):
        trained.append(model.training)
        return classification_loss(model, batch)

    record = train(model, drawing_batches(), config, loss_fn=counting, resume=True, **settings)
    assert sum(trained) == redone
    assert_equal(weights_of(model), weights)
    assert_equal(load_file(run / "model.safetensors"), weights)
    assert without_seconds(record.history) == without_seconds(expected.history)
    assert record.dev == expected.dev
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["epoch-0003"]


def asking(number: int, call: int):
    calls = itertools.count(1)

    def loss_fn(model, batch):
        if model.training and next(calls) == call:
            signal.raise_signal(number)
        return classification_loss(model, batch)

    return loss_fn


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("call", [1, 6, 9])
def test_a_signal_ends_the_training_after_the_update_with_a_checkpoint(tmp_path, number, call):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    settings = {"eval_batches": dev(), "output": tmp_path / "run"}
    per_epoch = len(batches())
    epoch, batch = (call - 1) // per_epoch, (call - 1) % per_epoch + 1
    message = f"stopped in epoch {epoch + 1}, update {call}, with a checkpoint"
    with pytest.raises(KeyboardInterrupt, match=re.escape(message)):
        train(classifier(), batches(), CONFIG, loss_fn=asking(number, call), **settings)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert checkpoint.name == f"epoch-{epoch:04d}-batch-{batch:06d}"
    model, expected = classifier(), classifier()
    record = train(model, batches(), CONFIG, loss_fn=classification_loss, resume=True, **settings)
    uninterrupted = train(expected, batches(), CONFIG, loss_fn=classification_loss, eval_batches=dev())
    assert_equal(weights_of(model), weights_of(expected))
    assert without_seconds(record.history) == without_seconds(uninterrupted.history)


def test_without_a_run_folder_a_signal_interrupts_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    calls = []

    def loss_fn(model, batch):
        calls.append(1)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the signal had no effect")

    with pytest.raises(KeyboardInterrupt):
        train(classifier(), batches(), CONFIG, loss_fn=loss_fn)
    signal.signal(signal.SIGINT, before)
    assert len(calls) == 1


def test_a_part_of_an_epoch_goes_on_with_as_many_processes_only(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(classifier(), batches(), CONFIG, loss_fn=asking(signal.SIGINT, 3), output=run)
    state = run / "checkpoints" / "epoch-0000-batch-000003" / "state.json"
    entries = json.loads(state.read_text())
    entries["sums"] = {name: values * 2 for name, values in entries["sums"].items()}
    state.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"2 processes had begun epoch 1, and now there are 1, .*; resume with 2"):
        train(classifier(), batches(), CONFIG, loss_fn=classification_loss, output=run, resume=True)


def test_batches_without_anything_to_count_change_nothing_and_break_nothing():
    def none_counted(model, batch):
        loss = classification_loss(model, batch)
        return LossOutput(loss.loss_sum * 0, 0, {})

    model = classifier()
    before = weights_of(model)
    config = TrainingConfig(epochs=1, weight_decay=0.0, mixed_precision="fp32")
    whole = itertools.chain([classification_loss], itertools.repeat(none_counted))
    train(model, batches(), config, loss_fn=lambda model, batch: next(whole)(model, batch))
    assert not torch.equal(before["output.weight"], model.output.weight)
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(model).values())


@pytest.mark.parametrize("stopped", [False, True])
def test_tensorboard_gets_the_figures_of_the_history(tmp_path, stopped):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sequences, labels = examples(150)
    many = [
        LabelledBatch(pad_batch(sequences[i : i + 3]), torch.tensor([float(label) for label in labels[i : i + 3]]))
        for i in range(0, 150, 3)
    ]
    run = tmp_path / "run"
    settings = {"eval_batches": dev(), "output": run, "tensorboard": True, "checkpoint_every": 25}
    calls = itertools.count(1)

    def stopping(model, batch):
        if model.training and next(calls) == 124:
            raise Stop
        return classification_loss(model, batch)

    if stopped:  # the checkpoint is that of update 100, so that the point at 120 comes again
        with pytest.raises(Stop):
            train(classifier(), many, CONFIG, loss_fn=stopping, **settings)
    record = train(classifier(), many, CONFIG, loss_fn=classification_loss, resume=True, **settings)
    events = event_accumulator.EventAccumulator(str(run / "tensorboard")).Reload()
    shown = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert shown.keys() == {"train/loss", "dev/loss", "dev/accuracy"}
    for name in ("loss", "accuracy"):
        expected = [(50 * entry["epoch"], pytest.approx(entry["dev"][name], abs=1e-6)) for entry in record.history]
        assert shown[f"dev/{name}"] == expected
    # A point every 20 updates and at an epoch's end; every batch has as many examples.
    points = shown["train/loss"]
    assert [step for step, _ in points] == [20, 40, 50, 60, 80, 100, 120, 140, 150]
    for entry in record.history:
        last = 50 * entry["epoch"]
        inside = [(step, value) for step, value in points if last - 50 < step <= last]
        updates = [step - before for (before, _), (step, _) in itertools.pairwise([(last - 50, 0.0), *inside])]
        mean = sum(n * value for n, (_, value) in zip(updates, inside, strict=True)) / 50
        assert mean == pytest.approx(entry["train"]["loss"], abs=2e-6)


def test_tensorboard_that_is_missing_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        train(classifier(), batches(), CONFIG, loss_fn=classification_loss, output=tmp_path / "run", tensorboard=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"checkpoint_every": 0, "output": "run"}, "checkpoint_every=0; choose 1 or more"),
        ({"checkpoint_every": 5}, "checkpoint_every=5 needs an output folder"),
        ({"tensorboard": True}, "tensorboard=True needs an output folder"),
    ],
)
def test_options_that_do_not_fit_are_named(tmp_path, monkeypatch, options, named):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(named)):
        train(classifier(), batches(), CONFIG, loss_fn=classification_loss, **options)
    assert list(tmp_path.iterdir()) == []
