"""Rewards without a model: length and functions; and a reward model, normalized."""

from __future__ import annotations

import importlib.metadata
import json
import runpy
import sys
import textwrap
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml
from by_role import ByRole
from pydantic import ValidationError

from alignkit import (
    Context,
    DataError,
    Group,
    RecipeError,
    Response,
    RunFailed,
    cli,
)
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import RewardSpec
from alignkit.runs.run import Run
from alignkit.training.rewards import Rewards
from alignkit_plugins.rewards.length import Length
from alignkit_plugins.rewards.normalized import Normalized
from alignkit_plugins.rewards.python import Python
from tests.rows import (
    Said,
    assistant,
    cells,
    demos,
    rollouts_of,
    run,
    user,
    write_recipe,
    write_rows,
)

ASK = (user("How are you?"),)
GROUPS = [
    Group(
        ASK,
        (Response("I am fine"), Response("Fine")),
        meta={"answer": "fine"},
        id="p1",
    ),
    Group((user("Who?"),), (Response("Me"),), meta={"answer": "me", "level": 3}),
]


def around(folder: Path, models: Any = None, load: Any = list) -> Context:
    return Context(models=models, cache=folder, folder=folder, seed=0, load=load)


# Length


ANSWERS = {
    "fine": Response("I am fine"),
    "talk": Response(messages=(assistant("one"), user("not counted"), assistant("two three"))),
    "sampled": Response("ab", tokens=(5, 6, 2)),
    "tool": Response("ab", tokens=(5, 6, 7, 2), action_mask=(True, False, False, True)),
}
LENGTHS = yaml.safe_load("""
- [{unit: characters}, fine, 9]
- [{unit: words}, fine, 3]
- [{unit: words}, talk, 3]    # what the assistant says
- [{}, sampled, 3]
- [{}, tool, 2]               # what the policy wrote
# Best where the target is met
- [{unit: words, target: 2, scale: 0.5}, fine, -0.5]
- [{unit: words, target: 4, scale: 0.5}, fine, -0.5]
- [{unit: words, target: 3}, fine, 0]
- [{unit: words, target: 0}, fine, -3]
""")


@pytest.mark.parametrize(("options", "answer", "score"), LENGTHS)
def test_length_of_what_the_policy_wrote(
    options: dict[str, Any], answer: str, score: float
) -> None:
    groups = [Group(ASK, (ANSWERS[answer],))]
    assert Length(Length.Options(**options)).score(groups) == [score]


def test_length_in_tokens_needs_tokens() -> None:
    reward = Length(Length.Options())
    with pytest.raises(DataError, match="unit: words"):
        reward.score(GROUPS)
    with pytest.raises(DataError, match="unit: words"):
        reward.check_prompts(GROUPS)
    reward.check_prompts([Group(ASK)])


# A function in Python


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., Python]:
    """A prepared `python` reward from the source of a file."""

    def make(source: str | None, function: str = "reward", **options: Any) -> Python:
        if source is not None:
            (tmp_path / "mine.py").write_text(textwrap.dedent(source).lstrip(), encoding="utf-8")
        thing = Python(Python.Options(path="mine.py", function=function, **options))
        thing.prepare(around(tmp_path))
        return thing

    return make


def test_python_has_the_signature_of_trl(python: Callable[..., Python]) -> None:
    thing = python("""
        seen = {}
        def reward(prompts, completions, answer, level, **kwargs):
            seen.update(prompts=prompts, completions=completions, answer=answer, level=level, **kwargs)
            return [float(a in c.lower()) for a, c in zip(answer, completions)]
    """)
    assert thing.score(GROUPS) == [1.0, 1.0, 1.0]
    assert thing._call.__globals__["seen"] == {
        "prompts": ["How are you?", "How are you?", "Who?"],
        "completions": ["I am fine", "Fine", "Me"],
        "answer": ["fine", "fine", "me"],
        "level": [None, None, 3],
    }
    thoughts = Response("<think>so</think>Fine")
    thing.score([Group((*ASK, assistant("You?")), (thoughts,), meta=GROUPS[1].meta)])
    seen = thing._call.__globals__["seen"]
    assert seen["completions"] == [thoughts.text]
    assert seen["prompts"] == ["user: How are you?\n\nassistant: You?"]


