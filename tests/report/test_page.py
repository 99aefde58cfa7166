"""report.html: everything is there, and nothing acts."""

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
from made import make_run

from alignkit.io.text import BIDI
from alignkit_plugins.compare.rows import Row
from alignkit_plugins.report.document import before_and_after, page
from alignkit_plugins.report.facts import facts_of
from alignkit_plugins.servers.page import breakable
from tests.pages import Reader
from tests.rows import cells


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(facts_of(make_run(tmp_path_factory.mktemp("page") / "run")))


ORDER = """
Mixed: align is better than sft
better, +1.095 [1.067, 1.123]
preferred to sft by local_judge
worse, 31% [22, 40]
at 95% for all 2 comparisons together
alignkit chat 
are training data
The largest gain
before 19
<h2>Evaluation
<h2>Samples
<h2>Training
<h2>Data
<h2>People
<h2>Provenance
alignkit run small --out runs/small
c0ffee
"""
ELSEWHERE = """
by topic
local_judge compared 40 pairs
lengths in characters
18 responses truncated at max_length (30% of 60)
mean and 95% interval over 20 prompts and 1,200 held-out examples
demos.jsonl
judge: {local_judge: {min_mass: 0.1}}
<th scope="row">skipped steps</th>
PPO: align
sft after PPO; reward 1.91 → 3.11 on the prompts
<strong>Evaluation</strong>: 2 of 20 prompts
alignkit 0.1.0, torch 2.9.0
<td>messages</td><td class="n">40</td><td class="n">8</td><td class="n">1</td>
<td>prompts</td><td class="n">2</td><td class="n">50</td><td class="n">99</td>
<td class="n">12</td><td class="n">75%</td>
<td class="n">7</td><td class="n">5</td>
<td class="n">+1.095 [1.067, 1.123]</td><td class="n">-0.5 [-3.7, 2.8]</td>
<td class="n">24% [10, 47]</td><td class="n">4/13/2</td>
<th scope="row">loss</th><td class="n">2</td><td class="n">1</td>
<th scope="row">trains</th><td>whole model</td>
<th scope="row">Started</th><td>2026-09-21T14:13:40Z</td>
<th scope="row">Ended</th><td>2026-09-21T14:15:20Z</td>
8 GB
"""


def test_the_verdict_the_plot_and_one_prompt_come_first_and_provenance_last(text: str) -> None:
    places = [text.index(words) for words in ORDER.strip().splitlines()]
    assert places == sorted(places) and not re.search("[0-9a-f]{12}", text[: places[-3]])
    shown = text.replace("<wbr>", "")
    assert [words for words in ELSEWHERE.strip().splitlines() if words not in shown] == []
    # Keys of the recipe keep their spelling, and others are words
    assert not re.search("grad_norm|engine_mismatch|>python<|warning: 2 of", text)


def test_nothing_in_it_acts(text: str) -> None:
    read = Reader(text)
    acting = {"script", "link", "iframe", "object", "form", "base", "image", "foreignobject"}
    assert acting.isdisjoint(name for name, _ in read.tags)
    (policy,) = [tag["content"] for _, tag in read.tags if "http-equiv" in tag]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    for _, attributes in read.tags:
        assert not [key for key in attributes if key.startswith("on")]
        for key in attributes.keys() & {"href", "src"}:
            assert str(attributes[key]).startswith("#")
    assert "@import" not in text and not re.search(r"url\((?!#)", text)


def test_hostile_texts_are_shown_and_do_nothing(text: str) -> None:
    shown = "&lt;script&gt;alert(1)&lt;/script&gt;\ufffd[31m\ufffdevil"
    assert shown in text and "<script" not in text
    assert not re.search(f"[\x00-\x08\x0b-\x1f{BIDI}]", text)


