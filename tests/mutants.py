"""Mutation testing: change one thing at a time in a module of the package, and see whether its tests notice.

Run ``python tests/mutants.py [module ...]``; ``--list`` prints the mutants instead, ``--sample 50`` draws 50 a module.
Every mutant runs the module's tests until the first failure, in a child forked from a parent that has the libraries
loaded. Nothing is written: the child's import takes the mutated source from memory (a test that starts a process of
its own sees the file). Each survivor is printed; more than 10 % of them in a module give exit code 1. A survivor that
no test could tell from the original belongs, as printed but without its line number, in ``equivalent_mutants.txt``.
"""

import argparse
import ast
import gc
import importlib
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
MODULES = ("checks", "cache", "dropout", "attention", "packing", "efficient_attention", "positions", "feed_forward")
MODULES += ("layers", "decoding", "configs", "models.inputs", "models.classifiers", "models.seq2seq", "quantization")
MOST_SURVIVORS = 0.1
OPTIONS = ["-xq", "--tb=no", "-pno:cacheprovider", "-opythonpath=.", "-Wignore::pytest.PytestAssertRewriteWarning"]

EQUIVALENT = Path(__file__).with_name("equivalent_mutants.txt")

OPERATORS = """
    Lt LtE GtE, LtE Lt Gt, Gt GtE LtE, GtE Gt Lt, Eq NotEq, NotEq Eq, Is IsNot, IsNot Is, In NotIn, NotIn In,
    And Or, Or And, BitAnd BitOr, BitOr BitAnd, Add Sub, Sub Add, Mult Div, Div Mult, FloorDiv Div, Mod Mult, Pow Mult,
    Break Continue, Continue Break
"""
OTHER_NODES = {getattr(ast, a): [getattr(ast, b) for b in bs] for a, *bs in map(str.split, OPERATORS.split(","))}
PAIRS = "min max, amin amax, argmin argmax, any all, sin cos, tril triu, zeros ones, softmax log_softmax"
OTHER_NAMES = {a: b for pair in map(str.split, PAIRS.split(",")) for a, b in (pair, pair[::-1])}
OTHER_NAMES |= {"xavier_uniform_": "zeros_", "normal_": "zeros_", "zeros_": "ones_", "ones_": "zeros_"}
UNTOUCHED = {"annotation", "returns", "decorator_list", "exc", "cause"}  # the last two are the fields of a raise


def path(module: str) -> Path:
    return ROOT / "companion" / f"{module.replace('.', '/')}.py"


class Mutant(NamedTuple):
    module: str
    line: int
    change: str
    source: str

    @property
    def key(self) -> str:
        return f"{self.module}: {self.change}"

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.change}"


def replacements(node: ast.AST, parent: ast.AST, field: str, bound: set[str]) -> Iterator[ast.AST]:
    """Yield what may stand in a node's place."""
    yield from (other() for other in OTHER_NODES.get(type(node), ()))
    if field in ("test", "ifs"):
        yield ast.Constant(True)
        if not (isinstance(parent, ast.If) and isinstance(parent.body[0], ast.Raise) and not parent.orelse):
            yield ast.Constant(False)  # like a raise that is deleted, which is a mutant already
    match node:
        case ast.Constant(value=bool(flag)):
            yield ast.Constant(not flag)
        case ast.Constant(value=int(number) | float(number)):
            yield ast.Constant(number + 1)
            if number and not isinstance(parent, ast.UnaryOp):
                yield ast.UnaryOp(ast.USub(), node)
        case ast.Constant(value=str(text)):
            yield ast.Constant(text + "XX")
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.Expr() | ast.Raise() | ast.AugAssign():
            yield ast.Pass()
        case ast.Assign():
            names = [name for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)]
            if all(name.id in bound for name in names):
                yield ast.Pass()


def changes(node: ast.AST, line: int, bound: set[str]) -> Iterator[tuple[int, ast.AST, str, Any]]:
    """Yield every change in and below a node: its line, whose field it is, the field, its new value.

    The walk collects the names bound so far: without the first assignment to a name the module would only crash.
    """
    match node:
        case ast.Name(id=name, ctx=ast.Store()):
            bound.add(name)
        case ast.FunctionDef(args=arguments) | ast.Lambda(args=arguments):
            bound = bound | {argument.arg for argument in ast.walk(arguments) if isinstance(argument, ast.arg)}
        case ast.Name(id=name) if name in OTHER_NAMES:
            yield line, node, "id", OTHER_NAMES[name]
        case ast.Attribute(attr=name) if name in OTHER_NAMES:
            yield line, node, "attr", OTHER_NAMES[name]
        case ast.Slice():
            yield from ((line, node, end, None) for end in ("lower", "upper"))
        case ast.Call(args=args, keywords=keywords):
            for i in range(1, len(args)):
                yield line, node, "args", [*args[: i - 1], args[i], args[i - 1], *args[i + 1 :]]
            for i in range(len(keywords)):
                yield line, node, "keywords", keywords[:i] + keywords[i + 1 :]
    for field, value in ast.iter_fields(node):
        if field in UNTOUCHED:
            continue
        for i, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or is_docstring(child):
                continue
            child_line = getattr(child, "lineno", line)
            for new in replacements(child, node, field, bound):
                yield child_line, node, field, [*value[:i], new, *value[i + 1 :]] if isinstance(value, list) else new
            yield from changes(child, child_line, bound)


