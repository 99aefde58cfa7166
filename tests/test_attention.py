"""Packed rows, decoding and sampling against transformers' own attention and `generate`, one sequence at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit import Group
from alignkit import functional as F
from alignkit.errors import DataError, RunFailed
from alignkit.kernels import attention, tiled_attention
from alignkit.kernels import decoding as decoding_module
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.decoding import Decoding
from alignkit.kernels.layout import GroupSpan
from alignkit.models import sampling as sampling_module
from alignkit.models.encoding import Encoded, Encoder, ResponseTokens
from alignkit.models.next_token import choose, inverse_cdf
from alignkit.models.packing import pack
from alignkit.models.sampling import Sampling, sample
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.settings import LoraSpec, ModelSpec

VOCABULARY = 97
LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,  # tied, a random model repeats the token it reads
}
# Windows are shorter than the sequences below, so that they matter.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": LLAMA,
    "Qwen2": LLAMA,
    "Gemma2": {**LLAMA, "head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 2.0},
    "Mistral": {**LLAMA, "sliding_window": 5},
    "GPT2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "tie_word_embeddings": False,
    },  # absolute positions, and dropout by default
    # Values of another size than queries.
    "DeepseekV2": {
        **LLAMA,
        **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim"), 8),
        **{"v_head_dim": 4, "num_key_value_heads": 4, "first_k_dense_replace": 2, "n_routed_experts": 4},
    },
    # Layers of different sizes.
    "Gemma4Text": {
        **{**LLAMA, "head_dim": 8, "global_head_dim": 16, "sliding_window": 6},
        **{"layer_types": ["sliding_attention", "full_attention"]},
        **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY},
    },
}
# Attention of their own: Bloom's ignores what was asked for (ALiBi is added in it), GPT-J's refuses to load with it.
UNPACKED: dict[str, dict[str, Any]] = {
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "tie_word_embeddings": False},
    "GPTJ": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    # Asks for attention twice a layer, which one place in the cache cannot keep.
    "DiffLlama": LLAMA,
    # Its window is in its mask alone, longer than what is compared when it is loaded.
    "Qwen2Moe": {
        **LLAMA,
        **{"use_sliding_window": True, "sliding_window": 14, "max_window_layers": 2, "num_experts": 4},
        **{"num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    },
    # Scales queries by their place in the row; its inner model is not where its code says.
    "Llama4Text": {
        **{**LLAMA, "num_hidden_layers": 4, "head_dim": 8, "intermediate_size_mlp": 64},
        **{"num_local_experts": 2, "attention_chunk_size": 6},
    },
}
# Prompt and response lengths: siblings, none, one token, longer than every window.
RAGGED = [(7, (5, 1, 9)), (3, (4,)), (6, ()), (1, (8, 2))]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """A second thread makes models of this size slower, much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(folder: Path, name: str) -> Path:
    """A random model with the tokens t0 ... t96, t1 being the end; a prompt is what its messages say."""
    import transformers

    options = {**ARCHITECTURES, **UNPACKED}[name]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCABULARY, bos_token_id=None, eos_token_id=1, pad_token_id=0, **options
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.normal_(0.0, 0.2)  # the usual 0.02 leaves attention without effect at this size
    model.save_pretrained(folder)
    words_of_numbers().save_pretrained(folder)
    return folder


def words_of_numbers() -> Any:
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
    policy = SharedModel(ModelSpec(base=str(folder), dtype="float32", lora=None, device="cpu"), str(folder))
    policy.tokenizer = words_of_numbers()  # transformers chooses some tokenizers by the model's type, not by the file
    return policy


