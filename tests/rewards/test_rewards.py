"""Rewards without a model, a normalized reward model, and the weighted sum of rewards."""

import contextlib
import io
import json
import math
import runpy
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from by_role import ByRole
from pydantic import ValidationError

from alignkit import (
    CombinedReward,
    Context,
    DataError,
    Group,
    RecipeError,
    Response,
    RunFailed,
    cli,
    shapes,
)
from alignkit.data.group import read_groups
from alignkit.errors import PluginError
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import RewardSpec
from alignkit.runs.run import Run
from alignkit.training.rewards import Rewards
from alignkit_plugins.rewards.basic import Length, Normalized
from alignkit_plugins.rewards.combinations import WeightedSum
from alignkit_plugins.rewards.python import Python

ASK = ({"role": "user", "content": "How are you?"},)
GROUPS = [
    Group(
        prompt=ASK,
        responses=(Response("I am fine"), Response("Fine")),
        meta={"answer": "fine", "level": 3},
        id="p1",
    ),
    Group(
        prompt=({"role": "user", "content": "Who?"},),
        responses=(Response("Me"),),
        meta={"answer": "me"},
    ),
]


def length(groups: list[Group], **options: Any) -> list[float | None]:
    return list(Length(Length.Options(**options)).score(groups)[""])


@pytest.mark.parametrize(("unit", "expected"), [("characters", [9, 4, 2]), ("words", [3, 1, 1])])
def test_length_of_text(unit: str, expected: list[int]) -> None:
    assert length(GROUPS, unit=unit) == expected


def test_length_in_tokens_counts_what_the_policy_wrote() -> None:
    tools = Response("ab", tokens=(5, 6, 7, 2), written=(True, False, False, True))
    assert length([Group(prompt=ASK, responses=(Response("ab", tokens=(5, 6, 2)), tools))]) == [
        3,
        2,
    ]


def test_length_in_tokens_needs_tokens() -> None:
    with pytest.raises(DataError, match="unit: words"):
        length(GROUPS)
    with pytest.raises(DataError, match="unit: words"):
        Length(Length.Options()).check_prompts(GROUPS)
    Length(Length.Options()).check_prompts([replace(group, responses=()) for group in GROUPS])


def test_length_target_is_best_where_it_is_met() -> None:
    assert length(GROUPS, unit="words", target=2, scale=0.5) == [-0.5, -0.5, -0.5]
    assert length(GROUPS, unit="words", target=3) == [0, -2, -2]


def test_length_of_a_dialogue_counts_the_assistant() -> None:
    turns = (
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "not counted at all"},
        {"role": "assistant", "content": "two three"},
    )
    assert length([Group(prompt=ASK, responses=(Response(messages=turns),))], unit="words") == [3]


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., Python]:
    """A prepared `python` reward from the source of a file."""

    def make(source: str | None, function: str = "reward", **options: Any) -> Python:
        if source is not None:
            (tmp_path / "mine.py").write_text(textwrap.dedent(source).lstrip())
        thing = Python(Python.Options(path="mine.py", function=function, **options))
        thing.prepare(Context(models=None, cache=tmp_path, folder=tmp_path, seed=0, load=list))  # type: ignore[arg-type]
        return thing

    return make


def test_python_has_the_signature_of_trl(python: Callable[..., Python]) -> None:
    thing = python("""
        seen = {}
        def reward(prompts, completions, answer, level, **kwargs):
            seen.update(prompts=prompts, completions=completions, answer=answer, level=level, **kwargs)
            return [float(a in c.lower()) for a, c in zip(answer, completions)]
    """)
    assert thing.score(GROUPS) == {"": [1.0, 1.0, 1.0]}
    assert thing._call.__globals__["seen"] == {
        "prompts": ["How are you?", "How are you?", "Who?"],
        "completions": ["I am fine", "Fine", "Me"],
        "answer": ["fine", "fine", "me"],
        "level": [3, 3, None],
    }


def test_python_conversational_as_in_trl(python: Callable[..., Python]) -> None:
    thing = python(
        """
        def reward(prompts, completions, **kwargs):
            assert prompts[0] == [{"role": "user", "content": "How are you?"}]
            assert completions[0] == [{"role": "assistant", "content": "I am fine"}]
            return [len(completion[0]["content"]) for completion in completions]
        """,
        conversational=True,
    )
    assert thing.score(GROUPS) == {"": [9.0, 4.0, 2.0]}


