"""What a run records of its data: lengths, pairs, margins and labels, without a change of any hash;
and how a report shows it.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from made import SOURCES, make_run, write_stage
from stores import event, opened, pair

from alignkit.data.group import Group, Origin, Pair, Response
from alignkit.recipe.sources import Loaded, SourceFacts
from alignkit_plugins.report.data_card import brief_name, card, cards, left_out
from alignkit_plugins.report.document import page
from alignkit_plugins.report.facts import facts_of
from tests.rows import Said, assistant, read_json, run, user, write_recipe, write_rows

ASKED = user("how?"), assistant("so")  # 6 characters


def group(*texts: str, pairs: tuple[Pair, ...] | None = None, source: int = 0) -> Group:
    return Group(ASKED, tuple(map(Response, texts)), pairs, origin=Origin("d", 1, source=source))


RANKED = tuple(Response("abc"[:n], rank=n) for n in (1, 2, 3))
TURNS: Any = Response(messages=(assistant("ab"), {"role": "tool", "content": "c"}))  # type: ignore[arg-type]
LABELED = [Group(ASKED, (Response("a", label=good),)) for good in (True, False, True)]
BETTER = [group("long", "s", pairs=(Pair(0, 1, p=p),)) for p in (1, 0.6, 0.5, 0.4)]
WORSE = [group("s", "long", pairs=(Pair(0, 1, p=p),)) for p in (1, 0.2)]
# Rows; of rows and responses how many, of prompts and responses the least, the median and the most
# characters, pairs and how often the better one is longer, and good and bad labels
CARDS: list[tuple[list[Group], str]] = [
    ([group("x" * n) for n in (0, 9, 10, 11, 150, 2001)], "6 6 | 6 6 6 | 0 10 2001 | None | None"),
    ([Group(ASKED, (TURNS,))], "1 1 | 6 6 6 | 3 3 3 | None | None"),
    ([Group((), (Response("text"),))], "1 1 | None | 4 4 4 | None | None"),
    ([], "0 0 | None | None | None | None"),
    # A probability below a half means that the other response is better
    (
        [*BETTER, *WORSE, group("even", "same", pairs=(Pair(1, 0),))],
        "7 14 | 6 6 6 | 1 4 4 | 7 3 | None",
    ),
    ([Group(ASKED, RANKED)], "1 3 | 6 6 6 | 1 2 3 | 3 0 | None"),
    (LABELED[1:2], "1 1 | 6 6 6 | 1 1 1 | None | 0 1"),
    (LABELED, "3 3 | 6 6 6 | 1 1 1 | None | 2 1"),
]


@pytest.mark.parametrize(("rows", "expected"), CARDS)
def test_what_a_card_counts(rows: list[Group], expected: str) -> None:
    found = card(rows)
    parts = [f"{found['rows']} {found['responses']}"]
    for name in ("prompt_characters", "response_characters", "pairs", "labels"):
        part = found[name]
        parts.append(" ".join(map(str, part.values())) if part else str(part))
    assert " | ".join(parts) == expected


def test_each_source_has_its_own_card_with_its_held_out_rows() -> None:
    facts = tuple(SourceFacts(name, "f", False, 1) for name in ("a", "b"))
    loaded = Loaded([group("x"), group("yy", source=1)], [group("zzz", source=1)], [], facts)
    first, second = [facts["card"] for facts in cards(loaded)]
    assert first["rows"] == 1 and (second["rows"], second["response_characters"]["most"]) == (2, 3)


def test_a_run_records_it_outside_of_the_hash(
    tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also how far people agree on a store."""
    monkeypatch.setenv("ALIGNKIT_REPORT", "1")
    row = {"chosen": "good " * 9, "rejected": "bad"}
    write_rows(tmp_path / "pairs.jsonl", [{"prompt": f"q {n}", **row} for n in range(12)])
    with opened(tmp_path, *(pair(f"prompt {n}") for n in range(6)), name="pairs.feedback") as store:
        for n, stored in enumerate(store.items()):
            store.submit(event(stored.item))
            store.submit(event(stored.item, {"side": "AB"[n > 3], "margin": "better"}, who="bob"))
    data = [{"path": "pairs.jsonl", "validation": 0.3}, "pairs.feedback"]
    stage = {"algorithm": "reward_model", "data": data, "max_length": 40, "max_steps": 1}
    out = run(write_recipe(tmp_path, {"rm": stage}))
    assert re.search(r"warning: \d+ pairs are too few for a reward model", said())
    record = read_json(out / "rm" / "stage.json")
    rows, people = record["data"]
    assert rows["card"]["rows"] == 12 and rows["card"]["pairs"]["better_longer"] == 12
    assert people["agreement"][0]["same"]["mean"] == pytest.approx(4 / 6)
    assert people["card"]["rows"] == 6
    assert not re.search("card|agreement", json.dumps(record["depends_on"]))
    facts = facts_of(out)
    assert facts["data"][0]["response_characters"]["most"] == 45
    assert {"stage": "rm", "reason": CUT, "rows": 12, "of": 36} in facts["dropped"]
    text = (out / "report.html").read_text().replace("\xa0", " ")
    assert "pairs.feedback, rm" in text and "67% of labels agree" in text


# In a report

CUT = "responses truncated at max_length"


def test_a_run_without_a_card_has_a_report_and_what_was_counted_twice_no_share(
    tmp_path: Path,
) -> None:
    out = make_run(tmp_path / "run")
    plain = {key: value for key, value in SOURCES["sft"][0].items() if key != "card"}
    twice = {"encoded": {"rows": 4, "responses": 4}, "encoding": {"cut": 9}}
    write_stage(out / "sft", "sft", data=[plain], summary=twice)
    facts = facts_of(out)
    assert facts["data"][0]["rows"] == 40 and "demos.jsonl" in page(facts)
    assert facts["dropped"][:-1] == [{"stage": "sft", "reason": CUT, "rows": 9, "of": None}]


def test_names_and_shares_are_short() -> None:
    names = "/a/b/c.jsonl", "../c.jsonl", "org/set[train]", "stage sft"
    assert [*map(brief_name, names)] == ["c.jsonl", "c.jsonl", "org/set[train]", "stage sft"]
    item = {"rows": 1200, "reason": "rows left out", "of": 4000}
    assert left_out(item) == "1,200 rows left out (30% of 4,000)"
    assert left_out({**item, "of": None}) == "1,200 rows left out"
