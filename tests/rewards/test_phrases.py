"""Phrases of other languages: given by file, and a warning where only English ones are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignkit import Group, Response
from alignkit.cli import main
from alignkit_plugins.data_tools.clean import Rules
from alignkit_plugins.data_tools.files import Row
from alignkit_plugins.rewards.honesty import Abstention, Honesty, HonestyAccuracy, Unyielding
from alignkit_plugins.rewards.refusal import Refusal
from tests.rows import cells, user, write_rows

# What is said, and whether the phrases find it: in any script, and not in other words
SAID = """
    Je ne sais pas.          | 1
    « Je ne  SAIS pas »      | 1
    Je ne sais passer.       | 0
    我不知道。               | 1
    我 知道。                | 0
    わかりません。           | 1
    **Не знаю**              | 1
    I don't know.            | 0
"""
OWN = "Je ne sais pas\n\n我不知道\n わかりません\nне знаю\n"
GERMAN = "Wie heißt die Hauptstadt von Norwegen und seit wann ist sie das?"
ENGLISH = "What is the name of the capital of Norway, and since when?"


def own(folder: Path, text: str = OWN) -> Path:
    (folder / "own.txt").write_text(text, encoding="utf-8")
    return folder / "own.txt"


@pytest.mark.silent_bug(
    "rewards: languages",
    "'I don't know' in another language is a wrong answer, and a refusal is none.",
    "A recipe gives its own phrases; without them, a warning names the languages of the data.",
)
@pytest.mark.parametrize(("said", "found"), cells(SAID))
def test_a_file_of_phrases_replaces_the_english_ones(said: str, found: str, tmp_path: Path) -> None:
    asked, file = Group((user("Q"),), (Response(said),), meta={"answers": ["Oslo"]}), own(tmp_path)
    nobody = Group(asked.prompt, asked.responses, meta={"answers": []})
    scores = []
    for reward, group in (
        (Refusal, asked),
        (Abstention, asked),
        (HonestyAccuracy, nobody),
        (Honesty, asked),
        (Unyielding, asked),
    ):
        kind: Any = reward
        scores += kind(kind.Options(phrases=file)).score([group])
    right = float(found)
    assert scores == [right, right, right, right - 1, right - 1]
    fault = Rules(phrases=file).fault(Row("f", 1, None, (asked,)))
    assert (fault is not None) == right


def test_a_late_phrase_and_one_next_to_an_answer_do_not_count(tmp_path: Path) -> None:
    file = own(tmp_path)
    late = Group((), (Response("Oslo. " * 30 + "Je ne sais pas."),), meta={"answers": ["Oslo"]})
    for kind in (Refusal, Abstention):
        reward: Any = kind
        assert reward(reward.Options(phrases=file)).score([late]) == [0.0]


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_a_phrase_is_refused(text: str, tmp_path: Path) -> None:
    for path in (own(tmp_path, text), tmp_path):
        with pytest.raises(ValidationError, match="a phrase on each line"):
            Refusal.Options(phrases=path)


# Questions, answers, and the languages that a warning names
WARNED = [
    ([ENGLISH] * 3, [], ""),
    ([ENGLISH] * 3, ["我不知道。"], "another script"),
    (
        [
            "6*7?",
            "Translate hello to French",
            "Ｗｈａｔ ｉｓ ｔｈｅ ｃａｐｉｔａｌ ｏｆ Ｎｏｒｗａｙ？",
        ],
        ["42"],
        "",
    ),
    (["挪威的首都是哪里？"], [], "another script"),
    ([ENGLISH] * 19 + ["Где столица?"], [], ""),
]


@pytest.mark.parametrize(("asked", "said", "named"), WARNED)
@pytest.mark.parametrize("kind", [Refusal, Abstention, HonestyAccuracy])
def test_other_languages_are_told_unless_the_phrases_are_given(
    kind: Any, asked: list[str], said: list[str], named: str, tmp_path: Path
) -> None:
    answers = tuple(map(Response, said))
    groups = [Group((user(text),), answers, meta={"answers": ["Oslo"]}) for text in asked]
    warnings = kind(kind.Options()).check_prompts(groups)
    assert [named in text for text in warnings] == [True] * bool(named)
    assert kind(kind.Options(phrases=own(tmp_path))).check_prompts(groups) == []


def test_a_language_of_latin_letters_is_told() -> None:
    pytest.importorskip("py3langid")
    for text, name in ((GERMAN, "de"), ("Quelle est la capitale de la Norvège ?", "fr")):
        [warning] = Refusal(Refusal.Options()).check_prompts([Group((user(text),))])
        assert f"are in {name}:" in warning


RECIPE = """
name: other
model: {base: tiny}
stages:
  cleaned: {step: clean, data: d.jsonl}
  align:
    algorithm: grpo
    prompts: d.jsonl
    reward: {weighted_sum: {rewards: {a: refusal, b: length}, weights: {a: 1, b: 1}}}
"""
# Words of a command, and where it says that only English phrases are known
COMMANDS = """
    check r.yaml                                             | cleaned; align: warning: refusal
    check r.yaml stages.cleaned.phrases=own.txt              | align: warning: refusal
    data check d.jsonl                                       | warning
    data check d.jsonl phrases=own.txt                       |
    evaluate d.jsonl --reward refusal --out o.jsonl          | warning: refusal
"""


@pytest.mark.parametrize(("words", "places"), cells(COMMANDS))
def test_commands_tell_what_is_found_in_english_only(
    words: str,
    places: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    own(tmp_path)
    Path("r.yaml").write_text(RECIPE, encoding="utf-8")
    write_rows(Path("d.jsonl"), [{"prompt": "挪威的首都是哪里？", "completion": "奥斯陆。"}])
    assert main(words.split()) == 0
    everything = "".join(capsys.readouterr())
    assert everything.count("English phrases") == len(list(filter(None, places.split("; "))))
    assert all(place in everything for place in places.split("; "))
