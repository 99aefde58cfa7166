"""The JSON schema accepts what `alignkit check` accepts, and catches what an editor can catch."""

from typing import Any

import jsonschema_rs
import pytest
import yaml

from alignkit.host.plugins import load_plugins
from alignkit_plugins.recipe_tools.options import recipe_schema

Schema = dict[str, Any]


@pytest.fixture(scope="module")
def schema() -> Schema:
    return recipe_schema(load_plugins())


def fits(value: Any, schema: Schema) -> bool:
    return bool(jsonschema_rs.Draft202012Validator(schema).is_valid(value))


STAGES = """\
fits      {algorithm: sft, data: rows.jsonl, validation: {path: x, limit: 3}}
fits      {algorithm: {ppo: {clip_range: 0.1}}, reward: {folder: x}, rollout: {top_p: 0.9}}
fits      {algorithm: "my-package:ppo", data: [a.jsonl, {text: {path: b, paragraphs: true}}]}
fits      {step: "my-package:judge", anything: 1}
does not  {algorithm: {ppo: {}, dpo: {}}}
fits      {step: instruct, data: rows.jsonl, instruction: be kind}
fits      {repeat: 2, stages: {a: {algorithm: sft}}}
fits      {step: revise, policy: base, prompts: x, constitution: harmless}
fits      {step: revise, policy: base, prompts: x, constitution: [{name: a, compare: b}]}
does not  {step: revise, policy: base, prompts: x, constitution: [{nam: a, compare: b}]}
does not  {algorithm: spo, data: x}
does not  {algorithm: sft, dta: x}
does not  {algorithm: sft, data: x, epochs: 0}
does not  {algorithm: {ppo: {clip_rnge: 0.1}}}
does not  {algorithm: {ppo: {clip_range: -1}}}
does not  {step: instruct, data: x}
"""


@pytest.mark.parametrize("row", STAGES.splitlines())
def test_a_stage_fits_as_a_check_accepts_it(row: str, schema: Schema) -> None:
    stage = yaml.safe_load(row[10:])
    recipe = {"model": {"base": "tiny"}, "stages": {"only": stage}}
    assert fits(recipe, schema) == row.startswith("fits")


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("{model: {base: x, lora: none}, stages: {a: {algorithm: sft}}}", True),
        ("{extends: base.yaml, stages: {only: {epochs: 2}}}", True),
        ("{model: {base: tiny, quantization: nf5}, stages: {a: {algorithm: sft}}}", False),
        ("{model: {base: tiny}}", False),
    ],
)
def test_a_recipe_fits_as_a_check_accepts_it(text: str, good: bool, schema: Schema) -> None:
    assert fits(yaml.safe_load(text), schema) == good


def test_keys_are_described(schema: Schema) -> None:
    stage = schema["$defs"]["Settings"]
    assert stage["properties"]["data"]["$ref"] == "#/$defs/alignkit.data"
    assert (
        stage["properties"]["data"]["description"]
        and stage["properties"]["max_length"]["description"]
    )