FUNCTIONS = yaml.safe_load("""
- source: |
    def reward(prompts, completions, **kwargs):
        assert prompts[0] == [{"role": "user", "content": "How are you?"}]
        assert completions[0] == [{"role": "assistant", "content": "I am fine"}]
        return [len(completion[0]["content"]) for completion in completions]
  options: {conversational: true}
  scores: [9.0, 4.0, 2.0]
- source: |  # only what it names is passed
    def reward(completions, level):
        return [len(c) + (n or 0) for c, n in zip(completions, level)]
  scores: [9.0, 4.0, 5.0]
- source: |
    import numpy
    def reward(completions): return [True, numpy.float32(0.5), None]
  scores: [1.0, 0.5, null]
- source: "async def reward(completions): return [1, 2, 3]"
  scores: [1, 2, 3]
- source: |
    import torch
    def reward(completions): return torch.arange(3.0)
  scores: [0, 1, 2]
""")


@pytest.mark.parametrize("row", FUNCTIONS)
def test_what_a_function_may_be_and_return(row: Any, python: Callable[..., Python]) -> None:
    thing = python(row["source"], **row.get("options", {}))
    assert thing.score(GROUPS) == row["scores"]
    assert thing.score([Group(ASK)]) == []


def test_python_passes_tokens_where_all_have_them(python: Callable[..., Python]) -> None:
    thing = python("def reward(completion_ids): return [len(ids) for ids in completion_ids]")
    sampled = Response("a", tokens=(1, 2))
    assert thing.score([Group(ASK, (sampled,))]) == [2.0]
    with pytest.raises(RunFailed, match="completion_ids"):
        thing.score([Group(ASK, (sampled, Response("b")))])


FAILURES = r"""
return [1.0, -1e308, 2.0] | -1e\+308 for completion 1 of 3 .*expected a finite number from -1e\+15 to 1e\+15
return [1.0, float('nan'), 2.0] | nan for completion 1 of 3 \(prompt p1\).*completion: 'Fine'
return [1.0, 1.0, float('inf')] | inf for completion 2 of 3
return ['1', 1, 1]              | '1' for completion 0 of 3
return [1, {}, 1]               | {} for completion 1 of 3
return [1.0, 2.0]               | 2 scores for 3 completions
return 1.0                      | returned 1.0, expected a list of 3 numbers
return 'abc'                    | returned 'abc'
return completions[9]           | IndexError: .* \(line 2: return completions\[9\]\)
"""


@pytest.mark.parametrize(("body", "message"), cells(FAILURES))
def test_python_failures_name_function_row_and_value(
    python: Callable[..., Python], body: str, message: str
) -> None:
    with pytest.raises(RunFailed, match=f"(?s)'reward' of mine.py.*{message}"):
        python(f"def reward(completions):\n    {body}").score(GROUPS)


SOURCES = r"""
reward = 3                     | no function 'reward'
import nothing_of_this_name    | ModuleNotFoundError.*\(line 1: import nothing_of_this
def reward(: pass              | SyntaxError
"""


@pytest.mark.parametrize(("source", "message"), cells(SOURCES))
def test_python_fails_before_long_work_starts(
    python: Callable[..., Python], source: str, message: str
) -> None:
    with pytest.raises(RunFailed, match=message):
        python(source)  # in prepare()


