import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import nn

from companion.devices import choose_precision, default_device, make_accelerator


def hardware_with(monkeypatch, *, capability: tuple[int, int] | None, amx: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


@pytest.mark.parametrize(
    ("capability", "amx", "width", "precision"),
    [
        (None, True, 256, "bf16"),
        (None, True, 255, "fp32"),
        (None, False, 1024, "fp32"),
        ((7, 5), True, 1024, "fp32"),
        ((8, 0), False, 256, "bf16"),
        ((9, 0), False, 255, "fp32"),
    ],
)
def test_automatic_precision_follows_hardware_and_width(monkeypatch, capability, amx, width, precision):
    hardware_with(monkeypatch, capability=capability, amx=amx)
    model = nn.Sequential(nn.Embedding(3_000, width), nn.Linear(width, width), nn.Linear(width, 1))
    assert choose_precision(model) == precision


@pytest.mark.parametrize(("precision", "internally"), [("fp32", "no"), ("bf16", "bf16")])
def test_one_process_after_another_may_have_another_precision(precision, internally):
    for _ in range(2):
        accelerator = make_accelerator(precision)
        assert accelerator.mixed_precision == internally
        assert (accelerator.num_processes, accelerator.is_main_process, accelerator.trackers) == (1, True, [])


def test_the_device_is_a_gpu_where_there_is_one():
    expected = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert default_device().type == expected.type


def test_sharding_is_that_of_version_2_whatever_the_launcher_says(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    seen = []

    def stop(**settings):
        seen.append(settings["fsdp_plugin"])
        raise InterruptedError

    monkeypatch.setattr("companion.devices.Accelerator", stop)
    for sharded in ("true", "false"):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", sharded)
        with pytest.raises(InterruptedError):
            make_accelerator()
    assert seen[0].fsdp_version == 2
    assert seen[1] is None


def test_one_run_after_another_is_sharded(monkeypatch):
    start = PartialState.__init__

    def start_on_gpus(state, *arguments, **settings):
        fresh = not PartialState._shared_state
        start(state, *arguments, **settings)
        if fresh:
            state.distributed_type = DistributedType.MULTI_GPU

    monkeypatch.setattr(PartialState, "__init__", start_on_gpus)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    try:
        assert [make_accelerator().is_fsdp2 for _ in range(2)] == [True, True]
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
