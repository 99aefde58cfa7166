"""report.md: the same content, ready for an issue, where texts cannot be mentions, links or
tags.
"""

import re
from pathlib import Path

from made import HOSTILE, make_run

from alignkit_plugins.report.facts import facts_of
from alignkit_plugins.report.markdown import MOST, markdown


def test_it_says_what_the_page_says(tmp_path: Path) -> None:
    text = markdown(facts_of(make_run(tmp_path / "run")))
    headings = re.findall("^#+ (.*)$", text, flags=re.MULTILINE)
    assert headings == [
        *("small: done", "Verdict", "Warnings", "Evaluation"),
        *("The judges in numbers", "Details: diversity and columns"),
        *("Samples", "Largest gains", "At random"),
        *("Training", "SFT", "1 more curves and all numbers", "Judge pairs: labels", "All numbers"),
        *("PPO: align", "1 more curves and all numbers"),
        *("Data", "Lengths, pairs and labels", "People", "Each annotator"),
        *(
            "Provenance",
            "How it was made",
            "The recipe with all overrides applied",
            "6 files with their SHA-256",
        ),
    ]
    assert (
        "align is better than sft in the reward helpful: 1.09 against 0.00, difference +1.095 "
        "[1.067, 1.123]. Worse: preferred by local_judge 31% [22, 40]." in text
    )
    assert "| sport | align | 12 | +0.50 [0.40, 0.60] | +0.50 [0.40, 0.60] | 50% [40, 60] |" in text
    assert "| sft | demos.jsonl | responses | 60 | 3 | 61 | 190 | 199 |" in text
    assert "| sft | demos.jsonl | 12 | 75% | 0% | significantly 4, unsure 6, without 2 |" in text
    assert (
        "| sft | demos.jsonl | 7 | 5 |" in text
        and "18 responses truncated at max_length (30% of 60)" in text
    )
    assert "| align | helpful | +1.095 [1.067, 1.123] |" in text and "| sft | SFT | done |" in text


def test_texts_are_in_fences(tmp_path: Path) -> None:
    facts = facts_of(make_run(tmp_path / "run"))
    facts["samples"][0]["answers"][0]["text"] = f"@everyone {HOSTILE} ````"
    plain = re.sub(r"^(`{3,})text\n.*?^\1$", "", markdown(facts), flags=re.MULTILINE | re.DOTALL)
    assert "@everyone" not in plain and "<script" not in plain and "\x1b" not in markdown(facts)


def test_it_fits_into_an_issue(tmp_path: Path) -> None:
    facts = facts_of(make_run(tmp_path / "run"))
    facts["recipe"] = "x: 1\n" * 30_000
    text = markdown(facts)
    assert len(text) <= MOST and "align is better than sft" in text
    facts["warnings"] = [{"stage": "a", "text": "w" * 3000}] * 50
    assert len(markdown(facts)) <= MOST + 50 and markdown(facts).endswith(
        "The rest is in report.json.\n"
    )
