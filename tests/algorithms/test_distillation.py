"""On-policy distillation: advantages and gradient by hand, and students that end at their teacher's
distribution.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from alignkit import Group, Message, Outputs, RecipeError, Skip
from alignkit import functional as F
from alignkit.recipe.load import load_recipe
from alignkit.testing import check_algorithm
from alignkit_plugins.algorithms.distillation import Distillation
from tests.by_hand import averaged, batch, close, double, new, random_batch
from tests.net.test_optimum import (
    Problem,
    check,
    make,
    rollout,
    total_variation,
    train,
    write_prompts,
    write_reward,
)

CONTEXT = [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]


@pytest.mark.parametrize("options", [{}, {"context": CONTEXT}], ids=["plain", "context"])
def test_it_conforms(options: dict[str, Any]) -> None:
    check_algorithm(Distillation, options)


def test_advantages_are_log_ratios_of_the_teacher() -> None:
    given = batch([[1, 1], [1, 0]], old_logprobs=double([[-1.0, -2.0], [-0.5, 9.0]]))
    given.reference_logprobs = double([[-0.4, -3.0], [-2.5, float("nan")]])
    algorithm = new(Distillation)
    signal = algorithm.signal(given)
    assert not isinstance(signal, Skip)
    close(signal["advantages"], [[0.6, -1.0], [-2.0, 0.0]])
    assert algorithm.metrics["teacher_kl"] == pytest.approx((-0.6 + 1.0 + 2.0) / 3)


def test_the_gradient_is_that_of_the_reverse_kl_on_its_own_samples() -> None:
    """Mean over tokens of -ratio A, where the clipping is not active: the policy has not moved."""
    given, _ = random_batch(3)
    algorithm = new(Distillation)
    signal = algorithm.signal(given)
    assert not isinstance(signal, Skip)
    given.signals = dict(signal)
    logprobs = given.old_logprobs.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(
        averaged(algorithm, [(given, Outputs(logprobs=logprobs))]), logprobs
    )
    wanted = (given.old_logprobs - given.reference_logprobs) * given.mask / given.mask.sum()
    close(found, wanted)


def test_a_teacher_that_agrees_teaches_nothing() -> None:
    given = batch(
        [[1, 1]], old_logprobs=double([[-1.0, -2.0]]), reference_logprobs=double([[-1.0, -2.0]])
    )
    skip = new(Distillation).signal(given)
    assert isinstance(skip, Skip) and "name another `reference`, or set `context`" in skip.reason


def test_the_context_is_read_before_the_prompt_and_after_a_system_message() -> None:
    said = [Message(role="system", content="Be brief."), Message(role="user", content="1 + 1")]
    algorithm, context = new(Distillation, context=CONTEXT), [Message(**turn) for turn in CONTEXT]
    assert list(algorithm.reference_prompt(Group((said[1],)))) == [*context, said[1]]
    assert list(algorithm.reference_prompt(Group(tuple(said)))) == [said[0], *context, said[1]]
    assert algorithm.reference_prompt(Group(tuple(said))) != tuple(said)
    assert new(Distillation).reference_prompt(Group(tuple(said))) == tuple(said)


@pytest.mark.parametrize(
    "turn", [{"role": "tool", "content": "4"}, {"role": "user"}, {"role": "user", "text": "4"}]
)
def test_a_context_must_hold_messages(turn: Mapping[str, str]) -> None:
    with pytest.raises(ValidationError, match="context"):
        Distillation.Options(context=[turn])


# --- what students learn, on answers few enough to enumerate


STAGE: dict[str, Any] = {
    "iterations": 30,
    "prompts_per_iteration": 4,
    "batch_size": 4,
    "epochs": 2,
    "learning_rate": 5e-3,
    "optimizer": {"adamw": {"betas": [0.5, 0.9], "max_grad_norm": 10.0}},
}


@pytest.mark.usefixtures("one_thread")
def test_the_student_reaches_the_teachers_distribution(tmp_path: Path) -> None:
    problem = make(tmp_path, "ab", 3)
    prompts = write_prompts(problem, 8)
    teacher = {
        **STAGE,
        "algorithm": {"rloo": {"kl_coefficient": 0.5}},
        "prompts": prompts,
        "reward": write_reward(problem),
        "rollout": rollout(problem, 16),
        "iterations": 8,
    }
    student = {
        **STAGE,
        "algorithm": "distillation",
        "from": "base",
        "reference": "teacher",
        "prompts": prompts,
        "rollout": rollout(problem, 64),
    }
    found = train(problem, teacher=teacher, student=student)
    check(found, problem.distribution(problem.folder / "run/teacher/adapter"), problem.reference)


def after(problem: Problem, ids: list[int]) -> Tensor:
    """P(answer | these tokens) by the base model."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(problem.base, dtype=torch.float64).eval()
    rows = torch.tensor([(*ids, *problem.ids(answer)) for answer in problem.answers])
    with torch.no_grad():
        logprobs = F.token_logprobs(model(input_ids=rows).logits[:, :-1], rows[:, 1:])
    return logprobs[:, len(ids) - 1 :].sum(-1).exp()


