"""Whole models beside the recipe's: each scores and samples with its own tokenizer and chat
template.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit.data.group import Group, Response, read_groups
from alignkit.errors import OtherTokenizer
from alignkit.models.memory import Passes
from alignkit.models.models import LoadedBase, Models
from alignkit.models.shared_model import SharedModel
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import Run
from alignkit.settings import LoraSpec, ModelSpec
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.compare.rows import KL
from tests.rows import run, write_recipe

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

    from alignkit_plugins.models.tiny import END, PAD, START, _tokenizer

    content = json.loads(_tokenizer().backend_tokenizer.to_str())
    size = len(content["model"]["vocab"])
    shifted = {
        token: number if number < kept else kept + (number - kept + offset) % (size - kept)
        for token, number in content["model"]["vocab"].items()
    }
    content["model"]["vocab"] = dict(sorted(shifted.items(), key=lambda item: item[1]))
    for token in content["added_tokens"]:
        token["id"] = shifted[token["content"]]
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


def direct(source: Path, model: Path) -> Callable[[str, str], float]:
    """What transformers says of a prompt and a response, without alignkit."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    network = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()

    @torch.no_grad()
    def score(question: str, answer: str) -> float:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        return float(network(input_ids=ids).logits[0, 0])

    return score


def is_comparable(response: Response) -> bool:
    """Whether transformers tokenizes a text as alignkit does, which reads no control token in an
    answer.
    """
    return "<|" not in response.text


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
    score = direct(shifted, model)
    groups = read_groups(out / "align" / "rollouts" / "0001.jsonl")
    pairs = [
        (group, response)
        for group in groups
        for response in group.responses
        if is_comparable(response)
    ]
    assert len(pairs) > 4 and all(response.tokens for _, response in pairs)
    for group, response in pairs:
        wanted = score(group.prompt[-1]["content"], response.text)
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
    base, small = sorted(
        (row for row in results if row["metric"] == KL), key=lambda row: row["policy"] != "base"
    )
    assert base["policy"] == "base" and base["estimate"]["mean"] == 0.0
    assert small["estimate"].get("mean") is None and small["missing"] == 3
    made.models.enter(made.recipe.stages["both"].whole_models)
    service = made.models.of(str(shifted))
    assert service.model.source == str(shifted)
    assert service.model.tokenizer.chat_template == TEMPLATE
    for group in read_groups(tmp_path / "out/both/samples.jsonl"):
        for response in group.responses:
            found = service.encoder.encode(Group(group.prompt, (response,)), 400)
            assert found is not None
            assert (found.rows[0].tokens == response.tokens) == (response.source != "base")
            assert service.encoder.decode(found.rows[0].tokens) == response.text


def test_whole_models_are_freed_when_the_next_stage_does_not_use_them() -> None:
    opened: list[str] = []

    def open(base: str) -> Any:
        opened.append(base)
        service = LoadedBase.__new__(LoadedBase)
        service.name, service.model = base, torch.nn.Module()  # type: ignore[assignment]
        service.model.device, service.model.passes = torch.device("cpu"), Passes()  # type: ignore[assignment]
        service.encoder = None  # type: ignore[assignment]
        return service

    models = Models(open)
    models.enter(("/small",))
    assert opened == [] and models["sft"].base.name == "base"
    assert models["/small"].base.name == "/small"
    models.enter(("/small",))
    assert models["/small"].base.name == "/small" and models["align"].base.name == "base"
    models.enter(())
    assert list(models.bases) == ["base"] and opened == ["base", "/small"]


@pytest.fixture(scope="module")
def services(shifted: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedBase]:
    """`tiny`, a model with its tokenizer and other weights, and one with another tokenizer."""
    import alignkit_plugins.models.tiny

    tiny = str(alignkit_plugins.models.tiny.source(tmp_path_factory.mktemp("cache")))
    lora = LoraSpec(r=2, lora_alpha=4)
    made = {}
    for name, source in (("base", tiny), ("twin", tiny), ("small", str(shifted))):
        model = SharedModel(ModelSpec(base=name, dtype="float32", device="cpu", lora=lora), source)
        made[name] = LoadedBase(model, Path, name=name)
    with torch.no_grad():
        for weight in made["twin"].model.model.parameters():
            weight.mul_(1.1)
    return made


def asked(count: int) -> list[list[Any]]:
    return [[{"role": "user", "content": f"what is {n}?"}] for n in range(count)]


def test_log_probabilities_need_the_same_tokenizer(services: dict[str, LoadedBase]) -> None:
    router = Models(services.__getitem__)
    router.enter(("twin", "small"))
    groups = router["base"].sample(
        [Group(tuple(one)) for one in asked(3)], seed=0, max_new_tokens=6
    )
    ours, theirs = router["base"].logprobs(groups), router["twin"].logprobs(groups)
    for group, row, other in zip(groups, ours, theirs, strict=True):
        (response,) = group.responses
        assert response.tokens is not None and len(row) == len(other) == len(response.tokens)
        wanted = plain_logprobs(services["twin"], group, response.tokens)
        torch.testing.assert_close(other, wanted, atol=1e-5, rtol=1e-5)
        assert float((row - other).abs().max()) > 1e-3
    with pytest.raises(OtherTokenizer, match=r"'small' has another tokenizer.*'what is 0\?'"):
        router["small"].logprobs(groups)
    digests = {Encoder(make_tokenizer(offset, kept=3)).digest for offset in (0, 0, 5)}
    assert len(digests) == 2  # their ends of turn are the same token


def test_a_whole_model_reads_tokens_whose_tokenizer_nobody_named_as_text(
    services: dict[str, LoadedBase],
) -> None:
    group = Group(asked(1)[0], (Response(text="it is", tokens=(5, 6, 7)),))
    whole, small = Group(group.prompt, (Response(text="it is"),)), services["small"]["small"]
    assert len(services["base"]["base"].logprobs([group])[0]) == 3
    torch.testing.assert_close(small.logprobs([group]), small.logprobs([whole]))


@torch.no_grad()
def plain_logprobs(service: LoadedBase, group: Group, tokens: Sequence[int]) -> Tensor:
    prompt = service.encoder.prompt(group.prompt)
    layout_free = torch.tensor([[*prompt, *tokens]])
    service.model.model.set_attn_implementation("eager")
    try:
        logits = service.model.model(input_ids=layout_free).logits[0].float()
    finally:
        service.model.model.set_attn_implementation("alignkit")
    rows = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    return rows.gather(1, torch.tensor(tokens)[:, None])[:, 0]
