"""Results: the records of long runs that ship with the package, so that chapters can draw them anywhere."""

from pathlib import Path

from companion.records import Measurement, TrainingRecord

FOLDER = Path(__file__).parent / "results"


def load_result(name: str) -> TrainingRecord:
    """Load the record of a training run that ``make results`` made.

    Args:
        name: Such as ``"imdb"``.

    Returns:
        The record.

    Raises:
        FileNotFoundError: If there is no such record; the message names those there are.

    Example:
        >>> record = load_result("imdb")
        >>> record.config["data"]["corpus"], record.test["accuracy"] > 0.88
        ('imdb', True)
    """
    return TrainingRecord.load(_path(name))


def load_measurement(name: str) -> Measurement:
    """Load the figures of many runs that ``make results`` made.

    Args:
        name: Such as ``"positions"``.

    Returns:
        The measurement.

    Raises:
        FileNotFoundError: If there is no such record; the message names those there are.
        ValueError: If the record is one of a single training run.

    Example:
        >>> rows = load_measurement("positions").rows
        >>> min(row["accuracy"] for row in rows if (row["task"], row["positions"]) == ("histogram", "none")) > 0.99
        True
    """
    return Measurement.load(_path(name))


def _path(name: str) -> Path:
    path = FOLDER / f"{name}.json"
    if not path.exists():
        names = sorted(path.stem for path in FOLDER.glob("*.json"))
        raise FileNotFoundError(f"there is no record {name!r}; there are {names}")
    return path
