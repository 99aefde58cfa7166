"""What a run records of its data: lengths, pairs, margins and labels, without a change of any
hash.
"""

import json
import re
from pathlib import Path

import pytest
from stores import event, opened, pair

from alignkit import cli
from alignkit.data.group import Group, Origin, Pair, Response
from alignkit.data.sources import Loaded, SourceFacts
from alignkit_plugins.report.data_card import card, cards
from alignkit_plugins.report.facts import facts_of

# 6 characters
ASKED = ({"role": "user", "content": "how?"}, {"role": "assistant", "content": "so"})
RECIPE = """
model: {base: tiny}
stages:
  rm: {algorithm: reward_model, data: {path: pairs.jsonl, validation: 0.3}, max_length: 40}
"""


def group(
    *texts: str,
    pairs: tuple[Pair, ...] | None = None,
    labels: tuple[bool, ...] = (),
    source: int = 0,
) -> Group:
    given = labels or (None,) * len(texts)
    answers = tuple(Response(text, label=label) for text, label in zip(texts, given, strict=True))
    return Group(ASKED, answers, pairs, origin=Origin("d", 1, source=source))


def test_lengths_are_counted_in_characters() -> None:
    found = card([group("x" * length) for length in (0, 9, 10, 11, 150, 2001)])
    assert found["rows"] == found["responses"] == 6
    assert found["prompt_characters"]["median"] == 6
    lengths = found["response_characters"]
    assert lengths == {"least": 0, "median": 10, "most": 2001}


def test_answers_of_several_turns_and_raw_text() -> None:
    turns = ({"role": "assistant", "content": "ab"}, {"role": "tool", "content": "c"})
    assert card([Group(ASKED, (Response(messages=turns),))])["response_characters"]["most"] == 3
    raw = card([Group((), (Response("text"),))])
    assert raw["prompt_characters"] is None and raw["response_characters"]["most"] == 4
    nothing = card([])
    assert (
        nothing["rows"],
        nothing["response_characters"],
        nothing["pairs"],
        nothing["labels"],
    ) == (
        0,
        None,
        None,
        None,
    )


def test_a_probability_below_a_half_means_that_the_other_response_is_better() -> None:
    def longer(p: float) -> int:
        return int(card([group("long", "s", pairs=(Pair(0, 1, p=p),))])["pairs"]["better_longer"])

    assert [longer(p) for p in (1.0, 0.6, 0.5, 0.4, 0.0)] == [1, 1, 0, 0, 0]
    assert card([group("s", "long", pairs=(Pair(0, 1, p=0.2),))])["pairs"]["better_longer"] == 1


def test_pairs_say_how_often_the_better_one_is_longer() -> None:
    groups = [group("long", "s", pairs=(Pair(0, 1),))] * 8
    groups += [group("s", "long", pairs=(Pair(0, 1),)), group("even", "same", pairs=(Pair(1, 0),))]
    assert card(groups)["pairs"] == {"count": 10, "better_longer": 8}


def test_ranks_are_pairs_and_labels_are_counted() -> None:
    ranked = Group(ASKED, (Response("a", rank=1), Response("bb", rank=2), Response("ccc", rank=3)))
    assert card([ranked])["pairs"]["count"] == 3 and card([ranked])["pairs"]["better_longer"] == 0
    assert card([group("a", labels=(True,)), group("b", labels=(False,))])["labels"] == {
        "good": 1,
        "bad": 1,
    }


def test_each_source_has_its_own_card_with_its_held_out_rows() -> None:
    facts = tuple(SourceFacts(name, "f", False, 1) for name in ("a", "b"))
    loaded = Loaded([group("x"), group("yy", source=1)], [group("zzz", source=1)], [], facts)
    first, second = cards(loaded)
    assert first["rows"] == 1 and (second["rows"], second["response_characters"]["most"]) == (2, 3)


def test_a_run_records_it_outside_of_the_hash(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"question {n}", "chosen": "good " * 9, "rejected": "bad", "margin": n / 4}
        for n in range(12)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    run = tmp_path / "run"
    assert cli.main(["run", str(tmp_path / "recipe.yaml"), "--out", str(run)]) == 0
    record = json.loads((run / "rm" / "stage.json").read_text())
    (source,) = record["data"]
    assert source["card"]["rows"] == 12 and source["card"]["pairs"]["better_longer"] == 12
    assert "card" not in json.dumps(record["depends_on"])
    assert record["summary"]["encoded"] == {"rows": 12, "responses": 24}
    report = facts_of(run)
    assert report["data"][0]["response_characters"]["most"] == 45
    cut = {item["reason"]: (item["rows"], item["of"]) for item in report["dropped"]}
    assert cut["responses truncated at max_length"] == (12, 24)


def test_a_run_on_a_store_shows_how_far_people_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNKIT_REPORT", "1")
    with opened(tmp_path, *(pair(f"prompt {n}") for n in range(6)), name="pairs.feedback") as store:
        for n, stored in enumerate(store.items()):
            store.submit(event(stored.item))
            store.submit(event(stored.item, {"side": "AB"[n > 3], "margin": "better"}, who="bob"))
    (tmp_path / "recipe.yaml").write_text(
        RECIPE.replace("{path: pairs.jsonl, validation: 0.3}", "pairs.feedback")
    )
    run = tmp_path / "run"
    assert cli.main(["run", str(tmp_path / "recipe.yaml"), "--out", str(run)]) == 0
    assert re.search(r"warning: \d pairs are too few for a reward model", capsys.readouterr().err)
    record = json.loads((run / "rm" / "stage.json").read_text())
    which = record["data"][0]["agreement"][0]
    assert which["same"]["mean"] == pytest.approx(4 / 6)
    assert '"agreement"' not in json.dumps(record["depends_on"])
    text = (run / "report.html").read_text().replace("\xa0", " ")
    assert "pairs.feedback, rm" in text and "67% of labels agree" in text