def test_python_passes_only_what_the_function_names(python: Callable[..., Python]) -> None:
    thing = python(
        "def reward(completions, level): return [len(c) + (n or 0) for c, n in zip(completions, "
        "level)]"
    )
    assert thing.score(GROUPS) == {"": [12.0, 7.0, 2.0]}


def test_python_passes_tokens_where_all_have_them(python: Callable[..., Python]) -> None:
    thing = python("def reward(completion_ids): return [len(ids) for ids in completion_ids]")
    assert thing.score([Group(prompt=ASK, responses=(Response("a", tokens=(1, 2)),))]) == {
        "": [2.0]
    }
    with pytest.raises(RunFailed, match="completion_ids"):
        thing.score(GROUPS)


def test_python_may_be_async_and_return_arrays(python: Callable[..., Python]) -> None:
    thing = python("""
        import numpy, torch
        async def waits(completions): return [1, 2, 3]
        def array(completions): return numpy.arange(3, dtype="float32")
        def tensor(completions): return torch.tensor([1.0, 2.0, 3.0])
        def reward(completions): return [True, numpy.float32(0.5), None]
    """)
    assert thing.score(GROUPS) == {"": [1.0, 0.5, None]}
    for function, expected in {"waits": [1, 2, 3], "array": [0, 1, 2], "tensor": [1, 2, 3]}.items():
        other = python(None, function)
        assert other.score(GROUPS) == {"": expected}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "return [1.0, float('nan'), 2.0]",
            r"'reward' of mine.py returned nan for completion 1 of 3 \(prompt p1\)",
        ),
        (
            "return [1.0, 1.0, float('inf')]",
            "returned inf for completion 2 of 3, expected a finite number",
        ),
        ("return ['1', 1, 1]", "returned '1' for completion 0 of 3"),
        ("return [1, {}, 1]", "returned {} for completion 1 of 3"),
        ("return [1.0, 2.0]", "returned 2 scores for 3 completions"),
        ("return 1.0", "returned 1.0, expected a list of 3 numbers"),
        ("return None", "returned None, expected a list of 3 numbers"),
        ("return 'abc'", "returned 'abc', expected a list"),
        (
            "return completions[9]",
            r"raised IndexError: list index out of range \(line 2: return completions\[9\]\)",
        ),
    ],
)
def test_python_failures_name_function_row_and_value(
    python: Callable[..., Python], body: str, message: str
) -> None:
    with pytest.raises(RunFailed, match=message):
        python(f"def reward(completions):\n    {body}").score(GROUPS)


def test_python_failures_show_the_completion(python: Callable[..., Python]) -> None:
    with pytest.raises(RunFailed, match="completion: 'Fine'"):
        python("def reward(completions): return [0, float('nan'), 0]").score(GROUPS)


@pytest.mark.parametrize(
    ("source", "function", "message"),
    [
        ("def other(): pass", "reward", "no function 'reward'"),
        (
            "import nothing_of_this_name",
            "reward",
            r"ModuleNotFoundError.*\(line 1: import nothing_of_this_name\)",
        ),
        ("def reward(: pass", "reward", "SyntaxError"),
        ("reward = 3", "reward", "no function 'reward'"),
    ],
)
def test_python_fails_before_long_work_starts(
    python: Callable[..., Python], source: str, function: str, message: str
) -> None:
    with pytest.raises(RunFailed, match=message):
        python(source, function)  # in prepare()


PIPELINE = """\
model: {base: tiny, dtype: float32, lora: {r: 2, lora_alpha: 4}}
stages:
  sft: {algorithm: sft, data: demos.jsonl, max_length: 64}
  align: {algorithm: grpo, from: sft, prompts: demos.jsonl, reward: {length: {}}, max_length: 200}
  report: {step: evaluate, policies: [sft], prompts: demos.jsonl, rewards: [{length: {}}]}
"""
WRONG = "{python: {path: mine.py, function: polit}}"


