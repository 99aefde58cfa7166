"""Break each algorithm, and what they stand on, in every way that is silent in training; see that tests notice.

    python tests/mutants.py [--only ppo,batch] [--list] [--jobs 2] [--every 10]

Mutants are made one at a time from an algorithm's module and from the functions of `alignkit.functional` that it
calls: a sign flipped, an operand or a factor dropped, a mask dropped, an index shifted, a normaliser or a comparison
changed. A mutant is killed when its algorithm's tests fail (a function's: the golden numbers and its own). What
survives is printed and makes the exit status 1.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FUNCTIONAL = "alignkit/functional.py"
MINUTES = 10  # longer than any algorithm's tests take: a mutant may also hang

# The tests that have to notice, the quick ones first; those of known optima, which take minutes, must not be needed.
GOLDEN = ("tests/test_golden.py", "tests/test_functional.py")
TESTS = {
    "sft": [*GOLDEN, "tests/plugins/test_sft.py", "tests/test_testing.py"],
    "reward_model": [*GOLDEN, "tests/plugins/test_reward_model.py", "tests/test_testing.py"],
    "ppo": [*GOLDEN, "tests/plugins/test_online.py", "tests/test_ppo_checklist.py", "tests/test_testing.py"],
    "rejection_sampling": [*GOLDEN, "tests/plugins/test_online.py", "tests/test_testing.py"],
    "dpo": [*GOLDEN, "tests/plugins/test_preferences.py", "tests/test_testing.py"],
    **{name: [*GOLDEN, "tests/plugins/test_preferences.py"] for name in ("reference_free", "kto", "cpl", "hir")},
    **{
        name: [*GOLDEN, "tests/plugins/test_online.py"]
        for name in ("grpo", "rloo", "reinforce_pp", "online_dpo", "rest")
    },
    "llama2": [*GOLDEN, "tests/plugins/test_llama2.py"],
    # The engine's modules that every algorithm stands on.
    "batch": ["tests/test_batch.py", "tests/test_testing.py"],
    "scoring": ["tests/plugins/test_rewards.py", "tests/plugins/test_llama2.py", "tests/test_ppo_checklist.py"],
    "train": ["tests/test_train.py", "tests/test_testing.py", "tests/test_ppo_checklist.py"],
    "rollout": ["tests/test_attention.py", "tests/test_ppo_checklist.py"],
    "attention": ["tests/test_tiles.py", "tests/test_attention.py"],
    "tiles": ["tests/test_tiles.py", "tests/test_attention.py"],
    "lora": ["tests/test_lora.py"],
    "products": ["tests/test_products.py", "tests/test_merged.py"],
    "merged": ["tests/test_merged.py"],
}

SWAPS = {
    "per_token": "per_response",
    "per_response": "per_token",
    "per_pair": "per_group",
    "mean_tokens": "sum_tokens",
    "sum_tokens": "mean_tokens",
    "masked_mean": "masked_sum",
}
WITH_DIMENSION = {
    *("all", "amax", "any", "argmax", "cumsum", "flip", "gather", "log_softmax", "logsumexp", "max", "mean", "min"),
    *("scatter", "softmax", "squeeze", "sum", "unsqueeze"),
}
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
COMPARISONS = {ast.Gt: ast.Lt, ast.GtE: ast.Lt, ast.Lt: ast.Gt, ast.LtE: ast.Gt, ast.Eq: ast.NotEq}


@dataclass(frozen=True)
class Mutant:
    """A changed module: `file` relative to the root, what was changed at which line, and the new text."""

    algorithm: str
    file: str
    line: int
    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.algorithm}: {self.file}:{self.line} {self.what}"


# --- making mutants


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may stand in a node's place, with words for it."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        other = copy.deepcopy(node)
        other.op = OPERATORS[type(node.op)]()
        yield f"{ast.unparse(node)} -> {ast.unparse(other)}", other
        yield f"{ast.unparse(node)} -> {ast.unparse(node.left)}", node.left
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert):
        yield f"{ast.unparse(node)} -> {ast.unparse(node.operand)}", node.operand
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        reverse = copy.deepcopy(node)
        reverse.ops = [COMPARISONS[type(node.ops[0])]()]
        yield f"{ast.unparse(node)} -> {ast.unparse(reverse)}", reverse
    elif isinstance(node, ast.Call):
        yield from _calls(node)
    elif isinstance(node, ast.Attribute) and node.attr in ("better", "worse"):
        side = copy.deepcopy(node)
        side.attr = "worse" if node.attr == "better" else "better"
        yield f"{ast.unparse(node)} -> {ast.unparse(side)}", side


def _calls(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in SWAPS:
        other = copy.deepcopy(node)
        if isinstance(other.func, ast.Attribute):
            other.func.attr = SWAPS[name]
        elif isinstance(other.func, ast.Name):
            other.func.id = SWAPS[name]
        yield f"{name} -> {SWAPS[name]}", other
    if name in ("minimum", "maximum"):
        other = copy.deepcopy(node)
        assert isinstance(other.func, ast.Attribute)
        other.func.attr = "maximum" if name == "minimum" else "minimum"
        yield f"{name} -> {other.func.attr}", other
    for place, keyword in enumerate(node.keywords):
        if keyword.arg == "mask":
            other = copy.deepcopy(node)
            del other.keywords[place]
            yield f"{ast.unparse(node)} without its mask", other
    if name == "_cut":
        yield f"{ast.unparse(node)} -> {ast.unparse(node.args[0])}", node.args[0]
    if name == "detach" and isinstance(node.func, ast.Attribute):
        yield f"{ast.unparse(node)} without detach", node.func.value


class _Put(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST):
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def computing(tree: ast.Module, wanted: set[str] | None) -> Iterator[ast.FunctionDef]:
    """Functions that compute the signal; `wanted` None: every function but options, registration and messages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (
            node.name in wanted if wanted is not None else not node.name.startswith("register_")
        ):
            yield node


