"""Policies and rewards that are named on the command line, loaded: who answers, and who scores the
answers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from alignkit import seeds
from alignkit.commands import refuse
from alignkit.data.group import Group, Message, Response
from alignkit.errors import DataError
from alignkit.io.console import Reporter
from alignkit.io.results import stage_folder
from alignkit.io.text import is_file
from alignkit.kinds import launcher
from alignkit.models.models import LoadedBase, Models, RolePolicy
from alignkit.recipe.schema import ADAPTER, BASE, RewardSpec
from alignkit.registry import Component, Registry
from alignkit.reward import REWARD_KEY, Context, no_progress
from alignkit.runs.bases import RunBase
from alignkit.runs.fingerprint import RunData
from alignkit.sampling import Sampling
from alignkit.tokens.encoder import Ids
from alignkit.training.rewards import Rewards
from alignkit_plugins.compare.sampling import TEMPERATURE
from alignkit_plugins.policies.named_models import NamedModel
from alignkit_plugins.policies.recipe import NamedModels, names_of, read_models, rollout_of
from alignkit_plugins.policies.streaming import Answer, answer

MAX_NEW_TOKENS = 512  # of an answer, by a policy that did not learn from its own samples


class TooLong(DataError):
    """A prompt leaves no room for an answer."""


@dataclass(frozen=True)
class Policy:
    """A policy that answers.

    name: what people call it. word: what it was named by. role: its weights. sampling: how it
    samples, unless somebody says otherwise.
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
            raise TooLong(
                f"the prompt has {len(prompt)} tokens, but {self.name} reads at most {context - 1}"
            )
        return prompt

    def answer(
        self,
        prompt: Ids,
        sampling: Sampling,
        seed: int,
        heard: Callable[[str], None] = lambda text: None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Answer:
        """An answer of as many tokens as the prompt leaves room for; see
        `alignkit_plugins.policies.streaming`.

        seed: equal ones give equal answers, which are those of `alignkit.Policy.sample`.
        """
        most = min(sampling.max_new_tokens, self.role.model.context - len(prompt))
        stream, sampling = (
            seeds.number(seed, 0, 0),
            sampling.model_copy(update={"max_new_tokens": most}),
        )
        return answer(self.role, prompt, stream, sampling, heard, wanted)


@dataclass(frozen=True)
class Opened:
    """Policies by name, and the rewards with their scorers, in the order in which they were named.

    sampling: what all policies have in common, so that their answers can be compared. data: the
    rows of the file.
    """

    policies: Mapping[str, Policy]
    scorers: Sequence[Rewards] = ()
    specs: Sequence[RewardSpec] = ()
    sampling: Sampling = Sampling()
    data: Sequence[Group] = ()

    def rewards(
        self, policy: Policy, messages: Sequence[Message], answer: Answer
    ) -> dict[str, float | None]:
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
    out: Path | None = None,
) -> Iterator[Opened]:
    """Load the models that a command names. out: the file that it will write, which must not be the
    one that it reads.

    Raises RecipeError or RunFailed for one that cannot be loaded. should_stop: raises to end long
    passes.
    """
    recipe, words = read_models(named, command, overrides, registry)
    data, progress = list[Group](), no_progress  # a talk shows its own
    if words.data is not None:
        files = [source.path.resolve() for source in words.data.sources if source.path is not None]
        if out is not None and (out.suffix != ".jsonl" or out.resolve() in files):
            refuse(
                f"--out {out}: the file is JSON lines, and never the one that is read",
                "name a new FILE.jsonl",
            )
        data, progress = RunData(Path, recipe.seed).read(words.data).groups, reporter.progress
    with tempfile.TemporaryDirectory(prefix="alignkit-") as folder, ExitStack() as engines:

        def load(name: str) -> LoadedBase:
            base = RunBase(name, recipe, reporter, download=True).load(Path, should_stop)
            base.max_length, base.progress = base.model.context, progress
            return base

        models = Models(load)
        models.enter(
            [
                each
                for each in named.references.values()
                if each != BASE and not is_file(Path(each) / ADAPTER)
            ]
        )
        context = Context(models, Path(folder), Path.cwd(), recipe.seed, _no_data)
        policies = {}
        for name, word in names_of(named.policies).items():
            role = models[named.references[word]]
            policies[name] = Policy(
                name, word, role, sampling_of([named.policies[word]], words.sampling)
            )
        for name, policy in policies.items():
            model = policy.role.model
            if isinstance(words.engine, Component) and model.engine is None:
                place = Path(folder) / f"engine-{name}"
                model.engine = launcher().engine(
                    words.engine, place, stage="", seed=recipe.seed, say=reporter.say
                )
                engines.callback(model.engine.close)
            # Asked for no answer, it reads the weights, and an engine starts and takes them: now,
            # because that can fail or take minutes.
            policy.role.sample([], seed=0)
        sampling = sampling_of(named.policies.values(), words.sampling)
        scorers = [Rewards(reward, context) for reward in words.rewards]
        yield Opened(policies, scorers, words.rewards, sampling, data)


def sampling_of(models: Iterable[NamedModel], overrides: Sampling) -> Sampling:
    """How policies answer: at `TEMPERATURE`, and else as in training, but for the keys that
    overrides set.
    """
    default = {"max_new_tokens": MAX_NEW_TOKENS, "temperature": TEMPERATURE, **rollout_of(models)}
    return Sampling(**default | overrides.model_dump(exclude_unset=True))


def _no_data(spec: object) -> list[Group]:
    raise DataError("this reward reads data, which only a stage of a recipe can give it")


def _short(name: str) -> str:
    """`helpful` for the folder of a reward model, `.../helpful/adapter`."""
    return stage_folder(Path(name)).name if Path(name).is_absolute() else name