@pytest.mark.parametrize(
    "override",
    [
        f"stages.align.reward={WRONG}",
        f"stages.align.reward={{weighted_sum: {{rewards: {{a: {WRONG}}}, weights: {{a: 1}}}}}}",
        f"stages.report.rewards=[{{length: {{}}}}, {WRONG}]",
    ],
)
def test_a_wrong_function_is_told_before_the_first_stage(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    override: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import sys\nsys.modules['it_ran'] = sys\ndef polite(completions): ..."
    )
    (tmp_path / "demos.jsonl").write_text('{"prompt": "a", "completion": "b"}')
    (tmp_path / "r.yaml").write_text(PIPELINE)
    arguments = [str(tmp_path / "r.yaml"), override]
    stage = override.split(".")[1]
    for command in (["check"], ["run", "--out", str(tmp_path / "out")]):
        monkeypatch.delitem(sys.modules, "it_ran", raising=False)
        assert cli.main([*command, *arguments]) == 2
        err = capsys.readouterr().err
        assert err.count("error: ") == 1 and "loading tiny" not in err and "r.yaml" in err
        assert f"error: stage '{stage}': reward 'python': " in err
        assert "has no function 'polit'" in err and "did you mean 'polite'?" in err
        assert "it_ran" in sys.modules
    assert not (tmp_path / "out" / "sft").exists()
    monkeypatch.delitem(sys.modules, "it_ran", raising=False)


def test_python_without_a_file(tmp_path: Path) -> None:
    thing = Python(Python.Options(path=tmp_path / "none.py", function="f"))
    with pytest.raises(RunFailed, match=r"none\.py"):
        thing.check(Path())


def test_a_function_of_an_installed_module() -> None:
    options = Python.Options(function="json:dumps")
    assert options.packages == ()  # of the standard library
    assert Python.Options(function="trl.rewards:f").packages == ("trl",)
    thing = Python(Python.Options(function="statistics:mean"))
    thing.check(Path())
    for module, function, words in (
        ("statistics", "maen", "did you mean"),
        ("no_such_module", "f", "importing no_such_module raised"),
    ):
        with pytest.raises(RunFailed, match=words):
            Python(Python.Options(function=f"{module}:{function}")).check(Path())


@pytest.mark.parametrize("places", [{"function": "f"}, {"path": "a.py", "function": "json:loads"}])
def test_a_function_is_in_one_place(places: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="set `path`, or write"):
        Python.Options(**places)


def test_python_files_of_one_name_do_not_mix(tmp_path: Path) -> None:
    found = []
    for number in (1, 2):
        file = tmp_path / str(number) / "reward.py"
        file.parent.mkdir()
        file.write_text(f"def f(completions): return [{number}] * len(completions)")
        found.append(Python(Python.Options(path=file, function="f")))
        found[-1].check(tmp_path)
    assert [thing.score(GROUPS[1:])[""] for thing in found] == [[1.0], [2.0]]
    # Pickling looks a function up by its module's name.
    assert all(sys.modules[thing._call.__module__].f is thing._call for thing in found)


def test_python_is_not_called_for_nothing(python: Callable[..., Python]) -> None:
    assert python("def reward(completions): 1 / 0").score([Group(prompt=ASK)]) == {"": []}


class Scores(ByRole):
    """Models whose reward model `rm` reads a score from the response's text; None where it says
    so.
    """

    def __init__(self) -> None:
        self.asked: list[Sequence[Group]] = []

    def scores(self, stage: str, groups: Sequence[Group]) -> list[float | None]:
        assert stage == "rm"
        self.asked.append(groups)
        said = [response.text for group in groups for response in group.responses]
        return [None if text == "None" else float(text) for text in said]


def saying(*scores: float | None) -> list[Group]:
    return [Group(ASK, (Response(str(score)),)) for score in scores]


def normalized(
    demos: list[Group], folder: Path, kind: Any = "stage", **options: Any
) -> tuple[Normalized, Scores]:
    models = Scores()
    thing = Normalized(
        Normalized.Options(reward_model=RewardSpec(kind, "rm"), data="demos", **options)
    )
    load = {"demos": demos}.__getitem__
    thing.check(folder)
    thing.prepare(Context(models=models, cache=folder, folder=folder, seed=0, load=load))  # type: ignore[arg-type]
    return thing, models


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_reward_model_that_gives_no_number_stops_the_run(tmp_path: Path, value: str) -> None:
    context = Context(models=Scores(), cache=tmp_path, folder=tmp_path, seed=0, load=list)  # type: ignore[arg-type]
    groups = [Group(ASK, (Response("1"), Response("None"), Response(value)))]
    with pytest.raises(RunFailed, match=rf"'rm': .*not {value}"):
        Rewards(RewardSpec("stage", "rm"), context).score(groups)


