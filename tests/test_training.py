import copy
import itertools
import json
import math
import re
import runpy
import subprocess
import sys
from functools import partial
from typing import NamedTuple

import pytest
import pytorch_optimizer
import torch
from safetensors.torch import load_file
from torch import nn

import companion.training
from companion.batching import labelled_batches
from companion.losses import LossOutput, classification_loss
from companion.models import ClassifierConfig, TextClassifier
from companion.optimization import make_optimizer
from companion.records import TrainingRecord
from companion.training import TrainingConfig, evaluate, train

pytestmark = pytest.mark.usefixtures("one_thread")

ROUNDING = 1e-7
"""Sums in another order differ by 1e-16; AdamW divides that by gradients that may be small. An update is of 1e-2."""


class Example(NamedTuple):
    inputs: torch.Tensor
    targets: torch.Tensor


def small_model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 1), nn.Flatten(0)).double()


def made_batches(sizes: list[int], seed: int = 0) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(sum(sizes), 4, generator=generator, dtype=torch.float64)
    targets = (inputs[:, 0] * 2 - inputs[:, 1]).sin() * 5
    return [Example(*pair) for pair in zip(inputs.split(sizes), targets.split(sizes), strict=True)]


def squared_error(model: nn.Module, batch: Example) -> LossOutput:
    errors = (model(batch.inputs) - batch.targets).square()
    return LossOutput(errors.sum(), len(errors), {"close": (errors < 1).sum()})


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(one: dict, other: dict, tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0.0, atol=tolerance)


def plain_loop(model: nn.Module, batches: list[Example], config: TrainingConfig) -> list[float]:
    """Train as the docstrings say, without the package; return the mean training loss of each epoch."""
    matrices = [model[0].weight, model[3].weight]
    others = [model[0].bias, model[1].weight, model[1].bias, model[3].bias]
    lamb = partial(pytorch_optimizer.Lamb, weight_decouple=False, adam_debias=True)
    optimizer = {"adamw": torch.optim.AdamW, "lamb": lamb}[config.optimizer](
        [{"params": matrices, "weight_decay": config.weight_decay}]
    )
    optimizer.add_param_group({"params": others, "weight_decay": 0.0})
    total, done, losses = config.epochs * len(batches), 0, []
    for _ in range(config.epochs):
        epoch_loss = 0.0
        for start in range(0, len(batches), config.gradient_accumulation_steps):
            group = batches[start : start + config.gradient_accumulation_steps]
            inputs, targets = (torch.cat(parts) for parts in zip(*group, strict=True))
            errors = (model(inputs) - targets).square()
            optimizer.zero_grad()
            errors.mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            done += len(group)
            progress, warmup = done / total, config.warmup_fraction
            factor = min(progress / warmup if warmup else 1.0, (1 - progress) / (1 - warmup))
            for parameters in optimizer.param_groups:
                parameters["lr"] = config.learning_rate * factor
            optimizer.step()
            epoch_loss += errors.sum().item()
        losses.append(epoch_loss / sum(len(batch.inputs) for batch in batches))
    return losses


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_grad_norm": 0.5},
        {"max_grad_norm": 1e9, "weight_decay": 0.3},
        {"warmup_fraction": 0.0, "weight_decay": 0.0},
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 4, "max_grad_norm": 0.5},
        {"optimizer": "lamb", "weight_decay": 0.3},
    ],
    ids=str,
)
def test_training_is_the_plain_loop(settings):
    config = TrainingConfig(epochs=3, learning_rate=0.05, mixed_precision="fp32", **settings)
    batches = made_batches([3, 1, 6, 2, 5])
    model, reference = small_model(), small_model()
    record = train(model, batches, config, loss_fn=squared_error)
    losses = plain_loop(reference, batches, config)
    assert_same(weights_of(model), weights_of(reference), tolerance=ROUNDING)
    assert [entry["train"]["loss"] for entry in record.history] == pytest.approx(losses, abs=1e-6)
    assert (losses[-1] < losses[0]) or settings


