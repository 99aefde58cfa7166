"""One prompt: whatever samples reads a row as the template renders it, with its tools and its
system message.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

import alignkit
from alignkit.cli import main
from alignkit.io.text import cache_folder
from alignkit.models import models
from alignkit.recipe.schema import Stage
from alignkit.runs.services import Services
from alignkit.training import rollouts
from alignkit_plugins.models import tiny
from alignkit_plugins.models.templates import HERMES

BLOCK = "<think>\n\n</think>\n\n"  # of a thought, which prompts and finished answers begin with
TEMPLATE = HERMES.replace(
    "assistant\n' }}{% endif %}", f"assistant\n{BLOCK}' }}}}{{% endif %}}"
).replace(
    "m['role'] + '\n' }}",
    f"m['role'] + '\n' + ('{BLOCK}' if m['role'] == 'assistant' else '') }}}}",
)
FUNCTION = {
    "name": "weather",
    "description": "of a city",
    "parameters": {"type": "object", "properties": {}},
}
TOOLS = [{"type": "function", "function": FUNCTION}]
ROWS = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"weather in {city}?"},
        ],
        "tools": TOOLS,
        "answers": ["sunny", "rain"][number],
        "opinion": "hail",
    }
    for number, city in enumerate(("Oslo", "Rome"))
]
SCORES = (
    "def reward(completions):\n    return [float(sum(map(ord, c)) % 97) for c in completions]\n"
)
PYTHON = {"python": {"path": "reward.py", "function": "reward"}}
CORRECT = {"honesty_accuracy": {"match": "contains"}}
JUDGE = {"local_judge": {"role": "base", "min_mass": 0}}
SHORT = {"sampling": {"max_new_tokens": 4}}
LEARNED = {
    "iterations": 1,
    "prompts_per_iteration": 2,
    "rollout": {"samples_per_prompt": 4, "max_new_tokens": 4},
}
WON = {"rlaif": {"judge": JUDGE}}
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"algorithm": "sft", "data": "demos.jsonl"},
    "said": {"step": "sample", "policy": "sft", **SHORT},
    "best": {
        "step": "sample",
        "policy": "sft",
        "samples_per_prompt": 2,
        "reward": PYTHON,
        "keep": "best",
        **SHORT,
    },
    "report": {
        "step": "evaluate",
        "policies": ["sft"],
        "rewards": [PYTHON],
        **SHORT,
    },
    "pairs": {"step": "judge_pairs", "policy": "sft", "judge": JUDGE, "no_judge": "warn", **SHORT},
    "calibrated": {"step": "calibration", "policies": ["sft"], "correct": CORRECT, **SHORT},
    "pressed": {"step": "sycophancy", "policies": ["sft"], "correct": CORRECT, **SHORT},
    "chosen": {"step": "select_best", "policies": ["base", "sft"], "reward": PYTHON, **SHORT},
    "grpo": {
        "algorithm": "grpo",
        "reward": PYTHON,
        "monitors": [{"gold": {"reward": PYTHON}}],
        **LEARNED,
    },
    "against": {
        "algorithm": "grpo",
        "reward": {
            "weighted_sum": {
                "rewards": {"one": PYTHON, "other": WON},
                "weights": {"one": 1, "other": 1},
            }
        },
        **LEARNED,
    },
    "ppo": {"algorithm": "ppo", "reward": PYTHON, **LEARNED},
    "rejection": {"algorithm": "rejection_sampling", "reward": PYTHON, **LEARNED},
    "online": {"algorithm": "online_dpo", "reward": PYTHON, **LEARNED},
    "revised": {
        "step": "revise",
        "policy": "sft",
        "constitution": "harmless",
        "rounds": 1,
        **SHORT,
    },
}
CONTINUED = {"revised", "pressed"}  # which also ask for more in the same conversation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    said = {"role": "assistant", "content": "It is sunny."}
    demos = [{"messages": [*row["messages"], said], "tools": TOOLS} for row in ROWS]
    (folder / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in demos))
    (folder / "reward.py").write_text(SCORES)
    (folder / "template.jinja").write_text(TEMPLATE)
    stages = {
        name: {
            **keys,
            **({} if name == "sft" else {"prompts": "prompts.jsonl"}),
        }
        for name, keys in STAGES.items()
    }
    model = {"base": "tiny", "dtype": "float32", "chat_template": "template.jinja"}
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump({"model": model, "stages": stages}, sort_keys=False)
    )
    return folder


@pytest.fixture(scope="module")
def expected() -> list[tuple[int, ...]]:
    tokenizer = AutoTokenizer.from_pretrained(tiny.source(cache_folder()))
    keys: dict[str, Any] = {
        "tools": TOOLS,
        "chat_template": TEMPLATE,
        "add_generation_prompt": True,
    }
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False, **keys) for row in ROWS]
    return [tuple(tokenizer(text)["input_ids"]) for text in texts]


@pytest.fixture(scope="module")
def asked(folder: Path) -> dict[str, list[tuple[int, ...]]]:
    """The prompts that every stage's policies read."""
    asked: dict[str, list[tuple[int, ...]]] = {name: [] for name in STAGES}
    begun: list[str] = []
    generate, models_for, patch = models.generate, Services.models_for, pytest.MonkeyPatch()

    def noted(request: Any, **named: Any) -> Any:
        asked[begun[-1]].extend(request.prompts)
        return generate(request, **named)

    def entered(services: Services, stage: Stage) -> Any:
        begun.append(stage.name)
        return models_for(services, stage)

    patch.setattr(models, "generate", noted)
    patch.setattr(rollouts, "generate", noted)
    patch.setattr(Services, "models_for", entered)
    try:
        # The last stage fails, because so short a revision has no end.
        assert main(["run", str(folder / "recipe.yaml"), "--out", str(folder / "run")]) == 1
        assert begun == list(STAGES)
    finally:
        patch.undo()
    return asked


@pytest.mark.silent_bug(
    "prompts: tools are missing",
    "One of the places that render prompts is not passed the row's tools, so a policy is sampled "
    "or measured on other prompts than it learned.",
    "A prompt is a group with its tools, and one renderer is given it by whatever samples.",
    "oumi-ai/oumi#2605",
)
@pytest.mark.parametrize("stage", [name for name in STAGES if name != "sft"])
def test_whatever_samples_reads_the_rows_prompt(stage: str, asked: Any, expected: Any) -> None:
    assert set(expected) <= set(asked[stage])
    begun = [prompt[: expected[0].index(expected[0][-1])] for prompt in expected]
    if stage not in CONTINUED:
        assert set(asked[stage]) == set(expected)
    assert all(any(prompt[: len(start)] == start for start in begun) for prompt in asked[stage])


def test_check_shows_the_same_prompt(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(folder / "recipe.yaml"), "said", "1"]) == 0
    shown = capsys.readouterr().out.replace("|", "")  # between tokens
    assert (
        '"description": "of a city"' in shown
        and "Be brief." in shown
        and "weather in Oslo?" in shown
    )


def test_the_template_is_called_at_one_place() -> None:
    root = Path(alignkit.__file__).parents[1]
    calling = [
        path.relative_to(root).as_posix()
        for package in ("alignkit", "plugins")
        for path in (root / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "apply_chat_template"
    ]
    assert calling == ["alignkit/tokens/template.py"]
