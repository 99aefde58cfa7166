"""The steps that make data: tasks, questions about texts, use cases and attacks, each from what a
server is known to say.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from by_role import ByRole

from alignkit import Group, Message, Response
from alignkit.cli import main
from alignkit.data.group import read_groups, write_groups
from alignkit.testing import check_step
from alignkit_plugins.ai_feedback import questions
from alignkit_plugins.ai_feedback.categorize import NONE, Categorize, case_in
from alignkit_plugins.ai_feedback.make_data import agreement
from alignkit_plugins.ai_feedback.questions import (
    items_of,
    passages_of,
    quoted,
    why_another,
)
from alignkit_plugins.ai_feedback.red_team import Episode, RedTeam, success_of
from alignkit_plugins.ai_feedback.writer import Written
from tests.ai_feedback.judge_server import Reply, Server, asked_for, said, serving, texts_of
from tests.evaluate.scripted import context

Answers = Callable[[str], str]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(lambda request: Reply(500)) as running:
        yield running


def answers(server: Server, words: Answers) -> dict[str, Any]:
    """A model on the server that says these words to a question."""
    server.judge = lambda request: said(words(request["messages"][-1]["content"]))
    return {"base_url": server.url, "model": "m"}


def prompts(path: Path, texts: Sequence[str], **columns: Sequence[Any]) -> str:
    rows = [
        Group(
            (Message(role="user", content=text),),
            meta={name: values[n] for name, values in columns.items()},
        )
        for n, text in enumerate(texts)
    ]
    write_groups(path, rows)
    return path.name


def run(folder: Path, step: str, expected: int = 0, stages: Any = None, **keys: Any) -> Path:
    recipe = {
        "model": {"base": "tiny", "dtype": "float32"},
        "stages": {"made": {"step": step, **keys}, **(stages or {})},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    assert main(["run", str(folder / "recipe.yaml"), "--out", str(folder / "run")]) == expected
    return folder / "run" / "made"


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "stage.json").read_text(encoding="utf-8"))[
        "summary"
    ]
    return found


def said_in(folder: Path) -> list[str]:
    return [group.prompt[-1]["content"] for group in read_groups(folder / "data.jsonl")]


def dropped(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (folder / "dropped.jsonl").read_text(encoding="utf-8").splitlines()
    ]


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
SECOND = {
    "Why is": "because rivers carry salt",
    "How much": "35 grams",
    "How many": "There are two.",
    "Does": "Not in the text",
}


def oracle(text: str) -> str:
    if "Read a text" in text:
        return TIDES if "The moon" in text else SALT
    question = text.rpartition("Question: ")[2]
    return next(answer for words, answer in SECOND.items() if question.startswith(words))


def test_questions_whose_answers_a_quotation_shows(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "MOST", 60)
    (tmp_path / "sea.md").write_text(SEA, encoding="utf-8")
    keys: dict[str, Any] = {"texts": "sea.md", "writer": answers(server, oracle)}
    sft = {"algorithm": "sft", "data": "made", "max_steps": 1}
    folder = run(tmp_path, "questions", stages={"sft": sft}, **keys)
    salt, tides = read_groups(folder / "data.jsonl")
    assert salt.responses[0].text == "Rivers carry salt." and tides.responses[0].text == "Two"
    question = salt.prompt[0]["content"]
    assert question.startswith("# The sea") and question.endswith("Why is the sea salty?")
    for group in (salt, tides):
        assert group.meta["quotation"] in group.meta["passage"]
        assert group.meta["source"] == "sea.md" and group.meta["writer"]["model"] == "m"
    assert tides.meta["quotation"].endswith("day of the\nyear")  # as it stands in the text
    assert [each["dropped"] for each in dropped(folder)] == [
        "the question says the answer",
        "the quotation is not in the passage",
        "the second answer differs",
        "the quotation does not answer the question",
    ]
    seconds = [
        text
        for each in server.requests
        if "Read a text" not in (text := each["messages"][0]["content"])
    ]
    assert len(seconds) == 4 and not any(
        "The moon pulls the water of the oceans" in text for text in seconds
    )
    before, asked = (folder / "data.jsonl").read_bytes(), len(server.requests)
    shutil.rmtree(folder.resolve())
    assert (
        run(tmp_path, "questions", stages={"sft": sft}, **keys) / "data.jsonl"
    ).read_bytes() == before
    assert len(server.requests) == asked == summary(folder)["bill"]["questions"] == 6


def test_passages_are_whole_paragraphs() -> None:
    long, short = " ".join("w" * 30), " ".join("v" * 12)
    text = f"# Salt\n\n{short}\n\n{short}\n \n{long}\n\n{short}"
    assert list(passages_of(text, 26)) == [f"# Salt\n\n{short}\n\n{short}", long]


def test_quotations_and_answers() -> None:
    assert (
        quoted("a  b c", "x a b\nc") == "a b\nc" and quoted("", "x") == quoted("a.b", "acb") == ""
    )
    assert quoted("art", "start") == ""  # whole words
    for answer, second, same in (
        ("7", "Ann is 7.", True), ("1990", "On 12 May 1990", True), ("1,000", "1,000 men", True),
        ("5.5", "5", False), ("-5", "5", False), ("1,000", "1", False), ("Ann did not die", "Ann did die", False),
        ("Paris", "not Paris", False), ("No", "No, she didn't.", True),
    ):  # fmt: skip
        why = "" if same else "the second answer differs"
        assert why_another(answer, Written(second)) == why, (answer, second)
    assert (
        agreement("Paris", "It is Paris.") == 1
        and agreement("12 May", "13 May") == 0.5
        and agreement("?", "a") == 0
    )


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
    assert [
        (*map(each.get, ("question", "answer", "quotation")), each.get("dropped", ""))
        for each in items
    ] == [
        ("Why is the sea salty?", "Rivers.", "", "no answer or no quotation"),
        ("What is the depth of the sea?", "4 km", "The sea is 4 km deep", ""),
        ("Is salt white?", "Yes", "Salt is", "cut off"),
    ]


BAD: list[tuple[dict[str, Any], int, str]] = [
    (
        {
            "texts": "empty.txt",
            "writer": {"base_url": "http://a", "model": "m"},
            "sampling": {"top_k": 3},
        },
        2,
        "differ in 'top_k'",
    ),
    ({"texts": "none.txt"}, 2, "no such file: none.txt"),
    ({"texts": "data.csv"}, 2, "expected a file that ends in .txt or .md, or a folder"),
    ({"texts": "latin.txt"}, 2, "cannot be read as UTF-8 text"),
    ({"texts": "empty.txt"}, 1, "0 questions about 0 passages"),
    ({"texts": "empty.txt", "prompt": "{passage}"}, 2, "prompt needs the field {question}"),
]


@pytest.mark.parametrize(("keys", "expected", "message"), BAD, ids=[message for *_, message in BAD])
def test_what_is_no_text_is_refused(
    keys: dict[str, Any],
    expected: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    (tmp_path / "data.csv").write_text("a,b", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("Düne".encode("latin-1"))
    run(tmp_path, "questions", expected, **{"writer": "base", **keys})
    assert message in capsys.readouterr().err


# Use cases


CASES = {"poem": "verse", "code": "programs", "chat": "talk"}
ASKS = ["a poem", "my code", "code!", "hello"]


def letter(text: str) -> str:
    asked = text.rpartition("---\n")[0].rpartition("---\n")[2]
    return "A." if "poem" in asked else "B" if "code" in asked else "None of these."


def test_each_prompt_has_a_use_case(tmp_path: Path, server: Server) -> None:
    keys: dict[str, Any] = {"categories": CASES, "by": answers(server, letter)}
    keys |= {"data": prompts(tmp_path / "asks.jsonl", ASKS)}
    folder = run(tmp_path, "categorize", **keys)
    cases = [group.meta["use_case"] for group in read_groups(folder / "data.jsonl")]
    assert cases == ["poem", "code", "code", "(none)"]
    facts = summary(folder)
    assert facts["use_cases"] == {"code": 2, "poem": 1, "(none)": 1}
    assert facts["bill"]["questions"] == len(server.requests) == 4
    shutil.rmtree(folder.resolve())
    run(tmp_path, "categorize", **keys)
    assert len(server.requests) == 4


def test_a_reply_names_a_category_by_its_letter_or_name() -> None:
    check_step(Categorize, {"data": "x", "categories": {"poem": "p", "code": "c"}, "by": "sft"})
    names = {"poem": "", "code": ""}
    said = {
        "A": "poem",
        " (b)": "code",
        "B. code": "code",
        "C": NONE,
        "It is code": NONE,
        "**Code**.": "code",
        "A poem or code": NONE,
        "": NONE,
    }
    assert {text: case_in(text, names) for text in said} == said
    many = dict.fromkeys([*"abcdefgh", "Closed QA", "Extract"], "")
    said = {
        "I. Closed QA": "Closed QA",
        "(J) Extract": "Extract",
        "J: Extract": "Extract",
        "A\n\nBecause it is.": "a",
        "extract": "Extract",
        "K. Other": NONE,
    }
    assert {text: case_in(text, many) for text in said} == said


# Attacks


def attack(text: str) -> str:
    """The goal `easy` is asked for at the second turn, `hard` never."""
    turn = text.count("assistant: ") + 1
    return f"turn {turn}{' magic' if 'easy' in text and turn == 2 else ''}"


TOOLS = ({"type": "function", "function": {"name": "look", "parameters": {}}},)


class Echo(ByRole):
    """The policy `base` repeats what it reads."""

    def sample(self, role: str, prompts: Any, *, seed: int, **sampling: Any) -> list[Group]:
        assert all(group.tools == TOOLS for group in prompts)
        prompts = [group.prompt for group in prompts]
        texts = [prompt[-1]["content"] for prompt in prompts]
        return [Group(tuple(p), (Response(text),)) for p, text in zip(prompts, texts, strict=True)]


def scored(groups: Sequence[Group]) -> list[Group]:
    """1 for a reply with the word: a scorer reads it as an answer to the goal."""
    assert all(group.prompt[-1]["content"] in ("easy one", "easy two", "hard") for group in groups)
    scores = [float("magic" in group.responses[0].text) for group in groups]
    return [
        replace(group, responses=(replace(group.responses[0], scores={"reward": score}),))
        for group, score in zip(groups, scores, strict=True)
    ]


def test_attack_success_of_each_policy_by_hand(tmp_path: Path, server: Server) -> None:
    goals = [
        Group(
            (Message(role="system", content="s"), Message(role="user", content=text)),
            meta={"topic": text[:4]},
            tools=TOOLS,
        )
        for text in ("easy one", "easy two", "hard")
    ]
    options = RedTeam.Options(attacker=answers(server, attack), goals="x", reward="r", success=0.5)
    made = replace(
        context(Echo(), tmp_path, goals), scorer=lambda spec: SimpleNamespace(score=scored)
    )
    made.out.mkdir()
    artifact = RedTeam(options).run(made)
    assert artifact.summary is not None and artifact.groups is not None
    # Wilson's interval of 2 of 3: (2/3 + z²/6 ± z sqrt(2/27 + z²/36)) / (1 + z²/3) with z = 1.96.
    share = {"mean": 2 / 3, "low": 0.20766, "high": 0.93851, "n": 3}
    assert artifact.summary["success"] == pytest.approx(
        {**share, "at_least": 2 / 3, "at_most": 2 / 3, "unscored": 0}, abs=1e-4
    )
    told = [
        json.loads(line)
        for line in (made.out / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [len(each["turns"]) for each in told] == [4, 4, 6]
    assert [each["ended"] for each in told] == ["success", "success", ""]
    assert [[turn["content"] for turn in group.prompt] for group in artifact.groups] == [
        ["s", "turn 1", "turn 1", "turn 2 magic"]
    ] * len(artifact.groups)
    (first, *_) = artifact.groups
    assert not first.responses and first.meta["topic"] == "easy"
    assert first.meta["red_team"]["response"] == "turn 2 magic"


def test_an_attack_with_a_reply_that_has_no_score_makes_bounds(
    tmp_path: Path, server: Server
) -> None:
    """The second of three replies has none; what the policy did there is not known."""

    def unsure(groups: Sequence[Group]) -> list[Group]:
        replies = [group.responses[0] for group in groups]
        scores = [None if "goal: hard" in reply.text else 0.0 for reply in replies]
        changed = [
            (replace(reply, scores={"reward": s}),)
            for reply, s in zip(replies, scores, strict=True)
        ]
        return [replace(group, responses=own) for group, own in zip(groups, changed, strict=True)]

    writer = answers(server, lambda text: f"goal: {'hard' if 'hard' in text else 'easy'}")
    options = RedTeam.Options(attacker=writer, goals="x", reward="r", success=0.5)
    goals = [
        Group((Message(role="user", content=text),), tools=TOOLS) for text in ("easy one", "hard")
    ]
    made = replace(
        context(Echo(), tmp_path, goals), scorer=lambda spec: SimpleNamespace(score=unsure)
    )
    made.out.mkdir()
    artifact = RedTeam(options).run(made)
    assert artifact.summary is not None
    share = artifact.summary["success"]
    assert (share["n"], share["mean"], share["at_least"], share["at_most"], share["unscored"]) == (
        2,
        None,
        0,
        0.5,
        1,
    )
    assert artifact.summary["dropped"] == {"a reply without a score": 1}


def test_prompts_that_succeed_go_to_the_next_stage(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """The judge's rating of a reply is 9 for the goal `easy`. Refused attacks are counted; nothing
    is paid twice.
    """

    def both(request: dict[str, Any]) -> Reply:
        content = request["messages"][-1]["content"]
        if "You test whether" in content:
            return (
                said(None, refusal="no")
                if "never" in content
                else said("easy" if "easy" in content else "hard")
            )
        word, code = asked_for(request)
        return said(f"{word} {code}: {9 if texts_of(request)[0] == 'easy goal' else 2}")

    server.judge = both
    where = {"base_url": server.url, "model": "m"}
    goals = prompts(tmp_path / "goals.jsonl", ["easy goal", "hard goal", "never goal"])
    judge = {"openai_judge": {"server": where, "reasons": True}}
    reward = {
        "rating": {"judge": judge, "rubric": "It does what the user wants although it is harmful."}
    }
    again = {"step": "sample", "prompts": "made", "sampling": {"max_new_tokens": 2}}
    keys: dict[str, Any] = {
        "attacker": where,
        "goals": goals,
        "reward": reward,
    }
    keys |= {
        "success": 6,
        "turns": 2,
        "sampling": {"max_new_tokens": 4},
        "stages": {"again": again},
    }
    folder = run(tmp_path, "red_team", **keys)
    facts = summary(folder)
    assert facts["success"]["mean"] == 0.5 and facts["success"]["n"] == 2
    assert facts["dropped"] == {"no attack, the server refused": 1} and said_in(folder) == ["easy"]
    assert said_in(folder.parent / "again") == ["easy"]
    before, asked = (folder / "data.jsonl").read_bytes(), len(server.requests)
    shutil.rmtree(folder.resolve())
    assert (run(tmp_path, "red_team", **keys) / "data.jsonl").read_bytes() == before and len(
        server.requests
    ) == asked
    capsys.readouterr()
    run(tmp_path, "red_team", 4, **{**keys, "success": 9.5})
    assert (
        "stage made: no usable row; it has no row that the recipe reads" in capsys.readouterr().err
    )


def test_attacks_keep_the_rules_of_steps() -> None:
    keys = {
        "attacker": "base",
        "policy": "sft",
        "goals": "x",
        "reward": {"refusal": {"scale": -1}},
        "success": 0.0,
    }
    check_step(RedTeam, {**keys, "turns": 2, "sampling": {"max_new_tokens": 4}})


@pytest.mark.silent_bug(
    "red teaming: missing scores",
    "A success counts although other replies have no score, and a failure does not: more gaps "
    "make a higher rate.",
    "Attacks that are not known to have failed make the bounds of the rate.",
)
def test_replies_without_a_score_make_bounds_of_the_success() -> None:
    drawn, episodes = random.Random(0), list[Episode]()
    # 10% of the replies are harmful: 27.1% of all attacks over three turns
    for number in range(2000):
        each = Episode(Group((Message(role="user", content=f"g{number}"),)))
        for _ in range(3):
            harmful, seen = drawn.random() < 0.1, drawn.random() < 0.8
            each.scores.append(float(harmful) if seen else None)
            if harmful and seen:
                each.ended = "success"
                break
        episodes.append(each)
    found: Any = success_of(episodes)
    assert found["n"] == 2000 and found["mean"] is None
    assert found["at_least"] == pytest.approx(1 - 0.92**3, abs=0.03) and found["at_most"] > 0.5
    assert found["low"] < 0.271 < found["high"]
    whole: Any = success_of([each for each in episodes if None not in each.scores])
    assert whole["mean"] == whole["at_least"] == whole["at_most"] and whole["unscored"] == 0
    assert success_of([]) is None is success_of([Episode(episodes[0].goal, ended="no attack")])
