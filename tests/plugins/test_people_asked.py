"""People as raters in the step `evaluate`: what they are asked, and what is kept while a run waits for them."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from labelers import label_all, number
from pydantic import ValidationError
from raters import COUNT, POLICIES, WIDTH, Blind, Told, evaluated, kept, mostly_align, told
from test_evaluate import HELPFUL, judge_component, prompts, said, step

from alignkit import DataError, Group, Response, RunFailed
from alignkit.stopping import StageWaits
from alignkit_apps.label.guidelines import Guidelines
from alignkit_apps.label.label_api import LabelApi
from alignkit_plugins.people.store import Event, Store
from alignkit_plugins.people.waiting import STORE


def test_equal_answers_are_ties_and_nobody_is_asked(tmp_path: Path) -> None:
    models = Blind(texts="the same {i}")
    artifact = step(policies=POLICIES, rewards=[], people={}).run(kept(models, tmp_path, prompts(COUNT)))
    found = dict(artifact.summary or {})
    assert found["judged"]["align"]["people"]["ties"] == COUNT and found["people"]["equal"] == COUNT
    assert not (tmp_path / STORE).exists()
    assert "20 pairs of equal answers are ties" in said(artifact, WIDTH)


def test_an_answer_that_nobody_could_label_is_counted(tmp_path: Path) -> None:
    class Broken(Blind):
        def _answer(self, role: str, i: int, k: int) -> Response:
            answer = super()._answer(role, i, k)
            return replace(answer, text="a\0b") if (role, i) == ("align", 3) else answer

    summary, _ = evaluated(tmp_path, mostly_align, models=Broken())
    found = summary["judged"]["align"]["people"]
    assert found["unjudged"] == {"nobody could label it (a text contains a NUL character)": 1}
    assert (summary["people"]["pairs"], summary["people"]["equal"]) == (COUNT - 1, 0)


def test_people_see_the_plain_prompt_of_a_policy_with_examples(tmp_path: Path) -> None:
    models = Blind()
    models.scripted["sft, 2 shots"] = models.scripted["sft"]
    few = {"policy": "sft", "few_shot": "examples", "shots": 2}
    there = kept(models, tmp_path, prompts(COUNT))
    examples = [Group((), (Response(f"text {i}"),)) for i in range(2)]
    there = replace(there, load=lambda spec: examples if spec == "examples" else prompts(COUNT))
    options: dict[str, Any] = {"policies": [*POLICIES, few], "rewards": [], "people": {}}
    models.sample = with_examples(models)  # type: ignore[method-assign]
    with pytest.raises(StageWaits):
        step(**options).run(there)
    items = label_all(tmp_path / STORE, lambda item: str(item.origins[0]))
    assert {item.origins for item in items} == {("sft, 2 shots", "sft"), ("align", "sft")}
    asked = [item.prompt[-1]["content"] for item in items]
    assert set(asked) == {group.prompt[-1]["content"] for group in prompts(COUNT)}
    assert len({item.id for item in items}) == 2 * COUNT
    assert dict(step(**options).run(there).summary or {})["judged"]["sft, 2 shots"]["people"]["wins"] == COUNT


def with_examples(models: Blind) -> Any:
    def sample(role: str, asked: Any, **sampling: Any) -> list[Group]:
        groups = Blind.sample(models, role, asked, **sampling)
        longer = ["text 0" in str(messages) for messages in asked]
        return [
            replace(g, responses=tuple(replace(r, text=f"{r.text}, with examples") for r in g.responses)) if more else g
            for g, more in zip(groups, longer, strict=True)
        ]

    return sample


def test_nothing_is_computed_again_when_labels_arrive(tmp_path: Path) -> None:
    judge = told(lambda n: 0.9)
    models = Blind()
    calls: list[str] = []
    scores = models.scores
    models.scores = lambda stage, groups: calls.append(stage) or scores(stage, groups)  # type: ignore[method-assign,func-returns-value]
    options: dict[str, Any] = {"rewards": [HELPFUL], "judges": [judge_component(Told, judge)], "people": {}}
    there = kept(models, tmp_path, prompts(COUNT))
    with pytest.raises(StageWaits):
        step(policies=POLICIES, **options).run(there)
    done = (len(models.sampled), len(models.measured), len(calls), judge.asked)
    assert all(done)
    known = (tmp_path / "out" / "report.txt").read_text()
    assert "By helpful (reward)" in known and "people" not in known
    with pytest.raises(StageWaits):
        step(policies=POLICIES, **options).run(there)
    label_all(tmp_path / STORE, mostly_align)
    artifact = step(policies=POLICIES, **options).run(there)
    assert (len(models.sampled), len(models.measured), len(calls), judge.asked) == done
    assert dict(artifact.summary or {})["judges"] == ["people", "judge"]


def test_labels_of_other_answers_do_not_count(tmp_path: Path) -> None:
    evaluated(tmp_path, mostly_align)
    options: dict[str, Any] = {"policies": POLICIES, "rewards": [], "people": {}}
    models = Blind(texts="a new answer {i} of {letter}")
    there = replace(kept(models, tmp_path, prompts(COUNT)), map=lambda name, rows, f: list(f(rows)))
    with pytest.raises(StageWaits, match="waits for 20 labels"):
        step(**options).run(there)
    items = label_all(tmp_path / STORE, lambda item: "sft")
    assert len(items) == COUNT and all("new" in str(item.responses) for item in items)  # nobody sees the old ones
    found = dict(step(**options).run(there).summary or {})
    assert found["judged"]["align"]["people"]["losses"] == COUNT and found["people"]["labels"] == COUNT


def test_some_prompts_and_enough_labels(tmp_path: Path) -> None:
    options: dict[str, Any] = {"policies": POLICIES, "rewards": [], "people": {"prompts": 10, "labels": 6}}
    there = kept(Blind(), tmp_path, prompts(COUNT))
    with pytest.raises(StageWaits, match="waits for 6 labels"):
        step(**options).run(there)
    with Store.open(tmp_path / STORE) as store:
        items = [stored.item for stored in store.items()]
        for place, item in enumerate(items[:6]):
            store.submit(Event(f"{place:032x}", "ann", "label", {"side": "A", "margin": "better"}, item.id))
    assert len(items) == 10 and [number(item) for item in items] != list(range(10))  # drawn
    found = dict(step(**options).run(there).summary or {})
    assert found["people"] | {"labels": 6, "prompts": 10, "pairs": 10} == found["people"]
    result = found["judged"]["align"]["people"]
    assert (result["wins"], result["unjudged"], result["unjudged_prompts"]) == (6, {"not labeled": 4}, 4)


def test_the_page_shows_nothing_of_the_policies(tmp_path: Path) -> None:
    with pytest.raises(StageWaits):
        step(policies=POLICIES, rewards=[HELPFUL], people={}).run(kept(Blind(), tmp_path, prompts(COUNT)))
    with Store.open(tmp_path / STORE) as store:
        shown = json.dumps(LabelApi(store, Guidelines(store)).next("ann", {}))
    assert "answer" in shown and not any(name in shown for name in (*POLICIES, "helpful"))


def test_labelers_get_the_guidelines_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "rules.md").write_text("Prefer the truth.")
    people = {"guidelines": tmp_path / "rules.md"}
    with pytest.raises(StageWaits):
        step(policies=POLICIES, rewards=[], people=people).run(kept(Blind(), tmp_path, prompts(COUNT)))
    with Store.open(tmp_path / STORE) as store:
        assert Guidelines(store).current()[1] == "Prefer the truth."


# --- what is wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"people": None}, "name at least one measure, reward or judge, or ask people"),
        ({"policies": ["sft"]}, "people compare policies: name at least two"),
        ({"rewards": ["people"]}, "'people' is what people are called in the tables"),
        ({"people": {"annotators": 0}}, "greater than or equal to 1"),
        ({"people": {"tasks": "pair"}}, "Extra inputs"),
        ({"people": {"store": "labels.db"}}, r"the name of a store must end in \.feedback"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        step(**{"policies": POLICIES, "rewards": [], "people": {}, **options})


def test_files_that_cannot_be_used_are_found_before_anything_is_sampled(tmp_path: Path) -> None:
    def checked(**people: Any) -> None:
        step(policies=POLICIES, rewards=[], people=people).check(tmp_path)

    with pytest.raises(RunFailed, match=r"no-such\.md: No such file"):
        checked(guidelines=tmp_path / "no-such.md")
    (tmp_path / "bad.md").write_bytes(b"ab\xff")
    with pytest.raises(RunFailed, match="not UTF-8 at byte 2"):
        checked(guidelines=tmp_path / "bad.md")
    Store.open(tmp_path / STORE, new=True).close()
    with closing(sqlite3.connect(tmp_path / STORE)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(DataError, match="99"):
        checked(store=tmp_path / STORE)