def plain(policy: SharedModel) -> Any:
    """The same model with transformers' eager attention and nothing of ours."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(policy.source, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SharedModel:
    found = load(make(tmp_path_factory.mktemp(request.param), request.param))
    assert found.packs, found.unpacked_because
    return found


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> SharedModel:
    return load(make(tmp_path_factory.mktemp("llama"), "Llama"))


@pytest.fixture(scope="module", params=list(UNPACKED))
def unpacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SharedModel:
    return load(make(tmp_path_factory.mktemp(request.param), request.param))


@pytest.fixture(params=["one mask", "split responses", "tiles"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every way to compute a group's attention, whichever its shape would select."""
    split = request.param == "split responses"
    if request.param == "tiles":
        monkeypatch.setattr(
            TreeLayout, "__init__", partialmethod(TreeLayout.__init__, costs=tiled_attention.ALWAYS_TILE)
        )
        monkeypatch.setattr(tiled_attention, "QUERIES", 2)
    monkeypatch.setattr(
        GroupSpan, "split_responses", property(lambda s: split and len(s.responses) > 0 < min(s.responses))
    )
    return str(request.param)


def tokens(count: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(2, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


def ragged() -> list[Encoded]:
    found = []
    for g, (prompt, lengths) in enumerate(RAGGED):
        rows = [tokens(n, 100 * g + r) for r, n in enumerate(lengths)]
        group = Group((), id=str(g))
        found.append(
            Encoded(group, tokens(prompt, 1000 + g), tuple(ResponseTokens(row, (True,) * len(row)) for row in rows))
        )
    return found


@torch.no_grad()
def logprobs_alone(model: Any, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    row = torch.tensor([[*prompt, *response]])
    return F.token_logprobs(model(input_ids=row).logits[0, :-1], row[0, 1:])[len(prompt) - 1 :]


def check_logprobs(policy: SharedModel) -> None:
    groups = ragged()
    row = pack(groups)
    with torch.no_grad():
        hidden = policy.hidden(BASE, row.layout, row.tokens)
        found, _ = policy.logprobs(BASE, hidden[row.before], row.targets)
    model = plain(policy)
    wanted = torch.cat([logprobs_alone(model, g.prompt, r.tokens) for g in groups for r in g.rows])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_a_packed_tree_is_separate_rows(policy: SharedModel, way: str) -> None:
    check_logprobs(policy)


def test_packed_hidden_states_at_prompts_and_responses(policy: SharedModel, way: str) -> None:
    groups = ragged()
    row = pack(groups)
    with torch.no_grad():
        found = policy.hidden(BASE, row.layout, row.tokens)
        model = getattr(model := plain(policy), model.base_model_prefix)
        parts = []
        for group in groups:
            prompt = list(group.prompt)
            parts.append(model(input_ids=torch.tensor([prompt])).last_hidden_state[0])
            for response in group.rows:
                whole = model(input_ids=torch.tensor([prompt + list(response.tokens)])).last_hidden_state[0]
                parts.append(whole[len(prompt) :])
    torch.testing.assert_close(found, torch.cat(parts), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "responses", "split"),
    [(60, (25,) * 6, True), (60, (20, 25, 25, 25, 25), True), (256, (128, 128), False),
     (20, (200, 5), False), (9, (7,), False),
     (30, (), False), (30, (20, 0, 20, 20, 20), False)],
)  # fmt: skip
def test_responses_are_split_if_that_saves_products(prompt: int, responses: tuple[int, ...], split: bool) -> None:
    assert GroupSpan(0, prompt, responses).split_responses is split


def test_gradients_of_a_packed_tree(policy: SharedModel, way: str) -> None:
    groups = ragged()
    role = policy.add_role("trained")
    try:
        parameters = policy.make_trainable("trained")
        row = pack(groups)
        hidden = policy.hidden("trained", row.layout, row.tokens)
        weights = torch.linspace(-1, 1, len(row.targets))
        (policy.logprobs("trained", hidden[row.before], row.targets)[0] * weights).sum().backward()
        model = plain(policy)
        at = 0
        for group in groups:
            for response in group.rows:
                ids = torch.tensor([[*group.prompt, *response.tokens]])
                logprobs = F.token_logprobs(model(input_ids=ids).logits[0, :-1], ids[0, 1:])[len(group.prompt) - 1 :]
                (logprobs * weights[at : at + len(logprobs)]).sum().backward()
                at += len(logprobs)
        wanted = {name: p.grad for name, p in model.named_parameters()}
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter.grad, wanted[name], atol=1e-4, rtol=1e-4, msg=name)
    finally:
        assert role.model is not policy.model
        policy.drop_role("trained")


@torch.no_grad()
def test_decoding_is_the_full_forward(policy: SharedModel) -> None:
    """Rows of different prompts, one of which leaves half-way."""
    model = plain(policy)
    prompts = [tokens(7, 1), tokens(2, 2), tokens(4, 3)]
    starts = [0, 7, 9]
    prefill = TreeLayout([GroupSpan(s, len(p), ()) for s, p in zip(starts, prompts, strict=True)], store_kv=True)
    policy.hidden(BASE, prefill, torch.tensor([t for p in prompts for t in p]))
    owners = [0, 1, 1, 2]
    decoding = Decoding()
    decoding.update_rows([], 10, prefill, owners)
    rows = [(*prompts[owner], *tokens(8, 10 + n)) for n, owner in enumerate(owners)]
    lengths = [len(prompts[owner]) for owner in owners]
    for step in range(8):
        if step == 4:
            decoding.update_rows([0, 2, 3], 6)
            rows, lengths = [rows[0], *rows[2:]], [lengths[0], *lengths[2:]]
        new = torch.tensor([[row[n + step]] for row, n in zip(rows, lengths, strict=True)])
        positions = torch.tensor([[n + step] for n in lengths])
        with attention.using(decoding), policy.using_role(BASE) as ours:
            backbone = getattr(ours, ours.base_model_prefix)
            states = backbone(input_ids=new, position_ids=positions, use_cache=False).last_hidden_state
        decoding.advance()
        found = policy.next_logits(BASE, states[:, 0])
        for row, n, logits in zip(rows, lengths, found, strict=True):
            wanted = model(input_ids=torch.tensor([row[: n + step + 1]])).logits[0, -1]
            torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("entering", [2, 9])
def test_rows_enter_while_others_go_on(policy: SharedModel, entering: int) -> None:
    """One with a shorter prompt than what stands there by then, and one with a longer."""
    model = plain(policy)
    lengths = [4, 2, 6, entering]
    rows = [tokens(n + 8, 30 + number) for number, n in enumerate(lengths)]
    decoding, at, active = Decoding(), list(lengths), [0, 1, 2]

    def enter(keep: Sequence[int], new: Sequence[int]) -> None:
        starts = [sum(lengths[n] for n in new[:i]) for i in range(len(new))]
        segments = [GroupSpan(start, lengths[n], ()) for start, n in zip(starts, new, strict=True)]
        prefill = TreeLayout(segments, store_kv=True)
        policy.hidden(BASE, prefill, torch.tensor([t for n in new for t in rows[n][: lengths[n]]]))
        decoding.update_rows(keep, 8, prefill, range(len(new)))

    enter([], active)
    for step in range(7):
        if step == 3:
            enter([0, 2], [3])
            active = [0, 2, 3]
        new = torch.tensor([[rows[n][at[n]]] for n in active])
        positions = torch.tensor([[at[n]] for n in active])
        with attention.using(decoding), policy.using_role(BASE) as ours:
            backbone = getattr(ours, ours.base_model_prefix)
            states = backbone(input_ids=new, position_ids=positions, use_cache=False).last_hidden_state
        decoding.advance()
        for n, logits in zip(active, policy.next_logits(BASE, states[:, 0]), strict=True):
            at[n] += 1
            wanted = model(input_ids=torch.tensor([rows[n][: at[n]]])).logits[0, -1]
            torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)


