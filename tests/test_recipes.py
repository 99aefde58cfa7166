"""The shipped recipes, run whole on the tiny model: what they leave on disk, what is reused, and
the one-line swap.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from alignkit import cli
from alignkit.algorithm import Source
from alignkit.data.group import LEVELS
from alignkit.io.text import cache_folder
from alignkit.plugins import load_plugins
from alignkit.recipe.load import load_recipe
from alignkit_plugins.report import screen
from tests.documented_commands import commands
from tests.people.labelers import label
from tests.rows import assistant, user, write_recipe

DATA = Path(__file__).parent.parent / "recipes" / "data"
RECIPES = {
    path.stem: path for path in sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
}
ON_POLICY = [
    registration.name
    for registration in load_plugins().registrations("algorithm")
    if registration.implementation.source is Source.ROLLOUTS
    # Its teacher, by default the start, has nothing to teach without a context
    and registration.name != "distillation"
]
TINY = ["model.base=tiny", "model.dtype=float32", "model.lora={r: 2, lora_alpha: 4}"]
WEIGHTS = "adapter/adapter_model.safetensors"
# What the sizes below do not fit: values that are lists, and epochs that other stages name.
OWN: dict[str, list[str]] = {
    "constitutional": [
        "stages.revised.sampling.max_new_tokens=128",
        "stages.revised.critique_tokens=16",
        "stages.align.iterations=2",
    ],
    # Its only difference on the tiny model is an answer that ends, which two short samples of four
    # prompts may lack.
    "honesty": [
        "stages.align.rollout.samples_per_prompt=8",
        "stages.align.prompts_per_iteration=16",
    ],
    "instructgpt": [
        f"stages.sft.data={{path: {DATA}/demos.jsonl, limit: 16}}",
        f"stages.preferred.data={{path: {DATA}/rankings.jsonl, limit: 8}}",
        f"stages.preferred.validation={{path: {DATA}/rankings_heldout.jsonl, limit: 4}}",
        f"stages.chosen.prompts={{path: {DATA}/demos_validation.jsonl, limit: 4}}",
        "stages.align.iterations=2",
    ],
    "iterated": [
        "stages.rlhf.stages.labels.prompts.limit=6",
        "stages.rlhf.stages.align.iterations=2",
        "stages.report.limit=4",
    ],
    # The tiny model gets no sum right, and from equal rewards nothing is learned.
    "sums": ["stages.align.reward={length: {unit: characters}}"],
    "rlaif": ["stages.labels.prompts.limit=12"],
}
SMALL = {
    "dataset": {"max_length": 160, "max_steps": 2, "batch_size": 4},
    "rollouts": {
        "iterations": 1,
        "prompts_per_iteration": 4,
        "rollout.max_new_tokens": 8,
        "rollout.samples_per_prompt": 2,
    },
    "step": {"sampling.max_new_tokens": 8, "limit": 4},
}


class Done(NamedTuple):
    """A finished run: its folder, and what it printed."""

    folder: Path
    err: str
    out: str

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def lines(self, name: str) -> list[Any]:
        return [
            json.loads(line)
            for line in (self.folder / name).read_text(encoding="utf-8").splitlines()
        ]


def run(name: str, folder: Path, *overrides: str) -> Done:
    """Run a shipped recipe in this process; fails unless it ends with 0, or waits for people, who
    are simulated.
    """
    out, err = io.StringIO(), io.StringIO()

    def once() -> int:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(["run", str(RECIPES[name]), *overrides, "--out", str(folder)])
        assert code in (0, 75), err.getvalue()
        return code

    while once():
        assert label(folder / "labels.feedback"), "the run waits, but nothing is open"
    return Done(folder, err.getvalue(), out.getvalue())


def small(name: str) -> list[str]:
    """The command for the tiny model in a recipe's header, as written, but with sizes that end in
    seconds.
    """
    overrides = [*TINY, *header(name), *OWN.get(name, [])]
    taken = {text.partition("=")[0] for text in overrides}
    for stage in load_recipe(RECIPES[name], overrides).stages.values():
        rollouts = (
            stage.kind == "algorithm"
            and stage.component.registration.implementation.source is Source.ROLLOUTS
        )
        kind = "step" if stage.kind == "step" else "rollouts" if rollouts else "dataset"
        for key, value in SMALL[kind].items():
            path = written_at(name, stage.name)
            unlimited = kind == "step" and not hasattr(
                stage.component.options, key.partition(".")[0]
            )
            unlimited = unlimited or (
                kind == "step" and getattr(stage.component.options, "data", None) is not None
            )
            shortened = key == "max_steps" and f"{path}.data" in taken
            if f"{path}.{key}" not in taken and not unlimited and not shortened:
                overrides.append(f"{path}.{key}={value}")
    return list(dict.fromkeys(overrides))


def header(name: str) -> list[str]:
    """The overrides of the command that a recipe's header gives for the tiny model; empty if it
    gives none.
    """
    page = [
        command.words
        for command in commands()
        if command.page == RECIPES[name] and TINY[0] in command.words
    ]
    return [word for words in page for word in words[3:] if word.startswith("stages.")]


def written_at(name: str, stage: str) -> str:
    """Where a stage is written in a recipe: `align_2` in a repeated block."""
    written = yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))["stages"]
    if stage in written:
        return f"stages.{stage}"
    inner = stage.rpartition("_")[0]
    block = next((key for key, value in written.items() if inner in value.get("stages", ())), None)
    # The latter: of the recipe it extends
    return f"stages.{block}.stages.{inner}" if block else f"stages.{stage}"


def check_artifacts(name: str, done: Done, overrides: list[str], weights: str = WEIGHTS) -> None:
    """Every stage left what its kind leaves."""
    recipe = load_recipe(RECIPES[name], overrides)
    assert (done.folder / "recipe.resolved.yaml").is_file()
    for stage in recipe.stages.values():
        folder = done.folder / stage.name
        assert done.json(f"{stage.name}/stage.json")["complete"], stage.name
        assert not (folder / "checkpoints").exists()
        if stage.kind == "algorithm":
            assert (folder / weights).is_file(), stage.name
            check_metrics(done, stage)
        elif stage.component.name == "evaluate":
            evaluation = done.json(f"{stage.name}/evaluation.json")
            policies = stage.component.options.policies
            assert list(evaluation["policies"]) == [
                *(["base"] if "base" not in policies else []),
                *policies,
            ]
            assert (folder / "samples.jsonl").is_file()
            # A long table, or reward models that learned nothing, may leave no room for it.
            room = screen.LINES - len(done.out.splitlines()) - 1
            assert "prompt: " in done.out or room < screen.OF_SAMPLE


def leaves_of(reward: Any, place: str = "") -> Iterator[str]:
    """The names of the scores below a combination."""
    for name, below in reward.children.items():
        yield from leaves_of(below, f"{place}{name}/") if below.children else (f"{place}{name}",)


def check_metrics(done: Done, stage: Any) -> None:
    rows = done.lines(f"{stage.name}/metrics.jsonl")
    assert rows
    trained = [row for row in rows if "grad_norm" in row]
    assert trained and all(row["grad_norm"] > 0 for row in trained), stage.name
    if stage.component.registration.implementation.source is not Source.ROLLOUTS:
        assert all(
            "loss" in row or any(key.startswith("validation/") for key in row) for row in rows
        )
        return
    iterations = stage.settings.iterations
    assert [row["step"] for row in rows] == list(range(1, iterations + 1))
    assert all({"kl", "tokens_per_second"} <= row.keys() for row in rows)
    if stage.settings.reward is None:
        return
    assert all("reward" in row for row in rows)
    parts = {*leaves_of(stage.settings.reward), "reward"}
    files = sorted((done.folder / stage.name / "rollouts").iterdir())
    assert [file.name for file in files] == [
        f"{number:04d}.jsonl" for number in range(1, iterations + 1)
    ]
    for file in files:
        for group in done.lines(f"{stage.name}/rollouts/{file.name}"):
            assert len(group["responses"]) == stage.settings.rollout.samples_per_prompt
            assert all(parts <= response["scores"].keys() for response in group["responses"])


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return run("smoke", tmp_path_factory.mktemp("smoke"))


@pytest.fixture
def copy(smoke: Done, tmp_path: Path) -> Path:
    """The finished smoke run, to be changed."""
    return Path(shutil.copytree(smoke.folder, tmp_path / "copy", symlinks=True))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("base", ["as it is", "tiny"])
def test_every_recipe_is_valid(name: str, base: str, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [] if base == "as it is" else [f"model.base={base}"]
    assert cli.main(["check", str(RECIPES[name]), *overrides]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"ok: {name}: stages ")


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"quickstart"}))
def test_every_recipe_says_what_it_is(name: str) -> None:
    text = RECIPES[name].read_text(encoding="utf-8")
    header = text.partition("\nname: ")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    for word in ("# What: ", "# Source: ", "# Data: ", "# Time: ", f"alignkit run {name}"):
        assert word in header, word


def test_smoke_runs_whole(smoke: Done) -> None:
    check_artifacts("smoke", smoke, [])
    assert re.search(
        r"^sft: done in [0-9ms.]+: .*groups [0-9]+, steps [0-9]+", smoke.err, re.MULTILINE
    )
    assert "{" not in smoke.err
    (said,) = {
        r["source"]
        for group in smoke.lines("align/rollouts/0001.jsonl")
        for r in group["responses"]
    }
    assert said == "align"


def test_what_ran_can_be_run_from_its_own_folder(smoke: Done, copy: Path) -> None:
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        assert cli.main(["check", str(copy / "recipe.resolved.yaml")]) == 0
        assert cli.main(["run", str(copy / "recipe.resolved.yaml"), "--out", str(copy)]) == 0
    stages = list(load_recipe(RECIPES["smoke"]).stages)
    assert [f"{name}: unchanged, reused" in err.getvalue() for name in stages] == [True] * len(
        stages
    )
    assert (copy / "recipe.resolved.yaml").read_text() == (
        smoke.folder / "recipe.resolved.yaml"
    ).read_text()


def own(
    folder: Path, capsys: pytest.CaptureFixture[str], algorithm: str, *rows: str, **data: Any
) -> tuple[int, str, Any]:
    """Run one stage of the tiny model on rows: the exit code, what it said, and its record."""
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    stage = {"algorithm": algorithm, "max_length": 64, "data": {"path": "rows.jsonl", **data}}
    recipe = write_recipe(folder, {"only": stage})
    code = cli.main(["run", str(recipe), "--out", str(folder / "out")])
    record = folder / "out" / "only" / "stage.json"
    summary = json.loads(record.read_text())["summary"] if code == 0 else None
    return code, capsys.readouterr().err, summary


NO_DEMONSTRATION = "sft learns from demonstrations, but the row 'Why?' "
REFUSED = [
    ("sft", '{"prompt": "Why?", "chosen": "b", "rejected": "c"}', NO_DEMONSTRATION + "has 2"),
    ("sft", '{"prompt": "Why?"}', NO_DEMONSTRATION + "ends with the user"),
    (
        "sft",
        '{"prompt": "Why?", "completion": "b", "label": false}',
        NO_DEMONSTRATION + "is labeled",
    ),
    ("sft", '{"text": "Why?"}', NO_DEMONSTRATION + "is raw text"),
    ("lm", '{"prompt": "Why?", "chosen": "b", "rejected": "c"}', "row 'Why?' has a prompt"),
]


@pytest.mark.parametrize(("algorithm", "row", "said"), REFUSED)
def test_a_row_that_an_algorithm_cannot_learn_from_is_named_by_its_prompt(
    algorithm: str, row: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, err, _ = own(tmp_path, capsys, algorithm, row)
    assert code == 4 and "stage 'only': " in err and said in err
    assert f"{tmp_path / 'rows.jsonl'}:1" in err or algorithm == "lm"


def test_a_row_in_which_no_token_counts_is_left_out_with_a_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The turn to learn lies behind max_length."""
    unlearned = {**assistant("far too long " * 50), "train": False}
    cut = json.dumps({"messages": [user("q"), unlearned, user("r"), assistant("b")]})
    whole = json.dumps({"messages": [user("q"), assistant("b")]})
    code, err, _ = own(tmp_path, capsys, "sft", cut)
    assert code == 4 and "each needs 1 response with a token that counts" in err
    code, err, summary = own(tmp_path, capsys, "sft", cut, whole)
    assert code == 0 and "left out 1 row without 1 response with a token that counts: 'q'" in err
    assert summary["without_signal"] == 1 and summary["groups"] == 1


