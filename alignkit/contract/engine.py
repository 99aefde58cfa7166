"""The interface of an engine: whatever samples from policies.

alignkit's own engine, `local`, is the default. Others may be another process, a server or a
library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from alignkit.contract.options import Field, WithOptions
from alignkit.contract.options import Options as _Options
from alignkit.io.text import Say

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit.contract.settings import ModelSpec, Sampling

LOCAL = "local"  # what recipes call alignkit itself, which is no plugin


class EngineOptions(_Options):
    """Options of every engine. An engine's own `Options` extend them."""

    changes_no_result: ClassVar[frozenset[str]] = frozenset({"timeout"})

    timeout: float = Field(
        600.0, "seconds without progress after which a call has failed; changes no result", gt=0
    )

    @property
    def lacks_quantization(self) -> str:
        """What a user must add so that the engine samples from a base quantized as `model` says;
        empty: nothing.
        """
        return ""

    @property
    def samples_ahead(self) -> bool:
        """Whether the engine can sample while alignkit computes (`rollout.async_level`): it has a device
        of its own.
        """
        return True


@dataclass(frozen=True)
class Completion:
    """Tokens, each with its log-probability in nats, and the version of the weights that computed
    them.

    Attributes:
        tokens: Up to and including an end token, or the token that completes a stop text; else
            `max_new_tokens` of them. What follows a stop text is dropped: a server may see it a
            token late.
        logprobs: At the sampling temperature (at 1 if it is 0), over the whole vocabulary: before
            top_k and top_p. None if the engine cannot tell them with these filters.
        version: The one that was published last.
    """

    tokens: Sequence[int]
    logprobs: Sequence[float] | None
    version: int


@dataclass(frozen=True)
class EngineSetup:
    """What an engine needs to know of the run.

    Attributes:
        base: Transformers folder or hub id of the base model.
        model: The recipe's `model`.
        dtype: The type of its weights, such as `float32`.
        vocabulary: Token ids are below it.
        max_length: Longest sequence of the base, in tokens.
        end_ids: Tokens that end a response.
        cache: A folder for this engine's files.
        revision: The revision of a hub id; None: the newest.
        stage: Its name.
        seed: The stage's.
        progress: Called as `progress(n)`: n responses of the current call are complete; a call
            without progress is ended after `timeout` seconds.
        say: Prints a line.
        probe_text: An engine that loads the base elsewhere compares the two below with its own.
        probe_tokens: The token ids of that text.
        probe_logprobs: The log-probability of each but the first, in nats, as training computes it.
    """

    base: str
    model: ModelSpec
    dtype: str
    vocabulary: int
    max_length: int
    end_ids: frozenset[int]
    cache: Path
    revision: str | None = None
    stage: str = ""
    seed: int = 0
    progress: Callable[[int], None] = lambda responses: None
    say: Say = lambda line: None
    probe_text: str = ""
    probe_tokens: Sequence[int] = ()
    probe_logprobs: Sequence[float] = ()


class Engine(WithOptions):
    """Base class of an engine. Its methods are called one at a time, all in one thread, which is
    not the main thread.

    With `rollout.async_level`, alignkit trains while they run. An engine belongs to one stage and is
    prepared before its first call. A server of its own may outlive the stage. With
    several processes, the first one's samples for all. An instance may be closed while one of its
    calls is still running.

    Attributes:
        whole_models: `publish` also takes folders of whole models, as with `lora: none`.
        repeats: The same call of `sample` returns the same tokens. A server that batches what
            arrives rounds as it batches.
    """

    whole_models: ClassVar[bool] = False
    repeats: ClassVar[bool] = True

    class Options(EngineOptions):
        """The options that every engine has."""

    def check(self, folder: Path) -> None:
        """Raise RunFailed for a mistake of the user that shows without models, such as a missing
        file or key.

        Called before the first stage of a run.

        Args:
            folder: The recipe's; relative paths start there.
        """

    def prepare(self, setup: EngineSetup) -> None:
        """Load the base model, or connect to whoever has it; called once, before anything else is
        asked.
        """
        self.setup = setup

    def publish(self, policy: str, adapter: Path | None, version: int) -> None:
        """Use these weights for the policy from now on.

        Args:
            policy: Its name.
            adapter: Folder in peft's format, which stays until the next version of the policy is
                published; None is the base itself.
            version: At least 0 and below 2**31; other weights have another version.
        """
        raise NotImplementedError

    def sample(
        self,
        policy: str,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
    ) -> Sequence[Sequence[Completion]]:
        """Continue prompts, which are token ids: one completion for each of a prompt's seeds, in
        order.

        There may be none: an engine is started so before it is needed.

        Args:
            policy: Its name.
            prompts: Token ids.
            seeds: 63-bit. The same call must return the same tokens, so that a run that was killed
                ends in the same bytes, unless the class says that it does not (`repeats`). A prompt
                with all new tokens may be longer than the setup's `max_length`, where the sample
                ends.
            sampling: The same for all prompts.
        """
        raise NotImplementedError

    def idle(self) -> None:
        """Leave the device's memory to alignkit, which computes next, but keep the weights
        somewhere.

        Called when samples are complete. An engine on a device of its own does nothing.
        """

    def wake(self) -> None:
        """Take the memory again: called before any other call that follows `idle`, but `close`."""

    def close(self) -> None:
        """Free everything and end every process; called once, at the end of the stage, also if it
        fails.
        """