def mutants_of(algorithm: str, file: str, wanted: set[str] | None) -> Iterator[Mutant]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    seen: set[str] = set()
    for function in computing(tree, wanted):
        quiet = {id(n) for part in ast.walk(function) if _words(part) for n in ast.walk(part)}
        quiet |= {id(n) for n in _dimensions(function)}
        annotations = {id(n) for n in _annotations(function)}
        for node in ast.walk(function):
            if id(node) in quiet or id(node) in annotations:
                continue
            for what, new in changes(node):
                _Put(node, new).visit(tree)
                changed = ast.unparse(tree)
                _Put(new, node).visit(tree)
                if changed not in seen:
                    seen.add(changed)
                    yield Mutant(algorithm, file, getattr(node, "lineno", 0), what, changed)


def _words(node: ast.AST) -> bool:
    """Messages and checks of shapes: what is wrong there is loud."""
    return isinstance(node, ast.Raise) or (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "check_shapes"
    )


def _dimensions(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Which dimension of a tensor: the last of two is the second."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            yield from (keyword.value for keyword in node.keywords if keyword.arg == "dim")
            if isinstance(node.func, ast.Attribute) and node.func.attr in WITH_DIMENSION:
                yield from node.args
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "shape":
            yield node.slice


def _annotations(function: ast.FunctionDef) -> Iterator[ast.AST]:
    arguments = [*function.args.args, *function.args.kwonlyargs]
    for part in [function.returns, *(argument.annotation for argument in arguments)]:
        if part is not None:
            yield from ast.walk(part)


def called(file: str) -> set[str]:
    """Functions of `alignkit.functional` that a plugin calls, and those that they call."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    found = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("F", "alignkit.functional")
    }
    library = {f.name: f for f in ast.parse((ROOT / FUNCTIONAL).read_text()).body if isinstance(f, ast.FunctionDef)}
    while True:
        inner = {n.id for name in found & library.keys() for n in ast.walk(library[name]) if isinstance(n, ast.Name)}
        if inner & library.keys() <= found:
            return found & library.keys()
        found |= inner & library.keys()


def unchanged(algorithm: str) -> Mutant:
    """No mutant: its tests must pass, or all of them would seem killed."""
    file = module(algorithm)
    return Mutant(algorithm, file, 0, "as it is", (ROOT / file).read_text(encoding="utf-8"))


def module(name: str) -> str:
    """An algorithm's plugin, or a module of the engine."""
    plugin = f"plugins/alignkit_{name}.py"
    return plugin if (ROOT / plugin).exists() else f"alignkit/{name}.py"


def mutants(algorithm: str) -> list[Mutant]:
    file = module(algorithm)
    return [*mutants_of(algorithm, file, None), *mutants_of(algorithm, FUNCTIONAL, called(file))]


# --- trying them


def tests_of(mutant: Mutant) -> list[str]:
    """Functions are held by their own numbers alone, whatever else would notice."""
    return [*GOLDEN] if mutant.file == FUNCTIONAL else TESTS[mutant.algorithm]


def survives(mutant: Mutant) -> bool:
    """Whether the algorithm's tests pass in a copy of the project with this change in it."""
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "project"
        ignored = shutil.ignore_patterns(".git", ".venv*", "runs", "__pycache__", ".*_cache", "dist")
        shutil.copytree(ROOT, copied, ignore=ignored)
        (copied / mutant.file).write_text(mutant.text, encoding="utf-8")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = _tested(copied, tests_of(mutant))
            finally:  # whatever happens, the child must not go on as its parent
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what its tests started and left behind
        return os.waitstatus_to_exitcode(status) == 0


def _tested(project: Path, tests: list[str]) -> int:
    """pytest's exit code, in a child process that has the heavy libraries already but nothing of the project."""
    import pytest

    os.setsid()
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    os.chdir(project)
    sys.path[:0] = [str(project), str(project / "plugins"), str(project / "tests")]
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])  # for tests that start processes of their own
    signal.alarm(60 * MINUTES)  # ends the process: a mutant that hangs is noticed
    return int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests]))


