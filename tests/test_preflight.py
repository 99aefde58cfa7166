"""Before the first stage: data that can teach nothing are reported, so that no training is
wasted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit.cli import main
from alignkit.errors import DataError
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import Run


def checked(folder: Path, data: Any, algorithm: str = "dpo") -> None:
    rows = [{"prompt": f"is it {n}?", "completion": "yes"} for n in range(3)]
    (folder / "demos.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "pairs.jsonl").write_text(
        json.dumps({"prompt": "is it?", "chosen": "yes", "rejected": "no"}), encoding="utf-8"
    )
    judged = {
        "step": "judge_pairs",
        "judge": {"local_judge": {"role": "base"}},
        "prompts": "demos.jsonl",
        "policy": "base",
    }
    stages = {"labels": judged, "align": {"algorithm": algorithm, "from": "base", "data": data}}
    text = yaml.safe_dump(
        {"name": "small", "model": {"base": "tiny"}, "stages": stages}, sort_keys=False
    )
    (folder / "small.yaml").write_text(text, encoding="utf-8")
    Run(load_recipe(folder / "small.yaml"), folder / "out", download=False).prepare(
        ["labels", "align"]
    )


@pytest.mark.parametrize("algorithm", ["dpo", "reward_model"])
def test_data_without_pairs_are_reported(tmp_path: Path, algorithm: str) -> None:
    with pytest.raises(
        DataError,
        match=r"stage 'align': \w+ learns from pairs .* no row of .*demos.jsonl has a pair",
    ):
        checked(tmp_path, "demos.jsonl", algorithm)


def test_one_source_with_a_pair_is_enough(tmp_path: Path) -> None:
    checked(tmp_path, ["demos.jsonl", "pairs.jsonl"])
    checked(tmp_path, "demos.jsonl", "sft")


def test_a_stage_may_produce_the_pairs_that_files_lack(tmp_path: Path) -> None:
    checked(tmp_path, ["demos.jsonl", {"stage": "labels"}])


def test_a_bad_row_is_reported(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "is it?", "chosen": "yes"}', encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.jsonl"):
        checked(tmp_path, ["pairs.jsonl", "bad.jsonl"])


# Mistakes of later stages, before the first one

DEMO = {"prompt": "is it?", "completion": "yes"}
PAIR = {"prompt": "is it?", "chosen": "yes", "rejected": "no"}
SFT = {"algorithm": "sft", "data": "demos.jsonl", "max_steps": 1}
ONLINE = {
    "algorithm": "rloo",
    "prompts": "prompts.jsonl",
    "reward": {"length": {"unit": "characters"}},
    "rollout": {"samples_per_prompt": 2, "max_new_tokens": 4},
    "iterations": 1,
}
JUDGE = {
    "openai_judge": {
        "server": {"base_url": "http://localhost:9/v1", "model": "m", "api_key_env": "NOT_SET_KEY"}
    }
}
PYTHON = {"python": {"path": "reward.py", "function": "f"}}
REWARD = """
def f(completions, answer, weight=1.0):
    return [0.0 for _ in completions]
