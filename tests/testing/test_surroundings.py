"""What a run puts around a plugin under test: options, models and data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import DataRef, Field, Group, JudgeRef, Options, PolicyRef, Reward, RewardRef
from alignkit.data.group import responses_of
from alignkit.models.shared_model import UNMODIFIED
from alignkit.recipe.schema import RewardSpec
from alignkit.testing import ConformanceError, check_reward, example_groups
from alignkit.testing.surroundings import Surroundings, TinyModels, turned_groups


class Refers(Reward):
    class Options(Options):
        reward: RewardRef = Field("helpful", description="a reward")
        judge: JudgeRef = Field(None, description="a judge")
        policy: PolicyRef = Field("sft@2", description="a policy")
        data: DataRef = Field(None, description="data")
        file: Path | None = Field(None, description="a file")

    def score(self, groups: Sequence[Group]) -> Mapping[str, Any]:
        return [0.0 for group in groups for _ in group.responses]


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    return Surroundings(tmp_path, tmp_path)


def test_references_become_what_a_run_makes_of_them(around: Surroundings) -> None:
    (around.folder / "x.py").touch()
    raw: dict[str, Any] = {
        "reward": {"length": {"unit": "words"}},
        "judge": "local_judge",
        "data": ["a.jsonl", "b.jsonl"],
        "file": "x.py",
    }
    options: Any = around.component("reward", Refers, raw).options
    assert options.reward.kind == "reward"
    assert options.reward.component.options.unit == "words"
    assert options.judge.name == "local_judge" and options.policy == "sft@2"
    assert [source.name for source in options.data.sources] == ["a.jsonl", "b.jsonl"]
    assert options.file == around.folder / "x.py"
    for reward, spec in (
        ("helpful", RewardSpec("stage", "helpful")),
        ({"folder": "models/rm"}, RewardSpec("folder", "folder")),
    ):
        assert around.component("reward", Refers, {"reward": reward}).options.reward == spec


REFUSED = yaml.safe_load("""
- [{colour: 3}, "a recipe with these options is refused: unknown key 'colour'"]
- [{judge: nobody}, no judge 'nobody']
- [{reward: {python: {path: x.py}}}, "'reward.python.function' is missing"]
""")


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_options_that_a_recipe_may_not_have(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConformanceError, match=f"Refers: .*{message}"):
        check_reward(Refers, options)


def test_every_stage_has_weights_of_its_own_the_same_in_every_check() -> None:
    groups, found = example_groups()[:1], []
    for _ in range(2):
        models = TinyModels()
        before = set(models.model.roles)
        base, sft, other = (
            models[role].logprobs(groups)[0] for role in (UNMODIFIED, "sft", "sft@2")
        )
        assert not base.equal(sft) and not sft.equal(other)
        first, second = (models[stage].scores(groups) for stage in ("helpful", "harmless"))
        assert len(first) == len(groups[0].responses) and first != second
        assert models.used == {UNMODIFIED, "sft", "sft@2", "helpful", "harmless"}
        models.close()
        assert set(models.model.roles) == before
        found.append((sft.tolist(), first))
    assert found[0] == found[1]


def test_rollouts_have_tokens_and_one_is_silent(around: Surroundings) -> None:
    responses = responses_of(around.rollouts)
    assert all(response.tokens for response in responses)
    assert any(each.truncated for each in responses)
    assert any(False in (each.action_mask or ()) for each in responses)
    assert [response.text for response in responses].count("") == 1
    assert all(group.pairs is None for group in around.rollouts)
    assert list(responses_of(turned_groups(around.rollouts))) == list(responses)[::-1]
