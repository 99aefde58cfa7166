"""Reward models that we save, read by transformers, peft and TRL: the same scores, alone and in
padded batches.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures import make, number_tokenizer, tokens
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from alignkit.contract.settings import LoraSpec
from alignkit.models.loading import with_padding
from alignkit.models.packing import measure
from alignkit.models.shared_model import SharedModel, Wants
from alignkit.testing.tiny import add_noise
from alignkit.tokens.encoder import Encoded
from tests.models.tiny import shared

EOS, BOS, LINE_BREAK = 1, 2, 9
PROMPTS = [(4, 5), (7, 6, 5), (4,)]
RESPONSES = [tokens(5, 1), tokens(2, 2), tokens(8, 3)]
ENDS = {"end of turn": (EOS,), "line break": (EOS, LINE_BREAK)}


def reward_model(
    folder: Path, padding: int | None, has_pad_token: bool, adapter: bool
) -> SharedModel:
    """On a base whose configuration has this padding, and a tokenizer with the same one or none."""
    make(folder, "Llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": padding}))
    tokenizer = number_tokenizer()
    tokenizer.bos_token = f"t{BOS}"
    tokenizer.pad_token = f"t{padding}" if has_pad_token and padding is not None else None
    tokenizer.save_pretrained(folder)
    policy = shared(folder, lora=LoraSpec(r=2) if adapter else None)
    policy.add_role("reward", head="scalar")
    add_noise(policy, "reward", 0.1, seed=0)
    return policy


def rows(end: tuple[int, ...]) -> list[Encoded]:
    encoded = []
    for prompt, words in zip(PROMPTS, RESPONSES, strict=True):
        answer = (*words, *end)
        encoded.append(Encoded.of(prompt, answer))
    return encoded


def scores(policy: SharedModel, role: str, groups: list[Encoded]) -> Any:
    found = measure(policy, role, groups, Wants(logprobs=False, scores=True))["scores"]
    return pytest.approx(torch.stack(found).tolist(), abs=1e-5)


def check_scores(
    model: Any, tokenizer: Any, groups: list[Encoded], wanted: Any, batches: bool
) -> None:
    sequences = [list(group.prompt + group.responses[0].tokens) for group in groups]
    alone = [float(model(input_ids=torch.tensor([ids])).logits[0, 0]) for ids in sequences]
    assert alone == wanted
    for side in ("right", "left") if batches else ():
        tokenizer.padding_side = side
        batch = tokenizer.pad({"input_ids": sequences}, return_tensors="pt")
        assert model(**batch).logits[:, 0].tolist() == wanted, side


CASES = [
    (0, True, "end of turn", True),
    (EOS, True, "line break", False),
    (EOS, False, "end of turn", True),
    (None, False, "line break", True),
    (None, True, "end of turn", False),
]


@pytest.mark.silent_bug(
    "rewards: place of the score",
    "The first end in the prompt passes for padding, or padding is expected on the right.",
    "Transformers, peft and TRL read the score at the same token as alignkit.",
    "huggingface/transformers#35352",
    "huggingface/transformers#35909",
)
@pytest.mark.parametrize(("padding", "has_pad_token", "end", "adapter"), CASES)
@torch.no_grad()
def test_strangers_read_the_same_score(
    padding: int | None, has_pad_token: bool, end: str, adapter: bool, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoModelForSequenceClassification

    policy = reward_model(tmp_path / "base", padding, has_pad_token, adapter)
    policy.save("reward", tmp_path / "reward")
    groups = rows(ENDS[end])
    wanted = scores(policy, "reward", groups)
    policy.add_role("again", start=tmp_path / "reward", head="scalar")
    assert wanted.expected == scores(policy, "again", groups)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reward")
    kind: Any = AutoModelForSequenceClassification
    if adapter:
        kind = AutoPeftModelForSequenceClassification
    model = kind.from_pretrained(tmp_path / "reward", num_labels=1, dtype=torch.float32).eval()
    check_scores(model, tokenizer, groups, wanted, batches=padding is not None or not adapter)
    # TRL's RewardTrainer tells the model which token its tokenizer pads with.
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    check_scores(model, tokenizer, groups, wanted, batches=True)


def test_a_policy_keeps_its_tokenizer(tmp_path: Path) -> None:
    policy = reward_model(tmp_path / "base", None, False, True)
    policy.add_role("policy")
    policy.save("policy", tmp_path / "policy")
    assert AutoTokenizer.from_pretrained(tmp_path / "policy").pad_token is None


@torch.no_grad()
def test_adapters_of_earlier_versions_are_read_at_the_last_token(tmp_path: Path) -> None:
    policy = reward_model(tmp_path / "base", EOS, True, True)
    policy.save("reward", tmp_path / "old")
    weights = tmp_path / "old" / "adapter_model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt"})
    policy.add_role("old", start=tmp_path / "old", head="scalar")
    policy.roles["reward"].pad_token_id = None
    groups = rows((EOS,))
    wanted = scores(policy, "reward", groups)
    assert scores(policy, "old", groups).expected == wanted
    policy.roles["old"].pad_token_id = EOS
    assert scores(policy, "old", groups).expected != wanted


def test_padding_is_a_token_that_ends_no_turn() -> None:
    config = SimpleNamespace(pad_token_id=None)
    config.get_text_config = lambda: config
    tokenizer = number_tokenizer()
    tokenizer.pad_token, tokenizer.bos_token = tokenizer.eos_token, "t7"
    assert with_padding(tokenizer, config).pad_token == "t7"
    assert tokenizer.pad_token == tokenizer.eos_token