@pytest.mark.parametrize("at", ["reward", "raw"])
def test_a_combination_that_gives_no_number_is_an_error(at: str) -> None:
    numbers = {"reward": torch.tensor([1.0, 2.0]), "raw": torch.tensor([1.0, math.nan])}
    shapes.combined(2, CombinedReward(**numbers, metrics={}))
    numbers[at] = torch.tensor([1.0, 2.0]).index_fill(0, torch.tensor([0]), math.inf)
    with pytest.raises(PluginError, match="return finite rewards"):
        shapes.combined(2, CombinedReward(**numbers, metrics={}))


GOLDEN = Path(__file__).parent.parent / "golden" / "rm_normalize.json"


@pytest.mark.parametrize(
    "case", json.loads(GOLDEN.read_text())["cases"], ids=lambda case: case["id"]
)
def test_normalized_matches_the_golden_numbers(case: dict[str, Any], tmp_path: Path) -> None:
    demos, new = case["inputs"]["demo_rewards"], case["inputs"]["new_rewards"]
    for gain, key in ((False, "new_bias_only"), (True, "new_mean0_var1")):
        thing, models = normalized(saying(*demos), tmp_path, gain=gain)
        assert thing.score(saying(*new)) == {
            "": pytest.approx(case["expected"][key], rel=1e-9, abs=1e-12)
        }
        assert sum(thing.score(saying(*demos))[""]) == pytest.approx(0.0, abs=1e-9)  # type: ignore[arg-type]
        assert len(models.asked) == 3  # the demonstrations were scored once, before anything else


def test_normalized_leaves_out_what_could_not_be_scored(tmp_path: Path) -> None:
    thing, _ = normalized(saying(None, 0.0, 5.0, None), tmp_path)
    assert thing.score(saying(2.5, None, 3.5)) == {"": [0.0, None, 1.0]}
    for demos in (saying(None, None), []):
        with pytest.raises(RunFailed, match="'rm' could not score any demonstration"):
            normalized(demos, tmp_path)
    with pytest.raises(ValueError, match="expected a stage that trains a reward model"):
        normalized(saying(1.0), tmp_path, kind="reward")
    assert normalized(saying(1.0), tmp_path, kind="folder")[0].score(saying(3.0)) == {"": [2.0]}


DATA = Path(__file__).parent.parent.parent / "recipes" / "data"
STAGES: dict[str, Any] = {
    "sft": {"algorithm": "sft", "data": {"path": "demos.jsonl"}, "max_steps": 1, "max_length": 256},
    "liked": {
        "algorithm": "reward_model",
        "data": {"path": str(DATA / "rankings.jsonl"), "limit": 4},
        "max_length": 256,
        "learning_rate": 0.01,
    },
    "seen": {  # scores some of the demonstrations before `align` does
        "step": "evaluate",
        "policies": ["base"],
        "rewards": [{"normalized": {"reward_model": "liked", "data": {"path": "some.jsonl"}}}],
        "prompts": {"path": str(DATA / "heldout.jsonl"), "limit": 2},
        "sampling": {"max_new_tokens": 4},
    },
    "align": {
        "algorithm": "ppo",
        "prompts": {"path": str(DATA / "prompts.jsonl"), "limit": 4},
        "reward": {"normalized": {"reward_model": "liked", "data": "people.jsonl", "gain": True}},
        "rollout": {"samples_per_prompt": 2, "max_new_tokens": 6},
        "iterations": 2,
        "prompts_per_iteration": 2,
    },
}
STOPS = """
import os
from alignkit import hookimpl

@hookimpl
def metrics_logged(run, stage, step):
    if os.environ.get("STOP") and (stage, step) == ("align", 1):
        run.request_stop("a test")
"""


