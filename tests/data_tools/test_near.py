"""Equal and nearly equal texts."""

from __future__ import annotations

import random

import numpy as np
import pytest
from planted_rows import Writer

from alignkit import Group, Message, Response
from alignkit_plugins.data_tools import near
from alignkit_plugins.data_tools.clean import rows_to_clean
from alignkit_plugins.data_tools.near import Kind, Unit
from tests.rows import assistant, user
from tests.typings import ASKED, TYPINGS

LONG = "Which mammal lays eggs and lives near rivers in the east of Australia?"


def units(texts: list[str]) -> list[Unit]:
    return [Unit(at, near.normalized(text)) for at, text in enumerate(texts)]


def rows(matches: list[near.Match]) -> list[tuple[int, int]]:
    return [(match.unit.row, match.other.row) for match in matches]


def test_case_and_white_space_do_not_count() -> None:
    texts = [
        LONG,
        LONG.upper() + " \n",
        LONG.replace(" ", "\t"),
        "\ufeff" + LONG.replace("a", "\u00ada\u200b"),
    ]
    assert rows(near.repeated(units(texts), 0)) == [(1, 0), (2, 0), (3, 0)]


def test_a_question_in_another_typing_is_a_leak() -> None:
    (held_out, *others) = (rows_to_clean([Group((user(text),))]) for text in (ASKED, *TYPINGS))
    assert len(others) > 20
    for training in others:
        assert rows(near.leaks(training, held_out, "prompt", 0)), training


@pytest.mark.parametrize(
    "texts", [["ha " * 20, "ha " * 30], [LONG * 300, f"{LONG * 300} And why?"]]
)
def test_only_equal_texts_are_called_equal(texts: list[str]) -> None:
    (match,) = near.repeated(units(texts), 0.8)
    assert 0.99 < match.similarity < 1
    assert (
        near.repeated(units(texts), 0) == near.shared(units(texts[:1]), units(texts[1:]), 0) == []
    )


def test_texts_with_other_numbers_are_no_duplicates() -> None:
    sums = [
        f"Ann has {n} pens and buys {n + 1} more of them in the shop. How many has she?"
        for n in range(20)
    ]
    for n in (7, 5):
        sums.append(f"Bob has 7 pens, {n} cups and 5 of the books. How many things has he?")
    assert near.repeated(units(sums), 0.5) == []
    sums = [f"{LONG} It costs {price} pounds." for price in ("1,200", "1200", "1200.00", "1,201")]
    pairs = near.repeated(units(sums), 0.5)
    assert {frozenset(match) for match in rows(pairs)} == {
        frozenset(pair) for pair in ((0, 1), (0, 2))
    }


def test_rows_are_as_similar_as_their_least_similar_parts() -> None:
    passage, sea, land = (Writer(n).text(size) for n, size in ((3, 300), (4, 12), (5, 12)))
    parts = [
        (passage, "No"),  # of all that is compared more is as in the last one than of the next
        (f"{passage} {Writer(8).text(8)}", "Yes"),
        (passage, "Yes."),
        (LONG, sea, land),
        (LONG, land, sea),
    ]
    # Longer than what is compared
    parts += [(long := Writer(6).text(4000), "Yes"), (f"{long} So?", "No")]
    groups = [
        Group((user(prompt),), tuple(Response(text=text) for text in texts))
        for prompt, *texts in parts
    ]
    found = near.units_of(rows_to_clean(groups), "row")
    assert rows(near.repeated(found, 0.8)) == [(2, 1)]


def test_each_pair_that_is_reported_is_as_similar_as_it_says() -> None:
    make = Writer(1)
    base = [make.text(30) for _ in range(200)]
    texts = base + [make.almost(text) for text in base]
    found = near.repeated(units(texts), 0.8)
    assert rows(found) == [(at + 200, at) for at in range(200)]
    for match in found:
        like = near.similarity(*(near.normalized(texts[at]) for at in rows([match])[0]))
        assert match.similarity == like >= 0.8


def test_what_repeats_a_row_that_is_left_out_is_compared_with_one_that_stays() -> None:
    words = LONG.split() * 4
    chain = [" ".join(words)]
    # Each differs from the one before in a word, and from the first in more and more
    for place in range(2, 40, 4):
        words[place] = f"other{'abcdefghijklmnop'[place % 16]}"
        chain.append(" ".join(words))
    found = dict(rows(near.repeated(units(chain), 0.8)))
    kept = set(range(len(chain))) - found.keys()
    assert set(found.values()) <= kept and len(kept) > 1


