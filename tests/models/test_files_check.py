"""Models and adapters whose files are damaged, foreign or incomplete."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import make
from safetensors.torch import load_file, save_file

from alignkit.errors import RunFailed
from alignkit.models.models import LoadedBase
from alignkit.models.shared_model import SharedModel
from alignkit.settings import LoraSpec, ModelSpec
from alignkit_plugins.models.whole_model import WholeRewardModel

WEIGHTS = "model.safetensors"


def loaded(folder: Path) -> SharedModel:
    spec = ModelSpec(base=str(folder), dtype="float32", lora=LoraSpec(r=2), device="cpu")
    return SharedModel(spec, str(folder))


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def truncated(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000])


def text(folder: Path) -> None:
    (folder / WEIGHTS).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    )


def empty(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def incomplete(folder: Path) -> None:
    names = list(load_file(folder / WEIGHTS))
    (folder / WEIGHTS).rename(folder / "model-1.safetensors")
    index = {
        "metadata": {},
        "weight_map": {
            name: f"model-{1 + number % 2}.safetensors" for number, name in enumerate(names)
        },
    }
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def without_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()


def without_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config))


def of_another_library(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "clockwork"}))


def with_foreign_attention(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"_attn_implementation": "someone/kernel"})
    )


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def with_settings(**settings: Any) -> Callable[[Path], None]:
    return lambda folder: write_settings(folder, settings)


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    (folder / "generation_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("damage", "problem", "remedy"),
    [
        (with_settings(pad_token_id="a"), "generation_config.json cannot be read", "delete it"),
        (
            with_settings(eos_token_id=["a"]),
            "generation_config.json cannot be read (ValueError",
            "correct it",
        ),
        (pickled, "its weights in safetensors cannot be read (OSError", "again"),
        (truncated, "its weights in safetensors cannot be read (SafetensorError", "again"),
        (text, "its weights in safetensors cannot be read (", "git lfs pull"),
        (empty, "its weights in safetensors cannot be read (", "again"),
        (incomplete, "model-2.safetensors", "again"),
        (without_weights, "its weights in safetensors cannot be read (OSError", "again"),
        (without_configuration, "its configuration cannot be read (", "a transformers model"),
        (
            without_type,
            "its configuration cannot be read (ValueError: Unrecognized model",
            "a transformers model",
        ),
        (of_another_library, "model type `clockwork`", "a version that knows it"),
        (
            with_foreign_attention,
            "someone/kernel', code of a repository, which is not run",
            "trust_remote_code",
        ),
        (
            no_json,
            "its configuration cannot be read (OSError: It looks like the config file",
            "a transformers model",
        ),
    ],
)
def test_damaged_models_are_refused(
    damage: Callable[[Path], None], problem: str, remedy: str, tmp_path: Path
) -> None:
    damage(make(tmp_path, "Llama"))
    with pytest.raises(RunFailed) as caught:
        loaded(tmp_path)
    first, help = str(caught.value).split("\nhelp: ")
    assert problem in first and str(tmp_path) in first
    assert remedy in help


def of_another_base(adapter: Path) -> None:
    (adapter / "alignkit.json").unlink()  # as plain peft saves it
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "other/model"})
    )


def with_other_names(adapter: Path) -> None:
    weights = {
        key.replace("q_proj", "query"): value for key, value in load_file(adapter / FILE).items()
    }
    save_file(weights, adapter / FILE)


def cut(adapter: Path) -> None:
    (adapter / FILE).write_bytes((adapter / FILE).read_bytes()[:300])


def gone(adapter: Path) -> None:
    (adapter / FILE).unlink()


FILE = "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (of_another_base, "is an adapter for the base model 'other/model'"),
        (with_other_names, "this adapter does not fit the recipe's model.base or model.lora"),
        (cut, f"{FILE} cannot be read .SafetensorError"),
        (gone, f"{FILE} cannot be read .FileNotFoundError"),
    ],
)
def test_damaged_adapters_are_refused(
    damage: Callable[[Path], None], problem: str, tmp_path: Path
) -> None:
    policy = loaded(make(tmp_path / "base", "Llama"))
    policy.add_role("new")
    policy.save("new", tmp_path / "adapter")
    damage(tmp_path / "adapter")
    with pytest.raises(RunFailed, match=problem):
        policy.add_role("again", start=tmp_path / "adapter")
    assert list(policy.roles) == ["base", "new"]


# Code that comes with a model

OWN_CODE = """
import pathlib
pathlib.Path(__file__).with_name("it_ran").touch()
pathlib.Path("MARK").touch()
class Own: ...
"""


def with_own_code(
    folder: Path, mark: Path, name: str, auto_map: dict[str, str], **changes: str
) -> None:
    (folder / "own.py").write_text(OWN_CODE.replace("MARK", str(mark)))
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(config | {"auto_map": auto_map} | changes))


CASES: dict[str, Callable[[Path, Path], None]] = {
    "a model type of its own": lambda folder, mark: with_own_code(
        folder,
        mark,
        "config.json",
        {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"},
        model_type="own",
    ),
    "a model of a known type": lambda folder, mark: with_own_code(
        folder,
        mark,
        "config.json",
        {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.Own"},
    ),
    "a tokenizer": lambda folder, mark: with_own_code(
        folder,
        mark,
        "tokenizer_config.json",
        {"AutoTokenizer": ["own.Own", "own.Own"]},  # type: ignore[dict-item]
        tokenizer_class="Own",
    ),
}


@pytest.mark.parametrize("kind", ["base", "reward"])
@pytest.mark.parametrize("case", CASES)
def test_no_code_of_a_model_runs_unless_the_recipe_trusts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, kind: str
) -> None:
    """Also if somebody answers `y` to what transformers asks."""
    folder, mark = tmp_path / "model", tmp_path / "it_ran"
    make(folder, "Llama")
    policy = loaded(folder) if kind == "reward" else None
    weights = load_file(folder / WEIGHTS)
    head = {"score.weight": weights["model.norm.weight"][None].clone()} if kind == "reward" else {}
    save_file(weights | head, folder / WEIGHTS, metadata={"format": "pt"})
    CASES[case](folder, mark)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 10))
    try:
        if policy is None:
            loaded(folder)
        else:
            WholeRewardModel(LoadedBase(policy, Path), str(folder))
    except RunFailed as error:
        assert case == "a model of a known type" or "trust_remote_code" in str(error), error
    assert not mark.exists() and not (folder / "it_ran").exists()
