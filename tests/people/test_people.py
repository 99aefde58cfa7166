"""The step `people`: a run asks, waits with exit code 75, and continues when people have
labeled.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from stores import event, pair, side

from alignkit import Group, Pair, Response
from alignkit.cli import main
from alignkit.data.group import read_groups
from alignkit.io.results import read_record
from alignkit_plugins.compare.comparison import UNIT
from alignkit_plugins.people.agreement import agreement
from alignkit_plugins.people.assignment import Assignment, next_item
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.label_api import LabelApi
from alignkit_plugins.people.step import wins
from alignkit_plugins.people.store import Store
from alignkit_plugins.people.votes import Labeled, labeled
from alignkit_plugins.report.document import page as html_of
from alignkit_plugins.report.facts import facts_of
from tests import rows
from tests.killed import forked
from tests.people.labelers import label
from tests.rows import Said, user, write_rows

RUN, STORE = Path("run"), Path("run/labels.feedback")
ANSWERS, LABELS, REWARD = yaml.safe_load("""
- {step: sample, prompts: prompts.jsonl, samples_per_prompt: 2, sampling: {max_new_tokens: 6}}
- {step: people, data: answers}
- {algorithm: {reward_model: {margin: llama2-small}}, data: labels, max_steps: 1}
""")
PAIR = {"prompt": "Hi", "chosen": "Hello there!", "rejected": "What?"}

Caught = pytest.CaptureFixture[str]


pytestmark = pytest.mark.usefixtures("here")


def run(stages: dict[str, Any], code: int = 0) -> None:
    rows.run(rows.write_recipe(Path(), stages), out=RUN, code=code)


def written(name: str, *found: Any) -> str:
    write_rows(Path(name), found)
    return name


def summary(stage: str) -> dict[str, Any]:
    return dict(read_record(RUN / stage)["summary"])


def data(stage: str = "labels") -> list[Group]:
    return read_groups(RUN / stage / "data.jsonl")


def states() -> dict[str, str]:
    return {row["name"]: row["state"] for row in facts_of(RUN)["stages"]}


def test_a_run_waits_for_labels_and_a_reward_model_learns_their_margins(capsys: Caught) -> None:
    stages = {"answers": ANSWERS, "labels": {**LABELS, "annotators": 2}, "reward": REWARD}
    run(stages, code=75)
    said = capsys.readouterr().err
    assert "stage 'labels' waits for 6 labels: 0 of 3 items are done\n" in said
    assert f"  to label: alignkit label {STORE} --annotator NAME" in said
    assert "  to resume: " in said and "error:" not in said and "reward: stage" not in said
    found = facts_of(RUN)
    assert found["run"]["outcome"] == "waiting" and "waits for 6 labels" in found["run"]["message"]
    waiting = {"answers": "done", "labels": "waiting for 6 labels", "reward": "not begun"}
    assert states() == waiting
    page = html_of(found)
    assert 'class="state even"><strong>waiting</strong>' in page
    assert '<pre class="error">' not in page
    assert main(["show", "run"]) == 0 and "waiting" in capsys.readouterr().out
    label(STORE)
    label(STORE, "bob", most=2)
    run(stages, code=75)
    assert "waits for 1 label: 2 of 3 items are done\n" in capsys.readouterr().err
    with Store.open(STORE) as store:
        given = next_item(store, "bob")
        assert given is not None
        item = given.stored.item
        store.submit(event(item, {"reason": "too long"}, kind="skip", who="bob"))
    assert label(STORE, "eve") == 1
    run(stages)
    groups = data()
    for group in groups:
        (one,) = group.pairs or ()
        assert one.margin == "significantly"
        assert len(group.responses[one.better].text) >= len(group.responses[one.worse].text)
    assert summary("reward")["groups"] == 3
    known = summary("labels")
    assert (known["items"], known["labels"], known["annotators"]) == (3, 6, 3)
    text = (RUN / "labels" / "report.txt").read_text(encoding="utf-8")
    assert "people: 6 labels of 3 items by 3 people" in text
    assert facts_of(RUN)["run"]["outcome"] == "done"
    capsys.readouterr()
    # Other rows are asked about anew, and no label is lost
    other = {**ANSWERS, "sampling": {"max_new_tokens": 6, "temperature": 0.7}}
    run({**stages, "answers": other}, code=75)
    with Store.open(STORE) as store:
        kept = [(stored.retired, stored.labels) for stored in store.items()]
    assert kept == [(True, 2)] * 3 + [(False, 0)] * 3
    run(stages)
    assert data() == groups
    capsys.readouterr()
    run(stages)
    assert "labels: unchanged, reused" in capsys.readouterr().err


MADE = """
from alignkit import Add, Artifact, Group, Response, Step, hookimpl

