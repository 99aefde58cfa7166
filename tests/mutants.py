"""Break each algorithm and the core modules under it in ways that training does not show; check
that tests notice.

    python tests/mutants.py [--only ppo,encoding] [--list] [--jobs 2] [--every 10]

Each mutant has one change, in the algorithm's module or in a function of `alignkit.functional` that
it calls: a flipped sign, a dropped operand, factor or mask, a shifted index, another comparison or
reduction. A mutant is killed if the algorithm's tests fail. Survivors are printed and make the exit
status 1.

The changes to the run loop are written by hand, in planted.py, each with the one test that must
fail: `run_loop` is the name of them all.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from planted import GROUP, PLANTED

ROOT = Path(__file__).resolve().parent.parent
FUNCTIONAL = "alignkit/functional"  # a package
MINUTES = 10  # longer than the tests of any algorithm take: a mutant may hang

# Tests of an algorithm, of another plugin, or of a core module that every algorithm depends on: `x`
# is the file test_x.py, wherever it is under tests/, the fast ones first. Tests of known optima take
# minutes; every mutant must die without them.
TESTS = {
    name: [f"test_{word}.py" for word in words.split()]
    for name, words in yaml.safe_load("""
sft: golden functional sft testing
reward_model: golden functional reward_model reward_scores rounding options testing
ppo: golden functional online importance ppo_checklist options testing
rejection_sampling: golden functional online options
dpo: golden functional preferences online options
reference_free: golden functional preferences options
kto: golden functional preferences options
hir: golden functional preferences options
grpo: golden functional online grpo_variants importance options
distillation: golden functional distillation options
llama2: golden functional llama2
combinations: golden functional combinations scoring

sample: sample
calculator: calculator
filters: filters
exact_match: rewards verifiable_answers calculator episodes
trackers: tracking

encoding: first_rows reference_check offline distillation ppo_checklist
training/rewards: scoring rewards llama2 ppo_checklist
learner: learning_rate train learner_steps testing ppo_checklist
generate: sampling sampled_as_generate ppo_checklist
next_token: next_token
attention: tiled_attention attention load_check
tiled_attention: tiled_attention attention
backends: backends sampling_weights
lm_head: lm_head golden
products: matmul sampling_weights
""").items()
}

SWAPS = yaml.safe_load("""
per_token: per_response
per_response: per_token
per_pair: per_group
mean_tokens: sum_tokens
sum_tokens: mean_tokens
masked_mean: masked_sum
minimum: maximum
maximum: minimum
better: worse
worse: better
""")
SIDES = ("better", "worse")
WITH_DIMENSION = yaml.safe_load("""
[all, amax, any, argmax, cumsum, flip, gather, log_softmax, logsumexp, max, mean, min, scatter,
softmax, squeeze, sum, unsqueeze]
""")
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
COMPARISONS = {ast.Gt: ast.Lt, ast.GtE: ast.Lt, ast.Lt: ast.Gt, ast.LtE: ast.Gt, ast.Eq: ast.NotEq}


@dataclass(frozen=True)
class Mutant:
    """A changed module: `file` is relative to the root, `text` its new content.

    tests: `FILE::FUNCTION` of those that must kill it; empty for all tests of the algorithm.
    """

    algorithm: str
    file: str
    line: int
    change: str
    text: str
    tests: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.algorithm}: {self.file}:{self.line} {self.change}"


# --- making mutants


def changed(node: Any, **fields: Any) -> Any:
    """A copy of a node with other fields."""
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Possible replacements of a node, each with its description."""
    replacements: list[ast.AST] = []
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        replacements = [changed(node, op=OPERATORS[type(node.op)]()), node.left]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert):
        replacements = [node.operand]
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        replacements = [changed(node, ops=[COMPARISONS[type(node.ops[0])]()])]
    elif isinstance(node, ast.Attribute) and node.attr in SIDES:
        replacements = [changed(node, attr=SWAPS[node.attr])]
    elif isinstance(node, ast.Call):
        yield from _calls(node)
    for new in replacements:
        yield f"{ast.unparse(node)} -> {ast.unparse(new)}", new


