"""The step `revise`: what a critic is asked, what is kept, and what is left out with a reason."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from by_role import ByRole

from alignkit import Group, Response, RunFailed
from alignkit.data.group import read_groups
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


def prompt_of(request: dict[str, Any]) -> str:
    return str(request["messages"][0]["content"])


def counting(request: dict[str, Any]) -> Reply:
    """A critic whose texts say how many turns it has read."""
    return said(f"<think>hm</think>\n\n{kind_of(request)} after {len(request['messages'])} turns")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(counting) as running:
        yield running


class Policies(ByRole):
    """Models that say who they are after their thoughts, and remember how they were asked."""

    def sample(self, role: str, prompts: Any, *, seed: int, **sampling: Any) -> list[Group]:
        self.seeds.append(seed)
        limits = [sampling[f"{name}_new_tokens"] for name in ("min", "max")]
        limits.append(sampling["temperature"])
        self.asked += [(role, len(group.prompt), *limits) for group in prompts]
        answer = (Response(f"<think>hm</think>\n\n{role}"),)
        return [Group(group.prompt, answer) for group in prompts]


def revised(
    folder: Path, server: Server | None, texts: Sequence[str] = ("q0", "q1"), **options: Any
) -> Any:
    """What the step makes of these prompts, and the models that it asked."""
    critic = {"critic": {"base_url": server.url, "model": "m"}} if server else {}
    options = {"constitution": PRINCIPLES, "prompts": "p", "policy": "sft", **critic, **options}
    models = Policies(asked=[], seeds=[])
    around = context(folder, models, prompts(texts, meta={"topic": "t"}))
    around.out.mkdir(exist_ok=True)
    step = Revise(Revise.Options(**options))
    step.check(folder)
    return step.run(around), models


def test_each_round_criticizes_and_rewrites_what_the_last_one_wrote(
    tmp_path: Path, server: Server
) -> None:
    """In the words of a principle that can, without the thoughts of the policy or of the critic."""

    def reply(request: dict[str, Any]) -> Reply:
        last = request["messages"][1]["content"]
        text = f"about <{last}>" if kind_of(request) == "critique" else f"{last}+"
        return said(f"<think>\nhm</think>\n\n{text}")

    server.judge = reply
    options = {"constitution": [PRINCIPLES[0], ONLY_COMPARES], "sampling": {"max_new_tokens": 8}}
    artifact, _ = revised(tmp_path, server, ["q0"], rounds=3, **options)
    (group,) = artifact.groups
    texts = ["sft", "sft+", "sft++", "sft+++"]
    rounds = [
        {"principle": "p0", "critique": f"about <{old}>", "revision": new}
        for old, new in itertools.pairwise(texts)
    ]
    assert group.meta == {"topic": "t", "revise": {"answer": "sft", "rounds": rounds}}
    assert [(r.text, r.source) for r in group.responses] == [("sft+++", "m")]
    assert group.prompt[0]["content"] == "q0" and artifact.summary["revised"] == 1
    critique, revision = server.requests[:2]
    turns = [(turn["role"], turn["content"]) for turn in critique["messages"]]
    assert turns[:2] == [("user", "q0"), ("assistant", "sft")] and len(turns) == 3
    assert turns[2][1].startswith("What about p0?\n\n")
    *again, answered, asked = [(turn["role"], turn["content"]) for turn in revision["messages"]]
    assert again == turns and answered == ("assistant", "about <sft>")
    assert asked[1].startswith("Write it by p0.\n\n") and len(server.requests) == 2 * 3
    assert (critique["max_tokens"], revision["max_tokens"]) == (200, 8)
    with pytest.raises(RunFailed, match="no principle of the constitution has 'critique' and"):
        revised(tmp_path, server, constitution=[ONLY_COMPARES])


# By prompt: what the critic says at which question, and why there is no row.
BAD = yaml.safe_load("""
q1: {kind: critique, says: {content: "  "}, reason: "no critique, an empty reply"}
q2: {kind: critique, says: {content: null, refusal: "no"}, reason: "no critique, the server refused"}
q3: {kind: revision, says: {content: x, finish: content_filter}, reason: "no revision, the server refused"}
q4: {kind: revision, says: {content: cut o, finish: length}, reason: revision longer than max_new_tokens}
q5:
  kind: revision
  says: {content: <think>on, finish: length}
  reason: no revision, the reply ends before its thoughts do
