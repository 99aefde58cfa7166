"""Small random models of several architectures, and what transformers computes with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from alignkit.contract.settings import Sampling
from alignkit.data.group import Group
from alignkit.models.packing import pack
from alignkit.models.shared_model import UNMODIFIED, SharedModel
from alignkit.tokens.encoder import Encoded, Encoder
from tests.by_hand import token_logprobs
from tests.models.tiny import shared
from tests.sampled import assert_same_tokens, sample

VOCABULARY = 97
# A ninth of all tokens end a greedy answer, so rows finish at different steps
ENDS = range(1, VOCABULARY, 9)


# A class of transformers without its `Config`, and what differs from Llama. Windows are shorter than
# the sequences below, so that they have an effect; with tied weights a random model repeats its
# input.
TABLE = yaml.safe_load("""
llama: &llama
  hidden_size: 32
  intermediate_size: 64
  num_hidden_layers: 2
  num_attention_heads: 4
  num_key_value_heads: 2
  tie_word_embeddings: false
gpt2: &gpt2 {n_embd: 32, n_layer: 2, n_head: 4, tie_word_embeddings: false}
compressed: &compressed  # values differ in size from queries
  q_lora_rank: 8
  kv_lora_rank: 8
  qk_rope_head_dim: 8
  qk_nope_head_dim: 8
  v_head_dim: 4
local: &local {<<: *llama, num_local_experts: 4, num_experts_per_tok: 2}
experts: &experts {<<: *llama, num_experts: 4, num_experts_per_tok: 2}
small: &small {<<: *experts, head_dim: 8, moe_intermediate_size: 16}
grouped: &grouped
  <<: *llama
  head_dim: 8
  moe_intermediate_size: 16
  num_experts_per_tok: 2
  n_routed_experts: 4
  first_k_dense_replace: 1
  n_group: 2
  topk_group: 1
windows: &windows {layer_types: [sliding_attention, full_attention]}
linear: &linear {layer_types: [linear_attention, full_attention]}

packed:
  Llama: *llama
  Qwen2: *llama
  Gemma2: {<<: *llama, head_dim: 8, sliding_window: 4, attn_logit_softcapping: 2.0}
  Mistral: {<<: *llama, sliding_window: 5}
  GPT2: *gpt2  # absolute positions, and dropout by default
  DeepseekV2:
    <<: [*compressed, *llama]
    num_key_value_heads: 4
    first_k_dense_replace: 2
    n_routed_experts: 4
  Gemma4Text:  # layers differ in size
    <<: [*windows, *llama]
    head_dim: 8
    global_head_dim: 16
    sliding_window: 6
    hidden_size_per_layer_input: 8
    vocab_size_per_layer_input: 97

# Bloom ignores the requested implementation (it adds ALiBi), GPT-J refuses to load with it.
unpacked:
  Bloom: {hidden_size: 32, n_layer: 2, n_head: 4, tie_word_embeddings: false}
  GPTJ: {n_embd: 32, n_layer: 2, n_head: 4, rotary_dim: 4}
  DiffLlama: *llama  # calls attention twice per layer, but a layer has one entry in the cache
  Qwen2Moe:  # its window is only in its mask, and longer than the rows compared at loading
    <<: *experts
    use_sliding_window: true
    sliding_window: 14
    max_window_layers: 2
    moe_intermediate_size: 16
    shared_expert_intermediate_size: 16
  Llama4Text:  # scales queries by their position; its backbone is not where its prefix says
    <<: *llama
    num_hidden_layers: 4
    head_dim: 8
    intermediate_size_mlp: 64
    num_local_experts: 2
    attention_chunk_size: 6
  GptOss: {<<: [*windows, *local], head_dim: 8, sliding_window: 6}  # a sink besides the keys
  FalconH1:  # a state space next to attention in every layer
    <<: *llama
    head_dim: 8
    mamba_d_ssm: 32
    mamba_n_heads: 4
    mamba_d_head: 8
    mamba_n_groups: 1
    mamba_d_state: 8
    mamba_chunk_size: 8

# Their stacked weights and routers are wrapped by peft, too, if it is asked for every linear layer.
mixtures:
  Mixtral: *local
  Qwen3Moe: *small
  Olmoe: *experts
  Phimoe: *local
  GraniteMoe: *local
  GraniteMoeShared: {<<: *local, shared_intermediate_size: 16}
  Ernie4_5_Moe:
    <<: *llama
    moe_num_experts: 4
    moe_k: 2
    moe_num_shared_experts: 1
    moe_intermediate_size: 16
  MiniMax: {<<: [*linear, *local], head_dim: 8, block_size: 4}
  FlexOlmo: *experts
  DeepseekV3: {<<: [*compressed, *grouped], num_key_value_heads: 4, head_dim: null}
  Glm4Moe: *grouped
  MiniMaxM2: {<<: *local, head_dim: 8, rotary_dim: 4}
  Afmoe:
    <<: [*windows, *small]
    num_shared_experts: 1
    num_dense_layers: 1
    sliding_window: 5
  Qwen3Next:  # also layers that are no attention
    <<: [*linear, *small]
    shared_expert_intermediate_size: 16
    linear_num_value_heads: 4
    linear_num_key_heads: 2
    linear_key_head_dim: 8
    linear_value_head_dim: 8

