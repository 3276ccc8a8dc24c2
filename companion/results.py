"""Results: the records of long runs that ship with the package, so that chapters can draw them anywhere."""

from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from companion.records import Measurement, TrainingRecord

FOLDER = Path(__file__).parent / "results"


class Published(NamedTuple):
    """A figure that others have published.

    Attributes:
        system: What was measured.
        accuracy: On the official test split of IMDB, 0 to 1.
        trained_on: ``"labels"``, ``"labels, unlabelled reviews"`` or ``"labels, outside text"``.
        source: Where it stands.
        url: Its address.

    Example:
        >>> from companion.results import PUBLISHED_IMDB
        >>> best = max((row for row in PUBLISHED_IMDB if row.trained_on == "labels"), key=lambda row: row.accuracy)
        >>> best.system, best.accuracy
        ('NB-SVM, bigrams', 0.9122)
    """

    system: str
    accuracy: float
    trained_on: str
    source: str
    url: str


_WANG = ("labels", "Wang & Manning, 2012", "https://aclanthology.org/P12-2018/")
_KERAS = "https://keras.io/examples/nlp/text_classification_with_transformer/"
_FASTTEXT = "https://github.com/keras-team/keras/blob/2.3.1/examples/imdb_fasttext.py"
_SUN = ("labels, outside text", "Sun et al., 2019", "https://arxiv.org/abs/1905.05583")
_YANG = ("labels, outside text", "Yang et al., 2019", "https://arxiv.org/abs/1906.08237")

PUBLISHED_IMDB: tuple[Published, ...] = (
    Published("multinomial naive Bayes, unigrams", 0.8355, *_WANG),
    Published("multinomial naive Bayes, bigrams", 0.8659, *_WANG),
    Published("SVM, unigrams", 0.8695, *_WANG),
    Published("SVM, bigrams", 0.8916, *_WANG),
    Published("NB-SVM, unigrams", 0.8829, *_WANG),
    Published("NB-SVM, bigrams", 0.9122, *_WANG),
    Published("fastText-style, unigrams", 0.8813, "labels", "Keras, imdb_fasttext.py", _FASTTEXT),
    Published("fastText-style, bigrams", 0.9056, "labels", "Keras, imdb_fasttext.py", _FASTTEXT),
    Published("Transformer block, 2nd epoch", 0.8745, "labels", "Keras, Text classification with Transformer", _KERAS),
    Published("SA-LSTM", 0.9276, "labels, unlabelled reviews", "Dai & Le, 2015", "https://arxiv.org/abs/1511.01432"),
    Published(
        "virtual adversarial training",
        0.9409,
        "labels, unlabelled reviews",
        "Miyato et al., 2017",
        "https://arxiv.org/abs/1605.07725",
    ),
    Published("ULMFiT", 0.954, "labels, outside text", "Howard & Ruder, 2018", "https://arxiv.org/abs/1801.06146"),
    Published("BERT-base, fine-tuned", 0.946, *_SUN),
    Published("BERT-large, further pre-trained on the task", 0.9579, *_SUN),
    Published("BERT-large", 0.9549, *_YANG),
    Published("XLNet-large", 0.9621, *_YANG),
)
"""Published accuracies on IMDB, to print beside our own; none of them is a record of this project."""


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


def load_results(prefix: str) -> dict[str, TrainingRecord]:
    """Load the records of training runs whose names have a beginning in common, such as the seeds of one row.

    Args:
        prefix: The beginning of the names.

    Returns:
        The records by their names, in the order of these.

    Raises:
        FileNotFoundError: If there is none; the message names those there are.

    Example:
        >>> seeds = load_results("imdb-base-bag-")
        >>> list(seeds)
        ['imdb-base-bag-0']
    """
    names = sorted(path.stem for path in FOLDER.glob(f"{prefix}*.json"))
    return {name: load_result(name) for name in names or [prefix]}


def load_outputs(name: str) -> dict[str, Tensor]:
    """Load what models said of each example of a test split.

    Args:
        name: Such as ``"imdb-test"``.

    Returns:
        Tensors, a row for each example, as `companion.comparison.collect_outputs` gives them.

    Raises:
        FileNotFoundError: If there is no such file; the message names those there are.

    Example:
        >>> outputs = load_outputs("imdb-test")
        >>> accuracy = ((outputs["base"] > 0) == outputs["label"].bool()).float().mean().item()
        >>> abs(accuracy - load_result("imdb-base-0").test["accuracy"]) < 1e-4
        True
    """
    return load_file(_path(name, "safetensors"))


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


def _path(name: str, kind: str = "json") -> Path:
    path = FOLDER / f"{name}.{kind}"
    if not path.exists():
        names = sorted(path.stem for path in FOLDER.glob(f"*.{kind}"))
        raise FileNotFoundError(f"there is no record {name!r}; there are {names}")
    return path
