"""The step `revise`: what a critic is asked, what is kept, and what is left out with a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from by_role import ByRole

from alignkit import Group, Response, RunFailed
from alignkit.data.group import read_groups
from alignkit.testing import check_step
from alignkit_plugins.ai_feedback.constitution import Principle, drawn
from alignkit_plugins.ai_feedback.revise import Revise, without_lead_in
from tests.ai_feedback.judge_server import Reply, Server, context, said, serving
from tests.rows import prompts, read_rows, run, write_recipe, write_rows

PRINCIPLES = [
    {"name": f"p{n}", "critique": f"What about p{n}?", "revise": f"Write it by p{n}."}
    for n in range(4)
]
ONLY_COMPARES = {"name": "compares", "compare": "The better one."}


def kind_of(request: dict[str, Any]) -> str:
    rewrites = "Write only the rewritten answer" in request["messages"][-1]["content"]
    return "revision" if rewrites else "critique"


def counting(request: dict[str, Any]) -> Reply:
    """A critic whose texts say how many turns it has read."""
    return said(f"{kind_of(request)} after {len(request['messages'])} turns")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(counting) as running:
        yield running


class Policies(ByRole):
    """Models that say who they are after their thoughts, and remember how they were asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int, float]] = []
        self.seeds: list[int] = []

    def sample(self, role: str, prompts: Any, *, seed: int, **sampling: Any) -> list[Group]:
        self.seeds.append(seed)
        groups = []
        for group in prompts:
            turns = len(group.prompt)
            self.asked.append((role, turns, sampling["max_new_tokens"], sampling["temperature"]))
            text = f"<think>hm</think>\n\n{role} {turns} {seed}"
            groups.append(Group(group.prompt, (Response(text),)))
        return groups


def revised(
    folder: Path, server: Server | None, texts: Sequence[str] = ("q0", "q1"), **options: Any
) -> Any:
    """What the step makes of these prompts."""
    critic = {"critic": {"base_url": server.url, "model": "m"}} if server else {}
    options = {"constitution": PRINCIPLES, "prompts": "p", "policy": "sft", **critic, **options}
    around = context(folder, Policies(), prompts(texts, meta={"topic": "t"}))
    around.out.mkdir(exist_ok=True)
    step = Revise(Revise.Options(**options))
    step.check(folder)
    return step.run(around)


def test_each_round_criticizes_and_rewrites_what_the_last_one_wrote(
    tmp_path: Path, server: Server
) -> None:
    """Without the thoughts of the policy or of the critic."""

    def reply(request: dict[str, Any]) -> Reply:
        last = next(x["content"] for x in request["messages"] if x["role"] == "assistant")
        text = f"about <{last}>" if kind_of(request) == "critique" else f"{last}+"
        return said(f"<think>\nhm</think>\n\n{text}")

    server.judge = reply
    artifact = revised(tmp_path, server, rounds=3)
    for number, group in enumerate(artifact.groups):
        told = group.meta["revise"]
        texts = [told["answer"], *(each["revision"] for each in told["rounds"])]
        assert texts == [told["answer"] + "+" * n for n in range(4)] and "hm" not in texts[0]
        assert [each["critique"] for each in told["rounds"]] == [f"about <{x}>" for x in texts[:3]]
        assert [(r.text, r.source) for r in group.responses] == [(texts[-1], "m")]
        assert group.prompt[0]["content"] == f"q{number}" and group.meta["topic"] == "t"
    assert len(server.requests) == 2 * 2 * 3 and artifact.summary["revised"] == 2


def test_the_questions_are_turns_in_the_words_of_the_principle(
    tmp_path: Path, server: Server
) -> None:
    sampling = {"max_new_tokens": 8}
    (group,) = revised(tmp_path, server, ["q0"], rounds=1, sampling=sampling).groups
    critique, revision = server.requests
    (entry,) = group.meta["revise"]["rounds"]
    turns = [(turn["role"], turn["content"]) for turn in critique["messages"]]
    assert turns[:2] == [("user", "q0"), ("assistant", group.meta["revise"]["answer"])]
    assert turns[2][1].startswith(f"What about {entry['principle']}?\n\n") and len(turns) == 3
    *again, answered, asked = [(turn["role"], turn["content"]) for turn in revision["messages"]]
    assert again == turns and answered == ("assistant", "critique after 3 turns")
    assert asked[1].startswith(f"Write it by {entry['principle']}.\n\n")
    assert (critique["max_tokens"], revision["max_tokens"]) == (200, 8)


