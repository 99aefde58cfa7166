"""Whole models beside the recipe's: each scores and samples with its own tokenizer and chat
template.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.contract.settings import LoraSpec, ModelSpec
from alignkit.data.group import Group, Response, read_groups
from alignkit.errors import OtherTokenizer
from alignkit.models.models import LoadedModel, Models
from alignkit.models.shared_model import SharedModel
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import Run
from alignkit.runs.signals import should_stop
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.compare.rows import KL
from tests.rows import assistant, prompts, run, user, write_recipe

# No token covers both the end of a prompt and the start of its answer, so the whole text has the
# same tokens.
TEMPLATE = (
    "{% for message in messages %}{{ '[' + message['role'] + ']<|im_start|>' + "
    "message['content'] + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ "
    "'[assistant]<|im_start|>' }}{% endif %}"
)
TINY = {"base": "tiny", "dtype": "float32", "lora": {"r": 4, "lora_alpha": 8}}


def make_tokenizer(offset: int, kept: int = 0) -> Any:
    """The byte-level tokenizer of `tiny` with shifted ids, but for the first `kept`, and another
    chat template.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from alignkit_plugins.bases.tiny import END, PAD, START, _tokenizer

    content = json.loads(_tokenizer().backend_tokenizer.to_str())
    ids, size = content["model"]["vocab"], len(content["model"]["vocab"])
    for token, number in ids.items():
        if number >= kept:
            ids[token] = kept + (number - kept + offset) % (size - kept)
    for token in content["added_tokens"]:
        token["id"] = ids[token["content"]]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model(folder: Path, offset: int = 7) -> Path:
    """A small model with a tokenizer and weights of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(offset)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(offset)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("shifted"))


@torch.no_grad()
def score(model: Path, group: Group, answer: str) -> float:
    """What transformers says of an answer, without alignkit."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    text = tokenizer.apply_chat_template([*group.prompt, assistant(answer)], tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    network = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32)
    return float(network.eval()(input_ids=ids).logits[0, 0])


def test_a_whole_reward_model_scores_text(shifted: Path, tmp_path: Path) -> None:
    """One that another recipe trained, on another base model with another tokenizer."""
    (tmp_path / "first").mkdir()
    liked = "liked: {algorithm: reward_model, data: pairs.jsonl, learning_rate: 0.01}"
    whole = {"base": str(shifted), "dtype": "float32", "lora": "none"}
    model = run(write_recipe(tmp_path / "first", liked, whole)) / "liked" / "adapter"
    align = f"""
    align:
      algorithm: ppo
      reward: {{folder: {model}}}
      prompts: prompts.jsonl
      iterations: 1
      prompts_per_iteration: 3
      rollout: {{samples_per_prompt: 2, max_new_tokens: 9}}
    """
    out = run(write_recipe(tmp_path, align))
    groups = read_groups(out / "align" / "rollouts" / "0001.jsonl")
    # Transformers reads control tokens in an answer
    rows = [(g, r) for g in groups for r in g.responses if "<|" not in r.text]
    assert len(rows) > 4 and all(response.tokens for _, response in rows)
    for group, response in rows:
        wanted = score(model, group, response.text)
        assert response.scores["reward"] == pytest.approx(wanted, abs=1e-5)


def test_a_whole_policy_is_compared_by_its_text(shifted: Path, tmp_path: Path) -> None:
    """By rewards, but not by log-probabilities: it answers with its own tokenizer and chat
    template.
    """
    both = f"""
    both:
      step: evaluate
      policies: [base, {shifted}]
      baseline: base
      rewards: [length]
      prompts: prompts.jsonl
      sampling: {{max_new_tokens: 7}}
    """
    made = Run(load_recipe(write_recipe(tmp_path, both)), tmp_path / "out")
    made.execute()
    results = made.store.record("both")["summary"]["results"]
    base, small = (row for row in results if row["metric"] == KL)
    assert base["policy"] == "base" and base["estimate"]["mean"] == 0.0
    assert small["estimate"].get("mean") is None and small["missing"] == 3
    made.models.enter(made.recipe.stages["both"].whole_models)
    service = made.models.of(str(shifted))
    assert service.model.should_stop is should_stop
    for group in read_groups(tmp_path / "out/both/samples.jsonl"):
        for response in group.responses:
            found = service.encoder.encode(Group(group.prompt, (response,)), 400)
            assert found is not None
            assert (found.responses[0].tokens == response.tokens) == (response.source != "base")
            assert service.encoder.decode(found.responses[0].tokens) == response.text


@pytest.fixture(scope="module")
def services(shifted: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    """`tiny`, and a model with another tokenizer."""
    import alignkit_plugins.bases.tiny

    made, tiny = {}, alignkit_plugins.bases.tiny.source(tmp_path_factory.mktemp("cache"))
    for name, source in (("base", tiny), ("small", shifted)):
        spec = ModelSpec(base=name, dtype="float32", device="cpu", lora=LoraSpec(r=2))
        made[name] = LoadedModel(SharedModel(spec, str(source)), Path, name=name)
    return made


def test_whole_models_are_freed_when_the_next_stage_does_not_use_them(
    services: dict[str, LoadedModel],
) -> None:
    opened: list[str] = []
    models = Models(lambda name: (opened.append(name), services[name])[1])
    for whole in (("small",), ("small",), ()):
        models.enter(whole)
        assert models["small" if whole else "align"].loaded.name == (whole or ("base",))[0]
    assert list(models.opened) == ["base"] and opened == ["small", "base"]


def test_log_probabilities_need_the_same_tokenizer(services: dict[str, LoadedModel]) -> None:
    router = Models(services.__getitem__)
    router.enter(("small",))
    groups = router["base"].sample(prompts(["what is it?"]), seed=0, max_new_tokens=6)
    with pytest.raises(OtherTokenizer, match=r"'small' has another tokenizer.*'what is it\?'"):
        router["small"].logprobs(groups)
    digests = {Encoder(make_tokenizer(offset, kept=3)).digest for offset in (0, 0, 5)}
    assert len(digests) == 2  # their ends of turn are the same token


def test_a_whole_model_reads_tokens_whose_tokenizer_nobody_named_as_text(
    services: dict[str, LoadedModel],
) -> None:
    whole = Group((user("what is 0?"),), (Response(text="it is"),))
    group = Group(whole.prompt, (Response(text="it is", tokens=(5, 6, 7)),))
    assert len(services["base"]["base"].logprobs([group])[0]) == 3
    small = services["small"]["small"]
    torch.testing.assert_close(small.logprobs([group]), small.logprobs([whole]))
