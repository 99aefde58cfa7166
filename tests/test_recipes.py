"""The shipped recipes, run whole on the tiny model: what they leave on disk, what is reused, and
the one-line swap.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from alignkit import cli
from alignkit.contract.algorithm import Source
from alignkit.host.plugins import load_plugins
from alignkit.io.text import cache_folder
from alignkit.recipe.load import load_recipe
from alignkit.recipe.sources import SourceReader
from alignkit.recipe.yaml import dump, shipped
from tests.people.labelers import label
from tests.rows import Said, assistant, read_json, read_rows, user, write_recipe

ON_POLICY = [
    registration.name
    for registration in load_plugins().registrations("algorithm")
    if registration.implementation.source is Source.ROLLOUTS
    # Its teacher, by default the start, has nothing to teach without a context
    and registration.name != "distillation"
]
TINY = ["model.base=tiny", "model.dtype=float32", "model.lora={r: 2, lora_alpha: 4}"]
WEIGHTS = "adapter/adapter_model.safetensors"
ROLLOUTS = {"iterations": 1, "rollout": {"max_new_tokens": 8, "samples_per_prompt": 4}}
# What the tiny model needs: an end of what it writes, and a reward that is not always the same.
OWN = {
    "constitutional": "stages.revised.sampling.stop=[e]",
    "honesty": "stages.align.rollout.samples_per_prompt=8 stages.align.rollout.filters=[]",
    "people": "stages.rlhf.stages.cool.sampling.max_new_tokens=4 stages.rlhf.stages.warm.sampling.max_new_tokens=4",
    "sums": "'stages.align.reward={length: {unit: characters}}'",
}


class Done(NamedTuple):
    """A finished run: its folder, and what it printed."""

    folder: Path
    err: str
    out: str

    def reused(self) -> str:
        """The stages that were not run again."""
        return " ".join(re.findall("^(.*): unchanged, reused", self.err, re.MULTILINE))


def run(recipe: str | Path, folder: Path, *words: str) -> Done:
    """Run a recipe in this process; fails unless it ends with 0, or waits for people, who are
    simulated.
    """
    out, err = io.StringIO(), io.StringIO()

    def once() -> int:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(["run", str(recipe), *words, "--out", str(folder)])
        assert code in (0, 75), err.getvalue()
        return code

    while once():
        assert label(folder / "labels.feedback"), "the run waits, but nothing is open"
    return Done(folder, err.getvalue(), out.getvalue())


@pytest.fixture(scope="module", autouse=True)
def few_rows() -> Iterator[None]:
    """Every source has its first rows only."""
    rows = SourceReader.rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SourceReader, "rows", lambda reader: islice(rows(reader), 12))
        yield


def small(name: str, folder: Path) -> Path:
    """A shipped recipe for the tiny model, with rollouts that end in seconds."""
    recipe = load_recipe(shipped()[name], [*TINY, *shlex.split(OWN.get(name, ""))])
    (folder / "whole.yaml").write_text(dump(recipe.resolved), encoding="utf-8")
    online = {
        stage.name: ROLLOUTS
        for stage in recipe.stages.values()
        if stage.kind == "algorithm"
        and stage.component.registration.implementation.source is Source.ROLLOUTS
    }
    text = yaml.safe_dump({"extends": "whole.yaml", "stages": online})
    (folder / "small.yaml").write_text(text, encoding="utf-8")
    return folder / "small.yaml"


def check_artifacts(done: Done, weights: str = WEIGHTS) -> None:
    """Every stage left what its kind leaves."""
    for stage in load_recipe(done.folder / "recipe.resolved.yaml").stages.values():
        folder = done.folder / stage.name
        assert read_json(folder / "stage.json")["complete"]
        assert not (folder / "checkpoints").exists()
        if stage.kind == "algorithm":
            norms = [row.get("grad_norm", 1) for row in read_rows(folder / "metrics.jsonl")]
            assert (folder / weights).is_file() and min(norms) > 0, stage.name
        elif stage.component.name == "evaluate":
            found = read_json(folder / "evaluation.json")["policies"]
            assert {*found} == {"base", *stage.component.options.policies}  # type: ignore[attr-defined]
            assert (folder / "samples.jsonl").is_file()


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory, few_rows: None) -> Done:
    return run("smoke", tmp_path_factory.mktemp("smoke"))


@pytest.fixture
def copy(smoke: Done, tmp_path: Path) -> Path:
    """The finished smoke run, to be changed."""
    return Path(shutil.copytree(smoke.folder, tmp_path / "copy", symlinks=True))


@pytest.mark.parametrize("name", sorted(shipped().keys() - {"quickstart"}))
def test_every_recipe_says_what_it_is(name: str) -> None:
    header = shipped()[name].read_text(encoding="utf-8").partition("\nname: ")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    for word in ("# What: ", "# Source: ", "# Data: ", "# Time: ", f"alignkit run {name}"):
        assert word in header, word


def test_smoke_runs_whole(smoke: Done) -> None:
    check_artifacts(smoke)
    assert re.search(
        r"^sft: done in [0-9ms.]+: .*groups [0-9]+, steps [0-9]+", smoke.err, re.MULTILINE
    )
    assert "{" not in smoke.err
    (group, *_) = read_rows(smoke.folder / "align/rollouts/0001.jsonl")
    assert {response["source"] for response in group["responses"]} == {"align"}


def test_what_ran_can_be_run_from_its_own_folder_and_reuses_everything(
    smoke: Done, copy: Path
) -> None:
    resolved = copy / "recipe.resolved.yaml"
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("adapter_model.safetensors")}
    again = run(resolved, copy)
    assert again.reused() == "sft helpful safety best align report"
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert again.out == smoke.out  # the report is shown again
    assert resolved.read_bytes() == (smoke.folder / "recipe.resolved.yaml").read_bytes()


def test_a_changed_option_starts_over_its_stage_and_those_that_need_it(copy: Path) -> None:
    said = run("smoke", copy, "stages.safety.learning_rate=1e-3", "--dry-run").out
    for what, stages in (("reused", "sft helpful"), ("starts over", "safety best align report")):
        assert " ".join(re.findall(f"^(.*): {what}", said, re.MULTILINE)) == stages


@pytest.mark.parametrize(
    "algorithm",
    [
        name if name == "grpo" else pytest.param(name, marks=pytest.mark.slow)
        for name in ON_POLICY
        if name != "ppo"  # the recipe's own
    ],
)
def test_one_override_swaps_the_algorithm(copy: Path, algorithm: str) -> None:
    done = run("smoke", copy, f"stages.align.algorithm={algorithm}")
    assert done.reused() == "sft helpful safety best"
    check_artifacts(done)


def test_every_such_algorithm_takes_the_keys_of_any_other() -> None:
    for name in ON_POLICY:
        assert load_recipe(shipped()["smoke"], [f"stages.align.algorithm={name}"])


def test_all_weights(tmp_path: Path) -> None:
    done = run(small("smoke", tmp_path), tmp_path / "run", "model.lora=none")
    check_artifacts(done, "adapter/model.safetensors")


@pytest.mark.parametrize("quantization", ["nf4", "nf4_double_quant", "int8"])
def test_gradients_pass_through_a_quantized_base(quantization: str) -> None:
    """bitsandbytes has layouts without a backward, into which a forward without gradients
    changes.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    from alignkit.contract.settings import ModelSpec
    from alignkit.host.plugins import plugins
    from alignkit.models.shared_model import SharedModel

    source = plugins().get("model", "tiny").implementation(cache_folder())
    spec = ModelSpec.model_validate({"base": "tiny", "quantization": quantization})
    policy = SharedModel(spec, str(source))
    layer = policy.model.model.layers[1].mlp.down_proj
    x = torch.randn(1, 7, layer.in_features, dtype=policy.dtype)
    with torch.no_grad():
        layer(x)
    x.requires_grad_(True)
    y = layer(x)
    y.sum().backward()
    if quantization == "int8":
        assert isinstance(layer, Linear8bitLt)
        weight = layer.state.CB.float() * layer.state.SCB[:, None] / 127
    else:
        assert isinstance(layer, Linear4bit)
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.float(), weight.sum(0).expand(1, 7, -1), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("quantization", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_quantized_base(tmp_path: Path, quantization: str) -> None:
    done = run(small("smoke", tmp_path), tmp_path / "run", f"model.quantization={quantization}")
    check_artifacts(done)
    assert f"base tiny: {quantization}, computing in float32, on cpu, packs of up" in done.err


# `smoke` is one like `llama2`, the documentation's commands run `quickstart`, and `rlaif`, like it, needs
# all kinds of prompts; `make slow` has the others.
OFTEN = ("dpo", "sums")


@pytest.mark.parametrize(
    "name",
    [
        name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(shipped().keys() - {"smoke", "quickstart", "rlaif"})
    ],
)
def test_recipes_run_whole_on_the_tiny_model(name: str, tmp_path: Path) -> None:
    done = run(small(name, tmp_path), tmp_path / "run")
    check_artifacts(done)


# Rows from which nothing is learned

REFUSED = """\
sft  {"prompt": "Why?", "chosen": "b", "rejected": "c"}          'Why?' has 2
sft  {"prompt": "Why?"}                                          'Why?' ends with the user
sft  {"prompt": "Why?", "completion": "b", "label": false}       'Why?' is labeled
sft  {"text": "Why?"}                                            'Why?' is raw text
lm   {"prompt": "Why?", "chosen": "b", "rejected": "c"}          'Why?' has a prompt
"""


def own(folder: Path, said: Said, algorithm: str, *rows: str, **data: Any) -> tuple[int, str, Any]:
    """Run one stage of the tiny model on rows: the exit code, what it said, and its record."""
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    stage = {"algorithm": algorithm, "max_length": 64, "data": {"path": "rows.jsonl", **data}}
    code = cli.main(["run", str(write_recipe(folder, {"only": stage})), "--out", f"{folder}/out"])
    record = folder / "out" / "only" / "stage.json"
    summary = read_json(record)["summary"] if code == 0 else None
    return code, said(), summary


@pytest.mark.parametrize("line", REFUSED.splitlines())
def test_a_row_that_an_algorithm_cannot_learn_from_is_named_by_its_prompt(
    line: str, tmp_path: Path, said: Said
) -> None:
    algorithm, row, message = re.split("   *", line)
    code, err, _ = own(tmp_path, said, algorithm, row)
    assert code == 4 and "stage 'only': " in err and f"row {message}" in err
    assert ("raw text" in message) == ("such as `lm`" in err)
    assert f"{tmp_path / 'rows.jsonl'}:1" in err or algorithm == "lm"


def test_bad_rows_and_those_in_which_no_token_counts_are_left_out_with_a_count(
    tmp_path: Path, said: Said
) -> None:
    """The turn to learn lies behind max_length."""
    unlearned = {**assistant("far too long " * 50), "train": False}
    cut = json.dumps({"messages": [user("q"), unlearned, user("r"), assistant("b")]})
    whole, bad = (json.dumps({"messages": [user("q"), assistant(text)]}) for text in ("b", ""))
    code, err, _ = own(tmp_path, said, "sft", cut)
    assert code == 4 and "each needs 1 response with a token that counts" in err
    code, err, summary = own(tmp_path, said, "sft", cut, bad, whole, bad, on_bad_row="skip")
    assert code == 0 and "left out 1 row without 1 response with a token that counts: 'q'" in err
    assert summary["without_signal"] == 1 and summary["groups"] == 1
    assert f"bad rows skipped: 2, the first: {tmp_path / 'rows.jsonl'}:2: " in err
    assert err.count("messages (recognized), 2 conversations, 2 bad rows\n") == 1
    assert [row.split(":")[1] for row in summary["bad_rows"]] == ["2", "4"]


def test_pairs_that_are_left_out_or_equal_in_tokens_are_named(tmp_path: Path, said: Said) -> None:
    row = '{{"prompt": "{0}", "responses": ["{1}b", "{1}c"], "scores": {2}}}'
    long = "Why is the sky so very blue " * 40
    rows = [row.format("a", "", [2, 1]), row.format("a", "x" * 200, [2, 1])]
    rows += [row.format("Never compared", "", [1, 1]), row.format(long, "", [2, 1])]
    code, err, summary = own(tmp_path, said, "dpo", *rows)
    assert code == 0 and "only: done in" in err and "groups 1, steps 1" in err
    assert summary["encoding"]["equal_pairs"] == 1 and summary["without_signal"] == 1
    assert "left out 1 row without a pair of a better and a worse response: 'Never compared'" in err
    assert "1 row left out: no room for a response in max_length ('Why is the sky so very" in err