class Made(Step):
    def run(self, context):
        groups = []
        for number, last in enumerate(("no", "n\\0")):
            prompt = ({"role": "user", "content": f"row {number}"},)
            groups.append(Group(prompt, (Response(text="yes"), Response(text=last))))
        return Artifact(groups=groups)

@hookimpl
def register(add: Add) -> None:
    add("step", "made", Made, "rows")
"""


def test_a_row_that_nobody_can_label_is_left_out_at_each_start(capsys: Caught) -> None:
    """Also by the check before a run that continues; of a user's file it is an error."""
    plugin = rows.with_plugin(Path("made.py"), MADE)
    recipe = rows.write_recipe(Path(), {"answers": {"step": "made"}, "labels": LABELS})
    for code in (75, 0):
        rows.run(recipe, *plugin, out=RUN, code=code)
        if code:
            label(STORE)
    assert "1 rows left out: a text contains a NUL character" in capsys.readouterr().out
    assert summary("labels")["items"] == 1
    asked = Path("run/answers/data.jsonl").read_text(encoding="utf-8")
    Path("rows.jsonl").write_text(asked, encoding="utf-8")
    recipe = rows.write_recipe(Path(), {"labels": {**LABELS, "data": "rows.jsonl"}})
    assert main(["check", str(recipe)]) == 4
    assert "a text contains a NUL character" in capsys.readouterr().err


def test_samples_of_two_policies_are_an_evaluation(capsys: Caught) -> None:
    """Two of four prompts go to `hot`, one to `base`, and on one of them two people disagree. One
    more is flagged, and on one the policies do not differ.
    """
    for who, text in {"hot": "a hot answer", "base": "a plain one"}.items():
        answers = (Response(text=text, source=who),)
        same = Group((user("same"),), (Response(text="x", source=who),))
        written(f"{who}.jsonl", *(Group((user(f"{n}"),), answers) for n in range(5)), same)
    people = {**LABELS, "data": ["hot.jsonl", "base.jsonl"], "join_prompts": True, "annotators": 2}
    store = Path("all.feedback")
    people["store"] = str(store)
    run({"labels": people}, code=75)
    for who, losses in {"ann": "0", "bob": "01"}.items():

        def answer(given: Assignment, losses: str = losses) -> dict[str, Any]:
            item = given.stored.item
            chosen = "base" if item.prompt[0]["content"] in losses else "hot"
            return side("AB"[given.order.index(item.origins.index(chosen))])

        assert label(store, who, answer=answer) == 5
    with Store.open(store) as opened:
        opened.submit(event(opened.items()[4].item, {"note": "?"}, kind="flag", who="eve"))
    run({"labels": people})
    assert "what people prefer" in capsys.readouterr().out
    said = (RUN / "labels" / "report.txt").read_text(encoding="utf-8")
    assert "people: 10 labels of 5 items by 2 people" in said
    assert "1 rows left out: its responses do not differ" in said and len(data()) == 4
    (row,) = summary("labels")["wins"]
    assert (row["source"], row["against"], row["pairs"]) == ("base", "hot", 4)
    preferred = row["preferred"]
    assert preferred["mean"] == (1 + 0.5) / 4
    # Agresti and Coull's of as many trials as have the variance of 0, 0, 0.5, 1, and t of four
    assert (preferred["low"], preferred["high"]) == pytest.approx((0.043143, 0.88493), abs=1e-6)


