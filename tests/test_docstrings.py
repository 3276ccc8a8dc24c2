"""Every entry of the API page shows an example in its docstring, and every docstring's example prints what it says."""

import ast
import doctest
import importlib
import importlib.util
import pydoc
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import companion

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "companion"
FILES = [*PACKAGE.rglob("*.py"), *ROOT.glob("book/_tools/*.py"), *ROOT.glob("benchmarks/*.py")]


def docstrings(tree: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Yield the docstrings of a module and of all that it defines, at whatever depth, each with its owner's name."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.ClassDef() | ast.FunctionDef():
                yield from docstrings(node, f"{name}.{node.name}")
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield name, text
            case _:
                yield from docstrings(node, name)


def examples_in(source: str, name: str) -> list[doctest.DocTest]:
    """Return the examples of a module, those of a docstring together."""
    parse = doctest.DocTestParser().get_doctest
    tests = [parse(text, {}, owner, None, None) for owner, text in docstrings(ast.parse(source), name)]
    return [test for test in tests if test.examples]


def module_name(path: Path) -> str:
    """Return the name by which a module is imported; a script has that of its file."""
    if not path.is_relative_to(PACKAGE):
        return path.stem
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def load(path: Path) -> ModuleType:
    """Import a module of the package, or a script."""
    if path.is_relative_to(PACKAGE):
        return importlib.import_module(module_name(path))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def failures(test: doctest.DocTest, names: dict[str, object]) -> str:
    """Run the examples of a docstring, which may use some names, and return what doctest says against them."""
    report = []
    test.globs = dict(names)
    doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(test, out=report.append)
    return "".join(report)


def entries(page: str) -> Iterator[str]:
    """Yield the classes and functions on the API page, each by its name in the module that defines it."""
    for name in re.findall(r"^\.\. auto(?:class|function):: (\S+)$", page, re.MULTILINE):
        value = pydoc.locate(name)
        yield f"{value.__module__}.{value.__qualname__}"


EXAMPLES = {
    test.name: (path, test)
    for path in sorted(FILES)
    for test in examples_in(path.read_text("utf-8"), module_name(path))
}
ENTRIES = set(entries((ROOT / "book" / "api.md").read_text("utf-8")))
PUBLIC = {name: getattr(companion, name) for name in companion.__all__} | {"torch": torch, "nn": nn, "F": F}


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run_as_printed(name):
    """Those on the API page do with the names that the page says; others have those of their module besides."""
    path, test = EXAMPLES[name]
    on_the_page = any(f"{name}.".startswith(f"{entry}.") for entry in ENTRIES)
    assert failures(test, PUBLIC if on_the_page else PUBLIC | vars(load(path))) == ""


def test_every_entry_of_the_api_page_has_an_example():
    assert ENTRIES - set(EXAMPLES) == set()


def test_no_example_is_overlooked():
    written = sum(len(re.findall(r"^ *>>> ", path.read_text("utf-8"), re.MULTILINE)) for path in FILES)
    assert sum(len(test.examples) for _, test in EXAMPLES.values()) == written


def unsaid_errors(tree: ast.AST, name: str, said: str = "") -> Iterator[tuple[str, str]]:
    """Yield each error that a function raises by itself and that neither its docstring nor its class's speaks of."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.ClassDef() | ast.FunctionDef():
                text = said if node.name.startswith("__") else ast.get_docstring(node) or ""
                yield from unsaid_errors(node, f"{name}.{node.name}", text)
            case ast.Raise(exc=ast.Call(func=ast.Name(id=error))) if f"    {error}: " not in said:
                yield name, error
            case _:
                yield from unsaid_errors(node, name, said)


def test_entries_of_the_api_page_say_what_they_raise():
    unsaid = [
        (name, error)
        for path in sorted(PACKAGE.rglob("*.py"))
        for name, error in unsaid_errors(ast.parse(path.read_text("utf-8")), module_name(path))
        if any(f"{name}.".startswith(f"{entry}.") for entry in ENTRIES) and "._" not in name.replace(".__", "")
    ]
    assert unsaid == []


def test_an_error_that_a_docstring_leaves_out_is_seen():
    said = 'class A:\n    """A.\n\n    Raises:\n        ValueError: If not.\n    """\n'
    body = "    def __init__(self, x):\n        if x:\n            raise {}('no')\n"
    assert list(unsaid_errors(ast.parse(said + body.format("ValueError")), "m")) == []
    assert list(unsaid_errors(ast.parse(said + body.format("TypeError")), "m")) == [("m.A.__init__", "TypeError")]


SOURCE = '''
"""A module.

>>> a
1
"""

a = 1
"""A constant.

>>> a
2
"""

class _Hidden:
    if a:
        def method(self):
            def inner():
                """Add.

                Example:
                    >>> 1 + 1
                    3
                """
'''


def test_examples_are_found_at_whatever_depth_and_a_wrong_one_is_seen():
    module, constant, inner = examples_in(SOURCE, "module")
    assert (module.name, constant.name, inner.name) == ("module", "module", "module._Hidden.method.inner")
    assert failures(module, {"a": 1}) == ""
    assert "Expected:\n    2\nGot:\n    1" in failures(constant, {"a": 1})
    assert "Expected:\n    3\nGot:\n    2" in failures(inner, {})
