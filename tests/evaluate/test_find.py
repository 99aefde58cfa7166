"""What words of a command line name: `find` and `find_run`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from alignkit.errors import RecipeError
from alignkit_plugins.models.find import find, find_run

LORA = {"r": 4, "lora_alpha": 8}


def test_a_stage_has_the_settings_of_its_run(first_run: Path) -> None:
    found = find(str(first_run / "sft"))
    template = str(first_run.parent / "words.jinja")
    assert {**found.keys, "lora": LORA} == {
        "base": "tiny",
        "dtype": "float32",
        "chat_template": template,
        "lora": LORA,
    }
    assert found.keys["lora"] == LORA
    assert (found.folder, found.is_reward) == ((first_run / "sft" / "adapter").resolve(), False)
    assert found.label == "run-sft" and found.rollout == {}


def test_versions_reward_models_and_samples(first_run: Path) -> None:
    assert find(f"{first_run}/sft@1").folder == (first_run / "sft" / "kept" / "1").resolve()
    assert find(f"{first_run}/liked").is_reward
    rollout = find(f"{first_run}/online").rollout
    assert (rollout["max_new_tokens"], rollout["temperature"]) == (6, 0.5)


def test_the_folder_of_an_adapter_in_a_run_is_its_stage(first_run: Path) -> None:
    assert find(f"{first_run}/sft/adapter") == find(f"{first_run}/sft")


def test_an_adapter_outside_of_a_run(first_run: Path, tmp_path: Path) -> None:
    shutil.copytree(first_run / "liked" / "adapter", tmp_path / "mine")
    found = find(str(tmp_path / "mine"))
    assert found.keys == {"base": "tiny", "lora": LORA}
    assert found.is_reward and found.folder == tmp_path / "mine"


def test_base_models(first_run: Path, tmp_path: Path) -> None:
    base = find(f"{first_run}/base")
    assert base.folder is None and base.keys["chat_template"].endswith("words.jinja")
    assert find("owner/name").keys == {"base": "owner/name"}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"]})
    )
    found = find(str(tmp_path / "model"))
    assert found.keys == {"base": str(tmp_path / "model")} and not found.is_reward


def test_a_whole_reward_model_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForSequenceClassification"]})
    )
    found = find(str(tmp_path))
    assert found.is_reward and not found.is_adapter and found.folder == tmp_path


def test_all_weights_of_a_stage_are_a_base(whole_run: Path) -> None:
    found = find(f"{whole_run}/sft")
    assert not found.is_adapter and found.label == "run-sft"
    assert found.keys == {
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
        find(f"{first_run}/{word}" if word else str(first_run))


def test_a_name_of_two_words_is_an_id_on_the_hub(
    first_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs := first_run.parent / "elsewhere" / "runs").mkdir(parents=True)
    (runs / "quickstart").symlink_to(first_run)
    monkeypatch.chdir(runs.parent)
    for word in ("tiny", "gpt2", "my-org/quickstrat"):
        assert find(word).keys == {"base": word}
    assert find_run("runs/quickstart/sft@1") == (Path("runs/quickstart"), "sft@1")
    assert find_run(Path("runs/quickstart")) == (Path("runs/quickstart"), "")
    for word in ("quickstrat", "runs/quickstrat", "runs/quickstrat/sft"):
        with pytest.raises(RecipeError, match=r"is no run.*\n.*did you mean 'runs/quickstart'"):
            find_run(word)
