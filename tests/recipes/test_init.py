"""`alignkit init FILES`: the recipe fits the data, holds out examples, is valid, runs, and replaces
no file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from alignkit import Group, Response
from alignkit.cli import main
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe

ROWS = 60  # of a file: about 12 are held out


def thing(number: int) -> str:
    """Words with a number, so that no two rows are nearly equal."""
    return f"the {number}th of all things"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def demo(number: int) -> Any:
    return {
        "instruction": f"Tell me of {thing(number)}?",
        "output": f"It is all about {thing(number + 700)}.",
    }


def pair(number: int) -> Any:
    return {
        "prompt": f"Why is {thing(number)}?",
        "chosen": f"For {thing(number + 800)}.",
        "rejected": "Who can say?",
    }


def tree(number: int) -> Any:
    replies = [
        {"text": f"Say {thing(number + 90 * place)}.", "role": "assistant", "rank": place}
        for place in range(3)
    ]
    return {"prompt": {"text": f"What is {thing(number)}?", "role": "prompter", "replies": replies}}


def votes(number: int) -> Any:
    asked = {
        "instruction": f"Sort {thing(number)}.",
        "input": "",
        "response1": f"So, {thing(number + 600)}.",
    }
    labels = {"annotator1": 1, "annotator2": 1, "annotator3": 2}
    return {**asked, "response2": f"No, {thing(number + 1000)}.", **labels}


def labeled(number: int) -> Any:
    turns = [user(f"How is {thing(number)}?"), said(f"As {thing(number + 900)}.")]
    return {"messages": turns, "label": number % 2 == 0}


def solved(number: int) -> Any:
    return {
        "question": f"How many of {thing(number)}, times {number}?",
        "answer": f"2 x {number}\n#### {2 * number}",
    }


def sum_of(number: int) -> Any:
    return {
        "question": f"What is {number} + {number + 3}, said {thing(number)}?",
        "answer": 2 * number + 3,
    }


def prompt(number: int) -> Any:
    return f"Talk about {thing(number + 300)}."


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a file of rows, and returns its name, by which the current folder has it."""
    monkeypatch.chdir(tmp_path)

    def written(name: str, row: Callable[[int], Any], rows: Iterable[int] = range(ROWS)) -> str:
        Path(name).write_text(
            "".join(json.dumps(row(number)) + "\n" for number in rows), encoding="utf-8"
        )
        return name

    return written


def made(*words: str) -> Recipe:
    """The recipe that `init` writes, which two checks accept."""
    assert main(["init", "new", *words]) == 0
    assert main(["check", "new/recipe.yaml", "model.base=tiny"]) == 0
    return load_recipe(Path("new/recipe.yaml"))


def kinds(recipe: Recipe) -> dict[str, str]:
    """The algorithms and steps of the stages, by name."""
    return {name: stage.component.name for name, stage in recipe.stages.items()}


def part(spec: Any) -> Any:
    """The share of the conversations that a data entry reads, the same in all its sources."""
    (share,) = {source.part for source in spec.sources}
    return share


