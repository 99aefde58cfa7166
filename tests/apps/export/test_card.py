"""The model card: a header that the hub reads, the records of the run, how to load the export, and
no folders.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from exported import WORDS, check_logprobs, export, groups, models_of, train
from huggingface_hub import ModelCard

from alignkit.io.atomic import write_json
from alignkit.io.digest import digest
from alignkit_plugins.policies.card import Use, card, evaluations, lineage, portable, recipe_text
from alignkit_plugins.policies.source import Source, find


@pytest.fixture
def run(lora_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to change."""
    return Path(shutil.copytree(lora_run, tmp_path / "run", symlinks=True))


def changed(run: Path, stage: str, **values: Any) -> Source:
    """A stage whose record was changed, and stays valid."""
    record = json.loads((run / stage / "stage.json").read_text())
    del record["check"]
    record |= values
    write_json(run / stage / "stage.json", {**record, "check": digest(record)})
    return find(str(run / stage))


def spec_of(run: Path, stage: str = "sft", **keys: Any) -> Source:
    """A stage on a base with other settings."""
    record = json.loads((run / stage / "stage.json").read_text())
    record["depends_on"]["model"] |= keys
    return changed(run, stage, depends_on=record["depends_on"])


@pytest.mark.parametrize(
    ("stage", "form", "library", "task", "tags"),
    [
        ("sft", [], "peft", "text-generation", ["alignkit", "sft"]),
        ("liked", ["--merge"], "transformers", "text-classification", ["alignkit", "reward-model"]),
    ],
)
def test_the_header(
    stage: str,
    form: list[str],
    library: str,
    task: str,
    tags: list[str],
    lora_run: Path,
    tmp_path: Path,
) -> None:
    assert (
        export(lora_run / stage, tmp_path / "out", *form, "--base", "me/tiny", "--license", "mit")
        == 0
    )
    found = ModelCard.load(tmp_path / "out" / "README.md")
    data = found.data
    assert (data.library_name, data.pipeline_tag, data.tags) == (
        library,
        task,
        list(dict.fromkeys(tags)),
    )
    assert (data.base_model, data.license, data.datasets) == ("me/tiny", "mit", None)
    blocks = [
        yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", found.text, re.DOTALL)
    ]
    (name, facts), *_ = blocks[-1].items()
    assert name == stage and facts["settings"]["learning_rate"] == 0.02 and blocks[-1]["hash"]
    assert len(blocks) == (2 if stage == "liked" else 1) and facts["seed"] == 0


def test_bases_and_data_of_the_hub(run: Path) -> None:
    record = json.loads((run / "sft" / "stage.json").read_text())
    record["depends_on"]["settings"]["data"]["sources"] = [
        {"hub": "trl-lib/tldr"},
        {"hub": str(run)},
    ]
    source = changed(run, "sft", depends_on=record["depends_on"])
    text = card(
        source, Use(source, True, source.folder, "tiny", False), "out", None, ["\x1b[31mred"]
    )
    data = ModelCard(text).data
    assert (data.base_model, data.license, data.datasets) == (None, None, ["trl-lib/tldr"])
    assert "\x1b" not in text and "`tiny`, which is not on the hub, SHA-256 of its weights" in text
    assert "from_pretrained" not in text
    assert (
        "alignkit makes the base model, which other programs do not have: export this with --merge"
        in text
    )


@pytest.mark.silent_bug(
    "export: licenses",
    "A model card names no license of the data that taught its reward model.",
    "The card lists the licenses that rows state, of all data behind the model.",
)
def test_licenses_of_rows_reach_the_card(tmp_path: Path) -> None:
    prompt, answers = [{"role": "user", "content": "bread?"}], {"chosen": "good", "rejected": "bad"}
    rows = [
        {"prompt": prompt, **answers, "license": name}
        for name in ("cc-by-nc-4.0", "cc-by-nc-4.0", "")
    ]
    (tmp_path / "rated.jsonl").write_text("\n".join(map(json.dumps, rows)))
    steps = {"max_steps": 1, "batch_size": 1}
    stages = {
        "liked": {"algorithm": "reward_model", "data": "rated.jsonl", **steps},
        "align": {
            "algorithm": "grpo",
            "prompts": "demos.jsonl",
            "reward": "liked",
            "iterations": 1,
            "batch_size": 1,
        },
    }
    stages["align"]["rollout"] = {"samples_per_prompt": 2, "max_new_tokens": 4}
    source = find(str(train(tmp_path, {}, stages) / "align"))
    text = card(source, Use(source, True, source.folder, "tiny", False), "out", None, [])
    assert "- License of rows: `rated.jsonl`: cc-by-nc-4.0 (2 rows), not stated (1 rows)\n" in text
    depends_on = json.loads((source.run / "liked" / "stage.json").read_text())["depends_on"]
    depends_on["settings"]["data"]["sources"] = [{"hub": "trl-lib/tldr"}]
    changed(source.run, "liked", depends_on=depends_on)
    text = card(source, Use(source, True, source.folder, "tiny", False), "out", None, [])
    assert ModelCard(text).data.datasets == ["trl-lib/tldr"]


def test_stages(run: Path) -> None:
    assert [name for name, _ in lineage(find(str(run / "liked")))] == ["sft", "liked"]


def test_evaluations(run: Path) -> None:
    """Tables with intervals, without the answers; only of this result."""
    (text,) = evaluations(find(str(run / "sft")))
    assert text.startswith("### report\n")
    assert re.search(r"\| liked \| -?\d[\d.]* \[-?[\d.]+, -?[\d.]+\] \| -?\d[\d.]* \[", text)
    assert "```" not in text and "bread is good" not in text
    assert len(evaluations(find(str(run / "liked")))) == 1  # it judged
    assert evaluations(changed(run, "sft", hash="1" * 64)) == []


