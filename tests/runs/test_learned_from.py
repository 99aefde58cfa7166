"""Whether a policy learned from a reward or a judge."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import Options
from alignkit.contract.options import RewardRef
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe, RewardSpec
from alignkit.runs.run import run_recipe
from alignkit_plugins.evals import learned_from as lineage
from alignkit_plugins.evals.learned_from import RECIPE
from tests.evals.scripted import component
from tests.rows import cells, read_json, write_rows

TEXT = """
name: small
model: {base: tiny}
stages:
  sft: {algorithm: sft, data: demos.jsonl}
  helpful: {algorithm: reward_model, from: sft, data: pairs.jsonl}
  gold: {algorithm: reward_model, from: sft, data: gold_pairs.jsonl}
  other: {algorithm: reward_model, from: sft, data: pairs.jsonl}
  ppo:
    algorithm: ppo
    from: sft
    prompts: prompts.jsonl
    reward: {llama2: {helpful: helpful, safety: {length: {unit: characters}}}}
    monitors: [{gold: {reward: gold}}]
    iterations: 1
  dpo: {algorithm: dpo, from: sft, data: pairs.jsonl}
  labels: {step: judge_pairs, judge: {local_judge: {min_mass: 0.1}}, policy: sft, prompts: prompts.jsonl}
  labeled: {algorithm: dpo, from: ppo, data: labels}
  report:
    step: evaluate
    policies: [sft, ppo, dpo, labeled]
    rewards: [helpful, gold, other, length, refusal]
    judges: [local_judge, {openai_judge: {server: {model: x, base_url: "http://localhost:1/v1"}}}]
    prompts: prompts.jsonl
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    rows = yaml.safe_load("""
    pairs: &pair {prompt: a, chosen: b, rejected: c}
    gold_pairs: *pair
    demos: {prompt: a, response: b}
    prompts: {prompt: a}
    """)
    for name, row in rows.items():
        write_rows(tmp_path / f"{name}.jsonl", [row])
    return load(tmp_path, TEXT)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of another run."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def load(folder: Path, text: str) -> Recipe:
    (folder / "recipe.yaml").write_text(text)
    return load_recipe(folder / "recipe.yaml")


def options(recipe: Recipe) -> Any:
    """Those of the evaluation."""
    return recipe.stages["report"].component.options


def learned_from(policy: str, rater: Any, recipe: Recipe) -> bool | None:
    return lineage.learned_from(policy, rater, recipe, recipe.folder / ".run")


def learned(recipe: Recipe, policy: str, raters: dict[str, Any]) -> set[str]:
    return {name for name, rater in raters.items() if learned_from(policy, rater, recipe)}


@pytest.fixture
def raters(recipe: Recipe) -> dict[str, Any]:
    return {spec.name: spec for spec in (*options(recipe).rewards, *options(recipe).judges)}


# Its reward and all parts of it; `other` learned from the pairs of `helpful`. Gold watches. Labels
# are of a judge and of earlier stages.
LEARNED = """
ppo | helpful length other
ppo@2 | helpful length other
dpo | helpful other
labeled | helpful other length local_judge
base |
sft |
"""


@pytest.mark.parametrize(("policy", "said"), cells(LEARNED))
def test_a_policy_learned_from_rewards_pairs_and_labels(
    recipe: Recipe, raters: dict[str, Any], policy: str, said: str
) -> None:
    assert learned(recipe, policy, raters) == {*said.split()}


def test_what_chooses_among_samples_teaches(recipe: Recipe, raters: dict[str, Any]) -> None:
    """The best of several answers of `sft` is what the reward and its pairs like."""
    chosen = {
        name
        for name, rater in raters.items()
        if lineage.learned_from("sft", rater, recipe, recipe.folder / ".run", raters["helpful"])
    }
    assert chosen == {"helpful", "other"}


PARTS = """
part: [0.29, 1] | part: [0, 0.6]    | helpful other
part: [0.29, 1] | part: [0.2, 0.61] | helpful other
part: [0.29, 1] | part: [0.1, 0.29] |
hub: a/b        | hub: a/b          | helpful other
hub: a/b        | hub: a/c          |
"""


