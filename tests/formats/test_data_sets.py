"""Rows in the shape of well-known data sets: which format recognizes them, and what it makes of
them.
"""

from __future__ import annotations

from typing import Any

import pytest

from alignkit import BadRow, Format, Group, Message, Pair, Response
from alignkit.plugins import plugins
from alignkit_plugins.formats.layouts import PAIRS, TEMPLATES

OTHERS = {*TEMPLATES, "template", "unlabeled", "squad", "dialogues", "reward_bench_2"}
FORMATS: dict[str, type[Format]] = {
    one.name: one.implementation
    for one in plugins().registrations("format")
    if one.name not in OTHERS
}


def groups(name: str, row: Any, **options: Any) -> list[Group]:
    cls = FORMATS[name]
    reader = cls(cls.Options(**options))
    found = list(reader.groups(row))
    for group in found:
        reader.check(group)
    return found


def read(name: str, row: Any, **options: Any) -> Group:
    (group,) = groups(name, row, **options)
    return group


def refused(name: str, row: Any, **options: Any) -> str:
    with pytest.raises(BadRow) as error:
        groups(name, row, **options)
    return str(error.value)


def said(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role=role, content=content) for role, content in turns)


Q = said(("user", "q"))
LLMBAR = {"input": "q", "output_1": "one", "output_2": "two", "label": 2}
AUTO_J = {"scenario": "s", "label": 0, "prompt": "q", "response 1": "one", "response 2": "two"}
PANDALM = {
    "instruction": "q",
    "input": "",
    "response1": "one",
    "response2": "two",
    "annotator1": 1,
    "annotator2": 2,
}
PANDALM |= {"annotator3": 2, "cmp_key": "a_b"}
SUPERHF = {
    "prompt": "q",
    "model_a": "x",
    "model_b": "y",
    "rating": "B",
    "model_a_completion": "one",
}
SUPERHF |= {"model_b_completion": "two", "test_set": "t"}
TULU = {"prompt": "q", "model_a": "x", "model_b": "y", "completion_a": "one", "completion_b": "two"}
TULU |= {"completion_a_is_acceptable": "yes", "preference": "b-is-slightly-better"}
ALPACA_EVAL = {
    "instruction": "q",
    "output_1": "one",
    "generator_1": "x",
    "output_2": "two",
    "generator_2": "y",
}
ALPACA_EVAL |= {"dataset": "d", "annotator": "gpt4", "preference": 2.0}


LABELED = [
    (LLMBAR, 1, (Pair(0, 1),)),
    (LLMBAR, 2, (Pair(1, 0),)),
    (LLMBAR, "2", (Pair(1, 0),)),
    (AUTO_J, 0, (Pair(0, 1),)),
    (AUTO_J, 1, (Pair(1, 0),)),
    (AUTO_J, 2, ()),
    (SUPERHF, "A", (Pair(0, 1),)),
    (SUPERHF, "B", (Pair(1, 0),)),
    (TULU, "a-is-better", (Pair(0, 1, margin="better"),)),
    (TULU, "a-is-slightly-better", (Pair(0, 1, margin="slightly"),)),
    (TULU, "tie", ()),
    (TULU, "b-is-slightly-better", (Pair(1, 0, margin="slightly"),)),
    (TULU, "b-is-better", (Pair(1, 0, margin="better"),)),
    (ALPACA_EVAL, 1, (Pair(0, 1),)),
    (ALPACA_EVAL, 2.0, (Pair(1, 0),)),
    (ALPACA_EVAL, 1.5, ()),
    (ALPACA_EVAL, 0, ()),
    (ALPACA_EVAL, 1.25, (Pair(0, 1, p=0.75),)),
    (ALPACA_EVAL, 1.75, (Pair(1, 0, p=0.75),)),
]


@pytest.mark.parametrize(("row", "label", "pairs"), LABELED)
def test_a_label_means_what_it_means_in_its_data_set(
    row: dict[str, Any], label: Any, pairs: tuple[Pair, ...]
) -> None:
    column = next(name for name in ("label", "rating", "preference") if name in row)
    row = {**row, column: label}
    assert [name for name, cls in FORMATS.items() if cls.matches(row)] == ["labeled_pairs"]
    group = read("labeled_pairs", row)
    assert group.prompt == Q
    assert [response.text for response in group.responses] == ["one", "two"]
    assert group.pairs == pairs
    assert group.meta[column] == label


@pytest.mark.parametrize(
    ("votes", "pairs"),
    [
        ((1, 1, 2), (Pair(0, 1),)),
        ((2, 0, 2), (Pair(1, 0),)),
        ((0, 0, 1), ()),
        ((0, 1, 2), ()),  # nobody agrees
    ],
)
def test_several_annotators_decide_by_majority(
    votes: tuple[int, ...], pairs: tuple[Pair, ...]
) -> None:
    row = {**PANDALM, **{f"annotator{number}": vote for number, vote in enumerate(votes, 1)}}
    assert [name for name, cls in FORMATS.items() if cls.matches(row)] == ["labeled_pairs"]
    assert read("labeled_pairs", row).pairs == pairs


