import shutil

import hypothesis
import jaxtyping
import pytest
import torch
from playwright.sync_api import sync_playwright

hypothesis.settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def unhooked(request, monkeypatch):
    """Switch the jaxtyping and beartype hook off for tests marked ``unhooked``; it asks this flag at every call."""
    if request.node.get_closest_marker("unhooked"):
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def always_packed(monkeypatch):
    """Leave out padding however little it is, as in batches that are larger than those of tests."""
    monkeypatch.setattr("companion.packing.FEWEST_A_TEXT", 0)


@pytest.fixture
def fresh_compiler():
    """Forget what torch.compile has seen: it gives up on code that it meets with too many kinds of module."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def one_thread():
    """Models as small as those of some tests make threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, driven by Playwright; it ends with the module, since other tests want the event loop."""
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable)
        yield browser
        browser.close()