@pytest.mark.parametrize(("pairs", "other", "said"), cells(PARTS))
def test_other_shares_or_sources_are_other_pairs(
    recipe: Recipe, tmp_path: Path, pairs: str, other: str, said: str
) -> None:
    path = "path: pairs.jsonl, " if "part" in pairs else ""
    text = TEXT.replace("data: pairs.jsonl", f"data: {{{path}{pairs}}}")
    before, dpo, after = text.partition("  dpo:")
    shares = load(tmp_path, before + dpo + after.replace(pairs, other, 1))
    rewards = {spec.name: spec for spec in options(shares).rewards}
    assert learned(shares, "dpo", rewards) == {*said.split()}


def absolute(recipe: Recipe, text: str = TEXT) -> str:
    """The recipe as a run in another folder has it."""
    return re.sub(r"(\w+\.jsonl)", rf"{recipe.folder}/\1", text)


def test_policies_of_other_runs(recipe: Recipe, raters: dict[str, Any], run: Path) -> None:
    folder = str(run / "ppo" / "adapter")
    assert learned_from(folder, raters["length"], recipe) is None
    (run / RECIPE).write_text(absolute(recipe))
    # Also another model, which learned from the same pairs
    said = {name: learned_from(folder, raters[name], recipe) for name in SAID_OF_OTHERS}
    assert said == SAID_OF_OTHERS
    (run / RECIPE).write_text("stages: [")
    assert learned_from(folder, raters["length"], recipe) is None


SAID_OF_OTHERS = {"length": True, "helpful": True, "refusal": False}


def test_a_base_that_another_run_made(recipe: Recipe, raters: dict[str, Any], run: Path) -> None:
    (run / RECIPE).write_text(absolute(recipe))
    (run / "ppo" / "model").mkdir(parents=True)
    again = load(recipe.folder, TEXT.replace("base: tiny", f"base: {run}/ppo/model"))
    assert learned_from("base", raters["length"], again) is True
    assert learned_from("sft", raters["length"], again) is True
    assert learned_from("sft", raters["refusal"], again) is False
    (run / RECIPE).write_text("stages: [")
    assert learned_from("sft", raters["refusal"], again) is None


def test_shares_of_a_file_are_apart_whatever_the_seeds(recipe: Recipe, run: Path) -> None:
    path = recipe.folder / "pairs.jsonl"
    half, other, most = (
        absolute(recipe).replace(f"data: {path}", f"data: {{path: {path}, part: {part}}}")
        for part in ("[0, 0.5]", "[0.5, 1]", "[0, 0.6]")
    )
    rater = RewardSpec("folder", str(run / "helpful" / "adapter"))
    mine = load(recipe.folder, other)
    for share, said in ((half, False), (most, True)):
        (run / RECIPE).write_text(f"seed: {mine.seed + 1}\n{share}")
        assert learned_from("dpo", rater, mine) is said


@pytest.mark.parametrize("which", ["model", "base_url"])
def test_a_judge_is_its_model_on_its_server(
    recipe: Recipe, raters: dict[str, Any], which: str
) -> None:
    server = {"model": "x", "base_url": "http://localhost:1/v1"}
    for change, same in (({}, True), ({which: "http://localhost:2/v1"}, False)):
        judge = f"{{openai_judge: {{server: {json.dumps(server | change)}}}}}"
        taught = load(recipe.folder, TEXT.replace("{local_judge: {min_mass: 0.1}}", judge))
        assert learned_from("labeled", raters["openai_judge"], taught) is same


class Theirs(Options):
    model: str = ""
    above: float = 0


class Named(Theirs):
    @property
    def grader(self) -> str:
        return f"theirs above {self.above}"


@pytest.mark.parametrize(("options", "same"), [(Theirs, True), (Named, False)])
def test_a_strangers_reward_says_itself_what_makes_it_another(options: Any, same: bool) -> None:
    """Whatever its options are called: by default, all of a plugin are one."""
    raters = []
    for at, model in enumerate("ab"):
        made = component("reward", "theirs", None, options(above=at, model=model))
        raters.append(lineage._raters(RewardSpec("reward", "theirs", made), Path()))
    assert (raters[0] == raters[1]) is same


class Own(Options):
    reward: RewardRef