def _load_libraries() -> None:
    """What every test run would import again; not alignkit, which the mutants change."""
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "TOKENIZERS_PARALLELISM": "false"}
    sys.dont_write_bytecode = True
    for name in ("torch", "peft", "transformers.models.llama.modeling_llama", "pytest", "hypothesis", "datasets"):
        importlib.import_module(name)
    assert not any(name.split(".")[0].startswith("alignkit") for name in sys.modules), "alignkit must not be loaded"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="algorithms, separated by commas", default=",".join(TESTS))
    parser.add_argument("--list", action="store_true", help="print the mutants and try none")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--every", type=int, default=1, help="try every n-th mutant only")
    parser.add_argument("--first", type=int, default=1, help="start with this one")
    options = parser.parse_args()
    found = [mutant for name in options.only.split(",") for mutant in mutants(name)]
    # A function that several algorithms call is changed once, under the first of them.
    chosen = list({(mutant.file, mutant.text): mutant for mutant in reversed(found)}.values())[::-1]
    if options.list:
        print(*chosen, f"{len(chosen)} mutants", sep="\n")
        return 0
    chosen = chosen[options.first - 1 :: options.every]
    _load_libraries()
    survivors = 0
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        # Algorithms that have the same tests are one control.
        controls = list({tuple(TESTS[name]): unchanged(name) for name in options.only.split(",")}.values())
        for control, passes in zip(controls, pool.map(survives, controls), strict=True):
            if not passes:
                print(f"the tests of {control.algorithm} fail without a change: {' '.join(TESTS[control.algorithm])}")
                return 2
        for number, (mutant, alive) in enumerate(zip(chosen, pool.map(survives, chosen), strict=True), 1):
            survivors += alive
            print(f"{number}/{len(chosen)} {'SURVIVED' if alive else 'killed'} {mutant}", flush=True)
    print(f"{len(chosen)} mutants, {survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
