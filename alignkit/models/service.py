"""What rewards, judges and steps may ask of the models: scores, next-token probabilities, samples, by role.

A role is asked for by reference: `base`, a stage (`sft`), a kept version (`sft@2`), or an adapter folder. It is
loaded onto the shared base when first asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit.data.group import Group, Message, previews
from alignkit.errors import DataError, RunFailed
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import GroupSpan
from alignkit.models.encoding import Encoded, Encoder, Ids
from alignkit.models.forward import measure
from alignkit.models.loading import has_score, load_weights
from alignkit.models.reference_cache import ReferenceCache
from alignkit.models.sampling import Sampling, sample
from alignkit.models.shared_model import BASE, HeadKind, SharedModel

REMEMBERED = 10_000  # groups whose scores are kept, per reward model


class ModelService:
    """The models of a run; implements `alignkit.Models`."""

    def __init__(
        self,
        policy: SharedModel,
        artifact: Callable[[str], Path],
        max_length: int = 1024,
        remembered: ReferenceCache | None = None,
        say: Callable[[str], None] = lambda text: None,
    ):
        """artifact: from a reference to a saved adapter or model folder.

        remembered: where `reference_logprobs_of` are kept; None: they are not.
        """
        self.policy, self.artifact, self.remembered, self.say = policy, artifact, remembered, say
        self.max_length = min(max_length, policy.context)
        self.encoder = Encoder(policy.tokenizer)
        self._foreign: dict[Path, ForeignScorer] = {}
        self._scored: dict[str, dict[tuple[Ids, ...], list[float]]] = {}

    def role(self, reference: str) -> str:
        """The name of the role a reference stands for, loaded, with its scalar head if it has one."""
        name = "base" if reference == BASE else reference.replace("/", "|")
        if name not in self.policy.roles:
            folder = self.artifact(reference)
            head: HeadKind = "scalar" if has_score(folder) else "language"
            self.policy.add_role(name, start=folder, head=head)
        return name

    def reference_logprobs_of(self, reference: str, encoded: Sequence[Encoded]) -> tuple[list[Tensor], bool]:
        """`train.measure` of a reference that is not trained, and whether it was known from before."""
        role = self.role(reference)

        def fresh() -> list[Tensor]:
            return measure(self.policy, role, encoded, "logprobs")

        if self.remembered is None:
            return fresh(), False
        adapter = None if reference == BASE else self.artifact(reference)
        return self.remembered.logprobs(self.policy, adapter, encoded, fresh)

    def forget(self, reference: str) -> None:
        """Drop a role so that it is read afresh from disk."""
        self._scored.pop(reference, None)
        name = reference.replace("/", "|")
        if name != BASE and name in self.policy.roles:
            self.policy.drop_role(name)

    def forget_scores(self) -> None:
        """Score everything afresh: what is remembered changes how the rest is packed, and so the last bits."""
        self._scored.clear()

    def scores(self, stage: str, groups: Sequence[Group]) -> list[float | None]:
        """Raw scores of all responses in order; None where prompt and response do not fit."""
        folder = self.artifact(stage)
        if Path(stage).is_absolute() and not _same_base(folder, self.policy):
            if folder not in self._foreign:
                self._foreign[folder] = ForeignScorer(folder, self.policy)
            found = self._foreign[folder].scores(groups)
            self._tell_unread(stage, self._foreign[folder].encoder)
            return found
        role = self.role(stage)
        self.encoder.forget_counts()
        encoded = [self.encoder.encode(group, self.max_length, scoring=True) for group in groups]
        self._tell_unread(stage, self.encoder)
        # Several rewards of one evaluation may ask for the same scores: a sequence is scored once.
        known = self._scored.setdefault(stage, {})
        new = {_key(e): e for e in encoded if e is not None and e.rows}
        new = {key: e for key, e in new.items() if key not in known}
        values = iter(measure(self.policy, role, list(new.values()), "scores"))
        for key, e in new.items():
            known[key] = [float(next(values)) for _ in e.rows]
        found = []
        for whole, group in zip(encoded, groups, strict=True):
            if whole is None:
                found += [None] * len(group.responses)
            elif whole.rows:
                found += known[_key(whole)]
        if len(known) > REMEMBERED:
            known.clear()
        return found

    def _tell_unread(self, stage: str, encoder: Encoder) -> None:
        """Scores of what was not read to its end say little about it."""
        for name, what in (
            ("cut", "responses are read up to"),
            ("no_room", "groups have no score: their prompts fill"),
        ):
            if count := encoder.counts[name]:
                rows = previews(encoder.groups[name])
                self.say(f"{stage}: {count} {what} the longest sequence it may read, max_length: {rows}")
        encoder.forget_counts()

    def logprobs(self, role: str, groups: Sequence[Group], *, temperature: float = 1.0) -> list[Tensor]:
        """See `alignkit.Models`."""
        encoded = [self.encoder.encode(group, self.max_length) for group in groups]
        fits = [e for e in encoded if e is not None]
        values = iter(measure(self.policy, self.role(role), fits, "logprobs", temperature=temperature))
        return [
            torch.zeros(0) if e is None else next(values)
            for e, group in zip(encoded, groups, strict=True)
            for _ in group.responses
        ]

    @torch.no_grad()
    def next_token_logprobs(
        self, role: str, prompts: Sequence[Sequence[Message]], answers: Sequence[str], *, prefill: str = ""
    ) -> Tensor:
        """See `alignkit.Models`. Raises RunFailed when two answers begin with the same token."""
        name = self.role(role)
        first = [self.encoder.text(answer)[0] for answer in answers]
        if len(set(first)) < len(first):
            raise RunFailed(f"the answers {list(answers)} begin with the same token; choose others")
        rows = [self.encoder.prompt(prompt) + self.encoder.text(prefill) for prompt in prompts]
        if not all(rows):
            raise DataError("a prompt has no token that an answer could follow")
        found = torch.full((len(rows), len(answers)), float("nan"))
        fits = [place for place, row in enumerate(rows) if len(row) <= self.policy.context]
        rows = [rows[place] for place in fits]
        parts: list[Tensor] = []
        budget = 4 * self.policy.token_budget
        start = 0
        while start < len(rows):
            segments: list[GroupSpan] = []
            tokens: list[int] = []
            while start < len(rows) and (not tokens or len(tokens) + len(rows[start]) <= budget):
                segments.append(GroupSpan(len(tokens), len(rows[start]), ()))
                tokens += rows[start]
                start += 1
            hidden = self.policy.hidden(name, TreeLayout(segments), torch.tensor(tokens))
            ends = [segment.start + segment.prompt - 1 for segment in segments]
            logprobs = torch.log_softmax(self.policy.next_logits(name, hidden[ends]), dim=-1)
            parts.append(logprobs[:, first].cpu())
        if parts:
            found[fits] = torch.cat(parts)
        return found

    def sample(self, role: str, prompts: Sequence[Sequence[Message]], *, seed: int, **sampling: Any) -> list[Group]:
        """See `alignkit.Models`. Prompts that leave no room for `max_new_tokens` come back without responses."""
        wanted = Sampling(**sampling)
        self._refuse_reward_model(role)
        groups = [Group(tuple(prompt)) for prompt in prompts]
        fits = [self.fits(group, self.max_length, wanted.max_new_tokens) for group in groups]
        # The streams are named by the place among all prompts, so that leaving one out changes no other sample.
        places = [place for place, fit in enumerate(fits) if fit]
        found = sample(
            self.policy,
            self.role(role),
            self.encoder,
            [groups[p] for p in places],
            wanted,
            seed=seed,
            numbers=places,
        )
        answered = dict(zip(places, found, strict=True))
        return [answered.get(place, group) for place, group in enumerate(groups)]

    def _refuse_reward_model(self, role: str) -> None:
        if self.policy.roles[self.role(role)].head is not None:
            raise RunFailed(f"'{role}' is a reward model: it cannot answer prompts")

    def fits(self, group: Group, max_length: int, new_tokens: int) -> bool:
        """Whether a prompt leaves room for `new_tokens`."""
        return len(self.encoder.prompt(group.prompt)) + new_tokens <= max_length


class ForeignScorer:
    """A reward model with its own base, tokenizer and template: it scores text, one sequence at a time."""

    def __init__(self, folder: Path, policy: SharedModel):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        # Not told: the language head that a reward model was made from may lie in its files.
        self.model, _ = load_weights(AutoModelForSequenceClassification, folder, dtype=policy.dtype, num_labels=1)
        self.model.to(policy.device).eval()
        self.encoder = Encoder(AutoTokenizer.from_pretrained(folder))

    @torch.no_grad()
    def scores(self, groups: Sequence[Group]) -> list[float | None]:
        limit = getattr(self.model.config, "max_position_embeddings", 2048)
        found: list[float | None] = []
        for group in groups:
            # The words, not the policy's tokens: the two vocabularies differ.
            words = tuple(r.__class__(text=r.text, messages=r.messages) for r in group.responses)
            encoded = self.encoder.encode(Group(group.prompt, words, id=group.id), limit, scoring=True)
            if encoded is None:
                found += [None] * len(words)
                continue
            for row in encoded.rows:
                ids = torch.tensor([encoded.prompt + row.tokens], device=self.model.device)
                found.append(float(self.model(input_ids=ids).logits[0, 0]))
        return found


def _key(encoded: Encoded) -> tuple[Ids, ...]:
    return (encoded.prompt, *(row.tokens for row in encoded.rows))


def _same_base(folder: Path, policy: SharedModel) -> bool:
    """Whether a reward model's folder is an adapter for the run's own base (or the run keeps whole models)."""
    import json

    config = folder / "adapter_config.json"
    if not config.is_file():
        return False
    named = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if named != policy.base_name:
        raise RunFailed(f"{folder} is an adapter for the base model '{named}', not for '{policy.base_name}'")
    return True
