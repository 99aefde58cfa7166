"""Policies and rewards that a command names, loaded: who answers, and who scores the answers."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from alignkit import seeds
from alignkit.contract.options import DataRef, Options, PolicyRef, RewardRef
from alignkit.contract.reward import REWARD_KEY, Context, no_progress
from alignkit.contract.settings import EngineRef, ModelSpec, Sampling
from alignkit.data.files import skips
from alignkit.data.group import Group, Message, Response
from alignkit.errors import DataError, refuse
from alignkit.host.calls import call
from alignkit.host.registry import Component
from alignkit.io.console import Reporter
from alignkit.io.results import stage_folder
from alignkit.models.generate import SamplingRequest, attach
from alignkit.models.models import RolePolicy
from alignkit.recipe.schema import BASE, Recipe, RewardSpec, Stage, specs
from alignkit.runs.services import Services
from alignkit.runs.stage import RunStage
from alignkit.tokens.encoder import Ids
from alignkit.training.rewards import Rewards
from alignkit_plugins.command_line.words import Named, NamedPolicy, read_as, sampling_of
from alignkit_plugins.compare.comparison import TEMPERATURE

# How vocabularies of GPT-2's kind write bytes
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}

UNNAMED = "no-model-is-named"

MAX_NEW_TOKENS = 512  # for a policy that did not learn from its own samples
LONGEST = 4096  # tokens of an answer that nobody limits: its cache is taken in advance


class Words(Options):
    """What a command and its overrides may set. sampling: keys that replace those of
    `sampling_of`.
    """

    model: ModelSpec
    engine: EngineRef = None
    policies: list[PolicyRef]
    rewards: list[RewardRef]
    data: DataRef | None = None
    sampling: Sampling = Field(default_factory=Sampling)


@dataclass(frozen=True)
class Answer:
    """A complete answer.

    text: without the stop string that ended it. response: as sampling and rewards have it.
    """

    text: str
    response: Response


@dataclass(frozen=True)
class Policy:
    """A policy that answers.

    name: what people call it. word: that named it. role: its weights. sampling: how it
    samples, unless somebody says otherwise.
    """

    name: str
    word: str
    role: RolePolicy
    sampling: Sampling

    def prompt(self, messages: Sequence[Message]) -> Ids:
        """Return the tokens of a conversation.

        Raises DataError if there are none, or too many, or the template refuses the conversation.
        """
        prompt = self.role.encoder.prompt(messages)
        if not prompt:
            raise DataError("the prompt has no tokens")
        most = self.role.model.context_length - 1
        if len(prompt) > most:
            raise DataError(
                f"the prompt has {len(prompt)} tokens, but {self.name} reads at most {most}"
            )
        return prompt

    def answer(
        self,
        prompt: Ids,
        sampling: Sampling,
        seed: int,
        on_text: Callable[[str], None] = lambda text: None,
        wanted: Callable[[], bool] = lambda: True,
        on_token: Callable[[int, Tensor], None] | None = None,
    ) -> Answer:
        """Sample an answer: that of `alignkit.Policy.sample`, without its stop.

        Args:
            prompt: From `prompt`.
            sampling: How to sample.
            seed: Equal ones give equal answers.
            on_text: Is given the text in pieces that no later token changes.
            wanted: Asked after every token; once it is false, nothing more is written.
            on_token: Is given each token that is no end token, before its text, with the
                log-probabilities [vocabulary] of its place: the model's own, at temperature 1 and
                before `top_p` and `top_k`, as OpenAI's. Only alignkit's own decoder has them.
        """
        role, encoder, sent, passed = self.role, self.role.encoder, "", 0

        def hear(text: str) -> None:
            nonlocal sent
            if text.startswith(sent) and text != sent:
                on_text(text[len(sent) :])
                sent = text

        def wrote(tokens: Sequence[int], logits: Tensor) -> bool:
            nonlocal passed  # none again, after memory ran out
            if on_token and len(tokens) > passed and tokens[-1] not in encoder.end_ids:
                passed = len(tokens)
                on_token(tokens[-1], torch.log_softmax(logits, dim=-1))
            # A character may take several tokens, and a lead-in may be left out.
            text = encoder.decode(tokens).rstrip("\ufffd")
            if (go_on := wanted()) and not encoder.lead.startswith(text):
                hear(_before(text, sampling.stop))
            return go_on

        most = min(sampling.max_new_tokens, role.model.context_length - len(prompt))
        sampling = sampling.model_copy(update={"max_new_tokens": most})
        weights, streams = role.loaded.role(role.reference), [[seeds.number(seed, 0, 0)]]
        request = SamplingRequest(
            role.model, weights, encoder, [prompt], streams, sampling, wrote=wrote
        )
        ((completion,),) = role.loaded.engine.request(request).result()
        text = until_stop(encoder.decode(completion.tokens), sampling.stop)
        hear(text)
        (group,) = attach(request, [Group(())], [[completion]])
        return Answer(text, group.responses[0])


def bytes_of(tokenizer: Any, token: int) -> bytes:
    """What a token writes, which may be a part of a character."""
    piece = tokenizer.convert_ids_to_tokens(token) or ""  # None: a padded vocabulary
    if "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder) and _BYTES.keys() >= {*piece}:
        return bytes(_BYTES[character] for character in piece)
    if byte := re.fullmatch(r"<0x(..)>", piece):  # SentencePiece's
        return bytes.fromhex(byte[1])
    return piece.replace("\u2581", " ").encode()


def until_stop(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first stop string."""
    ends = "|".join(map(re.escape, stops))
    return re.split(ends, text, maxsplit=1)[0] if ends else text


