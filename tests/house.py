"""The rules of the house, which `make lint` checks: layers, sizes, the contract, and plain American
English.
"""

from __future__ import annotations

import ast
import io
import json
import re
import sys
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import yaml

import alignkit.cli
from alignkit.host.plugins import load_plugins
from alignkit.host.registry import KINDS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "alignkit"
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
CODE = [*sorted(PACKAGE.rglob("*.py")), *PLUGINS]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TESTS = sorted(each for top in ("tests", "docs") for each in (ROOT / top).rglob("test_*.py"))

# budgets: what the house may hold: tokens of statements (see `tokens_of`), names and slots of the
# recipe schema, commands and flags of the command line, and bytes of the files that are no Python.
# A number is a step's budget, never today's size. "plugins" includes what the kernel loads by name.
#
# layers: from the bottom to the top; a module may import from its own layer and from lower ones.
# So the contract imports nothing of what finds, calls or runs plugins, and a module that lies
# directly in alignkit/ is one of those named here.
#
# needs: the folders of plugins/alignkit_plugins: each imports from itself and from those before it.
# contract_only: those that import nothing of the kernel but what a stranger's package may rely on,
# and so nothing of the internal rooms.
#
# other_meanings: words of first-party plugins that mean something else in a module of the core: an
# objective of `mix`, a tool's refusal, and that of a model that cannot be loaded.
HOUSE = yaml.safe_load("""
budgets:
  plugins: 204_500
  alignkit and plugins: 335_000
  all Python but tests: 445_000
  tests: 407_500
  schema names: 345
  schema slots: 620
  other files, bytes: 152_850
  commands: 20
  flags: 60
layers:
- [errors, io, seeds]
- [data, functional]
- [contract]
- [host]
- [recipe, evaluation]
- [kernels, tokens]
- [models]
- [training]
- [runs]
- [cli, testing, __main__]
rooms: [host, io, kernels, models, recipe, runs, tokens, training]
uses_evaluation: [evaluation, recipe, training, runs]
below_kernels: [errors, functional, host, io, kernels]
needs: [
  text, servers, command_line, formats, rewards, algorithms, environments, bases, backends,
  processes, monitors, trl, compare, ai_feedback, vllm, people, serving, evals, cells, report,
  data_tools,
  recipe_tools, authors]
contract_only: [algorithms, formats, monitors, rewards, vllm]
other_meanings:
  alignkit.contract.settings: [sft]
  alignkit.training.data_sampler: [sft]
  alignkit.contract.environment: [refusal]
  alignkit.models.checked_model: [refusal]
common_words: [
  rating, rubric, panel, dialogues, evaluate, feedback, groups, length, lm, messages, normalized,
  classifier, format, http, language, regex, repetition, weighted, clean, environment, people,
  preference, python, sample, drop, questions, template, clip, min, product, rankings, rest, revise,
  reward_model, text, weighted_sum, when, plain, spread, tiny]
other_files: [.js, .css, .html, .jinja, .j2, .yaml, .yml, .json, .sql, .txt, .svg]
""")
LAYERS, NEEDS, BUDGETS = HOUSE["layers"], HOUSE["needs"], HOUSE["budgets"]


class Import(NamedTuple):
    """A statement that imports a module of ours, wherever it stands."""

    module: str
    line: int

    @property
    def package(self) -> str:
        return self.module.split(".")[0]

    @property
    def room(self) -> str:
        return self.module.split(".")[1] if "." in self.module else ""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    parts = path.relative_to(
        ROOT / "plugins" if "plugins" in path.relative_to(ROOT).parts[:1] else ROOT
    )
    names = parts.with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


MODULES = {module_name(path): path for path in CODE}
KERNEL = {name: path for name, path in MODULES.items() if name.startswith("alignkit.")}


# Where the names are that `alignkit` imports when they are asked for
HOMES = {f"alignkit.{name}": f"alignkit.{home}" for name, home in alignkit._HOME.items()}


IMPORTS = ("import_module", "__import__")


