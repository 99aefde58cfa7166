"""The step `people`: a run asks, waits with exit code 75, and continues when people have
labeled.
"""

from __future__ import annotations

import json
import os
import signal
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit.cli import main
from alignkit.data.group import Group, read_groups
from alignkit_plugins.people.assignment import Assignment, next_item
from alignkit_plugins.people.items import TASKS
from alignkit_plugins.people.store import Event, Store
from alignkit_plugins.people.votes import labeled
from alignkit_plugins.report.document import page as html_of
from alignkit_plugins.report.facts import facts_of
from tests.killed import forked
from tests.people.labelers import label
from tests.stores import pair

PROMPTS = [f"bread {word}" for word in ("is", "good", "old", "new")]
ANSWERS: dict[str, Any] = {
    "step": "sample", "prompts": "prompts.jsonl", (
        "samples_per_prompt"
    ): 2, "sampling": {"max_new_tokens": 6},
}  # fmt: skip
REWARD = {
    "algorithm": {"reward_model": {"margin": "llama2-small"}},
    "data": "labels",
    "max_steps": 1,
}


def write(folder: Path, stages: dict[str, Any], **more: Any) -> Path:
    lines = [json.dumps({"prompt": text}) for text in PROMPTS]
    (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = {"model": {"base": "tiny", "dtype": "float32"}, "stages": stages, **more}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return folder / "recipe.yaml"


def run(folder: Path, stages: dict[str, Any], out: str = "run") -> int:
    return main(["run", str(write(folder, stages)), "--out", str(folder / out)])


def rows(folder: Path, *found: dict[str, Any], name: str = "rows.jsonl") -> str:
    (folder / name).write_text("\n".join(map(json.dumps, found)), encoding="utf-8")
    return name


def record(folder: Path, stage: str, out: str = "run") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (folder / out / stage / "stage.json").read_text(encoding="utf-8")
    )
    return found


def data(folder: Path, stage: str = "labels") -> list[Group]:
    return read_groups(folder / "run" / stage / "data.jsonl")


def report(folder: Path) -> dict[str, Any]:
    assert main(["show", str(folder / "run")]) == 0
    return dict(facts_of(folder / "run"))


def test_a_run_waits_for_labels_and_a_reward_model_learns_their_margins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {"answers": ANSWERS, "labels": {"step": "people", "data": "answers"}, "reward": REWARD}
    store = tmp_path / "run" / "labels.feedback"
    assert run(tmp_path, stages) == 75
    shown = capsys.readouterr().err
    assert "stage 'labels' waits for 4 labels: 0 of 4 items are done\n" in shown
    assert (
        f"  to label: alignkit label {store}\n" in shown
        and "  to resume: " in shown
        and "error:" not in shown
    )
    assert "reward: stage" not in shown
    label(store, most=3)
    assert run(tmp_path, stages) == 75
    assert "waits for 1 label: 3 of 4 items are done\n" in capsys.readouterr().err
    label(store)
    assert run(tmp_path, stages) == 0
    pairs = [(group.pairs or ())[0] for group in data(tmp_path)]
    assert len(pairs) == 4 and {one.margin for one in pairs} == {"significantly"}
    for group, one in zip(data(tmp_path), pairs, strict=True):
        assert len(group.responses[one.better].text) >= len(group.responses[one.worse].text)
    assert record(tmp_path, "reward")["summary"]["groups"] == 4
    assert run(tmp_path, stages) == 0
    assert "labels: unchanged, reused" in capsys.readouterr().err


