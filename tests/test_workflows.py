"""What GitHub, hooks, dev containers and contributors run is well formed and calls what exists."""

import json
import re
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import check_jsonschema
import pytest
import yaml
from click.testing import CliRunner
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
ACTIONS = sorted((GITHUB / "actions").glob("*/action.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
HOOKS = ROOT / ".pre-commit-config.yaml"
CONTAINER = ROOT / ".devcontainer" / "devcontainer.json"
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "README.md", GITHUB / "pull_request_template.md"]
EXAMPLE = "book/dropout.ipynb"  # the chapter that CONTRIBUTING.md adds
CALLERS = [*WORKFLOWS, *ACTIONS, HOOKS, CONTAINER, *PAGES]


def problems(schema: str, *paths: Path) -> str:
    """Return what a schema that check-jsonschema brings has against files, or nothing."""
    ran = CliRunner().invoke(check_jsonschema.main, ["--builtin-schema", schema, *map(str, paths)])
    return "" if ran.exit_code == 0 else ran.output


@pytest.mark.parametrize(
    ("schema", "paths"),
    [
        ("vendor.github-workflows", WORKFLOWS),
        ("custom.github-workflows-require-timeout", WORKFLOWS),
        ("vendor.github-actions", ACTIONS),
        ("vendor.dependabot", [GITHUB / "dependabot.yml"]),
        ("vendor.github-issue-forms", FORMS),
        ("vendor.github-issue-config", [GITHUB / "ISSUE_TEMPLATE" / "config.yml"]),
    ],
)
def test_files_for_github_keep_to_its_schemas(schema, paths):
    assert paths
    assert problems(schema, *paths) == ""


def test_a_job_without_a_limit_is_seen(tmp_path):
    workflow = yaml.safe_load(WORKFLOWS[0].read_text("utf-8"))
    next(iter(workflow["jobs"].values())).pop("timeout-minutes")
    (tmp_path / "workflow.yml").write_text(yaml.safe_dump(workflow), "utf-8")
    assert "timeout-minutes" in problems("custom.github-workflows-require-timeout", tmp_path / "workflow.yml")


def commands(path: Path) -> str:
    """Return the text of a file in which commands stand: of a page, its code."""
    text = path.read_text("utf-8")
    return "\n".join(re.findall(r"```\w*\n.*?```|`[^`\n]+`", text, re.DOTALL)) if path.suffix == ".md" else text


def targets() -> set[str]:
    """Return what the Makefile makes by name."""
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


@pytest.mark.parametrize("path", CALLERS, ids=lambda path: path.name)
def test_every_target_that_is_called_is_made(path):
    calls = re.findall(r"(?:^|[`&|;:]) *make((?: [a-z-]+)+)", commands(path), re.MULTILINE)
    assert {target for call in calls for target in call.split()} - targets() == set()


@pytest.mark.parametrize("path", CALLERS, ids=lambda path: path.name)
def test_every_path_that_is_named_exists(path):
    named = re.findall(
        r"(?<![\w./-])(?:\.?/?)((?:\.github|book|tests|companion|benchmarks)/[\w./*-]*\w)", commands(path)
    )
    assert {name for name in named if name != EXAMPLE and not list(ROOT.glob(name))} == set()


@pytest.mark.parametrize("path", CALLERS, ids=lambda path: path.name)
def test_every_extra_that_is_installed_is_one(path):
    named = re.findall(r"\.\[([\w,-]+)\]|installed-([\w,-]+)", commands(path))
    assert {extra for pair in named for extra in "".join(pair).split(",")} - set(
        PROJECT["optional-dependencies"]
    ) == set()


@pytest.mark.parametrize("path", [*WORKFLOWS, *ACTIONS], ids=lambda path: path.parent.name + path.stem)
def test_actions_are_githubs_in_one_major_version_each_or_this_repositorys(path):
    for used in re.findall(r"uses: *(\S+)", path.read_text("utf-8")):
        local = used.startswith("./") and (ROOT / used / "action.yml").exists()
        assert local or re.fullmatch(r"actions/[\w-]+@v\d+", used), used


def test_workflows_write_nothing_but_what_a_job_asks_for():
    for path in WORKFLOWS:
        assert yaml.safe_load(path.read_text("utf-8"))["permissions"] == {"contents": "read"}, path.name


def test_tests_run_on_every_python_that_the_package_allows():
    jobs = yaml.safe_load((GITHUB / "workflows" / "tests.yml").read_text("utf-8"))["jobs"]
    matrix = jobs["elsewhere"]["strategy"]["matrix"]
    assert matrix["system"] == ["ubuntu", "macos", "windows"]
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert [f"3.{minor}" for minor in range(14) if f"3.{minor}" in allowed] == matrix["python"]
    named = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert named == matrix["python"]
    default = yaml.safe_load(ACTIONS[0].read_text("utf-8"))["inputs"]["version"]["default"]
    assert matrix["exclude"] == [{"system": "ubuntu", "python": default}]  # which make test has


def test_whatever_keeps_a_weekly_job_from_success_is_reported():
    jobs = yaml.safe_load((GITHUB / "workflows" / "weekly.yml").read_text("utf-8"))["jobs"]
    report = jobs.pop("report")
    assert set(report["needs"]) == set(jobs)
    assert "!success()" in report["if"]  # GitHub cancels a job that is past its limit, which is no failure()


def test_issue_forms_name_labels_that_a_new_repository_has():
    labels = {label for form in FORMS for label in yaml.safe_load(form.read_text("utf-8"))["labels"]}
    assert labels <= {"bug", "documentation", "enhancement", "question"}


def test_hooks_call_tools_that_the_extra_dev_installs():
    hooks = [hook for repo in yaml.safe_load(HOOKS.read_text("utf-8"))["repos"] for hook in repo["hooks"]]
    called = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks} - {"python"}
    packages = {script.name: script.dist.name.replace("_", "-") for script in entry_points(group="console_scripts")}
    packages["ruff"] = "ruff"  # a program, which no entry point names
    if "check-yaml" not in packages:
        pytest.skip("needs what `make dev` installs")
    extras = PROJECT["optional-dependencies"]
    installed = {re.match(r"[\w-]+", line)[0] for extra in ("test", "dev") for line in extras[extra]}
    assert {name: packages.get(name) for name in called if packages.get(name) not in installed} == {}


def test_the_dev_container_has_the_python_of_the_constraints():
    container = json.loads(CONTAINER.read_text("utf-8"))
    assert container["image"].startswith("mcr.microsoft.com/devcontainers/python:3.11-")
