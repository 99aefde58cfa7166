"""report.md: the same content, ready for an issue, where texts cannot be mentions, links or tags."""

import re
from pathlib import Path

from made import HOSTILE, make_run

from alignkit_apps.report.facts import facts_of
from alignkit_apps.report.markdown import MOST, markdown


def test_it_says_what_the_page_says(tmp_path: Path) -> None:
    text = markdown(facts_of(make_run(tmp_path / "run")))
    headings = re.findall("^#+ (.*)$", text, flags=re.MULTILINE)
    assert headings == [
        *("small: done", "Verdict", "Warnings", "Evaluation"),
        "The judges themselves, how far to trust the judges, agreement with other raters, by topic, figures",
        *("Samples", "Largest gains", "At random"),
        *("Training", "SFT", "All numbers", "Judge pairs: labels", "All numbers"),
        *("PPO: align", "All numbers"),
        *("Data", "Lengths, pairs and labels", "People"),
        *("Provenance", "How it was made", "The recipe with all overrides applied", "7 files with their SHA-256"),
    ]
    assert (
        "align gained over sft by an independent reward, with losses elsewhere: helpful (reward) +1.095 [1.067, 1.123]"
        in text
    )
    assert "local_judge prefers sft to align: align is preferred 31% [22, 40] over 19 prompts" in text
    assert "| sport | align | 12 | +0.50 [0.40, 0.60] | +0.50 [0.40, 0.60] | 50% [40, 60] of 10 |" in text
    assert "| sft | demos.jsonl | responses | 60 | 3 | 61 | 190 | 199 |" in text
    assert "| sft | demos.jsonl | 12 | 75% | 0% | significantly 4, unsure 6, without 2 |" in text
    assert "| sft | demos.jsonl | 7 | 5 |" in text and "18 responses truncated at max_length (30% of 60)" in text
    assert "| align | +1.095 [1.067, 1.123] |" in text and "| sft | SFT | done |" in text


def test_texts_are_in_fences(tmp_path: Path) -> None:
    facts = facts_of(make_run(tmp_path / "run"))
    facts["samples"][0]["answers"][0]["text"] = f"@everyone {HOSTILE} ````"
    plain = re.sub(r"^(`{3,})text\n.*?^\1$", "", markdown(facts), flags=re.MULTILINE | re.DOTALL)
    assert "@everyone" not in plain and "<script" not in plain and "\x1b" not in markdown(facts)


def test_it_fits_into_an_issue(tmp_path: Path) -> None:
    facts = facts_of(make_run(tmp_path / "run"))
    facts["recipe"] = "x: 1\n" * 30_000
    text = markdown(facts)
    assert len(text) <= MOST and "align gained over sft" in text
    facts["warnings"] = [{"stage": "a", "text": "w" * 3000}] * 50
    assert len(markdown(facts)) <= MOST + 50 and markdown(facts).endswith("The rest is in report.json.\n")