def _before(text: str, stops: Sequence[str]) -> str:
    """The text that is not the beginning of a stop string."""
    text = until_stop(text, stops)
    held = 0
    for stop in stops:
        for count in range(1, len(stop)):
            if text.endswith(stop[:count]):
                held = max(held, count)
    return text[: len(text) - held]


@dataclass(frozen=True)
class Opened:
    """Policies by name, and rewards with their scorers, in the order in which they were named.

    sampling: what all policies have in common, so that their answers can be compared. data: the
    rows of the file.
    """

    policies: Mapping[str, Policy]
    scorers: Sequence[Rewards] = ()
    specs: Sequence[RewardSpec] = ()
    sampling: Sampling = Sampling()
    data: Sequence[Group] = ()

    def rewards(self, messages: Sequence[Message], answer: Answer) -> dict[str, float | None]:
        """Return the score of an answer by every reward."""
        scores: dict[str, float | None] = {}
        for scorer in self.scorers:
            folder = Path(scorer.name)
            name = stage_folder(folder).name if folder.is_absolute() else scorer.name
            (scored,) = scorer.score([Group(tuple(messages), (answer.response,))])
            scores[name] = scored.responses[0].scores[REWARD_KEY]
        return scores


@contextmanager
def opened(
    named: Named,
    overrides: Sequence[str],
    reporter: Reporter,
    should_stop: Callable[[], None],
    command: str,
) -> Iterator[Opened]:
    """Load the models that a command names. should_stop: raises to end long passes.

    Raises RecipeError for a mistake in an override, and RunFailed for a model that cannot be
    loaded.
    """
    recipe, stage, words = _read(named, overrides, command)
    with tempfile.TemporaryDirectory(prefix="alignkit-") as folder:
        run = Services(recipe, Path(folder), reporter)
        run.should_stop = should_stop
        with run.models_for(stage):
            for name in (BASE, *stage.whole_models) if named.keys else ():
                weights = run.models.of(name)
                weights.max_length = weights.model.context_length
                if words.data is None:
                    weights.progress = no_progress  # a chat shows its own
            policies = {}
            for name, policy in named.policies.items():
                role = run.models[policy.reference]
                sampling = _sampling(
                    [policy],
                    words.sampling,
                    max_new_tokens=min(LONGEST, role.model.context_length),
                )
                policies[name] = Policy(name, policy.word, role, sampling)
                # Asked for no answer, an engine starts and takes the weights: this can fail.
                role.sample([], seed=0)
            context = Context(run.models, Path(folder), Path.cwd(), recipe.seed, _no_data)
            scorers = [Rewards(reward, context, say=reporter.say) for reward in words.rewards]
            data: Sequence[Group] = ()
            if words.data is not None:
                loaded = run.data.read(words.data)
                data = loaded.groups
                if text := skips(loaded.skipped):
                    reporter.say(text)
                scoring = RunStage(run, replace(stage, name=command))
                for component in specs(words.rewards, Component):
                    call(scoring.plugin(component), "check", Path.cwd())
                scoring.check_scoring(words, words.rewards, data)
            sampling = _sampling(named.policies.values(), words.sampling)
            yield Opened(policies, scorers, words.rewards, sampling, data)


def _read(named: Named, overrides: Sequence[str], command: str) -> tuple[Recipe, Stage, Words]:
    """A recipe without stages, what would be its only stage, and what words and overrides mean."""
    plain = {
        "model": dict(named.keys) or {"base": UNNAMED},
        "policies": [policy.reference for policy in named.policies.values()],
        "rewards": named.rewards,
        "data": named.data,
    }
    words, stage, document = read_as(Words, plain, command, overrides)
    if stage.roles and words.model.base == UNNAMED:
        refuse("a reward needs a base model, and nothing names one", "add model.base=FOLDER")
    stage.engine = words.engine if isinstance(words.engine, Component) else None
    recipe = Recipe(
        name=document.path.name,
        path=document.path,
        folder=document.path.parent.resolve(),
        seed=0,
        description="",
        model=words.model,
        stages={},
        resolved={},
        trackers=(),
        document=document,
    )
    return recipe, stage, words


def _sampling(policies: Iterable[NamedPolicy], overrides: Sampling, **own: int) -> Sampling:
    """How policies answer: at `TEMPERATURE`, and else as in training, but for their own keys and
    those that overrides set.
    """
    default = {
        "max_new_tokens": MAX_NEW_TOKENS,
        "temperature": TEMPERATURE,
        **sampling_of(policies),
        **own,
    }
    return Sampling(**default | overrides.model_dump(exclude_unset=True))


def _no_data(spec: object) -> list[Group]:
    raise DataError("this reward reads data, which only a stage of a recipe can give it")
