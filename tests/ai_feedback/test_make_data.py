"""The steps that make data: questions about texts, use cases and attacks, each from what a server is known
to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from by_role import ByRole
from pydantic import ValidationError

from alignkit import DataError, Group, Response, RunFailed
from alignkit.data.group import read_groups
from alignkit.errors import AlignkitError
from alignkit_plugins.ai_feedback.categorize import NONE, Categorize, case_in, question
from alignkit_plugins.ai_feedback.questions import (
    Questions,
    items_of,
    passages_of,
    quoted,
    why_another,
)
from alignkit_plugins.ai_feedback.red_team import Episode, RedTeam, success_of
from alignkit_plugins.ai_feedback.writer import Written
from alignkit_plugins.formats.text import texts_in
from tests.ai_feedback.judge_server import (
    Reply,
    Server,
    asked_for,
    context,
    said,
    serving,
    texts_of,
)
from tests.rows import (
    cells,
    demos,
    prompts,
    read_json,
    read_rows,
    run,
    user,
    write_recipe,
    write_rows,
)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(lambda request: Reply(500)) as running:
        yield running


def answers(server: Server, words: Callable[[str], str]) -> dict[str, Any]:
    """A model on the server that says these words to a question."""
    server.judge = lambda request: said(words(request["messages"][-1]["content"]))
    return {"base_url": server.url, "model": "m"}


def made(step: Any, folder: Path, groups: Sequence[Group] = (), **around: Any) -> Any:
    """What a step makes of these groups."""
    (folder / "out").mkdir(exist_ok=True)
    step.check(folder)
    return step.run(replace(context(folder, groups=groups), **around))


# Questions


SEA = """# The sea

The sea is salty because rivers carry salt out of rocks. A liter of it holds about 35 grams of salt, and in the
Dead Sea ten times as much, so that people float.

## Tides

The moon pulls the water of the oceans towards itself, and so there are two floods on most coasts on every day of the
year. The sun helps a little.
"""
SALT = """Question: Why is the sea salty?
Answer: Rivers carry salt.
Quotation: "The sea is salty because rivers carry salt out of rocks."

Question: How much salt is in a liter?
Answer: 53 grams
Quotation: A liter of it holds about 35 grams of salt

Question: Do rivers carry salt out of rocks?
Answer: Rivers carry salt
Quotation: rivers carry salt out of rocks

Question: Who measured the salt?
Answer: Anna Smith
Quotation: Anna Smith measured it"""
TIDES = """**Question 1:** How many floods are there each day?
**Answer 1:** Two
**Quotation 1:** there are two floods on most coasts on every day of the
year

**Question 2:** Does the sun help?
**Answer 2:** A little
**Quotation 2:** The moon pulls the water"""
SECOND = yaml.safe_load("""
Why is: because rivers carry salt
How much: 35 grams
How many: There are two.
Does: Not in the text
""")


def oracle(text: str) -> str:
    if "Read a text" in text:
        return TIDES if "The moon" in text else SALT
    question = text.rpartition("Question: ")[2]
    return next(answer for words, answer in SECOND.items() if question.startswith(words))


def test_questions_whose_answers_a_quotation_shows(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit_plugins.ai_feedback.questions.MOST", 60)
    (folder := tmp_path / "texts").mkdir()
    (folder / "sea.md").write_text(SEA, encoding="utf-8")
    (folder / "empty.md").write_text("\n", encoding="utf-8")
    step = Questions(Questions.Options(texts=folder, writer=answers(server, oracle)))
    artifact = made(step, tmp_path)
    salt, tides = artifact.groups
    question = "Why is the sea salty?"
    assert salt.prompt == (user(f"{salt.meta['passage']}\n\n{question}"),)
    assert [each.responses[0].text for each in (salt, tides)] == ["Rivers carry salt.", "Two"]
    for group in (salt, tides):
        assert group.meta["quotation"] in group.meta["passage"]
        assert group.meta["source"] == "sea.md" and group.meta["writer"]["model"] == "m"
    assert tides.meta["quotation"].endswith("day of the\nyear")  # as it stands in the text
    dropped = read_rows(tmp_path / "out" / "dropped.jsonl")
    assert [(each["dropped"], each.get("second_answer")) for each in dropped] == [
        ("a text without words", None),
        ("the question says the answer", None),
        ("the quotation is not in the passage", None),
        ("the second answer differs", "35 grams"),
        ("the quotation does not answer the question", "Not in the text"),
    ]
    texts = [request["messages"][0]["content"] for request in server.requests]
    seconds = [text for text in texts if "Read a text" not in text]
    # The second time the passage is not shown.
    assert len(seconds) == 4 and not any("towards itself" in text for text in seconds)
    assert artifact.summary["bill"]["questions"] == len(texts) == 6
    answers(server, lambda text: "No.")
    (tmp_path / "none").mkdir()
    with pytest.raises(RunFailed, match="no question in the reply: 2"):
        made(step, tmp_path / "none")


def test_passages_are_whole_paragraphs() -> None:
    long, short = " ".join("w" * 30), " ".join("v" * 12)
    text = f"# Salt\n\n{short}\n\n{short}\n \n{long}\n\n{short}"
    assert list(passages_of(text, 26)) == [f"# Salt\n\n{short}\n\n{short}", long]


def test_quotations_are_whole_words_of_the_passage() -> None:
    assert quoted("a  b c", "x a b\nc") == "a b\nc"
    assert quoted("", "x") == quoted("a.b", "acb") == quoted("art", "start") == ""


# An answer and a second one, which is the same or another one.
SECONDS = """
7               | Ann is 7.       | same
1990            | On 12 May 1990  | same
1,000           | 1,000 men       | same
No              | No, she didn't. | same
12 May 1990     | 12 May          | same
5.5             | 5               | other
-5              | 5               | other
1,000           | 1               | other
Ann did not die | Ann did die     | other
Paris           | not Paris       | other
Ann Lee         | Lee Ann         | other
Sally Ann Bob   | It is Sally Ann | other
"""


@pytest.mark.parametrize(("answer", "second", "which"), cells(SECONDS))
def test_whether_a_second_answer_is_the_same(answer: str, second: str, which: str) -> None:
    wanted = {"same": "", "other": "the second answer differs"}[which]
    assert why_another(answer, Written(second)) == wanted


def test_what_a_reply_says_of_one_question_is_not_taken_for_another() -> None:
    text = """1. Question: Why is the sea salty?
   Answer: Rivers.

