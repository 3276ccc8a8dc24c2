"""Every public name shows an example in its docstring, and every example prints what it says."""

import doctest
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import companion

PUBLIC = {name: getattr(companion, name) for name in companion.__all__}
PUBLIC = {name: value for name, value in PUBLIC.items() if not inspect.ismodule(value)}
PUBLIC |= {
    f"toy.{name}": value
    for name, value in vars(companion.toy).items()
    if str(getattr(value, "__module__", "")).startswith("companion.toy") and not name.startswith("_")
}


def examples(name, value):
    """Find the doctests of a docstring and of the methods under it; they may use every public name by itself."""
    names = {public: getattr(companion, public) for public in companion.__all__} | {"torch": torch, "nn": nn, "F": F}
    found = doctest.DocTestFinder(exclude_empty=True).find(value, name, globs=names)
    return [test for test in found if test.examples]


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example_that_runs_as_printed(name):
    tests = examples(name, PUBLIC[name])
    assert any(test.name == name for test in tests), f"{name} has no example"
    for test in tests:
        report = []
        doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(test, out=report.append)
        assert not report, "".join(report)


def test_an_example_that_prints_something_else_is_seen():
    def wrong():
        """Add.

        Example:
            >>> 1 + 1
            3
        """

    (test,) = examples("wrong", wrong)
    report = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert "Expected:\n    3\nGot:\n    2" in "".join(report)
