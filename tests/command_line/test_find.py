"""What words of a command line name: `find` and `find_run`; each wrong one has an error with the
nearest right ones.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit.errors import RecipeError, RunFailed
from alignkit.io.results import Results, read_record, write_record
from alignkit_plugins.command_line.find import find, find_run
from tests.rows import cells, read_json

KEYS = {"base": "tiny", "dtype": "float32", "lora": {"r": 4, "lora_alpha": 8}}


def test_a_stage_has_the_settings_of_its_run(house_run: Path) -> None:
    found = find(f"{house_run}/sft")
    assert (found.keys, found.label, found.rollout) == (KEYS, "run-sft", {})
    assert (found.folder, found.is_reward) == ((house_run / "sft" / "adapter").resolve(), False)
    assert found == find(f"{house_run}/sft/adapter")
    assert find(f"{house_run}/sft@1").folder == (house_run / "sft" / "kept" / "1").resolve()
    assert find(f"{house_run}/liked").is_reward
    rollout = find(f"{house_run}/online").rollout
    assert (rollout["max_new_tokens"], rollout["temperature"]) == (6, 0.5)


def test_a_template_is_that_of_the_recipe(house_copy: Path) -> None:
    resolved = house_copy / "recipe.resolved.yaml"
    recipe = yaml.safe_load(resolved.read_text())
    recipe["model"]["chat_template"] = "/mine/words.jinja"
    resolved.write_text(yaml.safe_dump(recipe))
    record = dict(read_record(house_copy / "sft"))
    record["depends_on"]["model"]["chat_template"] = "words.jinja"
    write_record(house_copy / "sft", record)
    for word in ("sft", "base"):
        assert find(f"{house_copy}/{word}").keys["chat_template"] == "/mine/words.jinja"


def test_folders_outside_of_a_run(house_run: Path, tmp_path: Path) -> None:
    shutil.copytree(house_run / "liked" / "adapter", tmp_path / "mine")
    found = find(str(tmp_path / "mine"))
    saved = tmp_path / "mine" / "adapter_config.json"
    targets = read_json(saved)["target_modules"]
    lora = {**KEYS["lora"], "target_modules": targets}
    template = str(tmp_path / "mine" / "chat_template.jinja")
    assert found.keys == {"base": "tiny", "lora": lora, "chat_template": template}
    assert found.is_reward and found.folder == tmp_path / "mine"
    for words in ("q_proj|v_proj", None):  # a pattern, or what only a plugin of peft knows
        saved.write_text(
            json.dumps({**read_json(saved), "revision": "c" * 40, "target_modules": words})
        )
        keys = find(str(tmp_path / "mine")).keys
        assert keys["revision"] == "c" * 40
        assert keys["lora"].get("target_modules") == words
    assert find(f"{house_run}/base").folder is None
    for kind, reward in (("CausalLM", False), ("SequenceClassification", True)):
        config = {"architectures": [f"LlamaFor{kind}"]}
        (tmp_path / "config.json").write_text(json.dumps(config))
        found = find(str(tmp_path))
        assert (found.is_reward, found.is_adapter, found.folder) == (reward, False, tmp_path)
        assert found.keys == {"base": str(tmp_path)}


def test_all_weights_of_a_stage_are_a_base(whole_run: Path) -> None:
    found = find(f"{whole_run}/sft")
    weights = str((whole_run / "sft" / "adapter").resolve())
    assert (found.is_adapter, found.label) == (False, "run-sft")
    assert found.keys == {"base": weights, "dtype": "float32"}


WRONG = r"""
             | is a run: name one of its stages
    sfd      | did you mean 'sft'
    sft@9    | kept versions: 1
    policy   | stages with a model: dpo, liked, online, ppo, sft
    cache    | has no stage 'cache'
    report   | stage 'report' .* is a step \(evaluate\) and has no model
    ..       | holds neither an adapter
    ../rum   | there is no folder .*/rum
    ../rum/x | did you mean '.*/run'
"""


@pytest.mark.parametrize(("word", "said"), cells(WRONG))
def test_words_that_mean_no_model(house_run: Path, word: str, said: str) -> None:
    with pytest.raises((RecipeError, RunFailed), match=said):
        find(f"{house_run}/{word}" if word else str(house_run))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("unfinished", "stage 'sft' .* is not finished.*\n.*it resumes"),
        ("weights", "adapter_model.safetensors is not as the stage wrote it"),
        ("record", "stage.json is missing or damaged"),
    ],
)
def test_a_damaged_stage_is_no_model(house_copy: Path, what: str, said: str) -> None:
    stage = house_copy / "sft"
    if what == "unfinished":
        Results(house_copy).begin("sft", "0" * 64, {})
    elif what == "weights":
        weights = stage / "adapter" / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    else:
        (stage / "stage.json").write_text(json.dumps({"complete": True}))
    with pytest.raises((RecipeError, RunFailed), match=said):
        find(str(stage))


def test_a_step_that_selected_a_policy(house_copy: Path) -> None:
    record: dict[str, Any] = dict(read_record(house_copy / "report"))
    write_record(house_copy / "report", {**record, "policy": "sft@1"})
    selected = find(str(house_copy / "report"))
    assert selected.name == "sft@1"
    assert selected.folder == (house_copy / "sft" / "kept" / "1").resolve()


def test_a_name_of_two_words_is_an_id_on_the_hub(
    house_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(house_run)
    monkeypatch.chdir(tmp_path)
    for word in ("tiny", "gpt2", "my-org/quickstrat"):
        assert find(word).keys == {"base": word}
    assert find_run("runs/quickstart/sft@1") == (Path("runs/quickstart"), "sft@1")
    assert find_run(Path("runs/quickstart")) == (Path("runs/quickstart"), "")
    for word in ("quickstrat", "runs/quickstrat", "runs/quickstrat/sft"):
        with pytest.raises(RecipeError, match=r"is no run.*\n.*did you mean 'runs/quickstart'"):
            find_run(word)