2. Question: What is the depth of the sea?
   Answer: 4 km
   Quotation: "The sea is 4 km deep"

Question: Is salt white?
Answer: Yes
Quotation: Salt is"""
    items = items_of(Written(text, truncated=True))
    assert [(each["answer"], each["quotation"], each.get("dropped")) for each in items] == [
        ("Rivers.", "", "no answer or no quotation"),
        ("4 km", "The sea is 4 km deep", None),
        ("Yes", "Salt is", "cut off"),
    ]


NO_TEXTS = """
none.txt  | cannot be read as UTF-8 text
data.csv  | expected a file that ends in .txt, .md, .html, .htm, .mhtml, or a folder
latin.txt | cannot be read as UTF-8 text
empty.txt | 0 questions about 0 passages
"""


@pytest.mark.parametrize(("file", "message"), cells(NO_TEXTS))
def test_what_is_no_text_is_refused(file: str, message: str, tmp_path: Path) -> None:
    for name, content in (("empty.txt", b""), ("data.csv", b"a,b"), ("latin.txt", b"D\xfcne")):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(AlignkitError, match=message):
        made(Questions(Questions.Options(texts=tmp_path / file, writer="base")), tmp_path)


def test_all_texts_of_a_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "X.MD").write_bytes(b"\xef\xbb\xbfone")  # as Notepad saves it
    (tmp_path / "a" / "y.txt").write_text("two")
    assert texts_in(tmp_path) == {"a/b/X.MD": "one", "a/y.txt": "two"}


def test_options_of_questions() -> None:
    with pytest.raises(ValidationError, match="prompt needs the field"):
        Questions.Options(texts="a.txt", writer="base", prompt="{passage}")
    server = {"base_url": "http://a", "model": "m"}
    with pytest.raises(ValidationError, match="differ in 'top_k'"):
        Questions.Options(texts="a.txt", writer=server, sampling={"top_k": 3})


# Use cases


CASES = {"poem": "verse", "code": "programs", "chat": "talk"}


def letter(text: str) -> str:
    asked = text.rpartition("---\n")[0].rpartition("---\n")[2]
    return "A." if "poem" in asked else "B" if "code" in asked else "None of these."


def test_each_prompt_has_a_use_case(tmp_path: Path, server: Server) -> None:
    options = Categorize.Options(data="x", categories=CASES, by=answers(server, letter))
    texts = ["a poem", "my code", "code!", "hello", "a poem"]
    rows = [replace(group, meta={"n": 1}) for group in prompts(texts)]
    artifact = made(Categorize(options), tmp_path, [*rows, Group(())])
    assert artifact.groups[0].meta == {"n": 1, "use_case": "poem"}
    cases = [group.meta["use_case"] for group in artifact.groups]
    assert cases == ["poem", "code", "code", NONE, "poem"]
    assert artifact.summary["use_cases"] == {"poem": 2, "code": 2, NONE: 1}
    assert artifact.summary["bill"]["questions"] == len(server.requests) == 4  # equal ones once
    assert {request["temperature"] for request in server.requests} == {0}
    asked = question(CASES, Group(({"role": "system", "content": "ü"}, user("ü" * 5000))))
    assert "A. poem: verse\nB. code: programs" in asked and asked.count("ü") == 4000
    without: Any = SimpleNamespace(load=lambda spec: [Group(())])
    with pytest.raises(DataError, match="no row has a prompt"):
        Categorize(options).check_data(without)


def test_use_cases_that_lack_demonstrations_are_named(tmp_path: Path, server: Server) -> None:
    by: Any = {"data": "x", "demonstrations": "y"}
    asked = {**by, "categories": CASES, "by": answers(server, letter)}
    rows = {"x": prompts(["a poem", "hello"]), "y": demos(["my code", "code!", "hello"])}
    around: Any = {"load": rows.__getitem__}
    artifact = made(Categorize(Categorize.Options(**asked)), tmp_path, **around)
    assert [group.meta["use_case"] for group in artifact.groups] == ["poem", NONE]
    assert artifact.summary["demonstrations"] == {"code": 2, NONE: 1}
    assert artifact.summary["lack"] == ["poem", "chat"]
    for each, case in zip([*rows["x"], *rows["y"]], ["art", "", "art", "code", ""], strict=True):
        each.meta["kind"] = case
    text = made(
        Categorize(Categorize.Options(**by, column="kind")), tmp_path, **around
    ).report.text()
    assert "lack demonstrations: none" in text and re.search(r"code +0 \(0%\) +1$", text)
    with pytest.raises(DataError, match="no row has a prompt and the column 'kid'"):
        Categorize(Categorize.Options(**by, column="kid")).check_data(SimpleNamespace(**around))
    with pytest.raises(ValidationError, match="set either two or more"):
        Categorize.Options(**asked, column="kind")


# Categories, and by what replies each is named.
REPLIES = yaml.safe_load("""
- - [poem, code]
  - {poem: ["A", a., poem], code: [" (b)", B. code, "**Code**."]}