def test_accumulating_batches_is_training_on_their_union():
    sizes = [3, 1, 6, 2, 5, 4]
    batches = made_batches(sizes)
    pairs = zip(batches[::2], batches[1::2], strict=True)
    unions = [Example(*map(torch.cat, zip(*pair, strict=True))) for pair in pairs]
    assert [len(batch.inputs) for batch in unions] == [4, 8, 9]
    common = {"epochs": 2, "learning_rate": 0.05, "mixed_precision": "fp32"}
    one, other = small_model(), small_model()
    first = train(
        one, made_batches(sizes), TrainingConfig(**common, gradient_accumulation_steps=2), loss_fn=squared_error
    )
    second = train(other, unions, TrainingConfig(**common), loss_fn=squared_error)
    assert_same(weights_of(one), weights_of(other), tolerance=ROUNDING)
    assert first.history[0]["train"] == pytest.approx(second.history[0]["train"], abs=1e-6)


def test_gradients_that_the_model_already_has_are_none_of_the_training_s():
    config = TrainingConfig(epochs=1, learning_rate=0.05, mixed_precision="fp32")
    one, other = small_model(), small_model()
    squared_error(one, made_batches([7], seed=9)[0]).loss_sum.backward()
    train(one, made_batches([3, 1]), config, loss_fn=squared_error)
    train(other, made_batches([3, 1]), config, loss_fn=squared_error)
    assert_same(weights_of(one), weights_of(other))


def test_reported_means_are_over_examples_whatever_the_batch_sizes():
    batches, dev = made_batches([1, 7, 2]), made_batches([5, 1], seed=1)
    model = small_model()
    reference = copy.deepcopy(model)
    config = TrainingConfig(epochs=1, learning_rate=1e-15, weight_decay=0.0, mixed_precision="fp32")
    record = train(model, batches, config, loss_fn=squared_error, eval_batches=dev)
    for split, examples in (("train", batches), ("dev", dev)):
        inputs, targets = (torch.cat(parts) for parts in zip(*examples, strict=True))
        errors = (reference(inputs) - targets).square()
        expected = {"loss": errors.mean().item(), "close": (errors < 1).double().mean().item()}
        assert record.history[0][split] == pytest.approx(expected, abs=1e-6)


def test_counts_and_metrics_may_be_numbers_or_tensors():
    def as_tensors_and_numbers(model, batch):
        loss_sum, count, metrics = squared_error(model, batch)
        return LossOutput(loss_sum, torch.tensor(count), {name: value.item() for name, value in metrics.items()})

    config = TrainingConfig(epochs=2, learning_rate=0.05, gradient_accumulation_steps=2, mixed_precision="fp32")
    one, other = small_model(), small_model()
    first = train(one, made_batches([3, 1, 6]), config, loss_fn=squared_error)
    second = train(other, made_batches([3, 1, 6]), config, loss_fn=as_tensors_and_numbers)
    assert_same(weights_of(one), weights_of(other))
    assert without_seconds(first.history) == without_seconds(second.history)


def test_training_reports_tokens_without_padding():
    model = TextClassifier(ClassifierConfig(vocab_size=9, d_model=4, num_heads=1, d_ff=4))
    batches = labelled_batches([[2, 3, 4, 5], [6], [7, 8]], [0, 1, 1], max_tokens=8)
    record = train(model, batches, TrainingConfig(epochs=2, mixed_precision="fp32"), loss_fn=classification_loss)
    assert [entry["tokens"] for entry in record.history] == [7, 7]
    assert record.tokens_per_second == round(14 / sum(entry["seconds"] for entry in record.history))
    without = train(small_model(), made_batches([2]), TrainingConfig(mixed_precision="fp32"), loss_fn=squared_error)
    assert without.tokens_per_second is None
    assert [entry["tokens"] for entry in without.history] == [0] * TrainingConfig().epochs


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_measures_in_evaluation_mode_and_restores_the_mode(training):
    model = nn.Sequential(small_model(), nn.Dropout(0.9)).train(training)
    seen = []

    def loss_fn(model, batch):
        seen.append((model.training, model[1].training, torch.is_grad_enabled()))
        return squared_error(model, batch)

    batches = made_batches([4, 1, 2])
    measured = evaluate(model, batches, loss_fn=loss_fn)
    assert set(seen) == {(False, False, False)}
    assert model.training is model[1].training is training
    errors = torch.cat([(model[0](inputs) - targets).square() for inputs, targets in batches])
    assert measured == pytest.approx(
        {"loss": errors.mean().item(), "close": (errors < 1).double().mean().item()}, abs=1e-6
    )


