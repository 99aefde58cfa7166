"""The rules of the house: layers, the closed contract, sizes, a test for every module, and plain American English."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from alignkit.plugins import load_plugins

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "alignkit"
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
CODE = [*sorted(PACKAGE.rglob("*.py")), *PLUGINS]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

MAX_FUNCTION, MAX_FILE = 60, 400  # lines

# From the bottom to the top; a module may import from its own layer and from lower ones. What lies directly in
# alignkit/ is the contract, unless it is named here.
LAYERS = [
    {"errors", "io", "seeds"},
    {"contract"},
    {"recipe"},
    {"kernels"},
    {"models", "local_engine"},
    {"watching"},
    {"training"},
    {"reporting"},
    {"processes"},
    {"runs"},
    {"arguments"},
    {"agreeing", "evaluating", "exporting", "inspection", "labeling", "planning"}
    | {"sharing", "starter", "syncing", "verification"},
    {"serving"},
    {"chatting"},
    {"cli", "notebook", "testing", "__main__"},
]
# internal: plugins may not import them
ROOMS = {"exporting", "inspection", "io", "kernels", "models", "recipe", "reporting", "runs", "training"}
ROOMS |= {"agreeing", "chatting", "evaluating", "labeling", "serving", "sharing", "starter", "syncing"}
ROOMS |= {"planning", "processes", "verification", "watching"}
# Kernels know processors, and nothing of alignkit but these.
BELOW_KERNELS = {"errors", "functional", "io"}
# Modules that know each other, until they are untangled.
KNOWN_CYCLES: set[frozenset[str]] = set()

# Files that are too long, until they are split.
LONG_FILES: set[str] = set()

# Modules that another module's test covers.
TESTED_IN = {
    "kernels.static_decoding": "test_decoding",
    "models.row_batch": "test_sampling",
    "models.writer": "test_sampling",
    "algorithm": "test_testing",
    "arguments": "test_cli",
    "batch": "test_train",
    "chatting.booth": "test_chat_page",
    "chatting.line": "test_chat_page",
    "chatting.loop": "test_chatting",
    "chatting.remarks": "test_collection",
    "chatting.screen": "test_chatting",
    "chatting.session": "test_chatting",
    "chatting.start": "test_collection",
    "comparison": "test_evaluate",
    "constitution": "test_constitutional",
    "data.chat_templates": "test_encoding",
    "data.files": "test_data",
    "data.group": "test_data",
    "data.prompt_columns": "test_combinations",
    "data.python_source": "test_rewards",
    "data.reading": "test_data",
    "data.sources": "test_data",
    "data.thoughts": "test_judges_in_words",
    "engine": "test_engines",
    "environment": "test_episodes",
    "errors": "test_cli",
    "evaluating.recipe": "test_evaluating",
    "executor": "test_executors",
    "external": "test_trl",
    "feedback.asking": "test_people",
    "feedback.database": "test_store",
    "feedback.items": "test_store",
    "feedback.labels": "test_standing",
    "feedback.measure": "test_questions",
    "feedback.records": "test_store",
    "functional._tensors": "test_functional",
    "functional.advantages": "test_functional",
    "functional.best_of_n": "test_functional",
    "functional.judge": "test_functional",
    "functional.kl": "test_functional",
    "functional.logprobs": "test_functional",
    "functional.policy_gradient": "test_functional",
    "functional.preference": "test_functional",
    "functional.reductions": "test_functional",
    "hidden_state": "test_testing",
    "hookspecs": "test_plugins",
    "io.cache": "test_reference_cache",
    "io.changes": "test_plan",
    "io.commits": "test_fingerprint",
    "io.digest": "test_fingerprint",
    "io.lookup": "test_hostile_text",
    "io.printable": "test_hostile_text",
    "io.stored_replies": "test_verdict",
    "judges": "test_author",
    "judgments": "test_judge_card",
    "kernels.layout": "test_attention",
    "labeling.desk": "test_label_page",
    "labeling.guard": "test_label_security",
    "labeling.guidelines": "test_label_command",
    "labeling.hosting": "test_label_command",
    "labeling.items": "test_label_command",
    "labeling.pages": "test_label_security",
    "labeling.start": "test_label_command",
    "local_engine": "test_engine_kit",
    "loss": "test_train",
    "models.active_sequence": "test_turns",
    "models.chat": "test_encoding",
    "models.engine_thread": "test_engines",
    "models.foreign_reward": "test_artifacts",
    "models.loading": "test_artifacts",
    "models.parts": "test_lockstep",
    "models.passes": "test_lockstep",
    "models.router": "test_bases",
    "models.sampling_rows": "test_sampling",
    "models.sharded": "test_lockstep",
    "models.template_tokens": "test_encoding",
    "models.weight_sizes": "test_bases",
    "options": "test_references",
    "panel_card": "test_panel",
    "planning.card_attention": "test_cards",
    "planning.catalogue": "test_scale",
    "planning.fitting": "test_plan_command",
    "planning.live_bytes": "test_planned_memory",
    "planning.planned_run": "test_plan_command",
    "planning.shape_model": "test_planned_memory",
    "planning.starting": "test_planned_processes",
    "planning.tables": "test_plan_command",
    "planning.timing": "test_plan_command",
    "planning.tokens": "test_plan_command",
    "processes.board": "test_faults_of_processes",
    "processes.join": "test_start_of_processes",
    "processes.launch": "test_start_of_processes",
    "processes.silent": "test_same_results",
    "processes.team": "test_faults_of_processes",
    "processes.world": "test_start_of_processes",
    "recipe.algorithm_stage": "test_build",
    "recipe.components": "test_build",
    "recipe.load": "test_build",
    "recipe.model": "test_build",
    "recipe.paths": "test_references",
    "recipe.plugin_help": "test_cli",
    "recipe.problems": "test_validation",
    "recipe.schema": "test_settings",
    "recipe.scope": "test_references",
    "recipe.stages": "test_build",
    "recipe.trackers": "test_tracking",
    "recipe.weights": "test_build",
    "registry": "test_plugins",
    "remote.chat": "test_judges_in_words",
    "remote.names": "test_remote",
    "remote.options": "test_rlaif",
    "remote.replies": "test_rlaif",
    "reporting.commands": "test_write",
    "reporting.files": "test_facts",
    "reporting.numbers": "test_verdicts",
    "reporting.paths": "test_facts",
    "reporting.stages": "test_facts",
    "reporting.tables": "test_markdown",
    "reward": "test_rewards",
    "reward_columns": "test_evaluate",
    "runs.base_model": "test_recipes",
    "runs.carried_over": "test_changed",
    "runs.machine": "test_verdict",
    "runs.run": "test_resume",
    "runs.scored_rows": "test_executors",
    "runs.stage_check": "test_preflight",
    "runs.stage_context": "test_train",
    "runs.stage_work": "test_executors",
    "runs.start": "test_start_of_processes",
    "runs.step_context": "test_executors",
    "runs.together": "test_same_results",
    "sampling_options": "test_step_sampling",
    "seeds": "test_resume",
    "serving.address": "test_server",
    "serving.openai_reply": "test_app",
    "serving.openai_request": "test_app",
    "serving.policies": "test_chatting",
    "serving.work": "test_app",
    "sharing.answers": "test_importing",
    "sharing.argilla": "test_importing",
    "sharing.consent": "test_folder",
    "sharing.label_studio": "test_importing",
    "sharing.layouts": "test_folder",
    "sharing.overview": "test_folder",
    "sharing.rating": "test_rate_feedback",
    "step": "test_evaluate",
    "stopping": "test_resume",
    "testing.checks": "test_testing",
    "testing.filter_kit": "test_filters",
    "testing.kit": "test_testing",
    "testing.probe": "test_testing",
    "testing.tracker_kit": "test_tracking",
    "tracker": "test_tracking",
    "training.checkpoint": "test_resume",
    "training.context": "test_train",
    "training.encoder": "test_offline",
    "training.external": "test_trl",
    "training.iteration": "test_ppo_checklist",
    "training.learner": "test_train",
    "training.measuring": "test_reference_and_values",
    "training.outcome": "test_iteration_loop",
    "training.roles": "test_ppo_checklist",
    "training.share": "test_reducer",
    "training.stage": "test_resume",
    "training.unfit": "test_offline",
    "verification.causes": "test_verdict",
    "verification.rerun": "test_verdict",
}

# Words of first-party plugins that mean something else in the core: module -> words, with the reason.
OTHER_MEANINGS = {
    "alignkit.settings": {"sft"},  # an objective of `mix`
    "alignkit.training.auxiliary": {"sft"},  # the same
    "alignkit.sharing.layouts": {"kto", "sft"},  # what TRL calls its layouts
    "alignkit.sharing.rating": {"rate_feedback"},  # the step of the command's recipe
    "alignkit.environment": {"refusal"},  # a tool's
    "alignkit.models.hub": {"refusal"},  # the hub's
    "alignkit.models.load_check": {"refusal"},  # of a model that cannot be loaded
}
COMMON_WORDS = {
    "rating",
    "rubric",
    "panel",
    *("dialogues", "evaluate", "feedback", "groups", "length", "lm", "messages", "normalized"),
    *("classifier", "format", "http", "language", "regex", "repetition", "weighted"),
    *("environment", "merge", "people", "preference", "python", "sample"),
    *("clip", "min", "product", "rankings", "rest", "revise", "reward_model", "text", "weighted_sum", "worker", "when"),
}


class Import(NamedTuple):
    """A statement that imports a module of alignkit, wherever it stands."""

    module: str
    line: int

    @property
    def room(self) -> str:
        return self.module.split(".")[1] if "." in self.module else ""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
INNER = sorted(MODULES.keys() - {"alignkit"})  # `alignkit` itself names everything, lazily


def imports(path: Path) -> list[Import]:
    """Every import of alignkit in a file, those of functions and for type checkers included."""
    result = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            result += [Import(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            result += [Import(name if name in MODULES else node.module, node.lineno) for name in names]
    return [item for item in result if item.module.split(".")[0] == "alignkit"]


def layer(room: str) -> int:
    return next((number for number, rooms in enumerate(LAYERS) if room in rooms), 1)


# Layers


def test_every_room_has_a_layer() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms == ROOMS | {
        "data",
        "feedback",
        "functional",
        "remote",
        "testing",
    }  # of which only testing is not the contract


@pytest.mark.parametrize("module", INNER)
def test_imports_go_down(module: str) -> None:
    room = module.split(".")[1]
    upward = [item for item in imports(MODULES[module]) if item.room and layer(item.room) > layer(room)]
    assert upward == []


@pytest.mark.parametrize("module", [name for name in INNER if name.startswith("alignkit.kernels")])
def test_kernels_know_little(module: str) -> None:
    rooms = {item.room for item in imports(MODULES[module])}
    assert rooms - BELOW_KERNELS - {"kernels"} == set()


def cycles(graph: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """The groups of modules that import each other, directly or not."""
    reach = {name: set(targets) for name, targets in graph.items()}
    for middle in graph:
        for targets in reach.values():
            if middle in targets:
                targets |= reach[middle]
    return {frozenset(other for other in reach[name] if name in reach[other]) for name in graph if name in reach[name]}


def test_no_modules_import_each_other() -> None:
    graph = {name: {item.module for item in imports(MODULES[name])} & set(INNER) - {name} for name in INNER}
    assert cycles(graph) == KNOWN_CYCLES


# The contract


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.stem)
def test_first_party_plugins_import_the_contract_only(path: Path) -> None:
    assert [item for item in imports(path) if item.room in ROOMS] == []


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.stem)
def test_first_party_plugins_do_not_import_each_other(path: Path) -> None:
    own = ".".join(path.relative_to(ROOT / "plugins").with_suffix("").parts[:2])
    names = [node.module or "" for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree(path)) if isinstance(node, ast.Import) for alias in node.names]
    assert [name for name in names if name.startswith("alignkit_") and not f"{name}.".startswith(f"{own}.")] == []


@cache
def first_party_names() -> set[str]:
    """What first-party plugins are called in recipes, without names that are common words."""
    kinds = ("format", "algorithm", "reward", "judge", "environment", "step", "engine")
    registry = load_plugins().registry
    own = [item for kind in kinds for item in registry.registrations(kind) if item.distribution == "alignkit"]
    return {item.name for item in own} - COMMON_WORDS


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


@pytest.mark.parametrize("module", [name for name in INNER if not name.startswith("alignkit.functional")])
def test_the_core_names_no_plugin(module: str) -> None:
    named = first_party_names() & set(words_of(MODULES[module]))
    assert named == OTHER_MEANINGS.get(module, set())


# Sizes


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short(path: Path) -> None:
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    sizes = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions}
    assert {name: size for name, size in sizes.items() if size > MAX_FUNCTION} == {}


def test_files_are_short() -> None:
    sizes = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in CODE}
    assert {name for name, size in sizes.items() if size > MAX_FILE} == LONG_FILES


# Tests


def test_every_module_has_a_test() -> None:
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests").rglob("test_*.py")}
    modules = {
        name.removeprefix("alignkit.") for name in INNER if MODULES[name].name not in ("__init__.py", "__main__.py")
    }
    without = {name for name in modules if name.split(".")[-1] not in tests}
    assert without == TESTED_IN.keys()
    assert {test for test in TESTED_IN.values() if not list((ROOT / "tests").rglob(f"{test}.py"))} == set()


# Language

IDIOMS = {
    r"\b(?:is|are|was|were|be) told\b": "is reported, is printed",
    r"\b(?:afresh|anew)\b": "again, from scratch",
    r"\bfor ever\b": "forever, always",
    r"\bbears? on\b": "applies to",
    r"\bbeside\b": "next to, in addition to, compared with",
    r"\bof like (?:length|size)\b": "of similar length",
    r"\btaken off\b": "subtracted, removed",
    r"\bas (?:it|they) stands?\b": "unchanged",
    r"\bso (?:many|much)\b(?! (?:that|as))": "this many, up to N",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\b(?:goes|go|went|gone) on\b": "continue",
    r"\b(?:this|that|it|them|these|policy|data|stage|plugin|words?|code) alone\b": "only",
    r"\bof (?:its|their) own accord\b": "automatically",
}
BRITISH = {
    r"\b\w*(?:normal|optim|initial|quant|summar|recogn|penal|random|general)is(?:e[ds]?|ing|ation|er)\b": "-ize",
    r"\b\w*(?:behaviour|colour|favour|honour|neighbour)\w*\b": "-or",
    r"\b(?:artefacts?|centre[ds]?|centring|grey|learnt|licences?|misspelt|spelt|whilst)\b": "American spelling",
    r"\b(?:cancel|label|model|signal|travel)l(?:ed|ing)\b": "one l",
}
# Quotations and foreign names: (file, text).
SPELLED_SO = {("alignkit/testing/examples.py", "Go on")}


CLOCKS = re.compile(r"timeout=[0-9]|seconds: float = [0-9]|monotonic\(\) - \w+ <")


def test_no_test_depends_on_how_busy_the_machine_is() -> None:
    """A test that could hang waits for `patience.PATIENCE`."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    lines = [(file.name, line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    assert [found for found in lines if CLOCKS.search(found[1]) and found[0] != "test_house.py"] == []


# Files that are not edited yet.
UNEDITED: set[str] = set()


@pytest.mark.parametrize("path", [*CODE, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_language(path: Path) -> None:
    name, findings = str(path.relative_to(ROOT)), []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for pattern, better in {**IDIOMS, **BRITISH}.items():
            for match in re.finditer(pattern, line, re.IGNORECASE):
                if (name, match[0]) not in SPELLED_SO:
                    findings.append(f"{name}:{number}: {match[0]!r}: write {better}")
    assert findings == [] or name in UNEDITED
