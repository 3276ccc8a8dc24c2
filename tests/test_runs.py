import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from companion.runs import (
    Epoch,
    FullState,
    RunFolder,
    TrainingState,
    gather_state,
    gather_weights,
    load_weights,
    save_weights,
    spread_state,
    spread_weights,
)

ENTRIES = {"model": {"d_model": 8}, "training": {"epochs": 3, "seed": 0}, "data": {}}


def state_with(*losses: float) -> TrainingState:
    return TrainingState([epoch(n, loss=loss) for n, loss in enumerate(losses, start=1)], 1.5)


def epoch(number: int, **dev: float) -> Epoch:
    return {"epoch": number, "seconds": 0.5, "tokens": 9, "train": {"loss": 1.0}, "dev": dev}


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model and its optimizer after two updates."""
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    decayed, others = [model[0].weight], [model[0].bias, *model[1].parameters()]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others}], lr=0.1)
    for _ in range(2):
        update(model, optimizer)
    return model, optimizer


def update(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.arange(6.0).view(2, 3)).square().mul(torch.tensor([1.0, 3.0])).sum().backward()
    optimizer.step()


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("losses", "best"), [((3.0,), 1), ((3.0, 2.0), 2), ((2.0, 3.0), 1), ((3, 1, 2, 1), 2), ((2.0, 2.0), 1)]
)
def test_the_best_epoch_is_the_first_with_the_lowest_dev_loss(losses, best):
    assert state_with(*losses).best_epoch() == best


def test_accuracy_goes_before_loss_and_loss_decides_between_equals():
    devs = [(0.50, 0.3), (0.75, 0.9), (0.75, 0.8), (0.75, 0.8), (0.625, 0.1)]
    history = [epoch(n, loss=loss, accuracy=accuracy) for n, (accuracy, loss) in enumerate(devs, 1)]
    assert TrainingState(history).best_epoch() == 3


def test_without_a_dev_split_the_last_epoch_is_the_best():
    assert TrainingState([{"epoch": 1}, {"epoch": 2}, {"epoch": 3}]).best_epoch() == 3


def test_claiming_makes_the_folder_and_writes_the_config(tmp_path):
    run = RunFolder(tmp_path / "runs" / "first")
    run.claim(ENTRIES, resume=False)
    assert json.loads(run.config.read_text()) == ENTRIES
    assert list(run.folder.iterdir()) == [run.config]


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_holds_other_files_can_be_claimed(tmp_path, resume):
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder(tmp_path).claim(ENTRIES, resume=resume)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "record.json", "checkpoints"])
def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(tmp_path, name):
    (tmp_path / name).write_text("of a run")
    with pytest.raises(FileExistsError, match=re.escape(f"{tmp_path} already holds a run; resume it or name")):
        RunFolder(tmp_path).claim(ENTRIES, resume=False)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "of a run"}


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_is_no_run_folder(tmp_path, resume):
    path = tmp_path / "run"
    path.write_text("a file")
    with pytest.raises(FileExistsError, match=re.escape(f"{path} is a file; name a folder")):
        RunFolder(path).claim(ENTRIES, resume=resume)
    assert path.read_text() == "a file"


def test_the_same_config_can_be_claimed_again_to_resume(tmp_path):
    run = RunFolder(tmp_path)
    run.claim(ENTRIES, resume=True)
    before = run.config.stat()
    run.claim(ENTRIES, resume=True)
    after = run.config.stat()  # whose time of access may be another
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model": {"d_model": 9}}, "model.d_model"),
        ({"training": {"epochs": 4, "seed": 1}}, "training.epochs, training.seed"),
        ({"training": {"epochs": 3}}, "training.seed"),
        ({"data": {"corpus": "toy"}}, "data.corpus"),
    ],
)
def test_another_config_is_refused_and_its_fields_are_named(tmp_path, changed, named):
    run = RunFolder(tmp_path)
    run.claim(ENTRIES, resume=False)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} was started with other settings ({named})")):
        run.claim(ENTRIES | changed, resume=True)
    assert json.loads(run.config.read_text()) == ENTRIES


def test_a_checkpoint_restores_model_optimizer_and_state(tmp_path):
    run = RunFolder(tmp_path)
    model, optimizer = trained()
    run.save(state_with(0.5, 0.25), gather_state(model, optimizer))

    other = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    decayed, others = [other[0].weight], [other[0].bias, *other[1].parameters()]
    fresh = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others}], lr=0.1)
    state, full = run.restore(other)
    assert state == state_with(0.5, 0.25)
    spread_state(full, other, fresh)
    assert_equal(other.state_dict(), model.state_dict())
    for index, tensors in optimizer.state_dict()["state"].items():
        assert_equal(fresh.state_dict()["state"][index], tensors)
    assert [group["weight_decay"] for group in fresh.param_groups] == [0.1, 0.01]
    update(model, optimizer)
    update(other, fresh)
    assert_equal(other.state_dict(), model.state_dict())


def test_without_a_checkpoint_there_is_nothing_to_restore(tmp_path):
    run = RunFolder(tmp_path)
    assert run.restore(nn.Linear(3, 2)) == (TrainingState(history=[], wall_seconds=0.0, updates=0, batch=0), None)
    assert run.last_checkpoint() is None


def test_the_best_weights_stay_while_the_checkpoint_moves_on(tmp_path):
    run = RunFolder(tmp_path)
    model, optimizer = trained()
    run.save(state_with(0.5), gather_state(model, optimizer))
    best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    update(model, optimizer)
    run.save(state_with(0.5, 0.75), gather_state(model, optimizer))
    assert_equal(load_file(run.weights), best)
    assert_equal(load_file(run.checkpoints / "epoch-0002" / "model.safetensors"), model.state_dict())
    update(model, optimizer)
    run.save(state_with(0.5, 0.75, 0.25), gather_state(model, optimizer))
    assert_equal(load_file(run.weights), model.state_dict())


def test_only_the_last_checkpoint_is_kept_in_files_that_need_no_unpickling(tmp_path):
    run = RunFolder(tmp_path)
    model, optimizer = trained()
    run.save(state_with(0.5), gather_state(model, optimizer))
    run.save(state_with(0.5, 0.25), gather_state(model, optimizer))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "checkpoints/epoch-0002/model.safetensors",
        "checkpoints/epoch-0002/optimizer.safetensors",
        "checkpoints/epoch-0002/state.json",
        "model.safetensors",
    ]
    assert [path.name for path in run.checkpoints.iterdir()] == ["epoch-0002"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    model, optimizer = trained()
    run.save(state_with(0.5), gather_state(model, optimizer))

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("companion.runs.write_json", full)
    with pytest.raises(OSError, match="No space"):
        run.save(state_with(0.5, 0.75), gather_state(model, optimizer))
    assert run.restore(model)[0] == state_with(0.5)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named(tmp_path, name):
    run = RunFolder(tmp_path)
    model, optimizer = trained()
    run.save(state_with(0.5), gather_state(model, optimizer))
    path = run.checkpoints / "epoch-0001" / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        run.restore(model)


def test_weights_come_back_bit_by_bit(tmp_path):
    tensors = {
        "transposed": torch.randn(3, 4, dtype=torch.float64).T,
        "bf16": torch.randn(5).bfloat16(),
        "step": torch.tensor(7.0),
        "trained": nn.Parameter(torch.randn(2)),
    }
    save_weights(tensors, tmp_path / "model.safetensors")
    assert_equal(load_weights(tmp_path / "model.safetensors"), tensors)


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:-1], lambda whole: whole[:5], lambda whole: b"", lambda _: b"x" * 99]
)
def test_damaged_weights_are_named(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    save_weights({"weight": torch.ones(9)}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=re.escape(f"{path} is damaged")):
        load_weights(path)
    with pytest.raises(FileNotFoundError):
        load_weights(tmp_path / "nowhere.safetensors")


def within(state: TrainingState, batch: int) -> TrainingState:
    return replace(
        state, batch=batch, updates=7, epoch_seconds=0.25, sums={"loss": [0.1 + 0.2, 1e-300], "count": [3, 4]}
    )


def test_a_checkpoint_within_an_epoch_comes_back_to_the_last_bit_and_before_the_next_whole_one(tmp_path):
    run = RunFolder(tmp_path)
    model, optimizer = trained()
    run.save(state_with(0.5), gather_state(model, optimizer))
    best = weights_of(model)
    update(model, optimizer)
    for batch in (9, 10, 1_000):
        run.save(within(state_with(0.5), batch), gather_state(model, optimizer))
        assert [path.name for path in run.checkpoints.iterdir()] == [f"epoch-0001-batch-{batch:06d}"]
        state, full = run.restore(model)
        assert state == within(state_with(0.5), batch)
        assert_equal(full.weights, model.state_dict())
    assert_equal(load_file(run.weights), best)
    run.save(state_with(0.5, 0.25), gather_state(model, optimizer))
    assert run.last_checkpoint() == run.checkpoints / "epoch-0002"
    assert_equal(load_file(run.weights), model.state_dict())


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kept", [0, 1])
def test_resuming_puts_right_what_a_killed_writer_has_left(tmp_path, kept):
    run = RunFolder(tmp_path / "run")
    model, optimizer = trained()
    run.claim(ENTRIES, resume=False)
    run.save(state_with(0.5), gather_state(model, optimizer))
    before = run.weights.read_bytes()
    shutil.copytree(run.checkpoints / "epoch-0001", tmp_path / "epoch-0001")
    update(model, optimizer)
    run.save(state_with(0.5, 0.25 if kept else 0.75), gather_state(model, optimizer))
    after = (run.checkpoints / "epoch-0002" / "model.safetensors").read_bytes()
    # Killed after the second checkpoint took its name, before the best weights were copied and the first was removed.
    run.weights.write_bytes(before)
    shutil.copytree(tmp_path / "epoch-0001", run.checkpoints / "epoch-0001")
    (run.checkpoints / "epoch-0001" / "state.json").unlink()
    (run.checkpoints / ".epoch-0002.99.tmp").mkdir()
    (run.folder / ".model.safetensors.99.tmp").write_bytes(b"half")
    run.claim(ENTRIES, resume=True)
    assert run.weights.read_bytes() == (after if kept else before)
    assert run.restore(model)[0] == state_with(0.5, 0.25 if kept else 0.75)
    update(model, optimizer)
    run.save(within(state_with(0.5, 0.25), 3), gather_state(model, optimizer))
    assert {path.name for path in run.folder.iterdir()} == {"config.json", "model.safetensors", "checkpoints"}
    assert [path.name for path in run.checkpoints.iterdir()] == ["epoch-0002-batch-000003"]


def test_a_run_that_is_not_resumed_is_not_touched(tmp_path):
    (tmp_path / ".config.json.99.tmp").write_text("of another program")
    RunFolder(tmp_path).claim(ENTRIES, resume=False)
    assert (tmp_path / ".config.json.99.tmp").exists()


def test_a_state_with_other_entries_is_named(tmp_path):
    run = RunFolder(tmp_path)
    run.save(state_with(0.5), gather_state(*trained()))
    path = run.checkpoints / "epoch-0001" / "state.json"
    path.write_text('{"epochs": 3}')
    with pytest.raises(ValueError, match=re.escape(f"{path} is not the state of a run")):
        run.restore(trained()[0])


def test_the_optimizer_s_tensors_go_by_the_names_of_the_parameters():
    model, optimizer = trained()
    full = gather_state(model, optimizer)
    moments = ("exp_avg", "exp_avg_sq", "step")
    assert full.optimizer.keys() == {f"{name}.{moment}" for name in model.state_dict() for moment in moments}
    for name, parameter in model.named_parameters():
        for moment in moments:
            assert torch.equal(full.optimizer[f"{name}.{moment}"], optimizer.state[parameter][moment])


@pytest.mark.parametrize("missing", ["0.bias.", "1."])
def test_the_state_of_another_model_is_refused(missing):
    full = gather_state(*trained())
    less = FullState(full.weights, {name: t for name, t in full.optimizer.items() if not name.startswith(missing)})
    with pytest.raises(ValueError, match="the optimizer's state of another model"):
        spread_state(less, *trained())


def test_frozen_parameters_have_no_state_and_come_back():
    model, _ = trained()
    frozen = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    frozen[1].requires_grad_(False)
    theirs = torch.optim.AdamW(frozen[0].parameters(), lr=0.1)
    update(frozen, theirs)
    full = gather_state(frozen, theirs)
    assert {name.split(".")[0] for name in full.optimizer} == {"0"}
    model[1].requires_grad_(False)
    model.zero_grad()
    ours = torch.optim.AdamW(model[0].parameters(), lr=0.1)
    spread_state(full, model, ours)
    assert_equal(model.state_dict(), frozen.state_dict())
    assert gather_state(model, ours).optimizer.keys() == full.optimizer.keys()
    assert_equal(gather_state(model, ours).optimizer, full.optimizer)


def test_gathered_weights_are_copies_and_spread_again():
    model, optimizer = trained()
    weights = gather_weights(model)
    before = weights_of(model)
    update(model, optimizer)
    assert_equal(weights, before)
    spread_weights(weights, model)
    assert_equal(model.state_dict(), before)