def test_how_conversations_were_rendered(run: Path) -> None:
    spec = {"chat_template_kwargs": {"enable_thinking": False}}
    source = spec_of(run, **spec)
    text = card(source, Use(source, True, source.folder, "tiny", False), "out", None, [])
    assert "`apply_chat_template(..., enable_thinking=False)`" in text
    assert "logits without a sigmoid" not in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/me/data/rows.jsonl", "rows.jsonl"),
        ("~/rows.jsonl", "rows.jsonl"),
        ("run /home/me/tool.py --fast", "run tool.py --fast"),
        ("http://host:80/v1/chat", "http://host:80/v1/chat"),
        ("HuggingFaceTB/SmolLM2", "HuggingFaceTB/SmolLM2"),
        ("<s>{{ x }}</s>", "<s>{{ x }}</s>"),
        ({"a": ["/x/y", 1]}, {"a": ["y", 1]}),
    ],
)
def test_paths_lose_their_folders(value: Any, expected: Any) -> None:
    assert portable(value) == expected


def test_the_recipe(run: Path, lora_run: Path) -> None:
    plain = yaml.safe_load((run / "recipe.resolved.yaml").read_text())
    assert plain["stages"]["sft"]["data"] == str(lora_run.parent / "demos.jsonl")
    plain["description"] = "with hf_" + "Ab1" * 12
    (run / "recipe.resolved.yaml").write_text(yaml.safe_dump(plain))
    text = yaml.safe_load(recipe_text(find(str(run / "sft"))))
    assert text["stages"]["sft"]["data"] == "demos.jsonl" and text["description"] == "with ***"


# --- how to load it


def words_of(use: Use, place: str = "out", base: str = "me/base") -> list[str]:
    return shlex.split(use.vllm(place, base))


def test_an_adapter_in_vllm(run: Path) -> None:
    """With the run's template, ends of responses and type, which vLLM would take from the base or
    choose.
    """
    source = find(str(run / "sft"))
    words = words_of(Use(source, True, source.folder, "me/base", True))
    assert words[:3] == ["vllm", "serve", "me/base"] and "run-sft=out" in words
    assert words[words.index("--chat-template") + 1] == "out/chat_template.jinja"
    assert words[words.index("--generation-config") + 1] == "out"
    assert words[words.index("--dtype") + 1] == "float32" and "--max-lora-rank" not in words


@pytest.mark.parametrize(("rank", "expected"), [(17, "32"), (64, "64"), (300, "320")])
def test_vllm_knows_only_some_ranks(rank: int, expected: str, run: Path) -> None:
    source = spec_of(run, lora={"r": rank})
    words = words_of(Use(source, True, source.folder, "me/base", True))
    assert words[words.index("--max-lora-rank") + 1] == expected


@pytest.mark.silent_bug(
    "export: templates",
    "A served model gets other template arguments than in training.",
    "The printed vLLM command passes them.",
    "ggml-org/llama.cpp#13160",
)
def test_whole_models(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"dtype": "float32"}')
    source = spec_of(run, chat_template_kwargs={"enable_thinking": False}, trust_remote_code=True)
    use = Use(source, False, tmp_path, "me/base", True)
    words = words_of(use)
    assert json.loads(words[words.index("--default-chat-template-kwargs") + 1]) == {
        "enable_thinking": False
    }
    assert words[3:5] == ["--dtype", "float32"] and words[-1] == "--trust-remote-code"
    (tmp_path / "config.json").write_text('{"dtype": "bfloat16"}')
    assert "--dtype" not in words_of(use)
    reward = Use(find(str(run / "liked")), False, tmp_path, "me/base", True)
    assert words_of(reward) == ["vllm", "serve", "out", "--runner", "pooling"]
    assert reward.llama_cpp("out") == "# llama.cpp reads no reward model"


def test_what_vllm_cannot_load(run: Path) -> None:
    """vLLM 0.32 has no quantization of bitsandbytes any more."""
    for source in (find(str(run / "liked")), spec_of(run, quantization="nf4")):
        use = Use(source, True, source.folder, "me/base", True)
        assert use.vllm("out", "me/base").startswith("# vLLM loads no") and "--merge" in use.vllm(
            "out", "me/base"
        )


def printed_code(output: str) -> str:
    """The Python that the command shows."""
    _, imports, lines, *_ = output.split("\n\n")
    return f"{imports}\n{lines}"


@pytest.mark.parametrize("form", [[], ["--merge"]])
@pytest.mark.parametrize("stage", ["sft", "liked"])
@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_the_printed_code_computes_what_the_run_computed(
    form: list[str],
    stage: str,
    kind: str,
    lora_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a quantized base up to the rounding of the quantized product."""
    run = lora_run if kind == "none" else train(tmp_path, {"quantization": kind, "lora": {"r": 4}})
    capsys.readouterr()
    assert export(run / stage, tmp_path / "out", *form) == 0
    code = printed_code(capsys.readouterr().out)
    names: dict[str, Any] = {}
    most = 1e-4 if kind == "none" else 0.05
    exec(code.replace("Hello!", WORDS[0]).replace("Hi.", groups()[0].responses[0].text), names)
    if stage == "sft":
        check_logprobs(names["model"].eval(), names["tokenizer"], run, "sft", most=most)
        return
    printed = re.search(r"tensor\((-?[\d.]+)", capsys.readouterr().out)
    assert printed is not None
    (score,) = models_of(run)["liked"].scores(groups()[:1])
    assert float(printed[1]) == pytest.approx(score, abs=most)