def test_answers_that_are_equal_may_tie_but_not_differ() -> None:
    equal = {**AUTO_J, "response 2": "one"}
    assert read("labeled_pairs", {**equal, "label": 2}).pairs == ()
    assert "are the same" in refused("labeled_pairs", equal)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**LLMBAR, "label": 0}, "column 'label' holds 0, but the known labels are 1, 2"),
        ({**LLMBAR, "label": None}, "holds None"),
        ({**SUPERHF, "rating": "Sorry"}, "holds 'Sorry', but the known labels are a, b, tie"),
        ({**LLMBAR, "output_1": True}, "must be text"),
        ({**LLMBAR, "output_2": None}, "'output_2' is missing or null"),
        ({"prompt": "q", "answer_1": "x", "answer_2": "y", "label": 1}, "say with a `template`"),
    ],
)
def test_labels_without_a_known_meaning_are_refused(row: dict[str, Any], reason: str) -> None:
    assert reason in refused("labeled_pairs", row)


def test_battles_of_whole_conversations_share_their_prompt() -> None:
    def talk(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]

    row = {"conversation_a": talk("one"), "conversation_b": talk("two"), "winner": "model_b"}
    row |= {"model_a": "x", "model_b": "y"}
    group = read("labeled_pairs", row)
    assert group.prompt == Q and group.pairs == (Pair(1, 0),)
    assert [response.text for response in group.responses] == ["one", "two"]
    assert read("labeled_pairs", {**row, "winner": "tie (bothbad)"}).pairs == ()


# Trees


def node(role: str, text: str, *replies: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"role": role, "text": text, "replies": list(replies), **keys}


TREE = {
    "message_tree_id": "t",
    "prompt": node(
        "prompter", "q",
        node("assistant", "worse", rank=1),
        node("assistant", "best", node("prompter", "r", node("assistant", "only")), node("prompter", "s"), rank=0),
        node("assistant", "gone", rank=2, deleted=True),
    ),
}  # fmt: skip


def test_a_tree_holds_a_ranking_for_every_prompt() -> None:
    assert [name for name, cls in FORMATS.items() if cls.matches(TREE)] == ["oasst"]
    first, second = groups("oasst", TREE)
    assert first.prompt == Q and [r.text for r in first.responses] == ["worse", "best"]
    assert first.pairs == (Pair(1, 0),) and first.meta == {"message_tree_id": "t"}
    assert second.prompt == said(("user", "q"), ("assistant", "best"), ("user", "r"))
    assert [r.text for r in second.responses] == ["only"] and second.pairs == ()


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        (node("prompter", "q"), "no prompt of the tree has a reply"),
        (node("prompter", "q", node("assistant", "a"), review_result=False), "failed the review"),
        (node("someone", "q", node("assistant", "a")), "unknown role 'someone'"),
        ({**node("prompter", "q", node("assistant", "a")), "text": 5}, "must have text"),
        ({"role": "prompter", "text": "q", "replies": "a"}, "must be a list of messages"),
    ],
)
def test_bad_trees(tree: dict[str, Any], reason: str) -> None:
    assert reason in refused("oasst", {"prompt": tree})


# Instances, scores


def test_every_instance_of_an_instruction_is_a_demonstration() -> None:
    row = {
        "instruction": "Add.",
        "instances": [{"input": "1 2", "output": "3"}, {"input": "", "output": "0"}],
        "id": 7,
    }
    assert [name for name, cls in FORMATS.items() if cls.matches(row)] == ["self_instruct"]
    one, two = groups("self_instruct", row)
    assert one == Group(said(("user", "Add.\n\n1 2")), (Response(text="3"),), meta={"id": 7})
    assert two.prompt == said(("user", "Add."))
    assert "not empty" in refused("self_instruct", {**row, "instances": []})
    assert "must be an object with columns" in refused("self_instruct", {**row, "instances": ["x"]})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "responses": ["a", "b", "c"], "scores": ["3", 7, 3]},
        {
            "prompt": "q",
            "responses": [{"text": t, "score": s} for t, s in zip("abc", "373", strict=True)],
        },
    ],
)
def test_scores_order_the_responses_and_their_difference_is_the_margin(row: dict[str, Any]) -> None:
    assert [name for name, cls in FORMATS.items() if cls.matches(row)] == ["rankings"]
    group = read("rankings", row)
    assert group.prompt == Q
    assert group.pairs == (Pair(1, 0, margin=4.0), Pair(1, 2, margin=4.0))
    assert [response.scores["reward"] for response in group.responses] == [3.0, 7.0, 3.0]


def test_ranks_count_before_scores_and_a_missing_score_is_named() -> None:
    responses = [{"text": "a", "rank": 2, "score": 9}, {"text": "b", "rank": 1, "score": 1}]
    group = read("rankings", {"prompt": "q", "responses": responses})
    assert group.pairs is None and [response.rank for response in group.responses] == [2, 1]
    row = {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, None, None]}
    assert "2 of 3 responses have no score" in refused("rankings", row)
    assert "scores must be a list of 3" in refused("rankings", {**row, "scores": [1]})


def test_alpaca_evals_columns_alone_do_not_say_what_0_means() -> None:
    """There it is a tie; sets that count from 0 mean the first answer."""
    row = {key: value for key, value in ALPACA_EVAL.items() if not key.startswith("generator")}
    assert not PAIRS["AlpacaEval"].fits({**row, "preference": 0})
    assert PAIRS["AlpacaEval"].fits({**ALPACA_EVAL, "preference": 0})
