"""The model card: a header that the hub reads, and the facts that a reader needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from exported import export
from huggingface_hub import ModelCard

from alignkit.settings import LoraSpec, ModelSpec
from alignkit_apps.export.card import Card
from alignkit_apps.export.provenance import DataFacts, StageFacts
from alignkit_apps.export.usage import Loading

LOADING = Loading("mine", "mine", "mine", "adapter", is_reward=False, base="me/base", hub=True, rank=8)
DATA = DataFacts("prompts", "trl-lib/tldr, train", "5", "MIT", "a | b", "f" * 64, "trl-lib/tldr")
STAGE = StageFacts("align", "online_dpo", "sft", {"learning_rate": 1e-6, "reward": "length"}, [DATA], {"prompts": 5})


def card(loading: Loading = LOADING, spec: dict[str, Any] | None = None, **keys: Any) -> str:
    """A card of made-up facts."""
    model = ModelSpec(base="me/base", lora=LoraSpec(r=8), **(spec or {}))
    facts: dict[str, Any] = {"stages": [STAGE], "evaluations": [], "versions": {"torch": "2"}, "notes": [], "hash": "h"}
    return Card(loading, "align", model, **{**facts, **keys}).text()


@pytest.mark.parametrize(
    ("stage", "form", "library", "task", "tags"),
    [
        ("sft", [], "peft", "text-generation", ["alignkit", "sft", "lora"]),
        ("sft", ["--merge"], "transformers", "text-generation", ["alignkit", "sft"]),
        ("sft", ["--gguf"], "llama.cpp", "text-generation", ["alignkit", "sft", "gguf"]),
        ("liked", ["--merge"], "transformers", "text-classification", ["alignkit", "reward-model"]),
    ],
)
def test_the_header(
    stage: str, form: list[str], library: str, task: str, tags: list[str], lora_run: Path, tmp_path: Path
) -> None:
    assert export(lora_run / stage, tmp_path / "out", *form, "--base", "me/tiny", "--license", "mit") == 0
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.library_name, data.pipeline_tag, data.tags) == (library, task, tags)
    assert (data.base_model, data.license, data.datasets) == ("me/tiny", "mit", None)


def test_bases_and_data_of_the_hub() -> None:
    data = ModelCard(card(license="apache-2.0")).data
    assert data.base_model == "me/base" and data.datasets == ["trl-lib/tldr"]
    assert data.to_dict()["base_model_relation"] == "adapter"
    private = ModelCard(card(Loading("mine", "mine", "mine", "adapter", is_reward=False, base="tiny"))).data
    assert private.base_model is None and private.license is None


def test_facts() -> None:
    text = card(digest="abc", notes=["weights are rounded"])
    assert "1. **align** (online_dpo) from sft: learning_rate 1e-06, reward length." in text
    assert (
        "| align | prompts | [trl-lib/tldr, train](https://huggingface.co/datasets/trl-lib/tldr): a \\| b | 5 |" in text
    )
    assert "Recorded: prompts 5." in text and "LoRA, r 8, alpha" in text
    assert "- Note: weights are rounded." in text and "`abc`" in text
    assert "It was trained to raise a reward" in text
    assert "alignkit run recipe.yaml" in text and "with torch 2. Its hash is `h`." in text


def test_evaluations() -> None:
    assert "The run has no evaluation of this model." in card()
    text = card(evaluations=[("report", "| a |")])
    assert "### report\n\n| a |" in text and "people have not judged it" in text


def test_how_conversations_were_rendered() -> None:
    spec = {"chat_template_kwargs": {"enable_thinking": False}, "reasoning": "empty", "system_messages": "merge"}
    text = card(spec=spec | {"date": "2026-11-22"})
    assert "`apply_chat_template(..., enable_thinking=False)`" in text
    assert "a closed, empty block of reasoning" in text
    assert "system messages in front of the next user message" in text and "the day 2026-11-22" in text
    assert "enable_thinking" not in card()


def test_a_reward_model() -> None:
    text = card(Loading("mine", "mine", "mine", "adapter", is_reward=True, base="me/base", hub=True))
    assert "one number, without a sigmoid" in text
    assert "vLLM loads no reward model from an adapter (modules_to_save): export it with --merge." in text


def test_a_stage_that_was_trained_again() -> None:
    stage = StageFacts("sft", "sft", "the base model", {}, [], {}, changed=True)
    assert "It was trained again since" in card(stages=[stage])


def test_nothing_acts_on_a_terminal() -> None:
    assert "\x1b" not in card(notes=["\x1b[31mred"])
