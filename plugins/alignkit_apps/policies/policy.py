"""Policies and rewards that are named on the command line, loaded: who answers, and who scores the answers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit import seeds
from alignkit.data.group import Group, Message, Response
from alignkit.errors import DataError
from alignkit.io.console import Reporter
from alignkit.io.results import stage_folder
from alignkit.io.text import is_file
from alignkit.kinds import launcher
from alignkit.models.models import LoadedBase, Models, RolePolicy
from alignkit.recipe.schema import ADAPTER, BASE
from alignkit.registry import Registry
from alignkit.reward import REWARD_KEY, Context, no_progress
from alignkit.runs.bases import RunBase
from alignkit.sampling import Sampling
from alignkit.tokens.encoder import Ids
from alignkit.training.rewards import Rewards
from alignkit_apps.policies.recipe import NamedModels, names_of, read_models, rollout_of
from alignkit_apps.policies.streaming import Answer, answer
from alignkit_plugins.evaluate.sampling import TEMPERATURE

MAX_NEW_TOKENS = 512  # of an answer, by a policy that did not learn from its own samples


class TooLong(DataError):
    """A prompt leaves no room for an answer."""


@dataclass(frozen=True)
class Policy:
    """A policy that answers.

    name: what people call it. word: what it was named by. role: its weights. sampling: how it samples, unless somebody
    says otherwise.
    """

    name: str
    word: str
    role: RolePolicy
    sampling: Sampling

    def prompt(self, messages: Sequence[Message]) -> Ids:
        """The tokens of a conversation.

        Raises TooLong, and DataError if there are none or the template refuses the conversation.
        """
        prompt = self.role.encoder.prompt(messages)
        if not prompt:
            raise DataError("the prompt has no tokens")
        context = self.role.model.context
        if len(prompt) >= context:
            raise TooLong(f"the prompt has {len(prompt)} tokens, but {self.name} reads at most {context - 1}")
        return prompt

    def answer(
        self,
        prompt: Ids,
        sampling: Sampling,
        seed: int,
        heard: Callable[[str], None] = lambda text: None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Answer:
        """An answer of as many tokens as the prompt leaves room for; see `alignkit_apps.policies.streaming`.

        seed: equal ones give equal answers, which are those of `alignkit.Policy.sample`.
        """
        most = min(sampling.max_new_tokens, self.role.model.context - len(prompt))
        stream, sampling = seeds.number(seed, 0, 0), sampling.model_copy(update={"max_new_tokens": most})
        return answer(self.role, prompt, stream, sampling, heard, wanted)


@dataclass(frozen=True)
class Opened:
    """Policies by name, and the scorers of rewards, in the order in which they were named."""

    policies: Mapping[str, Policy]
    scorers: Sequence[Rewards] = field(default_factory=list)

    def rewards(self, policy: Policy, messages: Sequence[Message], answer: Answer) -> dict[str, float | None]:
        """The score of a policy's answer by every reward."""
        encoder = policy.role.encoder
        text = encoder.said(answer.tokens)  # as in a run, with the reasoning that the prompt opens
        response = Response(
            text=text,
            tokens=answer.tokens,
            truncated=not answer.ended,
            source=policy.role.reference,
            tokenizer=encoder.digest,
        )
        found: dict[str, float | None] = {}
        for scorer in self.scorers:
            (scored,) = scorer.score([Group(tuple(messages), (response,))])
            found[_short(scorer.name)] = scored.responses[0].scores[REWARD_KEY]
        return found


@contextmanager
def opened(
    named: NamedModels,
    overrides: Sequence[str],
    registry: Registry,
    reporter: Reporter,
    should_stop: Callable[[], None],
    command: str,
) -> Iterator[Opened]:
    """Load the models that a command names.

    Raises RecipeError or RunFailed for one that cannot be loaded. should_stop: raises to end long passes.
    """
    recipe, rewards, engine = read_models(named, command, overrides, registry)
    with tempfile.TemporaryDirectory(prefix="alignkit-") as folder, ExitStack() as engines:
        models = Models(lambda name: _load(RunBase(name, recipe, reporter, download=True), should_stop))
        models.enter([each for each in named.references.values() if each != BASE and not is_file(Path(each) / ADAPTER)])
        context = Context(models, Path(folder), Path.cwd(), recipe.seed, _no_data)
        policies = {}
        for name, word in names_of(named.policies).items():
            role = models[named.references[word]]
            policies[name] = Policy(name, word, role, sampling_of(rollout_of([named.policies[word]])))
        for name, policy in policies.items():
            model = policy.role.model
            if engine is not None and model.engine is None:
                place = Path(folder) / f"engine-{name}"
                model.engine = launcher().engine(engine, place, stage="", seed=recipe.seed, say=reporter.say)
                engines.callback(model.engine.close)
            # Asked for no answer, it reads the weights, and an engine starts and takes them: now, because that can fail
            # or take minutes.
            policy.role.sample([], seed=0)
        yield Opened(policies, [Rewards(reward, context) for reward in rewards])


def _load(found: RunBase, should_stop: Callable[[], None]) -> LoadedBase:
    base = found.load(Path, should_stop)
    base.max_length, base.progress = base.model.context, no_progress
    return base


def sampling_of(rollout: Mapping[str, Any]) -> Sampling:
    """How a policy samples: with these keys, by default those of `rollout_of`."""
    return Sampling(**{"max_new_tokens": MAX_NEW_TOKENS, "temperature": TEMPERATURE, **rollout})


def _no_data(spec: Any) -> list[Group]:
    raise DataError("this reward reads data, which only a stage of a recipe can give it")


def _short(name: str) -> str:
    """`helpful` for the folder of a reward model, `.../helpful/adapter`."""
    return stage_folder(Path(name)).name if Path(name).is_absolute() else name
