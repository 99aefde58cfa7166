"""Each format: what it reads, what it refuses and why, and that no row is claimed by two of
them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from alignkit import BadRow, Format, Group, Message, Pair, Response
from alignkit.data.group import group_to_json, resolved_pairs
from alignkit.plugins import plugins
from alignkit_plugins.formats import text
from alignkit_plugins.formats.columns import ColumnFormat, read_message
from alignkit_plugins.formats.layouts import TEMPLATES

OTHERS = {*TEMPLATES, "template", "unlabeled", "squad"} - {"gsm8k", "svamp"}
FORMATS: dict[str, type[Format]] = {
    one.name: one.implementation
    for one in plugins().registrations("format")
    if one.name not in OTHERS
}


def read(name: str, row: Any, **options: Any) -> Group:
    """The checked group of a row that the format also claims."""
    cls = FORMATS[name]
    reader = cls(cls.Options(**options))
    group = reader.read(row)
    reader.check(group)
    return group


def refused(name: str, row: Any) -> str:
    with pytest.raises(BadRow) as error:
        read(name, row)
    return str(error.value)


def turns(*said: str) -> tuple[Message, ...]:
    """Turns from 'u: words', 'a: words', 's: words'."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return tuple(Message(role=roles[text[0]], content=text[3:]) for text in said)


def openai(*said: str) -> list[dict[str, Any]]:
    return [dict(turn) for turn in turns(*said)]


def sharegpt(*said: str) -> list[dict[str, Any]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns(*said)]


def texts(group: Group) -> list[str]:
    return [response.text for response in group.responses]


ROWS: Sequence[tuple[str, Any]] = [
    (
        "reward_bench_2",
        {"prompt": "q", "chosen": ["a"], "rejected": ["b", "c", "d"], "num_correct": 1},
    ),
    (
        "hh_rlhf",
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    ),
    ("hh_rlhf", "\n\nHuman: q\n\nAssistant: a"),
    ("preference", {"prompt": "q", "chosen": "a", "rejected": "b"}),
    (
        "preference",
        {"prompt": openai("u: q"), "chosen": openai("a: a"), "rejected": openai("a: b")},
    ),
    ("preference", {"chosen": openai("u: q", "a: a"), "rejected": openai("u: q", "a: b")}),
    (
        "preference",
        {"chosen": openai("u: q", "a: a"), "rejected": openai("u: q", "a: b"), "prompt": None},
    ),
    ("prompt_only", {"prompt": "q"}),
    ("prompt_only", {"prompt": openai("u: q"), "safety": True}),
    ("prompt_only", "just a question"),
    ("prompt_completion", {"prompt": "q", "completion": "a"}),
    ("prompt_completion", {"prompt": "q", "completion": "a", "label": True}),
    (
        "svamp",
        {
            "Body": "Ann has 2",
            "Question": "How many?",
            "Equation": "( 2 )",
            "Answer": 2.0,
            "ID": "chal-1",
        },
    ),
    ("messages", {"messages": openai("u: q", "a: a")}),
    ("messages", {"prompt": "q", "prompt_id": 1, "messages": openai("u: q", "a: a")}),
    ("messages", {"conversations": sharegpt("u: q", "a: a"), "id": "x"}),
    ("alpaca", {"instruction": "i", "input": "", "output": "o"}),
    ("alpaca", {"instruction": "i", "output": "o", "text": "all of it"}),
    ("dolly", {"instruction": "i", "context": "c", "response": "r", "category": "qa"}),
    (
        "rankings",
        {"prompt": "q", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]},
    ),
    ("rankings", {"prompt": "q", "responses": ["a", "b"], "ranks": [2, 1]}),
    ("self_instruct", {"instruction": "i", "instances": [{"input": "", "output": "o"}]}),
    ("labeled_pairs", {"input": "q", "output_1": "a", "output_2": "b", "label": 1}),
    (
        "oasst",
        {
            "prompt": {
                "text": "q",
                "role": "prompter",
                "replies": [{"text": "a", "role": "assistant"}],
            }
        },
    ),
    ("text", {"text": "once upon a time", "url": "x"}),
    ("groups", {"alignkit": 1, "prompt": openai("u: q"), "responses": [{"text": "a", "rank": 1}]}),
]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_each_row_is_claimed_by_one_format_and_read_by_it(name: str, row: Any) -> None:
    assert [known for known, cls in FORMATS.items() if cls.matches(row)] == [name]
    read(name, row)