def test_a_report_says_that_a_run_waits_and_who_labeled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {"answers": ANSWERS, "labels": {"step": "people", "data": "answers", "annotators": 2}}
    run(tmp_path, stages)
    found = report(tmp_path)
    assert found["run"]["outcome"] == "waiting" and "waits for 8 labels" in found["run"]["message"]
    assert {row["name"]: row["state"] for row in found["stages"]} == {
        "answers": "done",
        "labels": "waiting for 8 labels",
    }
    page = html_of(found)
    assert (
        'class="state even"><strong>waiting</strong>' in page and '<pre class="error">' not in page
    )
    capsys.readouterr()
    assert main(["show", str(tmp_path / "run")]) == 0
    assert "waiting" in capsys.readouterr().out
    store = tmp_path / "run" / "labels.feedback"
    label(store, "ann")
    with Store.open(store) as opened:
        item = opened.items()[0].item.id
        opened.submit(Event(str(uuid.uuid4()), "bob", "skip", {"reason": "too long"}, item))
    label(store, "bob")
    label(store, "eve")
    assert run(tmp_path, stages) == 0
    summary = record(tmp_path, "labels")["summary"]
    assert (summary["items"], summary["labels"], summary["annotators"]) == (4, 8, 3)
    text = (tmp_path / "run" / "labels" / "report.txt").read_text(encoding="utf-8")
    assert "people: 8 labels of 4 items by 3 people" in text
    assert report(tmp_path)["run"]["outcome"] == "done"