@pytest.mark.parametrize(
    ("files", "stages", "answer"),
    [
        ([demo], {"sft": "sft"}, "loss and accuracy of the next tokens of held-out demonstrations"),
        (
            [pair],
            {"align": "dpo"},
            "the share of the held-out pairs that `align` gets right, within 2",
        ),
        (
            [tree],
            {"align": "dpo"},
            "the share of the held-out pairs that `align` gets right, within 2",
        ),
        ([votes], {"align": "dpo"}, "the share of the held-out pairs"),
        ([labeled], {"align": "kto"}, "the loss of good held-out responses"),
        ([pair, demo], {"sft": "sft", "align": "dpo"}, "against `sft` and the base model"),
        (
            [sum_of],
            {"align": "grpo"},
            "the share of the held-out questions that `align` gets right, within 2",
        ),
        ([solved], {"sft": "sft", "align": "grpo"}, "against `sft` and the base model"),
        (
            [prompt, pair],
            {"reward": "reward_model", "align": "ppo"},
            "how the reward model that it learned from scores",
        ),
        (
            [prompt, pair, demo],
            {"sft": "sft", "reward": "reward_model", "align": "ppo"},
            "`sft` and the base model",
        ),
    ],
)
def test_the_recipe_answers_what_the_data_can(
    files: list[Callable[[int], Any]],
    stages: dict[str, str],
    answer: str,
    write: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = made(*(write(f"{row.__name__}.jsonl", row) for row in files))
    lines = capsys.readouterr().out.splitlines()
    assert kinds(recipe) == stages | {"report": "evaluate"}
    assert [line.partition(":")[0] for line in lines[1:5]] == ["read", "held out", "answer", "next"]
    assert answer in lines[3] and "about a fifth of the conversations" in lines[2]
    report: Any = recipe.stages["report"].component.options
    assert report.policies == ["base", *(name for name in ("sft", "align") if name in stages)]
    assert part(report.prompts) == (0, 0.2) and report.sampling.temperature == 0.7
    for name in stages:
        settings = recipe.stages[name].settings
        assert settings is not None and part(settings.data or settings.prompts) == (0.2, 1)
        assert settings.prompts or part(settings.validation) == (0, 0.2)


@pytest.mark.parametrize("goal", ["align", "reward"])
def test_many_pairs_are_halved_and_a_reward_model_judges_what_learned_from_the_others(
    goal: str, write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    others = [write("prompts.jsonl", prompt)] if goal == "reward" else []
    recipe = made(write("pairs.jsonl", pair, range(300)), *others)
    assert " for `gold`, a reward model that judges `align`" in capsys.readouterr().out
    settings = {
        name: stage.settings for name, stage in recipe.stages.items() if stage.settings is not None
    }
    assert part(settings[goal].data) == (0.2, 0.6) and part(settings["gold"].data) == (0.6, 1)
    report: Any = recipe.stages["report"].component.options
    assert [measure.reward.name for measure in report.metrics.values()] == ["gold"]
    assert report.examples is None if goal == "reward" else part(report.examples) == (0, 0.2)
    seen = {
        source: {group.id for group in read(source)} for source in ((0, 0.2), (0.2, 0.6), (0.6, 1))
    }
    assert sum(map(len, seen.values())) == len(set().union(*seen.values())) == 300


def read(share: tuple[float, float]) -> list[Any]:
    """The pairs in a share."""
    from alignkit.runs.fingerprint import RunData
    from alignkit_plugins.entries import data_of

    return (
        RunData(Path, 0)
        .read(data_of({"path": "pairs.jsonl", "part": list(share)}, "alignkit init"))
        .groups
    )


def test_the_lines_count_what_the_stages_read(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    made(write("pairs.jsonl", pair, range(300)))
    out = capsys.readouterr().out
    assert "read: pairs.jsonl as 300 conversations, 300 pairs (preference)" in out
    assert (
        f"about a fifth of the conversations, {len(read((0, 0.2)))} pairs; and "
        f"{len(read((0.6, 1)))} pairs for `gold`" in out
    )
    assert f"within {round(98 / len(read((0, 0.2))) ** 0.5)} points" in out
    assert "# read: pairs.jsonl as 300 conversations, 300 pairs" in Path(
        "new/recipe.yaml"
    ).read_text(encoding="utf-8")


def test_the_pairs_of_a_ranking_count_and_its_prompt_is_exact(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    made("pairs=" + write("pairs.jsonl", tree))
    out, held = capsys.readouterr().out, len(read((0, 0.2)))
    assert (
        "pairs.jsonl as 60 conversations, 180 pairs (oasst)" in out
        and f"conversations, {3 * held} pairs" in out
    )
    assert f"within {round(98 / held**0.5)} points" in out


def test_answers_to_one_prompt_are_one_conversation(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    made(
        write(
            "pairs.jsonl",
            lambda number: {**pair(number), "prompt": f"Why is {thing(number // 3)}?"},
        )
    )
    asked = len({group.prompt[0]["content"] for group in read((0, 0.2))})
    assert f"within {round(98 / asked**0.5)} points" in capsys.readouterr().out


def test_a_tree_as_demonstrations_is_what_its_single_replies_are(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    def some(number: int) -> Any:
        row = tree(number)
        del row["prompt"]["replies"][number % 3 :]
        return row if number % 3 else tree(number)

    path = write("trees.jsonl", some)
    assert kinds(made("demos=" + path))["sft"] == "sft"
    assert (
        "dropped of trees.jsonl: bad rows, 40; the first is trees.jsonl:1: the row has 3"
        in capsys.readouterr().out
    )
    assert main(["init", "all", "demos=" + write("ranked.jsonl", tree)]) == 4
    assert (
        "but the file holds pairs of a better and a worse response (format oasst)"
        in capsys.readouterr().err
    )


def test_a_large_file_is_limited_to_ten_minutes(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    def long(number: int) -> Any:
        return {
            **demo(number),
            "output": " ".join(thing(number * 7 + place) for place in range(80)),
        }

    recipe = made(write("demos.jsonl", long, range(400)))
    settings: Any = recipe.stages["sft"].settings
    limit = settings.data.sources[0].limit
    rows = Path("demos.jsonl").read_text(encoding="utf-8").splitlines()[:limit]
    texts = ("".join(json.loads(row).values()) for row in rows)
    assert 0.9 < sum(map(len, texts)) / 360_000 < 1.1
    assert f", of its first {limit} rows" in capsys.readouterr().out
    assert "To use all rows, remove it everywhere." in Path("new/recipe.yaml").read_text(
        encoding="utf-8"
    )


def test_responses_have_room(write: Callable[..., str]) -> None:
    def long(number: int) -> Any:
        return {
            "question": f"How many of {thing(number)}?",
            "answer": "Count. " * 55 + f"\n#### {number}",
        }

    recipe = made(write("sums.jsonl", long))
    settings: Any = recipe.stages["align"].settings
    report: Any = recipe.stages["report"].component.options
    assert settings.rollout.max_new_tokens == report.sampling.max_new_tokens == 160
    assert settings.iterations == 4


def test_held_out_examples_that_repeat_others_are_dropped(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every row has a near double with another beginning, which puts it anywhere."""

    def doubled(number: int) -> Any:
        text = (
            f"I would like to know all of it, so why is {thing(number // 2)}, and "
            f"{thing(number // 2 + 500)}?"
        )
        return {**pair(number), "prompt": text if number % 2 else f"Now {text}"}

    recipe = made(write("pairs.jsonl", doubled, range(100)))
    out = capsys.readouterr().out
    assert " of them dropped, as they repeat others)" in out
    assert next(iter(kinds(recipe).items())) == ("held_out_pairs", "clean")
    settings: Any = recipe.stages["align"].settings
    report: Any = recipe.stages["report"].component.options
    for spec in (settings.validation, report.prompts, report.examples):
        assert [source.stage for source in spec.sources] == ["held_out_pairs"]
    assert main(["run", "new/recipe.yaml", "model.base=tiny", "--out", "run"]) == 0
    summary = json.loads(Path("run/held_out_pairs/stage.json").read_text(encoding="utf-8"))[
        "summary"
    ]
    assert f"({summary['rows'] - summary['kept']} of them dropped" in out


@pytest.mark.parametrize(
    ("answers", "reward"),
    [
        (lambda number: f"{number}.5", "exact_match"),
        (lambda number: "ABCD"[number % 4], "exact_match"),
        (lambda number: f"\\frac{{{number}}}{{7}}", "math_verify"),
    ],
)
def test_answers_that_can_be_checked_are_recognized(
    answers: Callable[[int], str], reward: str, write: Callable[..., str]
) -> None:
    if reward == "math_verify":
        pytest.importorskip("math_verify")
    recipe = made(
        write(
            "q.jsonl", lambda number: {"problem": f"Of {thing(number)}?", "answer": answers(number)}
        )
    )
    settings: Any = recipe.stages["align"].settings
    assert kinds(recipe)["align"] == "grpo" and settings.reward.name == reward


@pytest.mark.parametrize("answer", ["42", "1,234", "-5", "0.75", "1/2", ".5"])
def test_the_reward_of_the_recipe_finds_the_number_in_a_sentence(
    answer: str, write: Callable[..., str]
) -> None:
    recipe = made(
        write("q.jsonl", lambda number: {"problem": f"Of {thing(number)}?", "answer": answer})
    )
    settings: Any = recipe.stages["align"].settings
    component = settings.reward.component
    reward = component.registration.implementation(component.options)
    said = [f"First 7, so it is {answer}.", "It is 43.", f"**{answer}**"]
    group = Group(
        ({"role": "user", "content": "?"},), tuple(map(Response, said)), meta={"answer": answer}
    )
    assert [list(scores) for scores in reward.score([group]).values()] == [[1.0, 0.0, 1.0]]


def test_a_solution_next_to_the_answer_is_learned_first(write: Callable[..., str]) -> None:
    def row(number: int) -> Any:
        return {
            "problem": f"Of {thing(number)}?",
            "answer": str(number),
            "solution": f"I count {thing(number + 500)}.",
        }

    recipe = made(write("q.jsonl", row))
    settings: Any = recipe.stages["sft"].settings
    assert kinds(recipe) == {"sft": "sft", "align": "grpo", "report": "evaluate"}
    assert settings.data.sources[0].columns == {"prompt": "problem", "completion": "solution"}


def test_answers_in_words_need_an_option(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(
        "q.jsonl",
        lambda number: {"question": f"Who is {thing(number)}?", "answer": f"Ann {thing(number)}"},
    )
    assert kinds(made(path))["sft"] == "sft"
    Path("new/recipe.yaml").unlink()
    assert kinds(made("known-answers=" + path)) == {"align": "grpo", "report": "evaluate"}
    assert "60 prompts with a known answer (prompt_only)" in capsys.readouterr().out


def test_a_question_without_an_answer_is_told(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(
        "q.jsonl", lambda number: sum_of(number) | ({"answer": None} if number == 7 else {})
    )
    assert main(["init", "new", path]) == 4
    assert "q.jsonl:8" in capsys.readouterr().err and not Path("new").exists()


def test_files_of_one_kind_are_read_together(write: Callable[..., str]) -> None:
    recipe = made(write("a.jsonl", demo, range(30)), write("b.jsonl", demo, range(30, 60)))
    settings: Any = recipe.stages["sft"].settings
    assert [source.path.name for source in settings.data.sources] == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([prompt], "prompts need pairs"),
        (
            [sum_of, pair],
            "questions with a known answer and pairs of a better and a worse response need a "
            "recipe each",
        ),
        (
            [labeled, pair],
            "pairs of a better and a worse response and responses with a label, good or bad need "
            "a recipe",
        ),
    ],
)
def test_files_that_answer_no_question_or_several(
    files: list[Callable[[int], Any]],
    said: str,
    write: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["init", "new", *(write(f"{row.__name__}.jsonl", row) for row in files)]) == 2
    assert said in capsys.readouterr().err and not Path("new").exists()


def test_the_first_file_needs_no_folder(write: Callable[..., str]) -> None:
    assert main(["init", write("a.jsonl", demo), write("b.jsonl", pair)]) == 0
    assert kinds(load_recipe(Path("recipe.yaml"))) == {
        "sft": "sft",
        "align": "dpo",
        "report": "evaluate",
    }
    assert "data: {path: a.jsonl, part: [0.2, 1]}" in Path("recipe.yaml").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("files", [[demo, pair], [solved], [labeled]])
def test_a_recipe_runs_and_ends_in_its_answer(
    files: list[Callable[[int], Any]], write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    made(*(write(f"{row.__name__}.jsonl", row) for row in files))
    quick = ["model.base=tiny", "model.lora.r=2"]
    if solved in files:  # of which a random model gets none right
        quick += ["stages.align.iterations=1", "stages.align.reward={length: {unit: characters}}"]
    assert main(["run", "new/recipe.yaml", *quick, "--out", "run"]) == 0
    found = json.loads(Path("run/report/evaluation.json").read_text(encoding="utf-8"))
    first = {"demo": "pairs right", "solved": "right", "labeled": "next tokens right"}[
        files[0].__name__
    ]
    assert found["headline"] == first