@pytest.mark.parametrize("row", [None, 3, True, [], {}, {"x": 1}, {"prompt": None}, [1, 2]])
def test_other_rows_are_claimed_by_none_and_refused_by_all(row: Any) -> None:
    for cls in FORMATS.values():
        assert not cls.matches(row)
        with pytest.raises(BadRow):
            cls().read(row)


@pytest.mark.parametrize("name", FORMATS)
def test_the_example_of_a_format_has_it(name: str) -> None:
    cls = FORMATS[name]
    row = json.loads(cls.example)
    for group in cls().groups(row):
        cls().check(group)
    found = {"dialogues": ["text"], "gsm8k": []}.get(name, [name])  # these two must be named
    assert [known for known, other in FORMATS.items() if other.matches(row)] == found


def test_every_format_says_what_it_is() -> None:
    must_be_named = {"dialogues", "gsm8k"}
    assert set(FORMATS) == {name for name, _ in ROWS} | must_be_named
    assert all(cls.wants for cls in FORMATS.values())


# hh_rlhf


def hh(chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": chosen, "rejected": rejected}


Q = "\n\nHuman: q\n\nAssistant:"


def test_hh_a_transcript_becomes_turns_and_a_pair() -> None:
    context = "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nmore\n\nAssistant:"
    group = read("hh_rlhf", {**hh(context + " good", context + " bad "), "source": "x"})
    assert group.prompt == turns("u: one", "a: two", "u: three\n\nmore")
    assert (
        texts(group) == ["good", "bad"]
        and group.pairs == (Pair(0, 1),)
        and group.meta == {"source": "x"}
    )


def test_hh_a_tag_inside_a_turn_is_words() -> None:
    context = (
        "\n"
        "\n"
        "Human: who says Assistant: here?\n"
        "Human: me\n"
        "\n"
        "Assistant: Human: you do\n"
        "\n"
        "Human: ok\n"
        "\n"
        "Assistant:"
    )
    group = read("hh_rlhf", hh(context + " a  Human: b", context + " c"))
    assert [turn["content"] for turn in group.prompt] == [
        "who says Assistant: here?\nHuman: me",
        "Human: you do",
        "ok",
    ]
    assert texts(group) == ["a  Human: b", "c"]


def test_hh_one_speaker_twice_in_a_row_is_one_turn() -> None:
    context = (
        "\n"
        "\n"
        "Human: a\n"
        "\n"
        "Human: b\n"
        "\n"
        "Assistant: c\n"
        "\n"
        "Assistant: d\n"
        "\n"
        "Human: e\n"
        "\n"
        "Assistant: f\n"
        "\n"
        "Assistant:"
    )
    group = read("hh_rlhf", hh(context + " x", context + " y"))
    assert group.prompt == turns("u: a\n\nb", "a: c\n\nd", "u: e")
    assert texts(group) == ["f\n\nx", "f\n\ny"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            hh("\n\nHuman: q\n\nAssistant: a", "\n\nHuman: r\n\nAssistant: a"),
            "differ before their last turn",
        ),
        (hh(Q + " x\n\nAssistant: a", Q + " b"), "differ before their last turn"),
        (hh(Q + " a\n\nHuman: bye", Q + " b\n\nHuman: bye"), "does not end with an assistant turn"),
        (hh(Q + " same", Q + " same "), "are the same"),
        (hh(Q, Q + " "), "both responses are empty"),
        (hh("\n\nAssistant: a", "\n\nAssistant: b"), "no prompt"),
        (
            hh("\n\nHuman:\n\nAssistant: a", "\n\nHuman:\n\nAssistant: b"),
            "last turn of the prompt is empty",
        ),
        (hh("hello Human: q", "hello"), "starts with 'Human:'"),
        ({"chosen": Q + " a"}, "'rejected' is missing"),
        ({"chosen": Q + " a", "rejected": 4}, "must be text, not a number"),
        ("\n\nHuman: q", "no assistant turn"),
        ("\n\nHuman: q\n\nAssistant:", "the response is empty"),
        ("\n\nHuman: q\n\nAssistant: a\n\nHuman: r", "last turn must be an assistant turn"),
    ],
)
def test_hh_bad_rows(row: Any, reason: str) -> None:
    assert reason in refused("hh_rlhf", row)


@pytest.mark.parametrize("empty", [0, 1])
def test_hh_one_empty_answer_is_the_end_of_turn_alone(empty: int) -> None:
    sides = [Q + " a", Q + " a"]
    sides[empty] = Q
    assert texts(read("hh_rlhf", hh(*sides)))[empty] == ""


