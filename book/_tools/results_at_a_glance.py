"""Sphinx extension: the table of results on the first page, made from the records when the site is built.

The page holds `{{ results_at_a_glance }}`; the figures stand nowhere but in the records.
"""

from statistics import mean
from typing import NamedTuple

from sphinx.application import Sphinx
from sphinx.config import Config

from companion import load_measurement, load_result


class Result(NamedTuple):
    """A row of the table.

    Attributes:
        what: What was measured.
        accuracy: What came out, 0 to 1.
        page: The page that says how.
        records: The records that it is the mean of, or the one that has it among others.
    """

    what: str
    accuracy: float
    page: str
    records: tuple[str, ...]


def headlines() -> list[Result]:
    """Read the headline figures from the records."""
    return [
        _tested("the article's model, made to run", "imdb", "imdb-article-0"),
        _tested("a Transformer layer on labels alone; 3 seeds", "imdb", *_seeds("imdb-base")),
        _tested("NB-SVM on n-grams of 1 to 3 words, which that has to beat", "imdb", "baselines-nbsvm-trigrams-0"),
        _tested("a Transformer layer and n-gram vectors; 3 seeds", "imdb", *_seeds("imdb-best")),
        _tested("the last two together; 3 seeds", "imdb", *_seeds("imdb-ensemble")),
        _tested("a small ALBERT, pre-trained on IMDB's own reviews", "albert", "albert-student"),
        _reversed("reversing 16 tokens, an encoder without positions; 3 seeds", "none"),
        _reversed("the same with sinusoids; 3 seeds", "sinusoidal"),
    ]


def _seeds(row: str) -> list[str]:
    return [f"{row}-{seed}" for seed in range(3)]


def _tested(what: str, page: str, *records: str) -> Result:
    return Result(what, mean(load_result(record).test["accuracy"] for record in records), page, records)


def _reversed(what: str, positions: str) -> Result:
    rows = [
        row["accuracy"]
        for row in load_measurement("positions").rows
        if (row["task"], row["positions"], row["length"]) == ("reverse", positions, 16)
    ]
    return Result(what, mean(rows), "positions", ("positions",))


def as_table(results: list[Result]) -> str:
    """Write the results as a Markdown table."""
    lines = ["| measured | accuracy | chapter | records |", "| --- | --- | --- | --- |"]
    for what, accuracy, page, records in results:
        named = ", ".join(f"`{record}`" for record in records)
        lines.append(f"| {what} | {accuracy:.1%} | [{page}]({page}.ipynb) | {named} |")
    return "\n".join(lines)


def substitute(app: Sphinx, config: Config) -> None:
    """Give the table to the pages, under its name."""
    config.myst_substitutions = {**config.myst_substitutions, "results_at_a_glance": as_table(headlines())}


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.connect("config-inited", substitute)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