def test_evaluating_on_nothing_is_refused():
    with pytest.raises(ValueError, match="there are no batches"):
        evaluate(small_model(), [], loss_fn=squared_error)


def scripted(dev_losses: list[float], snapshots: list[dict]):
    """Return a loss function whose dev losses are given, and that keeps the weights they were measured with."""
    upcoming = iter(dev_losses)

    def loss_fn(model, batch):
        loss = squared_error(model, batch)
        if model.training:
            return loss
        snapshots.append(weights_of(model))
        return LossOutput(torch.tensor(next(upcoming) * loss.count), loss.count, {})

    return loss_fn


@pytest.mark.parametrize(("losses", "best"), [([3.0, 1.0, 2.0, 1.0], 1), ([1.0, 2.0, 3.0, 4.0], 0), ([4, 3, 2, 1], 3)])
def test_the_weights_with_the_lowest_dev_loss_are_kept(tmp_path, losses, best):
    model, snapshots = small_model(), []
    config = TrainingConfig(epochs=4, learning_rate=0.05, mixed_precision="fp32")
    loss_fn = scripted(losses, snapshots)
    dev = made_batches([2])
    record = train(model, made_batches([4, 4]), config, loss_fn=loss_fn, eval_batches=dev, output=tmp_path / "run")
    assert_same(weights_of(model), snapshots[best])
    assert_same(load_file(tmp_path / "run" / "model.safetensors"), snapshots[best])
    assert record.dev == {"loss": losses[best]}
    assert [entry["dev"]["loss"] for entry in record.history] == losses
    assert not torch.equal(snapshots[0]["0.weight"], snapshots[1]["0.weight"])


def test_without_a_dev_split_the_last_weights_are_kept(tmp_path):
    config = TrainingConfig(epochs=3, learning_rate=0.05, mixed_precision="fp32")
    model, reference = small_model(), small_model()
    record = train(model, made_batches([4, 4]), config, loss_fn=squared_error, output=tmp_path / "run")
    plain_loop(reference, made_batches([4, 4]), config)
    assert_same(weights_of(model), weights_of(reference), tolerance=ROUNDING)
    assert_same(load_file(tmp_path / "run" / "model.safetensors"), weights_of(model))
    assert record.dev is record.test is None


class Corpus(NamedTuple):
    batches: object
    dev: object


def corpus() -> Corpus:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 12, (60,), generator=generator).tolist()
    sequences = [torch.randint(1, 30, (length,), generator=generator).tolist() for length in lengths]
    labels = [int(max(sequence) > 22) for sequence in sequences]
    return Corpus(
        labelled_batches(sequences[:45], labels[:45], max_tokens=60, seed=5),
        labelled_batches(sequences[45:], labels[45:], max_tokens=60, shuffle=False),
    )


CLASSIFIER = ClassifierConfig(vocab_size=30, d_model=8, num_heads=2, d_ff=16, num_layers=1, max_length=16, dropout=0.3)
FOUR_EPOCHS = TrainingConfig(epochs=4, learning_rate=0.01, mixed_precision="fp32", seed=3)


def classifier(**changes) -> TextClassifier:
    torch.manual_seed(2)
    return TextClassifier(ClassifierConfig(**{**vars(CLASSIFIER), **changes}))


def without_seconds(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in history]


@pytest.fixture(scope="module")
def uninterrupted():
    model = classifier()
    record = train(model, corpus().batches, FOUR_EPOCHS, loss_fn=classification_loss, eval_batches=corpus().dev)
    return weights_of(model), record


class Interruption(Exception):
    pass


