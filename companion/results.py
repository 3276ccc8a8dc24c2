"""Results: the records of long runs that ship with the package, so that chapters can draw them anywhere."""

from pathlib import Path

from companion.records import TrainingRecord

FOLDER = Path(__file__).parent / "results"


def load_result(name: str) -> TrainingRecord:
    """Load the record of a run that ``make results`` made.

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
    path = FOLDER / f"{name}.json"
    if not path.exists():
        names = sorted(path.stem for path in FOLDER.glob("*.json"))
        raise FileNotFoundError(f"there is no record {name!r}; there are {names}")
    return TrainingRecord.load(path)
