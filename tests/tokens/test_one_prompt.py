"""One prompt: whatever samples reads a row as the template renders it, with its tools and its
system message.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from alignkit.cli import main
from alignkit.io.text import cache_folder
from alignkit.models import generate as engines
from alignkit.recipe.schema import Stage
from alignkit.runs.services import Services
from alignkit_plugins.bases import tiny
from alignkit_plugins.bases.templates import HERMES
from tests.rows import assistant, run, write_recipe, write_rows

BLOCK = "<think>\n\n</think>\n\n"  # of a thought, which prompts and finished answers begin with
TEMPLATE = HERMES.replace(
    "assistant\n' }}{% endif %}", f"assistant\n{BLOCK}' }}}}{{% endif %}}"
).replace(
    "m['role'] + '\n' }}",
    f"m['role'] + '\n' + ('{BLOCK}' if m['role'] == 'assistant' else '') }}}}",
)
ROWS = yaml.safe_load("""
- messages: [{role: system, content: Be brief.}, {role: user, content: "weather in Oslo?"}]
  tools: &tools
  - type: function
    function: {name: weather, description: of a city, parameters: {type: object, properties: {}}}
  answers: sunny
  opinion: hail
- messages: [{role: system, content: Be brief.}, {role: user, content: "weather in Rome?"}]
  tools: *tools
  answers: rain
  opinion: hail
""")
RECIPE = """
model: {base: tiny, dtype: float32, chat_template: template.jinja}
sampling: &short {max_new_tokens: 4}
python: &python {python: {path: reward.py, function: reward}}
correct: &correct {honesty_accuracy: {match: contains}}
judge: &judge {local_judge: {role: base, min_mass: 0}}
learned: &learned
  prompts: prompts.jsonl
  iterations: 1
  prompts_per_iteration: 2
  rollout: {samples_per_prompt: 4, max_new_tokens: 4}
asked: &asked {prompts: prompts.jsonl, sampling: *short}
stages:
  sft: {algorithm: sft, data: demos.jsonl}
  said: {step: sample, policy: sft, <<: *asked}
  best: {step: sample, policy: sft, samples_per_prompt: 2, reward: *python, keep: best, <<: *asked}
  report: {step: evaluate, policies: [sft], rewards: [*python], <<: *asked}
  pairs: {step: judge_pairs, policy: sft, judge: *judge, no_judge: warn, <<: *asked}
  calibrated: {step: calibration, policies: [sft], correct: *correct, <<: *asked}
  pressed: {step: sycophancy, policies: [sft], correct: *correct, <<: *asked}
  chosen: {step: select_best, policies: [base, sft], reward: *python, <<: *asked}
  grpo: {algorithm: grpo, reward: *python, monitors: [{gold: {reward: *python}}], <<: *learned}
  against:
    algorithm: grpo
    reward:
      weighted_sum:
        rewards: {one: *python, other: {rlaif: {judge: *judge}}}
        weights: {one: 1, other: 1}
    <<: *learned
  revised: {step: revise, policy: sft, constitution: harmless, rounds: 1, <<: *asked}
"""
STAGES = list(yaml.safe_load(RECIPE)["stages"])
CONTINUED = {"revised", "pressed"}  # which also ask for more in the same conversation
REWARD = """
def reward(completions):
    return [float(sum(map(ord, completion)) % 97) for completion in completions]
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    write_rows(folder / "prompts.jsonl", ROWS)
    demos = [
        {"messages": [*row["messages"], assistant("It is sunny.")], "tools": row["tools"]}
        for row in ROWS
    ]
    write_rows(folder / "demos.jsonl", demos)
    (folder / "reward.py").write_text(REWARD)
    (folder / "template.jinja").write_text(TEMPLATE)
    whole = yaml.safe_load(RECIPE)
    return write_recipe(folder, whole["stages"], whole["model"])


@pytest.fixture(scope="module")
def expected() -> list[tuple[int, ...]]:
    tokenizer = AutoTokenizer.from_pretrained(tiny.source(cache_folder()))
    keys: dict[str, Any] = {"chat_template": TEMPLATE, "add_generation_prompt": True}
    return [
        tuple(
            tokenizer.apply_chat_template(row["messages"], tools=row["tools"], **keys)["input_ids"]
        )
        for row in ROWS
    ]


@pytest.fixture(scope="module")
def asked(recipe: Path) -> dict[str, list[tuple[int, ...]]]:
    """The prompts that every stage's policies read."""
    asked: dict[str, list[tuple[int, ...]]] = {name: [] for name in STAGES}
    begun: list[str] = []
    generate, models_for = engines.generate, Services.models_for

    def noted(request: Any, *done: Any) -> Any:
        asked[begun[-1]].extend(request.prompts)
        return generate(request, *done)

    def entered(services: Services, stage: Stage) -> Any:
        begun.append(stage.name)
        return models_for(services, stage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "generate", noted)
        patch.setattr(Services, "models_for", entered)
        run(recipe, code=1)  # the last stage fails, because so short a revision has no end
    assert begun == STAGES
    return asked


@pytest.mark.silent_bug(
    "prompts: tools are missing",
    "One of the places that render prompts is not passed the row's tools, so a policy is sampled "
    "or measured on other prompts than it learned.",
    "A prompt is a group with its tools, and one renderer is given it by whatever samples.",
    "oumi-ai/oumi#2605",
)
@pytest.mark.parametrize("stage", STAGES[1:])
def test_whatever_samples_reads_the_rows_prompt(stage: str, asked: Any, expected: Any) -> None:
    assert set(expected) <= set(asked[stage])
    begun = [prompt[: expected[0].index(expected[0][-1])] for prompt in expected]
    if stage not in CONTINUED:
        assert set(asked[stage]) == set(expected)
    assert all(any(prompt[: len(start)] == start for start in begun) for prompt in asked[stage])


def test_check_shows_the_same_prompt(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(recipe), "said", "1"]) == 0
    shown = capsys.readouterr().out.replace("|", "")  # between tokens
    assert all(text in shown for text in ('"of a city"', "Be brief.", "weather in Oslo?"))