def test_hh_a_single_transcript_is_a_demonstration() -> None:
    group = read("hh_rlhf", Q + " a\n\nHuman: r\n\nAssistant: b")
    assert group.prompt == turns("u: q")
    assert (
        group.responses == (Response(messages=turns("a: a", "u: r", "a: b")),)
        and group.pairs is None
    )
    assert read("hh_rlhf", {"text": Q + " a"}).responses == (Response(text="a"),)


# preference, prompt_only, prompt_completion


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": openai("u: q"), "chosen": openai("a: a"), "rejected": openai("a: b")},
        {
            "prompt": openai("u: q"),
            "chosen": openai("u: q", "a: a"),
            "rejected": openai("u: q", "a: b"),
        },
        {"prompt": "q", "chosen": openai("u: q", "a: a"), "rejected": openai("u: q", "a: b")},
        {"chosen": openai("u: q", "a: a"), "rejected": openai("u: q", "a: b")},
        {
            "prompt": '[{"role": "user", "content": "q"}]',
            "chosen": "a",
            "rejected": "b",
            "margin": "",
            "p": "",
        },
    ],
)
def test_preferences_of_every_shape_are_the_same_group(row: Any) -> None:
    group = read("preference", row)
    assert group == Group(turns("u: q"), (Response(text="a"), Response(text="b")), (Pair(0, 1),))


def test_preference_finds_the_prompt_that_both_sides_share() -> None:
    both = openai("s: be kind", "u: q", "a: which?", "u: this")
    longer = read(
        "preference",
        {"chosen": both + openai("a: a", "u: r", "a: b"), "rejected": both + openai("a: c")},
    )
    assert len(longer.prompt) == 4
    assert longer.responses == (
        Response(messages=turns("a: a", "u: r", "a: b")),
        Response(text="c"),
    )


def test_preference_of_conversations_that_part_at_the_users_turn_compares_all_from_the_first_answer() -> (
    None
):
    row = {
        "chosen": openai("u: q", "a: a", "u: r", "a: b"),
        "rejected": openai("u: q", "a: a", "u: s", "a: c"),
    }
    group = read("preference", row)
    assert group.prompt == turns("u: q")
    assert [r.messages for r in group.responses] == [
        turns("a: a", "u: r", "a: b"),
        turns("a: a", "u: s", "a: c"),
    ]


def test_an_answer_that_is_json_stays_text() -> None:
    group = read("preference", {"prompt": "[1, 2]", "chosen": '[{"a": 1}]', "rejected": "[]"})
    assert group.prompt == turns("u: [1, 2]") and texts(group) == ['[{"a": 1}]', "[]"]
    asked = '{"role": "admin", "content": "x"}'
    assert read("prompt_completion", {"prompt": asked, "completion": "{'a': 1}"}).prompt == turns(
        f"u: {asked}"
    )


@pytest.mark.silent_bug(
    "data: columns",
    "A list of messages that pandas wrote into a table becomes the user's words.",
    "It is read as messages.",
)
@pytest.mark.parametrize("written", [json.dumps, str])
def test_messages_in_a_cell_are_messages_however_they_are_written(written: Any) -> None:
    """pandas writes a list into a table as Python prints it: `[{'role': 'user', ...}]`, which is no
    JSON.
    """
    said = [{"role": "user", "content": 'what\'s "up"?'}, {"role": "assistant", "content": "a"}]
    wanted = Group(turns('u: what\'s "up"?'), (Response(text="a"),))
    assert read("messages", {"messages": written(said)}) == wanted
    assert (
        read("prompt_completion", {"prompt": written(said[:1]), "completion": written(said[1])})
        == wanted
    )
    by_numpy = str(said).replace("}, {", "}\n {")
    assert "looks like messages but is not JSON" in refused("messages", {"messages": by_numpy})
    assert "looks like messages but is not JSON" in refused(
        "prompt_completion", {"prompt": by_numpy, "completion": "a"}
    )


@pytest.mark.silent_bug(
    "data: ratings",
    "The ratings of a pair are equal, or contradict it.",
    "Equal ones make no pair, and contradicting ones are refused.",
    "OpenBMB/UltraFeedback#11",
)
@pytest.mark.parametrize(
    "names", [("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating")]
)
def test_equal_ratings_make_no_pair_and_contradicting_ones_are_refused(
    names: tuple[str, str],
) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    rated = [
        dict(zip(names, ratings, strict=True)) for ratings in ((8.0, 8), ("4.5", "4"), ("3.5", "4"))
    ]
    assert [read("preference", row | rating).pairs for rating in rated[:2]] == [(), (Pair(0, 1),)]
    assert f"{names[0]} 3.5 is below {names[1]} 4, so the columns contradict" in refused(
        "preference", row | rated[2]
    )