BAD: list[tuple[str, Reply, str]] = [
    ("critique", said(""), "no critique, an empty reply"),
    ("critique", said(None, refusal="no"), "no critique, the server refused"),
    ("critique", said("x", "content_filter"), "no critique, the server refused"),
    ("revision", said("  \n"), "no revision, an empty reply"),
    ("revision", said("cut o", "length"), "revision longer than max_new_tokens"),
    ("revision", said("I will n", refusal="no"), "no revision, the server refused"),
    ("revision", said("<think>on", "length"), "no revision, the reply ends before its thoughts do"),
    ("revision", Reply(400, {"error": "of row 1"}), "no revision, HTTP 400"),
]


@pytest.mark.parametrize(("kind", "bad", "reason"), BAD)
def test_what_cannot_be_learned_is_left_out_with_a_reason(
    kind: str, bad: Reply, reason: str, tmp_path: Path, server: Server
) -> None:
    """Only q1's chain breaks, and nothing more is asked about it."""

    def of_q1(request: dict[str, Any]) -> bool:
        return bool(request["messages"][0]["content"] == "q1")

    server.judge = lambda request: (
        bad if of_q1(request) and kind_of(request) == kind else counting(request)
    )
    artifact = revised(tmp_path, server, rounds=2)
    assert [group.prompt[0]["content"] for group in artifact.groups] == ["q0"]
    assert artifact.summary["dropped"] == {reason: 1} and artifact.summary["revised"] == 1
    (gone,) = read_rows(tmp_path / "out" / "dropped.jsonl")
    assert gone["dropped"].startswith(reason) and len(gone["rounds"]) == 1
    assert gone["prompt"][0]["content"] == "q1"
    asked = ["critique"] if kind == "critique" else ["critique", "revision"]
    assert [kind_of(request) for request in filter(of_q1, server.requests)] == asked


@pytest.mark.parametrize(
    ("reply", "count", "words", "asked"),
    [
        (
            said(""),
            2,
            "(?s)0 of 2 answers revised by m.*left out, no critique, an empty reply: 2",
            2,
        ),
        (
            Reply(400, {"error": "user must be a number"}),
            9,
            "(?s)HTTP 400.*must be a .*`request`",
            4,
        ),
    ],
)
def test_if_nothing_is_left_the_run_ends_and_says_why(
    reply: Reply, count: int, words: str, asked: int, tmp_path: Path, server: Server
) -> None:
    server.judge = lambda request: reply
    with pytest.raises(RunFailed, match=words):
        revised(tmp_path, server, [f"q{n}" for n in range(count)])
    assert len(server.requests) == asked


def test_a_stopped_run_continues_and_asks_nothing_twice(tmp_path: Path, server: Server) -> None:
    """The server fails for good while the second chunk of 16 prompts is revised."""
    texts = [f"question number {n}" for n in range(20)]
    write_rows(tmp_path / "prompts.jsonl", prompts(texts))
    step = {"step": "revise", "prompts": "prompts.jsonl", "constitution": PRINCIPLES, "rounds": 1}
    step |= {"critic": {"base_url": server.url, "model": "m"}, "sampling": {"max_new_tokens": 8}}
    recipe = write_recipe(tmp_path, {"revised": step})
    server.judge = lambda request: (
        Reply(401)
        if request["messages"][0]["content"] == texts[18] and kind_of(request) == "revision"
        else counting(request)
    )
    run(recipe, code=6)
    before = len(server.requests)
    assert [kind_of(request) for request in server.requests].count("critique") == 20
    server.judge = counting
    folder = run(recipe) / "revised"
    again = list(map(kind_of, server.requests[before:]))
    assert 1 <= len(again) <= 4 and set(again) == {"revision"}
    assert len(read_groups(folder / "data.jsonl")) == 20


