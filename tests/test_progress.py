import subprocess
import sys

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from tests.terminal import in_terminal

SCRIPT = """
from companion.progress import progress_bar

with progress_bar(range(3, 7), "epoch 1/2", total=7, done=3, shown={shown}) as bar:
    for number in bar:
        bar.set_postfix({{"loss": "0.500"}})
print(number)
"""


@pytest.fixture(autouse=True)
def no_setting(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)


def seen_in_terminal(script: str) -> str:
    code, seen = in_terminal([sys.executable, "-c", script], columns=120)
    assert code == 0, seen
    return seen


def test_a_terminal_shows_the_bar_from_where_it_goes_on():
    seen = seen_in_terminal(SCRIPT.format(shown=True))
    assert "epoch 1/2:  43%" in seen
    assert "| 3/7 [" in seen
    assert "| 7/7 [" in seen.splitlines()[-1]
    assert "loss=0.500" in seen


def test_of_several_processes_only_one_shows_it():
    assert seen_in_terminal(SCRIPT.format(shown=False)) == ""


def test_the_variable_of_tqdm_hides_it(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert seen_in_terminal(SCRIPT.format(shown=True)) == ""


def test_what_is_no_terminal_shows_nothing():
    ran = subprocess.run([sys.executable, "-c", SCRIPT.format(shown=True)], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "6\n", "")


def executed(source: str) -> list:
    notebook = new_notebook(cells=[new_code_cell(source)])
    NotebookClient(notebook, timeout=60).execute()
    return notebook.cells[0].outputs


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # nbclient's own
def test_a_notebook_shows_a_widget_and_no_warning():
    bar, printed = executed(SCRIPT.format(shown=True))
    assert "application/vnd.jupyter.widget-view+json" in bar.data
    assert "epoch 1/2" in bar.data["text/plain"]
    assert (printed.name, printed.text) == ("stdout", "6\n")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_notebook_without_widgets_shows_a_line_and_no_warning():
    missing = "import sys\nsys.modules['ipywidgets'] = None\n"
    outputs = executed(missing + SCRIPT.format(shown=True))
    stderr = "".join(output.text for output in outputs if output.name == "stderr")
    assert "epoch 1/2: 100%" in stderr
    assert "7/7" in stderr
    assert "Warning" not in stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_variable_of_tqdm_hides_it_in_a_notebook_too(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    (printed,) = executed(SCRIPT.format(shown=True))
    assert (printed.name, printed.text) == ("stdout", "6\n")