def test_preference_margins_and_soft_labels() -> None:
    base = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert read("preference", {**base, "margin": "slightly"}).pairs == (
        Pair(0, 1, margin="slightly"),
    )
    assert read("preference", {**base, "margin": 2, "p": 0.7, "n": 3}).pairs == (
        Pair(0, 1, p=0.7, margin=2.0),
    )
    # A cell of a table
    assert read("preference", {**base, "margin": "0.5"}).pairs == (Pair(0, 1, margin=0.5),)
    assert read("preference", {**base, "margin": None, "n": 3}).meta == {"n": 3}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"margin": "enormous"}, "margin', unless one of significantly"),
        ({"margin": True}, "must be a number"),
        ({"margin": -1}, "must not be negative"),
        ({"p": 1.5}, "between 0 and 1"),
        ({"p": "sure"}, "'p' must be a number"),
        ({"rejected": None}, "'rejected' is missing or null"),
        ({"rejected": "a "}, "are the same"),
        ({"chosen": "", "rejected": " "}, "both responses are empty"),
        ({"chosen": True}, "must be text or a list of messages, not true or false"),
        ({"prompt": ""}, "there is no prompt"),
        (
            {"prompt": [*openai("s: only this"), {"role": "judge", "content": "x"}]},
            "unknown role 'judge'",
        ),
        ({"chosen": openai("u: r")}, "last turn must be an assistant turn"),
        ({"chosen": openai("u: r", "a: a")}, "must be an assistant turn, not a user turn"),
        (
            {"prompt": None},
            "there is no prompt: chosen and rejected begin with different turns, or are single",
        ),
        (
            {"prompt": None, "chosen": "I like cats.", "rejected": "I like dogs."},
            "name the prompt's column",
        ),
        ({"prompt": []}, "there is no prompt"),
        (
            {"prompt": None, "chosen": openai("u: x", "a: a"), "rejected": openai("u: y", "a: a")},
            "begin with different turns",
        ),
    ],
)
def test_preference_bad_rows(change: dict[str, Any], reason: str) -> None:
    assert reason in refused(
        "preference", {"prompt": "q", "chosen": "a", "rejected": "b", **change}
    )


def test_prompt_only_keeps_other_columns_as_meta() -> None:
    group = read(
        "prompt_only", {"prompt": openai("s: be brief", "u: q"), "safety": True, "answer": 7}
    )
    assert group == Group(turns("s: be brief", "u: q"), meta={"safety": True, "answer": 7})
    assert read("prompt_only", "q") == Group(turns("u: q"))


def test_prompt_completion() -> None:
    row = {"prompt": openai("u: q"), "completion": openai("a: a"), "label": False}
    assert read("prompt_completion", row) == Group(
        turns("u: q"), (Response(text="a", label=False),)
    )
    assert (
        read("prompt_completion", {"prompt": "q", "completion": "a", "label": "True"})
        .responses[0]
        .label
        is True
    )
    for value in (1, "safe", "0"):
        expected = f"column 'label' must be true or false, not {value!r}"
        assert expected in refused("prompt_completion", {**row, "label": value})
    assert "response is empty" in refused("prompt_completion", {"prompt": "q", "completion": "\n"})


# messages


def test_messages_of_several_turns() -> None:
    conversation = openai("s: be kind", "u: q", "a: a", "u: r", "a: b")
    conversation[2]["train"] = False
    group = read("messages", {"messages": conversation, "lang": "en"})
    assert group.prompt == turns("s: be kind", "u: q") and group.meta == {"lang": "en"}
    answer = (Message(role="assistant", content="a", train=False), *turns("u: r", "a: b"))
    assert group.responses == (Response(messages=answer),)


def test_messages_of_one_answer_and_sharegpt_are_the_same() -> None:
    wanted = Group(turns("u: q"), (Response(text="a"),))
    assert read("messages", {"messages": openai("u: q", "a: a")}) == wanted
    assert read("messages", {"conversations": sharegpt("u: q", "a: a")}) == wanted
    assert (
        read(
            "messages",
            {"messages": '[{"role": "user", "content": "q"}, {"from": "gpt", "value": "a"}]'},
        )
        == wanted
    )