# No attention, or not in every layer, so no keys and values.
state spaces:
  Mamba: &mamba {hidden_size: 32, state_size: 8, num_hidden_layers: 2}
  Mamba2: {<<: *mamba, num_heads: 8, head_dim: 8, n_groups: 2}
  RecurrentGemma: {<<: *llama, num_hidden_layers: 3, attention_window_size: 6, lru_width: 32}
  Jamba:
    <<: *experts
    attn_layer_period: 2
    attn_layer_offset: 1
    expert_layer_period: 2
    expert_layer_offset: 1
    mamba_d_state: 8
    mamba_dt_rank: 4
    use_mamba_kernels: false
""")
ARCHITECTURES: dict[str, dict[str, Any]]
ARCHITECTURES, UNPACKED, MIXTURES, STATE_SPACES = (
    TABLE[kind] for kind in ("packed", "unpacked", "mixtures", "state spaces")
)


# Ways to compute a group's attention, of the fixture `way`.
WAYS = ("one mask", "split responses", "tiles", "one call", "reference")


# Prompt and response lengths: several responses, none, one token, longer than every window.
RAGGED = [(7, (5, 1, 9)), (3, (4,)), (6, ()), (1, (8, 2))]


def make(folder: Path, name: str) -> Path:
    """Save a random model with tokens t0 ... t96; t1 is the end. Its chat template only joins the
    messages.
    """
    import transformers

    options = {**ARCHITECTURES, **UNPACKED, **MIXTURES, **STATE_SPACES}[name]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCABULARY, bos_token_id=None, eos_token_id=1, pad_token_id=0, **options
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    # With the usual 0.02, attention has no effect at this size
                    weight.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    number_tokenizer().save_pretrained(folder)
    if name.startswith("Qwen2"):  # its tokenizer adds this token, whatever the file holds
        file = folder / "tokenizer.json"
        file.write_text(file.read_text().replace(f'"t{VOCABULARY - 1}"', '"<|endoftext|>"'))
    return folder


def number_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="t0",
        eos_token="t1",
        chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}",
        clean_up_tokenization_spaces=False,
    )


def load(folder: Path) -> SharedModel:
    policy = shared(folder, lora=None)
    # Transformers selects some tokenizers by model type, not by file
    policy.tokenizer = number_tokenizer()
    return policy


def plain(policy: SharedModel) -> Any:
    """The same model with transformers' eager attention and none of our code."""
    return _plain(str(policy.source))


@cache
def _plain(source: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def tokens(count: int, seed: int) -> tuple[int, ...]:
    return tuple(
        torch.randint(
            2, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)
        ).tolist()
    )


def ragged() -> list[Encoded]:
    found = []
    for g, (prompt, lengths) in enumerate(RAGGED):
        rows = [tokens(n, 100 * g + r) for r, n in enumerate(lengths)]
        plain = Encoded.of(tokens(prompt, 1000 + g), *rows)
        found.append(replace(plain, group=Group((), id=str(g))))
    return found


def logprobs_of(model: Any, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """Of a response alone."""
    row = torch.tensor([[*prompt, *response]])
    return token_logprobs(model(input_ids=row).logits[0, :-1], row[0, 1:])[len(prompt) - 1 :]


logprobs_alone = torch.no_grad()(logprobs_of)


def packed_logprobs(policy: SharedModel, role: str) -> Tensor:
    """Of all responses of `ragged`, in one packed."""
    packed = pack(ragged())
    hidden = policy.hidden(role, packed.layout, packed.tokens)
    return policy.logprobs(role, hidden[packed.before], packed.targets)[0]


def check_logprobs(policy: SharedModel) -> None:
    groups = ragged()
    with torch.no_grad():
        found = packed_logprobs(policy, UNMODIFIED)
    model = plain(policy)
    wanted = torch.cat(
        [logprobs_alone(model, g.prompt, r.tokens) for g in groups for r in g.responses]
    )
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def questions(count: int) -> list[Group]:
    """Prompts of 1 to 9 tokens."""
    # t0 and t1 are special, so they and words that begin with them would be read as ordinary text.
    texts = [" ".join(f"t{20 + t % 80}" for t in tokens(1 + n % 9, 50 + n)) for n in range(count)]
    return [Group(({"role": "user", "content": text},), id=str(n)) for n, text in enumerate(texts)]


def encoder_with_ends(policy: SharedModel, ends: Sequence[int]) -> Encoder:
    encoder = Encoder(policy.tokenizer)
    encoder.__dict__["end_ids"] = frozenset(ends)
    return encoder


@cache
def generated(
    source: str, prompts: tuple[tuple[int, ...], ...], length: int
) -> list[tuple[int, ...]]:
    """The greedy answers of transformers' `generate`, one prompt at a time."""
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = _plain(source).generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=length,
            eos_token_id=list(ENDS),
            pad_token_id=0,
        )
        answers.append(tuple(out[0, len(prompt) :].tolist()))
    return answers


def check_greedy(policy: SharedModel, count: int = 20, length: int = 12) -> None:
    groups = questions(count)
    texts = [group.prompt[0]["content"] for group in groups]
    wanted = generated(
        str(policy.source), tuple(map(tuple, policy.tokenizer(texts)["input_ids"])), length
    )
    assert len({len(row) for row in wanted}) > 2
    encoder = encoder_with_ends(policy, ENDS)
    found = sample(
        policy,
        UNMODIFIED,
        encoder,
        groups,
        Sampling(max_new_tokens=length, temperature=0.0),
        seed=0,
    )
    responses = [group.responses[0] for group in found]
    starts = assert_same_tokens(responses, wanted)
    for response, row, start in zip(responses, wanted, starts, strict=True):
        assert start < len(row) or response.truncated == (row[-1] not in ENDS)