PAIR = {"prompt": "Hi", "chosen": "Hello there!", "rejected": "What?"}
RANKED = {"prompt": "Hi", "responses": ["one", "three", "fifteen"], "ranks": [1, 2, 3]}
READS = {
    "pair": lambda group: (
        [(pair.better, pair.margin) for pair in group.pairs] == [(0, "significantly")]
    ),
    "safety": lambda group: group.meta["safety_bin"] == "both_safe",
    "ranking": lambda group: [response.rank for response in group.responses] == [3, 2, 1],
    "review": lambda group: (
        ([response.rank for response in group.responses], group.meta["overall"]) == ([1, 1], [4, 4])
    ),
    "demonstration": lambda group: (
        [response.text for response in group.responses] == ["An answer."]
    ),
    "thumb": lambda group: [response.label for response in group.responses] in ([True], [False]),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_becomes_data(tmp_path: Path, task: str) -> None:
    row = {"ranking": RANKED, "demonstration": {"prompt": "Hi"}}.get(task, PAIR)
    stages = {"labels": {"step": "people", "data": rows(tmp_path, row), "task": task}}
    assert run(tmp_path, stages) == 75
    label(tmp_path / "run" / "labels.feedback")
    assert run(tmp_path, stages) == 0
    groups = data(tmp_path)
    assert len(groups) == (2 if task == "thumb" else 1)
    assert all(map(READS[task], groups))


def test_samples_of_two_policies_are_compared(tmp_path: Path) -> None:
    one = {**ANSWERS, "samples_per_prompt": 1}
    people = {"step": "people", "data": ["cold", "hot"], "join_prompts": True}
    stages = {
        "cold": {**one, "sampling": {"max_new_tokens": 6, "temperature": 0.5}},
        "hot": {**one, "sampling": {"max_new_tokens": 6, "temperature": 2.0}},
        "labels": people,
    }
    assert run(tmp_path, stages) == 75
    with Store.open(tmp_path / "run" / "labels.feedback") as store:
        items = [stored.item for stored in store.items()]
    assert [(item.task, len(item.responses)) for item in items] == [("pair", 2)] * 4


def test_samples_of_two_policies_are_an_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of four prompts go to `hot`, one to `base`, and on one of them two people disagree."""
    responses = {"hot": "a hot answer", "base": "a plain one"}
    found = [
        {
            "prompt": f"{n}",
            "responses": [{"text": text, "source": who} for who, text in responses.items()],
        }
        for n in range(4)
    ]
    (tmp_path / "made.py").write_text(SOURCES, encoding="utf-8")
    data = {"sources": rows(tmp_path, *found)}
    recipe = write(tmp_path, {"labels": {"step": "people", "data": data, "annotators": 2}})
    words = [
        "run",
        str(recipe),
        "--out",
        str(tmp_path / "run"),
        "--plugin",
        str(tmp_path / "made.py"),
    ]
    assert main(words) == 75
    for who, losses in (("ann", ["0"]), ("bob", ["0", "1"])):

        def answer(given: Assignment, losses: list[str] = losses) -> dict[str, Any]:
            item = given.stored.item
            chosen = "base" if item.prompt[0]["content"] in losses else "hot"
            return {"side": "AB"[given.order.index(item.origins.index(chosen))], "margin": "better"}

        label(tmp_path / "run" / "labels.feedback", who, answer=answer)
    assert main(words) == 0
    assert "what people prefer" in capsys.readouterr().out
    (row,) = record(tmp_path, "labels")["summary"]["wins"]
    assert (row["source"], row["against"], row["pairs"]) == ("base", "hot", 4)
    assert (
        row["preferred"]["mean"] == (1 + 0.5) / 4
        and row["preferred"]["low"] < 0.375 < row["preferred"]["high"]
    )


SOURCES = """
from alignkit import Format, Group, Response, hookimpl

class Sources(Format):
    summary = "rows whose responses name their sources"

    def read(self, row):
        answers = tuple(Response(text=each["text"], source=each["source"]) for each in row["responses"])
        return Group(({"role": "user", "content": row["prompt"]},), answers, pairs=())

@hookimpl
def register(add):
    add("format", "sources", Sources)
"""


def test_demonstrations_are_reviewed_by_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody reviews what they wrote, and what most find bad is not learned."""
    step = {"step": "people", "data": rows(tmp_path, {"prompt": "Hi"}, {"prompt": "Ho"})}
    stages = {
        "labels": {**step, "task": "demonstration", "reviewers": 2},
        "sft": {"algorithm": "sft", "data": "labels", "max_steps": 1},
    }
    store = tmp_path / "run" / "labels.feedback"
    assert run(tmp_path, stages) == 75
    label(store, "ann", most=1, answer=lambda given: {"text": "Good day."})
    label(store, "bob", answer=lambda given: {"text": "Grrr."})
    assert run(tmp_path, stages) == 75
    assert "waits for 4 labels: 0 of 2 items are done" in capsys.readouterr().err

    def good(given: Assignment) -> dict[str, Any]:
        return {"good": given.stored.item.responses != ("Grrr.",)}

    assert [label(store, who, answer=good) for who in ("ann", "bob", "eve")] == [1, 1, 2]
    assert run(tmp_path, stages) == 0
    assert [group.responses[0].text for group in data(tmp_path)] == ["Good day."]


def test_equal_samples_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    greedy = {**ANSWERS, "sampling": {"max_new_tokens": 6, "temperature": 0.001}}
    stages = {"answers": greedy, "labels": {"step": "people", "data": "answers"}}
    assert run(tmp_path, stages) == 1
    assert (
        "there is no row to label\n  4 left out: its responses do not differ"
        in capsys.readouterr().err
    )


def test_a_changed_stage_asks_anew_and_no_label_is_lost(tmp_path: Path) -> None:
    stages: dict[str, Any] = {"answers": ANSWERS, "labels": {"step": "people", "data": "answers"}}
    store = tmp_path / "run" / "labels.feedback"
    run(tmp_path, stages)
    label(store)
    assert run(tmp_path, stages) == 0
    first = data(tmp_path)
    changed = {
        **stages,
        "answers": {**ANSWERS, "sampling": {"max_new_tokens": 6, "temperature": 0.7}},
    }
    assert run(tmp_path, changed) == 75
    with Store.open(store) as opened:
        assert [(s.retired, s.labels) for s in opened.items()] == [(True, 1)] * 4 + [(False, 0)] * 4
    assert run(tmp_path, stages) == 0, "the first labels count again"
    assert data(tmp_path) == first
    (tmp_path / "run" / "labels" / "data.jsonl").unlink()
    assert run(tmp_path, stages) == 0
    assert data(tmp_path) == first, "from the store, where all labels are"


ROUNDS: dict[str, Any] = {
    "demos": {"algorithm": "sft", "data": "demos.jsonl", "max_steps": 1},
    "rlhf": {
        "repeat": 3,
        "start": {"policy": "demos"},
        "stages": {
            "answers": {**ANSWERS, "policy": "policy"},
            "labels": {"step": "people", "data": "answers"},
            "reward": {**REWARD, "data": "labels@all"},
            "policy": {
                "algorithm": "dpo",
                "from": "policy",
                "data": "labels",
                "max_steps": 1,
                "learning_rate": 0.01,
            },
        },
    },
}


def test_every_round_asks_about_the_newest_policy_and_learns_from_all_labels(
    tmp_path: Path,
) -> None:
    rows(tmp_path, {"prompt": "Hi", "completion": "Hello!"}, name="demos.jsonl")
    store = tmp_path / "run" / "labels.feedback"
    for number in range(1, 4):
        assert run(tmp_path, ROUNDS) == 75
        states = {row["name"]: row["state"] for row in report(tmp_path)["stages"]}
        assert (
            states[f"labels_{number}"] == "waiting for 4 labels"
            and states[f"reward_{number}"] == "not begun"
        )
        assert label(store) == 4, "only this round's items are open"
    assert run(tmp_path, ROUNDS) == 0
    assert [record(tmp_path, f"reward_{number}")["summary"]["groups"] for number in (1, 2, 3)] == [
        4,
        8,
        12,
    ]
    with Store.open(store) as opened:
        assert [entry.stored.item.batch for entry in labeled(opened)] == [
            f"labels_{n}" for n in (1, 2, 3) for _ in "1234"
        ]


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_is_killed_before_it_writes_the_labels_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = {"answers": ANSWERS, "labels": {"step": "people", "data": "answers"}}
    store = tmp_path / "run" / "labels.feedback"
    assert run(tmp_path, stages) == 75
    label(store)
    words = ["run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(
            "alignkit.runs.stage.write_groups",
            lambda *anything: os.kill(os.getpid(), signal.SIGKILL),
        )
        assert forked(*words) == -signal.SIGKILL
    assert not (tmp_path / "run" / "labels" / "data.jsonl").exists()
    assert run(tmp_path, stages) == 0 and len(data(tmp_path)) == 4


def test_what_people_said_is_not_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {"labels": {"step": "people", "data": rows(tmp_path, PAIR), "store": "all.feedback"}}
    run(tmp_path, stages)
    label(tmp_path / "all.feedback")
    assert run(tmp_path, stages) == 0
    before = (tmp_path / "all.feedback").read_bytes()
    assert main(["verify", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr()
    assert "labels: not verified, because people labeled what it read" in shown.out
    assert (tmp_path / "all.feedback").read_bytes() == before


@pytest.mark.parametrize(
    ("people", "code", "text"),
    [
        ({"store": "labels.sqlite"}, 2, "the name of a store must end in .feedback"),
        (
            {"task": "ranking", "data": "one.jsonl"},
            4,
            "one.jsonl:1: a ranking has 2 to 9 responses, not 1",
        ),
        ({"reviewers": 1}, 2, "'reviewers' needs 'task: demonstration'"),
    ],
)
def test_mistakes_are_found_before_the_run(
    tmp_path: Path, people: dict[str, Any], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows(tmp_path, {"prompt": "Hi", "completion": "Hello!"}, name="one.jsonl")
    (tmp_path / "labels.sqlite").touch()
    found = rows(tmp_path, PAIR, {**PAIR, "prompt": "Ho"})
    recipe = write(tmp_path, {"labels": {"step": "people", "data": found, **people}})
    assert main(["check", str(recipe)]) == code
    assert text in capsys.readouterr().err
    assert not (tmp_path / "runs").exists() and not list(tmp_path.glob("*.feedback"))


def test_people_are_asked_first_where_a_judge_and_a_reward_disagree(tmp_path: Path) -> None:
    """The reward prefers what is long, the judge has planted verdicts: only on the third row is it
    the other one.
    """
    pairs = [
        {"prompt": f"row {n}", "chosen": "long " * (n + 2), "rejected": "short"} for n in range(4)
    ]
    judge = {"rlaif": {"judge": {"length_judge": {"wrong": "row 2"}}}}
    (tmp_path / "plugin.py").write_text(LENGTH_JUDGE, encoding="utf-8")
    reward = {"length": {"unit": "characters"}}
    labels = {
        "step": "people",
        "data": rows(tmp_path, *pairs),
        "limit": 2,
        "rewards": [reward, judge],
    }
    recipe = write(tmp_path, {"labels": labels})
    words = [
        "run",
        str(recipe),
        "--out",
        str(tmp_path / "run"),
        "--plugin",
        str(tmp_path / "plugin.py"),
    ]
    assert main(words) == 75
    with Store.open(tmp_path / "run" / "labels.feedback") as store:
        given = next_item(store, "ann")
        assert given is not None and given.stored.item.prompt[0]["content"] == "row 2"
    assert label(tmp_path / "run" / "labels.feedback") == 2
    assert main(words) == 0 and data(tmp_path)[0].prompt[0]["content"] == "row 2"


LENGTH_JUDGE = """
import alignkit
from alignkit import Field, Judge, Verdict, hookimpl

class LengthJudge(Judge):
    class Options(alignkit.Options):
        wrong: str = Field("", description="the prompt on which the shorter one is better")

    def compare(self, items):
        found = []
        for prompt, first, second in items:
            longer = len(first) > len(second)
            found.append(Verdict(0.9 if longer != (prompt[-1]["content"] == self.options.wrong) else 0.1))
        return found

@hookimpl
def register(add):
    add("judge", "length_judge", LengthJudge, "prefers what is long")
"""


@pytest.mark.parametrize(
    ("options", "note", "sure"),
    [
        ({}, "", []),  # all are tied
        ({"min_gold": 0.8}, "left out, gold below 80%: bob 0 of 5", [1.0] * 5),
    ],
)
def test_a_step_reads_labels_of_people_who_know_the_task(
    options: dict[str, Any], note: str, sure: list[float], tmp_path: Path
) -> None:
    asked = [{**PAIR, "prompt": f"asked {place}"} for place in range(5)]
    step = {"step": "people", "data": rows(tmp_path, *asked)}
    stages = {"labels": {**step, "annotators": 2, **options}}
    assert run(tmp_path, stages) == 75
    with Store.open(tmp_path / "run" / "labels.feedback") as store:
        store.add(pair(f"known {place}", gold={"better": 0}) for place in range(5))
        for stored in store.items():
            for who, side in ("ann", "A"), ("bob", "B"):  # the first response is the better one
                said = {"side": side, "margin": "better"}
                store.submit(
                    Event(
                        str(uuid.uuid4()),
                        who,
                        "label",
                        said,
                        stored.item.id,
                        order=(0, 1),
                        seconds=3.0,
                    )
                )
    assert run(tmp_path, stages) == 0
    assert note in "".join(record(tmp_path, "labels")["summary"]["notes"])
    assert note in (tmp_path / "run" / "labels" / "report.txt").read_text()
    found = data(tmp_path)
    assert [group.prompt[0]["content"] for group in found] == [row["prompt"] for row in asked]
    pairs = [pair for group in found for pair in group.pairs or ()]
    assert [(pair.better, round(pair.p, 3)) for pair in pairs] == [(0, share) for share in sure]
    (people,) = report(tmp_path)["people"]
    (which,) = people["agreement"]
    shares = {who: facts["with_gold"]["mean"] for who, facts in which["people"].items()}
    assert shares == {"ann": 1, "bob": 0} and which["items"] == 10