@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        (
            [*sharegpt("u: q"), {"from": "narrator", "value": "x"}],
            "unknown role 'narrator'; expected one of human",
        ),
        (openai("s: q"), "no assistant turn"),
        (openai("u: q", "a: a", "s: r"), "last turn must be an assistant turn"),
        (openai("a: a"), "no prompt"),
        (openai("u: q", "a: "), "the response is empty"),
        (openai("u: q", "a: ", "u: r", "a:  "), "no assistant turn can be learned"),
        (
            [*openai("u: q"), {"role": "assistant", "content": "a", "train": False}],
            "no assistant turn can be learned",
        ),
        (
            [*openai("u: q"), {"role": "assistant", "content": "a", "weight": 0}],
            "no assistant turn can be learned",
        ),
        ([], "no assistant turn"),
        ("hello", "must be a list of messages, not text"),
    ],
)
def test_messages_bad_rows(conversation: Any, reason: str) -> None:
    assert reason in refused("messages", {"messages": conversation})


def test_a_label_belongs_to_the_last_answer() -> None:
    conversation = openai("s: be kind", "u: q", "a: a", "u: r", "a: b")
    wanted = Group(turns("s: be kind", "u: q", "a: a", "u: r"), (Response(text="b", label=False),))
    assert read("messages", {"messages": conversation, "label": False}) == wanted
    assert read("messages", {"messages": conversation, "kto_tag": False}) == wanted
    row = {"prompt": conversation[:2], "completion": conversation[2:], "label": False}
    assert read("prompt_completion", row) == wanted
    twice = read("messages", {"messages": openai("u: q", "a: a", "a: b"), "label": True})
    assert twice == Group(turns("u: q"), (Response(messages=turns("a: a", "a: b"), label=True),))
    ends = {"messages": openai("u: q", "a: a", "u: r"), "label": True}
    assert "last turn must be an assistant turn" in refused("messages", ends)


def test_a_conversation_that_ends_with_the_user_is_a_prompt() -> None:
    said = ("s: be kind", "u: q", "a: a", "u: r")
    assert read("messages", {"messages": openai(*said)}) == Group(turns(*said))


def test_a_greeting_is_part_of_the_prompt() -> None:
    group = read(
        "messages", {"messages": openai("s: s", "a: hello", "u: q", "a: a", "u: r", "a: b")}
    )
    assert group.prompt == turns("s: s", "a: hello", "u: q")
    assert group.responses == (Response(messages=turns("a: a", "u: r", "a: b")),)
    assert read("hh_rlhf", "\n\nAssistant: hello" + Q + " a").prompt == turns("a: hello", "u: q")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("messages", {"messages": openai("u: q", "a: a"), "system": "be kind"}),
        (
            "messages",
            {"conversations": sharegpt("s: be kind", "u: q", "a: a"), "system": " be kind "},
        ),
        ("prompt_completion", {"prompt": "q", "completion": "a", "system_prompt": "be kind"}),
        ("prompt_completion", {"prompt": "q", "response": "a", "system": "be kind"}),
        ("alpaca", {"instruction": "q", "output": "a", "system": "be kind"}),
    ],
)
def test_a_column_with_the_system_message_opens_the_conversation(
    name: str, row: dict[str, Any]
) -> None:
    assert read(name, row) == Group(turns("s: be kind", "u: q"), (Response(text="a"),))
    pair = {
        "prompt": "q",
        "chosen": openai("u: q", "a: a"),
        "rejected": openai("u: q", "a: b"),
        "system": "be kind",
    }
    assert read("preference", pair).prompt == turns("s: be kind", "u: q")
    assert read(name, row | {"system_message": "be kind"}) == read(name, row)
    assert read("prompt_only", {"prompt": "q", "system_message": "be kind"}).prompt == turns(
        "s: be kind", "u: q"
    )
    assert read("prompt_only", {"prompt": "q", "system": "be kind"}) == Group(
        turns("s: be kind", "u: q")
    )


def test_two_different_system_messages_are_refused() -> None:
    row = {"messages": openai("s: be kind", "u: q", "a: a"), "system": "be rude"}
    assert "2 different system messages" in refused("messages", row)
    row = {"prompt": "q", "completion": "a", "system": "be kind", "system_prompt": "be brief"}
    assert "2 different system messages" in refused("prompt_completion", row)
    kind = read("prompt_completion", {**row, "system": ""}).prompt[0]
    assert kind == {"role": "system", "content": "be brief"}


# alpaca, dolly