def test_gold_that_chooses_the_result_counts(recipe: Recipe) -> None:
    stopped = load(recipe.folder, TEXT.replace("{reward: gold}", "{reward: gold, stop: true}"))
    gold = next(spec for spec in options(stopped).rewards if spec.name == "gold")
    assert learned_from("ppo", gold, stopped) is True
    assert learned_from("dpo", gold, stopped) is False
    # A monitor of somebody else, which may choose it without saying so
    settings = recipe.stages["ppo"].settings
    assert settings is not None and settings.monitors is not None
    (watches,) = settings.monitors
    assert learned_from("ppo", gold, recipe) is False
    settings.monitors[0] = replace(watches, options=Own(reward=gold))
    assert learned_from("ppo", gold, recipe) is True


def test_what_an_earlier_result_learned_from_is_not_known(
    recipe: Recipe, raters: dict[str, Any]
) -> None:
    # The stage may have had another reward when it made that result.
    assert learned_from("ppo@dpo", raters["length"], recipe) is None
    assert learned_from("ppo@ppo~1", raters["length"], recipe) is None


ASKED = """
name: asked
model: {base: tiny}
stages:
  align: {algorithm: grpo, prompts: seen.jsonl, reward: TAUGHT, iterations: 1, rollout: {max_new_tokens: 4}}
  report:
    step: evaluate
    policies: [base, align]
    baseline: base
    metrics: {m: {reward: MEASURED}}
    prompts: PROMPTS.jsonl
    sampling: {max_new_tokens: 4}
    kl: false
"""


GRADED = (
    "{weighted_sum: {rewards: {a: exact_match, b: {length: {unit: words}}}, weights: {a: 1, b: 1}}}"
)
# An answer that names everything pleases the last one
MEASURES = """
honesty | honesty_accuracy | its own
sycophancy | honesty_accuracy | its own
honesty | {honesty_accuracy: {column: answer}} | another
{length: {scale: 2}} | {length: {unit: words}} | its own
{weighted_sum: {rewards: {l: length}, weights: {l: 1}}} | length | its own
length | refusal | another
exact_match | {exact_match: {within: true}} | its own
{regex: {pattern: a}} | {regex: {pattern: a, scale: 2}} | its own
{regex: {pattern: a}} | {regex: {pattern: b}} | another
"""


def asked(folder: Path, taught: str, measured: str, prompts: str = "held_out") -> Recipe:
    for name in ("seen", "held_out"):
        rows = [{"prompt": f"{name} {n}", "answer": "1", "answers": ["1"]} for n in range(4)]
        write_rows(folder / f"{name}.jsonl", rows)
    text = ASKED.replace("TAUGHT", taught).replace("MEASURED", measured).replace("PROMPTS", prompts)
    return load(folder, text)


def trained_on(folder: Path, taught: str, measured: str, prompts: str = "held_out") -> bool | None:
    folder.mkdir()
    run_recipe(asked(folder, taught, measured, prompts), folder / "run")
    rows = read_json(folder / "run" / "report" / "evaluation.json")["results"]
    (found,) = (row for row in rows if (row["policy"], row["metric"]) == ("align", "m"))
    return found["trained_on"]  # type: ignore[no-any-return]


@pytest.mark.silent_bug(
    "evaluation: own reward",
    "A reward counts as an independent measure of a policy that was trained on it or chosen by "
    "it, with other options.",
    "The lineage of rewards says what a policy learned from: their model, file or grader, not "
    "their options.",
)
@pytest.mark.parametrize(("taught", "measured", "own"), cells(MEASURES))
def test_a_measure_is_its_own_reward_with_other_options(
    taught: str, measured: str, own: str, tmp_path: Path
) -> None:
    recipe = asked(tmp_path, taught, measured)
    found = learned_from("align", options(recipe).metrics["m"].reward, recipe)
    assert found is (own == "its own")


@pytest.mark.silent_bug(
    "evaluation: own reward",
    "Right answers to held-out questions count as no proof, because the policy was trained on "
    "right answers to others.",
    "A known answer to a prompt that was not trained on is independent.",
)
def test_known_answers_to_held_out_prompts_are_proof(tmp_path: Path) -> None:
    assert trained_on(tmp_path / "a", GRADED, "exact_match") is False
    assert trained_on(tmp_path / "b", GRADED, "exact_match", "seen") is True