def _calls(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    field = "attr" if isinstance(node.func, ast.Attribute) else "id"
    name = getattr(node.func, field, "")
    if name in SWAPS and name not in SIDES:
        swapped = changed(node.func, **{field: SWAPS[name]})
        yield f"{name} -> {SWAPS[name]}", changed(node, func=swapped)
    for index, keyword in enumerate(node.keywords):
        if keyword.arg == "mask":
            rest = node.keywords[:index] + node.keywords[index + 1 :]
            yield f"{ast.unparse(node)} without its mask", changed(node, keywords=rest)
    if name == "zero_masked":
        yield f"{ast.unparse(node)} -> {ast.unparse(node.args[0])}", node.args[0]
    if name == "detach" and isinstance(node.func, ast.Attribute):
        yield f"{ast.unparse(node)} without detach", node.func.value


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST):
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def computing(tree: ast.Module, wanted: set[str] | None) -> Iterator[ast.FunctionDef]:
    """The functions named by `wanted`; for None, all but those that register the plugin."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (
            node.name in wanted if wanted is not None else not node.name.startswith("register_")
        ):
            yield node


def mutants_of(algorithm: str, file: str, wanted: set[str] | None) -> Iterator[Mutant]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    seen: set[str] = set()
    for function in computing(tree, wanted):
        skipped = {id(n) for part in ast.walk(function) if _raises(part) for n in ast.walk(part)}
        skipped |= {id(n) for n in _dimensions(function)}
        skipped |= {id(n) for n in _annotations(function)}
        for node in ast.walk(function):
            if id(node) in skipped:
                continue
            for change, new in changes(node):
                _Replace(node, new).visit(tree)
                changed = ast.unparse(tree)
                _Replace(new, node).visit(tree)
                if changed not in seen:
                    seen.add(changed)
                    yield Mutant(algorithm, file, getattr(node, "lineno", 0), change, changed)


def _raises(node: ast.AST) -> bool:
    """Whether a node raises an error or checks shapes: mistakes there are never silent."""
    return isinstance(node, ast.Raise) or (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "check_shapes"
    )


def _dimensions(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Nodes that select a tensor's dimension: -1 and 1 are the same dimension of a matrix."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            yield from (keyword.value for keyword in node.keywords if keyword.arg == "dim")
            if isinstance(node.func, ast.Attribute) and node.func.attr in WITH_DIMENSION:
                yield from node.args
        elif (
            isinstance(node, ast.Subscript)
            and isinstance(node.value, ast.Attribute)
            and node.value.attr == "shape"
        ):
            yield node.slice


def _annotations(function: ast.FunctionDef) -> Iterator[ast.AST]:
    arguments = [*function.args.args, *function.args.kwonlyargs]
    for part in [function.returns, *(argument.annotation for argument in arguments)]:
        if part is not None:
            yield from ast.walk(part)


@cache
def library() -> dict[str, tuple[str, ast.FunctionDef]]:
    """Every function of `alignkit.functional`, with the file that defines it."""
    return {
        node.name: (str(path.relative_to(ROOT)), node)
        for path in sorted((ROOT / FUNCTIONAL).glob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }


def called(file: str) -> set[str]:
    """Functions of `alignkit.functional` that a module calls, directly or through each other."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value) in ("F", "alignkit.functional")
    } & library().keys()
    while True:
        functions = [library()[name][1] for name in names]
        inner = {
            node.id
            for function in functions
            for node in ast.walk(function)
            if isinstance(node, ast.Name)
        }
        if inner & library().keys() <= names:
            return names
        names |= inner & library().keys()


def unchanged(algorithm: str) -> Mutant:
    """The control: its tests must pass, or every mutant would seem killed."""
    if algorithm in (GROUP, *PLANTED):
        chosen = [PLANTED[name] for name in names_of(algorithm)]
        file, tests = (
            chosen[0].file,
            tuple(dict.fromkeys(change.test for change in chosen if change.test)),
        )
        return Mutant(
            algorithm, file, 0, "unchanged", (ROOT / file).read_text(encoding="utf-8"), tests
        )
    file = module(algorithm)
    return Mutant(algorithm, file, 0, "unchanged", (ROOT / file).read_text(encoding="utf-8"))


def module(name: str) -> str:
    """The file of an algorithm's plugin, or of a core module."""
    plugins = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "plugins/alignkit_plugins").glob(f"*/{name}.py")
    ]
    return plugins[0] if plugins else _only("alignkit", f"{name}.py")


def _only(folder: str, name: str) -> str:
    """The path of the only file of this name under a folder."""
    paths = [str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob(name)]
    if len(paths) != 1:
        raise SystemExit(
            f"{folder}/ must hold one {name}, but there are {len(paths)}: {', '.join(paths)}"
        )
    return paths[0]


def names_of(name: str) -> list[str]:
    """The changes written by hand that `name` means: all of them, or one."""
    return list(PLANTED) if name == GROUP else [name]


def planted(name: str) -> Mutant:
    """A change written by hand. Raises ValueError if its old text does not occur exactly once."""
    change = PLANTED[name]
    text = (ROOT / change.file).read_text(encoding="utf-8")
    if (count := text.count(change.old)) != 1:
        raise ValueError(
            f"planted.py: {name}: the old text occurs {count} times in {change.file}; it must "
            "occur once"
        )
    line = text[: text.index(change.old)].count("\n") + 1
    return Mutant(
        name, change.file, line, change.test, text.replace(change.old, change.new), (change.test,)
    )