PIPELINE = """
sft: {algorithm: sft, data: demos.jsonl}
align: {algorithm: grpo, from: sft, prompts: demos.jsonl, reward: length}
report: {step: evaluate, policies: [sft], prompts: demos.jsonl, rewards: [length]}
"""
# A command, and a place of a function whose name is mistyped.
MISTYPED = """
check          | align.reward={python: {path: m.py, function: polit}}
check          | align.reward={weighted_sum: {rewards: {a: {python: {path: m.py, function: polit}}}, weights: {a: 1}}}
run --out out  | report.rewards=[{length: {}}, {python: {path: m.py, function: polit}}]
"""


@pytest.mark.parametrize(("command", "override"), cells(MISTYPED))
def test_a_wrong_function_is_told_before_the_first_stage(
    command: str, override: str, here: Path, said: Said
) -> None:
    (here / "m.py").write_text("def polite(completions): ...", encoding="utf-8")
    recipe = write_recipe(here, PIPELINE)
    assert cli.main([*command.split(), str(recipe), f"stages.{override}"]) == 2
    err = said()
    assert err.count("error: ") == 1 and "loading tiny" not in err and "recipe.yaml" in err
    assert f"error: stage '{override.split('.')[0]}': reward 'python': " in err
    assert "has no function 'polit'" in err and "did you mean 'polite'?" in err
    assert not (here / "out" / "sft").exists()


PLACES = yaml.safe_load(r"""
- [{function: "statistics:mean"}, ""]
- [{function: "alignkit.data.group:previe"}, "group has no function 'previe'.*preview"]
- [{function: "no_such.module:f"}, "importing no_such.module raised(?s:.*)'path: no_such/module.py'"]
- [{path: none.py, function: f}, none\.py]
""")


@pytest.mark.parametrize(("options", "message"), PLACES)
def test_where_a_function_is_looked_for(options: Any, message: str, tmp_path: Path) -> None:
    thing = Python(Python.Options(**options))
    if not message:
        return thing.check(tmp_path)
    with pytest.raises(RunFailed, match=message):
        thing.check(tmp_path)


def test_a_function_is_in_one_place_and_names_its_package() -> None:
    for places in ({"function": "f"}, {"path": "a.py", "function": "json:loads"}):
        with pytest.raises(ValidationError, match="set `path`, or write"):
            Python.Options(**places)
    assert Python.Options(function="json:dumps").packages == ()  # of the standard library
    assert Python.Options(function="trl.rewards:f").packages == ("trl",)


def test_what_is_installed_is_read_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Mock(side_effect=importlib.metadata.packages_distributions)
    monkeypatch.setattr(importlib.metadata, "packages_distributions", read)
    monkeypatch.syspath_prepend(tmp_path)
    names = ("trl.rewards:f", "json:dumps", "late:f")
    assert [Python.Options(function=name).packages for name in names] == [("trl",), (), ()]
    assert Python.Options(path="a.py", function="f").packages == () and read.call_count == 1
    made = tmp_path / "late_pack-1.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Name: late-pack\nVersion: 1\n")
    (made / "top_level.txt").write_text("late\n")
    assert Python.Options(function="late:f").packages == ("late-pack",)


def test_python_files_of_one_name_do_not_mix(tmp_path: Path) -> None:
    found = []
    for number in (1, 2):
        file = tmp_path / str(number) / "reward.py"
        file.parent.mkdir()
        file.write_text(f"def f(completions): return [{number}] * len(completions)")
        found.append(Python(Python.Options(path=file, function="f")))
        found[-1].check(tmp_path)
    assert [thing.score(GROUPS[1:]) for thing in found] == [[1.0], [2.0]]
    # Pickling looks a function up by its module's name.
    assert all(sys.modules[thing._call.__module__].f is thing._call for thing in found)


def test_a_function_for_lists_of_messages_hears_of_the_key(python: Callable[..., Python]) -> None:
    thing = python("def reward(completions): return [len(x[0]['content']) for x in completions]")
    with pytest.raises(RunFailed, match=r"string indices(?s:.*)help: .*'conversational: true'"):
        thing.score(GROUPS)
    thing = python("def reward(prompt, completion): return [1.0]")
    with pytest.raises(DataError, match=r"the argument 'prompt'(?s:.*)did you mean 'prompts'\?"):
        thing.check_prompts(GROUPS)


