"""Models, adapters and tokenizers whose files are damaged, foreign or incomplete."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from architectures import make
from safetensors.torch import load_file, save_file

from alignkit.errors import RunFailed
from alignkit.models import shared_model
from alignkit.models.models import LoadedModel, WholeRewardModel
from tests.models.tiny import shared

WEIGHTS, CONFIG = "model.safetensors", "config.json"
TOKENS, ADAPTER = "tokenizer.json", "adapter_model.safetensors"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
Damage = Callable[[Path], object]


def changed(name: str, change: Callable[[Any], Any]) -> Damage:
    """A file of JSON that holds something else."""

    def damage(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps(change(json.loads(file.read_text()))))

    return damage


def holding(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:300])


def without(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def incomplete(folder: Path) -> None:
    """A file of weights is missing."""
    names = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-2.safetensors")}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def of_qwen_without_words(folder: Path) -> None:
    """transformers then makes a tokenizer of one token."""
    (folder / TOKENS).unlink()
    (folder / "tokenizer_config.json").unlink()
    changed(CONFIG, lambda old: old | {"model_type": "qwen3"})(folder)


def with_a_new_token(tokenizer: Any) -> Any:
    tokenizer["model"]["vocab"]["next"] = 97
    return tokenizer


UNREADABLE = "its weights in safetensors cannot be read ("
FOREIGN = {"_attn_implementation": "someone/kernel"}


@pytest.mark.silent_bug(
    "models: added tokens",
    "Rows of added tokens are learned and not saved.",
    "A tokenizer with more ids than embeddings is refused.",
    "artidoro/qlora#214",
)
@pytest.mark.parametrize(
    ("damage", "problem", "remedy"),
    [
        (holding("generation_config.json", b'{"pad_token_id": "a"}'), "cannot be read", "delete"),
        (holding("generation_config.json", b'{"eos_token_id": ["a"]}'), "(ValueError", "correct"),
        (pickled, f"{UNREADABLE}OSError", "again"),
        (cut(WEIGHTS), f"{UNREADABLE}SafetensorError", "again"),
        (holding(WEIGHTS, LFS), UNREADABLE, "git lfs pull"),
        (incomplete, "model-2.safetensors", "again"),
        (without(CONFIG), "its configuration cannot be read (", "a transformers model"),
        (holding(CONFIG, b"{}"), "(ValueError: Unrecognized model", "a transformers model"),
        (holding(CONFIG, b'{"model_type": "clockwork"}'), "`clockwork`", "a version that knows it"),
        (changed(CONFIG, lambda old: old | FOREIGN), "'someone/kernel', code", "trust_remote_code"),
        (
            changed(TOKENS, with_a_new_token),
            "the token 'next' with the id 97, but the model has only 97",
            "belongs to",
        ),
        (holding(TOKENS, b"{}"), "its tokenizer cannot be read (KeyError", ""),
        (
            of_qwen_without_words,
            "tokenizer cannot be read (FileNotFoundError: no",
            "copy the token",
        ),
    ],
)
def test_damaged_models_are_refused(
    damage: Damage, problem: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any weight is read, if the tokenizer is at fault."""
    damage(make(tmp_path, "Llama"))
    if "token" in problem:
        monkeypatch.setattr(
            shared_model, "load_network", lambda *_: pytest.fail("weights were read")
        )
    with pytest.raises(RunFailed) as caught:
        shared(tmp_path)
    first, help = str(caught.value).split("\nhelp: ")
    assert problem in first and str(tmp_path) in first and remedy in help


def of_another_base(adapter: Path) -> None:
    (adapter / "alignkit.json").unlink()  # as plain peft saves it
    other = {"base_model_name_or_path": "other/model"}
    changed("adapter_config.json", lambda old: old | other)(adapter)


def with_other_names(adapter: Path) -> None:
    weights = load_file(adapter / ADAPTER)
    renamed = {key.replace("q_proj", "query"): value for key, value in weights.items()}
    save_file(renamed, adapter / ADAPTER)


def in_one_layer(adapter: Path) -> None:
    changed("adapter_config.json", lambda old: old | {"layers_to_transform": [0]})(adapter)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (in_one_layer, r"has layers_to_transform \[0\](?s:.*)\nhelp: merge it .*merge_and_unload"),
        (with_other_names, r'\nhelp: set model.lora.target_modules to its own, \["'),
        (of_another_base, "an adapter for the base model 'other/model'"),
        (with_other_names, "does not fit the recipe's model.base or model.lora"),
        (cut(ADAPTER), f"{ADAPTER} cannot be read .SafetensorError"),
        (without("adapter_config.json"), r"adapter_config\.json"),
    ],
)
def test_damaged_adapters_are_refused_and_leave_nothing_behind(
    damage: Damage, problem: str, tmp_path: Path
) -> None:
    policy = shared()
    policy.add_role("new.1")
    policy.save("new.1", tmp_path / "whole")
    policy.save("new.1", tmp_path / "adapter")
    damage(tmp_path / "adapter")
    for _ in range(2):  # a second attempt fails the same way
        with pytest.raises(RunFailed, match=problem):
            policy.add_role("bad", start=tmp_path / "adapter")
    assert list(policy.roles) == ["base", "new.1"]
    assert not any(parameter.requires_grad for parameter in policy.model.parameters())
    policy.add_role("new_1", start=tmp_path / "whole")
    assert policy.parameters_of("new_1") and policy.parameters_of("new.1")


# Code that comes with a model

OWN_CODE = """
import pathlib
pathlib.Path(__file__).with_name("it_ran").touch()
class Own: ...
"""
# The file that names the code, and what it says
CASES: dict[str, tuple[str, dict[str, Any]]] = yaml.safe_load("""
a model type of its own:
- config.json
- {auto_map: {AutoConfig: own.Own, AutoModelForCausalLM: own.Own}, model_type: own}
a model of a known type:
- config.json
- {auto_map: {AutoConfig: own.Own, AutoModelForSequenceClassification: own.Own}}
a tokenizer:
- tokenizer_config.json
- {auto_map: {AutoTokenizer: [own.Own, own.Own]}, tokenizer_class: Own}
""")


@pytest.mark.parametrize("kind", ["base", "reward"])
@pytest.mark.parametrize("case", CASES)
def test_no_code_of_a_model_runs_unless_the_recipe_trusts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, kind: str
) -> None:
    """Also if somebody answers `y` to what transformers asks."""
    folder = make(tmp_path / "model", "Llama")
    policy = shared(folder) if kind == "reward" else None
    weights = load_file(folder / WEIGHTS)
    head = {"score.weight": weights["model.norm.weight"][None].clone()} if policy else {}
    save_file(weights | head, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "own.py").write_text(OWN_CODE.replace("__file__", repr(str(folder / "own.py"))))
    name, names = CASES[case]
    changed(name, lambda old: old | names)(folder)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 10))
    try:
        if policy is None:
            shared(folder)
        else:
            WholeRewardModel(LoadedModel(policy, Path), str(folder))
    except RunFailed as error:
        assert case == "a model of a known type" or "trust_remote_code" in str(error), error
    assert not (folder / "it_ran").exists()