def test_skipped_rows_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = '{"prompt": "a", "completion": "b"}', '{"prompt": "a", "completion": ""}'
    code, err, summary = own(tmp_path, capsys, "sft", good, bad, good, bad, on_bad_row="skip")
    assert code == 0 and f"bad rows skipped: 2, the first: {tmp_path / 'rows.jsonl'}:2: " in err
    assert err.count("prompt_completion (recognized), 2 conversations, 2 bad rows\n") == 1
    assert [row.split(":")[1] for row in summary["bad_rows"]] == ["2", "4"]


def test_pairs_equal_in_tokens_are_counted_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row, end = '{{"prompt": "a", "chosen": "{0}b", "rejected": "{0}c"}}', "x" * 200
    code, err, summary = own(tmp_path, capsys, "dpo", row.format(""), row.format(end))
    assert code == 0 and "only: done in" in err and "groups 1, steps 1" in err
    assert summary["encoding"]["equal_pairs"] == 1 and "without_signal" not in summary


def test_rows_that_are_left_out_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = '{{"prompt": "{}", "responses": ["b", "c"], "scores": {}}}'
    long = "Why is the sky so very blue " * 40
    rows = [row.format("a", [2, 1]), row.format("Never compared", [1, 1]), row.format(long, [2, 1])]
    code, err, _ = own(tmp_path, capsys, "dpo", *rows)
    assert code == 0
    assert "left out 1 row without a pair of a better and a worse response: 'Never compared'" in err
    assert "1 row left out: no room for a response in max_length ('Why is the sky so very" in err


