"""Every command of `python -m companion` that a page, a docstring, a record or the Makefile shows is one.

Each is parsed, its launcher's options too; what the commands do, the tests of the command line try.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from test_build import command
from test_links import MARKDOWN, PAGES, markdown_of
from torch.distributed.run import get_args_parser

from companion.cli import _parse

ROOT = Path(__file__).parents[1]
PROGRAM = "-m companion "
LAUNCHERS = {"accelerate launch": launch_command_parser, "torchrun": get_args_parser}
DOCSTRINGS = [
    path for path in sorted((ROOT / "companion").rglob("*.py")) if "Example: python" in path.read_text("utf-8")
]


def commands_in(markdown: str) -> Iterator[str]:
    """Yield the commands in the code and the tables of a page; an option that stands below one, together with it."""
    above = ""
    for line in lines_in(markdown):
        written = re.split(r"(?<=\S)(?: {4,}| +#| \.\.\.)", line)[0]
        if PROGRAM in written:
            above = written
            yield written
        elif written.startswith("    --"):
            yield above + written


def lines_in(markdown: str) -> Iterator[str]:
    """Yield the lines of the blocks of code on a page, and the code in its tables."""
    cell = False
    for token in MARKDOWN.parse(markdown):
        if token.type == "fence":
            yield from re.sub(r" *\\\n *", " ", token.content).splitlines()
        elif cell:
            yield from (child.content for child in token.children or [] if child.type == "code_inline")
        cell = token.type == "td_open"


def parse(line: str) -> object:
    """Parse a command, in which N is a number, and what launches it; return it as the command line has it."""
    before, program, after = line.partition(PROGRAM)
    for launcher, parser in LAUNCHERS.items():
        if launcher in before:
            options = shlex.split(before.partition(launcher)[2] + program + after)
            assert parser().parse_args(options).training_script == "companion"
    return _parse([re.sub(r"^N$", "1", word) for word in shlex.split(after)])


COMMANDS = {page.name: list(commands_in(markdown_of(page))) for page in PAGES}


@pytest.mark.parametrize("page", [page for page, commands in COMMANDS.items() if commands])
def test_commands_of_a_page_are_commands(page):
    for line in COMMANDS[page]:
        parse(line)


@pytest.mark.parametrize(("page", "least"), [("README.md", 3), ("api.md", 21), ("devices.md", 11), ("imdb.ipynb", 4)])
def test_no_command_of_the_pages_on_commands_is_overlooked(page, least):
    assert len(COMMANDS[page]) >= least


@pytest.mark.parametrize("path", DOCSTRINGS, ids=lambda path: path.stem)
def test_commands_of_docstrings_are_commands(path):
    for line in re.findall(r"Example: (python .*)", path.read_text("utf-8")):
        parse(line)


def test_records_name_the_command_that_makes_them():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for path in (ROOT / "companion" / "results").glob("*.json"):
        line = json.loads(path.read_text("utf-8"))["command"]
        if line.startswith("make "):
            assert line.removeprefix("make ") in targets
        else:
            parse(line)


def test_make_results_runs_commands():
    plan = subprocess.run(command("-n", "results"), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line for line in plan.replace("\\\n", " ").splitlines() if PROGRAM in line]
    assert len(lines) > 5
    for line in lines:
        parse(line)


@pytest.mark.parametrize(
    "line",
    [
        "python -m companion trane imdb --output RUN",
        "python -m companion train imdb --outptu RUN",
        "python -m companion train imdb",
        "python -m companion train imdb --output RUN --max-tokens many",
    ],
)
def test_what_is_no_command_is_seen(line):
    (found,) = commands_in(f"```\n{line}     # a comment\n```")
    assert found == line
    with pytest.raises(ValueError, match="see --help"):
        parse(line)


def test_an_option_that_the_launcher_has_not_is_seen():
    parse("accelerate launch --num_processes 2 -m companion train imdb --output RUN")
    with pytest.raises(SystemExit):
        parse("torchrun --num_processes 2 -m companion train imdb --output RUN")


def test_options_are_read_with_the_command_above_and_tables_without_their_text():
    page = "```\npython -m companion train toy --output RUN     it trains\n    --resume    goes on\n```\n\n"
    page += "| command | what |\n| --- | --- |\n| `python -m companion evaluate RUN` | measures `RUN` |\n"
    assert list(commands_in(page)) == [
        "python -m companion train toy --output RUN",
        "python -m companion train toy --output RUN    --resume",
        "python -m companion evaluate RUN",
    ]
