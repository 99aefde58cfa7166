"""The step `revise`: what a critic is asked, what is kept, and what is left out with a reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from by_role import ByRole
from test_rlaif import Reply, Server

from alignkit import Group, Response
from alignkit.cli import main
from alignkit.data.group import read_groups
from alignkit.testing import check_step
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.ai_feedback.constitution import Principle, drawn
from alignkit_plugins.ai_feedback.revise import Revise, without_lead_in
from tests.evaluate.scripted import context

PRINCIPLES = [
    {
        "name": f"p{n}",
        "critique": f"What about p{n}?",
        "revise": f"Write it by p{n}.",
        "compare": f"By p{n}.",
    }
    for n in range(4)
]
ONLY_COMPARES = {"name": "compares", "compare": "The better one."}


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


def says(text: str | None, end: str = "stop", **message: Any) -> Reply:
    return Reply(
        body={"choices": [{"message": {"content": text, **message}, "finish_reason": end}]}
    )


def asked_for(request: dict[str, Any]) -> str:
    return (
        "revision"
        if "Write only the rewritten answer" in request["messages"][-1]["content"]
        else "critique"
    )


def run(
    folder: Path,
    url: str = "",
    expected: int = 0,
    prompts: Sequence[str] = ("q0", "q1"),
    **options: Any,
) -> Path:
    rows = "".join(json.dumps({"prompt": text, "topic": text[-1]}) + "\n" for text in prompts)
    (folder / "prompts.jsonl").write_text(rows, encoding="utf-8")
    critic = {"critic": {"base_url": url, "model": "m"}} if url else {}
    step = {
        "step": "revise",
        "prompts": "prompts.jsonl",
        "constitution": PRINCIPLES,
        "sampling": {"max_new_tokens": 8},
        **critic,
    }
    recipe = {
        "model": {"base": "tiny", "dtype": "float32"},
        "stages": {"revised": {**step, **options}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["run", str(folder / "recipe.yaml"), "--out", str(folder / "run")]) == expected
    return folder / "run" / "revised"


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "stage.json").read_text(encoding="utf-8"))[
        "summary"
    ]
    return found


def dropped(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (folder / "dropped.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def counting(request: dict[str, Any]) -> Reply:
    """A critic whose texts say how many turns it has read."""
    return says(f"{asked_for(request)} after {len(request['messages'])} turns")


def test_each_round_criticizes_and_rewrites_what_the_last_one_wrote(
    tmp_path: Path, server: Server
) -> None:
    def reply(request: dict[str, Any]) -> Reply:
        last = [turn["content"] for turn in request["messages"] if turn["role"] == "assistant"]
        if asked_for(request) == "critique":
            return says(f"about <{last[0]}>")
        return says(f"{last[0]}+")

    server.judge = reply
    groups = read_groups(run(tmp_path, server.url, rounds=3) / "data.jsonl")
    assert [group.prompt[0]["content"] for group in groups] == ["q0", "q1"]
    for group in groups:
        revise = group.meta["revise"]
        texts = [revise["answer"], *(entry["revision"] for entry in revise["rounds"])]
        assert texts == [revise["answer"] + "+" * n for n in range(4)]
        assert [entry["critique"] for entry in revise["rounds"]] == [
            f"about <{text}>" for text in texts[:3]
        ]
        assert [(r.text, r.source) for r in group.responses] == [(texts[-1], "m")]
        # The prompt's own columns stay
        assert group.meta["topic"] == group.prompt[0]["content"][-1]
    assert len(server.requests) == 2 * 2 * 3


def test_the_questions_are_turns_in_the_words_of_the_principle(
    tmp_path: Path, server: Server
) -> None:
    server.judge = counting
    (group, *_) = read_groups(run(tmp_path, server.url, rounds=1, prompts=["q0"]) / "data.jsonl")
    critique, revision = server.requests
    (entry,) = group.meta["revise"]["rounds"]
    turns = [(turn["role"], turn["content"]) for turn in critique["messages"]]
    assert turns[:2] == [("user", "q0"), ("assistant", group.meta["revise"]["answer"])]
    assert turns[2][1].startswith(f"What about {entry['principle']}?\n\n") and len(turns) == 3
    assert [turn["content"] for turn in revision["messages"][:3]] == [text for _, text in turns]
    assert revision["messages"][3] == {"role": "assistant", "content": "critique after 3 turns"}
    assert revision["messages"][4]["content"].startswith(f"Write it by {entry['principle']}.\n\n")
    assert (critique["max_tokens"], revision["max_tokens"], critique["model"]) == (200, 8, "m")


BAD: list[tuple[str, Reply, str]] = [
    ("critique", says(""), "no critique, an empty reply"),
    ("critique", says(None, refusal="no"), "no critique, the server refused"),
    ("critique", says("x", end="content_filter"), "no critique, the server refused"),
    ("revision", says("  \n"), "no revision, an empty reply"),
    ("revision", says("cut o", end="length"), "revision longer than max_new_tokens"),
    ("revision", says("I will n", refusal="no"), "no revision, the server refused"),
    (
        "revision",
        says("<think>never ending", end="length"),
        "no revision, the reply ends before its thoughts do",
    ),
    ("revision", Reply(status=400, body={"error": "of row 1"}), "no revision, HTTP 400"),
]


@pytest.mark.parametrize(
    ("kind", "bad", "reason"), BAD, ids=[f"{kind}-{reason}" for kind, _, reason in BAD]
)
def test_what_cannot_be_learned_is_left_out_with_a_reason(
    kind: str, bad: Reply, reason: str, tmp_path: Path, server: Server
) -> None:
    """Only q1's chain breaks, and nothing more is asked about it."""

    def reply(request: dict[str, Any]) -> Reply:
        broken = request["messages"][0]["content"] == "q1" and asked_for(request) == kind
        return bad if broken else counting(request)

    server.judge = reply
    folder = run(tmp_path, server.url, rounds=2)
    assert [group.prompt[0]["content"] for group in read_groups(folder / "data.jsonl")] == ["q0"]
    assert summary(folder)["dropped"] == {reason: 1} and summary(folder)["revised"] == 1
    (gone,) = dropped(folder)
    assert (
        gone["dropped"].startswith(reason)
        and gone["prompt"][0]["content"] == "q1"
        and len(gone["rounds"]) == 1
    )
    of_q1 = [request for request in server.requests if request["messages"][0]["content"] == "q1"]
    assert Counter(map(asked_for, of_q1)) == {
        "critique": 1,
        **({"revision": 1} if kind == "revision" else {}),
    }