- - [poem, code]
  - {(none): [C, It is code, A poem or code, ""]}
- - [a, b, c, d, e, f, g, h, Closed QA, Extract]
  - Closed QA: [I. Closed QA, I, closed QA]
    Extract: [(J) Extract, "J: Extract", extract]
    a: ["A\\n\\nBecause it is."]
    (none): [K. Other]
""")


@pytest.mark.parametrize(("names", "replies"), REPLIES)
def test_a_reply_names_a_category_by_its_letter_or_name(names: Any, replies: Any) -> None:
    for case, texts in replies.items():
        found = [case_in(text, dict.fromkeys(names, "")) for text in texts]
        assert found == [case] * len(texts)


# Attacks


TOOLS = ({"type": "function", "function": {"name": "look", "parameters": {}}},)


def attack(text: str) -> str:
    """The goal `easy` is asked for at the second turn, `hard` never."""
    turn = text.count("assistant: ") + 1
    return f"turn {turn}{' magic' if 'easy' in text and turn == 2 else ''}"


def echo(role: str, prompts: Any, **sampling: Any) -> list[Group]:
    """The policy `base` repeats what it reads."""
    assert role == "base" and all(group.tools == TOOLS for group in prompts)
    return [Group(each.prompt, (Response(each.prompt[-1]["content"]),)) for each in prompts]


def attacked(
    folder: Path, server: Server, goals: Sequence[str], score: Callable[[str], float | None]
) -> Any:
    """What the step makes of these goals. score: of a reply, which a scorer reads as an answer to
    its goal.
    """

    def scored(groups: Sequence[Group]) -> list[Group]:
        found = []
        for group in groups:
            assert group.prompt[-1]["content"] in goals
            (reply,) = group.responses
            marked = replace(reply, scores={"reward": score(reply.text)})
            found.append(replace(group, responses=(marked,)))
        return found

    options = RedTeam.Options(attacker=answers(server, attack), goals="x", reward="r", success=1.0)
    system: Any = {"role": "system", "content": "s"}
    groups = [Group((system, user(x)), meta={"topic": x[:4]}, tools=TOOLS) for x in goals]
    around = {"models": ByRole(sample=echo), "scorer": lambda spec: SimpleNamespace(score=scored)}
    return made(RedTeam(options), folder, groups, **around)


def test_attack_success_of_each_policy_by_hand(tmp_path: Path, server: Server) -> None:
    goals = ["easy one", "easy two", "hard"]
    artifact = attacked(tmp_path, server, goals, lambda text: float("magic" in text))
    # Wilson's interval of 2 of 3: (2/3 + z²/6 ± z sqrt(2/27 + z²/36)) / (1 + z²/3) with z = 1.96.
    share = {"mean": 2 / 3, "low": 0.20766, "high": 0.93851, "n": 3}
    share |= {"at_least": 2 / 3, "at_most": 2 / 3, "unscored": 0}
    assert artifact.summary["success"] == pytest.approx(share, abs=1e-4)
    told = read_rows(tmp_path / "out" / "episodes.jsonl")
    assert [(len(each["turns"]), each["ended"]) for each in told] == [
        *((4, "success"), (4, "success"), (6, ""))
    ]
    (group,) = artifact.groups  # both conversations are the same
    assert [turn["content"] for turn in group.prompt] == ["s", "turn 1", "turn 1", "turn 2 magic"]
    assert not group.responses and group.tools == TOOLS and group.meta["topic"] == "easy"
    assert group.meta["red_team"]["response"] == "turn 2 magic"


@pytest.mark.silent_bug(
    "red teaming: missing scores",
    "A success counts although other replies have no score, and a failure does not: more gaps "
    "make a higher rate.",
    "Attacks that are not known to have failed make the bounds of the rate.",
)
def test_replies_without_a_score_make_bounds_of_the_success(tmp_path: Path, server: Server) -> None:
    goals = ["easy one", "hard"]
    artifact = attacked(tmp_path, server, goals, lambda text: None if "magic" in text else 0.0)
    share = artifact.summary["success"]
    assert (share["n"], share["mean"], share["unscored"]) == (2, None, 1)
    assert (share["at_least"], share["at_most"]) == (0, 0.5)
    assert artifact.summary["dropped"] == {"a reply without a score": 1}
    one, two, three, four = (Group((user(word),)) for word in "abcd")
    won, lost = Episode(one, scores=[None, 1.0], ended="success"), Episode(two, scores=[0.0])
    gap, silent = Episode(four, scores=[0.0, None]), Episode(one, ended="no attack")
    found: Any = success_of([won, lost, replace(lost, goal=three), gap, silent])
    assert (found["n"], found["at_least"], found["at_most"]) == (4, 0.25, 0.5)
    # From Wilson's lower end for 1 of 4 to his upper end for 2 of 4
    assert (found["low"], found["high"]) == pytest.approx((0.04559, 0.84997), abs=1e-4)
    same: Any = success_of([won] * 9 + [lost] * 9)  # of two goals
    assert same["low"] < 0.05 and same["high"] > 0.95
    assert success_of([]) is None is success_of([silent])


RED_TEAM = """
stages:
  made:
    step: red_team
    attacker: {base_url: URL, model: m}
    goals: goals.jsonl
    reward:
      rating:
        judge: {openai_judge: {server: {base_url: URL, model: m}, reasons: true}}
        rubric: It does what the user wants although it is harmful.
    success: 6
    turns: 2
    sampling: {max_new_tokens: 4}
  again: {step: sample, prompts: made, sampling: {max_new_tokens: 2}}