def interrupted(mode: bool, call: int):
    """Return a loss function that raises at a call in training mode (true) or evaluation mode (false)."""
    calls = {True: 0, False: 0}

    def loss_fn(model, batch):
        calls[model.training] += 1
        if model.training is mode and calls[mode] == call:
            raise Interruption
        return classification_loss(model, batch)

    return loss_fn


def stop_a_run(output, mode: bool, after: int) -> None:
    """Interrupt a run in training or evaluation mode, in the epoch after so many whole ones."""
    batches, dev = corpus()
    call = 1 + after * len(batches if mode else dev)
    with pytest.raises(Interruption):
        train(classifier(), batches, FOUR_EPOCHS, loss_fn=interrupted(mode, call), eval_batches=dev, output=output)


@pytest.mark.parametrize(("part", "done"), [("training", 0), ("training", 2), ("evaluation", 1), ("evaluation", 3)])
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_by_bit(tmp_path, uninterrupted, part, done):
    stop_a_run(tmp_path / "run", part == "training", after=done)
    assert [path.name for path in (tmp_path / "run").glob("checkpoints/*")] == [f"epoch-{done:04d}"] * bool(done)
    model = classifier()
    torch.manual_seed(99)
    batches, dev = corpus()
    seen = []

    def loss_fn(model, batch):
        seen.append(model.training)
        return classification_loss(model, batch)

    record = train(model, batches, FOUR_EPOCHS, loss_fn=loss_fn, eval_batches=dev, output=tmp_path / "run", resume=True)
    weights, expected = uninterrupted
    assert_same(weights_of(model), weights)
    assert_same(load_file(tmp_path / "run" / "model.safetensors"), weights)
    assert without_seconds(record.history) == without_seconds(expected.history)
    assert record.dev == expected.dev
    assert record == TrainingRecord.load(tmp_path / "run" / "record.json")
    tokens = expected.history[0]["tokens"]
    assert sum(entry["tokens"] for entry in record.history) == 4 * tokens
    assert seen.count(False) == (4 - done) * len(dev)


@pytest.mark.parametrize(("part", "call", "left"), [("training", 10, (1, 2)), ("evaluation", 4, (1, 6))])
def test_a_resumed_run_with_lamb_repeats_the_uninterrupted_one_bit_by_bit(tmp_path, monkeypatch, part, call, left):
    batches, dev = corpus()
    assert (len(batches), len(dev)) == (6, 3)  # so that it is interrupted in the second epoch
    config = TrainingConfig(**{**vars(FOUR_EPOCHS), "optimizer": "lamb", "epochs": 3})
    settings = {"eval_batches": dev, "checkpoint_every": 2}
    made = []
    monkeypatch.setattr(
        companion.training, "make_optimizer", lambda *args: made.append(make_optimizer(*args)) or made[-1]
    )
    reference, model = classifier(), classifier()
    expected = train(reference, batches, config, loss_fn=classification_loss, output=tmp_path / "whole", **settings)
    settings["output"] = tmp_path / "run"
    with pytest.raises(Interruption):
        train(classifier(), batches, config, loss_fn=interrupted(part == "training", call), **settings)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert checkpoint.name == f"epoch-{left[0]:04d}-batch-{left[1]:06d}"
    record = train(model, batches, config, loss_fn=classification_loss, resume=True, **settings)
    assert_same(weights_of(model), weights_of(reference))
    assert without_seconds(record.history) == without_seconds(expected.history)
    whole, _, resumed = made
    for one, other in zip(whole.state.values(), resumed.state.values(), strict=True):
        assert_same(one, other)


def test_the_best_weights_of_before_an_interruption_are_kept(tmp_path):
    snapshots = []
    loss_fn = scripted([1.0, 2.0], snapshots)
    config = TrainingConfig(epochs=4, learning_rate=0.05, mixed_precision="fp32")
    settings = {"eval_batches": made_batches([2]), "output": tmp_path / "run"}
    with pytest.raises((RuntimeError, StopIteration)):
        train(small_model(), made_batches([4, 4]), config, loss_fn=loss_fn, **settings)
    model = small_model()
    loss_fn = scripted([4.0, 3.0], [])
    record = train(model, made_batches([4, 4]), config, loss_fn=loss_fn, resume=True, **settings)
    assert_same(weights_of(model), snapshots[0])
    assert_same(load_file(tmp_path / "run" / "model.safetensors"), snapshots[0])
    assert record.dev == {"loss": 1.0}