"""
LATER: dict[str, tuple[dict[str, Any], int, str]] = {
    "a judge's key, in a step": (
        {"step": "judge_pairs", "judge": JUDGE, "data": "pairs.jsonl"},
        2,
        "the environment variable NOT_SET_KEY is not set",
    ),
    "a judge's key, in a reward": (
        ONLINE | {"reward": {"rlaif": {"judge": JUDGE}}},
        2,
        "the environment variable NOT_SET_KEY is not set",
    ),
    "KTO without labels": (
        {"algorithm": "kto", "data": "demos.jsonl"},
        4,
        "kto needs desirable and undesirable responses",
    ),
    "prompts that are raw text": (
        ONLINE | {"prompts": "text.txt"},
        4,
        "the rows of 'prompts' are raw text",
    ),
    "held-out prompts that are raw text": (
        ONLINE
        | {
            "monitors": [{"gold": {"reward": {"length": {"unit": "words"}}, "prompts": "text.txt"}}]
        },
        4,
        "the rows of 'monitors.0.gold.prompts' are raw text",
    ),
    "a column that a function for gold needs": (
        ONLINE | {"monitors": [{"gold": {"reward": PYTHON}}]},
        4,
        "needs the argument 'answer'",
    ),
    "a column of held-out prompts that a function for gold needs": (
        ONLINE
        | {
            "monitors": [
                {"gold": {"reward": PYTHON, "prompts": {"path": "prompts.jsonl", "limit": 1}}}
            ]
        },
        4,
        "needs the argument 'answer'",
    ),
    "margins": (
        {"algorithm": {"reward_model": {"margin": "data"}}, "data": "pairs.jsonl"},
        4,
        "'margin: data' needs pairs whose margin is a number",
    ),
    "a column that a reward function needs": (
        ONLINE | {"reward": PYTHON},
        4,
        "needs the argument 'answer', but no prompt has a column of this name (other columns: "
        "question_id)",
    ),
    "preferences as demonstrations": (
        {"algorithm": "sft", "data": "pairs.jsonl"},
        4,
        "2 responses",
    ),
    "a folder that is no data set": (
        {"algorithm": "sft", "data": {"hub": "nothing"}},
        4,
        "nothing[train]: `datasets` cannot load it",
    ),
}


def mistaken(folder: Path, *later: dict[str, Any]) -> list[str]:
    rows = {
        "demos.jsonl": DEMO,
        "pairs.jsonl": PAIR,
        "prompts.jsonl": {"prompt": "is it?", "question_id": 1},
    }
    for name, row in rows.items():
        (folder / name).write_text(json.dumps(row) + "\n", encoding="utf-8")
    (folder / "text.txt").write_text("just a text\n", encoding="utf-8")
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    (folder / "nothing").mkdir()
    stages = {"first": SFT} | {f"later_{number}": stage for number, stage in enumerate(later)}
    (folder / "recipe.json").write_text(
        json.dumps({"model": {"base": "tiny"}, "stages": stages}), encoding="utf-8"
    )
    return [str(folder / "recipe.json")]


@pytest.mark.parametrize("case", LATER)
def test_a_mistake_of_a_later_stage_is_told_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    stage, code, message = LATER[case]
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    command = mistaken(tmp_path, stage)
    assert main(["run", *command, "--out", str(tmp_path / "run")]) == code
    err = capsys.readouterr().err
    assert message in err, err
    assert not (tmp_path / "run" / "first").exists()


def test_validate_says_what_a_run_would_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but what needs the base model's tokenizer, or the hub."""
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    for index, (name, (stage, code, message)) in enumerate(LATER.items()):
        folder = tmp_path / str(index)
        folder.mkdir()
        quiet = "fit" in name or "data set" in name
        assert main(["check", *mistaken(folder, stage)]) == (0 if quiet else code), name
        assert quiet or message in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_the_data_of_all_stages_are_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [
        LATER[name][0]
        for name in ("KTO without labels", "margins", "preferences as demonstrations")
    ]
    assert main(["check", *mistaken(tmp_path, *stages)]) == 4
    err = capsys.readouterr().err
    assert all(f"later_{number}" in err for number in range(3)), err


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "CUDA", "meta", ""])
def test_a_device_that_cannot_be_is_a_mistake_of_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    (command,) = mistaken(tmp_path)
    assert main(["check", command, f"model.device='{device}'"]) == 2
    assert "model.device: must match pattern" in capsys.readouterr().err


# The chat template

TEMPLATES = {
    ("{% for m in messages %}\n{{ m }}\n{% if %}{% endif %}{% endfor %}"): (
        "t.jinja:3: Expected an expression"
    ),
    "\n{{ messages | shout }}": "t.jinja:2: No filter named 'shout'",
    "{% for m in messages %}{{ m.content }}": "t.jinja:1: Unexpected end of template",
    (
        "{% for m in messages %}{% generation %}{{ m.content | tojson }}{% endgeneration %}{% "
        "break %}{% endfor %}{{ raise_exception('no') if tools else strftime_now('%Y') }}"
    ): "",
}


@pytest.mark.parametrize(("template", "message"), TEMPLATES.items())
def test_a_broken_chat_template_is_reported_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], template: str, message: str
) -> None:
    (command,) = mistaken(tmp_path)
    (tmp_path / "t.jinja").write_text(template, encoding="utf-8")
    override = f"model.chat_template={tmp_path / 't.jinja'}"
    if not message:
        assert main(["check", command, override]) == 0
        return
    assert main(["run", "--out", str(tmp_path / "run"), command, override]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "first").exists()


WEIGHTED = """
import json
from pathlib import Path
from alignkit import Algorithm, Field, Loss, RunFailed, hookimpl, per_token

class Weighted(Algorithm):
    class Options(Algorithm.Options):
        weights: Path = Field(description="weights by source")

    def check(self, folder):
        if "yes" not in self._read():
            raise RunFailed(f"{self.options.weights}: no weight for 'yes'")

    def loss(self, batch, out):
        return Loss(nll=per_token(-self._read()["yes"] * out.logprobs))

    def _read(self):
        return json.loads(self.options.weights.read_text())

@hookimpl
def register(add):
    add("algorithm", "weighted", Weighted)
"""


