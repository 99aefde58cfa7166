"""What the words of `alignkit evaluate` mean."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from alignkit.errors import RecipeError
from alignkit_plugins.policies.named_models import named_model

LORA = {"r": 4, "lora_alpha": 8}


def test_a_stage_has_the_settings_of_its_run(first_run: Path) -> None:
    found = named_model(str(first_run / "sft"))
    template = str(first_run.parent / "words.jinja")
    assert {**found.spec, "lora": LORA} == {
        "base": "tiny",
        "dtype": "float32",
        "chat_template": template,
        "lora": LORA,
    }
    assert found.spec["lora"] == LORA
    assert (found.folder, found.reward) == ((first_run / "sft" / "adapter").resolve(), False)
    assert found.label == "run-sft" and found.rollout == {}


def test_versions_reward_models_and_samples(first_run: Path) -> None:
    assert named_model(f"{first_run}/sft@1").folder == (first_run / "sft" / "kept" / "1").resolve()
    assert named_model(f"{first_run}/liked").reward
    rollout = named_model(f"{first_run}/online").rollout
    assert (rollout["max_new_tokens"], rollout["temperature"]) == (6, 0.5)


def test_the_folder_of_an_adapter_in_a_run_is_its_stage(first_run: Path) -> None:
    assert named_model(f"{first_run}/sft/adapter") == named_model(f"{first_run}/sft")


def test_an_adapter_outside_of_a_run(first_run: Path, tmp_path: Path) -> None:
    shutil.copytree(first_run / "liked" / "adapter", tmp_path / "mine")
    found = named_model(str(tmp_path / "mine"))
    assert found.spec == {"base": "tiny", "lora": LORA}
    assert found.reward and found.folder == tmp_path / "mine"


def test_base_models(first_run: Path, tmp_path: Path) -> None:
    base = named_model(f"{first_run}/base")
    assert base.folder is None and base.spec["chat_template"].endswith("words.jinja")
    assert named_model("owner/name").spec == {"base": "owner/name"}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"]})
    )
    found = named_model(str(tmp_path / "model"))
    assert (
        found.spec == {"base": str(tmp_path / "model")}
        and found.folder is None
        and not found.reward
    )


def test_a_whole_reward_model_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForSequenceClassification"]})
    )
    found = named_model(str(tmp_path))
    assert found.reward and found.spec == {} and found.folder == tmp_path


def test_all_weights_of_a_stage_are_a_base(whole_run: Path) -> None:
    found = named_model(f"{whole_run}/sft")
    assert found.folder is None and found.label == "run-sft"
    assert found.spec == {
        "base": str((whole_run / "sft" / "adapter").resolve()),
        "dtype": "float32",
    }


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("", "is a run: name one of its stages"),
        ("sfd", "did you mean 'sft'"),
        ("sft@9", "9"),
        ("cache", "has no stage 'cache'"),
        ("..", "holds neither an adapter"),
        ("../rum", "there is no folder .*/rum\n.*did you mean '.*/run'"),
    ],
)
def test_words_that_mean_no_model(first_run: Path, word: str, said: str) -> None:
    with pytest.raises((RecipeError, Exception), match=said):
        named_model(f"{first_run}/{word}" if word else str(first_run))


def test_a_word_that_is_almost_a_run_is_said_before_the_hub_is_asked(
    first_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs := first_run.parent / "elsewhere" / "runs").mkdir(parents=True)
    (runs / "quickstart").symlink_to(first_run)
    monkeypatch.chdir(runs.parent)
    assert named_model("quickstrat").spec == {"base": "quickstrat"}
    assert (
        "note: quickstrat is no run, so it is taken as a model of the hub; did you mean "
        "'runs/quickstart'?" in (capsys.readouterr().err)
    )
    for word in ("tiny", "gpt2", "my-org/quickstrat"):
        named_model(word)
    assert capsys.readouterr().err == ""