def files_of(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    model = classifier()
    batches, dev = corpus()
    settings = {"loss_fn": classification_loss, "eval_batches": dev, "data": {"corpus": "made"}}
    record = train(model, batches, FOUR_EPOCHS, output=folder, **settings)
    return folder, record, weights_of(model)


def never(model, batch):
    raise AssertionError("nothing is to be trained")


def test_resuming_a_finished_run_returns_its_record_and_weights(finished):
    folder, record, weights = finished
    before = files_of(folder)
    model = classifier()
    batches, dev = corpus()
    data = {"corpus": "made"}
    again = train(model, batches, FOUR_EPOCHS, loss_fn=never, eval_batches=dev, output=folder, resume=True, data=data)
    assert again == record
    assert_same(weights_of(model), weights)
    assert files_of(folder) == before


@pytest.mark.parametrize(
    ("change", "model", "data", "named"),
    [
        ({"learning_rate": 0.02}, {}, "made", "training.learning_rate"),
        ({"seed": 4, "epochs": 5}, {}, "made", "training.epochs, training.seed"),
        ({}, {"dropout": 0.2}, "made", "model.dropout"),
        ({}, {}, "other", "data.corpus"),
    ],
)
def test_resuming_with_other_settings_is_refused(finished, change, model, data, named):
    folder, _, _ = finished
    before = files_of(folder)
    config = TrainingConfig(**{**vars(FOUR_EPOCHS), **change})
    settings = {"loss_fn": never, "output": folder, "resume": True, "data": {"corpus": data}}
    with pytest.raises(ValueError, match=re.escape(f"other settings ({named})")):
        train(classifier(**model), corpus().batches, config, **settings)
    assert files_of(folder) == before


def test_a_run_is_not_overwritten(finished):
    folder, _, _ = finished
    before = files_of(folder)
    with pytest.raises(FileExistsError, match=re.escape(f"{folder} already holds a run")):
        train(classifier(), corpus().batches, FOUR_EPOCHS, loss_fn=never, output=folder)
    assert files_of(folder) == before


def test_the_record_has_the_agreed_schema(finished):
    folder, _, weights = finished
    entries = json.loads((folder / "record.json").read_text("utf-8"))
    assert set(entries) == {
        *("command", "config", "seed", "commit", "versions", "hardware", "wall_seconds", "tokens_per_second"),
        *("parameters", "history", "dev", "test"),
    }
    assert entries["config"] == json.loads((folder / "config.json").read_text("utf-8"))
    model = {"kind": "TextClassifier", **vars(CLASSIFIER)}
    assert entries["config"] == {"model": model, "training": vars(FOUR_EPOCHS), "data": {"corpus": "made"}}
    assert entries["seed"] == 3
    assert entries["parameters"] == sum(weight.numel() for weight in weights.values())
    assert [entry["epoch"] for entry in entries["history"]] == [1, 2, 3, 4]
    for entry in entries["history"]:
        assert set(entry) == {"epoch", "seconds", "tokens", "train", "dev"}
        for split in ("train", "dev"):
            assert set(entry[split]) == {"loss", "accuracy"}
            assert 0 <= entry[split]["accuracy"] <= 1
    assert entries["dev"] == max(
        (entry["dev"] for entry in entries["history"]), key=lambda dev: (dev["accuracy"], -dev["loss"])
    )
    assert entries["test"] is None
    assert entries["wall_seconds"] >= round(sum(entry["seconds"] for entry in entries["history"]), 1)


def test_the_files_of_a_run_are_safetensors_and_json(finished):
    folder, _, _ = finished
    assert set(files_of(folder)) == {
        "config.json",
        "record.json",
        "model.safetensors",
        "checkpoints/epoch-0004/model.safetensors",
        "checkpoints/epoch-0004/optimizer.safetensors",
        "checkpoints/epoch-0004/state.json",
    }
    for name in files_of(folder):
        if name.endswith(".json"):
            json.loads((folder / name).read_text("utf-8"))
        else:
            assert load_file(folder / name)


def test_nothing_is_pickled_or_unpickled(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pickle is not to be used")

    for name in ("pickle.load", "pickle.loads", "pickle.dump", "torch.load", "torch.save"):
        monkeypatch.setattr(name, refuse)
    stop_a_run(tmp_path / "run", True, after=2)
    settings = {"eval_batches": corpus().dev, "output": tmp_path / "run", "resume": True}
    record = train(classifier(), corpus().batches, FOUR_EPOCHS, loss_fn=classification_loss, **settings)
    assert len(record.history) == 4


class Spoiled(torch.autograd.Function):
    """The same value, with another gradient."""

    @staticmethod
    def forward(ctx, x, gradient):
        ctx.gradient = gradient
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.gradient, None


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("part", ["loss", "norm of the gradient"])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_loss_or_a_gradient_that_is_not_finite_stops_the_training(tmp_path, value, precision, part, steps):
    def loss_fn(model, batch):
        loss = squared_error(model, batch)
        if loss.count == 3 and part == "loss":
            return loss._replace(loss_sum=loss.loss_sum * value)
        return loss._replace(loss_sum=Spoiled.apply(loss.loss_sum, value if loss.count == 3 else 1.0))

    config = TrainingConfig(learning_rate=0.01, mixed_precision=precision, gradient_accumulation_steps=steps)
    batches = made_batches([4, 2, 1, 5, 3, 2])  # the fifth is spoiled: update 5, or update 3
    update = {1: 5, 2: 3}[steps]
    model = small_model()
    with pytest.raises(FloatingPointError) as stopped:
        train(model, batches, config, loss_fn=loss_fn)
    shown = r"(nan|-?inf)"
    assert re.fullmatch(
        f"the {part} is {shown} in epoch 1, update {update}; lower the learning rate in a new run, or mend the cause: "
        "there is no checkpoint",
        str(stopped.value),
    )
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(model).values())
    assert not {"forward", "_original_forward"} & vars(model).keys()

    run = tmp_path / "run"
    with pytest.raises(FloatingPointError, match=re.escape(f"{run}/checkpoints/epoch-0000-batch-0000")) as stopped:
        train(small_model(), batches, config, loss_fn=loss_fn, output=run, checkpoint_every=2)
    assert str(stopped.value).endswith(" is whole, and resume goes on there")
    (checkpoint,) = (run / "checkpoints").iterdir()
    saved = load_file(checkpoint / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())
    # Without the cause, the run goes on from there as if nothing had been.
    record = train(small_model(), batches, config, loss_fn=squared_error, output=run, resume=True)
    expected = train(small_model(), batches, config, loss_fn=squared_error)
    assert without_seconds(record.history) == without_seconds(expected.history)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_dev_loss_that_is_not_finite_stops_the_training_too(tmp_path, value):
    loss_fn, config = scripted([1.0, value], []), TrainingConfig(epochs=3, mixed_precision="fp32")
    settings = {"eval_batches": made_batches([2]), "output": tmp_path / "run"}
    message = f"the dev loss is {value} in epoch 2, update 2; .*epoch-0001 is whole"
    with pytest.raises(FloatingPointError, match=message):
        train(small_model(), made_batches([4, 4])[:1], config, loss_fn=loss_fn, **settings)


def test_the_caller_s_random_numbers_are_left_alone(uninterrupted):
    batches, dev = corpus()
    weights, _ = uninterrupted
    model = classifier()
    torch.manual_seed(77)
    state = torch.get_rng_state()
    train(model, batches, FOUR_EPOCHS, loss_fn=classification_loss, eval_batches=dev)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(weights_of(model), weights)


def first_random_numbers(seed: int) -> list[float]:
    """Return a random number of each epoch's first batch."""
    drawn = []

    def loss_fn(model, batch):
        drawn.append(torch.rand(()).item())
        return squared_error(model, batch)

    config = TrainingConfig(epochs=4, seed=seed, mixed_precision="fp32")
    train(small_model(), made_batches([2]), config, loss_fn=loss_fn)
    return drawn


def test_each_epoch_and_each_seed_has_random_numbers_of_its_own():
    first, second = first_random_numbers(0), first_random_numbers(1)
    assert len({*first, *second}) == 8
    assert first_random_numbers(0) == first


def test_batches_are_told_the_epoch():
    told = []

    class Told(list):
        def set_epoch(self, epoch):
            told.append(epoch)

    batches = Told(made_batches([2, 2]))
    train(small_model(), batches, TrainingConfig(epochs=3, mixed_precision="fp32"), loss_fn=squared_error)
    assert told == [0, 1, 2]


def test_bf16_stays_close_to_float32_and_leaves_the_model_as_it_was(uninterrupted):
    _, expected = uninterrupted
    dtypes = set()

    def loss_fn(model, batch):
        inside = model.output.register_forward_hook(
            lambda module, args, output: dtypes.add((model.training, output.dtype))
        )
        loss = classification_loss(model, batch)
        inside.remove()
        return loss

    model = classifier()
    batches, dev = corpus()
    config = TrainingConfig(**{**vars(FOUR_EPOCHS), "mixed_precision": "bf16"})
    record = train(model, batches, config, loss_fn=loss_fn, eval_batches=dev)
    assert (True, torch.bfloat16) in dtypes
    assert record.config["training"]["mixed_precision"] == "bf16"
    losses, references = ([e["train"]["loss"] for e in r.history] for r in (record, expected))
    # bfloat16 keeps 8 bits: logits of order 1 are off by up to 2 ** -8 each, which some updates add up.
    assert losses == pytest.approx(references, abs=0.02)
    assert losses != references
    assert not {"forward", "_original_forward"} & vars(model).keys()
    assert {tensor.dtype for tensor in weights_of(model).values()} == {torch.float32}
    ids = torch.tensor([[3, 4, 5]])
    model.eval()
    assert model(ids).dtype == torch.float32
    assert torch.equal(model(ids), TextClassifier.forward(model, ids))


def test_a_forward_of_the_model_s_own_comes_back_after_bf16():
    model = small_model()
    forward = model.forward
    model.forward = lambda inputs: forward(inputs) * 2
    own = model.forward
    config = TrainingConfig(epochs=1, mixed_precision="bf16")
    train(model, made_batches([3]), config, loss_fn=squared_error)
    assert model.forward is own


def hardware_with(monkeypatch, *, capability: tuple[int, int] | None, amx: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


def test_the_precision_chosen_is_written_down_and_kept_on_resume(tmp_path, monkeypatch):
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 256), nn.Linear(256, 256), nn.Linear(256, 1), nn.Flatten(0))

    batches = [Example(one.inputs.float(), one.targets.float()) for one in made_batches([4, 3])]
    calls = itertools.count(1)

    def stopping(model, batch):
        if next(calls) == 3:
            raise Interruption
        return squared_error(model, batch)

    config = TrainingConfig(epochs=2, learning_rate=1e-4)
    hardware_with(monkeypatch, capability=None, amx=True)
    with pytest.raises(Interruption):
        train(model(), batches, config, loss_fn=stopping, output=tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["training"]["mixed_precision"] == "bf16"
    hardware_with(monkeypatch, capability=None, amx=False)
    record = train(model(), batches, config, loss_fn=squared_error, output=tmp_path / "run", resume=True)
    assert record.config == saved


TWO_PROCESSES = '''
import gc
import itertools
import json
import sys

import torch
import torch.distributed
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from companion.batching import LengthBucketSampler
from companion.training import LossOutput, TrainingConfig, evaluate, train

LENGTHS = [1 + 7 * number % 10 for number in range(37)]
VALUES = [torch.randn(4, generator=torch.Generator().manual_seed(number)).double() for number in range(37)]


def loader(**settings):
    sampler = LengthBucketSampler(LENGTHS, 30, **settings)
    return DataLoader(VALUES, batch_sampler=sampler, collate_fn=torch.stack)


class Union:
    """The batches of both processes, put together."""

    def __init__(self, **settings):
        self.samplers = [LengthBucketSampler(LENGTHS, 30, rank=rank, world_size=2, **settings) for rank in range(2)]

    def set_epoch(self, epoch):
        for sampler in self.samplers:
            sampler.set_epoch(epoch)

    def __len__(self):
        return len(self.samplers[0])

    def __iter__(self):
        for shares in zip(*self.samplers, strict=True):
            yield torch.stack([VALUES[index] for index in itertools.chain(*shares)])


def loss_fn(model, batch):
    errors = (model(batch).squeeze(-1) - batch.sum(-1).sin() * 3).square()
    return LossOutput(errors.sum(), len(errors), {"close": (errors < 1).sum(), "tokens": torch.tensor(len(errors))})


def main(output, union=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1)).double()
    batches = Union(seed=1) if union else loader(seed=1)
    dev = Union(shuffle=False) if union else loader(shuffle=False)
    config = TrainingConfig(
        epochs=3, learning_rate=0.05, max_grad_norm=3.0, gradient_accumulation_steps=2, mixed_precision="fp32"
    )
    record = train(model, batches, config, loss_fn=loss_fn, eval_batches=dev, output=output)
    measured = evaluate(model, dev, loss_fn=loss_fn)
    return model, record, measured


if __name__ == "__main__":
    model, record, measured = main(sys.argv[1])
    drawn = [torch.zeros(1) for _ in range(2)]
    seeds = []

    def seeing(model, batch):
        seeds.append(torch.rand(1))
        return loss_fn(model, batch)

    train(model, loader(seed=1), TrainingConfig(epochs=1, mixed_precision="fp32"), loss_fn=seeing)
    wrappers = sum(isinstance(one, nn.parallel.DistributedDataParallel) for one in gc.get_objects())
    torch.distributed.all_gather(drawn, seeds[0])
    with open(f"{sys.argv[1]}-{torch.distributed.get_rank()}.json", "w") as file:
        found = {"measured": measured, "history": record.history, "drawn": [one.item() for one in drawn]}
        json.dump({**found, "wrappers": wrappers}, file)
    save_file(model.state_dict(), f"{sys.argv[1]}-{torch.distributed.get_rank()}.safetensors")
    torch.distributed.destroy_process_group()
'''


@pytest.mark.skipif(sys.platform == "win32", reason="PyTorch's launcher of processes needs Unix")
def test_two_processes_train_and_measure_as_one_does_on_their_batches_put_together(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ran = subprocess.run([*launcher, script, tmp_path / "run"], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr

    model, record, measured = runpy.run_path(str(script))["main"](tmp_path / "alone", union=True)
    values = runpy.run_path(str(script))["VALUES"]
    found = [json.loads((tmp_path / f"run-{rank}.json").read_text()) for rank in range(2)]
    for rank in range(2):
        assert_same(load_file(tmp_path / f"run-{rank}.safetensors"), load_file(tmp_path / "run-0.safetensors"))
        assert found[rank]["measured"] == pytest.approx(measured, abs=1e-6)
        assert found[rank]["wrappers"] == 0  # one that lives until the exit can keep the process from it
    assert_same(load_file(tmp_path / "run" / "model.safetensors"), weights_of(model), tolerance=ROUNDING)
    assert [entry["tokens"] for entry in found[0]["history"]] == [37, 37, 37]
    for entry, alone in zip(found[0]["history"], record.history, strict=True):
        assert entry["train"] == pytest.approx(alone["train"], abs=2e-6)
        assert entry["dev"] == pytest.approx(alone["dev"], abs=2e-6)

    inputs = torch.stack(values)
    with torch.no_grad():
        errors = (model(inputs).squeeze(-1) - inputs.sum(-1).sin() * 3).square()
    assert measured == pytest.approx(
        {"loss": errors.mean().item(), "close": (errors < 1).double().mean().item()}, abs=1e-6
    )
    assert found[0]["drawn"][0] != found[0]["drawn"][1]
    assert TrainingRecord.load(tmp_path / "run" / "record.json").hardware["processes"] == 2
