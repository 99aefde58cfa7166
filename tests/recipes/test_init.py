"""`alignkit init FILES`: the recipe fits the data, holds out examples, is valid, runs, and replaces
no file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from alignkit import Group, Response
from alignkit.cli import main
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe
from alignkit.runs.fingerprint import RunData
from alignkit_plugins.entries import data_of
from tests.rows import user

# A row for each number n: `<n>` are words with it, so that no two rows are nearly equal, `<#>` is
# it, and `<even>` whether it is even.
DEMO = '{"instruction": "Tell me of <n>?", "output": "It is all about <n+700>."}'
PAIR = '{"prompt": "Why is <n>?", "chosen": "For <n+800>.", "rejected": "Who can say?"}'
REPLY = '{"text": "Say <n+%d>.", "role": "assistant", "rank": %d}'
REPLIES = ", ".join(REPLY % (90 * rank, rank) for rank in range(3))
TREE = '{"prompt": {"text": "What is <n>?", "role": "prompter", "replies": [' + REPLIES + "]}}"
VOTES = (
    '{"instruction": "Sort <n>.", "input": "", "response1": "So, <n+600>.", "response2": '
    '"No, <n+1000>.", "annotator1": 1, "annotator2": 1, "annotator3": 2}'
)
LABELED = (
    '{"messages": [{"role": "user", "content": "How is <n>?"}, '
    '{"role": "assistant", "content": "As <n+900>."}], "label": <even>}'
)
SOLVED = '{"question": "How many of <n>, times <#>?", "answer": "2 x <#>\\n#### <#>"}'
SUM = '{"question": "What is <#> + 3, said <n>?", "answer": <#>}'
PROMPT = '"Talk about <n+300>."'
NAMED = '{"question": "Who is <n>?", "answer": "Ann <n>"}'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def filled(row: str, number: int) -> str:
    row = row.replace("<#>", str(number)).replace("<even>", str(number % 2 == 0).lower())
    return re.sub(r"<n\+?(\d*)>", lambda at: f"the {number + int(at[1] or 0)}th of all things", row)


def write(name: str, row: str, numbers: Iterable[int] = range(60)) -> str:
    """Write a file of rows; about 12 of 60 are held out."""
    text = "".join(filled(row, number) + "\n" for number in numbers)
    Path(name).write_text(text, encoding="utf-8")
    return name


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


def settings(recipe: Recipe, stage: str) -> Any:
    return recipe.stages[stage].settings


def options(recipe: Recipe, stage: str = "report") -> Any:
    return recipe.stages[stage].component.options


def read(low: float, high: float) -> list[Group]:
    """The pairs in a share."""
    entry = data_of({"path": "pairs.jsonl", "part": [low, high]}, "alignkit init")
    return RunData(Path, 0).read(entry).groups


@pytest.mark.parametrize(
    ("files", "stages", "answer"),
    [
        ([DEMO], "sft: sft", "next tokens of held-out demonstrations"),
        ([PAIR], "align: dpo", "held-out pairs that `align` gets right, within 2"),
        ([TREE], "align: dpo", "held-out pairs that `align` gets right, within 2"),
        ([VOTES], "align: dpo", "held-out pairs"),
        ([LABELED], "align: kto", "loss of good held-out responses"),
        ([PAIR, DEMO], "sft: sft, align: dpo", "against `sft` and the base model"),
        ([SUM], "align: grpo", "held-out questions that `align` gets right, within 2"),
        ([SOLVED], "sft: sft, align: grpo", "against `sft` and the base model"),
        ([PROMPT, PAIR], "reward: reward_model, align: ppo", "how the reward model"),
        (
            [PROMPT, PAIR, DEMO],
            "sft: sft, reward: reward_model, align: ppo",
            "`sft` and the base model",
        ),
    ],
)
def test_the_recipe_answers_what_the_data_can(
    files: list[str], stages: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = made(*(write(f"{number}.jsonl", row) for number, row in enumerate(files)))
    lines = capsys.readouterr().out.splitlines()
    expected = dict(stage.split(": ") for stage in stages.split(", "))
    assert kinds(recipe) == expected | {"report": "evaluate"}
    assert [line.partition(":")[0] for line in lines[1:5]] == ["read", "held out", "answer", "next"]
    assert answer in lines[3] and "about a fifth of the conversations" in lines[2]
    report = options(recipe)
    policies = ["base", *(name for name in ("sft", "align") if name in expected)]
    assert report.policies == policies
    assert part(report.prompts) == (0, 0.2) and report.sampling.temperature == 0.7
    for name in expected:
        stage = settings(recipe, name)
        assert part(stage.data or stage.prompts) == (0.2, 1)
        assert stage.prompts or part(stage.validation) == (0, 0.2)


@pytest.mark.parametrize("goal", ["align", "reward"])
def test_many_pairs_are_halved_and_a_reward_model_judges_what_learned_from_the_others(
    goal: str, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [write("prompts.jsonl", PROMPT)] if goal == "reward" else []
    recipe = made(write("pairs.jsonl", PAIR, range(300)), *others)
    held_out, learned, judged = shares = [read(0, 0.2), read(0.2, 0.6), read(0.6, 1)]
    assert len({group.id for share in shares for group in share}) == sum(map(len, shares)) == 300
    assert part(settings(recipe, goal).data) == (0.2, 0.6) and learned
    assert part(settings(recipe, "gold").data) == (0.6, 1)
    report = options(recipe)
    assert [measure.reward.name for measure in report.metrics.values()] == ["gold"]
    assert report.examples is None if goal == "reward" else part(report.examples) == (0, 0.2)
    out = capsys.readouterr().out
    assert " for `gold`, a reward model that judges `align`" in out
    if goal == "align":
        said = "read: pairs.jsonl as 300 conversations, 300 pairs"
        assert said in out and f"# {said}" in Path("new/recipe.yaml").read_text(encoding="utf-8")
        assert f"{len(held_out)} pairs; and {len(judged)} pairs for `gold`" in out
        assert f"within {round(98 / len(held_out) ** 0.5)} points" in out


@pytest.mark.parametrize(
    ("row", "pairs", "rows_of_a_prompt"),
    [(TREE, 3, 1), (PAIR.replace("<n>", "<n/3>"), 1, 3)],
)
def test_what_counts_are_prompts_and_the_pairs_of_a_ranking(
    row: str, pairs: int, rows_of_a_prompt: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers to one prompt are one conversation."""
    lines = [
        filled(row.replace("<n/3>", f"the {number // 3}th"), number) + "\n" for number in range(60)
    ]
    Path("pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    made("pairs=pairs.jsonl")
    out, held = capsys.readouterr().out, read(0, 0.2)
    asked = len({group.prompt[0]["content"] for group in held})
    if rows_of_a_prompt == 1:
        assert f"pairs.jsonl as 60 conversations, {60 * pairs} pairs" in out
        assert f"conversations, {pairs * len(held)} pairs" in out and asked == len(held)
    assert f"within {round(98 / asked**0.5)} points" in out


def test_a_tree_as_demonstrations_is_what_its_single_replies_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = TREE.replace(REPLIES, REPLY % (0, 0))
    write("trees.jsonl", TREE, range(40))
    write("single.jsonl", one, range(40, 60))
    Path("trees.jsonl").write_text(
        Path("trees.jsonl").read_text() + Path("single.jsonl").read_text(), encoding="utf-8"
    )
    assert kinds(made("demos=trees.jsonl"))["sft"] == "sft"
    dropped = "dropped of trees.jsonl: bad rows, 40; the first is trees.jsonl:1: "
    assert dropped in capsys.readouterr().out
    assert main(["init", "all", "demos=" + write("ranked.jsonl", TREE)]) == 4
    assert "(format oasst)" in capsys.readouterr().err


def test_a_large_file_is_limited_to_ten_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    output = " ".join(f"<n+{place * 7}>" for place in range(80))
    recipe = made(write("demos.jsonl", DEMO.replace("It", output), range(400)))
    limit = settings(recipe, "sft").data.sources[0].limit
    rows = Path("demos.jsonl").read_text(encoding="utf-8").splitlines()[:limit]
    texts = ("".join(json.loads(row).values()) for row in rows)
    assert 0.9 < sum(map(len, texts)) / 360_000 < 1.1
    assert f", of its first {limit} rows" in capsys.readouterr().out
    assert "To use all rows" in Path("new/recipe.yaml").read_text(encoding="utf-8")


def test_responses_have_room() -> None:
    recipe = made(write("sums.jsonl", SOLVED.replace("2 x <#>", "Count. " * 55)))
    align = settings(recipe, "align")
    room = options(recipe).sampling.max_new_tokens
    assert align.rollout.max_new_tokens == room == 160 and align.iterations == 4


def test_held_out_examples_that_repeat_others_are_dropped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every row has a near double with another beginning, which puts it anywhere."""
    asked = "I would like to know all of it, so why is <n>, and <n+500>?"
    write("pairs.jsonl", PAIR.replace("Why is <n>?", asked), range(50))
    write("doubles.jsonl", PAIR.replace("Why is <n>?", f"Now {asked}"), range(50))
    with Path("pairs.jsonl").open("a", encoding="utf-8") as file:
        file.write(Path("doubles.jsonl").read_text(encoding="utf-8"))
    recipe = made("pairs.jsonl")
    out = capsys.readouterr().out
    assert next(iter(kinds(recipe).items())) == ("held_out_pairs", "clean")
    report = options(recipe)
    for spec in (settings(recipe, "align").validation, report.prompts, report.examples):
        assert [source.stage for source in spec.sources] == ["held_out_pairs"]
    assert main(["run", "new/recipe.yaml", "model.base=tiny", "--out", "run"]) == 0
    stage = json.loads(Path("run/held_out_pairs/stage.json").read_text(encoding="utf-8"))
    dropped = stage["summary"]["rows"] - stage["summary"]["kept"]
    assert dropped and f"({dropped} of them dropped, as they repeat others)" in out


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ('"<#>.5"', "exact_match"),
        ('"B"', "exact_match"),
        (r'"\\frac{<#>}{7}"', "math_verify"),
        ('"42"', "exact_match"),
        ('"1,234"', "exact_match"),
        ('"-5"', "exact_match"),
        ('"1/2"', "exact_match"),
        ('".5"', "exact_match"),
    ],
)
def test_the_reward_of_the_recipe_finds_an_answer_that_can_be_checked(
    answer: str, reward: str
) -> None:
    if reward == "math_verify":
        pytest.importorskip("math_verify")
    recipe = made(write("q.jsonl", SUM.replace('"answer": <#>', f'"answer": {answer}')))
    assert kinds(recipe)["align"] == "grpo"
    component = settings(recipe, "align").reward.component
    assert component.name == reward
    if re.search(r'"[-\d.,/]+"', answer):
        known = json.loads(answer)
        said = [f"First 7, so it is {known}.", "It is 43.", f"**{known}**"]
        group = Group((user("?"),), tuple(map(Response, said)), meta={"answer": known})
        scores = component.registration.implementation(component.options).score([group])
        assert [list(each) for each in scores.values()] == [[1.0, 0.0, 1.0]]


def test_a_solution_next_to_the_answer_is_learned_first() -> None:
    solved = '{"problem": "Of <n>?", "answer": "<#>", "solution": "I count <n+500>."}'
    recipe = made(write("q.jsonl", solved))
    assert kinds(recipe) == {"sft": "sft", "align": "grpo", "report": "evaluate"}
    columns = settings(recipe, "sft").data.sources[0].columns
    assert columns == {"prompt": "problem", "completion": "solution"}


def test_answers_in_words_need_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    path = write("q.jsonl", NAMED)
    assert kinds(made(path))["sft"] == "sft"
    Path("new/recipe.yaml").unlink()
    assert kinds(made("known-answers=" + path)) == {"align": "grpo", "report": "evaluate"}
    assert "60 prompts with a known answer" in capsys.readouterr().out


def test_a_question_without_an_answer_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    path = write("q.jsonl", SUM)
    text = Path(path).read_text().replace('"answer": 7}', '"answer": null}')
    Path(path).write_text(text, encoding="utf-8")
    assert main(["init", "new", path]) == 4
    assert "q.jsonl:8" in capsys.readouterr().err and not Path("new").exists()


def test_files_of_one_kind_are_read_together() -> None:
    recipe = made(write("a.jsonl", DEMO, range(30)), write("b.jsonl", DEMO, range(30, 60)))
    sources = settings(recipe, "sft").data.sources
    assert [source.path.name for source in sources] == ["a.jsonl", "b.jsonl"]


def test_the_first_file_needs_no_folder() -> None:
    assert main(["init", write("a.jsonl", DEMO), write("b.jsonl", PAIR)]) == 0
    stages = {"sft": "sft", "align": "dpo", "report": "evaluate"}
    assert kinds(load_recipe(Path("recipe.yaml"))) == stages
    text = Path("recipe.yaml").read_text(encoding="utf-8")
    assert "data: {path: a.jsonl, part: [0.2, 1]}" in text


@pytest.mark.parametrize(
    ("files", "headline"),
    [([DEMO, PAIR], "pairs right"), ([SOLVED], "right"), ([LABELED], "next tokens right")],
)
def test_a_recipe_runs_and_ends_in_its_answer(files: list[str], headline: str) -> None:
    made(*(write(f"{number}.jsonl", row) for number, row in enumerate(files)))
    quick = ["model.base=tiny", "model.lora.r=2"]
    if SOLVED in files:  # of which a random model gets none right
        quick += ["stages.align.iterations=1", "stages.align.reward={length: {unit: characters}}"]
    assert main(["run", "new/recipe.yaml", *quick, "--out", "run"]) == 0
    found = json.loads(Path("run/report/evaluation.json").read_text(encoding="utf-8"))
    assert found["headline"] == headline


# --- columns

COLUMNS = [
    ("demos", "question,answer", {"prompt": "question", "completion": "answer"}),
    ("demos", "input,output", {"prompt": "input", "completion": "output"}),
    ("demos", "prompt,answer", {"completion": "answer"}),
    ("demos", "instruction,output", {}),  # a format of its own
    ("pairs", "question,good,bad", {"prompt": "question", "chosen": "good", "rejected": "bad"}),
    ("pairs", "prompt,better,worse", {"chosen": "better", "rejected": "worse"}),
    ("", "question,answer", {"prompt": "question", "completion": "answer"}),
    ("", "prompt,good,bad", {"chosen": "good", "rejected": "bad"}),
    ("", "prompt,reply", {"completion": "reply"}),
]


@pytest.mark.parametrize(("kind", "header", "columns"), COLUMNS)
def test_usual_names_of_columns_are_recognized(
    kind: str, header: str, columns: dict[str, str]
) -> None:
    """One prompt is held out of nothing, so there is one stage."""
    row = ",".join(f"{name} of it" for name in header.split(","))
    Path("faq.csv").write_text(f"{header}\n{row}\n", encoding="utf-8")
    assert main(["init", "new", f"{kind}=faq.csv" if kind else "faq.csv"]) == 0
    ((name, stage),) = load_recipe(Path("new/recipe.yaml")).stages.items()
    assert name == ("align" if header.count(",") == 2 else "sft")
    assert stage.settings is not None and stage.settings.data is not None
    assert stage.settings.data.sources[0].columns == columns
    assert main(["init", "new", "faq.csv", "--base", "tiny"]) == 2  # the recipe stays


def test_columns_are_renamed_in_the_files_that_have_them() -> None:
    Path("faq.csv").write_text("question,answer\nIs it?,Yes.\n", encoding="utf-8")
    Path("odd.csv").write_text("question,a,b\nIs it?,Yes.,No.\n", encoding="utf-8")
    files = ["demos=faq.csv", "pairs=odd.csv", "--columns"]
    columns = "prompt=question,completion=answer,chosen=a,rejected=b"
    assert main(["init", "new", *files, columns]) == 0
    recipe = load_recipe(Path("new/recipe.yaml"))
    assert [settings(recipe, name).data.sources[0].columns for name in ("sft", "align")] == [
        {"prompt": "question", "completion": "answer"},
        {"prompt": "question", "chosen": "a", "rejected": "b"},
    ]


def test_a_format_that_must_be_named_is_named() -> None:
    write("g.jsonl", SOLVED, [1])
    assert main(["init", ".", "demos=g.jsonl"]) == 0
    assert "    data: {gsm8k: g.jsonl}\n" in Path("recipe.yaml").read_text(encoding="utf-8")
    assert kinds(load_recipe(Path("recipe.yaml"))) == {"sft": "sft"}


# --- what cannot be used

FILES = {
    "demos.jsonl": filled(DEMO, 1),
    "pairs.jsonl": filled(PAIR, 1),
    "prompts.jsonl": filled(PROMPT, 1),
    "labeled.jsonl": "\n".join(filled(LABELED, number) for number in (1, 2)),
    "sums.jsonl": filled(SUM, 1),
    "bad.jsonl": '{"prompt": "hi", "completion": "no", "label": false}',
    "text.jsonl": '{"text": "It is."}',
    "open.jsonl": '{"prompt": "hi", "response_a": "ho", "response_b": "no"}',
    "broken.jsonl": '{"prompt": ',
    "strange.jsonl": '{"x": 1}',
    "empty.jsonl": "",
    "faq.csv": "id,Frage,Antwort\n1,Ist es?,Ja.",
    "odd.csv": "ask,a,b\nask,a,b",
}
MISTAKES = """\
prompts.jsonl                                      2  prompts need pairs
prompts=prompts.jsonl                              2  prompts need pairs
sums.jsonl pairs.jsonl                             2  a recipe each
labeled.jsonl pairs.jsonl                          2  need a recipe
demos=nowhere.jsonl                                2  no such file: nowhere.jsonl
strange.jsonl                                      4  no format matches the first row (columns x)
demos=strange.jsonl                                4  no format matches the first row (columns x)
empty.jsonl                                        4  no row that the recipe reads
demos=broken.jsonl                                 4  bad rows skipped: 1
demos=prompts.jsonl                                4  (format prompt_only)
demos=pairs.jsonl                                  4  (format preference)
demos=bad.jsonl                                    4  (format prompt_completion)
demos=text.jsonl                                   4  (format text)
pairs=demos.jsonl                                  4  (format alpaca)
pairs=prompts.jsonl                                4  (format prompt_only)
pairs=open.jsonl                                   4  compare responses: alignkit label
pairs=odd.csv                                      4  --columns prompt=A,chosen=B,rejected=C
demos=faq.csv --columns prompt=no,completion=id    2  columns: id, Frage, Antwort
demos=faq.csv --columns prompt=Frage,completion=Antwrot  2  did you mean 'Antwort'?
demos=faq.csv --columns promt=Frage,completion=Antwort   4  --columns prompt=A,completion
demos=faq.csv --columns prompt=Frage,completion=Antwort,x=y  2  no file has a column 'y'
demos=faq.csv --columns prompt=Frage,completion=Antwort,prompt=id  2  with a new name
demos=faq.csv --columns prompt                     2  'prompt' is not NAME=COLUMN
--from smoke --base tiny                           2  a recipe is copied unchanged
"""


@pytest.mark.parametrize("line", MISTAKES.splitlines())
def test_data_that_no_recipe_fits(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`files  exit code  words`; nothing is written."""
    words, code, said = re.split(r"\s\s+", line)
    for name, text in FILES.items():
        Path(name).write_text(text and text + "\n", encoding="utf-8")
    assert main(["init", "new", *words.split()]) == int(code)
    assert said in " ".join(capsys.readouterr().err.split()) and not Path("new").exists()


def test_bad_rows_and_turns_of_conversations_give_a_recipe_that_is_checked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A row for each answer of a conversation, prompts that differ in case only, and an empty
    answer.
    """
    asked = (
        '{"messages": [{"role": "user", "content": "Number <#>?"}, '
        '{"role": "assistant", "content": "So."}]}'
    )
    more = ', {"role": "user", "content": "And?"}, {"role": "assistant", "content": "So."}]'
    other = asked.replace("Number", "NUMBER ").replace("So.", "Well.")
    write("demos.jsonl", "\n".join([asked, asked.replace("]", more), other]), range(8))
    rows = Path("demos.jsonl").read_text(encoding="utf-8")
    empty = asked.replace("So.", "") + "\n"
    Path("demos.jsonl").write_text(empty + rows, encoding="utf-8")
    assert main(["init", "new", "demos=demos.jsonl"]) == 0
    assert "bad rows, 1; the first is demos.jsonl:1: " in capsys.readouterr().out
    assert main(["check", "new/recipe.yaml", "model.base=tiny"]) == 0