def test_sequences_end_where_positions_would_change_for_a_whole_row(tmp_path: Path) -> None:
    """Phi-3's: transformers chooses short or long factors by the longest sequence beside a token."""
    from transformers import Phi3Config

    config = Phi3Config(max_position_embeddings=64, original_max_position_embeddings=16, rope_parameters={
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48, "long_factor": [4.0] * 48})  # fmt: skip
    policy = load(make(tmp_path / "llama", "Llama"))
    assert policy.context == policy.model.config.max_position_embeddings
    policy.model.config = config
    assert policy.context == 16


# Adapters


@pytest.mark.parametrize(
    ("name", "layers"), [("Llama", "all-linear"), ("GPT2", "all-linear"), ("Llama", r".*\.1\..*_proj")]
)
def test_an_adapter_adds_what_peft_adds(name: str, layers: str, tmp_path: Path) -> None:
    """Values and gradients, on linear layers and on others (GPT-2's are `Conv1D`), on all or those of a pattern, beside
    adapters that came and went.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = make(tmp_path / "base", name)
    lora = LoraSpec(r=2, lora_alpha=7, target_modules=layers)
    policy = SharedModel(ModelSpec(base=str(folder), dtype="float32", lora=lora, device="cpu"), str(folder))
    policy.add_role("first")
    policy.add_role("new")
    policy.add_role("last")
    policy.drop_role("first")
    policy.drop_role("last")
    parameters = policy.make_trainable("new")
    with torch.no_grad():
        for number, parameter in enumerate(parameters.values()):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    policy.save("new", tmp_path / "adapter")
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tmp_path / "adapter", is_trainable=True
    )
    assert len(parameters) == len([p for p in model.parameters() if p.requires_grad])
    ids = torch.tensor(tokens(9, 3))
    wanted = model(input_ids=ids[None]).logits[0]
    found = policy.next_logits("new", policy.hidden("new", TreeLayout([GroupSpan(0, 9, ())]), ids))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(
        found, policy.next_logits(BASE, policy.hidden(BASE, TreeLayout([GroupSpan(0, 9, ())]), ids))
    )
    for logits in (wanted, found):
        torch.log_softmax(logits, dim=-1)[:, 5].sum().backward()
    theirs = {key.removeprefix("base_model.model."): p.grad for key, p in model.named_parameters()}
    for key, parameter in parameters.items():
        assert parameter.grad is not None
        gradient = theirs[key.replace(".role_new.", ".default.")]
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-4, rtol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


# Layers computed twice


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_layers_computed_twice_give_the_same_gradients(
    name: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two roles in one backward, which runs as neither of them and when other rows have been seen."""
    folder = make(tmp_path, name)
    spec = ModelSpec(base=str(folder), dtype="float32", lora=LoraSpec(r=2, lora_alpha=4), device="cpu")
    policy = SharedModel(spec, str(folder))
    policy.add_role("new")
    policy.add_role("value", start="new", head="scalar")
    parameters = {role: policy.make_trainable(role) for role in ("new", "value")}
    with torch.no_grad():
        for number, parameter in enumerate(p for own in parameters.values() for p in own.values()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    row = pack(ragged())

    def gradients() -> list[Tensor]:
        logprobs, _ = policy.logprobs("new", policy.hidden("new", row.layout, row.tokens)[row.before], row.targets)
        values = policy.scalars("value", policy.hidden("value", row.layout, row.tokens)[row.before])
        loss = (logprobs * torch.arange(len(logprobs)) + values.square()).sum()
        policy.hidden(BASE, TreeLayout([GroupSpan(0, 4, ())]), row.tokens[:4])
        found = torch.autograd.grad(loss, [p for own in parameters.values() for p in own.values()])
        assert policy.active_adapter.name is None
        return list(found)

    kept = gradients()
    assert policy.recomputed == 0 and all(gradient.any() for gradient in kept)
    monkeypatch.setattr("alignkit.models.budget.total", lambda device: 0.0)
    again = gradients()
    assert policy.recomputed == 3  # the pass as another role, too
    for one, other in zip(again, kept, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        gradients_off = policy.hidden("new", row.layout, row.tokens)
    assert policy.recomputed == 3 and not gradients_off.requires_grad


# Sampling


def questions(count: int) -> list[Group]:
    """Prompts of 1 to 9 tokens."""
    texts = [" ".join(f"t{t}" for t in tokens(1 + n % 9, 50 + n)) for n in range(count)]
    return [Group(({"role": "user", "content": text},), id=str(n)) for n, text in enumerate(texts)]


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many rows stayed each time that finished sequences left."""
    seen: list[int] = []
    original = Decoding.update_rows

    def spy(self: Decoding, keep: Sequence[int], *others: Any) -> None:
        seen.append(len(keep))
        original(self, keep, *others)

    monkeypatch.setattr(Decoding, "update_rows", spy)
    yield seen


def encoder_with_ends(policy: SharedModel, ends: Sequence[int]) -> Encoder:
    encoder = Encoder(policy.tokenizer)
    encoder.__dict__["end_ids"] = frozenset(ends)
    return encoder


def check_greedy(policy: SharedModel, count: int = 20, length: int = 12) -> None:
    groups = questions(count)
    model = plain(policy)
    ends = list(range(1, VOCABULARY, 9))  # a ninth of all tokens end a response: rows finish at different steps
    wanted = []
    for group in groups:
        ids = torch.tensor([policy.tokenizer(group.prompt[0]["content"])["input_ids"]])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=length,
            eos_token_id=ends,
            pad_token_id=0,
        )
        wanted.append(tuple(out[0, ids.shape[1] :].tolist()))
    assert len({len(row) for row in wanted}) > 2
    encoder = encoder_with_ends(policy, ends)
    found = sample(policy, BASE, encoder, groups, Sampling(1, length, temperature=0.0), seed=0)
    assert [group.responses[0].tokens for group in found] == wanted
    assert [group.responses[0].truncated for group in found] == [row[-1] not in ends for row in wanted]


def test_greedy_sampling_is_generate(policy: SharedModel, copies: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    check_greedy(policy)
    monkeypatch.setattr(decoding_module, "BLOCK", 3)  # small blocks skip the columns that all of their rows leave empty
    check_greedy(policy)
    assert len(copies) > 1
    copies.clear()
    monkeypatch.setattr(sampling_module, "ROWS", 6)  # some enter when others have left
    check_greedy(policy)
    assert any(0 < kept < 6 for kept in copies) and len(copies) > 6
    monkeypatch.setattr(sampling_module, "CACHE_BYTES", 1)  # one at a time
    check_greedy(policy)


def test_processors_change_what_is_chosen_and_not_what_is_told(
    llama: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers' own processors; one that looks back sees prompt and response as `generate` shows them."""
    from transformers import NoRepeatNGramLogitsProcessor, SuppressTokensLogitsProcessor

    groups, encoder, banned = questions(8), encoder_with_ends(llama, [1]), list(range(2, 50))
    plain_ = Sampling(2, 12, temperature=0.0)
    for rows in (128, 3):
        monkeypatch.setattr(sampling_module, "ROWS", rows)
        found = sample(
            llama, BASE, encoder, groups, replace(plain_, processors=[SuppressTokensLogitsProcessor(banned)]), seed=0
        )
        written = [r for g in found for r in g.responses]
        assert not any(set(r.tokens or ()) & set(banned) for r in written)
        encoded = [e for g in found if (e := encoder.encode(g, 64)) is not None]
        row = pack(encoded)
        with torch.no_grad():
            hidden = llama.hidden(BASE, row.layout, row.tokens)
            policys, _ = llama.logprobs(BASE, hidden[row.before], row.targets)
        torch.testing.assert_close(
            torch.tensor([x for r in written for x in r.logprobs or ()]), policys, atol=1e-4, rtol=0
        )
        once = sample(
            llama, BASE, encoder, groups, replace(plain_, processors=[NoRepeatNGramLogitsProcessor(1)]), seed=0
        )
        for group, response in ((g, r) for g in once for r in g.responses):
            whole = [*encoder.prompt(group.prompt), *(response.tokens or ())]
            new = whole[-len(response.tokens or ()) :]
            assert len(set(new)) == len(new) and not set(new) & set(whole[: -len(new)])


@pytest.mark.parametrize("wrong", [float("-inf"), float("nan")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_processors_that_leave_no_token_are_an_error(llama: SharedModel, wrong: float, temperature: float) -> None:
    sampling = Sampling(1, 4, temperature=temperature, processors=[lambda ids, logits: torch.full_like(logits, wrong)])
    with pytest.raises(RunFailed, match="logits processors"):
        sample(llama, BASE, Encoder(llama.tokenizer), questions(2), sampling, seed=0)


def test_processors_are_not_asked_about_what_has_ended(llama: SharedModel) -> None:
    """One that allows nothing behind the end, as those of grammars do; the ended stay beside the others for a while."""
    ends = list(range(1, 8))

    def grammar(ids: Tensor, logits: Tensor) -> Tensor:
        over = torch.isin(ids[:, -1], torch.tensor(ends)) & (ids.shape[1] > 5)
        return logits.masked_fill(over[:, None], float("-inf"))

    groups = [Group(({"role": "user", "content": " ".join(f"t{t}" for t in range(60, 65))},)) for _ in range(12)]
    encoder = encoder_with_ends(llama, ends)
    found = sample(llama, BASE, encoder, groups, Sampling(1, 9, processors=[grammar]), seed=0)
    lengths = {len(r.tokens or ()) for g in found for r in g.responses}
    assert len(lengths) > 1, "some end before others"


@pytest.mark.parametrize(
    ("options", "told"),
    [({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"), ({"top_k": -1}, "top_k must be at least 0, not -1"),
     ({"temperature": -1.0}, "temperature must be at least 0"), ({"temperature": float("nan")}, "0, not nan")],
)  # fmt: skip
def test_sampling_that_means_nothing_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Sampling(**options)


def test_a_prompt_without_a_token_has_no_response(llama: SharedModel) -> None:
    with pytest.raises(DataError, match="cannot sample from an empty prompt"):
        sample(llama, BASE, Encoder(llama.tokenizer), [*questions(1), Group(())], Sampling(1, 4), seed=0)


def test_sampled_logprobs_are_those_of_the_training_path(policy: SharedModel) -> None:
    groups = questions(6)
    encoder = Encoder(policy.tokenizer)
    found = sample(policy, BASE, encoder, groups, Sampling(3, 8, temperature=0.7), seed=1)
    encoded = [e for g in found if (e := encoder.encode(g, 64)) is not None]
    row = pack(encoded)
    with torch.no_grad():
        hidden = policy.hidden(BASE, row.layout, row.tokens)
        again, _ = policy.logprobs(BASE, hidden[row.before], row.targets, temperature=0.7)
    sampled = [x for g in found for r in g.responses for x in r.logprobs or ()]
    torch.testing.assert_close(torch.tensor(sampled), again, atol=1e-4, rtol=0)


def test_a_sample_does_not_depend_on_its_company(llama: SharedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, encoder = questions(10), encoder_with_ends(llama, range(1, 12))
    sampling = Sampling(4, 10)

    def draw(groups: Sequence[Group], sampling: Sampling, seed: int = 5, place: str = "a") -> list[list[Any]]:
        found = sample(llama, BASE, encoder, groups, sampling, seed=seed, place=(place,))
        return [[response.tokens for response in group.responses] for group in found]

    all_of_them = draw(groups, sampling)
    assert draw(groups[:3], sampling) == all_of_them[:3]
    assert draw(groups, replace(sampling, samples_per_prompt=2)) == [rows[:2] for rows in all_of_them]
    monkeypatch.setattr(sampling_module, "ROWS", 3)
    assert draw(groups, sampling) == all_of_them
    # Siblings, seeds and places differ.
    assert all(len(set(rows)) == len(rows) for rows in all_of_them)
    assert draw(groups, sampling, seed=6) != all_of_them
    assert draw(groups, sampling, place="b") != all_of_them


@pytest.mark.parametrize("rows", [128, 7])
def test_no_end_before_min_new_tokens(llama: SharedModel, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_module, "ROWS", rows)  # with 7 rows of different lengths stand beside each other
    ends = set(range(1, 90))
    encoder = encoder_with_ends(llama, sorted(ends))
    groups = questions(5)
    for temperature in (0.0, 1.0):
        sampling = Sampling(4, 6, min_new_tokens=3, temperature=temperature)
        found = sample(llama, BASE, encoder, groups, sampling, seed=0)
        rows = [response.tokens or () for group in found for response in group.responses]
        assert all(not ends & set(row[:3]) and not ends & set(row[:-1]) for row in rows)
        assert 4 in {len(row) for row in rows}
        assert all(len(row) > 3 for row in rows)


def test_prompts_enter_in_parts_that_fit_the_token_budget(llama: SharedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, encoder, sampling = questions(12), encoder_with_ends(llama, range(1, 12)), Sampling(3, 10)
    wanted = [g.responses for g in sample(llama, BASE, encoder, groups, sampling, seed=5)]
    monkeypatch.setattr(SharedModel, "token_budget", property(lambda self: 5))
    parts: list[int] = []
    original = SharedModel.hidden

    def spy(self: SharedModel, name: str, packed: TreeLayout, tokens: Tensor) -> Tensor:
        parts.append(len(tokens))
        return original(self, name, packed, tokens)

    monkeypatch.setattr(SharedModel, "hidden", spy)
    found = [g.responses for g in sample(llama, BASE, encoder, groups, sampling, seed=5)]
    assert [[r.tokens for r in rows] for rows in found] == [[r.tokens for r in rows] for rows in wanted]
    assert len(parts) > 2 and max(parts) <= 20  # as when many tokens are measured, four times the budget


def test_the_cache_keeps_to_its_bound(llama: SharedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    bound, held = 40_000, []
    monkeypatch.setattr(sampling_module, "CACHE_BYTES", bound)
    original = Decoding.update_rows

    def spy(self: Decoding, *given: Any) -> None:
        original(self, *given)
        held.append(sum(x.numel() * x.element_size() for pair in self.cache.layers.values() for x in pair))

    monkeypatch.setattr(Decoding, "update_rows", spy)
    sample(llama, BASE, encoder_with_ends(llama, range(1, 12)), questions(30), Sampling(2, 12), seed=5)
    assert len(held) > 5 and bound / 3 < max(held) <= bound


def test_a_stop_string_ends_a_response_and_stays(llama: SharedModel) -> None:
    encoder, groups = Encoder(llama.tokenizer), questions(8)
    free = sample(llama, BASE, encoder, groups, Sampling(2, 12), seed=2)
    stops = (" ".join(free[0].responses[0].text.split()[4:6]), free[1].responses[1].text.split()[7])
    found = sample(llama, BASE, encoder, groups, Sampling(2, 12, stop=stops), seed=2)
    cut = 0
    for before, after in zip(free, found, strict=True):
        for long, short in zip(before.responses, after.responses, strict=True):
            words = (long.tokens or ())[: len(short.tokens or ())]
            assert short.tokens == words
            assert not any(stop in encoder.decode(words[:-1]) for stop in stops)
            if len(words) < len(long.tokens or ()):
                assert any(stop in short.text for stop in stops)
                assert not short.truncated
                cut += 1
    assert cut >= 2


def frequencies(logits: Tensor, sampling: Sampling, draws: int = 20_000) -> tuple[Tensor, Tensor]:
    """Shares of the tokens chosen over evenly spread draws, and their log-probabilities (0: never chosen)."""
    u = ((torch.arange(draws) + 0.5) / draws).tolist()
    chosen, logprobs = choose(logits.expand(draws, -1), u, sampling, [0] * draws, frozenset({0}))
    found = torch.zeros(logits.shape[-1]).index_put((chosen,), logprobs)
    return torch.bincount(chosen, minlength=logits.shape[-1]) / draws, found


@pytest.mark.parametrize("size", [3, 256, 257, 5000])
def test_inverse_cdf_is_that_of_the_whole_vocabulary(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    weights = torch.rand(50, size, generator=generator) ** 8
    weights[torch.rand(50, size, generator=generator) < 0.5] = 0
    weights[:, [0, -1]] = 0
    weights[:, size // 2] += 0.01
    for scale in (1.0, 1e-6):
        for draws in (torch.rand(50, generator=generator, dtype=torch.float64), torch.zeros(50).double()):
            cumulative = (scale * weights.double()).cumsum(dim=-1)
            wanted = draws[:, None] * cumulative[:, -1:]
            found = inverse_cdf(scale * weights, draws)[:, None]
            # Off by rounding at most: the draw lies between the sums before and after what was chosen.
            slack = 1e-6 * cumulative[:, -1:]
            before = cumulative.gather(1, found) - scale * weights.double().gather(1, found)
            assert bool((before <= wanted + slack).all() and (wanted <= cumulative.gather(1, found) + slack).all())
            assert bool((weights.gather(1, found) > 0).all())
    nearly_one = torch.full((50,), 1 - 2**-53, dtype=torch.float64)
    assert bool((weights.gather(1, inverse_cdf(weights, nearly_one)[:, None]) > 0).all())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_choose_draws_from_the_filtered_policy(temperature: float) -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    full = torch.softmax(logits[0] / temperature, -1)
    order = full.argsort(descending=True)

    def kept(count: int) -> Tensor:
        return torch.where(torch.isin(torch.arange(12), order[:count]), full, 0.0)

    nucleus = int((full[order].cumsum(0) < 0.6).sum()) + 1
    without_end = full.clone()
    without_end[0] = 0.0
    for sampling, allowed in (
        (Sampling(temperature=temperature), full),
        (Sampling(temperature=temperature, top_k=3), kept(3)),
        (Sampling(temperature=temperature, top_k=50), full),
        (Sampling(temperature=temperature, top_p=0.6), kept(nucleus)),
        (Sampling(temperature=temperature, top_p=1e-6), kept(1)),
        (Sampling(temperature=temperature, min_new_tokens=1), without_end),
    ):
        shares, logprobs = frequencies(logits, sampling)
        torch.testing.assert_close(shares, allowed / allowed.sum(), atol=2e-4, rtol=0)
        assert not bool(((shares > 0) & (allowed == 0)).any())
        # What is reported is the unfiltered policy's, which old log-probabilities are compared with.
        torch.testing.assert_close(logprobs, torch.where(shares > 0, full.log(), 0.0))


# Models that cannot be packed


def test_attention_that_ignores_the_layout_falls_back(unpacked: SharedModel) -> None:
    assert not unpacked.packs
    said = {"DiffLlama": "decoding token by token differs", "Qwen2Moe": "its window of 14 tokens is only in its own mask",
            "Llama4": "it scales queries by their position"}  # fmt: skip
    assert said.get(type(unpacked.model).__name__.removesuffix("ForCausalLM"), "") in unpacked.unpacked_because
    assert unpacked.unpacked_because
    check_logprobs(unpacked)
    check_greedy(unpacked, count=8)
