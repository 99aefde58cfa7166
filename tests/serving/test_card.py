"""The model card: a header that the hub reads, the records of the run, how to load the export, and
no folders; and the command that writes it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from exported import export, train
from huggingface_hub import ModelCard

from alignkit.io.results import read_record, write_record
from alignkit.models.adapters import ModelOrigin
from alignkit.recipe.schema import ADAPTER
from alignkit_plugins.command_line.find import find
from alignkit_plugins.serving.export_folder import (
    base_of,
    behind,
    evaluations,
    model_card,
    portable,
    recipe_text,
)
from tests.rows import cells, write_rows


def told(stage: Path, hub: str = "", notes: Any = ()) -> str:
    """The card of a stage on a base of the hub or of this machine."""
    return model_card(
        find(str(stage)),
        "out",
        ModelOrigin("tiny", hub or "/models/tiny"),
        True,
        None,
        "",
        [*notes],
    )


def changed(stage: Path, **keys: Any) -> Path:
    """A stage whose record depends on other things, and stays valid."""
    record = dict(read_record(stage))
    depends_on = dict(record["depends_on"])
    for part, values in keys.items():
        depends_on[part] = {**depends_on[part], **values}
    write_record(stage, {**record, "depends_on": depends_on})
    return stage


HEADERS = """
    sft   | peft         | text-generation     | sft
    liked | transformers | text-classification | reward-model
"""


@pytest.mark.parametrize(("stage", "library", "task", "tag"), cells(HEADERS))
def test_the_header(stage: str, library: str, task: str, tag: str, house_run: Path) -> None:
    found, base = find(str(house_run / stage)), ModelOrigin("tiny", "/models/tiny")
    data = ModelCard(model_card(found, "out", base, stage == "sft", "mit", "", [])).data
    assert (data.library_name, data.pipeline_tag, data.tags) == (library, task, ["alignkit", tag])
    assert (data.base_model, data.license, data.datasets) == (None, "mit", None)


def of_hub(stage: Path) -> Path:
    """A stage whose data were of the hub, and of this machine."""
    data = read_record(stage)["depends_on"]["settings"]["data"]
    sources = [{"hub": "trl-lib/tldr"}, {"hub": str(stage)}]
    return changed(stage, settings={"data": {**data, "sources": sources}})


def test_bases_and_data_of_the_hub(house_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = of_hub(house_copy / "sft")
    text = told(stage, notes=["\x1b[31mred"])
    data = ModelCard(text).data
    assert (data.base_model, data.license, data.datasets) == (None, None, ["trl-lib/tldr"])
    data_of_a_step = {"options": {"data": {"sources": [{"hub": "a/b"}]}}}
    changed(stage, component=data_of_a_step)
    assert ModelCard(told(stage)).data.datasets == ["trl-lib/tldr", "a/b"]
    assert "\x1b" not in text and "Base model: not on the hub; `model.base`" in text
    assert 'locate_model("tiny")' in text and 'PeftModel.from_pretrained(base, "out")' in text
    local = model_card(
        find(str(stage)), "out", ModelOrigin("/a/Qwen", "/a/Qwen"), True, None, "gemma", []
    )
    assert "Qwen" not in local and '"FOLDER"' in local and "the base model (gemma) and" in local
    assert ModelCard(told(stage, "me/tiny")).data.base_model == "me/tiny"
    (house_copy / "me" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(house_copy)
    assert ModelCard(told(stage, "me/tiny")).data.base_model is None
    model, adapter = find(str(stage)), stage / "adapter" / ADAPTER
    adapter.write_text(json.dumps({"base_model_name_or_path": "a/b", "revision": "c"}))
    assert base_of(model) == ModelOrigin("tiny", "a/b", "c")


@pytest.mark.silent_bug(
    "export: licenses",
    "A model card names no license of the data that taught its reward model.",
    "The card lists the licenses that rows state, of all data behind the model.",
)
def test_licenses_of_rows_reach_the_card(tmp_path: Path) -> None:
    pair = {"prompt": "bread?", "chosen": "good", "rejected": "bad"}
    licenses = ["cc-by-nc-4.0", "cc-by-nc-4.0", ""]
    write_rows(tmp_path / "rated.jsonl", [{**pair, "license": name} for name in licenses])
    sampled = {"samples_per_prompt": 2, "max_new_tokens": 4}
    online = {"prompts": "demos.jsonl", "reward": "liked", "rollout": sampled, "iterations": 1}
    stages = {
        "liked": {"algorithm": "reward_model", "data": "rated.jsonl", "max_steps": 1},
        "align": {"algorithm": "grpo", **online},
    }
    run = train(tmp_path, {}, stages)
    stated = "- License of rows: `rated.jsonl`: cc-by-nc-4.0 (2 rows), not stated (1 rows)\n"
    text = told(run / "align")
    assert stated in text and text.count("License of rows") == 1
    assert "trained with alignkit (reward_model, then grpo)" in text
    of_hub(run / "liked")
    assert ModelCard(told(run / "align")).data.datasets == ["trl-lib/tldr"]


def test_what_is_behind_a_model_and_how_it_was_evaluated(house_copy: Path) -> None:
    """Tables with intervals, without the answers; only of this result."""
    liked = find(str(house_copy / "liked"))
    assert list(behind(house_copy, "liked", liked.record)) == ["sft", "liked"]
    (text,) = evaluations(find(str(house_copy / "sft")))
    assert text.startswith("### report\n")
    assert re.search(r"\| liked \| -?\d[\d.]* \[-?[\d.]+, -?[\d.]+\] \| -?\d[\d.]* \[", text)
    assert "```" not in text and "bread is good" not in text
    assert len(evaluations(liked)) == 1  # it judged
    write_record(house_copy / "sft", {**read_record(house_copy / "sft"), "hash": "1" * 64})
    assert evaluations(find(str(house_copy / "sft"))) == []
    report = house_copy / "report"
    write_record(report, {**read_record(report), "complete": False})
    assert evaluations(liked) == []


@pytest.mark.silent_bug(
    "export: templates",
    "A served model gets other template arguments than in training.",
    "The model card names them.",
    "ggml-org/llama.cpp#13160",
)
def test_how_conversations_were_rendered(house_copy: Path) -> None:
    kwargs = {"chat_template_kwargs": {"enable_thinking": False}}
    text = told(changed(house_copy / "sft", model=kwargs))
    assert "`{'enable_thinking': False}`" in text and "logits without a sigmoid" not in text


PATHS = """
    /home/me/data/rows.jsonl   | rows.jsonl
    ~/rows.jsonl               | rows.jsonl
    run /home/me/tool.py --fast | run tool.py --fast
    http://host:80/v1/chat     | http://host:80/v1/chat
    HuggingFaceTB/SmolLM2      | HuggingFaceTB/SmolLM2
    <s>{{ x }}</s>             | <s>{{ x }}</s>
