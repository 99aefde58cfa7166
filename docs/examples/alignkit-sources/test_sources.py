"""The check of quotes and the reward by known answers, the shipped questions, the conformance kits,
and a short run.
"""

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from alignkit_sources import Quoted, Sources, claims_in, is_supported

from alignkit import BadRow, DataError, Group, Message, Response
from alignkit.cli import main
from alignkit.testing import check_format, check_reward, example_groups

HERE = Path(__file__).parent
DATA = HERE.parents[2] / "recipes" / "data"
INSTALLED = any(point.name == "alignkit_sources" for point in entry_points(group="alignkit"))
PLUGIN = [] if INSTALLED else ["--plugin", str(HERE / "alignkit_sources.py")]
TEXT = "The Old Shop is on Mill\n  Street. The Old Shop opens at 9:30. Ann Ito owns the Mill."
STREET, OPENS = '["The Old Shop is on Mill Street."]', '["The Old Shop opens at 9:30."]'


def scores(*said: str, known: Any = None, **options: Any) -> list[float | None]:
    prompt = (Message(role="user", content="Where is it?"),)
    group = Group(prompt, tuple(map(Response, said)), meta={"context": TEXT, "answers": known})
    columns = {} if known is None else {"answers": "answers"}
    return list(Sources(Sources.Options(**columns, **options)).score([group]))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (f"Mill Street {STREET}.", [("Mill Street ", ["The Old Shop is on Mill Street."])]),
        (
            'It is. There ["a"]\n[ “b\nc” ] Or',
            [("It is.", []), ("There ", ["a", "b\nc"]), (" Or", [])],
        ),
        ('["a b c"] Yes', [("", ["a b c"]), (" Yes", [])]),
        ('Yes ["The Old', [('Yes ["The Old', [])]),  # cut off
        (" .\n", []),
    ],
)
def test_claims_carry_the_quotes_that_follow_them(answer: str, expected: list[Any]) -> None:
    assert claims_in(answer) == expected


@pytest.mark.parametrize(
    ("claim", "quote", "expected"),
    [
        ("Mill Street", "The Old Shop is on Mill Street.", True),
        ("Mill Street", "shop is on mill street", False),  # not letter for letter
        ("Mill Street", "The Old Shop is on Mill Street in town.", False),
        ("Mill Street", "Mill Street", False),  # two words show nothing
        ("Orchard Street", "The Old Shop is on Mill Street.", False),
        ("It is on Mill Street", "The Old Shop is on Mill Street.", False),
        ("9:30", "Old Shop opens at 9:3", False),  # half a word
        ("", "The Old Shop opens", True),
        ("Mill Street", "", False),
    ],
)
def test_a_quote_is_verbatim_and_has_the_words_of_its_claim(
    claim: str, quote: str, expected: bool
) -> None:
    assert is_supported(claim, [quote], TEXT) is expected
    assert not is_supported(claim, [quote, "of another text"], TEXT) and not is_supported(
        claim, [], TEXT
    )


def test_unsupported_claims_cost_more_than_silence() -> None:
    good, half = f"Mill Street {STREET}", f"Mill Street {STREET} It has no roof."
    said = (
        good,
        f"{good} 9:30 {OPENS}",
        "I don't know.",
        "",
        "Mill Street",
        half,
        f"Kiln Lane {STREET}",
    )
    assert scores(*said) == [1.0, 1.0, 0.0, 0.0, -1.0, -0.5, -1.0]
    assert scores(*said, silent=-0.5, unsupported=-2.5)[2:6] == [-0.5, -0.5, -2.5, -1.5]
    assert scores(f"It is on Mill Street {STREET}", covered=0.8) == [1.0]


def test_with_known_answers_a_claim_must_also_be_right() -> None:
    said = (f"Mill Street {STREET}", "Mill Street", f"9:30 {OPENS}", "I don't know.", STREET)
    assert scores(*said, known=["Mill Street"]) == [1.0, -1.0, -1.0, 0.0, -1.0]
    assert scores(*said, known=[]) == [-1.0, -1.0, -1.0, 1.0, -1.0]


@pytest.mark.parametrize("name", ["questions", "questions_demos", "questions_heldout"])
def test_each_shipped_question_has_one_supported_answer(name: str) -> None:
    """The demonstration gets 1. The wrong answer gets -1, bare or with the whole text as its
    quote.
    """
    groups = [
        Quoted().read(json.loads(line))
        for line in (DATA / f"{name}.jsonl").read_text().splitlines()
    ]
    reward = Sources(Sources.Options(answers="answers"))
    assert set(reward.score(groups)) == {1.0}
    for group in groups:
        opinion, text = group.meta["opinion"], group.meta["context"]
        wrong = (Response(opinion), Response(f'{opinion} ["{text}"]'), Response(text))
        assert reward.score([Group(group.prompt, wrong, meta=group.meta)]) == [-1.0, -1.0, -1.0]


def test_a_demonstration_quotes_the_sentence_of_its_answer() -> None:
    row = {"context": " He is 7. Ann is 7, too! Or not?", "question": "Ann?", "id": "x"}
    for start, sentence in ((7, "He is 7."), (17, "Ann is 7, too!")):
        group = Quoted().read(
            {**row, "answers": {"text": ["7", "seven"], "answer_start": [start, 0]}}
        )
        assert group.responses == (Response(f'7 ["{sentence}"]'),)
        assert group.meta == {
            "context": row["context"],
            "id": "x",
            "answers": ["7", "seven"],
            "answerable": True,
        }
    assert Quoted().read({**row, "answers": {"text": [], "answer_start": []}}).responses == (
        Response("I don't know."),
    )
    with pytest.raises(BadRow, match="does not have '7' at answer_start 8"):
        Quoted().read({**row, "answers": {"text": ["7"], "answer_start": [8]}})


def test_a_prompt_without_the_text_is_named() -> None:
    reward = Sources(Sources.Options(text="passage"))
    with pytest.raises(DataError, match="no column 'passage'"):
        reward.check_prompts([Quoted().read(json.loads(Quoted.example))])
    with pytest.raises(ValueError, match="silent above unsupported"):
        Sources.Options(unsupported=0.0)


def test_it_conforms() -> None:
    check_format(Quoted)
    groups = [
        Group(each.prompt, each.responses, meta={"context": TEXT}) for each in example_groups()
    ]
    check_reward(Sources, groups=groups)


def test_a_run_learns_that_silence_is_better_than_invention(tmp_path: Path) -> None:
    short = ["stages.sft.max_steps=20", "stages.align.iterations=5", "stages.report.limit=8"]
    assert main(["run", str(HERE / "recipe.yaml"), "--out", str(tmp_path), *short, *PLUGIN]) == 0
    rows = [
        json.loads(line) for line in (tmp_path / "align" / "metrics.jsonl").read_text().splitlines()
    ]
    assert -1 <= rows[0]["reward"] < -0.9 and rows[-1]["reward"] > rows[0]["reward"] + 0.1