def test_demonstrations_are_reviewed_by_others(said: Said) -> None:
    """Nobody reviews what they wrote, and what half find bad, or anyone flags, is not learned."""
    asked = written("rows.jsonl", *({"prompt": text} for text in ("Hi", "Ho", "Hm")))
    people = {"task": "demonstration", "reviewers": 2, "show_results": True}
    stages = {"labels": {**LABELS, "data": asked, **people}}
    run(stages, code=75)
    for who, text in (("ann", "Good day."), ("bob", "Grrr."), ("cy", "Call Bob.")):
        label(STORE, who, most=1, answer=lambda given, text=text: {"text": text})  # type: ignore[misc]
    run(stages, code=75)
    told = said()
    assert "waits for 6 labels: 0 of 3 items are done" in told
    assert f"label {STORE}\n" in told
    assert f"label {STORE} --annotator NAME --annotator NAME\n" in told

    def good(given: Assignment) -> dict[str, Any]:
        return {"good": given.stored.item.responses != ("Grrr.",), "note": "to the writer"}

    assert [label(STORE, who, answer=good) for who in ("ann", "bob")] == [2, 2]
    assert label(STORE, "eve", answer=lambda given: {"good": True}) == 2
    with Store.open(STORE) as store:
        for stored in store.items():
            if stored.item.responses == ("Call Bob.",):
                store.submit(event(stored.item, {"note": "a name"}, kind="flag", who="eve"))
    run(stages)
    assert [group.responses[0].text for group in data()] == ["Good day."]
    with Store.open(STORE) as store:  # the writer reads the reasons
        told = LabelApi(store).results("bob", {})["results"]
    notes = {str(row["answers"]): sorted(vote["note"] for vote in row["votes"]) for row in told}
    assert notes["['Grrr.']"] == ["", "to the writer"] and "a name" in notes["['Call Bob.']"]


def test_one_person_settles_what_others_disagree_on(said: Said) -> None:
    """Nobody else is asked about it any more, and the labelers read the reason at the end."""
    asked = written("rows.jsonl", PAIR, {**PAIR, "prompt": "Ho"})
    people = {"annotators": 2, "settled_by": "eve", "show_results": True}
    stages = {"labels": {**LABELS, "data": asked, **people}}
    run(stages, code=75)

    def first(given: Assignment, but: str = "") -> dict[str, Any]:
        index = int(given.stored.item.prompt[0]["content"] == but)
        return side("AB"[given.order.index(index)], note=f"by rule {index}")

    assert label(STORE, "eve") == 0
    label(STORE, "ann", answer=first)
    label(STORE, "bob", answer=partial(first, but="Hi"))
    with Store.open(STORE) as store:  # as if she had before she was to settle
        store.submit(event(store.items()[1].item, side("A"), who="eve"))
    run(stages, code=75)
    waits = "waits for 1 label: 0 of 1 items are done"
    assert f"{waits}\n  to label: alignkit label {STORE} --annotator eve\n" in said()
    run({"labels": {**stages["labels"], "settled_by": ""}})  # who does without need not wait
    assert label(STORE, "zoe") == 0
    with Store.open(STORE) as store:
        api = LabelApi(store)
        assert api.next("eve", {})["notice"].startswith("People disagree here.")
        assert label(STORE, "eve", answer=partial(first, but="Hi")) == 1
        hi, ho = api.results("ann", {})["results"]
    run(stages)
    learned = [pair for group in data() for pair in group.pairs or ()]
    assert learned == [Pair(1, 0, 1.0, "better"), Pair(0, 1, 1.0, "better")]
    report = (RUN / "labels" / "report.txt").read_text()
    assert "50% of labels agree" in report  # eve is no third opinion
    assert len(ho["votes"]) == 3
    assert [vote["note"] for vote in hi["votes"]].count("by rule 1") == 2


