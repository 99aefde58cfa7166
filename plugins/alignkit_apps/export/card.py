"""The model card of an export: a README.md with the header that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from alignkit.io.printable import printable
from alignkit.report import Report, Table
from alignkit.settings import ModelSpec
from alignkit_apps.export.provenance import DataFacts, StageFacts
from alignkit_apps.export.usage import Loading, llama_cpp, python, vllm

LIBRARIES = {"adapter": "peft", "whole": "transformers", "gguf": "llama.cpp", "whole+gguf": "transformers"}


@dataclass(frozen=True)
class Card:
    """What a model card says.

    loading: how programs load it. reference: the stage in its run. digest: SHA-256 of the base's weights. dtype: of
    the exported weights. evaluations: titles and Markdown. notes: what a user must know. hash: of the stage.
    """

    loading: Loading
    reference: str
    spec: ModelSpec
    stages: Sequence[StageFacts]
    evaluations: Sequence[tuple[str, str]]
    versions: Mapping[str, str]
    notes: Sequence[str]
    hash: str
    license: str | None = None
    digest: str | None = None

    def text(self) -> str:
        """The file."""
        parts = [self._header(), self._what(), self._use(), self._training(), self._data(), self._evaluation()]
        parts += [self._limitations(), self._reproduce()]
        return printable("\n\n".join(part.strip() for part in parts if part)) + "\n"

    @property
    def _is_reward(self) -> bool:
        return self.loading.is_reward

    def _header(self) -> str:
        form, method = self.loading.form, self.stages[-1].method
        hubs = [facts.hub for stage in self.stages for facts in stage.data if facts.hub]
        tags = ["alignkit", method.replace("_", "-")]
        tags += ["lora"] if form == "adapter" else []
        tags += ["reward-model"] if self._is_reward else []
        tags += ["gguf"] if "gguf" in form else []
        header: dict[str, Any] = {}
        if self.loading.hub:
            relation = {"adapter": "adapter", "gguf": "quantized"}.get(form, "finetune")
            header |= {"base_model": self.loading.base, "base_model_relation": relation}
        header |= {"license": self.license} if self.license else {}
        header |= {"datasets": list(dict.fromkeys(hubs))} if hubs else {}
        header["library_name"] = LIBRARIES[form]
        header["pipeline_tag"] = "text-classification" if self._is_reward else "text-generation"
        header["tags"] = list(dict.fromkeys(tags))
        return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---"

    def _what(self) -> str:
        kind = "reward model: it scores answers, higher is better" if self._is_reward else "language model"
        form = {
            "adapter": "a LoRA adapter",
            "whole": "a whole model",
            "gguf": "a GGUF file for llama.cpp",
            "whole+gguf": "a whole model and a GGUF file for llama.cpp",
        }[self.loading.form]
        methods = ", then ".join(stage.method for stage in self.stages)
        lines = [
            f"# {self.loading.name}",
            "",
            f"A {kind}. This is {form}, trained with alignkit ({methods}).",
            "",
            f"- Base model: {self._base()}",
            f"- License: {self.license or 'not recorded; that of the base model and of the data apply'}",
        ]
        return "\n".join([*lines, *(f"- Note: {note}." for note in self.notes)])

    def _base(self) -> str:
        loading = self.loading
        name = f"[{loading.base}](https://huggingface.co/{loading.base})" if loading.hub else f"`{loading.base}`"
        weights = f", SHA-256 of its weights `{self.digest}`" if self.digest else ""
        where = "" if loading.hub else ", which is not on the hub"
        revision = f", revision `{self.spec.revision}`" if self.spec.revision else ""
        return name + revision + where + weights

    def _use(self) -> str:
        loading, parts = self.loading, ["## Use"]
        parts.append(f"```python\n{python(loading)}\n```")
        if loading.form in ("adapter", "whole", "whole+gguf"):
            command = vllm(loading)
            fenced = command.removeprefix("# ") if command.startswith("#") else f"```\n{command}\n```"
            parts.append(f"vLLM:\n\n{fenced}" if not command.startswith("#") else f"{fenced}.")
        if loading.gguf:
            parts.append(f"llama.cpp:\n\n```\n{llama_cpp(loading)}\n```")
        parts += [f"- {line}" for line in self._conventions()]
        return "\n\n".join(parts[:-1] if not parts[-1] else parts)

    def _conventions(self) -> Iterator[str]:
        """How texts must be rendered for the model to see them as in training."""
        spec = self.spec
        yield "Conversations are rendered by the chat template in this folder, as in training."
        if spec.chat_template_kwargs:
            given = ", ".join(f"{key}={value!r}" for key, value in spec.chat_template_kwargs.items())
            yield f"The run rendered them with `apply_chat_template(..., {given})`."
        if spec.reasoning == "empty":
            yield "The run put a closed, empty block of reasoning into prompts."
        if spec.system_messages == "merge":
            yield "The run put system messages in front of the next user message."
        if spec.date:
            yield f"The run's template wrote the day {spec.date}."
        if self._is_reward:
            yield (
                "A score is the logit at the last token of the rendered conversation: one number, without a sigmoid. "
                "Only differences between answers to the same prompt mean something."
            )

    def _training(self) -> str:
        lora = self.spec.lora
        how = f"LoRA, r {lora.r}, alpha {lora.lora_alpha}" if lora is not None else "all weights"
        if self.spec.quantization != "none":
            how += f", on the base in {self.spec.quantization}"
        lines = ["## Training", "", f"Trained weights: {how}.", ""]
        for number, stage in enumerate(self.stages, 1):
            settings = ", ".join(f"{key} {_value(value)}" for key, value in stage.settings.items())
            lines.append(f"{number}. **{stage.name}** ({stage.method}) from {stage.start}: {settings}.")
            if stage.results:
                results = ", ".join(f"{key} {_value(value)}" for key, value in stage.results.items())
                lines.append(f"   Recorded: {results}.")
            if stage.changed:
                lines.append("   It was trained again since, so this line may be of another result.")
        return "\n".join(lines)

    def _data(self) -> str:
        rows = [
            (stage.name, one.use, _source(one), one.rows or "-", one.license or "not recorded", one.digest[:16] or "-")
            for stage in self.stages
            for one in stage.data
        ]
        header = ("stage", "use", "source", "rows", "license", "SHA-256")
        return Report(["## Data", Table("", header, rows, keys=len(header))]).markdown() if rows else ""

    def _evaluation(self) -> str:
        if not self.evaluations:
            return "## Evaluation\n\nThe run has no evaluation of this model."
        parts = ["## Evaluation", "By the run's own steps. Intervals are at 95%, with a prompt as the unit."]
        for stage, text in self.evaluations:
            parts += [f"### {stage}", text]
        return "\n\n".join(parts)

    def _limitations(self) -> str:
        lines = ["Those of the base model and of the data apply."]
        if self._is_reward:
            lines.append("It was trained on few kinds of prompts; a policy that maximizes it finds its mistakes.")
        elif any("reward" in stage.settings for stage in self.stages):
            lines.append("It was trained to raise a reward, which is not what people want, only close to it.")
        if self.evaluations:
            lines.append("Rewards that the run trained with also judge it above; people have not judged it.")
        lines.append("Nobody has tested it for safety.")
        return "## Limitations\n\n" + "\n".join(f"- {line}" for line in lines)

    def _reproduce(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines = ["## Reproduce", "", "```", "alignkit run recipe.yaml", "```", ""]
        lines.append(f"The stage `{self.reference}` of `recipe.yaml`, with {versions}. Its hash is `{self.hash}`.")
        return "\n".join(lines)


def _source(facts: DataFacts) -> str:
    name = f"[{facts.name}](https://huggingface.co/datasets/{facts.hub})" if facts.hub else facts.name
    return f"{name}: {facts.origin}" if facts.origin else name


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