LEADS = [
    ("Here is the revised answer:\n\nStay calm.", "Stay calm."),
    ("Sure! Here's a rewritten version of the response: \"Stay calm.\"", "Stay calm."),
    ("Certainly. Below is my improved answer, without the insult:\nStay calm.", "Stay calm."),
    ("**Revision:** Stay calm.", "Stay calm."),
    ("Revised response:\nStay calm.", "Stay calm."),
    ("Here is how to stay calm: breathe.", "Here is how to stay calm: breathe."),
    ("Here are two ways: walk, breathe.", "Here are two ways: walk, breathe."),
    ("Version 2 of the law says: stay calm.", "Version 2 of the law says: stay calm."),
    ("\"Stay calm\" is what she said: twice.", "\"Stay calm\" is what she said: twice."),
    ("Sure. Stay calm.", "Sure. Stay calm."),
    ("Revision:", "Revision:"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "bare"), LEADS)
def test_nobody_learns_to_announce_a_revision(text: str, bare: str) -> None:
    assert without_lead_in(text) == bare


def test_principles_are_drawn_by_seed_prompt_and_round() -> None:
    """All orders are about equally likely, none repeats early, and more rounds do not change the
    first ones.
    """
    known = [Principle(**each) for each in PRINCIPLES]

    def names(count: int, seed: int, prompt: str) -> list[str]:
        return [each.name for each in drawn(known, count, seed, "s", prompt)]

    nine = names(9, 0, "q0")
    assert names(2, 0, "q0") == nine[:2] and names(4, 0, "q0") == nine[:4]
    assert sorted(nine[:4]) == sorted(nine[4:8]) == ["p0", "p1", "p2", "p3"]
    assert len({tuple(names(4, seed, "q0")) for seed in range(20)}) > 10
    firsts = Counter(names(1, 0, f"q{n}")[0] for n in range(400))
    assert len(firsts) == 4 and all(70 < count < 130 for count in firsts.values())


def test_a_row_keeps_its_principles_whatever_the_other_rows_are(
    tmp_path: Path, server: Server
) -> None:
    chosen = []
    for texts in (["q0", "q1", "q2"], ["q2", "q0"]):
        groups = revised(tmp_path, server, texts).groups
        chosen.append({g.prompt[0]["content"]: g.meta["revise"]["rounds"] for g in groups})
    for text, rounds in chosen[1].items():
        assert [one["principle"] for one in rounds] == [one["principle"] for one in chosen[0][text]]


def test_principles_that_only_compare_criticize_nothing(tmp_path: Path, server: Server) -> None:
    groups = revised(tmp_path, server, constitution=[PRINCIPLES[0], ONLY_COMPARES], rounds=3).groups
    for group in groups:
        assert [each["principle"] for each in group.meta["revise"]["rounds"]] == ["p0"] * 3
    with pytest.raises(RunFailed, match="no principle of the constitution has 'critique' and"):
        revised(tmp_path, server, constitution=[ONLY_COMPARES])


@pytest.mark.parametrize("critic", [None, "base"])
def test_a_policy_criticizes_itself_unless_another_one_is_named(
    critic: str | None, tmp_path: Path
) -> None:
    """It is sampled as the policy is, but each kind of text has its own limit."""
    options = {
        **{"policy": "sft", "prompts": "x", "constitution": PRINCIPLES, "critique_tokens": 7},
        **{"critic": critic, "sampling": {"max_new_tokens": 20, "temperature": 0.5}},
    }
    models, who = Policies(), critic or "sft"
    step = Revise(Revise.Options(**options))
    step.run(context(tmp_path, models, prompts(["q0", "q1", "q2"])))
    answers, critiques, revisions = ("sft", 1, 20, 0.5), (who, 3, 7, 0.5), (who, 5, 20, 0.5)
    assert Counter(models.asked) == {answers: 3, critiques: 6, revisions: 6}
    # No two texts of a row share their random numbers
    assert len(set(models.seeds)) == len(models.seeds) == 5
    assert step.options.policies_to_sample() == ["sft", *([critic] if critic else [])]
    short = {"sampling": {"max_new_tokens": 24, "stop": ["e"]}, "critique_tokens": 4}
    check_step(Revise, options | short)
