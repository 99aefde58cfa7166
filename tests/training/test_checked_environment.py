"""Every way in which an environment, or its use in a recipe, can be wrong."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from played import TURNS, rollouts, run_of
from scripted import follow

from alignkit import Environment, Message, RecipeError, RunFailed
from alignkit.errors import PluginError
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import Run
from alignkit_plugins.environments.calculator import Calculator

pytestmark = pytest.mark.usefixtures("one_thread")

# Mistakes of environments


class Raises(Calculator):
    def calculate(self, expression: str) -> str:
        """Calculate.

        Args:
            expression: what.
        """
        return {}["nothing"]  # type: ignore[no-any-return]


class Bytes(Calculator):
    def calculate(self, expression: str) -> Any:
        """Calculate.

        Args:
            expression: what.
        """
        return b"5"


class BytesContent(Calculator):
    def respond(self, turn: Message) -> Any:
        return [{"role": "tool", "content": b"5"}]


class NaN(Calculator):
    def get_reward(self) -> float:
        return float("nan")


class Words(Calculator):
    def get_reward(self) -> Any:
        return "good"


class OneString(Calculator):
    def respond(self, turn: Message) -> Any:
        return "5"


class Surrogate(Calculator):
    def respond(self, turn: Message) -> Any:
        return [{"role": "tool", "content": "\ud800"}]


class Reserved(Calculator):
    def respond(self, turn: Message) -> Any:
        return [{"role": "tool", "content": "\ufdd0"}]


class Exits(Calculator):
    def respond(self, turn: Message) -> Any:
        raise SystemExit(0)


class Unseeded(Calculator):
    shared: ClassVar[random.Random] = random.Random(0)

    def reset(self, row: Mapping[str, Any]) -> Any:
        return str(self.shared.random())


class Constructor(Calculator):
    def __init__(self, options: Any):
        raise OSError("no server")


MISTAKES: list[tuple[type[Environment], str, str]] = [
    (Raises, "respond", r"KeyError: 'nothing' \(test_checked_environment.py:\d+\)"),
    (Bytes, "respond", "tool 'calculate' must return text or JSON values, not bytes"),
    (BytesContent, "respond", "content Input should be a valid string"),
    (NaN, "get_reward", "Input should be a finite number"),
    (Words, "get_reward", "Input should be a valid number"),
    (OneString, "respond", "Input should be a valid dictionary"),
    (Surrogate, "respond", "UnicodeEncodeError"),
    (Reserved, "respond", "what it returned cannot be rendered: .* U\\+FDD0"),
    (Exits, "respond", r"SystemExit: 0"),
    (Unseeded, "reset", "the responses to a prompt share it"),
]


@pytest.mark.parametrize(
    ("cls", "method", "message"), MISTAKES, ids=[cls.__name__ for cls, _, _ in MISTAKES]
)
def test_a_mistake_names_plugin_stage_iteration_and_row(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cls: type[Environment],
    method: str,
    message: str,
) -> None:
    follow(monkeypatch, TURNS)
    rollout = {"samples_per_prompt": 2, "max_new_tokens": 90}
    with pytest.raises(
        PluginError,
        match=(
            f"plugin 'alignkit_plugins'.*stage 'align', in `{cls.__name__}.{method}`: .*{message}"
        ),
    ) as caught:
        run_of(tmp_path, cls, rollout=rollout).execute()
    notes = "\n".join(caught.value.__notes__)
    assert (
        "in the episode of" in notes
        and "prompts.jsonl:" in notes
        and "in iteration 1 of 1" in notes
    )
    assert "response " in notes and "What is" in notes


def test_the_run_goes_on_with_a_repaired_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(monkeypatch, TURNS)
    with pytest.raises(PluginError):
        run_of(tmp_path, Raises).execute()
    run = run_of(tmp_path)
    run.execute()
    assert len(rollouts(run)) == 2


def test_an_environment_that_cannot_be_made_is_named_before_training(tmp_path: Path) -> None:
    with pytest.raises(
        PluginError, match=r"stage 'align', in `Constructor.__init__`: OSError: no server"
    ):
        run_of(tmp_path, Constructor).execute()


def test_a_tool_that_cannot_be_described_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Undescribed(Calculator):
        def other(self, word: str) -> str:
            """Has no description of its argument."""
            return word

    with pytest.raises(
        PluginError, match=r"plugin 'alignkit_plugins'.*tool 'other': .*the argument 'word'"
    ):
        run_of(tmp_path, Undescribed).execute()


def test_a_template_without_tools_is_refused_before_training(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    text = (
        (tmp_path / "recipe.yaml")
        .read_text(encoding="utf-8")
        .replace("chat_template: hermes", "chat_template: chatml")
    )
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    run = Run(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run")
    with pytest.raises(
        RecipeError,
        match="stage 'align': environment 'calculator': the chat template does not write the",
    ):
        run.execute()


def test_what_reset_adds_must_leave_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wordy(Calculator):
        def reset(self, row: Mapping[str, Any]) -> Any:
            return " word" * 1000

    with pytest.raises(
        RunFailed,
        match=r"stage 'align': .*`reset` adds.*prompts.jsonl:\d leaves no room in max_length",
    ):
        run_of(tmp_path, Wordy).execute()


# Recipes

BAD_RECIPES: list[tuple[dict[str, Any], str]] = [
    ({"environment": "calculater"}, "no environment 'calculater'.*did you mean 'calculator'"),
    ({"environment": {"calculator": {"tolerance": 1}}}, "unknown key 'tolerance'"),
    ({"environment": None}, "the reward is that of an episode, but the stage has no environment"),
    (
        {
            "environment": None,
            "reward": {"length": {}},
            "monitors": [{"gold": {"reward": "environment"}}],
        },
        "the reward is that of an episode",
    ),
    ({"rollout": {"max_turns": 0}}, "greater than or equal to 1"),
    ({"algorithm": "dpo", "data": "prompts.jsonl"}, "dpo does not use 'environment'"),
]


@pytest.mark.parametrize(("keys", "message"), BAD_RECIPES)
def test_recipes_that_misuse_environments_are_refused(
    tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        run_of(tmp_path, **keys)
    import re

    assert re.search(message, " ".join(str(caught.value).split())), caught.value


def test_rows_without_an_answer_are_refused_before_training(tmp_path: Path) -> None:
    from alignkit import DataError

    run = run_of(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "What is it?"}\n', encoding="utf-8")
    with pytest.raises(
        DataError, match=r"prompts.jsonl:1: the environment 'calculator' needs a number"
    ):
        run.execute()


def test_stages_without_an_environment_are_the_same_as_before(tmp_path: Path) -> None:
    """Neither their hash nor their files know of environments."""
    run = run_of(tmp_path, environment=None, reward={"length": {}})
    stage = run.recipe.stages["align"]
    assert stage.settings is not None and stage.settings.environment is None
    assert stage.settings.rollout.max_turns is None