def is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def mutants(module: str) -> Iterator[Mutant]:
    tree = ast.parse(path(module).read_text(encoding="utf-8"))
    original = ast.unparse(tree)
    for line, node, field, new in changes(tree, 1, set()):
        old = getattr(node, field)
        setattr(node, field, new)
        source = ast.unparse(tree)
        setattr(node, field, old)
        for before, after in zip(original.splitlines(), source.splitlines(), strict=True):
            if before != after:
                yield Mutant(module, line, f"{before.strip()} -> {after.strip()}", source)


def start(module: str, source: str, limit: int = 0) -> int:
    """Fork a child that runs a module's tests on another source; it exits as pytest does, or at its time limit."""
    if child := os.fork():
        return child
    try:
        signal.alarm(limit)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        get_code = SourceFileLoader.get_code

        def get_mutated_code(self: SourceFileLoader, fullname: str) -> Any:
            if fullname == f"companion.{module}":
                return self.source_to_code(source.encode(), self.path)
            return get_code(self, fullname)

        SourceFileLoader.get_code = get_mutated_code  # the loader of jaxtyping's hook inherits it
        os._exit(pytest.main([*OPTIONS, f"tests/test_{module.partition('.')[0]}.py"]))
    finally:
        os._exit(1)


def verdicts(chosen: Iterable[Mutant], limit: int) -> Iterator[tuple[Mutant, str]]:
    """Run the mutants, one for each processor at a time, and yield what becomes of them."""
    waiting, running = iter(chosen), {}
    while True:
        while len(running) < (os.cpu_count() or 1) and (mutant := next(waiting, None)):
            running[start(mutant.module, mutant.source, limit)] = mutant
        if not running:
            return
        child, status = os.wait()
        names = {0: "survived", -signal.SIGALRM: "timed out"}
        yield running.pop(child), names.get(os.waitstatus_to_exitcode(status), "killed")


def time_limit(module: str) -> int:
    """Ten times what the tests take without a mutation, and some: their child shares the processors."""
    begin = time.monotonic()
    _, status = os.waitpid(start(module, ast.unparse(ast.parse(path(module).read_text(encoding="utf-8")))), 0)
    if status:
        sys.exit(f"The tests of {module} fail, or are missing, without a mutation.")
    return 20 + round(10 * (time.monotonic() - begin))


def preload() -> None:
    """Import once, for all children, what takes long; one thread, so that a fork is safe."""
    for plugin in entry_points(group="pytest11"):
        plugin.load()
    for library in ("beartype", "lazy_loader", "numpy", "torch", "torch._inductor.compile_fx"):
        importlib.import_module(library)
    hypothesis = importlib.import_module("hypothesis")
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # a failure need not be made small
    hypothesis.settings.register_profile("mutants", derandomize=True, database=None, phases=phases)
    hypothesis.settings.load_profile("mutants")
    gc.collect()
    gc.freeze()


def known_equivalents() -> list[str]:
    lines = EQUIVALENT.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def survivors(counts: Counter[str]) -> float:
    """Return the share of those run that survived."""
    return counts["survived"] / max(counts.total() - counts["equivalent"], 1)


def summary(name: str, counts: Counter[str]) -> str:
    numbers = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("killed", "timed out", "survived", "equivalent"))
    return f"{name}: {counts.total()} mutants, {numbers}; {1 - survivors(counts):.1%} killed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=MODULES, metavar="module", help=f"default: {' '.join(MODULES)}")
    parser.add_argument("--list", action="store_true", help="print the mutants, run nothing")
    parser.add_argument("--sample", type=int, metavar="N", help="run N mutants a module, drawn with a fixed seed")
    options = parser.parse_args()
    found = {module: list(mutants(module)) for module in options.modules}
    if options.list:
        print(*itertools.chain(*found.values()), sep="\n")
        return 0
    os.chdir(ROOT)
    preload()
    limits = {module: time_limit(module) for module in found}
    tallies, equivalent = {}, known_equivalents()
    for module, chosen in found.items():
        keys = {mutant.key for mutant in chosen}
        for key in equivalent:
            if key.startswith(f"{module}: ") and key not in keys:
                print(f"no mutant any more, though in {EQUIVALENT.name}: {key}")
        if options.sample:
            chosen = random.Random(0).sample(chosen, min(options.sample, len(chosen)))
        different = [mutant for mutant in chosen if mutant.key not in equivalent]
        tallies[module] = Counter(equivalent=len(chosen) - len(different))
        for mutant, verdict in verdicts(different, limits[module]):
            tallies[module][verdict] += 1
            if verdict == "survived":
                print(mutant, flush=True)
    for module, counts in tallies.items():
        print(summary(module, counts))
    print(summary("total", sum(tallies.values(), Counter())))
    return int(any(survivors(counts) > MOST_SURVIVORS for counts in tallies.values()))


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}  # read when torch is imported
    with tempfile.TemporaryDirectory() as tempfile.tempdir:
        os.environ["TMPDIR"] = tempfile.tempdir
        sys.exit(main())