def test_a_text_of_others_is_found_from_both_sides() -> None:
    make = Writer(2)
    train, held_out = ([make.text(20) for _ in range(50)] for _ in range(2))
    held_out += [train[7], make.almost(train[9])]
    one, other = units(held_out), units(train)
    assert rows(near.shared(one, other, 0.7)) == [(50, 7), (51, 9)]
    assert rows(near.shared(other, one, 0.7)) == [(7, 50), (9, 51)]
    assert rows(near.shared(one, other, 0)) == [(50, 7)]
    assert near.shared(one, units([]), 0.7) == near.shared(units([]), one, 0.7) == []


def test_an_answer_that_many_rows_give_is_no_leak() -> None:
    def row(answer: str) -> Group:
        return Group((), (Response(text=answer),))

    other = LONG[::-1]
    held_out = rows_to_clean([row(LONG), row(other)])
    every = [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (5, 1)]
    for copies, leaked in ((5, every), (6, [(6, 1)])):
        training = rows_to_clean([row(LONG)] * copies + [row(other)])
        matches = near.leaks(training, held_out, "response", 0.8)
        assert rows(matches) == leaked


def test_many_copies_cost_no_pair_each() -> None:
    texts = [f"{LONG} {'x' * random.Random(n).randrange(3)}" for n in range(3000)]
    assert len(near.repeated(units(texts), 0.8)) == 2999
    texts = [f"{Writer(1).text(60)} {Writer(n).text(6)}" for n in range(2, 30)]
    assert rows(near.repeated(units([*texts, f"{texts[-1]} So?"]), 0.97)) == [(28, 27)]


@pytest.mark.parametrize("kind", ["prompt", "response"])
def test_turns_are_texts_by_themselves_unless_they_are_short(kind: Kind) -> None:
    answer = "The platypus lays eggs, and so do four species of echidna."
    brief = Message(role="system", content="Be brief.")
    prompt = (brief, user("Hi"), assistant(answer), user(LONG))
    later = (assistant("Yes, please."), user(LONG[:40]), assistant(answer * 2))
    found = near.units_of(rows_to_clean([Group(prompt, (Response(messages=later),))]), kind)
    wanted = [answer, answer * 2]
    if kind == "prompt":
        wanted = [f"Hi {answer} {LONG}", LONG, LONG[:40]]
    assert [unit.text for unit in found] == [near.normalized(text) for text in wanted]
    assert not any("be brief" in unit.text for unit in found)


@pytest.mark.silent_bug(
    "data: near duplicates",
    "Rows with a long part in common, such as instructions, hide from each other which of them "
    "are nearly equal.",
    "A row is compared with those that share most of its signature, and not with the first and "
    "the last one.",
)
def test_near_duplicates_are_found_among_rows_with_a_long_part_in_common() -> None:
    """1000 rows that share 70% of their text; 100 repeat one of them with two of 60 words
    changed.
    """
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefghijklmnopqrstuvwxyz"), size=6)) for _ in range(100)]
    head = " ".join(words[:42])
    tails = [draw.choice(words, size=18) for _ in range(1000)]
    copies = [tail.copy() for tail in tails[::10]]
    for copy in copies:
        copy[draw.choice(18, size=2, replace=False)] = draw.choice(words, size=2)
    texts, others = ([f"{head} {' '.join(tail)}" for tail in some] for some in (tails, copies))
    wanted = set()
    for place, other in enumerate(others):
        if near.similarity(texts[10 * place], other) >= 0.8:
            wanted.add(place)
    found = {place for place, _ in rows(near.shared(units(others), units(texts), 0.8))}
    repeated = {place - 1000 for place, _ in rows(near.repeated(units(texts + others), 0.8))}
    assert len(wanted) > 80 and len(wanted - found) <= 1 and len(wanted - repeated) <= 1


def test_leaks_are_found_among_many_rows_that_are_nearly_alike() -> None:
    """1500 rows of 60 words, of which 45 are the same; the others are 30 different ones. Copies of
    100 rows differ in three words, and any two rows are at 0.74.
    """
    draw = np.random.default_rng(3)
    words = ["".join(draw.choice(list("abcdefghijklmnopqrstuvwxyz"), size=6)) for _ in range(30)]
    head = " ".join(words + words[:15])
    tails = draw.choice(words, size=(1500, 15))
    copies = tails[::15].copy()
    for copy in copies:
        copy[draw.choice(15, size=3, replace=False)] = draw.choice(words, size=3)
    texts, others = ([f"{head} {' '.join(tail)}" for tail in some] for some in (tails, copies))
    wanted = {
        at for at, other in enumerate(others) if near.similarity(texts[15 * at], other) >= 0.8
    }
    found = {place for place, _ in rows(near.shared(units(others), units(texts), 0.8))}
    assert len(wanted) > 40 and wanted <= found