def test_equal_samples_are_left_out(said: Said) -> None:
    greedy = {**ANSWERS, "sampling": {"max_new_tokens": 6, "temperature": 0.001}}
    run({"answers": greedy, "labels": LABELS}, code=1)
    assert "there is no row to label\n  3 left out: its responses do not differ" in said()


def test_every_round_asks_about_the_newest_policy_and_learns_from_all_labels() -> None:
    dpo = {"algorithm": "dpo", "from": "policy", "data": "labels", "max_steps": 1}
    rounds = {
        "answers": {**ANSWERS, "policy": "policy"},
        "labels": LABELS,
        "reward": {**REWARD, "data": "labels@all"},
        "policy": {**dpo, "learning_rate": 0.01},
    }
    stages = {"rlhf": {"repeat": 2, "start": {"policy": "base"}, "stages": rounds}}
    for number in (1, 2):
        run(stages, code=75)
        found = states()
        assert found[f"labels_{number}"] == "waiting for 3 labels"
        assert found[f"reward_{number}"] == "not begun"
        assert label(STORE) == 3, "only this round's items are open"
    run(stages)
    assert [summary(f"reward_{number}")["groups"] for number in (1, 2)] == [3, 6]
    with Store.open(STORE) as store:
        batches = [entry.item.batch for entry in labeled(store)]
    assert batches == ["labels_1"] * 3 + ["labels_2"] * 3


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_is_killed_before_it_writes_the_labels_loses_none(
    monkeypatch: pytest.MonkeyPatch, capsys: Caught
) -> None:
    """And `verify` asks nobody what people said."""
    stages = {"labels": {**LABELS, "data": written("rows.jsonl", PAIR)}}
    run(stages, code=75)
    label(STORE)
    with monkeypatch.context() as patch:
        patch.setattr(
            "alignkit.runs.stage.write_groups",
            lambda *anything: os.kill(os.getpid(), signal.SIGKILL),
        )
        assert forked("run", "recipe.yaml", "--out", "run") == -signal.SIGKILL
    assert not (RUN / "labels" / "data.jsonl").exists()
    run(stages)
    assert len(data()) == 1
    before = STORE.read_bytes()
    assert main(["verify", "run"]) == 0
    assert "labels: not verified, because people labeled what it read" in capsys.readouterr().out
    assert STORE.read_bytes() == before


@pytest.mark.parametrize(
    ("people", "code", "text"),
    [
        ({"store": "recipe.yaml"}, 2, "the name of a store must end in .feedback"),
        (
            {"task": "ranking", "data": "demos.jsonl"},
            4,
            "demos.jsonl:1: the task ranking takes 2 to 9, not 1 response",
        ),
        ({"settled_by": "eve"}, 2, "'settled_by' needs 'annotators: 2' or more"),
        ({"reviewers": 1}, 2, "'reviewers' needs 'task: demonstration'"),
    ],
)
def test_mistakes_are_found_before_the_run(
    people: dict[str, Any], code: int, text: str, said: Said
) -> None:
    stage = {**LABELS, "data": "pairs.jsonl", **people}
    recipe = rows.write_recipe(Path(), {"labels": stage})
    before = set(Path().rglob("*"))
    assert main(["check", str(recipe)]) == code
    assert text in said()
    assert set(Path().rglob("*")) == before