def test_an_algorithms_file_is_checked_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file lies next to the recipe, which may itself be somewhere else; its content is in the
    hash.
    """
    plugin, weights = tmp_path / "weighted.py", tmp_path / "parts" / "weights.json"
    plugin.write_text(WEIGHTED, encoding="utf-8")
    weights.parent.mkdir()
    (tmp_path / "demos.jsonl").write_text(
        json.dumps({"prompt": "is it?", "completion": "yes"}), encoding="utf-8"
    )
    stage = {
        "algorithm": {"weighted": {"weights": "parts/weights.json"}},
        "data": "demos.jsonl",
        "max_steps": 1,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump({"model": {"base": "tiny"}, "stages": {"sft": stage}}), encoding="utf-8"
    )
    run = ["run", str(path), "--plugin", str(plugin), "--out", str(tmp_path / "out")]
    check = ["check", str(path), "--plugin", str(plugin)]
    assert main(check) == 2 and "no such file: parts/weights.json" in capsys.readouterr().err
    weights.write_text('{"no": 1}')
    for command in (check, run):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert f"stage 'sft': {weights}: no weight for 'yes'" in err and "loading tiny" not in err
    weights.write_text('{"yes": 2}')
    assert main(check) == main(run) == 0
    assert main(run) == 0 and "sft: unchanged, reused" in capsys.readouterr().err
    weights.write_text('{"yes": 3}')
    assert main(run) == 0 and "starting over" in capsys.readouterr().err


REWARDS = """
from alignkit import DataError, Field, Reward, RewardCombination, RewardRef, RunFailed, hookimpl

class Column(Reward):
    class Options(Reward.Options):
        column: str = "answer"

    def check_prompts(self, groups):
        if any(self.options.column not in group.meta for group in groups):
            raise DataError(f"no column '{self.options.column}'", option=("column",))

class Part(RewardCombination):
    class Options(RewardCombination.Options):
        reward: RewardRef
        file: str = ""

    def check(self, folder):
        if self.options.file and not (folder / self.options.file).is_file():
            raise RunFailed(f"part: no file {self.options.file}")

    def parts(self):
        return {"only": self.options.reward}

@hookimpl
def register(add):
    add("reward", "column", Column)
    add("reward", "part", Part)
"""


@pytest.mark.parametrize(
    ("reward", "line", "message"),
    [
        ("column:\n        column: grade", 9, "stage 'align': no column 'grade'"),
        ("column: {}", 8, "stage 'align': no column 'answer'"),
        (
            "part: {reward: length, file: weights.json}",
            4,
            "stage 'align': part: no file weights.json",
        ),
    ],
)
def test_what_parts_of_a_reward_say_points_at_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reward: str, line: int, message: str
) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "is it?"}\n' * 2, encoding="utf-8")
    (tmp_path / "parts.py").write_text(REWARDS, encoding="utf-8")
    text = (
        "model:\n"
        "  base: tiny\n"
        "stages:\n"
        "  align:\n"
        "    algorithm: rloo\n"
        "    prompts: p.jsonl\n"
        "    reward:\n"
        "      "
    )
    (tmp_path / "small.yaml").write_text(f"{text}{reward}\n", encoding="utf-8")
    assert (
        main(["check", str(tmp_path / "small.yaml"), "--plugin", str(tmp_path / "parts.py")]) != 0
    )
    err = capsys.readouterr().err
    assert message in err and f"small.yaml:{line}:" in err


@pytest.mark.silent_bug(
    "check: code of rewards",
    "A check says ok, and the run stops when it imports the reward, hours into the queue.",
    "`check` imports the code that a recipe names, and compares its arguments with the columns.",
    "inclusionAI/AReno#9",
)
def test_check_imports_rewards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "asked.jsonl").write_text('{"prompt": "2 + 2?", "answer": "4"}\n')
    stage = {
        "algorithm": "grpo",
        "prompts": "asked.jsonl",
        "reward": {"python": {"path": "mine.py", "function": "f"}},
    }
    recipe = {"model": {"base": "tiny"}, "stages": {"align": stage}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    check = ["check", str(tmp_path / "recipe.yaml")]
    for source, told in {
        ("import no_such_module\ndef f(completions): ..."): (
            "No module named 'no_such_module' (line 1"
        ),
        "def f(completions, anser): ...": (
            "needs the argument 'anser', but no prompt has a column of this name"
        ),
    }.items():
        (tmp_path / "mine.py").write_text(source)
        assert main(check) in (2, 4) and told in capsys.readouterr().err
    (tmp_path / "mine.py").write_text("def f(completions, answer): ...")
    assert main(check) == 0 and capsys.readouterr().out.endswith("ok: recipe: stages align\n")