@cache
def imports(path: Path) -> list[Import]:
    """Every import of ours in a file, those of functions, for type checkers and by a text
    included.
    """
    result = []
    for node in ast.walk(tree(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                names.append(name if name in MODULES else HOMES.get(name, node.module))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(IMPORTS):
            names += [beginning(argument) for argument in node.args]
        result += [Import(name, getattr(node, "lineno", 0)) for name in names]
    return [item for item in result if item.package.startswith("alignkit")]


def beginning(node: ast.expr) -> str:
    """What is known of a text: a constant, or an f-string up to its first value."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return str(node.value).rstrip(".") if isinstance(node, ast.Constant) else ""


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def layer(room: str) -> int | None:
    return next((number for number, rooms in enumerate(LAYERS) if room in rooms), None)


# Layers


def imports_go_down() -> Iterator[str]:
    for name, path in KERNEL.items():
        own = layer(name.split(".")[1])
        if own is None:
            yield f"{named(path)}: its room has no layer"
            continue
        for item in imports(path):
            if item.package != "alignkit":
                yield f"{named(path)}:{item.line}: the kernel imports {item.module}, a plugin"
            elif item.room and (layer(item.room) or 0) > own:
                yield f"{named(path)}:{item.line}: imports {item.module}, which is above it"
            if item.room == "evaluation" and name.split(".")[1] not in HOUSE["uses_evaluation"]:
                yield (
                    f"{named(path)}:{item.line}: {item.module} is a library that the kernel does "
                    "not need"
                )
            if name.startswith("alignkit.kernels") and item.room not in HOUSE["below_kernels"]:
                yield f"{named(path)}:{item.line}: kernels do not know {item.module}"


def no_modules_import_each_other() -> Iterator[str]:
    known = MODULES.keys() - {"alignkit"}  # which names everything, lazily
    graph = {
        name: {item.module for item in imports(MODULES[name])} & known - {name} for name in known
    }
    for ring in cycles(graph):
        yield f"import each other: {', '.join(sorted(ring))}"


def cycles(graph: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """The groups of modules that import each other, directly or not."""
    reach = {name: set(targets) for name, targets in graph.items()}
    for middle in graph:
        for targets in reach.values():
            if middle in targets:
                targets |= reach[middle]
    return {
        frozenset(other for other in reach[name] if name in reach[other])
        for name in graph
        if name in reach[name]
    }


def needs_import_from_those_before() -> Iterator[str]:
    for path in PLUGINS:
        name = module_name(path).removeprefix("alignkit_plugins.")
        if name in ("table", "commands"):  # these know all others
            continue
        own = name.split(".")[0] if "." in name else ""
        if own and own not in NEEDS:
            yield f"{named(path)}: its folder is none of {', '.join(NEEDS)}"
            continue
        before = NEEDS[: NEEDS.index(own) + 1] if own else ()
        for item in imports(path):
            if (
                item.package == "alignkit"
                and item.room in HOUSE["rooms"]
                and own in HOUSE["contract_only"]
            ):
                yield f"{named(path)}:{item.line}: {item.module} is internal"
            elif (
                item.package == "alignkit_plugins"
                and item.room in NEEDS
                and item.room not in before
            ):
                yield (
                    f"{named(path)}:{item.line}: imports {item.module}, whose folder is not "
                    "before it"
                )


def first_party_names() -> set[str]:
    """What first-party plugins are called in recipes, without names that are common words."""
    registry = load_plugins()
    own = [
        item
        for kind in KINDS.keys() - {"optimizer", "schedule"}  # libraries' names
        for item in registry.registrations(kind)
        if item.distribution == "alignkit"
    ]
    return {item.name for item in own} - {*HOUSE["common_words"]}


def words_of(path: Path) -> Iterator[str]:
    """The words of identifiers, and whole texts; so docstrings and messages may give examples."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.lower()
        names = [getattr(node, field, None) for field in ("id", "attr", "name", "arg")]
        for name in names:
            if isinstance(name, str):
                yield name.lower()
                yield from name.lower().split("_")


def the_kernel_names_no_plugin() -> Iterator[str]:
    plugins = first_party_names()
    for name, path in KERNEL.items():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if "alignkit_plugins" in line:
                yield f"{named(path)}:{number}: names the package of the plugins"
        if name.startswith("alignkit.functional"):
            continue
        for word in plugins & set(words_of(path)) - {*HOUSE["other_meanings"].get(name, ())}:
            yield f"{named(path)}: names the plugin {word!r}"


def no_plugin_is_looked_up_by_a_fixed_name() -> Iterator[str]:
    """A recipe, the command line, or a default that any package may add decides."""
    for path in KERNEL.values():
        for node in ast.walk(tree(path)):
            if is_look_up(node) and (name := fixed(node.args[1])):
                yield f"{named(path)}:{node.lineno}: looks a plugin up by the fixed name {name}"


def is_look_up(node: ast.AST) -> TypeGuard[ast.Call]:
    """Whether a call asks a registry for a name of a kind: `plugins().get("model", name)`."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("get", "has")
        and ast.unparse(node.func.value).endswith(("plugins()", "registry", "load_plugins()"))
        and len(node.args) > 1
    )


def fixed(node: ast.expr) -> str:
    """A text or a constant, as code; empty for what is only known when it runs."""
    name = ast.unparse(node)
    plain = name.rpartition(".")[2]
    return name if isinstance(node, ast.Constant | ast.JoinedStr) or plain.isupper() else ""


# Sizes


SKIPPED = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def tokens_of(path: Path) -> int:
    """Names, numbers, texts and operators of a file, without imports, docstrings and comments."""
    left_out = set[int]()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            left_out.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                left_out.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = io.StringIO(path.read_text(encoding="utf-8")).readline
    tokens = [
        token
        for token in tokenize.generate_tokens(lines)
        if token.type not in SKIPPED and token.string.strip()
    ]
    return sum(token.start[0] not in left_out for token in tokens)


def schema_size() -> tuple[int, int]:
    """Names of properties in the recipe schema, and the places where they stand."""
    waiting, names, slots = (
        [json.loads((ROOT / "recipes" / "recipe.schema.json").read_text(encoding="utf-8"))],
        set[str](),
        0,
    )
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict) and isinstance(properties := node.get("properties"), dict):
            names.update(properties)
            slots += len(properties)
        if isinstance(node, dict | list):
            waiting += node.values() if isinstance(node, dict) else node
    return len(names), slots


def command_line() -> tuple[int, int]:
    """Commands that do something, and their flags; those of `alignkit` itself not counted."""
    waiting, commands, flags = [*alignkit.cli.program().commands.values()], 0, 0
    while waiting:
        command = waiting.pop()
        below = getattr(command, "commands", {})
        waiting += below.values()
        commands += not below or getattr(command, "invoke_without_command", False)
        flags += sum(parameter.param_type_name == "option" for parameter in command.params)
    return commands, flags


@cache
def sizes() -> dict[str, int]:
    """What BUDGETS counts."""
    rooms = {
        name: sum(tokens_of(path) for path in sorted((ROOT / name).rglob("*.py")))
        for name in ("alignkit", "plugins", "docs", "benchmarks", "recipes", "tests")
    }
    product = rooms["alignkit"] + rooms["plugins"]
    others = [
        path
        for name in ("alignkit", "plugins")
        for path in (ROOT / name).rglob("*")
        if path.suffix in HOUSE["other_files"]
    ]
    names, slots = schema_size()
    commands, flags = command_line()
    return {
        "plugins": rooms["plugins"],
        "alignkit and plugins": product,
        "all Python but tests": product + rooms["docs"] + rooms["benchmarks"] + rooms["recipes"],
        "tests": rooms["tests"],
        "schema names": names,
        "schema slots": slots,
        "other files, bytes": sum(path.stat().st_size for path in others),
        "commands": commands,
        "flags": flags,
    }


def the_house_does_not_grow() -> Iterator[str]:
    for name, size in sizes().items():
        if size > BUDGETS[name]:
            yield f"{name}: {size:,}; at most {BUDGETS[name]:,}"


FUNCTION, FILE = 80, 650  # lines at most


def functions_and_files_are_short() -> Iterator[str]:
    for path in CODE:
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > FILE:
            yield f"{named(path)}: {lines} lines; at most {FILE}"
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > FUNCTION:
                    yield f"{named(path)}:{node.lineno}: {node.name}: {lines} lines; at most {FUNCTION}"


# Language

# What is not written, and what is written instead
IDIOMS = r"""
(?:is|are|was|were|be) told => is reported, is printed
(?:afresh|anew) => again, from scratch
for ever => forever, always
bears? on => applies to
beside => next to, in addition to, compared with
of like (?:length|size) => of similar length
taken off => subtracted, removed
as (?:it|they) stands? => unchanged
so (?:many|much)\b(?! (?:that|as)) => this many, up to N
mend(?:s|ed|ing)? => fix
(?:goes|go|went|gone) on => continue
(?:this|that|it|them|these|policy|data|stage|plugin|words?|code) alone => only
of (?:its|their) own accord => automatically
\w*(?:normal|optim|initial|quant|summar|recogn|penal|random|general)is(?:e[ds]?|ing|ation|er) => -ize
\w*(?:behaviour|colour|favour|honour|neighbour)\w* => -or
(?:artefacts?|centre[ds]?|centring|grey|learnt|licences?|misspelt|spelt|whilst) => American spelling
(?:cancel|label|model|signal|travel)l(?:ed|ing) => one l
"""
# Names that had several meanings, and what each is called now.
RETIRED = yaml.safe_load("""
ITS_OWN: OUTCOME
Reading: ColumnMapping
said: what it holds
told: what it holds
EngineContext: EngineSetup
StageContext: ActiveStage
error_context: located_at
LoadedBase: LoadedModel
RunBase: ModelSource
base_source: locate_model
load_base: load_network
add_signals: add_advantages
blame: attributed_to
Collected: Mistakes
has_signal: has_gradient
lag: async_level
learned_reward: reward
most_rows: most_slots
on_rank0: on_main_process
PackedBatch: Pack
raw_rewards: rewards
row_bytes: slot_bytes
sampler_gap: engine_mismatch
staleness: async_level
update_rows: update_slots
""")
# Quotations and foreign names: (file, text).
SPELLED_SO = {("alignkit/testing/examples.py", "Go on")}
CLOCKS = re.compile(r"timeout=[0-9]|seconds: float = [0-9]|monotonic\(\) - \w+ <")


def no_test_depends_on_how_busy_the_machine_is() -> Iterator[str]:
    """A test that could hang waits for `patience.PATIENCE`."""
    for path in TESTS:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if CLOCKS.search(line):
                yield f"{named(path)}:{number}: a limit in seconds; wait for patience.PATIENCE"


def language() -> Iterator[str]:
    rules = [line.split(" => ") for line in IDIOMS.strip().splitlines()]
    for path in (*CODE, *PAGES):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for pattern, better in rules:
                for match in re.finditer(rf"\b{pattern}\b", line, re.IGNORECASE):
                    if (named(path), match[0]) not in SPELLED_SO:
                        yield f"{named(path)}:{number}: {match[0]!r}: write {better}"


# Texts that explain

# A comment or docstring is a sentence with a subject or names a thing; such a word begins in the middle of one.
FRAGMENT = re.compile(
    r"(?:of|else|whose|nor|(?:with|in|by|for) which|(?:which|that)(?! (?:is|one|a|of)\b))\b",
    re.I,
)


def comments_have_a_subject() -> Iterator[str]:
    for path in CODE:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        for token in tokenize.generate_tokens(iter(lines).__next__):
            number = token.start[0]
            continues = lines[number - 2].lstrip().startswith("#")
            if (
                token.type == tokenize.COMMENT
                and FRAGMENT.match(token.string.lstrip("# "))
                and not continues
            ):
                yield f"{named(path)}:{number}: a comment begins with its subject: {token.string}"
        for node in documented(path):
            if FRAGMENT.match(docstring := ast.get_docstring(node) or ""):
                line = docstring.splitlines()[0]
                yield f"{named(path)}: a docstring begins with its subject: {line}"


def examples_in_docstrings_are_valid() -> Iterator[str]:
    for path in CODE:
        for node in documented(path):
            for example in invalid_examples(ast.get_docstring(node) or ""):
                name = getattr(node, "name", "the module")
                yield f"{named(path)}: {name}: neither Python nor YAML, or no table: {example}"


def documented(path: Path) -> Iterator[Any]:
    """What may have a docstring."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return (node for node in ast.walk(tree(path)) if isinstance(node, kinds))


def names_are_not_retired() -> Iterator[str]:
    for path in CODE:
        for node in ast.walk(tree(path)):
            for field in ("id", "attr", "name", "arg"):
                if (new := RETIRED.get(getattr(node, field, None))) is not None:
                    yield f"{named(path)}:{node.lineno}: {getattr(node, field)} is called {new}"


def invalid_examples(docstring: str) -> Iterator[str]:
    """Paragraphs that are indented and neither Python nor a mapping in YAML, and tables with a
    line that does not begin and end with a bar.
    """
    for paragraph in docstring.split("\n\n"):
        lines = paragraph.strip("\n").splitlines()
        if any(line.startswith("|") for line in lines):
            is_valid = all(line.startswith("|") and line.endswith("|") for line in lines)
        else:
            is_example = bool(lines) and all(line.startswith("    ") for line in lines)
            is_valid = not is_example or is_python_or_yaml(textwrap.dedent(paragraph))
        if not is_valid:
            yield paragraph


def is_python_or_yaml(text: str) -> bool:
    try:
        ast.parse(text)
        return True
    except SyntaxError:
        pass
    try:
        return isinstance(yaml.safe_load(text), dict)
    except yaml.YAMLError:
        return False


RULES = (
    *(imports_go_down, no_modules_import_each_other, needs_import_from_those_before),
    *(the_kernel_names_no_plugin, no_plugin_is_looked_up_by_a_fixed_name),
    *(the_house_does_not_grow, functions_and_files_are_short),
    *(no_test_depends_on_how_busy_the_machine_is, language),
    *(comments_have_a_subject, examples_in_docstrings_are_valid, names_are_not_retired),
)


def main() -> int:
    broken = [finding for rule in RULES for finding in rule()]
    print("\n".join(broken) or ", ".join(f"{name} {size:,}" for name, size in sizes().items()))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