def test_people_are_asked_first_where_two_rewards_disagree() -> None:
    """One prefers what is long, the other one what has an x: only on the third row are these
    two.
    """
    texts = [("long x", "short"), ("longer x", "short"), ("longer", "x"), ("a long x", "short")]
    asked = []
    for n, (chosen, rejected) in enumerate(texts):
        asked.append({"prompt": f"row {n}", "chosen": chosen, "rejected": rejected})
    rewards = [{"length": {"unit": "characters"}}, {"regex": {"pattern": "x"}}]
    people = {**LABELS, "data": written("rows.jsonl", *asked), "limit": 2, "rewards": rewards}
    run({"labels": people}, code=75)
    with Store.open(STORE) as store:
        given = next_item(store, "ann")
        assert given is not None and given.stored.item.prompt[0]["content"] == "row 2"
    assert label(STORE) == 2
    run({"labels": people})
    assert data()[0].prompt[0]["content"] == "row 2"


def test_a_step_reads_labels_of_people_who_know_the_task() -> None:
    """With `min_gold`; without, all are tied."""
    answers = Response("good", source="one"), Response("bad", source="two")
    asked = [Group((user(f"asked {place}"),), answers) for place in range(5)]
    every = {**LABELS, "data": written("rows.jsonl", *asked), "annotators": 2}
    stages = {"every": every, "sure": {**every, "min_gold": 0.8}}
    run(stages, code=75)
    with Store.open(STORE) as store:
        store.add(pair(f"known {place}", gold={"better": 0}) for place in range(5))
        # An item of the stage may be gold as well, and counts once
        store.put(replace(store.items()[0].item, gold={"better": 0}), wanted=2)
        for stored in store.items():
            for who, letter in (("ann", "A"), ("bob", "B")):  # the first response is the better one
                store.submit(event(stored.item, side(letter), who=who))
    run(stages)
    note = "left out, gold below 80%: bob 0 of 6"
    assert (summary("every")["notes"], summary("sure")["notes"]) == ([], [note])
    assert note in (RUN / "sure" / "report.txt").read_text()
    known = [(0, 1.0)]
    for stage, pairs in (("every", [known, [], [], [], []]), ("sure", [known] * 5)):
        found = data(stage)
        assert [group.prompt for group in found] == [group.prompt for group in asked]
        (won,) = summary(stage)["wins"]
        assert won["preferred"]["mean"] == (1 if stage == "sure" else 0.6)  # of the known item, all
        of_each = [[(each.better, each.p) for each in group.pairs or ()] for group in found]
        assert of_each == pairs
    for people in facts_of(RUN)["people"]:
        (which,) = people["agreement"]
        shares = {who: facts["with_gold"]["mean"] for who, facts in which["people"].items()}
        assert shares == {"ann": 1, "bob": 0} and which["items"] == 10
        # Nobody has to agree with who is left out
        assert which["shared"] == (10 if people["stage"] == "every" else 0)


@pytest.mark.parametrize(
    ("words", "meta", "units"), [("q", "", 1), ("q{}", "", 8), ("q{}", "p", 1)]
)
def test_pairs_of_one_prompt_or_group_are_one_unit(words: str, meta: str, units: int) -> None:
    """Of what people prefer, and of how far they agree."""
    entries = []
    for n in range(8):
        answers, shared = (f"a{n}", f"b{n}"), {UNIT: meta} if meta else {}
        asked = (user(words.format(n)),)
        item = Item("pair", asked, answers, origins=("one", "two"), meta=shared)
        votes = {who: {"better": int(n + k > 6)} for k, who in enumerate(("ann", "bob"))}
        stored: Any = SimpleNamespace(item=item, retired=False)
        entries.append(Labeled(stored, votes))
    (won,), (agreed,) = wins(entries), agreement(entries)
    assert (won["pairs"], agreed["items"], won["preferred"]["n"]) == (8, 8, units)
    assert won["preferred"]["mean"] == 13 / 16 and agreed["same"]["mean"] == 7 / 8
    assert (agreed["alpha"]["low"] is None) == (units == 1)