def test_a_second_run_reuses_everything_and_says_so(smoke: Done, copy: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns
        for path in copy.rglob("*")
        if path.name == "adapter_model.safetensors"
    }
    again = run("smoke", copy)
    stages = list(load_recipe(RECIPES["smoke"]).stages)
    assert [f"{name}: unchanged, reused" in again.err for name in stages] == [True] * len(stages)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again.out == smoke.out  # the report is shown again


@pytest.mark.parametrize(
    ("override", "reused"),
    [
        ("stages.best.rollout.max_new_tokens=12", "sft helpful safety"),
        ("stages.safety.learning_rate=1e-3", "sft helpful"),
    ],
)
def test_a_changed_option_reruns_its_stage_and_those_that_need_it(
    override: str, reused: str, smoke: Done, copy: Path
) -> None:
    again = run("smoke", copy, override)
    for name in load_recipe(RECIPES["smoke"]).stages:
        unchanged = name in reused.split()
        said = (
            f"{name}: unchanged, reused" if unchanged else f"{name}: changed since the last run ("
        )
        assert said in again.err
        if unchanged or name == override.split(".")[1]:
            before, now = ((at / name / WEIGHTS).read_bytes() for at in (smoke.folder, copy))
            assert (before == now) == unchanged


def test_the_same_recipe_gives_the_same_bytes(smoke: Done, tmp_path: Path) -> None:
    again = run("smoke", tmp_path / "again")
    for name in ("sft", "helpful", "safety", "best", "align"):
        assert (again.folder / name / WEIGHTS).read_bytes() == (
            smoke.folder / name / WEIGHTS
        ).read_bytes(), name
    assert again.json("report/evaluation.json") == smoke.json("report/evaluation.json")


