"""An engine: transformers computes one token of one response after the other."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from alignkit import Add, Completion, Engine, EngineSetup, Sampling, hookimpl

if TYPE_CHECKING:
    from pathlib import Path


class Plain(Engine):
    def prepare(self, setup: EngineSetup) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.setup = setup
        where: Any = (setup.base,), {"revision": setup.revision}
        self.tokenizer = AutoTokenizer.from_pretrained(*where[0], **where[1])
        model = AutoModelForCausalLM.from_pretrained(*where[0], **where[1], dtype=setup.dtype)
        self.base = model.eval()
        self.policies: dict[str, tuple[Any, int]] = {}

    def publish(self, policy: str, adapter: Path | None, version: int) -> None:
        from peft import PeftModel

        model = self.base
        if adapter is not None:
            model = PeftModel.from_pretrained(deepcopy(self.base), adapter).eval()
        self.policies[policy] = model, version

    def sample(
        self,
        policy: str,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
    ) -> list[list[Completion]]:
        completions = []
        for prompt, own in zip(prompts, seeds, strict=True):
            completions.append([self._respond(policy, prompt, seed, sampling) for seed in own])
            self.setup.progress(len(own))
        return completions

    def _respond(
        self, policy: str, prompt: Sequence[int], seed: int, sampling: Sampling
    ) -> Completion:
        import torch

        model, version = self.policies[policy]
        random, tokens, logprobs = torch.Generator().manual_seed(seed), list[int](), list[float]()
        room = min(sampling.max_new_tokens, self.setup.max_length - len(prompt))
        while len(tokens) < room:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, -1].float()
            known = (logits / (sampling.temperature or 1)).log_softmax(-1)
            chances = self._filtered(known.exp(), len(tokens), sampling)
            if sampling.temperature == 0:
                token = int(chances.argmax())
            else:
                token = int(torch.multinomial(chances, 1, generator=random))
            tokens.append(token)
            logprobs.append(float(known[token]))
            text = self.tokenizer.decode(tokens) if sampling.stop else ""
            if token in self.setup.end_ids or any(stop in text for stop in sampling.stop):
                break
        return Completion(tokens, logprobs, version)

    def _filtered(self, chances: Any, length: int, sampling: Sampling) -> Any:
        """The probabilities of the tokens that may come next, which need not sum to 1."""
        chances = chances.clone()
        if length < sampling.min_new_tokens:
            chances[list(self.setup.end_ids)] = 0
        largest, tokens = chances.sort(descending=True)
        too_many = largest.cumsum(-1) - largest >= sampling.top_p * largest.sum()
        if sampling.top_k:
            too_many[sampling.top_k :] = True
        chances[tokens[too_many]] = 0
        return chances


@hookimpl
def register(add: Add) -> None:
    add("engine", "plain", Plain, "transformers, token by token")
