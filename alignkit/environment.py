"""The interface of an environment: it writes the turns between those of the policy, and rewards the
whole episode.

Close to TRL's `environment_factory`: `reset`, public methods as tools, `get_reward`. Differs from
TRL: `reset` takes the row as one mapping, `respond` may answer without tools, and of a tool's
exceptions only ValueError reaches the policy.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from alignkit.data.group import Group, Message
from alignkit.errors import RunFailed
from alignkit.options import WithOptions

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

# Key of an episode's reward in Response.scores; its parts are `episode/NAME`
EPISODE_KEY = "episode"


class Environment(WithOptions):
    """Base class of an environment. Every response has an instance of its own, made from the
    recipe's options.

    Public methods of a subclass are the tools that the policy may call. They need type hints and a
    docstring that describes every argument under `Args:`; both are shown to the policy.

    Attributes:
        runs_code: See `Reward`.
        random: A generator with a seed, the only source of randomness that makes a run repeatable.
            In `reset` it draws the same numbers for all responses to a prompt, and afterwards
            others for each.
        folder: The recipe's.
        turns: The episode's turns so far, the policy's and the environment's; the prompt is not
            among them.
        refused_calls: Calls that no tool could take.
    """

    runs_code: ClassVar[bool] = False
    random: np.random.Generator
    folder: Path
    turns: Sequence[Message] = ()
    refused_calls = 0

    def check(self, folder: Path) -> None:
        """Raise RunFailed for a mistake of the user that shows without models; see
        `Reward.check`.
        """

    def check_reward(self) -> None:
        """Raise RunFailed if no episode can have a reward; called after `check` if the stage learns
        from episodes'.
        """
        if type(self).get_reward is Environment.get_reward:
            raise RunFailed(
                f"{type(self).__name__} has no method `get_reward`, so its episodes have no reward"
            )

    def check_prompts(self, groups: Sequence[Group]) -> None:
        """Raise DataError if these prompts lack a column that episodes need; see
        `Reward.check_prompts`.
        """

    def tools(self) -> Mapping[str, Callable[..., Any]]:
        """What the policy may call, by name; the same in all episodes of a stage. Default: the
        public methods.
        """
        names = [name for name, _ in inspect.getmembers(type(self), inspect.isfunction)]
        return {
            name: getattr(self, name)
            for name in names
            if name[0] != "_" and not hasattr(Environment, name)
        }

    def reset(self, row: Mapping[str, Any]) -> str | Sequence[Message] | None:
        """Begin the episode of a prompt.

        Returns what the prompt gets: text at the end of its last message, if that is the user's
        (else a message of the user), or messages behind it. It must be the same for all responses
        to a prompt.

        Args:
            row: The columns of the prompt's row, and its messages as `prompt`.
        """
        return None

    def respond(self, turn: Message) -> Sequence[Message] | None:
        """The messages that follow a finished turn of the policy; None ends the episode.

        Args:
            turn: `content`, and the calls in it as `tool_calls`; `call_errors` says what is wrong
                with calls that could not be read. By default the calls are answered by `tool`
                messages, and a turn without calls ends the episode. After the last turn that a
                stage allows (`max_turns`) the result is not used.
        """
        return self.call_tools(turn)

    def get_reward(self) -> float | Mapping[str, float | None] | None:
        """The episode's reward, or several by name; asked once, at its end. None: it has none,
        never 0.
        """
        return None

    def call_tools(self, turn: Message) -> list[Message] | None:
        """Answer the calls of a turn, in order; None if there are none.

        A call that does not fit its tool is answered by what is wrong with it, as is ValueError,
        which a tool raises to tell the policy something. Other exceptions of a tool are its
        author's mistakes.

        Args:
            turn: A turn of the policy.
        """
        answers = importlib.import_module("alignkit_plugins.environments.turns").answers(self, turn)
        return answers or None


def player() -> Any:
    """The module that plays episodes. Stages without an environment do not load it."""
    return importlib.import_module("alignkit_plugins.environments.episodes")
