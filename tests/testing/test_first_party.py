"""What comes with alignkit passes the kits that authors of plugins use."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import Group, Response, RewardCombination
from alignkit.contract.environment import EPISODE_KEY
from alignkit.host.plugins import plugins
from alignkit.testing import (
    check_combination,
    check_environment,
    check_format,
    check_judge,
    check_model_source,
    check_reward,
    check_step,
    example_groups,
)
from alignkit.testing.tiny import tiny_model
from alignkit_plugins.bases.tiny import source as tiny
from tests.rows import cells

POLITE = "def polite(prompts, completions, **columns):\n    return [len(t) for t in completions]\n"

# Options of each plugin, or why it cannot be checked here. A test fails for one that is missing.
OPTIONS = yaml.safe_load("""
reward:
  abstention: {}
  classifier: "reads a folder: tests/rewards/test_classifier.py"
  environment: {}
  exact_match: {column: right}
  format: {tags: [think, answer]}
  honesty: {column: right}
  honesty_accuracy: {column: right, match: contains}
  http: "asks a server: tests/rewards/test_http_reward.py"
  language: {language: en}
  length: {unit: words, target: 3, scale: 0.5}
  math_verify: {column: right}
  normalized: {reward_model: helpful, data: demonstrations.jsonl, gain: true}
  python: {path: polite.py, function: polite}
  rating: {judge: &judge {local_judge: {min_mass: 0}}}
  refusal: {scale: -1.0}
  regex: {pattern: e+}
  repetition: {}
  rlaif: {judge: *judge}
  rubric: {judge: *judge}
  sycophancy: {column: right}
  # Combinations
  equal_length: {reward: {length: {}}, unit_variance: true}
  llama2: {helpful: helpful, safety: harmless}
  weighted_sum: {rewards: {a: helpful, b: {length: {}}}, weights: {a: 1, b: -0.5}}
step:
  calibration:
    <<: &short {prompts: held_out.jsonl, sampling: {max_new_tokens: 6}}
    policies: [base, sft]
    correct: helpful
    confidence: token
  categorize: {data: rows.jsonl, categories: {a: good, b: bad}, by: base}
  clean: {data: rows.jsonl}
  evaluate: {policies: [base, sft], rewards: [helpful, {length: {}}], <<: *short}
  evaluate_reward: {rewards: [helpful, {length: {unit: characters}}], pairs: rows.jsonl}
  instruct: {data: rows.jsonl, instruction: Be brief.}
  judge_pairs: {judge: {local_judge: {min_mass: 0, role: judge}}, policy: sft, <<: *short}
  lm_eval: "runs another package: tests/evals/test_lm_eval.py"
  people: "waits for people: tests/people/test_people.py"
  questions: "the untrained model writes none: tests/ai_feedback/test_make_data.py"
  red_team: {attacker: base, policy: sft, goals: rows.jsonl, reward: helpful, success: 0.0}
  revise:
    policy: sft
    critic: base
    constitution: harmless
    prompts: held_out.jsonl
    sampling: {max_new_tokens: 64, stop: [e]}  # the untrained model ends no answer by itself
    critique_tokens: 64
  sample: {policy: sft, samples_per_prompt: 2, reward: helpful, keep: best, <<: *short}
  select_best: {policies: [sft@1, sft@2], reward: helpful, <<: *short}
  sycophancy: {policies: [base, sft], correct: {honesty_accuracy: {}}, <<: *short}
judge:
  local_judge: {min_mass: 0, criterion: harmless, role: judge}
  openai_judge: "asks a server: tests/ai_feedback"
  panel: {judges: [*judge, {local_judge: {min_mass: 0, criterion: harmless}}]}
  reward_judge: {reward_model: helpful}
model:
  gguf: "its file: tests/models/test_plugin_models.py"
  tiny: "below"
  smollm2-135m-instruct: "a download"
