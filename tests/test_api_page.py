"""The API page: in the order of the package, every name in its module's group, every group with what explains it."""

import functools
import importlib.util
import inspect
import pydoc
import re
from itertools import pairwise
from typing import NamedTuple

import pytest
from test_architecture import ORDER, ROOT, imported_names
from test_links import Link, links_in

import companion
from companion import toy

PACKAGE = ROOT / "companion"
PAGE = (ROOT / "book" / "api.md").read_text("utf-8")


class Group(NamedTuple):
    """What stands below a heading.

    Attributes:
        title: The heading.
        links: The links above the entries.
        module: The module whose docstring introduces the group.
        names: The names of the entries.
        modules: The modules that define them.
    """

    title: str
    links: list[Link]
    module: str
    names: list[str]
    modules: list[str]


def home(kind: str, name: str) -> str:
    """Return the module, or the subpackage, that defines an entry; a constant is shown in its own."""
    return (name if kind == "data" else pydoc.locate(name).__module__).split(".")[1]


def groups_of(page: str) -> list[Group]:
    """Return the groups of a page, in order."""
    groups = []
    for section in re.split(r"^##+ ", page, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        if modules := re.findall(r"^\.\. automodule:: companion\.(\w+)$", body, re.MULTILINE):
            entries = re.findall(r"^\.\. auto(function|class|data):: (companion\.\S+)$", body, re.MULTILINE)
            links = list(links_in(body.partition("```{eval-rst}")[0]))
            names = [name for _, name in entries]
            groups.append(Group(title, links, *modules, names, [home(*entry) for entry in entries]))
    return groups


@functools.cache
def imports(module: str) -> set[str]:
    """Return the modules of the package that a module, or a subpackage, imports."""
    files = [*PACKAGE.glob(f"{module}.py"), *PACKAGE.glob(f"{module}/*.py")]
    names = [name.split(".") for file in files for name in imported_names(file.read_text("utf-8"))]
    return {name[1] for name in names if name[0] == "companion" and len(name) > 1}


def order_problems(groups: list[Group]) -> list[str]:
    """List the groups that stand before one of an earlier module, and the names that are not in their module's group.

    A name whose module has no group stands with a module that imports its own, or that its own imports.
    """
    order = (*ORDER, "exercises")
    own = {group.module for group in groups}
    problems = [
        f"{after.title} stands after {before.title}"
        for before, after in pairwise(groups)
        if order.index(before.module) >= order.index(after.module)
    ]
    for group in groups:
        for name, module in zip(group.names, group.modules, strict=True):
            if module in own:
                right = module == group.module
            else:
                right = module in imports(group.module) or group.module in imports(module)
            if not right:
                problems.append(f"{name} of {module} is in {group.title}")
    return problems


def test_groups_follow_the_order_of_the_package_and_names_their_modules():
    assert order_problems(groups_of(PAGE)) == []


def test_every_group_names_what_explains_it():
    without = [group.title for group in groups_of(PAGE) if not any("." in link.target for link in group.links)]
    assert without == ["Exercises"]  # each names its own chapter


def test_every_public_name_is_on_the_page_once():
    names = [name for group in groups_of(PAGE) for name in group.names]
    modules = {f"companion.{group.module}" for group in groups_of(PAGE)}
    public = {f"companion.{name}" for name in companion.__all__}
    public |= {
        f"companion.toy.{name}"
        for name, value in inspect.getmembers(toy)
        if not ("__" in name or inspect.ismodule(value))
    }
    assert len(names) == len({name.rpartition(".")[2] for name in names})
    assert public - {*names, *modules} == set()


def test_the_table_lists_the_parts_in_order():
    listed = re.findall(r"^\| \[(.*?)\]\(#", PAGE, re.MULTILINE)
    assert listed == re.findall(r"^## (.*)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def names_in():
    spec = importlib.util.spec_from_file_location("where_used", ROOT / "book" / "_tools" / "where_used.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.names_in


@pytest.mark.parametrize(
    ("code", "used"),
    [
        ("from companion import a, b\na(1)", {"companion.a"}),
        ("from companion import a as b\nb(1) + a(1)", {"companion.a"}),
        ("from companion.results import A\nprint(A)", {"companion.results.A"}),
        ("from companion import toy\ntoy.reviews(1)", {"companion.toy", "companion.toy.reviews"}),
        ("import companion\nx = companion.toy.a", {"companion", "companion.toy", "companion.toy.a"}),
        ("import companion.toy as t\nt.a", {"companion.toy", "companion.toy.a"}),
        ("import companion.toy\ncompanion.toy.a", {"companion", "companion.toy", "companion.toy.a"}),
        ("from companion import a\n%timeit a()\n    \nx.a()", set()),
        ("from companion import a\ndef f(x: a): pass", {"companion.a"}),
        ("import torch\ntorch.ones(1)", {"torch", "torch.ones"}),
        ("if True:\n    %pip install companion", set()),
    ],
)
def test_a_cell_uses_what_it_has_imported(names_in, code, used):
    assert names_in(code, {}) == used


def test_a_cell_uses_what_those_before_it_have_imported(names_in):
    origins = {}
    assert names_in("from companion import a", origins) == set()
    assert names_in("[a for _ in range(3)]", origins) == {"companion.a"}
    assert names_in("a = 1", origins) == set()


BATCHES = Group("Batches", [], "batching", ["companion.pad_batch"], ["batching"])
ATTENTION = Group("Attention", [], "attention", ["companion.KeyValueCache"], ["cache"])


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        ([ATTENTION, BATCHES], "Batches stands after Attention"),
        ([BATCHES, ATTENTION._replace(names=["companion.Tokenizer"], modules=["text"])], "of text is in Attention"),
        ([BATCHES, ATTENTION._replace(modules=["batching"])], "of batching is in Attention"),
        ([BATCHES._replace(names=["companion.train"], modules=["training"])], "of training is in Batches"),
    ],
)
def test_a_group_or_a_name_in_a_wrong_place_is_seen(groups, problem):
    assert order_problems([BATCHES, ATTENTION]) == []
    (found,) = order_problems(groups)
    assert problem in found