def test_alpaca_and_dolly_join_the_instruction_and_what_it_is_about() -> None:
    row = {
        "instruction": "Add {{name}}.",
        "input": " 1 and 2\n",
        "output": "3",
        "system": "be brief",
    }
    assert read("alpaca", row) == Group(
        turns("s: be brief", "u: Add {{name}}.\n\n1 and 2"), (Response(text="3"),)
    )
    assert read("alpaca", {"instruction": "i", "output": "o", "input": None}).prompt == turns(
        "u: i"
    )
    row = {"instruction": "i", "input": "c", "response": "r", "category": "qa"}
    assert read("dolly", row) == read(
        "dolly", {"instruction": "i", "context": "c", "response": "r", "category": "qa"}
    )
    assert "'input' and 'context' both hold text" in refused("dolly", row | {"context": "more"})
    assert read("dolly", row) == Group(
        turns("u: i\n\nc"), (Response(text="r"),), meta={"category": "qa"}
    )


@pytest.mark.silent_bug(
    "data: columns",
    "`<noinput>` and `N/A`, which Alpaca's generator wrote for an empty input, are learned as a "
    "part of the prompt.",
    "They are no input.",
)
@pytest.mark.parametrize("nothing", ["<noinput>", "No input", "N/A", "no input."])
def test_what_alpaca_wrote_for_no_input_is_none(nothing: str) -> None:
    assert read("alpaca", {"instruction": "i", "input": nothing, "output": "n/a"}) == Group(
        turns("u: i"), (Response(text="n/a"),)
    )


@pytest.mark.silent_bug(
    "data: columns",
    "A file with a row for each turn is learned as texts without a prompt, questions included.",
    "No format takes a turn for a document.",
)
def test_a_turn_is_no_document() -> None:
    row = {"message_id": "1", "parent_id": None, "text": "Hi", "role": "prompter"}
    assert [name for name, format in FORMATS.items() if format.matches(row)] == []
    assert FORMATS["text"].matches({"text": "Hi", "url": "a"})


@pytest.mark.silent_bug(
    "data: columns",
    "Earlier turns in `history` are left out.",
    "They come before the instruction.",
    "hiyouga/LlamaFactory#4683",
)
def test_alpaca_history_comes_before_the_instruction() -> None:
    row = {"instruction": "r", "output": "b", "system": "s", "history": [["q", "a"]]}
    group = read("alpaca", row)
    assert group.prompt == turns("s: s", "u: q")
    assert (
        group.responses == (Response(messages=turns("a: a", "u: r", "a: b")),) and group.meta == {}
    )
    assert read("alpaca", {**row, "label": False}).responses[0].label is False
    liked = read("alpaca", {**row, "kto_tag": True})
    assert liked == Group(turns("s: s", "u: q", "a: a", "u: r"), (Response(text="b", label=True),))
    assert "list of pairs" in refused("alpaca", {**row, "history": [["q"]]})
    assert "list of pairs" in refused("alpaca", {**row, "history": "q"})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"output": ""}, "response is empty"),
        ({"output": True}, "not true or false"),
        ({"instruction": ""}, "empty"),
    ],
)
def test_alpaca_bad_rows(change: dict[str, Any], reason: str) -> None:
    assert reason in refused("alpaca", {"instruction": "i", "input": "", "output": "o", **change})


# rankings


def test_rankings_of_both_shapes() -> None:
    one = {
        "prompt": "q",
        "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}],
    }
    group = read("rankings", one)
    assert group.responses == (Response(text="a", rank=1), Response(text="b", rank=2))
    two = read(
        "rankings",
        {"prompt": openai("u: q"), "responses": ["a", "b", ""], "ranks": [2, 1, 2], "topic": "t"},
    )
    assert (
        [r.rank for r in two.responses] == [2, 1, 2]
        and two.meta == {"topic": "t"}
        and two.pairs is None
    )
    assert (
        resolved_pairs(read("rankings", {"prompt": "q", "responses": ["a", "b"], "ranks": [3, 3]}))
        == ()
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"responses": ["a"]}, "2 to 64 responses"),
        ({"responses": ["a"] * 65}, "2 to 64 responses"),
        ({"responses": "a"}, "responses must be a list"),
        ({"ranks": [1]}, "ranks must be a list of 2"),
        ({"ranks": [1, None]}, "responses without a rank, counted from 0: 1"),
        ({"ranks": [1, True]}, "must be a number"),
        ({"ranks": None}, "neither ranks nor scores nor pairs"),
        ({"responses": ["", " "]}, "all responses are empty"),
        ({"responses": ["a", 5]}, "must be an object with columns"),
        ({"responses": ["a", {"rank": 2}]}, "'text' is missing"),
        ({"prompt": " "}, "empty"),
    ],
)
def test_rankings_bad_rows(change: dict[str, Any], reason: str) -> None:
    assert reason in refused(
        "rankings", {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2], **change}
    )