"""


@pytest.mark.parametrize(("value", "expected"), cells(PATHS))
def test_paths_lose_their_folders(value: str, expected: str) -> None:
    assert portable({"a": [value, 1]}) == {"a": [expected, 1]}
    assert portable(f"/{value}\nb").endswith("\nb")


def test_the_recipe_has_no_folders_and_no_keys(house_copy: Path) -> None:
    resolved = house_copy / "recipe.resolved.yaml"
    plain = yaml.safe_load(resolved.read_text())
    assert plain["stages"]["sft"]["data"] == str(house_copy.parent / "demos.jsonl")
    plain["description"] = "für hf_" + "Ab1" * 12
    resolved.write_text(yaml.safe_dump(plain, sort_keys=False))
    assert "für ***" in recipe_text(house_copy)
    text = yaml.safe_load(recipe_text(house_copy))
    assert text["stages"]["sft"]["data"] == "demos.jsonl" and [*text] == [*plain]


# --- the command


def test_what_it_prints_and_where_it_writes(
    house_run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(f"{house_run / 'sft'}@1", "--merge", "--license", "mit")
    out = Path("exports/run-sft-1")
    data = ModelCard.load(out / "README.md").data
    assert (data.library_name, data.license) == ("transformers", "mit")
    output = capsys.readouterr().out
    assert f"wrote {out}: README.md, chat_template.jinja, config.json" in output
    assert f"python convert_hf_to_gguf.py {out} --outfile run-sft-1.gguf" in output


LIGHT = """
import sys
from alignkit.cli import main
run = sys.argv[1]
from alignkit_plugins.evals import select_best, step
assert not sys.modules.keys() & {"torch", "scipy", "rich"}, "the steps"
assert main(["export", "gone/sft"]) == main(["export", f"{run}/report"]) == 2
assert main(["show", run]) == 0
from pathlib import Path
from alignkit_plugins.report.events import write_report
write_report(Path(run))
assert "torch" not in sys.modules, "torch was imported"
"""


def test_no_torch_for_what_only_reads(house_copy: Path, tmp_path: Path) -> None:
    """Steps that compare, errors of `export`, `show` and reports are there at once."""
    words = [sys.executable, "-c", LIGHT, str(house_copy)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
