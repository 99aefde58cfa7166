"""Rewards without a model, and their weighted sum."""

import math
import runpy
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit import Context, Group, Response, RunFailed
from alignkit_rewards import Length, Python, WeightedSum

ASK = ({"role": "user", "content": "How are you?"},)
GROUPS = [
    Group(
        prompt=ASK,
        responses=(Response("I am fine"), Response("Fine")),
        meta={"answer": "fine", "level": 3},
        id="p1",
    ),
    Group(prompt=({"role": "user", "content": "Who?"},), responses=(Response("Me"),), meta={"answer": "me"}),
]


def length(groups: list[Group], **options: Any) -> list[float | None]:
    return list(Length(Length.Options(**options)).score(groups)[""])


@pytest.mark.parametrize(("unit", "expected"), [("characters", [9, 4, 2]), ("words", [3, 1, 1])])
def test_length_of_text(unit: str, expected: list[int]) -> None:
    assert length(GROUPS, unit=unit) == expected


def test_length_in_tokens_counts_what_the_policy_wrote() -> None:
    tools = Response("ab", tokens=(5, 6, 7, 2), written=(True, False, False, True))
    assert length([Group(prompt=ASK, responses=(Response("ab", tokens=(5, 6, 2)), tools))]) == [3, 2]


def test_length_in_tokens_needs_tokens() -> None:
    with pytest.raises(RunFailed, match="unit: words"):
        length(GROUPS)


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

    def make(source: str, function: str = "reward", **options: Any) -> Python:
        (tmp_path / "mine.py").write_text(textwrap.dedent(source).lstrip())
        thing = Python(Python.Options(path="mine.py", function=function, **options))
        thing.prepare(Context(models=None, cache=tmp_path, folder=tmp_path, seed=0))  # type: ignore[arg-type]
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
    assert thing._call is not None
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
        "def reward(completions, factor): return [factor * len(c) for c in completions]", kwargs={"factor": 2}
    )
    assert thing.score(GROUPS) == {"": [18.0, 8.0, 4.0]}


def test_python_passes_tokens_where_all_have_them(python: Callable[..., Python]) -> None:
    thing = python("def reward(completion_ids): return [len(ids) for ids in completion_ids]")
    assert thing.score([Group(prompt=ASK, responses=(Response("a", tokens=(1, 2)),))]) == {"": [2.0]}
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
        other = Python(Python.Options(path=thing.file, function=function))
        assert other.score(GROUPS) == {"": expected}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1.0, float('nan'), 2.0]", r"'reward' of mine.py returned nan for completion 1 of 3 \(prompt p1\)"),
        ("return [1.0, 1.0, float('inf')]", "returned inf for completion 2 of 3, expected a finite number"),
        ("return ['1', 1, 1]", "returned '1' for completion 0 of 3"),
        ("return [1, {}, 1]", "returned {} for completion 1 of 3"),
        ("return [1.0, 2.0]", "returned 2 scores for 3 completions"),
        ("return 1.0", "returned 1.0, expected a list of 3 numbers"),
        ("return None", "returned None, expected a list of 3 numbers"),
        ("return 'abc'", "returned 'abc', expected a list"),
        ("return completions[9]", r"raised IndexError: list index out of range \(line 2: return completions\[9\]\)"),
    ],
)
def test_python_failures_name_function_row_and_value(python: Callable[..., Python], body: str, message: str) -> None:
    with pytest.raises(RunFailed, match=message):
        python(f"def reward(completions):\n    {body}").score(GROUPS)


def test_python_failures_show_the_completion(python: Callable[..., Python]) -> None:
    with pytest.raises(RunFailed, match="completion: 'Fine'"):
        python("def reward(completions): return [0, float('nan'), 0]").score(GROUPS)


@pytest.mark.parametrize(
    ("source", "function", "message"),
    [
        ("def other(): pass", "reward", "no function 'reward'; it has: other"),
        ("import nothing_of_this_name", "reward", r"ModuleNotFoundError.*\(line 1: import nothing_of_this_name\)"),
        ("def reward(: pass", "reward", "SyntaxError"),
        ("reward = 3", "reward", "no function 'reward'; it has: none"),
    ],
)
def test_python_fails_before_long_work_starts(
    python: Callable[..., Python], source: str, function: str, message: str
) -> None:
    with pytest.raises(RunFailed, match=message):
        python(source, function)  # in prepare()


def test_python_without_a_file(tmp_path: Path) -> None:
    thing = Python(Python.Options(path=tmp_path / "none.py", function="f"))
    with pytest.raises(RunFailed, match=r"none\.py"):
        thing.score(GROUPS)


def test_python_files_of_one_name_do_not_mix(tmp_path: Path) -> None:
    found = []
    for number in (1, 2):
        file = tmp_path / str(number) / "reward.py"
        file.parent.mkdir()
        file.write_text(f"def f(completions): return [{number}] * len(completions)")
        found.append(Python(Python.Options(path=file, function="f")))
    assert [thing.score(GROUPS[1:])[""] for thing in found] == [[1.0], [2.0]]
    # Pickling looks a function up by its module's name.
    assert [sys.modules[thing._call.__module__].f is thing._call for thing in found if thing._call] == [True] * 2


def test_python_is_not_called_for_nothing(python: Callable[..., Python]) -> None:
    assert python("def reward(completions): 1 / 0").score([Group(prompt=ASK)]) == {"": []}


def weighted_sum(weights: dict[str, float], rewards: list[str]) -> WeightedSum:
    return WeightedSum(WeightedSum.Options(rewards={name: name for name in rewards}, weights=weights))


def test_weighted_sum() -> None:
    thing = weighted_sum({"a": 2.0, "b": -0.5}, ["a", "b"])
    columns = {"a": torch.tensor([1.0, 2.0, math.nan]), "b": torch.tensor([4.0, 0.0, 1.0])}
    combined = thing.combine(GROUPS, {name: x.double() for name, x in columns.items()})
    assert list(thing.parts()) == ["a", "b"]
    assert combined.plain[:2].tolist() == [0.0, 4.0] and combined.plain[2].isnan()
    assert torch.equal(combined.reward[:2], combined.plain[:2])
    assert combined.metrics == pytest.approx({"a_mean": 1.5, "b_mean": 5 / 3, "plain_mean": 2.0})


@pytest.mark.parametrize(
    ("weights", "rewards", "message"),
    [
        ({"a": 1.0}, ["a", "b"], "no weight for b"),
        ({"a": 1.0, "c": 1.0}, ["a"], "a weight for c, which is not among the rewards"),
        ({}, [], "at least 1"),
    ],
)
def test_weighted_sum_names_must_match(weights: dict[str, float], rewards: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weighted_sum(weights, rewards)


def test_sums_are_right_by_their_last_number() -> None:
    """The verifiable reward of recipes/sums.yaml."""
    path = Path(__file__).parent.parent.parent / "recipes" / "rewards" / "arithmetic.py"
    correct = runpy.run_path(str(path))["correct"]
    said = ["7", "3 + 4 = 7.", "7 + 4 = 11", "The answer is seven", "70", "It is 7, not 8", ""]
    assert correct(said, [7] * len(said), id=["x"] * len(said)) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert correct(["11", "7"], [7, 7]) == [0.0, 1.0]
