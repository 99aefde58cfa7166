"""Policies and rewards that are named on the command line, loaded: who answers, and who scores the answers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alignkit import seeds
from alignkit.data.group import Group, Message, Response
from alignkit.errors import DataError, Problem, RecipeError
from alignkit.io.progress import Reporter
from alignkit.models.next_token import Sampling
from alignkit.models.service import ModelRouter, ModelService
from alignkit.plugins import launcher
from alignkit.registry import Registry
from alignkit.reward import REWARD_KEY, Context, no_progress
from alignkit.runs.bases import RunBases
from alignkit.runs.data import RunData
from alignkit.tokens.text_tokens import Ids
from alignkit.training.scoring import Scorer
from alignkit_apps.policies.named_models import NamedModel
from alignkit_apps.policies.recipe import NamedModels, read_models
from alignkit_apps.policies.streaming import Answer, Drafts, Piece, Question, answer
from alignkit_apps.policies.variant import Examples, best_places, draw

MAX_NEW_TOKENS = 512  # of an answer, by a policy that did not learn from its own samples
# How a policy samples, unless somebody says otherwise: as in its training.
_FOLLOWED = ("max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "stop")


class TooLong(DataError):
    """A prompt leaves no room for an answer."""


@dataclass(frozen=True)
class Policy:
    """A policy that answers.

    name: what people call it. word: what it was named by. reference: of its weights, for `service`. sampling: how it
    samples, unless somebody says otherwise. examples: in front of what it reads. best_of: how many answers it writes
    for each of its own, of which `chooser` chooses one.
    """

    name: str
    word: str
    reference: str
    service: ModelService
    sampling: Sampling
    examples: Examples | None = None
    best_of: int = 1
    chooser: Scorer | None = None

    def described(self) -> str:
        """How it samples, in words: `temperature 0.5, max_new_tokens 6`."""
        known = vars(Sampling())
        keys = ("temperature", *(key for key in _FOLLOWED if getattr(self.sampling, key) != known[key]))
        return ", ".join(f"{key} {getattr(self.sampling, key)}" for key in dict.fromkeys((*keys, "max_new_tokens")))

    def prompt(self, asked: Sequence[Message]) -> Ids:
        """The tokens of a conversation.

        Raises TooLong, and DataError if there are none or the template refuses the conversation.
        """
        asked = self.examples.messages(asked) if self.examples is not None and asked else asked
        prompt = self.service.encoder.prompt(asked)
        if not prompt:
            raise DataError("the prompt has no tokens")
        if self.room(prompt) < 1:
            context = self.service.model.context
            raise TooLong(f"the prompt has {len(prompt)} tokens, but {self.name} reads at most {context - 1}")
        return prompt

    def room(self, prompt: Ids) -> int:
        """Tokens that an answer may have after a prompt."""
        return self.service.model.context - len(prompt)

    def streams(self, seed: int, count: int) -> list[int]:
        """The random streams of `count` answers, which are those of `Models.sample`."""
        return [seeds.number(seed, 0, draft) for draft in range(count * self.best_of)]

    def answer(self, questions: Sequence[Question], sampling: Sampling) -> list[list[Answer]]:
        """The answers to questions; see `alignkit_apps.policies.streaming`. The best of several is heard at once."""
        service, asked = self.service, questions
        if self.chooser is not None:
            asked = [replace(q, heard=lambda piece: None, in_pieces=False) for q in questions]
        drafts = answer(service.model, service.role(self.reference), service.encoder, asked, sampling)
        if self.chooser is None:
            return drafts
        return [self._best(question, each) for question, each in zip(questions, drafts, strict=True)]

    def _best(self, question: Question, drafts: Sequence[Answer]) -> list[Answer]:
        """The best of each `best_of` drafts."""
        assert self.chooser is not None
        (group,) = self.chooser.score([answered(self, question.messages, drafts)])
        scores = [response.scores[REWARD_KEY] for response in group.responses]
        found = []
        for number, place in enumerate(best_places(scores, self.best_of)):
            some = slice(number * self.best_of, (number + 1) * self.best_of)
            one = replace(drafts[place], drafts=Drafts(drafts[some], scores[some], place - number * self.best_of))
            question.heard(Piece(number, one.text, one.logprobs, one))
            found.append(one)
        return found


@dataclass(frozen=True)
class Exchange:
    """What somebody asked, and what a policy answered, for whoever keeps such data.

    policy: the word that it was named by. rewards: of the answers, if they were scored. shown: the index of the answer
    that was shown, if there are several.
    """

    policy: str
    messages: Sequence[Message]
    answers: Sequence[str]
    sampling: Sampling
    seed: int
    rewards: Sequence[float | None] = ()
    shown: int = 0


@dataclass(frozen=True)
class Opened:
    """Policies by name, and the scorers of rewards, in the order in which they were named."""

    policies: Mapping[str, Policy]
    scorers: Sequence[Scorer] = field(default_factory=list)

    def rewards(
        self, policy: Policy, messages: Sequence[Message], answers: Sequence[Answer]
    ) -> list[dict[str, float | None]]:
        """For each answer of a policy its score by every reward."""
        group = answered(policy, messages, answers)
        found: list[dict[str, float | None]] = [{} for _ in answers]
        for scorer in self.scorers:
            (scored,) = scorer.score([group])
            for scores, response in zip(found, scored.responses, strict=True):
                scores[_short(scorer.name)] = response.scores[REWARD_KEY]
        return found


def answered(policy: Policy, messages: Sequence[Message], answers: Sequence[Answer]) -> Group:
    """Answers as rewards read them."""
    encoder, source = policy.service.encoder, policy.reference
    texts = [encoder.said(a.tokens) for a in answers]  # as in a run, with the reasoning that the prompt opens
    responses = (
        Response(text=text, tokens=a.tokens, truncated=not a.ended, source=source, tokenizer=encoder.digest)
        for text, a in zip(texts, answers, strict=True)
    )
    return Group(tuple(messages), tuple(responses))


@contextmanager
def opened(
    named: NamedModels, registry: Registry, reporter: Reporter, should_stop: Callable[[], None], command: str
) -> Iterator[Opened]:
    """Load the models that a command names.

    Raises RecipeError or RunFailed for one that cannot be loaded. should_stop: raises to end long passes.
    """
    recipe, rewards, variants, engine = read_models(named, command, registry)
    load = RunData(Path, recipe.seed).load
    drawn = {
        word: draw(load(one.few_shot).groups, one.shots, recipe.seed)
        for word, one in variants.items()
        if one.few_shot is not None
    }
    with tempfile.TemporaryDirectory(prefix="alignkit-") as folder, ExitStack() as engines:
        bases = RunBases(recipe, Path(folder), reporter)
        if not bases.fit(bases):
            names = ", ".join(str(spec["base"]) for spec in (named.base, *named.others.values()))
            raise RecipeError([Problem(f"these models do not fit in memory together: {names}", help="name fewer")])
        models = ModelRouter(bases.base_of, lambda name: _load(bases, name, should_stop))
        context = Context(models, Path(folder), Path.cwd(), recipe.seed, _no_data)
        policies = {}
        for name, word in names_of(named.policies).items():
            policy = _policy(name, word, named, models.of(bases.base_of(named.references[word]) or "base"))
            if (one := variants.get(word)) is not None:
                chooser = None if one.reward is None else Scorer(one.reward, context)
                policy = replace(policy, examples=drawn.get(word), best_of=one.best_of, chooser=chooser)
            policies[name] = policy
        for name, policy in policies.items():
            role = policy.service.role(policy.reference)  # now: weights that cannot be read are the user's mistake
            model = policy.service.model
            if engine is not None:
                if model.engine is None:
                    place = Path(folder) / f"engine-{name}"
                    model.engine = launcher().engine(engine, place, stage="", seed=recipe.seed, say=reporter.say)
                    engines.callback(model.engine.close)
                # Asked for no answer, it starts and takes the weights: also now, because that can fail or take minutes.
                model.engine.generate(model, role, policy.service.encoder, [], [], policy.sampling)
        yield Opened(policies, [Scorer(reward, context) for reward in rewards])


def _load(bases: RunBases, name: str, should_stop: Callable[[], None]) -> ModelService:
    service = bases[name].load(Path, should_stop)
    service.max_length, service.progress = service.model.context, no_progress
    return service


def _policy(name: str, word: str, named: NamedModels, service: ModelService) -> Policy:
    rollout = named.policies[word].rollout
    options = {"max_new_tokens": MAX_NEW_TOKENS} | {key: rollout[key] for key in _FOLLOWED if rollout.get(key)}
    options["stop"] = tuple(options.get("stop", ()))
    return Policy(name, word, named.references[word], service, Sampling(**options))


def names_of(policies: Mapping[str, NamedModel]) -> dict[str, str]:
    """The word of each policy by its name: RUN-STAGE, or the word itself if several have that name."""
    labels = [model.label for model in policies.values()]
    return {
        model.label if model.label and labels.count(model.label) == 1 else word: word
        for word, model in policies.items()
    }


def _no_data(spec: Any) -> list[Group]:
    raise DataError("this reward reads data, which only a stage of a recipe can give it")


def _short(name: str) -> str:
    """`helpful` for the folder of a reward model, `.../helpful/adapter`."""
    path = Path(name)
    return (path.parent if path.name in ("adapter", "model") else path).name if path.is_absolute() else name