def mutants(algorithm: str) -> list[Mutant]:
    if algorithm in (GROUP, *PLANTED):
        return [planted(name) for name in names_of(algorithm) if not PLANTED[name].equivalent]
    own, names = module(algorithm), called(module(algorithm))
    found = list(mutants_of(algorithm, own, None))
    for file in sorted({library()[name][0] for name in names}):
        found += mutants_of(algorithm, file, names)
    return found


# --- testing mutants


def tests_of(mutant: Mutant) -> list[str]:
    """The files or functions that must fail; golden numbers first."""
    if mutant.tests:
        parts = [test.partition("::") for test in mutant.tests]
        return [f"{_only('tests', file)}::{function}" for file, _, function in parts]
    return [_only("tests", name) for name in TESTS[mutant.algorithm]]


def survives(mutant: Mutant) -> bool:
    """Whether the algorithm's tests pass in a copy of the project with this change in it."""
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "project"
        shutil.copytree(ROOT, copied, ignore=_not_needed)
        (copied / mutant.file).write_text(mutant.text, encoding="utf-8")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = _tested(copied, tests_of(mutant))
            finally:  # whatever happens, the child must not continue with the parent's work
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # processes that its tests left behind
        return os.waitstatus_to_exitcode(status) == 0


def _not_needed(folder: str, names: list[str]) -> set[str]:
    """The entries of a folder that tests do not need; `runs` in the root holds results,
    `alignkit/runs` is code.
    """
    ignored = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", "dist")(
        folder, names
    )
    return ignored | ({"runs"} if Path(folder) == ROOT else set())


def _tested(project: Path, tests: list[str]) -> int:
    """Run pytest in a child process that has imported the heavy libraries, but nothing of the
    project.
    """
    import pytest

    os.setsid()
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    os.chdir(project)
    sys.path[:0] = [str(project), str(project / "plugins"), str(project / "tests")]
    # For tests that start processes of their own
    paths = [*sys.path[:2], os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    signal.alarm(60 * MINUTES)  # ends the process, so that a mutant that hangs counts as killed
    return int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests]))


def _load_libraries() -> None:
    """Import what every test run would import again, except alignkit, which the mutants change."""
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    sys.dont_write_bytecode = True
    for name in (
        "torch",
        "peft",
        "transformers.models.llama.modeling_llama",
        "pytest",
        "hypothesis",
        "datasets",
    ):
        importlib.import_module(name)
    assert not any(name.split(".")[0].startswith("alignkit") for name in sys.modules), (
        "alignkit must not be loaded"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        help="comma-separated algorithms, core modules and planted changes",
        default=",".join([*TESTS, GROUP]),
    )
    parser.add_argument(
        "--list", action="store_true", help="print the mutants without testing them"
    )
    parser.add_argument("--jobs", type=int, default=2, help="mutants tested at the same time")
    parser.add_argument("--every", type=int, default=1, help="test every n-th mutant only")
    parser.add_argument("--first", type=int, default=1, help="number of the first mutant to test")
    options = parser.parse_args()
    found = [mutant for name in options.only.split(",") for mutant in mutants(name)]
    # A function that several algorithms call is tested once, under the first of them.
    chosen = list({(mutant.file, mutant.text): mutant for mutant in reversed(found)}.values())[::-1]
    equivalent = {
        name: PLANTED[name]
        for given in options.only.split(",")
        for name in names_of(given)
        if name in PLANTED
    }
    for name, change in equivalent.items():
        if change.equivalent:
            print(f"equivalent {name}: {change.equivalent}")
    if options.list:
        print(*chosen, f"{len(chosen)} mutants", sep="\n")
        return 0
    chosen = chosen[options.first - 1 :: options.every]
    _load_libraries()
    survivors = 0
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        # Algorithms with the same tests share a control.
        controls = list(
            {tuple(tests_of(c)): c for c in map(unchanged, options.only.split(","))}.values()
        )
        for control, passes in zip(controls, pool.map(survives, controls), strict=True):
            if not passes:
                print(
                    f"{control.algorithm}: tests fail without any change: "
                    f"{' '.join(tests_of(control))}"
                )
                return 2
        for number, (mutant, alive) in enumerate(
            zip(chosen, pool.map(survives, chosen), strict=True), 1
        ):
            survivors += alive
            print(
                f"{number}/{len(chosen)} {'SURVIVED' if alive else 'killed'} {mutant}", flush=True
            )
    print(f"{len(chosen)} mutants, {survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
