"""Rows of public data sets, in the layout of the Hugging Face Hub, become the right prompts,
answers and pairs.

The rows are shortened, or written by hand in the documented layout.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from alignkit import BadRow, Group, Message, Pair, Response
from alignkit.data.sources import checked_groups
from alignkit.errors import LeftOut
from alignkit.plugins import plugins
from alignkit_plugins.formats.layouts import TEMPLATES

FORMATS = {one.name: one.implementation for one in plugins().registrations("format")}

ARC = {
    "id": "MCAS_2000_4_6",
    "question": "Which technology was developed most recently?",
    "choices": {
        "text": ["cellular telephone", "television", "refrigerator", "airplane"],
        "label": ["1", "2", "3", "4"],
    },
    "answerKey": "1",
}
BOOLQ = {
    "question": "does ethanol take more energy make that produces",
    "answer": False,
    "passage": (
        "All biomass goes through at least some of these steps: it needs to be grown, collected, "
        "dried ..."
    ),
}
RACE = {
    "example_id": "high132.txt",
    "article": (
        "Schoolgirls have been wearing such short skirts that they've been ordered to wear "
        "trousers."
    ),
    "answer": "A",
    "question": "The girls are not allowed to wear skirts in that    _  .",
    "options": [
        "short skirts give people the impression of sexualisation",
        "short skirts are too expensive",
    ],
}
DROP = {
    "section_id": "nfl_2201",
    "query_id": "f16c0ee7",
    "passage": (
        "To start the season, the Lions traveled south to Tampa, Florida to take on the Tampa "
        "Bay Buccaneers."
    ),
    "question": "Which teams played?",
    "answers_spans": {"spans": ["Lions", "Buccaneers"], "types": ["span", "span"]},
}
COQA = {
    "source": "mctest",
    "story": (
        "Once upon a time, in a barn near a farm house, there lived a little white kitten named "
        "Cotton."
    ),
    "questions": ["What color was Cotton?", "Where did she live?"],
    "answers": {
        "input_text": ["white", "in a barn"],
        "answer_start": [59, 18],
        "answer_end": [93, 80],
    },
}
OPENBOOKQA = {
    "id": "7-980",
    "question_stem": "The sun is responsible for",
    "choices": {"text": ["puppies learning tricks", "plants sprouting"], "label": ["A", "B"]},
    "answerKey": "B",
}
MNLI = {
    "premise": "Conceptually cream skimming has two basic dimensions - product and geography.",
    "hypothesis": "Product and geography are what make cream skimming work. ",
    "genre": "government",
    "label": 1,
}
QUAC = {
    "dialogue_id": "C_6abd_0",
    "background": "Satchel Paige was a pitcher.",
    "context": "In 1926 he discovered Paige. CANNOTANSWER",
    "questions": ["what did he do in Chattanooga", "how did he discover him"],
    "answers": {"texts": [["In 1926"], ["CANNOTANSWER"]], "answer_starts": [[0], [29]]},
    "orig_answers": {
        "texts": ["In 1926 he discovered Paige.", "CANNOTANSWER"],
        "answer_starts": [0, 29],
    },
}
WINOGRANDE = {
    "sentence": "Sarah was a much better surgeon than Maria so _ always got the easier cases.",
    "option1": "Sarah",
    "option2": "Maria",
    "answer": "2",
}
ULTRAFEEDBACK = {
    "source": "evol_instruct",
    "instruction": "Name a color.",
    "models": ["alpaca-7b", "gpt-4"],
    "completions": [
        {
            "model": "alpaca-7b",
            "principle": "honesty",
            "response": "Blue",
            "critique": "Brief.",
            "overall_score": 7.5,
        },
        {
            "model": "gpt-4",
            "principle": "honesty",
            "response": "A color is blue.",
            "overall_score": 9.0,
        },
    ],
    "correct_answers": ["None"],
    "incorrect_answers": ["None"],
}
HELPSTEER2 = {
    "prompt": "c#",
    "response": "C# is a programming language.",
    "helpfulness": 3,
    "correctness": 4,
    "coherence": 4,
    "complexity": 2,
    "verbosity": 1,
}
HELPSTEER3 = {
    "domain": "general",
    "language": "english",
    "context": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Bye"},
    ],
    "response1": "Bye!",
    "response2": "What?",
    "overall_preference": -2,
    "individual_preference": [{"score": -2, "reasoning": "It is polite."}],
}
PRM800K = {
    "labeler": "340d89bc",
    "generation": 9,
    "question": {
        "problem": "What is the greatest common factor of $20 !$ and $200$?",
        "ground_truth_answer": "200",
        "pre_generated_steps": ["I factor both.", "# Answer\n\n320"],
        "pre_generated_answer": "320",
    },
    "label": {
        "steps": [{"completions": [{"text": "I factor both.", "rating": 0}]}],
        "finish_reason": "found_error",
    },
}
STACK_EXCHANGE = {
    "qid": 1,
    "question": "How to sort a list?",
    "response_j": "Use sorted.",
    "response_k": "Try.",
}
TULU3 = {
    "id": "x",
    "prompt": "Hi",
    "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}],
    "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "What?"}],
    "source": "ultrafeedback",
}


def groups(name: str, row: Any) -> list[Group]:
    return checked_groups(FORMATS[name](), row)


DEMONSTRATIONS = [
    (
        "arc",
        ARC,
        "Which technology was developed most recently?\n"
        "A. cellular telephone\nB. television\nC. refrigerator\nD. airplane",
        "A",
    ),
    (
        "boolq",
        BOOLQ,
        f"{BOOLQ['passage']}\n\ndoes ethanol take more energy make that produces?",
        "no",
    ),
    (
        "race",
        RACE,
        f"{RACE['article']}\n"
        "\n"
        f"{RACE['question']}\n"
        "A. short skirts give people the impression of sexualisation\n"
        "B. short skirts are too expensive",
        "A",
    ),
    ("drop", DROP, f"{DROP['passage']}\n\nWhich teams played?", "Lions, Buccaneers"),
    (
        "openbookqa",
        OPENBOOKQA,
        "The sun is responsible for\nA. puppies learning tricks\nB. plants sprouting",
        "B",
    ),
    (
        "mnli",
        MNLI,
        f"{MNLI['premise']}\n\nDoes this entail or contradict the following, or is it neutral?\n\n"
        "Product and geography are what make cream skimming work.",
        "neutral",
    ),
    (
        "winogrande",
        WINOGRANDE,
        "Sarah was a much better surgeon than Maria so _ always got the easier cases.\n"
        "A. Sarah\n"
        "B. Maria",
        "B",
    ),
]


@pytest.mark.parametrize(("name", "row", "prompt", "answer"), DEMONSTRATIONS)
def test_questions_and_answers(name: str, row: dict[str, Any], prompt: str, answer: str) -> None:
    [group] = groups(name, row)
    assert group.prompt == (Message(role="user", content=prompt),)
    assert group.responses == (Response(text=answer),) and group.meta["answer"] == answer


@pytest.mark.parametrize(
    ("name", "row", "prompt", "said"),
    [
        (
            "coqa",
            COQA,
            f"{COQA['story']}\n\nWhat color was Cotton?",
            ("white", "Where did she live?", "in a barn"),
        ),
        (
            "quac",
            QUAC,
            f"{QUAC['context']}\n\nwhat did he do in Chattanooga",
            ("In 1926 he discovered Paige.", "how did he discover him", "I don't know."),
        ),
    ],
)
def test_conversations(name: str, row: dict[str, Any], prompt: str, said: tuple[str, ...]) -> None:
    [group] = groups(name, row)
    roles = ("assistant", "user", "assistant")
    assert group.prompt == (Message(role="user", content=prompt),)
    assert group.responses[0].messages == tuple(
        Message(role=role, content=text) for role, text in zip(roles, said, strict=True)
    )


HELPSTEER2_PAIR = {
    "split": "train",
    "prompt": "c#",
    "response_1": "A",
    "response_2": "B",
    "preference_strength": 2,
}


@pytest.mark.parametrize(
    ("name", "row", "prompt", "texts", "pair"),
    [
        (
            "stack_exchange",
            STACK_EXCHANGE,
            ["How to sort a list?"],
            ["Use sorted.", "Try."],
            Pair(0, 1),
        ),
        (
            "ultrafeedback",
            ULTRAFEEDBACK,
            ["Name a color."],
            ["Blue", "A color is blue."],
            Pair(1, 0, margin=1.5),
        ),
        (
            "helpsteer3",
            HELPSTEER3,
            ["Hi", "Yes?", "Bye"],
            ["Bye!", "What?"],
            Pair(0, 1, margin=2.0),
        ),
        (
            "labeled_pairs",
            HELPSTEER3,
            ["Hi", "Yes?", "Bye"],
            ["Bye!", "What?"],
            Pair(0, 1, margin=2.0),
        ),
        ("labeled_pairs", HELPSTEER2_PAIR, ["c#"], ["A", "B"], Pair(1, 0, margin=2.0)),
        ("tulu3_preference", TULU3, ["Hi"], ["Hello!", "What?"], Pair(0, 1)),
        ("preference", TULU3, ["Hi"], ["Hello!", "What?"], Pair(0, 1)),
    ],
)
def test_pairs(
    name: str, row: dict[str, Any], prompt: list[str], texts: list[str], pair: Pair
) -> None:
    [group] = groups(name, row)
    assert [turn["content"] for turn in group.prompt] == prompt
    assert [response.text for response in group.responses] == texts and group.pairs == (pair,)


def test_ratings_of_single_responses() -> None:
    [rated] = groups("helpsteer2", HELPSTEER2)
    assert rated.responses == (
        Response(text="C# is a programming language.", scores={"reward": 3.0}),
    )
    [wrong] = groups("prm800k", PRM800K)
    assert wrong.responses == (Response(text="I factor both.\n# Answer\n\n320", label=False),)
    assert wrong.meta["answer"] == "200"
    [right] = groups("prm800k", {**PRM800K, "label": {"steps": [], "finish_reason": "solution"}})
    assert right.responses[0].label is True


@pytest.mark.parametrize("preference", [0, 1, 3, -1])
def test_both_readers_of_helpsteer3_agree(preference: int) -> None:
    row = {**HELPSTEER3, "overall_preference": preference}
    assert groups("helpsteer3", row)[0].pairs == groups("labeled_pairs", row)[0].pairs


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("arc", {**ARC, "answerKey": ""}),
        ("winogrande", {**WINOGRANDE, "answer": ""}),
        ("mnli", {**MNLI, "label": -1}),
        ("drop", {**DROP, "answers_spans": {"spans": []}}),
        ("ultrafeedback", {**ULTRAFEEDBACK, "completions": []}),
        (
            "ultrafeedback",
            {
                **ULTRAFEEDBACK,
                "completions": [
                    {"response": text, "overall_score": score}
                    for text, score in (("A", 85.0), ("B", 1.0))
                ],
            },
        ),
        ("prm800k", {**PRM800K, "label": {"steps": [], "finish_reason": "give_up"}}),
        # Phase 1
        ("prm800k", {**PRM800K, "question": {"problem": "Q?", "ground_truth_answer": "1"}}),
    ],
)
@pytest.mark.silent_bug(
    "data: contradicting columns",
    "A score of 85 lies on a scale of 10.",
    "Such rows are left out, and counted.",
    "OpenBMB/UltraFeedback#8",
)
def test_rows_that_have_no_answer_are_left_out(name: str, row: dict[str, Any]) -> None:
    with pytest.raises(LeftOut):
        groups(name, row)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("arc", {**ARC, "answerKey": "A"}),
        ("race", {**RACE, "answer": "C"}),
        ("winogrande", {**WINOGRANDE, "answer": "3"}),
        ("mnli", {**MNLI, "label": 3}),
        ("boolq", {**BOOLQ, "answer": 2}),
        ("coqa", {**COQA, "questions": ["One?"]}),
        ("helpsteer3", {**HELPSTEER3, "overall_preference": 4}),
    ],
)
def test_labels_that_a_data_set_does_not_have_are_bad_rows(name: str, row: dict[str, Any]) -> None:
    with pytest.raises(BadRow) as error:
        groups(name, row)
    assert not isinstance(error.value, LeftOut) and str(error.value).startswith(f"{name}.")


ROWS = {
    "arc": ARC, "boolq": BOOLQ, "race": RACE, "drop": DROP, "coqa": COQA, "openbookqa": OPENBOOKQA, "mnli": MNLI,
    "quac": QUAC, "winogrande": WINOGRANDE, "stack_exchange": STACK_EXCHANGE, "ultrafeedback": ULTRAFEEDBACK,
    "helpsteer2": HELPSTEER2, "helpsteer3": HELPSTEER3, "prm800k": PRM800K, "tulu3_preference": TULU3,
}  # fmt: skip
# Formats that recognize such rows without their name.
OTHERS = {
    "mnli": [],
    "gsm8k": [],
    "helpsteer2": ["prompt_completion"],
    "helpsteer3": ["labeled_pairs"],
    "tulu3_preference": ["preference"],
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_data_set_is_recognized_by_one_format_at_most(name: str) -> None:
    example = json.loads(TEMPLATES[name].example)
    for row in (ROWS.get(name, example), example):
        assert [one for one, cls in FORMATS.items() if cls.matches(row)] == OTHERS.get(name, [name])
        assert groups(name, row)


def test_squad_and_pairs_of_helpsteer2_are_recognized_by_formats_of_their_own() -> None:
    squad = {
        "id": "1",
        "title": "T",
        "context": "Ann is 7.",
        "question": "Who?",
        "answers": {"text": ["Ann"]},
    }
    for row, name in ((squad, "squad"), (HELPSTEER2_PAIR, "labeled_pairs")):
        assert [one for one, cls in FORMATS.items() if cls.matches(row)] == [name]
    assert groups("squad", squad)[0].responses == (Response(text="Ann"),)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("prm800k", {"question": "Why?", "label": 1}),
        ("boolq", {**BOOLQ, "answer": "no more than it makes"}),
        ("arc", {**ARC, "choices": "red or blue", "answerKey": ""}),
        ("drop", {**DROP, "answers_spans": "Lions"}),
    ],
)
def test_columns_with_these_names_may_hold_something_else(name: str, row: Any) -> None:
    assert not [one for one, cls in FORMATS.items() if cls.matches(row)]