""")


def first_party(kind: str) -> dict[str, Any]:
    registrations = plugins().registrations(kind)
    return {one.name: one.implementation for one in registrations if one.distribution == "alignkit"}


def checked(kind: str) -> list[str]:
    return [name for name, options in OPTIONS[kind].items() if isinstance(options, dict)]


@pytest.fixture(autouse=True)
def _checks_leave_no_roles() -> Iterator[None]:
    before = set(tiny_model().roles)
    yield
    assert set(tiny_model().roles) == before


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_plugin_is_in_the_table(kind: str) -> None:
    assert first_party(kind).keys() == OPTIONS[kind].keys()


def played(groups: Sequence[Group]) -> list[Group]:
    """As if an environment had given each response a reward of its own."""

    def one(response: Response) -> Response:
        return replace(response, scores={EPISODE_KEY: len(response.text) / 10})

    return [replace(group, responses=tuple(map(one, group.responses))) for group in groups]


def with_meta(**meta: Any) -> Callable[[Sequence[Group]], list[Group]]:
    return lambda groups: [replace(group, meta=meta) for group in groups]


CRITERIA = [{"text": "It is polite.", "weight": 2}, {"text": "It is short."}]
GROUPS: dict[str, Callable[[Sequence[Group]], list[Group]]] = {
    "environment": played,
    "math_verify": with_meta(right="7"),
    "rubric": with_meta(rubric=CRITERIA),
    **dict.fromkeys(
        ("exact_match", "honesty", "honesty_accuracy", "sycophancy"), with_meta(right=["7"])
    ),
}


@pytest.mark.parametrize("name", checked("reward"))
def test_rewards(name: str, tmp_path: Path) -> None:
    if needed := {"math_verify": "math_verify", "language": "py3langid"}.get(name):
        pytest.importorskip(needed)
    cls, options = first_party("reward")[name], OPTIONS["reward"][name]
    if issubclass(cls, RewardCombination):
        check_combination(cls, options)
        return
    (tmp_path / "polite.py").write_text(POLITE, encoding="utf-8")
    groups = GROUPS[name](example_groups()) if name in GROUPS else None
    check_reward(cls, options, folder=tmp_path, groups=groups)


@pytest.mark.parametrize("name", checked("step"))
def test_steps(name: str) -> None:
    asked = {"answers": ["a"], "opinion": "d"}
    opinions = [
        Group(({"role": "user", "content": f"{id}?"},), (Response(text="Yes."),), id=id, meta=asked)
        for id in "abc"
    ]
    groups = opinions if name == "sycophancy" else None
    check_step(first_party("step")[name], OPTIONS["step"][name], groups=groups)


@pytest.mark.parametrize("name", checked("judge"))
def test_judges(name: str) -> None:
    check_judge(first_party("judge")[name], OPTIONS["judge"][name])


# `template` has options that must be there.
@pytest.mark.parametrize("name", sorted(first_party("format").keys() - {"template"}))
def test_formats(name: str) -> None:
    check_format(first_party("format")[name])


# A format, its options, and rows
OTHERS = """
template   | {"prompt": "{{ question }}", "response": "{{ answer }}"} | []
text       | {"paragraphs": true} | [{"text": "Raw text.", "id": 3}]
rankings   | {} | [{"prompt": "Hi", "responses": ["a", "b"], "scores": [1, 2.5]}]
preference | {} | [{"prompt": "Hi", "chosen": "a", "rejected": "b", "p": 0.75}]
"""


@pytest.mark.parametrize(("name", "options", "rows"), cells(OTHERS))
def test_other_rows_of_formats(name: str, options: str, rows: str) -> None:
    check_format(first_party("format")[name], json.loads(options), rows=json.loads(rows))


def test_environments_and_models(tmp_path: Path) -> None:
    (calculator,) = first_party("environment").values()
    rows: list[Any] = [
        {"prompt": "What is 2 + 3?", "answer": "5"},
        {"prompt": "What is 2 * 4?", "answer": 8},
    ]
    call = '<tool_call>{"name": "calculate", "arguments": {"expression": "2 + 3"}}</tool_call>'
    check_environment(calculator, rows=rows, turns=[call, "It is 5."])
    check_model_source(tiny, cache=tmp_path)
    assert [path.name[:5] for path in tmp_path.iterdir() if path.is_dir()] == ["tiny-"]