class Place:
    """A folder with a recipe, its demonstrations and the plugin that stops a run after the first
    iteration.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        demos = (DATA / "demos.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        for name, count in (("demos.jsonl", 4), ("people.jsonl", 12), ("some.jsonl", 5)):
            (folder / name).write_text("".join(demos[:count]), encoding="utf-8")
        (folder / "stops.py").write_text(STOPS, encoding="utf-8")

    def recipe(self, reward: Any = None) -> Path:
        align = STAGES["align"] | ({} if reward is None else {"reward": reward})
        model = {"base": "tiny", "dtype": "float32", "lora": {"r": 4, "lora_alpha": 8}}
        text = yaml.safe_dump(
            {"model": model, "stages": {**STAGES, "align": align}}, sort_keys=False
        )
        (self.folder / "small.yaml").write_text(text, encoding="utf-8")
        return self.folder / "small.yaml"

    def run(self, out: Path, stop: str = "") -> tuple[int, str]:
        """The exit code, and what was said."""
        arguments = [
            "run",
            str(self.recipe()),
            "--plugin",
            str(self.folder / "stops.py"),
            "--out",
            str(out),
        ]
        err = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(err):
            patch.setenv("STOP", stop)
            with contextlib.redirect_stdout(io.StringIO()):
                return cli.main(arguments), err.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def whole(place: Place) -> Path:
    """A run from its beginning to its end."""
    code, err = place.run(place.folder / "whole")
    assert code == 0, err
    return place.folder / "whole"


def rolled_out(out: Path) -> list[Group]:
    """The groups of all iterations."""
    return [
        group
        for file in sorted((out / "align" / "rollouts").iterdir())
        for group in read_groups(file)
    ]


def test_normalized_references_are_checked(place: Place) -> None:
    align = load_recipe(place.recipe()).stages["align"]
    assert "liked" in align.upstream
    for options, message in (
        ({"reward_model": "likd"}, "did you mean 'liked'"),
        ({"reward_model": "sft"}, "'sft' does not train a reward model"),
        ({"reward_model": "align"}, "refers to itself"),
        (
            {"reward_model": {"length": {"unit": "words"}}},
            "expected a stage that trains a reward model",
        ),
        ({"data": "peopel.jsonl"}, "did you mean 'people.jsonl'"),
        ({"gain": "much"}, "gain"),
        ({"bias": 1}, "bias"),
    ):
        reward = {"normalized": STAGES["align"]["reward"]["normalized"] | options}
        with pytest.raises(RecipeError) as caught:
            load_recipe(place.recipe(reward))
        assert message in str(caught.value)


def test_bad_demonstrations_are_told_before_anything_is_trained(
    place: Place, tmp_path: Path
) -> None:
    demos = place.folder / "people.jsonl"
    good = demos.read_text(encoding="utf-8")
    try:
        demos.write_text(good + '{"messages": []}\n', encoding="utf-8")
        code, err = place.run(tmp_path / "out")
    finally:
        demos.write_text(good, encoding="utf-8")
    assert code == 4 and "people.jsonl:13" in err
    assert not (tmp_path / "out" / "sft").exists()


def test_normalized_in_a_run_is_of_the_demonstrations_it_names(place: Place, whole: Path) -> None:
    recipe = load_recipe(place.recipe())
    run, settings = Run(recipe, whole), recipe.stages["align"].settings
    assert settings is not None
    demos = run.data.read(settings.reward.component.options.data).groups
    known = torch.tensor(run.models["liked"].scores(demos), dtype=torch.float64)
    assert len(known) == 12 and known.std() > 1e-3
    groups = rolled_out(whole)
    raw = torch.tensor(run.models["liked"].scores(groups), dtype=torch.float64)
    found = [response.scores for group in groups for response in group.responses]
    assert len(found) == 8 and all(scores["normalized"] == scores["reward"] for scores in found)
    wanted = (raw - known.mean()) / known.std(correction=0)
    # In float32, and packed otherwise.
    assert [scores["normalized"] for scores in found] == pytest.approx(
        wanted.tolist(), rel=1e-4, abs=1e-4
    )


def test_normalized_is_the_same_after_a_stop(place: Place, whole: Path) -> None:
    out = place.folder / "stopped"
    code, err = place.run(out, stop="yes")
    assert code == 75, err
    code, err = place.run(out)
    assert code == 0 and "continuing after iteration 1 of 2" in err
    assert rolled_out(out) == rolled_out(whole)
    weights = "align/adapter/adapter_model.safetensors"
    assert (out / weights).read_bytes() == (whole / weights).read_bytes()


def test_changed_demonstrations_start_the_stage_over(place: Place, whole: Path) -> None:
    out = place.folder / "changed"
    shutil.copytree(whole, out, symlinks=True)
    demos = place.folder / "people.jsonl"
    good = demos.read_text(encoding="utf-8")
    lines = good.splitlines(keepends=True)
    try:
        demos.write_text("".join(lines[:-1]), encoding="utf-8")
        code, err = place.run(out)
    finally:
        demos.write_text(good, encoding="utf-8")
    assert code == 0, err
    assert [f"{name}: unchanged, reused" in err for name in ("sft", "liked", "seen")] == [True] * 3
    (changed,) = [line for line in err.splitlines() if "align: changed since the last run" in line]
    assert ": the file has changed" in changed
    new, old = rolled_out(out)[0].responses[0], rolled_out(whole)[0].responses[0]
    assert new.tokens == old.tokens  # they were drawn before anything was learned
    assert new.scores != old.scores


def weighted_sum(weights: dict[str, float], rewards: list[str]) -> WeightedSum:
    return WeightedSum(
        WeightedSum.Options(rewards={name: name for name in rewards}, weights=weights)
    )


def test_weighted_sum() -> None:
    thing = weighted_sum({"a": 2.0, "b": -0.5}, ["a", "b"])
    columns = {
        "a": torch.tensor([1.0, 2.0, math.nan, math.nan]),
        "b": torch.tensor([4.0, 0.0, 1.0, math.nan]),
    }
    combined = thing.combine(GROUPS, {name: x.double() for name, x in columns.items()})
    assert list(thing.parts()) == ["a", "b"]
    assert combined.raw[:3].tolist() == [0.0, 4.0, -0.5] and combined.raw[3].isnan()
    assert torch.equal(combined.reward[:3], combined.raw[:3])
    assert combined.metrics == pytest.approx({"a_mean": 1.5, "b_mean": 5 / 3, "raw_mean": 3.5 / 3})


@pytest.mark.parametrize(
    ("weights", "rewards", "message"),
    [
        ({"a": 1.0}, ["a", "b"], "no weight for b"),
        ({"a": 1.0, "c": 1.0}, ["a"], "weights for c, which are not among the rewards"),
        ({}, [], "at least 1"),
    ],
)
def test_weighted_sum_names_must_match(
    weights: dict[str, float], rewards: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        weighted_sum(weights, rewards)


def test_sums_are_right_by_their_last_number() -> None:
    """The verifiable reward of recipes/sums.yaml."""
    path = Path(__file__).parent.parent.parent / "recipes" / "rewards" / "arithmetic.py"
    correct = runpy.run_path(str(path))["correct"]
    said = ["7", "3 + 4 = 7.", "7 + 4 = 11", "The answer is seven", "70", "It is 7, not 8", ""]
    assert correct(said, [7] * len(said), id=["x"] * len(said)) == [
        1.0,
        1.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
    ]
    assert correct(["11", "7"], [7, 7]) == [0.0, 1.0]


def test_a_function_may_be_named_with_its_module(tmp_path: Path) -> None:
    thing = Python(Python.Options(function="alignkit.data.group:preview"))
    thing.check(tmp_path)
    with pytest.raises(RunFailed, match=r"alignkit\.data\.group has no function 'previe'.*preview"):
        Python(Python.Options(function="alignkit.data.group:previe")).check(tmp_path)


def test_a_function_for_lists_of_messages_hears_of_the_key(tmp_path: Path) -> None:
    text = (
        "def f(prompts, completions):\n"
        "    return [len(each[0]['content']) for each in completions]\n"
    )
    (tmp_path / "f.py").write_text(text + "def g(prompt, completion):\n    return [1.0]\n")
    row = Group(({"role": "user", "content": "hi"},), (Response(text="yes"),))
    thing = Python(Python.Options(path="f.py", function="f"))
    thing.check(tmp_path)
    with pytest.raises(RunFailed, match=r"string indices(?s:.*)help: .*set 'conversational: true'"):
        thing.score([row])
    thing = Python(Python.Options(path="f.py", function="g"))
    thing.check(tmp_path)
    with pytest.raises(
        DataError, match=r"needs the argument 'prompt'(?s:.*)did you mean 'prompts'\?"
    ):
        thing.check_prompts([row])
