"""`alignkit chat --collect`: what is kept, with consent, and what a recipe makes of it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from alignkit import Message
from alignkit.cli import main
from alignkit.errors import OutOfResource, RecipeError
from alignkit.models.next_token import Sampling
from alignkit_apps.chat import start
from alignkit_apps.chat.loop import talk
from alignkit_apps.chat.screen import Screen
from alignkit_apps.chat.session import Session
from alignkit_apps.chat.terminal_feedback import TerminalFeedback
from alignkit_apps.labels.consent import shareable
from alignkit_apps.policies.policy import Exchange, Opened
from alignkit_plugins.people.collection import TERMS, Collection, Kept
from alignkit_plugins.people.effective_labels import consents, labeled
from alignkit_plugins.people.labels import BadLabel
from alignkit_plugins.people.rows import store_rows
from alignkit_plugins.people.store import Event, Store
from tests.apps.serve.test_chatting import entered, models

NO = "nothing is kept without consent"
SFT, ONLINE = "runs/x/sft", "runs/x/online"
__all__ = ["models"]  # a fixture


def user(text: str) -> Message:
    return Message(role="user", content=text)


def exchange(*answers: str, policy: str = SFT, rewards: Any = (), shown: int = 0, asked: str = "Hi") -> Exchange:
    return Exchange(policy, [user(asked)], answers, Sampling(temperature=0.5), 7, rewards, shown)


def places(found: list[Kept | str]) -> list[Kept]:
    assert all(isinstance(one, Kept) for one in found), found
    return [one for one in found if isinstance(one, Kept)]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Collection]:
    found = Collection(tmp_path / "chats.feedback", "CC0-1.0", {SFT: "x-sft", ONLINE: "x-online"})
    found.agree("ada", True)
    yield found
    found.close()


# --- what is kept


def test_two_answers_are_a_pair(kept: Collection) -> None:
    pair = kept.keep("ada", [exchange("Hello!", rewards=[0.5]), exchange("No.", policy=ONLINE, rewards=[-1.0])])
    (stored,) = kept.store().items()
    item = stored.item
    assert pair == [Kept(item.id, 0), Kept(item.id, 1)]
    assert (item.task, item.prompt, item.responses) == ("pair", (user("Hi"),), ("Hello!", "No."))
    assert item.origins == ("x-sft", "x-online") and (item.author, item.license) == ("ada", "CC0-1.0")
    assert item.meta == {"seed": 7, "temperature": 0.5, "reward": [0.5, -1.0]}
    kept.choose("ada", places(pair), 1, "slightly")
    kept.choose("ada", places(pair), 0, "significantly")  # the last word counts
    (entry,) = labeled(kept.store())
    assert entry.final == {"better": 0, "margin": "significantly"}


def test_the_best_of_several_is_a_ranking(kept: Collection) -> None:
    """Of different answers, the one that was shown first; the others can be ranked later."""
    several = exchange("poor", "best", "poor", "good", " ", rewards=[0.1, 0.9, 0.1, None, 0.2], shown=1)
    (place,) = kept.keep("ada", [several])
    (stored,) = kept.store().items()
    assert stored.item.task == "ranking" and stored.item.responses == ("best", "poor", "good")
    assert place == Kept(stored.item.id, 0) and "reward" not in stored.item.meta
    places(kept.keep("ada", [exchange(*(f"a{n}" for n in range(30)), asked="many")]))
    assert len(kept.store().items()[1].item.responses) == 9


def test_any_answer_can_be_rated_and_edited(kept: Collection) -> None:
    best, other = places(
        kept.keep("ada", [exchange("one", "two", rewards=[1.0, 0.0]), exchange("three", policy=ONLINE)])
    )
    kept.rate("ada", best, True)
    kept.rate("ada", other, False)
    kept.edit("ada", other, "what it should be")
    kept.choose("ada", [best, other], 1, "unsure")
    found = {(e.stored.item.task, e.stored.item.responses): e.final for e in labeled(kept.store())}
    assert found == {
        ("ranking", ("one", "two")): None,
        ("thumb", ("one",)): {"good": True},
        ("thumb", ("three",)): {"good": False},
        ("demonstration", ("three",)): {"text": "what it should be"},
        ("pair", ("one", "three")): {"better": 1, "margin": "unsure"},
    }
    event = kept.rate("ada", best, False)
    kept.undo("ada", event)
    thumb = next(e for e in labeled(kept.store()) if e.stored.item.responses == ("one",))
    assert thumb.final == {"good": True}


def test_what_nobody_can_compare(kept: Collection) -> None:
    same = kept.keep("ada", [exchange("same"), exchange("same", policy=ONLINE)])
    assert [kept.store().item(one.item).item.task for one in places(same)] == ["thumb", "thumb"]
    left, right = places(kept.keep("ada", [exchange("a", asked="this"), exchange("b", policy=ONLINE, asked="that")]))
    with pytest.raises(BadLabel, match="different conversations"):
        kept.choose("ada", [left, right], 0)
    assert kept.keep("ada", [exchange("  "), exchange("a\0", policy=ONLINE)]) == [
        "the answer is empty",
        "a text contains a NUL character",
    ]
    with pytest.raises(BadLabel, match="as it was"):
        kept.edit("ada", left, "a")
    for wrong in (Kept(left.item, 3), Kept("0" * 32, 0)):
        with pytest.raises(BadLabel, match=r"no answer 3|no item"):
            kept.rate("ada", wrong, True)
    before = len(kept.store().events())
    empty = places(kept.keep("ada", [exchange("", asked="empty"), exchange("b", policy=ONLINE, asked="empty")]))
    with pytest.raises(BadLabel, match="empty"):
        kept.rate("ada", empty[0], True)
    assert len(kept.store().events()) == before


# --- consent


def test_nothing_is_kept_without_consent(tmp_path: Path) -> None:
    path = tmp_path / "chats.feedback"
    kept = Collection(path)
    kept.agree("ada", False)
    assert kept.keep("ada", [exchange("Hello!")]) == [NO] and not path.exists()
    kept.agree("ada", True)
    assert kept.keep("bob", [exchange("Hello!")]) == [NO] and kept.store().items() == []
    (place,) = places(kept.keep("ada", [exchange("Hello!")]))
    with pytest.raises(BadLabel, match="without consent"):
        kept.rate("bob", place, True)
    kept.rate("ada", place, True)
    kept.close()
    again = Collection(path)
    assert again.agreed("ada") and not again.agreed("bob")  # it is remembered
    again.agree("ada", False)
    assert again.keep("ada", [exchange("Hello!")]) == [NO] and list(store_rows(path)) == []
    assert [event.kind for event in again.store().events()] == ["consent", "label", "consent"]
    again.close()


def test_a_no_to_these_terms_leaves_labels_of_the_page_alone(tmp_path: Path) -> None:
    """Somebody agreed that labels are shared; that is not this question, and a no to this one is none to that."""
    path = tmp_path / "chats.feedback"
    with Store.open(path, new=True) as store:
        store.submit(Event("0" * 32, "ada", "consent", {"granted": True, "terms": "My labels may be shared."}))
    kept = Collection(path)
    assert not kept.agreed("ada")
    kept.agree("ada", False)
    assert consents(kept.store()) == {"ada": True} and len(kept.store().events()) == 1
    kept.close()


@pytest.mark.parametrize("license", ["CC0-1.0", ""])
def test_the_license_decides_what_can_be_exported(tmp_path: Path, license: str) -> None:
    kept = Collection(tmp_path / "chats.feedback", license)
    kept.agree("ada", True)
    (place,) = places(kept.keep("ada", [exchange("Hello!")]))
    kept.rate("ada", place, True)
    assert len(shareable(kept.store())[0].items) == bool(license)
    kept.close()


@pytest.mark.parametrize(
    ("answer", "granted"), [("yes", True), (" YES ", True), ("y", False), ("", False), (None, False)]
)
def test_only_yes_is_a_yes(tmp_path: Path, answer: str | None, granted: bool) -> None:
    said: list[str] = []

    def read(prompt: str) -> str:
        if answer is None:
            raise EOFError
        return answer

    kept = Collection(tmp_path / "chats.feedback")
    assert start.agreed(kept, "ada", read, said.append) is granted
    assert TERMS in said[0] and "License: none. Name: ada." in said[0]
    assert kept.path.exists() is granted
    if granted:
        assert start.agreed(kept, "ada", None, said.append) and "agreed" in said[-1]
    else:
        with pytest.raises(RecipeError, match="ada has not agreed"):
            start.agreed(kept, "ada", None, said.append)
    kept.close()


# --- in the terminal


def said(session: Session, remarks: TerminalFeedback, *lines: str) -> str:
    out = io.StringIO()
    talk(session, Screen(["run-sft", "run-online"], Console(file=out, width=200)), entered(*lines), remarks)
    return out.getvalue()


def terminal(models: Opened, collection: Collection | None, **more: Any) -> tuple[Session, TerminalFeedback]:
    remarks = TerminalFeedback("ada", collection, **more)
    return Session(models, {"max_new_tokens": 16, "temperature": 0.8}, seed=3, keep=remarks.exchanges.append), remarks


def test_commands(models: Opened, kept: Collection) -> None:
    session, remarks = terminal(models, kept)
    shown = said(session, remarks, "my old friend", "/good", "/good a", "/bad b", "/a slight", "/b slightly")
    assert "which answer? a or b" in shown and "did you mean 'slightly'?" in shown
    assert "kept: run-online is slightly better; both continue from run-online" in shown
    sft, online = session.turns.values()
    assert sft == online and len(sft) == 2
    answers = kept.store().items()[0].item.responses
    assert sft[1]["content"] == answers[1]
    shown = said(session, remarks, "/a", "/edit a better one", "/good", "bread is good", "/a")
    assert "kept: run-sft is better" in shown and "kept: the edited answer" in shown
    assert "kept: run-sft is good" in shown  # the answer that was chosen
    found = [(e.stored.item.task, e.stored.item.responses, e.final) for e in labeled(kept.store())]
    assert found[:4] == [
        ("pair", answers, {"better": 0, "margin": "better"}),
        ("thumb", answers[:1], {"good": True}),
        ("thumb", answers[1:], {"good": False}),
        ("demonstration", answers[:1], {"text": "better one"}),
    ]
    prompt = kept.store().items()[4].item.prompt
    assert prompt == (user("my old friend"), Message(role="assistant", content="better one"), user("bread is good"))
    assert [task for task, _, _ in found[4:]] == ["pair"]  # both answered the same conversation


def test_conversations_that_differ_are_no_pair(models: Opened, kept: Collection) -> None:
    session, remarks = terminal(models, kept)
    shown = said(session, remarks, "my old friend", "the people in this house", "/b")
    assert "not kept: these answers are to different conversations" in shown
    assert [stored.item.task for stored in kept.store().items()] == ["pair", "thumb", "thumb"]


def test_choices_without_a_store(models: Opened, tmp_path: Path) -> None:
    session, remarks = terminal(models, None, edit=lambda text: f"{text}!")
    shown = said(session, remarks, "/good a", "/a", "my old friend", "/good a", "/consent no", "/b", "/a", "/edit")
    assert shown.count("there is no complete answer yet") == 1 and "there are no two complete answers yet" in shown
    assert "`--collect FILE.feedback` keeps it" in shown and "both continue from run-sft" in shown
    sft, online = session.turns.values()
    assert sft == online and str(sft[1]["content"]).endswith("!")
    assert "there is no complete answer yet" in said(session, remarks, "/reset", "/edit a z")


def test_consent_is_taken_back(models: Opened, kept: Collection) -> None:
    session, remarks = terminal(models, kept)
    shown = said(session, remarks, "my old friend", "/good a", "/consent", "/consent no", "/good a", "bread is good")
    assert TERMS in shown and "nothing more is kept" in shown
    assert len(kept.store().items()) == 2 and list(store_rows(kept.path)) == []


def test_a_full_disk_ends_nothing(models: Opened, kept: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Store, items: Any) -> None:
        raise OutOfResource("the disk is full")

    session, remarks = terminal(models, kept)
    monkeypatch.setattr(Store, "add", full)
    shown = said(session, remarks, "my old friend", "/good a")
    assert shown.count("not kept: the disk is full") == 1 and "this answer is not kept" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--collect", "chats.jsonl"], "recipes recognize stores by their name: chats.feedback"),
        (["--license", "MIT"], "add --collect FILE.feedback"),
        (["--blind"], "--blind needs two policies"),
        (["--port", "9"], "--port is for a page"),
        (["--annotator", "a", "--annotator", "b"], "in a terminal, one person talks"),
        (["--collect", "{run}/recipe.feedback"], "not a SQLite file, so not a store of feedback"),
        (["--collect", "chats.feedback"], "has not agreed that anything is kept"),
    ],
)
def test_usage(
    run: Path, words: list[str], said: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.feedback").write_text("model: tiny\n" * 200)
    assert main(["chat", str(run / "sft"), *(word.replace("{run}/", "") for word in words)]) in (2, 4)
    assert said in capsys.readouterr().err


def test_in_a_pipe_after_consent(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chats.feedback"
    with Store.open(path, new=True) as store:
        store.submit(Event("0" * 32, "ada", "consent", {"granted": True, "terms": TERMS}))
    monkeypatch.setattr("sys.stdin", io.StringIO("my old friend\n/good\n/edit fine\n"))
    words = ["--collect", str(path), "--annotator", "ada", "--max-new-tokens", "8", "--seed", "1"]
    assert main(["chat", str(run / "sft"), *words]) == 0
    assert [row["item"]["task"] for _, row in store_rows(path)] == ["thumb", "demonstration"]
    assert [row["item"]["origins"] for _, row in store_rows(path)] == [["run-sft"]] * 2


# --- in a recipe


@pytest.mark.parametrize(
    ("algorithm", "task"), [("dpo", "pair"), ("kto", "thumb"), ("sft", "demonstration"), ("reward_model", "pair")]
)
@pytest.mark.parametrize("mixed", [False, True])
def test_a_recipe_learns_from_it(
    kept: Collection, tmp_path: Path, algorithm: str, task: str, mixed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line of recipe: choices, thumbs or edits. If a store has several, the recipe names the task."""
    for number in range(4):
        both = [exchange(f"a{number}", asked=f"q{number}"), exchange("b", policy=ONLINE, asked=f"q{number}")]
        left, right = places(kept.keep("ada", both))
        if mixed or task == "pair":
            kept.choose("ada", [left, right], number % 2)
        if mixed or task == "thumb":
            kept.rate("ada", left, number % 2 == 0)
        if mixed or task == "demonstration":
            kept.edit("ada", left, f"c{number}")
    kept.close()
    data: Any = {"feedback": {"path": "chats.feedback", "tasks": [task]}} if mixed else "chats.feedback"
    stage = {"algorithm": algorithm, "data": data, "max_steps": 2, "batch_size": 2, "learning_rate": 0.001}
    recipe = {"model": {"base": "tiny", "dtype": "float32", "lora": {"r": 4}}, "stages": {"learned": stage}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    assert (tmp_path / "run" / "learned" / "stage.json").exists()
