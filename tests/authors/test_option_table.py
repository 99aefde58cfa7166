"""Options as text: types, ranges and defaults read from the fields themselves."""

from pathlib import Path
from typing import Annotated, Any, Literal

from alignkit import Algorithm, DataRef, Field, Options
from alignkit.contract.algorithm import Source, StageDefaults
from alignkit.contract.options import Ref, StageRef
from alignkit.contract.settings import LoraSpec, Mix, ModelSpec, Rollout, Settings
from alignkit.host.plugins import load_plugins
from alignkit.host.registry import KINDS
from alignkit.recipe.rules import required_keys
from alignkit.recipe.schema import TopKeys
from alignkit.recipe.sources import DataSource
from alignkit_plugins.algorithms.distillation import Distillation
from alignkit_plugins.recipe_tools.blocks import BlockKeys
from alignkit_plugins.recipe_tools.options import (
    option_rows,
    stage_defaults,
    value_text,
)

CORE = (TopKeys, BlockKeys, DataSource, ModelSpec, LoraSpec, Rollout, Mix, Settings)


class Sample(Options):
    rate: float = Field(1e-5, gt=0, lt=1, description="a rate\n  on two lines")
    count: int | None = Field(None, ge=1, le=9)
    on: bool = True
    mode: Literal["a", "b"] = "a"
    source: Annotated[str, Ref("from")] | None = Field(None, alias="from")
    data: DataRef = None
    stages: list[StageRef] = Field(default_factory=list)
    file: Path
    words: str = "x" * 100
    lines: str = "a\nb"
    table: dict[str, Any] = Field(default_factory=dict)


def test_rows() -> None:
    rows = {row.name: (row.type_and_range, row.default) for row in option_rows(Sample)}
    assert rows == {
        "rate": ("number, > 0 and < 1", "1e-5"),
        "count": ("integer, 1 to 9", "null"),
        "on": ("boolean", "true"),
        "mode": ("a | b", "a"),
        "from": ("stage or folder", "null"),
        "data": ("data", "null"),
        "stages": ("list of stages", "empty"),
        "file": ("file", "required"),
        "words": ("text", "built-in"),
        "lines": ("text", "built-in"),
        "table": ("mapping", "empty"),
    }
    assert option_rows(Sample)[0].description == "a rate on two lines"


def test_values_are_written_as_in_a_recipe() -> None:
    values = [None, False, 1e-8, 2e-4, [0.5, 1], {"eps": 1e-5}, ""]
    text = "null; false; 1e-8; 0.0002; [0.5, 1]; {eps: 1e-5}; empty"
    assert "; ".join(map(value_text, values)) == text


def test_facts_of_an_algorithm() -> None:
    class Online(Algorithm):
        source = Source.ROLLOUTS
        defaults = StageDefaults(learning_rate=1e-5, epochs=2)

    assert stage_defaults(Online) == {"learning_rate": "1e-5", "epochs": "2"}
    assert required_keys(Online) == ("prompts", "reward")
    assert required_keys(Distillation) == ("prompts",)
    assert required_keys(Algorithm) == ("data",)


def test_every_key_of_the_core_and_option_of_a_first_party_plugin_has_a_description() -> None:
    models: list[type[Options]] = [*CORE]
    for kind in KINDS:
        for one in load_plugins().registrations(kind):
            if one.distribution == "alignkit" and hasattr(one.implementation, "Options"):
                assert one.summary
                # Those of optimizers are arguments of libraries
                models += [one.implementation.Options] * (one.plugin != "alignkit_optimizers")
    for model in models:
        assert all(row.description for row in option_rows(model)), model