# One of each kind of signal; `make slow` has the others.
SWAPPED = ("grpo", "rejection_sampling", "online_dpo")


@pytest.mark.parametrize(
    "algorithm",
    [name if name in SWAPPED else pytest.param(name, marks=pytest.mark.slow) for name in ON_POLICY],
)
def test_one_override_swaps_the_algorithm(copy: Path, algorithm: str) -> None:
    override = f"stages.align.algorithm={algorithm}"
    done = run("smoke", copy, override)
    reused = [
        name
        for name in ("sft", "helpful", "safety", "best")
        if f"{name}: unchanged, reused" in done.err
    ]
    assert len(reused) == 4
    check_artifacts("smoke", done, [override])


def test_all_weights(tmp_path: Path) -> None:
    overrides = ["model.lora=none"]
    done = run("smoke", tmp_path, *overrides)
    check_artifacts("smoke", done, overrides, "adapter/model.safetensors")


@pytest.mark.parametrize("quantization", ["nf4", "nf4_double_quant", "int8"])
def test_gradients_pass_through_a_quantized_base(quantization: str) -> None:
    """bitsandbytes has layouts without a backward, into which a forward without gradients
    changes.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    from alignkit.models.shared_model import SharedModel
    from alignkit.plugins import plugins
    from alignkit.settings import ModelSpec

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
    overrides = [f"model.quantization={quantization}"]
    done = run("smoke", tmp_path, *overrides)
    check_artifacts("smoke", done, overrides)
    assert (
        f"base tiny: {quantization}, computing in float32, on cpu, packed rows of up to "
        in done.err
    )


# One of each kind of pipeline, beside `smoke`, which is one like `llama2`; `make slow` has the
# others.
OFTEN = ("constitutional", "dpo", "sums")
WHOLE = [
    name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow)
    for name in RECIPES
    if name != "smoke"
]


@pytest.mark.parametrize("name", WHOLE)
def test_recipes_run_whole_on_the_tiny_model(name: str, tmp_path: Path) -> None:
    overrides = small(name)
    done = run(name, tmp_path, *overrides)
    check_artifacts(name, done, overrides)
    if name == "llama2":
        assert done.lines("rs3/metrics.jsonl")[0]["replayed"] > 0
        assert list(done.json("report/evaluation.json")["policies"]) == [
            "base",
            "sft",
            "rs1",
            "rs2",
            "rs3",
            "align",
        ]
        results = done.json("report/evaluation.json")["results"]
        rewards = {row["metric"] for row in results if row["kind"] == "reward"}
        assert rewards == {"helpful", "safety", "llama2"}
    if name == "iterated":
        assert list(done.json("report/evaluation.json")["policies"]) == [
            "base",
            "sft",
            "align_1",
            "align_2",
            "align_3",
        ]
        assert (
            done.json("helpful_3/stage.json")["summary"]["groups"]
            > done.json("helpful_1/stage.json")["summary"]["groups"]
        )
    if name == "constitutional":
        check_constitution(done)
    if name == "people":
        check_rounds_with_people(done)
    if name == "instructgpt":
        assert sorted(path.name for path in (tmp_path / "sft" / "kept").iterdir()) == ["1", "2"]
        assert done.json("chosen/stage.json")["policy"] in ("sft@1", "sft@2")
        assert all("mix/nll" in row for row in done.lines("align/metrics.jsonl"))
    if name == "rlaif":
        assert "the order of the answers decides" in " ".join(done.out.split())
        assert all(0.5 <= group["pairs"][0]["p"] <= 1 for group in done.lines("labels/data.jsonl"))


def check_constitution(done: Done) -> None:
    """SFT learned the revisions and demonstrations, and the reward model the labels of people's
    reward model.
    """
    revised = done.lines("revised/data.jsonl")
    read = {source["name"]: source["rows"] for source in done.json("sl_cai/stage.json")["data"]}
    assert read["stage revised"] == len(revised) > 1 and read[str(DATA / "demos.jsonl")] == 319
    principles = [
        [entry["principle"] for entry in row["meta"]["revise"]["rounds"]] for row in revised
    ]
    assert all(len(set(names)) == 2 for names in principles)
    labels = [
        pair["p"] for group in done.lines("by_principle/data.jsonl") for pair in group["pairs"]
    ]
    assert all(0.5 < p <= 0.6 for p in labels)
    learned = [source["name"] for source in done.json("harmless/stage.json")["data"]]
    assert "stage by_people" in learned and "stage by_principle" not in learned
    refusals = done.json("refusals/evaluation.json")
    assert list(refusals["policies"]) == ["base", "sft", "sl_cai", "align"]


def check_rounds_with_people(done: Done) -> None:
    """The run stopped for each round's pairs, and each round's reward model learned old and new
    labels.
    """
    assert [done.err.count(f"stage 'labels_{k}' waits for 4 labels") for k in range(1, 6)] == [
        1
    ] * 5
    policies = ["base", "sft", *(f"align_{k}" for k in range(1, 6)), "ppo"]
    assert list(done.json("report/evaluation.json")["policies"]) == policies
    for k in range(1, 6):
        pairs = [pair for group in done.lines(f"labels_{k}/data.jsonl") for pair in group["pairs"]]
        assert len(pairs) == 4 and all(pair["margin"] in LEVELS for pair in pairs)
        read = {
            source["name"]: source["rows"]
            for source in done.json(f"helpful_{k}/stage.json")["data"]
        }
        assert [read.get(f"stage labels_{j}") for j in range(1, 6)] == [4] * k + [None] * (5 - k)
