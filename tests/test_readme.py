"""The README's library examples run as printed, one after the other, and its matplotlib style is found by its name."""

import re
from pathlib import Path

from matplotlib import rc_context, rcParams, style

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
PAGES = set(re.findall(r'save\("(.*?)"\)', README))


def test_library_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [example.count("assert") for example in EXAMPLES] == [2, 0]
    names = {}
    for example in EXAMPLES:
        exec(compile(example, "README.md", "exec"), names)
    assert names["weights"].shape == (2, 4, 4, 4)
    assert {"attention.html", "positions.html"} == PAGES
    assert {path.name for path in tmp_path.iterdir()} == PAGES


def test_style_is_used_by_its_name():
    (name,) = re.findall(r'plt\.style\.use\("(.*?)"\)', README)
    with rc_context():
        style.use(name)
        assert rcParams["figure.figsize"] == [6.4, 3.8]