# text


STORY = ["one", "still one", "", "", "two", " ", "three is longer", "and has two lines"]


def documents(**options: Any) -> list[tuple[int, Any]]:
    cls = FORMATS["text"]
    return list(cls(cls.Options(**options)).rows_of_text(enumerate(STORY, 1)))


def test_text_files_are_cut_at_blank_lines() -> None:
    assert documents(paragraphs=True) == [
        (1, "one\nstill one"),
        (5, "two"),
        (7, "three is longer\nand has two lines"),
    ]
    assert documents() == [(1, "one\nstill one\n\ntwo\n\nthree is longer\nand has two lines")]


def test_documents_have_about_as_many_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_CHARS", 40)
    assert documents() == [(1, "one\nstill one\n\ntwo"), (7, "three is longer\nand has two lines")]
    monkeypatch.setattr(text, "MAX_CHARS", 16)
    assert [document for _, document in documents()][-2:] == [
        "three is longer",
        "and has two lines",
    ]


def test_a_line_that_is_too_long_is_cut_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_CHARS", 40)
    lines = [(4, "word " * 30 + "end"), (5, ""), (6, "next")]
    found = list(FORMATS["text"]().rows_of_text(lines))
    assert max(len(text) for _, text in found) <= 40 and found[0][0] == 4
    assert " ".join(text for _, text in found).split() == [*["word"] * 30, "end", "next"]


def test_text_rows_have_no_prompt_and_must_not_be_blank() -> None:
    assert read("text", {"text": " a ", "url": "u"}) == Group(
        (), (Response(text=" a "),), meta={"url": "u"}
    )
    assert read("text", "a") == Group((), (Response(text="a"),))
    assert "response is empty" in refused("text", {"text": "  "})


# dialogues


TALK = ["Ann: q", "Ben: a", "Ann: r", "Ben: b", "Ann: s", "Ben: c"]


def test_dialogues_are_conversations_of_their_first_speaker_with_the_second() -> None:
    group = read("dialogues", {"text": "\n\n".join(["A tale", *TALK, "The end"]), "url": "u"})
    assert group.prompt == turns("u: q")
    assert group.responses == (Response(messages=turns("a: a", "u: r", "a: b", "u: s", "a: c")),)
    assert group.meta == {"url": "u", "speakers": ["Ann: ", "Ben: "]}


def test_dialogues_leave_out_a_last_turn_that_nobody_answers() -> None:
    assert read("dialogues", "\n\n".join([*TALK, "Ann: bye"])) == read(
        "dialogues", "\n\n".join(TALK)
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\n\n".join(TALK[:5]), "holds 0 dialogues, but a row must hold one"),
        (
            "\n\n".join([*TALK, "The end", *TALK]),
            "holds 2 dialogues, but a row must hold one (a .txt",
        ),
        ("\n\n".join(["Ann: ", *TALK[1:]]), "last turn of the prompt is empty"),
        (None, "'text' is missing or null"),
    ],
)
def test_dialogues_bad_rows(text: Any, reason: str) -> None:
    assert reason in refused("dialogues", {"text": text})


# groups


def test_groups_keep_all_that_was_sampled() -> None:
    sampled = Group(
        turns("u: q"), (Response(tokens=(1,), logprobs=(-0.5,), truncated=True), Response()), id="x"
    )
    assert read("groups", json.loads(group_to_json(sampled))) == sampled
    assert "version" in refused("groups", {"alignkit": 9})


def test_scores_of_single_responses() -> None:
    row = {"prompt": "q", "completion": "a", "score": 0.5, "n": 1}
    group = read("prompt_completion", row)
    assert group.responses[0].scores == {"reward": 0.5} and group.meta == {"n": 1}
    assert read("prompt_completion", {"prompt": "q", "completion": "a"}).responses[0].scores == {}
    assert "column 'score' must be a number" in refused(
        "prompt_completion", row | {"score": "good"}
    )


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
DEMO = {"prompt": "q", "completion": "a"}


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("preference", PAIR | {"history": [["u", "v"]]}, "column 'history' means something"),
        ("preference", PAIR | {"images": ["a.png"]}, "column 'images' means"),
        (
            "messages",
            {"messages": openai("u: q", "a: a"), "image": "a.png"},
            "column 'image' means something",
        ),
        ("prompt_completion", DEMO | {"history": [["u", "v"]]}, "column 'history' means"),
        (
            "prompt_completion",
            DEMO | {"functions": [{"name": "f"}]},
            "rename it: `columns: {other_functions: ",
        ),
        ("prompt_completion", DEMO | {"mask": [0, 1]}, "column 'mask' means"),
        (
            "prompt_completion",
            DEMO | {"chat_template_kwargs": {"a": False}},
            "column 'chat_template_kwargs' means",
        ),
        ("preference", PAIR | {"input": "more"}, "column 'input' would be lost next to the prompt"),
        (
            "preference",
            PAIR | {"chosen_score": 1, "rejected_score": 2},
            "chosen_score 1 is below rejected_score 2",
        ),
    ],
)
def test_a_column_with_a_meaning_elsewhere_is_never_lost(
    name: str, row: dict[str, Any], reason: str
) -> None:
    assert reason in refused(name, row)


