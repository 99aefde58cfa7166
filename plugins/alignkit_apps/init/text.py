"""The text of a first recipe: its parts, and which of them some data call for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import yaml

from alignkit.recipe.schema import BASE
from alignkit.recipe.shipped import SCHEMA_LINE

EXAMPLE = {
    "demos": """\
{"prompt": "What is 2 + 2?", "completion": "It is 4."}
{"prompt": "What is 3 + 1?", "completion": "It is 4."}
{"prompt": "What is the color of grass?", "completion": "It is green."}
{"prompt": "What is the color of snow?", "completion": "It is white."}
""",
    "pairs": """\
{"prompt": "What is 2 + 3?", "chosen": "It is 5.", "rejected": "Who knows?"}
{"prompt": "What is 4 + 1?", "chosen": "It is 5.", "rejected": "I will not say."}
{"prompt": "What is the color of the sky?", "chosen": "It is blue.", "rejected": "Look it up."}
{"prompt": "What is the color of coal?", "chosen": "It is black.", "rejected": "Why?"}
""",
    "prompts": """\
{"prompt": "What is 1 + 1?"}
{"prompt": "What is 5 + 2?"}
{"prompt": "What is the color of blood?"}
{"prompt": "What is the color of milk?"}
""",
}
_HEAD = """\
{schema}
# {what}
# Check it: alignkit check FILE. See a row as a stage sees it: alignkit check FILE STAGE.
# Run it: alignkit run FILE. The same command continues it after an interruption, and repeats only what has changed.
name: {name}
model:
  base: {base} # a hub id, a folder, or a name that `alignkit plugins model` lists
  lora: {{r: {rank}, lora_alpha: {alpha}}} # `lora: none` trains all weights

stages:
"""
_ON_DEMOS = """\
  sft: # learn from demonstrations
    algorithm: sft
    data: {demos}
    epochs: {epochs}
"""
_ON_PAIRS = """\
  dpo: # learn from pairs, without a reward model
    algorithm: dpo
    from: {start}
    data: {pairs}
    epochs: 1
"""
_ON_PROMPTS = """\
  reward: # a model of what makes a response better
    algorithm: reward_model
    from: {start}
    data: {pairs}
    epochs: 1
  ppo: # sample, score, learn. To swap the algorithm, write grpo, rloo or online_dpo
    algorithm: ppo
    from: {start}
    prompts: {prompts}
    reward: reward
    rollout: {{samples_per_prompt: 4, max_new_tokens: {tokens}}}
    iterations: {iterations}
    prompts_per_iteration: 8
"""
_REPORT = """\
  report: # compare with the untouched base, on prompts that are held out
    step: evaluate
    policies: [{policies}]
    measures: # nothing is trained on them. Better ones say what is good here; so do `judges:` or `people: {{}}`
      repeated words: {{reward: {{repetition: {{scale: 1}}}}, better: lower}}
{rewards}    prompts: {heldout}
    limit: 50
    sampling: {{max_new_tokens: {tokens}}}
"""
_HELD_OUT = 0.2  # of the prompts
_SIZES = {"rank": 16, "alpha": 32, "tokens": 64, "iterations": 10, "epochs": 2}
_TINY = {"rank": 4, "alpha": 8, "tokens": 16, "iterations": 2, "epochs": 2}
_BASES = ("smollm2-135m-instruct # small enough for a CPU;", "tiny # random weights, which learn nothing;")


@dataclass(frozen=True)
class Source:
    """A data file as the recipe names it, and its format.

    named: whether the recipe must name the format. columns: those that the recipe renames: expected -> actual.
    several: whether it has more than one prompt, so that some can be held out. template: a guess at what the columns
    are. unused: the columns that the template leaves out.
    """

    path: str
    format: str
    named: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    several: bool = True
    template: Mapping[str, str] = field(default_factory=dict)
    unused: Sequence[str] = ()

    def assumed(self) -> list[str]:
        """What the file does not say, in lines; none if it says everything."""
        if self.template:
            lines = [f"  {name}: {json.dumps(text, ensure_ascii=False)}" for name, text in self.template.items()]
            unused = [f"  not used: {', '.join(self.unused)}"] if self.unused else []
            return [f"assumed of {self.path}, which no format reads:", *lines, *unused]
        means = [f"the {name} is '{column}'" for name, column in self.columns.items()]
        means += [f"the format is {self.format}"] if self.named else []
        return [f"assumed of {self.path}: {', '.join(means)}"] if means else []

    def yaml(self, part: str = "") -> str:
        """The source in a recipe, with some prompts held out. part: training or validation; empty: both."""
        keys = [f"path: {quoted(self.path)}"]
        for key, values in (("columns", self.columns), ("template", self.template)):
            if values:
                keys.append(
                    f"{key}: {{{', '.join(f'{quoted(name)}: {quoted(text)}' for name, text in values.items())}}}"
                )
        if self.several:
            keys += [f"validation: {_HELD_OUT}"] + [f"part: {part}"] * bool(part)
        text = f"{{{', '.join(keys)}}}" if len(keys) > 1 else quoted(self.path)
        if self.template:
            return f"{text} # assumed; look at a row: alignkit check FILE STAGE"
        if self.named:
            return f"{{{self.format}: {text}}}"
        return text if self.columns else f"{text} # recognized: {self.format}"


def recipe_text(name: str, base: str | None, sources: Mapping[str, Source], *, example: bool) -> str:
    """The recipe for data by kind: demos, pairs, prompts. example: whether they are those of EXAMPLE."""
    has = [kind for kind in EXAMPLE if kind in sources]
    parts = [{"demos": _ON_DEMOS, "pairs": _ON_PAIRS, "prompts": _ON_PROMPTS}[kind] for kind in has]
    asked = next((sources[kind] for kind in ("prompts", "demos", "pairs") if kind in has), None)
    policies = [BASE, *({"demos": "sft", "pairs": "dpo", "prompts": "ppo"}[kind] for kind in has)]
    what = "A tiny example, to be replaced by your own model and data." if example else "A first recipe for your data."
    start = _ON_DEMOS.split(":")[0].strip() if "demos" in sources else BASE
    text = "".join([_HEAD, *parts, *([_REPORT] if asked and asked.several else [])]).format(
        schema=SCHEMA_LINE,
        what=what,
        name=quoted(name),
        base=quoted(base) if base else _BASES[example],
        start=start,
        **(_TINY if example else _SIZES),
        policies=", ".join(policies),
        rewards="    rewards: [reward]\n" if "prompts" in has else "",
        heldout=asked.yaml("validation") if asked else "",
        **{kind: source.yaml("training" if kind == "prompts" else "") for kind, source in sources.items()},
    )
    return text.replace("; # a hub id", "; or a hub id")


def quoted(text: str) -> str:
    """A text as YAML, in quotes if it needs them."""
    plain = re.fullmatch(r"[A-Za-z_/.][\w./-]*", text) and yaml.safe_load(text) == text
    return text if plain else json.dumps(text, ensure_ascii=False)
