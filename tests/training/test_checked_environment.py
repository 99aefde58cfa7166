"""Every way in which an environment, or its use in a recipe, can be wrong."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from played import TURNS, run_of
from scripted import follow

from alignkit import Environment, RecipeError, RunFailed
from alignkit.errors import PluginError
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import Run
from alignkit_plugins.environments.calculator import Calculator

pytestmark = pytest.mark.usefixtures("one_thread")

# Mistakes of environments


def environment(method: str, body: Any) -> type[Environment]:
    """The calculator, one method of which does something else."""
    return type("Broken", (Calculator,), {method: body, "__module__": __name__})


def raises(error: type[BaseException]) -> Any:
    def body(self: Any, *given: Any) -> Any:
        raise error("no server")

    return body


def answers(content: Any) -> Any:
    return lambda self, turn: [{"role": "tool", "content": content}]


# Without a hint for `self`, which would be an argument of the tool.
def calculate(self, expression: str) -> Any:  # type: ignore[no-untyped-def]
    """Calculate.

    Args:
        expression: what.
    """
    return b"5"


shared = random.Random(0)
MISTAKES: list[tuple[str, Any, str]] = [
    ("respond", raises(KeyError), r"KeyError: 'no server' \(test_checked_environment.py:\d+\)"),
    ("respond", answers(b"5"), "content Input should be a valid string"),
    ("respond", answers("\ud800"), "UnicodeEncodeError"),
    ("respond", answers("\ufdd0"), r"what it returned cannot be rendered: .* U\+FDD0"),
    ("get_reward", lambda self: float("nan"), "Input should be a finite number"),
    ("get_reward", lambda self: {"a": -1e308}, "greater than or equal to -1000000000000000"),
    ("reset", lambda self, row: str(shared.random()), "the responses to a prompt share it"),
    ("calculate", calculate, "tool 'calculate' must return text or JSON values, not bytes"),
]


@pytest.mark.parametrize(("method", "body", "message"), MISTAKES)
def test_a_mistake_names_plugin_stage_iteration_and_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, body: Any, message: str
) -> None:
    follow(monkeypatch, TURNS)
    broken = environment(method, body)
    called = "respond" if method == "calculate" else method
    whose = f"plugin 'alignkit_plugins'.*stage 'align', in `Broken.{called}`: .*{message}"
    with pytest.raises(PluginError, match=whose) as caught:
        run_of(tmp_path, broken).execute()
    notes = "\n".join(caught.value.__notes__)
    for place in ("in the episode of", "prompts.jsonl:", "in iteration 1 of 1", "What is"):
        assert place in notes


def other(self, word: str) -> str:  # type: ignore[no-untyped-def]
    """Has no description of its argument."""
    return word


@pytest.mark.parametrize(
    ("method", "body", "error", "message"),
    [
        ("other", other, PluginError, "tool 'other': .*the argument 'word'"),
        (
            "reset",
            lambda self, row: " word" * 1000,
            RunFailed,
            r"`reset` adds.*prompts.jsonl:\d leaves no room in max_length",
        ),
    ],
)
def test_what_cannot_be_played_is_refused_before_training(
    tmp_path: Path, method: str, body: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run_of(tmp_path, environment(method, body)).execute()
    assert not list((tmp_path / "run" / "align").glob("rollouts/*"))


def test_a_template_without_tools_is_refused_before_training(tmp_path: Path) -> None:
    run_of(tmp_path)
    recipe = load_recipe(tmp_path / "recipe.yaml", ["model.chat_template=chatml"])
    with pytest.raises(RecipeError, match="'calculator': the chat template does not write the"):
        Run(recipe, tmp_path / "run").execute()


# Recipes

BAD_RECIPES = {
    "environment: null": "the reward is that of an episode, but the stage has no environment",
    "{environment: null, reward: {length: {}}, monitors: [{gold: {reward: environment}}]}": (
        "the reward is that of an episode"
    ),
    "{algorithm: dpo, data: prompts.jsonl}": "dpo does not use 'environment'",
}


@pytest.mark.parametrize(("keys", "message"), BAD_RECIPES.items())
def test_recipes_that_misuse_environments_are_refused(
    tmp_path: Path, keys: str, message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        run_of(tmp_path, **yaml.safe_load(keys))
    assert re.search(message, " ".join(str(caught.value).split())), caught.value