TRIED = yaml.safe_load(r"""
- ["[len(x[0]['content']) for x in completions]", false, "string indices(?s:.*)'conversational: true'"]
- ["[len(x.strip()) for x in completions]", true, "strip(?s:.*)'conversational: false'"]
""")


@pytest.mark.parametrize(("scores", "conversational", "message"), TRIED)
def test_a_check_finds_the_form_that_a_function_expects(
    scores: str, conversational: bool, message: str, python: Callable[..., Python]
) -> None:
    source = f"def reward(completions): return {scores}"
    with pytest.raises(DataError, match=message):
        python(source, conversational=conversational).check_prompts(GROUPS)
    assert not python(source, conversational=not conversational).check_prompts(GROUPS)


def test_a_check_warns_of_what_fails_in_both_forms(python: Callable[..., Python]) -> None:
    (warning,) = python("def reward(completions): return [None.score]").check_prompts(GROUPS)
    assert "has no attribute 'score' (line 1" in warning and "the answer 'Hello!'" in warning
    assert not python("async def reward(completions): 1 / 0").check_prompts(GROUPS)  # a server's


def test_sums_are_right_by_their_last_number() -> None:
    """The verifiable reward of recipes/sums.yaml."""
    path = Path(__file__).parents[2] / "recipes" / "rewards" / "arithmetic.py"
    correct = runpy.run_path(str(path))["correct"]
    said = [
        "7",
        "3 + 4 = 7.",
        "7 + 4 = 11",
        "The answer is seven",
        "70",
        "It is 7, not 8",
        "",
        "11",
    ]
    assert correct(said, [7] * 7 + [11], id=["x"] * 8) == [1.0] * 2 + [0.0] * 5 + [1.0]


# A reward model, normalized


class Scores(ByRole):
    """Models whose reward model `rm` reads a score from the response's text; None where it says
    so.
    """

    def scores(self, stage: str, groups: Any) -> list[float | None]:
        assert stage == "rm"
        self.asked.append(groups)
        said = [response.text for group in groups for response in group.responses]
        return [None if text == "None" else float(text) for text in said]


def saying(*scores: float | None) -> list[Group]:
    return [Group(ASK, (Response(str(score)),)) for score in scores]


def normalized(
    demos: list[Group], folder: Path, kind: Any = "stage", **options: Any
) -> tuple[Normalized, list[Any]]:
    """The reward, and what its reward model was asked."""
    model, asked = RewardSpec(kind, "rm"), list[Any]()
    thing = Normalized(Normalized.Options(reward_model=model, data="demos", **options))
    thing.check(folder)
    thing.prepare(around(folder, Scores(asked=asked), {"demos": demos}.__getitem__))
    return thing, asked


GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rm_normalize.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["id"])
def test_normalized_matches_the_golden_numbers(case: dict[str, Any], tmp_path: Path) -> None:
    demos, new = (saying(*case["inputs"][name]) for name in ("demo_rewards", "new_rewards"))
    for gain, key in ((False, "new_bias_only"), (True, "new_mean0_var1")):
        thing, asked = normalized(demos, tmp_path, gain=gain)
        found = thing.score(new)
        assert found == pytest.approx(case["expected"][key], rel=1e-9, abs=1e-12)
        known: Any = thing.score(demos)
        assert sum(known) == pytest.approx(0.0, abs=1e-9)
        assert len(asked) == 3  # the demonstrations were scored once, before anything else