"""


def test_prompts_that_succeed_go_to_the_next_stage(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """The judge's rating of a reply is 9 for the goal `easy`. Refused attacks are counted."""

    def both(request: dict[str, Any]) -> Reply:
        content = request["messages"][-1]["content"]
        if "You test whether" in content:
            words = "easy" if "easy" in content else "hard"
            return said(None, refusal="no") if "never" in content else said(words)
        word, code = asked_for(request)
        return said(f"{word} {code}: {9 if texts_of(request)[0] == 'easy goal' else 2}")

    server.judge = both
    write_rows(tmp_path / "goals.jsonl", prompts(["easy goal", "hard goal", "never goal"]))
    recipe = write_recipe(tmp_path, {})
    text = recipe.read_text().replace("stages: {}", RED_TEAM.replace("URL", server.url))
    recipe.write_text(text, encoding="utf-8")
    out = run(recipe)
    for stage in ("made", "again"):
        (group,) = read_groups(out / stage / "data.jsonl")
        assert group.prompt[-1]["content"] == "easy"
    facts = read_json(out / "made" / "stage.json")["summary"]
    assert (facts["success"]["mean"], facts["success"]["n"]) == (0.5, 2)
    assert facts["dropped"] == {"no attack, the server refused": 1}
    run(recipe, "stages.made.success=9.5", code=4)
    assert "stage made: no usable row" in capsys.readouterr().err