def test_if_nothing_is_left_the_run_ends_and_says_why(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.judge = lambda request: (
        says("", end="stop") if asked_for(request) == "revision" else counting(request)
    )
    run(tmp_path, server.url, expected=1)
    said = capsys.readouterr().err
    assert "stage 'revised': 0 of 2 answers revised by m" in said
    assert "left out, no revision, an empty reply: 2" in said


def test_thoughts_are_no_part_of_what_is_learned(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those of the critic nor those of the policy."""
    monkeypatch.setattr(Encoder, "said", lambda encoder, tokens: "<think>hm</think>\n\nmine")
    server.judge = lambda request: says(f"<think>\nhm: {len(request['messages'])}</think>\n\nfine")
    folder = run(tmp_path, server.url, rounds=1)
    assert {group.responses[0].text for group in read_groups(folder / "data.jsonl")} == {"fine"}
    assert not any(
        "hm" in turn["content"] for request in server.requests for turn in request["messages"]
    )
    assert any(
        "mine" in turn["content"] for request in server.requests for turn in request["messages"]
    )


def test_a_wrong_setting_costs_a_few_questions(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.judge = lambda request: Reply(status=400, body={"error": "user must be a number"})
    run(tmp_path, server.url, expected=1, prompts=[f"q{n}" for n in range(9)])
    err = capsys.readouterr().err
    assert len(server.requests) == 4 and "no reply of use to the first questions: HTTP 400" in err
    assert "user must be a number" in err and "`request`" in err


def test_a_stopped_run_continues_and_asks_nothing_twice(tmp_path: Path, server: Server) -> None:
    """The server fails for good while the second chunk of 16 prompts is criticized."""
    prompts = [f"question number {n}" for n in range(20)]

    def failing(request: dict[str, Any]) -> Reply:
        late = request["messages"][0]["content"] == prompts[18]
        return Reply(status=401) if late and asked_for(request) == "revision" else counting(request)

    server.judge = failing
    run(tmp_path, server.url, expected=6, prompts=prompts, rounds=1)
    asked = [json.dumps(request) for request in server.requests if asked_for(request) == "critique"]
    assert len(asked) == 20
    server.judge, before = counting, len(server.requests)
    folder = run(tmp_path, server.url, prompts=prompts, rounds=1)
    again = [json.dumps(request) for request in server.requests[before:]]
    assert 1 <= len(again) <= 4 and all(
        asked_for(json.loads(request)) == "revision" for request in again
    )
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


def principles(*items: dict[str, str]) -> list[Principle]:
    return [Principle(**item) for item in items or PRINCIPLES]


def test_principles_are_drawn_by_seed_prompt_and_round() -> None:
    """All orders are about equally likely, none repeats early, and more rounds do not change the
    first ones.
    """
    known = principles()
    names: Callable[..., list[str]] = lambda *args: [p.name for p in drawn(known, *args)]  # noqa: E731
    assert names(2, 0, "s", "q0") == names(4, 0, "s", "q0")[:2] == names(9, 0, "s", "q0")[:2]
    assert (
        sorted(names(4, 0, "s", "q0"))
        == ["p0", "p1", "p2", "p3"]
        == sorted(names(8, 0, "s", "q0")[4:])
    )
    assert len({tuple(names(4, seed, "s", "q0")) for seed in range(20)}) > 10
    firsts = Counter(names(1, 0, "s", f"q{n}")[0] for n in range(400))
    assert set(firsts) == {"p0", "p1", "p2", "p3"} and all(
        70 < count < 130 for count in firsts.values()
    )


def test_a_row_keeps_its_principles_whatever_the_other_rows_are(
    tmp_path: Path, server: Server
) -> None:
    server.judge = counting
    chosen: list[dict[str, list[str]]] = []
    for name, prompts in (("a", ["q0", "q1", "q2"]), ("b", ["q2", "q0"])):
        (tmp_path / name).mkdir()
        groups = read_groups(run(tmp_path / name, server.url, prompts=prompts) / "data.jsonl")
        chosen.append(
            {
                g.prompt[0]["content"]: [e["principle"] for e in g.meta["revise"]["rounds"]]
                for g in groups
            }
        )
    assert chosen[1] == {name: chosen[0][name] for name in ("q0", "q2")}


def test_principles_that_only_compare_criticize_nothing(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.judge = counting
    folder = run(tmp_path, server.url, constitution=[PRINCIPLES[0], ONLY_COMPARES], rounds=3)
    rows = [group.meta["revise"]["rounds"] for group in read_groups(folder / "data.jsonl")]
    assert [[each["principle"] for each in rounds] for rounds in rows] == [["p0"] * 3] * 2
    run(tmp_path, server.url, expected=2, constitution=[ONLY_COMPARES])
    assert "no principle of the constitution has 'critique' and 'revise'" in capsys.readouterr().err


def test_a_policy_criticizes_itself_unless_another_one_is_named(tmp_path: Path) -> None:
    options = {
        "prompts": "x",
        "constitution": PRINCIPLES,
        "sampling": {"max_new_tokens": 24, "stop": ["e"]},
        "critique_tokens": 4,
    }
    check_step(Revise, {**options, "policy": "sft"})
    named = {"policy": "sft", "prompts": "x", "constitution": PRINCIPLES}
    assert Revise.Options(**named).policies_to_sample() == ["sft"]
    assert Revise.Options(**named, critic="base").policies_to_sample() == ["sft", "base"]


class Roles(ByRole):
    """Models that say who they are, and which ask for nothing but words."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, dict[str, Any]]] = []
        self.seeds: list[int] = []

    def sample(self, role: str, prompts: Any, *, seed: int, **sampling: Any) -> list[Group]:
        prompts = [group.prompt for group in prompts]
        self.asked += [(role, len(prompt), sampling) for prompt in prompts]
        self.seeds.append(seed)
        return [
            Group(tuple(prompt), (Response(f"{role} {len(prompt)} {seed}"),)) for prompt in prompts
        ]


@pytest.mark.parametrize(
    ("critic", "expected"), [(None, "sft"), ("base", "base"), ("other", "other")]
)
def test_the_critic_is_the_policy_that_is_named(
    critic: str | None, expected: str, tmp_path: Path
) -> None:
    """It is sampled as the policy is, but each kind of text has its own limit."""
    models = Roles()
    groups = [Group(({"role": "user", "content": f"q{n}"},), id=f"q{n}") for n in range(3)]
    options = {
        "critic": critic,
        "rounds": 2,
        "sampling": {"max_new_tokens": 20, "temperature": 0.5},
        "critique_tokens": 7,
    }
    step = Revise(
        Revise.Options(policy="sft", prompts="x", constitution=tuple(principles()), **options)
    )
    artifact = step.run(context(models, tmp_path, groups))
    assert Counter((role, turns) for role, turns, _ in models.asked) == Counter(
        {("sft", 1): 3, (expected, 3): 6, (expected, 5): 6}
    )
    limits = {
        turns: (sampling["max_new_tokens"], sampling["temperature"])
        for _, turns, sampling in models.asked
    }
    assert limits == {1: (20, 0.5), 3: (7, 0.5), 5: (20, 0.5)}
    assert len(artifact.groups or ()) == 3
    # No two texts of a row share their random numbers
    assert len(set(models.seeds)) == len(models.seeds) == 5
