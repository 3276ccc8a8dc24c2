import jaxtyping
import pytest
import torch


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def unhooked(request, monkeypatch):
    """Switch the jaxtyping and beartype hook off for tests marked ``unhooked``; it asks this flag at every call."""
    if request.node.get_closest_marker("unhooked"):
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