def test_links_lead_to_sections_and_headings_nest(text: str) -> None:
    read = Reader(text)
    ids = [attrs["id"] for name, attrs in read.tags if name == "section"]
    assert [attrs["href"] for name, attrs in read.tags if name == "a"] == [
        f"#{name}" for name in ids[1:]
    ]
    levels = [int(name[1]) for name, _ in read.tags if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1 and all(
        after - before <= 1 for before, after in itertools.pairwise(levels)
    )
    heads = [attrs for name, attrs in read.tags if name == "th"]
    assert heads and all(attrs.get("scope") in ("row", "col") for attrs in heads)


def test_the_same_facts_give_the_same_bytes(tmp_path: Path) -> None:
    facts = facts_of(make_run(tmp_path / "run"))
    assert page(facts) == page(facts)


def light(color: str) -> float:
    """The relative luminance of WCAG 2.2 of a color such as `#ffffff`, from 0.05."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.05 + 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colors_can_be_read(theme: int, text: str) -> None:
    block = re.findall(r":root \{(.*?)\}", text, flags=re.DOTALL)[theme]
    found = {
        name: light(color) for name, color in re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", block)
    }
    series = [(name, "paper", 3) for name in found if name.startswith("series")]
    written = [
        (name, behind, 4.5)
        for name in ("ink", "muted", "link", "good", "bad", "even")
        for behind in ("paper", "panel")
    ]
    for one, other, least in [*series, *written, ("ink", "warn", 4.5)]:
        low, high = sorted((found[one], found[other]))
        assert high / low >= least, (one, other)


BREAKS = """
    supervised_fine_tuning_on_demonstrations | supervised_fine_<wbr>tuning_on_demonstrations
    see /data/of/everyone/demos.jsonl        | see /data/of/everyone/<wbr>demos.jsonl
    rejection_sampling                       | rejection_sampling
    add `metrics: <x>`                       | add <code>metrics: &lt;x&gt;</code>
    set `conversations_of_a_person`          | set <code>conversations_<wbr>of_a_person</code>
    <b>_\x1b_and_more_and_more               | &lt;b&gt;_\ufffd_<wbr>and_more_and_<wbr>more
"""


@pytest.mark.parametrize(("words", "shown"), cells(BREAKS))
def test_long_names_and_paths_can_break_and_short_ones_do_not(words: str, shown: str) -> None:
    assert breakable(words) == shown


def test_long_names_break_in_tables_and_titles(tmp_path: Path) -> None:
    facts = facts_of(make_run(tmp_path / "run"))
    facts["verdicts"].insert(0, {**facts["verdicts"][0], "policy": "other"})
    names = {"policy": "align", "result": "align@b", "against": "align@a"}
    note = "align@b and align@a do not compare: they differ in prompts."
    change = {**names, "notes": [note], "results": []}
    facts["cells"] = [{**change, "stage": stage} for stage in ("report", "other")]
    facts["run"]["name"] = facts["stages"][0]["name"] = "a_stage_with_a_name_that_is_long"
    text = page(facts)
    assert '<th scope="row">a_stage_with_<wbr>a_name_that_<wbr>is_long</th>' in text
    assert "<h1>a_stage_with_<wbr>a_name" in text
    assert text.count(note) == 1
    assert "1 more: other against sft</summary>" in text
    assert "<title>a_stage_with_a_name_that_is_long" in text


def test_dark_colors_are_not_printed(text: str) -> None:
    dark = re.findall(r"@media[^{]*prefers-color-scheme: dark[^{]*", text)
    assert dark and all(query.startswith("@media screen and") for query in dark)


def test_a_run_that_failed_does_not_blame_the_recipe_for_the_missing_verdict(
    tmp_path: Path,
) -> None:
    assert "No finished stage compares" in page(
        {**facts_of(make_run(tmp_path / "run")), "verdicts": []}
    )


# Shares before and after, prompts won, lost and tied, whether lower is better, and the counts shown
YES = """
    0.5 0.6 | 3/2/5  | false | 3 kept, 2 lost, 3 gained, 2 neither
    0.5 0.6 | 2/3/5  | true  | 3 kept, 2 lost, 3 gained, 2 neither
    0.5 0.6 | 4/2/4  | false | nothing: it is no yes or no
"""


@pytest.mark.parametrize(("shares", "counts", "lower", "shown"), cells(YES))
def test_what_passes_is_counted_before_and_after(
    shares: str, counts: str, lower: str, shown: str
) -> None:
    was, now = ({"mean": float(share)} for share in shares.split())
    before, after = (
        Row(name, "right", "metric", share, percent=True)
        for name, share in (("sft", was), ("ppo", now))
    )
    after = replace(after, baseline="sft", counts=counts, lower=lower == "true")
    found = before_and_after(after, [before, after])
    rows = [cell for table in found for row in table.rows for cell in row[1:]]
    assert ", ".join(rows) == shown or (not rows and "nothing" in shown)
