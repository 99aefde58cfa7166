"""Reward models that we save, read by transformers, peft and TRL: the same scores, alone and in
padded batches.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import make, number_tokenizer, tokens
from safetensors.torch import load_file, save_file

from alignkit.data.group import Group
from alignkit.models.loading import with_padding
from alignkit.models.packing import Wants, measure
from alignkit.models.shared_model import SharedModel
from alignkit.settings import LoraSpec, ModelSpec
from alignkit.tokens.encoder import Encoded, ResponseTokens

EOS, BOS, LINE_BREAK = 1, 2, 9
SCORES = Wants(logprobs=False, scores=True)
PROMPTS = [(4, 5), (7, 6, 5), (4,)]
RESPONSES = [tokens(5, 1), tokens(2, 2), tokens(8, 3)]
ENDS = {"end of turn": (EOS,), "line break": (EOS, LINE_BREAK)}


def base(folder: Path, padding: int | None, has_pad_token: bool) -> Path:
    """A base whose configuration has this padding, and a tokenizer with the same one or none."""
    make(folder, "Llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": padding}))
    tokenizer = number_tokenizer()
    tokenizer.bos_token = f"t{BOS}"
    tokenizer.pad_token = f"t{padding}" if has_pad_token and padding is not None else None
    tokenizer.save_pretrained(folder)
    return folder


def reward_model(folder: Path, lora: LoraSpec | None) -> SharedModel:
    policy = SharedModel(
        ModelSpec(base=str(folder), dtype="float32", lora=lora, device="cpu"), str(folder)
    )
    policy.add_role("reward", head="scalar")
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters_of("reward").values()):
            parameter += 0.1 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(number)
            )
    return policy


def rows(end: tuple[int, ...]) -> list[Encoded]:
    return [
        Encoded(
            Group((), id=str(n)),
            prompt,
            (ResponseTokens((*words, *end), (True,) * (len(words) + len(end))),),
        )
        for n, (prompt, words) in enumerate(zip(PROMPTS, RESPONSES, strict=True))
    ]


def stranger(folder: Path, lora: LoraSpec | None) -> Any:
    if lora is None:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
    from peft import AutoPeftModelForSequenceClassification

    return AutoPeftModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32
    ).eval()


def check_scores(
    model: Any, tokenizer: Any, groups: list[Encoded], wanted: list[float], batches: bool
) -> None:
    sequences = [list(group.prompt + group.rows[0].tokens) for group in groups]
    alone = [float(model(input_ids=torch.tensor([ids])).logits[0, 0]) for ids in sequences]
    assert alone == pytest.approx(wanted, abs=1e-5)
    for side in ("right", "left") if batches else ():
        tokenizer.padding_side = side
        batch = tokenizer.pad({"input_ids": sequences}, return_tensors="pt")
        assert model(**batch).logits[:, 0].tolist() == pytest.approx(wanted, abs=1e-5), side


# Half of the product, in which every pair of values occurs; `make slow` has all of it.
VALUES: tuple[list[Any], ...] = ([0, EOS, None], [True, False], list(ENDS), [LoraSpec(r=2), None])
CASES = [
    pytest.param(
        *(values[place] for values, place in zip(VALUES, places, strict=True)),
        marks=pytest.mark.slow if sum(places) % 2 else (),
    )
    for places in product(*(range(len(values)) for values in VALUES))
]


@pytest.mark.silent_bug(
    "rewards: place of the score",
    "The first end in the prompt passes for padding, or padding is expected on the right.",
    "Transformers, peft and TRL read the score at the same token as alignkit.",
    "huggingface/transformers#35352",
    "huggingface/transformers#35909",
)
@pytest.mark.parametrize(("padding", "has_pad_token", "end", "lora"), CASES)
@torch.no_grad()
def test_strangers_read_the_same_score(
    padding: int | None, has_pad_token: bool, end: str, lora: LoraSpec | None, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    policy = reward_model(base(tmp_path / "base", padding, has_pad_token), lora)
    policy.save("reward", tmp_path / "reward")
    groups = rows(ENDS[end])
    wanted = torch.stack(measure(policy, "reward", groups, SCORES)["scores"]).tolist()
    policy.add_role("again", start=tmp_path / "reward", head="scalar")
    assert torch.stack(
        measure(policy, "again", groups, SCORES)["scores"]
    ).tolist() == pytest.approx(wanted, abs=1e-6)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reward")
    model = stranger(tmp_path / "reward", lora)
    check_scores(model, tokenizer, groups, wanted, batches=padding is not None or lora is None)
    # TRL's RewardTrainer tells the model which token its tokenizer pads with.
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    check_scores(model, tokenizer, groups, wanted, batches=True)


def test_a_policy_keeps_its_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    policy = reward_model(base(tmp_path / "base", None, False), LoraSpec(r=2))
    policy.add_role("policy")
    policy.save("policy", tmp_path / "policy")
    assert AutoTokenizer.from_pretrained(tmp_path / "policy").pad_token is None


@torch.no_grad()
def test_adapters_of_earlier_versions_are_read_at_the_last_token(tmp_path: Path) -> None:
    policy = reward_model(base(tmp_path / "base", EOS, True), LoraSpec(r=2))
    policy.save("reward", tmp_path / "old")
    weights = tmp_path / "old" / "adapter_model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt"})
    policy.add_role("old", start=tmp_path / "old", head="scalar")
    policy.roles["reward"].unread = None
    groups = rows((EOS,))
    found, wanted = (
        torch.stack(measure(policy, role, groups, SCORES)["scores"]) for role in ("old", "reward")
    )
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    policy.roles["old"].unread = EOS
    assert not torch.allclose(
        torch.stack(measure(policy, "old", groups, SCORES)["scores"]), wanted, atol=1e-3
    )


def test_padding_is_a_token_that_ends_no_turn() -> None:
    class Config:
        pad_token_id = None

        def get_text_config(self) -> Config:
            return self

    tokenizer = number_tokenizer()
    tokenizer.pad_token, tokenizer.bos_token = tokenizer.eos_token, "t7"
    assert with_padding(tokenizer, Config()).pad_token == "t7"
    assert tokenizer.pad_token == tokenizer.eos_token