@pytest.mark.parametrize("empty", [None, "", [], {}])
def test_an_empty_column_loses_nothing(empty: Any) -> None:
    assert (
        len(read("preference", PAIR | {"history": empty, "images": empty, "input": ""}).responses)
        == 2
    )


def test_a_word_problem_keeps_its_answer_for_math_verify() -> None:
    group = read(
        "gsm8k",
        {"question": " How many? ", "answer": "2+3=<<2+3=5>>5 and <<x>>\n#### 1,005 ", "id": 3},
    )
    assert group.prompt == turns("u: How many?") and texts(group) == ["2+3=5 and \n#### 1,005"]
    assert group.meta == {"answer": "1005", "id": 3}
    answers = {"1,450,000": "1450000", "(1,2)": "(1,2)", "$1,000.50": "1000.5"}
    assert {
        given: read("gsm8k", {"question": "q", "answer": f"#### {given}"}).meta["answer"]
        for given in answers
    } == (answers)
    group = read(
        "svamp",
        {"Body": "Ann has 2 pens", "Question": "How many?", "Answer": 0.5, "Type": "Division"},
    )
    assert group.prompt == turns("u: Ann has 2 pens. How many?") and not group.responses
    assert group.meta == {"answer": "0.5", "Type": "Division"}
    assert (
        read("svamp", {"Body": "Two.", "Question": "How many?", "Answer": "1e3"}).meta["answer"]
        == "1000"
    )


def test_a_word_problem_without_an_answer_is_bad() -> None:
    for wrong in ("about 5", "#### 5\nor so", "so many\n#### ", "####"):
        reason = refused("gsm8k", {"question": "q", "answer": wrong})
        assert reason.startswith("gsm8k.answer: a solution must end with a line such as '#### 18'")
    assert "Answer" in refused("svamp", {"Body": "b", "Question": "q", "Answer": "many"})


@pytest.mark.silent_bug(
    "data: results of tools",
    "A tool's result that is an object becomes Python's text of a dict in the prompt.",
    "It is read as JSON.",
    "langchain-ai/langchain#35382",
    "NousResearch/hermes-agent#48354",
)
@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"temp": 3, "ok": True}, '{"temp": 3, "ok": true}'),
        ([{"temp": 3}, {"temp": 4}], '[{"temp": 3}, {"temp": 4}]'),
        (3, "3"),
        ([{"type": "text", "text": "grey"}], "grey"),
        ("grey", "grey"),
    ],
)
def test_results_of_tools_are_read_as_json(result: Any, text: str) -> None:
    assert read_message({"role": "tool", "content": result}, "turn")["content"] == text


def test_an_empty_list_of_calls_is_none() -> None:
    """As tables write it, in which every turn has the same keys."""
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    listed = [{**turn, "tool_calls": []} for turn in turns]
    assert read("messages", {"messages": listed}) == read("messages", {"messages": turns})


@pytest.mark.silent_bug(
    "data: tools in other columns",
    "The schemas are in a column of another name, so the model learns calls of tools that its "
    "prompt does not name.",
    "Usual names are an error with the line that reads them.",
    "PrimeIntellect-ai/verifiers#1963",
)
@pytest.mark.parametrize("column", ["functions", "tool_defs", "tool_schemas", "available_tools"])
def test_tools_in_columns_of_other_names_are_refused(column: str) -> None:
    schema = {"name": "weather", "parameters": {}}
    assert f"as in `columns: {{COLUMN: {column}}}`" in refused(
        "prompt_only", {"prompt": "Hi", column: [schema]}
    )
    wanted = ({"type": "function", "function": schema},)
    assert ColumnFormat.tools({"tools": [schema]}) == wanted
    assert ColumnFormat.tools({"tools": json.dumps([schema])}) == wanted