@pytest.mark.usefixtures("one_thread")
def test_a_policy_learns_what_it_says_after_a_context(tmp_path: Path) -> None:
    problem = make(tmp_path, "abcdef", 1)
    question, end, a, b = 2, 1, 3, 4
    wanted = after(problem, [question, b, a, a, end, question])
    assert total_variation(after(problem, [question]), problem.reference) < 1e-9
    context = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "b a a"}]
    student = {
        **STAGE,
        "algorithm": {"distillation": {"context": context}},
        "prompts": write_prompts(problem, 8),
        "rollout": rollout(problem, 64),
    }
    check(train(problem, student=student), wanted, problem.reference)


# --- the recipe

FIRST = {"algorithm": "sft", "data": "demos.jsonl"}
STUDENT: dict[str, Any] = {"algorithm": "distillation", "prompts": "demos.jsonl"}
SAME: dict[str, tuple[dict[str, Any], str]] = {
    "no teacher": ({}, "student:"),
    "no teacher of another start": ({"from": "first"}, "student:"),
    "its own start": ({"from": "first", "reference": "first"}, "first"),
    "the base itself": ({"reference": "base"}, "base"),
}


def recipe_of(folder: Path, **student: Any) -> Path:
    (folder / "demos.jsonl").write_text(
        '{"prompt": "is it?", "completion": "yes"}\n', encoding="utf-8"
    )
    recipe = {"model": {"base": "tiny"}}
    recipe["stages"] = {"first": FIRST, "student": STUDENT | student}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return folder / "recipe.yaml"


@pytest.mark.parametrize("case", SAME)
def test_a_teacher_that_is_the_student_is_refused(tmp_path: Path, case: str) -> None:
    more, place = SAME[case]
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_of(tmp_path, **more))
    (problem,) = caught.value.problems
    wanted = (
        "distillation learns from where its reference differs from the policy's start, but both "
        "are the same"
    )
    assert problem.message == wanted and problem.source[problem.column - 1 :] == place
    assert "as in 'reference: STAGE'" in problem.help


@pytest.mark.parametrize(
    "more",
    [
        {"reference": "first"},
        {"from": "first", "reference": "base"},
        {"from": "first", "algorithm": {"distillation": {"context": CONTEXT}}},
    ],
)
def test_teachers_that_differ(tmp_path: Path, more: dict[str, Any]) -> None:
    assert load_recipe(recipe_of(tmp_path, **more)).stages["student"].needs is not None


def test_the_recipes_teacher_reads_the_context_that_its_report_uses() -> None:
    """Held-out prompts of the teacher's report are those of the student's with the recipe's context
    in front.
    """
    recipes = Path(__file__).parent.parent.parent / "recipes"
    recipe = yaml.safe_load((recipes / "distillation.yaml").read_text(encoding="utf-8"))
    context = recipe["stages"]["student"]["algorithm"]["distillation"]["context"]

    def rows(name: str) -> list[Any]:
        lines = (
            (recipes / recipe["stages"][name]["prompts"]).read_text(encoding="utf-8").splitlines()
        )
        return [json.loads(line) for line in lines]

    wanted = [{**row, "prompt": [*context, *row["prompt"]]} for row in rows("report")]
    assert rows("teacher") == wanted
    shown = {turn["content"] for turn in context}
    assert not shown & {turn["content"] for row in rows("report") for turn in row["prompt"]}