q6: {kind: revision, says: null, reason: "no revision, HTTP 400"}
""")


def test_what_cannot_be_learned_is_left_out_with_a_reason(tmp_path: Path, server: Server) -> None:
    """Nothing more is asked about a broken chain."""

    def reply(request: dict[str, Any]) -> Reply:
        bad = BAD.get(prompt_of(request), {})
        if bad.get("kind") != kind_of(request):
            return counting(request)
        return said(**bad["says"]) if bad["says"] else Reply(400, {"error": "of row 6"})

    server.judge = reply
    artifact, _ = revised(tmp_path, server, ["q0", *BAD], rounds=2)
    assert [group.prompt[0]["content"] for group in artifact.groups] == ["q0"]
    reasons = [bad["reason"] for bad in BAD.values()]
    assert artifact.summary["dropped"] == Counter(reasons) and artifact.summary["revised"] == 1
    gone = read_rows(tmp_path / "out" / "dropped.jsonl")
    assert [row["prompt"][0]["content"] for row in gone] == list(BAD)
    asked = Counter(map(prompt_of, server.requests))
    for row, (prompt, bad) in zip(gone, BAD.items(), strict=True):
        assert row["dropped"].startswith(bad["reason"]) and len(row["rounds"]) == 1
        assert asked[prompt] == (1 if bad["kind"] == "critique" else 2)


def test_if_nothing_is_left_the_run_ends_and_says_why(tmp_path: Path, server: Server) -> None:
    server.judge = lambda request: said("")
    words = "(?s)0 of 2 answers revised by m.*left out, no critique, an empty reply: 2"
    with pytest.raises(RunFailed, match=words):
        revised(tmp_path, server)


def test_a_stopped_run_continues_and_asks_nothing_twice(tmp_path: Path, server: Server) -> None:
    """The server fails for good while the second chunk of 16 prompts is revised."""
    texts = [f"question number {n}" for n in range(20)]
    write_rows(tmp_path / "prompts.jsonl", prompts(texts))
    step = {"step": "revise", "prompts": "prompts.jsonl", "constitution": PRINCIPLES, "rounds": 1}
    step |= {"critic": {"base_url": server.url, "model": "m"}, "sampling": {"max_new_tokens": 8}}
    recipe = write_recipe(tmp_path, {"revised": step})
    bad = (texts[18], "revision")
    server.judge = lambda request: (
        Reply(401) if (prompt_of(request), kind_of(request)) == bad else counting(request)
    )
    run(recipe, code=6)
    before = list(map(kind_of, server.requests))
    assert before.count("critique") == 20
    server.judge = counting
    folder = run(recipe) / "revised"
    again = list(map(kind_of, server.requests[len(before) :]))
    assert 1 <= len(again) <= 4 and set(again) == {"revision"}
    assert len(read_groups(folder / "data.jsonl")) == 20


LEADS = yaml.safe_load(r"""
"Here is the revised answer:\n\nStay calm.": Stay calm.
"Sure! Here's a rewritten version of the response: \"Stay calm.\"": Stay calm.
"Certainly. Below is my improved answer, without the insult:\nStay calm.": Stay calm.
"**Revision:** Stay calm.": Stay calm.
"Revised response:\nStay calm.": Stay calm.
"Here is how to stay calm: breathe.": "Here is how to stay calm: breathe."
"Here are two ways: walk, breathe.": "Here are two ways: walk, breathe."
"Version 2 of the law says: stay calm.": "Version 2 of the law says: stay calm."
"\"Stay calm\" is what she said: twice.": "\"Stay calm\" is what she said: twice."
Sure. Stay calm.: Sure. Stay calm.
"Revision:": "Revision:"
""")


@pytest.mark.parametrize(("text", "bare"), LEADS.items())
def test_nobody_learns_to_announce_a_revision(text: str, bare: str) -> None:
    assert without_lead_in(text) == bare


def test_principles_are_drawn_by_seed_prompt_and_round() -> None:
    """Each is about as often the first one, none repeats early, and more rounds do not change the
    first ones.
    """
    known = [Principle(**each) for each in PRINCIPLES]

    def names(count: int, seed: int, prompt: str) -> list[str]:
        return [each.name for each in drawn(known, count, seed, "s", prompt)]

    nine = names(9, 0, "q0")
    assert names(2, 0, "q0") == nine[:2]
    assert sorted(nine[:4]) == sorted(nine[4:8]) == ["p0", "p1", "p2", "p3"]
    assert len({tuple(names(4, seed, "q0")) for seed in range(20)}) > 10
    firsts = Counter(names(1, 0, f"q{n}")[0] for n in range(400))
    assert len(firsts) == 4 and min(firsts.values()) > 70


@pytest.mark.parametrize("critic", [None, "base"])
def test_a_policy_criticizes_itself_unless_another_one_is_named(
    critic: str | None, tmp_path: Path
) -> None:
    """It is sampled as the policy is, but each kind of text has its own limit, and only answers have
    a least length. A row keeps its principles whatever the other rows are.
    """
    options: dict[str, Any] = {"critic": critic, "critique_tokens": 7}
    options["sampling"] = {"min_new_tokens": 4, "max_new_tokens": 20, "temperature": 0.5}
    chosen = []
    for texts in (["q2", "q0"], ["q0", "q1", "q2"]):
        artifact, models = revised(tmp_path, None, texts, **options)
        by_prompt = {group.prompt[0]["content"]: group.meta["revise"] for group in artifact.groups}
        chosen.append(by_prompt)
    who = critic or "sft"
    answers, critiques, revisions = (
        ("sft", 1, 4, 20, 0.5),
        (who, 3, 0, 7, 0.5),
        (who, 5, 0, 20, 0.5),
    )
    assert Counter(models.asked) == {answers: 3, critiques: 6, revisions: 6}
    assert chosen[0] == {text: chosen[1][text] for text in ("q2", "q0")}
    # No two texts of a row share their random numbers
    assert len(set(models.seeds)) == len(models.seeds) == 5
    options |= {"constitution": PRINCIPLES, "prompts": "x", "policy": "sft"}
    sampled = Revise.Options(**options).policies_to_sample()
    assert sampled == ["sft", *([critic] if critic else [])]