def test_normalized_leaves_out_what_could_not_be_scored(tmp_path: Path) -> None:
    thing, _ = normalized(saying(None, 0.0, 5.0, None), tmp_path)
    assert thing.score(saying(2.5, None, 3.5)) == [0.0, None, 1.0]
    for rows in (saying(None, None), []):
        with pytest.raises(RunFailed, match="'rm' could not score any demonstration"):
            normalized(rows, tmp_path)
    with pytest.raises(ValueError, match="expected a stage that trains a reward model"):
        normalized(saying(1.0), tmp_path, kind="reward")
    assert normalized(saying(1.0), tmp_path, kind="folder")[0].score(saying(3.0)) == [2.0]


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_reward_model_that_gives_no_number_stops_the_run(tmp_path: Path, value: str) -> None:
    groups = [Group(ASK, (Response("1"), Response("None"), Response(value)))]
    scorer = Rewards(RewardSpec("stage", "rm"), around(tmp_path, Scores(asked=[])))
    with pytest.raises(RunFailed, match=rf"'rm': .*not {value}"):
        scorer.score(groups)


STAGES = """
liked: {algorithm: reward_model, data: pairs.jsonl, max_steps: 2, learning_rate: 0.01}
seen:  # scores some of the demonstrations before `align` does
  step: evaluate
  policies: [base]
  rewards: [{normalized: {reward_model: liked, data: demos.jsonl}}]
  prompts: prompts.jsonl
  sampling: {max_new_tokens: 4}
align:
  algorithm: ppo
  prompts: prompts.jsonl
  reward: {normalized: {reward_model: liked, data: people.jsonl, gain: true}}
  rollout: {samples_per_prompt: 2, max_new_tokens: 6}
  iterations: 2
  prompts_per_iteration: 2
"""
PEOPLE = demos([f"the old man and his {word}" for word in ("friend", "bread", "sea", "house")])


def recipe_in(folder: Path, people: Any = PEOPLE, **options: Any) -> Path:
    """A recipe whose reward is normalized by these demonstrations."""
    write_rows(folder / "people.jsonl", people)
    stages = yaml.safe_load(STAGES)
    stages["align"]["reward"]["normalized"] |= options
    return write_recipe(folder, stages)


REFERENCES = yaml.safe_load("""
- [{reward_model: likd}, did you mean 'liked']
- [{reward_model: seen}, "'seen' does not train a reward model"]
- [{reward_model: align}, refers to itself]
- [{reward_model: {length: {}}}, expected a stage that trains a reward model]
- [{data: peopel.jsonl}, did you mean 'people.jsonl']
- [{gain: much}, gain]
- [{bias: 1}, bias]
""")


@pytest.mark.parametrize(("options", "message"), REFERENCES)
def test_references_of_a_normalized_reward(options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_in(tmp_path, **options))
    assert message in str(caught.value)


def test_bad_demonstrations_are_told_before_anything_is_trained(tmp_path: Path, said: Said) -> None:
    out = run(recipe_in(tmp_path, [*PEOPLE, {"messages": []}]), code=4)
    assert "people.jsonl:5" in said() and not (out / "liked").exists()


def test_normalized_in_a_run_is_of_the_demonstrations_it_names(tmp_path: Path, said: Said) -> None:
    recipe = recipe_in(tmp_path)
    out = run(recipe)
    models = Run(load_recipe(recipe), out).models

    def raw(groups: list[Group]) -> torch.Tensor:
        return torch.tensor(models["liked"].scores(groups), dtype=torch.float64)

    groups, known = [*chain(*rollouts_of(out / "align"))], raw(PEOPLE)
    assert len(known) == 4 and known.std() > 1e-3
    found = [response.scores for group in groups for response in group.responses]
    assert len(found) == 8 and all(each["normalized"] == each["reward"] for each in found)
    wanted = (raw(groups) - known.mean()) / known.std(correction=0)
    # In float32, and packed otherwise.
    numbers = [each["normalized"] for each in found]
    assert numbers == pytest.approx(wanted.tolist(), rel=1e-4, abs=1e-4)
    # Other demonstrations start the stage over.
    run(recipe_in(tmp_path, PEOPLE[:-1]))
    err = said()
    assert all(f"{name}: unchanged, reused" in err for name in ("liked", "seen"))
    assert "align: changed since the last run" in err and ": the file has changed" in err
