"""The package's architecture: who may import whom, what nobody may call, and a test file for every module."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "companion").rglob("*.py"))

# Text flows downwards: a module imports only from modules that stand before it.
ORDER = (
    "files",
    "checks",
    "imdb",
    "text",
    "corpus",
    "toy",
    "cooccurrence",
    "batching",
    "cache",
    "dropout",
    "linear",
    "attention",
    "packing",
    "attention_maps",
    "efficient_attention",
    "positions",
    "feed_forward",
    "layers",
    "decoding",
    "configs",
    "models",
    "article",
    "ngrams",
    "losses",
    "quantization",
    "pretraining",
    "progress",
    "devices",
    "optimization",
    "records",
    "albert",
    "runs",
    "interruption",
    "loop",
    "training",
    "plans",
    "prediction",
    "transfer",
    "baselines",
    "distillation",
    "comparison",
    "study",
    "experiments",
    "results",
    "plotting",
)
OUTSIDE_THE_ORDER = ("exercises", "cli", "__main__", "__init__")
ONLY_IMPORTERS = {
    "torchtext": ("text",),
    "accelerate": ("devices",),
    "sklearn": ("baselines", "distillation"),
    "huggingface_hub": ("albert",),
}
PICKLING = ("pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve")


def top_level(path: Path) -> str:
    """Return the name of a module, or of the subpackage that it belongs to."""
    return path.relative_to(ROOT / "companion").parts[0].removesuffix(".py")


def imported_names(source: str) -> Iterator[str]:
    """Yield the absolute name of every module that a source imports, wherever the import stands."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = ".".join(filter(None, ["companion" if level else None, module]))
                if base == "companion":
                    yield from (f"companion.{alias.name}" for alias in names)
                else:
                    yield base
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def order_problems(module: str, source: str) -> list[str]:
    """List the imports of a module, or of one in a subpackage, from modules that do not stand before it."""
    if module in OUTSIDE_THE_ORDER:
        return []
    if module not in ORDER:
        return [f"{module} has no place in the order"]
    above = {*ORDER[: ORDER.index(module)]} | ({module} if (ROOT / "companion" / module).is_dir() else set())
    return [
        f"{module} imports {name}"
        for name in imported_names(source)
        if name.split(".")[0] == "companion" and name.split(".")[1:2] not in [[place] for place in above]
    ]


def library_problems(module: str, source: str) -> list[str]:
    """List the libraries that a module imports though others alone may."""
    libraries = {name.split(".")[0] for name in imported_names(source)}
    return [
        f"{module} imports {library}"
        for library, importers in ONLY_IMPORTERS.items()
        if library in libraries and module not in importers
    ]


def call_problems(module: str, source: str) -> list[str]:
    """List the calls that choose a device, and whatever writes or reads a pickle."""
    problems = [f"{module} imports {name}" for name in imported_names(source) if name.split(".")[0] in PICKLING]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(attr="cuda")):
                problems.append(f"{module}:{node.lineno} calls .cuda()")
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="save")):
                problems.append(f"{module}:{node.lineno} calls torch.save")
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load"), keywords=keywords):
                if not any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in keywords):
                    problems.append(f"{module}:{node.lineno} calls torch.load without weights_only=True")
            case ast.ImportFrom(module="torch", names=names):
                hidden = {alias.name for alias in names} & {"load", "save"}
                problems += [f"{module}:{node.lineno} imports torch.{name} by its bare name" for name in hidden]
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                problems.append(f"{module}:{node.lineno} allows pickles")
    return problems


def untested(modules: Iterable[str], tests: Iterable[str]) -> list[str]:
    """List the modules without a test file of their own; the command line's two share one."""
    shared = {"__main__": "cli"}
    return [module for module in modules if module != "__init__" and f"test_{shared.get(module, module)}" not in tests]


@pytest.mark.parametrize("problems", [order_problems, library_problems, call_problems])
@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT / "companion").as_posix())
def test_module_keeps_the_architecture(path, problems):
    assert problems(top_level(path), path.read_text(encoding="utf-8")) == []


def test_every_module_has_its_test_file():
    tests = [path.stem for path in (ROOT / "tests").glob("test_*.py")]
    assert untested({top_level(path) for path in MODULES}, tests) == []


def test_public_names_are_loaded_when_they_are_first_used():
    code = """
import sys
import companion
heavy = {"torch", "numpy", "matplotlib", "accelerate", "torchtext", "tyro", "sklearn"} & set(sys.modules)
assert not heavy, heavy
for name in companion.__all__:
    getattr(companion, name)
assert companion.train.__module__ == "companion.training"
try:
    companion.nothing_of_this_name
except AttributeError as error:
    assert "nothing_of_this_name" in str(error)
else:
    raise AssertionError("no error")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(
    "source",
    [
        "import companion.layers",
        "import companion.layers as layers",
        "import companion",
        "from companion import layers",
        "from companion import text, layers",
        "from companion import EncoderLayer",
        "from companion.layers import EncoderLayer",
        "from . import layers",
        "from .layers import EncoderLayer",
        "from companion.cli import main",
        "from companion.attention import MultiHeadAttention",
        "def f():\n    from companion.layers import EncoderLayer",
        "def f():\n    if True:\n        import companion.layers",
        "import importlib\nimportlib.import_module('companion.layers')",
    ],
)
def test_order_problems_sees_an_import_from_below(source):
    assert len(order_problems("attention", source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("layers", "from companion.attention import MultiHeadAttention"),
        ("layers", "from companion import attention, positions"),
        ("layers", "from . import attention\nfrom .positions import sinusoidal_encoding"),
        ("layers", "import torch.nn.attention\nfrom torch import nn"),
        ("cli", "from companion.training import train"),
    ],
)
def test_order_problems_allows_an_import_from_above(module, source):
    assert order_problems(module, source) == []


def test_order_problems_asks_for_a_place_in_the_order():
    assert order_problems("utils", "") == ["utils has no place in the order"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("batching", "import torchtext"),
        ("batching", "from torchtext.data import utils"),
        ("cli", "def f():\n    import accelerate.utils"),
        ("text", "from accelerate import Accelerator"),
    ],
)
def test_library_problems_sees_a_second_importer(module, source):
    assert len(library_problems(module, source)) == 1


def test_library_problems_allows_the_only_importer():
    assert library_problems("text", "from torchtext.vocab import Vocab") == []
    assert library_problems("devices", "def f():\n    from accelerate import Accelerator") == []


@pytest.mark.parametrize(
    "source",
    [
        "model.cuda()",
        "tensor[0].cuda(non_blocking=True)",
        "import pickle",
        "from joblib import dump",
        "torch.load('weights.bin')",
        "torch.load('weights.bin', weights_only=False)",
        "torch.load('weights.bin', weights_only=flag)",
        "from torch import load",
        "torch.save(state, 'weights.bin')",
        "numpy.load('array.npy', allow_pickle=True)",
    ],
)
def test_call_problems_sees_a_forbidden_call(source):
    assert len(call_problems("training", source)) == 1


def test_call_problems_allows_what_is_safe():
    assert call_problems("albert", "torch.load(path, weights_only=True)\ntorch.cuda.is_available()") == []


def test_untested_names_a_module_without_a_test_file():
    modules = ["__init__", "__main__", "cli", "text", "toy"]
    assert untested(modules, ["test_cli", "test_text"]) == ["toy"]
    assert untested(modules, ["test_text", "test_toy"]) == ["__main__", "cli"]
