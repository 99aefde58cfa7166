"""On-policy distillation: advantages and gradient by hand, and students that end at their teacher's
distribution.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from alignkit import Group, Message, RecipeError, Skip
from alignkit.recipe.load import load_recipe
from alignkit_plugins.algorithms.distillation import Distillation
from tests.by_hand import batch, close, double, gradient, loss_of, new, random_batch
from tests.net.test_optimum import check, make, rollout, train, write_prompts
from tests.rows import assistant, read_rows, user, write_recipe

CONTEXT = [user("2 + 2"), assistant("4")]


def test_advantages_are_log_ratios_of_the_teacher() -> None:
    given = batch([[1, 1], [1, 0]], old_logprobs=double([[-1.0, -2.0], [-0.5, 9.0]]))
    given.reference_logprobs = double([[-0.4, -3.0], [-2.5, float("nan")]])
    algorithm = new(Distillation)
    close(algorithm.signal(given)["advantages"], [[0.6, -1.0], [-2.0, 0.0]])
    assert algorithm.metrics["teacher_kl"] == pytest.approx((-0.6 + 1.0 + 2.0) / 3)


def test_the_gradient_is_that_of_the_reverse_kl_on_its_own_samples() -> None:
    """Mean over tokens of -ratio A, where the clipping is not active: the policy has not moved."""
    given, _ = random_batch(3)
    algorithm = new(Distillation)
    given.signals = dict(algorithm.signal(given))
    logprobs = given.old_logprobs.clone().requires_grad_()
    found = gradient(loss_of(algorithm, given, logprobs=logprobs), logprobs)
    gap = given.old_logprobs - given.reference_logprobs
    close(found, gap * given.mask / given.mask.sum())


def test_a_teacher_that_agrees_teaches_nothing() -> None:
    same = double([[-1.0, -2.0]])
    skip = new(Distillation).signal(
        batch([[1, 1]], old_logprobs=same, reference_logprobs=same.clone())
    )
    assert isinstance(skip, Skip) and "reference" in skip.reason
    less = batch([[1, 1]], old_logprobs=same, reference_logprobs=same - 1)
    assert not isinstance(new(Distillation).signal(less), Skip)


def test_the_context_is_read_before_the_prompt_and_after_a_system_message() -> None:
    system, one = Message(role="system", content="Be brief."), user("1")
    algorithm = new(Distillation, context=CONTEXT)
    assert list(algorithm.reference_prompt(Group((one,)))) == [*CONTEXT, one]
    assert list(algorithm.reference_prompt(Group((system, one)))) == [system, *CONTEXT, one]
    assert new(Distillation).reference_prompt(Group((system, one))) == (system, one)


# What students learn, on answers few enough to enumerate


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_policy_learns_what_it_says_after_a_context(tmp_path: Path) -> None:
    problem = make(tmp_path, "abcdef", 1)
    question, end, a, b = 2, 1, 3, 4
    wanted = problem.distribution(problem.base, (question, b, a, a, end, question))
    student = yaml.safe_load("""
    algorithm:
      distillation: {context: [{role: user, content: "?"}, {role: assistant, content: b a a}]}
    iterations: 30
    prompts_per_iteration: 4
    batch_size: 4
    epochs: 2
    learning_rate: 0.005
    optimizer: {adamw: {betas: [0.5, 0.9], max_grad_norm: 10.0}}
    """)
    student |= {"prompts": write_prompts(problem, 8), "rollout": rollout(problem, 64)}
    check(train(problem, student=student), wanted, problem.reference)


# Recipes

# A stage, and the place of its error; "" where teacher and student differ
TEACHERS = yaml.safe_load("""
- [{}, "student:"]
- [{from: first}, "student:"]
- [{from: first, reference: first}, first]
- [{reference: base}, base]
- [{reference: first}, ""]
- [{from: first, reference: base}, ""]
- [{from: first, algorithm: {distillation: {context: [{role: user, content: 2 + 2}]}}}, ""]
""")


def test_a_teacher_that_is_the_student_is_refused(tmp_path: Path) -> None:
    first = {"algorithm": "sft", "data": "demos.jsonl"}
    for more, marked in TEACHERS:
        student = {"algorithm": "distillation", "prompts": "demos.jsonl", **more}
        path = write_recipe(tmp_path, {"first": first, "student": student})
        try:
            load_recipe(path)
        except RecipeError as error:
            assert "reference differs" in str(error)
            assert [p.source[p.column - 1 :] for p in error.problems] == [marked]
        else:
            assert not marked


def test_the_recipes_teacher_reads_the_context_that_its_report_uses() -> None:
    """Held-out prompts of the teacher's report are those of the student's with the recipe's context
    in front.
    """
    recipes = Path(__file__).parents[2] / "recipes"
    stages = yaml.safe_load((recipes / "distillation.yaml").read_text(encoding="utf-8"))["stages"]
    context = stages["student"]["algorithm"]["distillation"]["context"]
    teacher, report = (
        read_rows(recipes / stages[name]["prompts"]) for name in ("teacher", "report")
    )
    assert teacher == [{**row, "prompt": [*context, *row["prompt"]]} for row in report]
    shown = {turn["content"] for turn in context}
    assert not shown & {turn["content"] for row in report for turn in row["prompt"]}
