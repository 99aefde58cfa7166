"""What a valid recipe becomes; and every mistake is reported at once, at its place, with help."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from documents import place

from alignkit import (
    Algorithm,
    Field,
    Judge,
    Needs,
    Options,
    Reward,
    RewardCombination,
    SamplingOptions,
    Source,
    StageDefaults,
    Step,
    Trains,
)
from alignkit.contract.kinds import Monitor
from alignkit.contract.options import DataRef, JudgeRef, PolicyRef, RewardRef, StageRef
from alignkit.errors import Problem, RecipeError
from alignkit.host.plugins import plugins
from alignkit.host.registry import Origin, Registration, Registry
from alignkit.recipe.load import build
from alignkit.recipe.schema import Recipe
from alignkit.recipe.yaml import dump, load_document


class Plain(Algorithm):
    class Options(Algorithm.Options):
        beta: float = Field(0.1, gt=0, description="pull towards the reference")
        kl_coefficient: float = 0.1

    defaults = StageDefaults(learning_rate=1e-3, epochs=3)


class Scores(Algorithm):
    trains = Trains.REWARD


class Online(Algorithm):
    source = Source.ROLLOUTS
    needs = Needs(min_samples=2)
    defaults = StageDefaults(samples_per_prompt=4, max_new_tokens=64)


class Critic(Online):
    needs = Needs(values=True)


class Length(Reward):
    class Options(Reward.Options):
        target: int | None = Field(None, ge=1)


class Part(Options):
    reward: RewardRef
    weight: float = 1.0


class Sum(RewardCombination):
    class Options(RewardCombination.Options):
        main: RewardRef
        more: list[Part] = Field(default_factory=list)

    def parts(self) -> dict[str, Any]:
        return {"main": self.options.main} | {
            f"more{i}": part.reward for i, part in enumerate(self.options.more)
        }


class Asks(Judge):
    class Options(Judge.Options):
        role: StageRef = "base"


class Talks(Judge):
    class Options(SamplingOptions):
        pass


class Samples(Step):
    class Options(SamplingOptions):
        judge: JudgeRef


class Compare(Step):
    class Options(Step.Options):
        policies: list[PolicyRef] = Field(default_factory=list)
        rewards: dict[str, RewardRef] = Field(default_factory=dict)
        data: DataRef | None = None
        judge: JudgeRef | None = None
        strict: bool = False
        opponent: Literal["none"] | StageRef | None = None
        pair: tuple[StageRef, int] | None = None
        parts: list[Part] = Field(default_factory=list)
        file: Path | None = None
        limit: int = Field(1, ge=1)
        union: int | list[str] = 1
        names: list[str] = Field(default_factory=lambda: ["a"], min_length=1, max_length=2)
        word: str | None = Field(None, pattern="^[a-c]+$")


class Preference:
    class Options(Options):
        chosen: str = "chosen"


@pytest.fixture
def registry() -> Registry:
    result = Registry()
    result.add(Registration("reward_hacking", Monitor, kind="monitor"))
    for kind in ("optimizer", "schedule", "rewrite"):
        for registration in plugins().registrations(kind):
            result.add(registration)
    things: dict[str, dict[str, Any]] = {
        "algorithm": {"plain": Plain, "scores": Scores, "online": Online, "critic": Critic},
        "reward": {"length": Length, "sum": Sum},
        "judge": {"asks": Asks, "talks": Talks},
        "step": {"compare": Compare, "samples": Samples},
        "format": {"pref": Preference},
        "model": {
            "tiny": lambda cache, path="": cache,
            "m1": lambda cache: cache,
            "gguf": lambda cache, path: cache,
        },
    }
    for kind, table in things.items():
        for name, thing in table.items():
            result.add(
                Registration(name, thing, plugin="p", distribution="dist", version="1", kind=kind)
            )
    return result


class Bench:
    """Writes recipes next to two data files and a folder, and loads them."""

    def __init__(self, folder: Path, registry: Registry):
        self.folder, self.registry = folder, registry
        for name in ("d.jsonl", "p.jsonl"):
            (folder / name).write_text("")
        (folder / "rm").mkdir()
        os.mkfifo(folder / "pipe.jsonl")

    def load(self, text: str, *overrides: str) -> Recipe:
        path = self.folder / "r.yaml"
        path.write_text(text)
        return build(load_document(path, overrides), self.registry)

    def stages(self, text: str, *overrides: str) -> Recipe:
        return self.load("model: {base: tiny}\nstages:\n" + text, *overrides)

    def problems(self, text: str, *overrides: str) -> list[Problem]:
        with pytest.raises(RecipeError) as caught:
            self.stages(text, *overrides)
        assert caught.value.exit_code == 2
        return caught.value.problems

    def problem(self, text: str, *overrides: str) -> Problem:
        (problem,) = self.problems(text, *overrides)
        return problem


@pytest.fixture
def bench(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)  # where paths of overrides start
    monkeypatch.setenv("HOME", str(tmp_path / "rm"))
    return Bench(tmp_path, registry)


FIRST = "  first: {algorithm: plain, data: d.jsonl}\n"  # line 3
HELPFUL = "  helpful: {algorithm: scores, from: first, data: d.jsonl}\n"  # line 4
# Lines 5-9
ALIGN = (
    "  align:\n    algorithm: online\n    from: first\n    prompts: p.jsonl\n    reward: helpful\n"
)
ALL = FIRST + HELPFUL + ALIGN


# what a recipe becomes


RIGHT = """\
  + stages.first.epochs=2
  + stages.first.prompts=null
  + stages.align.rollout.temperature=0.7
  + stages.align.rollout.max_new_tokens=null
  ALL
first.settings.epochs                      2
first.settings.batch_size                  16
first.settings.lr_scheduler_type           linear
first.settings.learning_rate               None
align.settings.epochs                      1
align.settings.iterations                  10
align.settings.prompts_per_iteration       32
align.settings.learning_rate               None
align.settings.rollout.samples_per_prompt  4
align.settings.rollout.max_new_tokens      64
align.settings.rollout.temperature         0.7
first.needs.min_samples                    1
align.needs.min_samples                    2

  + stages.first.epochs=null
  + model.quantization=nf4
  ALL
first.settings.epochs  3
recipe.name            r
recipe.seed            0
recipe.folder          HERE
model.lora.r           16
model.quantization     nf4

  + model.lora=none
  + model.base=m
  + name=x
  + stages.align.algorithm=critic
  ALL
model.lora            None
model.base            HERE/m
resolved.name         x
align.component.name  critic

  + model.base=tiny://m
  ALL
model.base            tiny://HERE/m

  + model.base=gpt2
  ALL
model.base            gpt2

  + model.base=org/name
  + stages.align.reward={sum: {main: helpful, more: [{reward: {length: {target: 3}}}, {reward: {folder: rm}}]}}
  ALL
model.base                                org/name
align.settings.reward.kind                combine
align.settings.reward.name                sum
align.settings.reward.children.main.kind  stage
align.settings.reward.children.main.name  helpful
align.settings.reward.children.more0.kind reward
align.settings.reward.children.more0.name length
align.settings.reward.children.more0.component.options.target 3
align.settings.reward.children.more1.kind folder
align.settings.reward.children.more1.name HERE/rm
align.upstream                            first helpful

  first: {algorithm: plain, data: d.jsonl}
  length: {algorithm: scores, from: first, data: d.jsonl}
  align: {algorithm: online, from: first, prompts: p.jsonl, reward: length}
  again: {algorithm: scores, from: length, data: d.jsonl}
align.settings.reward.kind  stage
align.settings.reward.name  length
again.settings.from_        length

  made: {step: compare}
  first:
    algorithm: plain
    data: [~/config.json, {path: p.jsonl, limit: 3, weight: 2}, {pref: {path: d.jsonl, chosen: c, columns: {a: b}}},
      {pref: d.jsonl}, {hub: org/set, name: main, revision: v1, data_files: [a.csv], limit: 4}, made,
      {stage: made, limit: 1}, {hub: m}]
first.settings.data.sources.0.path        HERE/rm/config.json
first.settings.data.sources.0.format      None
first.settings.data.sources.0.on_bad_row  error
first.settings.data.sources.1.limit       3
first.settings.data.sources.1.weight      2.0
first.settings.data.sources.2.format.options.chosen c
first.settings.data.sources.2.columns.a   b
first.settings.data.sources.3.format.name pref
first.settings.data.sources.3.path        HERE/d.jsonl
first.settings.data.sources.4.name        org/set/main[train]
first.settings.data.sources.4.config      main
first.settings.data.sources.4.revision    v1
first.settings.data.sources.4.data_files  a.csv
first.settings.data.sources.4.limit       4
first.settings.data.sources.5.stage       made
first.settings.data.sources.6.stage       made
first.settings.data.sources.6.limit       1
first.settings.data.sources.7.hub         HERE/m
first.upstream                            made

  s: {step: compare, policies: [base, first], judge: {asks: {role: align}}, rewards: {x: helpful}}
  t: {step: compare, opponent: first, pair: [first, 3], parts: [{reward: length}]}
  u: {step: compare, opponent: none}
  ALL
recipe.stages                       first helpful align s t u
s.component.options.policies        base first
s.component.options.judge.options.role align
s.component.options.rewards.x.kind  stage
s.upstream                          first helpful align
s.needs                             None
t.upstream                          first
t.settings                          None
t.component.options.opponent        first
t.component.options.pair.0          first
t.component.options.pair.1          3
t.component.options.parts.0.reward.name length
u.component.options.opponent        none
u.upstream

  s: {step: samples, judge: talks, sampling: {temperature: 0.5}}
s.component.options.judge.options.sampling.temperature  0.5

  first: {algorithm: plain, data: d.jsonl, from: ad}
first.settings.from_  HERE/ad
first.roles           HERE/ad

  + model.lora=none
  first: {algorithm: plain, data: d.jsonl, from: rm}
  s: {step: compare, policies: [base, rm]}
first.whole_models
s.whole_models      HERE/rm

  first: {algorithm: plain, data: d.jsonl, keep_versions: true}
  next: {algorithm: plain, data: d.jsonl, from: first@2}
next.upstream  first

  + stages.rlhf.stages.align.iterations=7
  first: {algorithm: plain, data: d.jsonl}
  rlhf:
    repeat: 3
    start: {align: first}
    stages:
      more: {algorithm: plain, from: align, data: d.jsonl}
      scores: {algorithm: scores, from: first, data: p.jsonl}
      align: {algorithm: online, from: align, prompts: d.jsonl, reward: scores, replay_from: [align@all],
        keep_versions: true}
  report: {step: compare, policies: [first, more, align@all, align@2], rewards: {x: scores}}
  polish:
    repeat: 2
    start: {fine: align}
    stages:
      fine: {algorithm: online, from: fine, reference: align, prompts: d.jsonl, reward: scores,
        replay_from: [align@all]}
recipe.stages  first more_1 scores_1 align_1 more_2 scores_2 align_2 more_3 scores_3 align_3 report fine_1 fine_2
more_1.settings.from_  first
align_1.settings.from_  first
align_1.settings.reward.name  scores_1
align_1.settings.replay_from
more_3.settings.from_  align_2
align_3.settings.from_  align_2
align_3.settings.reward.name  scores_3
align_3.settings.replay_from  align_1 align_2
align_3.settings.iterations  7
report.component.options.policies  first more_3 align_1 align_2 align_3 align_3@2
report.component.options.rewards.x.name  scores_3
fine_1.settings.from_  align_3
fine_1.settings.reference  align_3
fine_1.settings.replay_from  align_1 align_2 align_3
fine_1.settings.reward.name  scores_3
fine_2.settings.from_  fine_1
fine_2.settings.reference  align_3

  rlhf:
    repeat: 2
    stages:
      labels: {step: compare}
      sft: {algorithm: plain, data: d.jsonl, mix: {data: p.jsonl, weight: 1, objective: sft}}
      scores: {algorithm: scores, data: [p.jsonl, labels@all]}
      alone: {algorithm: scores, data: labels@all}
sft_2.settings.mix.objective            sft
scores_2.settings.data.sources.0.stage  None
scores_2.settings.data.sources.1.stage  labels_1
scores_2.settings.data.sources.2.stage  labels_2
scores_1.upstream  labels_1
scores_2.upstream  labels_1 labels_2
alone_1.upstream   labels_1
alone_2.settings.data.sources.1.stage  labels_2
alone_2.upstream   labels_1 labels_2
"""


def fact(recipe: Recipe, path: str) -> str:
    """What a recipe holds at a path, which begins with a stage or a field of the recipe."""
    value: Any = {**vars(recipe), "recipe": recipe, **recipe.stages}
    for key in path.split("."):
        if isinstance(value, Mapping):
            value = value[key]
        else:
            value = value[int(key)] if key.isdigit() else getattr(value, key)
    return " ".join(value) if isinstance(value, Mapping | list | tuple) else str(value)


@pytest.mark.parametrize("block", RIGHT.split("\n\n"))
def test_what_a_recipe_becomes(bench: Bench, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indented lines are stages, or `+` an override; the others are facts. `ALL` is three stages.
    Only the paths of overrides start at the current folder.
    """
    for folder in ("m", "real"):
        (bench.folder / folder).mkdir()
    (bench.folder / "ad").symlink_to("real")
    (bench.folder / "rm" / "config.json").touch()
    (bench.folder / "ad" / "adapter_config.json").write_text("{}")
    lines = block.splitlines()
    overrides = [line[4:] for line in lines if line.startswith("  + ")]
    stages = [line for line in lines if line.startswith("  ") and line[4:] not in overrides]
    if not overrides:
        monkeypatch.chdir("/")
    recipe = bench.stages("\n".join(stages).replace("  ALL", ALL.rstrip()) + "\n", *overrides)
    for line in lines:
        if not line.startswith("  "):
            path, _, wanted = line.partition(" ")
            assert fact(recipe, path).replace(str(bench.folder), "HERE") == wanted.strip(), path


def test_a_part_of_a_reward_is_what_its_options_hold(bench: Bench) -> None:
    override = "stages.align.reward={sum: {main: helpful, more: [{reward: length}]}}"
    settings = bench.stages(ALL, override).stages["align"].settings
    assert settings is not None and settings.reward.component is not None
    assert settings.reward.component.options.more[0].reward is settings.reward.children["more0"]  # type: ignore[attr-defined]


# mistakes

MISTAKES = r"""
  first: {algorithm: plain, data: d.jsonl, epochz: 1}
                                           ^^^^^^ unknown key 'epochz' | 'epochs'

  first: {algorithm: plain, data: d.jsonl, num_train_epochs: 1}
                                           ^^^^^^^^^^^^^^^^ unknown key 'num_train_epochs' | use 'epochs'

  first: {algorithm: plain, data: d.jsonl, beta: 1}
                                           ^^^^ unknown key 'beta' | algorithm: {plain: {beta: ...}}

  first: {algorithm: plain, data: d.jsonl, lora_alpha: 1}
                                           ^^^^^^^^^^ unknown key 'lora_alpha' | known keys

  s: {algorithm: {plain: {epochs: 1}}, data: d.jsonl}
                          ^^^^^^ unknown key 'epochs' | known keys

  s: {algorithm: {plain: {betta: 1}}, data: d.jsonl}
                          ^^^^^ unknown key 'betta' | 'beta'

  s: {algorithm: {plain: {beta: 0}}, data: d.jsonl}
                                ^ must be greater than 0, got 0 | pull towards

  first: {algorithm: plain, data: d.jsonl, batch_size: 1_000}
                                                       ^^^^^ batch_size: must be a valid integer, got '1_000'

  first: {algorithm: plain, data: d.jsonl, epochs: true}
                                                   ^^^^ must be a valid integer, got true

  first: {algorithm: plain, data: d.jsonl, epochs: 1.5}
                                                   ^^^ must be a valid integer, got 1.5

  first: {algorithm: plain, data: d.jsonl, keep_versions: yes}
                                                          ^^^ must be a valid boolean, got 'yes'

  first: {algorithm: plain, data: d.jsonl, learning_rate: .inf}
                                                          ^^^^ must be a valid number, got '.inf'

  first: {algorithm: plain, data: d.jsonl, mix: {data: d.jsonl, weight: 1, objective: tex}}
                                                                                      ^^^ got 'tex' | 'text'

  first: {algorithm: plain, data: d.jsonl, lr_scheduler_type: cosin}
                                                              ^^^^^ no schedule 'cosin' | 'cosine'

  first: {algorithm: plain, data: d.jsonl, optimizer: sdg}
                                                      ^^^ no optimizer 'sdg' | 'sgd'

  first: {algorithm: plain, data: d.jsonl, optimizer: {sgd: {momentun: 0.9}}}
                                                             ^^^^^^^^ unknown key 'momentun' | 'momentum'

  first: {algorithm: plain, data: d.jsonl, optimizer: {sgd: {max_grad_norm: 0}}}
                                                                            ^ must be greater than 0 | clipped

  first: {algorithm: plain, data: d.jsonl, lr_scheduler_type: {cosine: {num_cycles: many}}}
                                                                                    ^^^^ num_cycles

  s: {algorithm: plane, data: d.jsonl}
                 ^^^^^ no algorithm 'plane' | 'plain'

  s: {algorithm: {plane: {}}, data: d.jsonl}
                  ^^^^^ no algorithm 'plane' | 'plain'

  s: {algorithm: {plain: {}, online: {}}, data: d.jsonl}
                 ^^^^^^^^^^^^^^^^^^^^^^^ expected the name of one algorithm

  s: {algorithm: {plain: 3}, data: d.jsonl}
                         ^ must be an object, got 3

  s: {algoritm: plain}
  ^ needs 'algorithm' or 'step' | 'algorithm'

  s: {algorithm: plain, step: compare}
  ^ needs 'algorithm' or 'step', and not both

  s: plain
  ^ needs 'algorithm' or 'step'

  s: {algorithm: plain}
  ^ 'stages.s.data' is missing: plain requires it

  s:
    algorithm: plain
    data: d.jsonl
    iterations: 1
    ^^^^^^^^^^ plain does not use 'iterations'
    prompts_per_iteration: 1
    ^^^^^^^^^^^^^^^^^^^^^ plain does not use 'prompts_per_iteration'
    replay_from: []
    ^^^^^^^^^^^ plain does not use 'replay_from'
    monitors: []
    ^^^^^^^^ plain does not use 'monitors'
    engine: local
    ^^^^^^ plain does not use 'engine'

  s: {algorithm: scores, data: d.jsonl, mix: {data: d.jsonl, weight: 1}}
                                        ^^^ scores does not use 'mix'

  ALL
    max_steps: 1
    ^^^^^^^^^ online does not use 'max_steps'
    validation: d.jsonl
    ^^^^^^^^^^ online does not use 'validation'

  + seed=-1
  ^ seed: must be greater than or equal to 0, got -1
  ALL

  first: {algorithm: plain, data: d.jsonl, max_prompt_length: 1}
                                           ^^^^^^^^^^^^^^^^^ unknown key 'max_prompt_length' | use 'max_length'

  first: {algorithm: plain, data: d.jsonl, rollout: {}}
                                           ^^^^^^^ plain does not use 'rollout' | samples nothing

  s: {algorithm: plain, data: dd.jsonl}
                              ^^^^^^^^ no such file: dd.jsonl | jsonl'

  s: {algorithm: plain, data: {path: x/y.jsonl}}
                                     ^^^^^^^^^ no such file: x/y.jsonl | looked in

  s: {algorithm: plain, data: {limit: 3}}
                              ^^^^^^^^^^ expected exactly one of 'path', 'hub' and 'stage'

  s: {algorithm: plain, data: {path: d.jsonl, hub: a/b}}
                              ^^^^^^^^^^^^^^^^^^^^^^^^^ got 'path' and 'hub'

  s: {algorithm: plain, data: {path: d.jsonl, limt: 1}}
                                              ^^^^ unknown key 'limt' | 'limit'

  s: {algorithm: plain, data: {path: d.jsonl, validation: 1}}
                                                          ^ must be less than 1

  s: {algorithm: plain, data: {prf: {path: d.jsonl}}}
                               ^^^ no format 'prf' | 'pref'

  first: {algorithm: plain, data: d.jsonl}
  s: {algorithm: plain, data: first}
                              ^^^^^ 'first' does not produce data; only steps do

  b:
    repeat: 1
    stages:
      s: {algorithm: plain, data: [m@all]}
                                  ^^^^^^^ expected at least one data source
      m: {step: compare}

  s: {algorithm: plain, data: []}
                              ^^ expected at least one data source

  first: {algorithm: plain, data: d.jsonl, from: frist}
                                                 ^^^^^ neither a stage nor a folder | 'first'
  other: {algorithm: plain, data: d.jsonl}

  first: {algorithm: plain, data: d.jsonl, from: first}
                                                 ^^^^^ stage 'first' refers to itself

  ALL
    reference: bse
               ^^^ 'bse' is neither a stage nor a folder | 'base'

  first: {algorithm: plain, data: d.jsonl}
  s: {step: compare, policies: [base, frst]}
                                      ^^^^ 'frst' is neither a stage nor a folder | 'first'

  s: {step: compare, policies: [3]}
                                ^ must be a valid string, got 3

  first: {algorithm: plain, data: d.jsonl}
  s: {step: compare, rewards: {x: first}}
                                  ^^^^^ 'first' does not train a reward model

  first: {algorithm: plain, data: d.jsonl}
  s: {step: compare, rewards: {x: lenght}}
                                  ^^^^^^ no reward 'lenght' | 'length'

  first: {algorithm: plain, data: d.jsonl}
  s: {step: compare, rewards: {x: zzz}}
                                  ^^^ no reward 'zzz' | `alignkit plugins reward` lists all

  first: {algorithm: plain, data: d.jsonl}
  s: {step: compare, rewards: {x: {helpfull: {}}}}
                                   ^^^^^^^^ no reward 'helpfull' | lists all

  s: {step: compare, rewards: {x: {length: {target: 0}}}}
                                                    ^ must be greater than or equal to 1, got 0

  s: {step: compare, rewards: {x: {sum: {}}}}
                                   ^^^ 'stages.s.rewards.x.sum.main' is missing

  s: {step: compare, rewards: {x: {folder: no}}}
                                           ^^ 'no' is neither a stage nor a folder

  s: {step: compare, judge: {asks: {role: q}}}
                                          ^ no stage 'q'

  s: {step: compare, policy: [base]}
                     ^^^^^^ unknown key 'policy' | 'policies'

  s: {step: {compare: {}}, strict: true}
            ^^^^^^^^^^^^^ expected the name of a step | next to 'step: NAME'

  ALL
  s: {step: compare, policies: [helpful]}
                                ^^^^^^^ 'helpful' is a reward model

  ALL
    algorthm: plain
    ^^^^^^^^ unknown key 'algorthm' | 'algorithm'

  base: {algorithm: plain, data: d.jsonl}
  ^^^^ 'base' cannot be the name of a stage

  cache: {algorithm: plain, data: d.jsonl}
  ^^^^^ 'cache' cannot be the name of a stage
  trackers: {algorithm: plain, data: d.jsonl}
  ^^^^^^^^ 'trackers' cannot be
  folder: {algorithm: plain, data: d.jsonl}
  ^^^^^^ 'folder' cannot be
  none: {algorithm: plain, data: d.jsonl}
  ^^^^ 'none' cannot be

  a/b: {algorithm: plain, data: d.jsonl}
  ^^^ 'a/b' cannot be the name of a stage

  ALL
    rollout: {samples_per_prompt: 0}
                                  ^ must be greater than or equal to 1, got 0

  ALL
    rollout: {samples_per_prompt: 1}
                                  ^ needs at least 2 responses

  ALL
    data: d.jsonl
    ^^^^ online does not use 'data' | 'mix: {data: ...}'

  ALL
    value_from: helpful
    ^^^^^^^^^^ online does not use 'value_from' | no value function of its own

  first: {algorithm: plain, data: d.jsonl, reference: base}
                                           ^^^^^^^^^ plain does not use 'reference'

  ALL
    rollout: {stop: ['']}
                     ^^ must have at least 1 character

  first: {algorithm: plain, data: d.jsonl}
  helpful: {algorithm: scores, from: first, data: d.jsonl}
  align:
    algorithm: online
    from: helpful
          ^^^^^^^ 'helpful' is a reward model
    prompts: p.jsonl
    reward: helpful

  ALL
    mix: {data: d.jsonl}
    ^^^ 'stages.align.mix.weight' is missing

  ALL
    max_length: 32
    rollout: {max_new_tokens: 32}
                              ^^ leaves no room for a prompt | its response

  first: {algorithm: plain, data: d.jsonl}
  align: {algorithm: online, from: first, prompts: p.jsonl, reward: length, max_length: 64}
  ^^^^^ max_new_tokens 64 leaves no room for a prompt in max_length 64

  first: {algorithm: plain, data: d.jsonl, promts: p.jsonl}
                                           ^^^^^^ unknown key 'promts' | 'prompts'

  s: {algorithm: 3, data: d.jsonl}
                 ^ expected the name of one algorithm

  s: {algorithm: [plain], data: d.jsonl}
                 ^^^^^^^ expected the name of one algorithm

  first: {algorithm: plain, data: d.jsonl}
  helpful: {algorithm: scores, from: align, data: d.jsonl}
  ^^^^^^^ depend on each other in a cycle: helpful -> align -> helpful
  align:
    algorithm: online
    from: first
    prompts: p.jsonl
    reward: helpful

  s: {algorithm: plain, data: {path: e.jsonl, validation: 1.2}}
                                     ^^^^^^^ no such file: e.jsonl
                                                          ^^^ validation

  s: {algorithm: plain, data: {prf: e.jsonl}}
                               ^^^ no format 'prf'
                                    ^^^^^^^ no such file: e.jsonl

  s: {algorithm: plain, data: {prf: {path: e.jsonl, x: 1, limit: 0}}}
                               ^^^ no format
                                           ^^^^^^^ no such file
                                                                 ^ limit

  s: {algorithm: plain, data: {stage: made, limit: 0}}
                                      ^^^^ no stage 'made'
                                                   ^ limit

  s: {step: compare, policies: [3, nobody]}
                                ^ must be a valid string, got 3
                                   ^^^^^^ neither a stage nor a folder

  first: {algorithm: plain, data: d.jsonl, nothing: 1}
                                           ^^^^^^^ unknown key 'nothing'
  other: {algorithm: plain, data: d.jsonl, nothing: 1}
                                           ^^^^^^^ unknown key 'nothing'

  first: {algorithm: plain, data: d.jsonl, from: rm}
                                                 ^^ neither an adapter

  s: {algorithm: online}
  ^ 'stages.s.prompts' is missing: online requires it
  ^ 'stages.s.reward' is missing: online requires it

  first: {algorithm: plain, data: d.jsonl}
  s: {algorithm: plane, data: d.jsonl, from: frist, epochs: 0}
                 ^^^^^ no algorithm 'plane'
                                             ^^^^^ neither a stage nor a folder
                                                            ^ stages.s.epochs

  ALL
    epochs: 0
            ^ stages.align.epochs
    max_length: 10
    rollout: {max_new_tokens: 10, samples_per_prompt: 1}
                              ^^ max_new_tokens
                                                      ^ online needs at least 2

  + stages.align.mix={data: e.jsonl}
  ^ mix.weight' is missing
  ^ no such file: e.jsonl
  ALL

  + stages.align.mix={weight: -1, data: e.jsonl}
  ^ mix.weight
  ^ no such file: e.jsonl
  ALL

  + stages.first.learning_rate=.inf
  ^ got '.inf'
  + stages.first.from=frst
  ^ frst
  + stages.first.epochs=0
  ^ must be greater than or equal to 1, got 0
  ALL

  + model.lora.r=0
  ^ lora.r
  + model.base=./no
  ^ no such folder
  + model.chat_template=no.jinja
  ^ Jinja
  ALL

  + stages.align.from=helpful
  ^ 'helpful' is a reward model
  + stages.align.epoks=1
  ^ unknown key 'epoks'
  ALL

  + stages.first.epoks=2
  ^ unknown key 'epoks'
  first: {algorithm: plain, data: d.jsonl}
  n: {algorithm: plain, data: d.jsonl, from: first@2}
                                             ^^^^^^^ keeps only its last version

  + stages.first.keep_version=true
  ^ unknown key 'keep_version'
  first: {algorithm: plain, data: d.jsonl}
  n: {algorithm: plain, data: d.jsonl, from: first@2}
                                             ^^^^^^^ keeps only its last version

  + stages.first.keep_versions=true
  first: {algorithm: plain, data: d.jsonl}
  n: {algorithm: plain, data: d.jsonl, from: first@0}
                                             ^^^^^^^ starting at 1

  + stages.first.keep_versions=true
  first: {algorithm: plain, data: d.jsonl}
  n: {algorithm: plain, data: d.jsonl, from: base@1}
                                             ^^^^^^ no stage 'base'

  + stages.first.algorithm.plain.beta=x
  ^ must be a valid number, got 'x'
  ALL

  + model.lora=none
  + model.quantization=nf4
  ^ nf4 weights cannot be trained
  ALL

  + model.mixed_precision=bf16
  ^ adapter multiplies in the dtype of the base
  ALL

  + model.quantization=nf5
  ^ got 'nf5'
  ALL

  + model.lora={r: 4, fp: 1}
  ^ unknown key 'fp'
  ALL

  + model.base=tinny
  ^ no model 'tinny' | 'tiny'
  ALL

  + model.base=m1://m
  ^ model 'm1' takes no path | write m1
  ALL

  + model.base=gguf
  ^ model 'gguf' needs a path | write gguf://PATH, or the path of a .gguf file
  ALL

  + model.base=no.gguf
  ^ no such file: no.gguf
  ALL

  + mdoel.base=tiny
  ^ unknown key 'mdoel'
  ALL

  first: {algorithm: plain, data: d.jsonl, kl_coef: 1}
                                           ^^^^^^^ unknown key 'kl_coef' | {plain: {kl_coefficient: ...}}'

  ALL
    num_generations: 1
    ^^^^^^^^^^^^^^^ unknown key 'num_generations' | it is a key of rollout: write 'rollout: {samples_per_prompt: ...}'

  + stages.frst.epochs=2
  ^ no such key: 'stages.frst' | did you mean 'first'?
  + ~seed
  ^ no such key
  + mdl=3
  ^ unknown key 'mdl'
  + stages.first.epochs=0
  ^ stages.first.epochs
  ALL

  s: {algorithm: plain, prompts: d.jsonl}
                 ^^^^^ plain learns from 'data', but the stage has 'prompts' | write 'data: FILE'

  s: {algorithm: online, reward: length, data: d.jsonl}
                 ^^^^^^ online learns from 'prompts', but the stage has 'data'

  s: {algorithm: online, reward: length, prompts: {path: p.jsonl, validation: 0.2}}
                                                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ 'validation' | part: [0.2, 1]

  s: {algorithm: online, reward: length, prompts: [p.jsonl, {path: p.jsonl, validation: 0.2}]}
                                                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ s.prompts: 'validation'

  s: {step: compare, data: {path: p.jsonl, validation: 0.2}}
                           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ s.data: 'validation' holds out rows

  s: {algorithm: plain, data: p.jsonl, validation: {path: p.jsonl, validation: 0.2}}
                                                   ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ s.validation: 'validation' holds out

  ALL
    mix: {data: {path: p.jsonl, validation: 0.2}, weight: 1}
                ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ mix.data: 'validation' holds out rows

  s: {algorithm: plane, data: {path: p.jsonl, validation: 0.2}}
                 ^^^^^ no algorithm 'plane'

  s: {algorithm: plain, data: {path: p.jsonl, part: [0.6, 0.2]}}
                              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ is no share

  s: {algorithm: plain, data: {path: p.jsonl, part: [0.2, 0.2]}}
                              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ is no share

  s: {algorithm: plain, data: {path: p.jsonl, part: [0.2, 1.5]}}
                              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ is no share

  s: {algorithm: plain, data: {path: p.jsonl, part: [0.2, 1], validation: 0.2}}
                              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ leave one of them out

  s: {algorithm: plain, data: {path: p.jsonl, name: main, split: test}}
                              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ only a hub data set has 'name'

  s: {algorithm: plain, data: ~/none.jsonl}
                              ^^^^^^^^^^^^ no such file: ~/none.jsonl | looked in /

  s: {algorithm: plain, data: pipe.jsonl}
                              ^^^^^^^^^^ this is a pipe or a device

  s: {step: compare, pair: [nobody, x], file: gone.py, limit: 0}
                            ^^^^^^ no stage 'nobody'
                                    ^ s.pair.1: must be a valid integer, got 'x'
                                              ^^^^^^^ no such file: gone.py
                                                              ^ s.limit: must be greater than or equal to 1, got 0

  s: {step: compare, union: {}, names: []}
                            ^^ s.union: must be a valid integer, got {}
                                       ^^ must have at least 1 item, got []

  s: {step: compare, union: [1], names: [a, b, c], word: xyz}
                             ^ s.union.0: must be a valid string, got 1
                                        ^^^^^^^^^ must have at most 2 items, got ["a", "b", "c"]
                                                         ^^^ word: must match pattern '^[a-c]+$', got 'xyz'

  s: {step: compare, parts: [{reward: length, weight: null}, {reward: length, wight: 1}]}
                                                      ^^^^ parts.0.weight: must be a valid number, got null
                                                                              ^^^^^ unknown key 'wight' | 'weight'

  + seed=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
  ^ seed: must be a valid integer, got 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...
  ALL
"""


@pytest.mark.parametrize(
    "lines", [block.splitlines() for block in MISTAKES.strip("\n").split("\n\n")]
)
def test_every_mistake_is_reported_at_its_place(bench: Bench, lines: list[str]) -> None:
    """`^^^ words | help` is below what it marks; `+` is an override, and `ALL` three right stages."""
    text = ""
    overrides: list[str] = []
    wanted: list[tuple[str, int, int, int]] = []
    words: list[str] = []
    for line in lines:
        if caret := re.fullmatch(r"( *)(\^+) (.*)", line):
            at = ("", 2 + text.count("\n"), len(caret[1]) + 1, len(caret[2]))
            wanted.append(at if text else (f"override '{overrides[-1]}'", 0, 0, 1))
            words.append(caret[3])
        elif line.startswith("  + "):
            overrides.append(line[4:])
        else:
            text += ALL if line == "  ALL" else f"{line}\n"
    problems = bench.problems(text, *overrides)
    found = [(each.file * (not each.line), *place(each)) for each in problems]
    assert sorted(found) == sorted(wanted)
    for where, said in zip(wanted, words, strict=True):
        message, _, help = said.partition(" | ")
        here = [each for each, at in zip(problems, found, strict=True) if at == where]
        assert any(message in each.message and help in each.help for each in here)


def test_what_is_found_later_has_the_place_of_an_option(bench: Bench) -> None:
    recipe = bench.stages("  s: {algorithm: {plain: {beta: 1}}, data: d.jsonl}\n")
    assert place(recipe.problem("s", "bad", ("beta",))) == (3, 33, 1)


def test_the_resolved_recipe_works_in_any_folder(bench: Bench, registry: Registry) -> None:
    for folder in ("sub", "ad", "run"):
        (bench.folder / folder).mkdir()
    for file in ("sub/own.jsonl", "sub/own.py", "t.jinja", "rm/config.json"):
        (bench.folder / file).write_text("")
    (bench.folder / "ad/adapter_config.json").write_text("{}")
    (bench.folder / "sub/base.yaml").write_text(
        "model: {base: tiny}\n"
        "stages: {a: {algorithm: plain, data: own.jsonl}, r: {step: compare, file: own.py}}"
    )
    text = """\
extends: sub/base.yaml
description: '1e-5'
model: {chat_template: t.jinja}
stages:
  first: {algorithm: plain, from: ad, data: [{pref: d.jsonl}, {path: p.jsonl, limit: 3}]}
  block:
    repeat: 2
    stages:
      made: {step: compare, rewards: {x: {folder: rm}}}
      next: {algorithm: plain, from: first, data: [made@all, d.jsonl]}
"""
    recipe = bench.load(text, "stages.first.validation=d.jsonl")
    (bench.folder / "run/recipe.resolved.yaml").write_text(dump(recipe.resolved))
    again = build(load_document(bench.folder / "run/recipe.resolved.yaml"), registry)
    assert again.name == recipe.name == "r" and again.description == "1e-5"
    assert again.resolved == recipe.resolved and list(again.stages) == list(recipe.stages)
    for name, stage in recipe.stages.items():
        assert again.stages[name].settings == stage.settings
        assert again.stages[name].component.options == stage.component.options
    first = recipe.stages["a"].settings
    assert first and first.data.sources[0].path == bench.folder / "sub/own.jsonl"
    assert recipe.stages["r"].component.options.file == bench.folder / "sub/own.py"  # type: ignore[attr-defined]
    assert recipe.model.chat_template == "t.jinja" and again.model.chat_template == str(
        bench.folder / "t.jinja"
    )
    (bench.folder / "sub/base.yaml").write_text("model: {base: tiny, chat_template: own.jsonl}")
    elsewhere = bench.load("extends: sub/base.yaml\nstages: {a: {algorithm: plain, data: d.jsonl}}")
    # A run looks in the recipe's folder
    assert elsewhere.model.chat_template == str(bench.folder / "sub/own.jsonl")
    path = (bench.folder / "r.yaml").rename(bench.folder / "my r(1).yaml")
    assert build(load_document(path), registry).name == "my-r-1-"  # of a folder


def test_all_mistakes_at_once_in_the_order_of_the_file(bench: Bench) -> None:
    text = """\
seed: x
model: {bas: tiny, lora: {lora_dropout: 0.1, r: 0}}
stages:
  first: {algorithm: {plain: {beta: -1}}, data: none.jsonl, lr: 1}
  s: {step: compare, policies: [nobody], strict: 3, rewards: {x: {sum: {main: lenth, more: [{weight: a}]}}}}
  t: {step: nothing}
extra: 1
"""
    with pytest.raises(RecipeError) as caught:
        bench.load(text)
    found = [f"{problem.line} {problem.message}\n" for problem in caught.value.problems]
    assert (
        "".join(found)
        == """\
1 seed: must be a valid integer, got 'x'
2 'model.base' is missing
2 unknown key 'bas'
2 unknown key 'lora_dropout'
2 model.lora.r: must be greater than or equal to 1, got 0
4 stages.first.algorithm.plain.beta: must be greater than 0, got -1
4 no such file: none.jsonl
4 unknown key 'lr'
5 'nobody' is neither a stage nor a folder
5 stages.s.strict: must be a valid boolean, got 3
5 no reward 'lenth'
5 'stages.s.rewards.x.sum.more.0.reward' is missing
5 stages.s.rewards.x.sum.more.0.weight: must be a valid number, got 'a'
6 no step 'nothing'
7 unknown key 'extra'
"""
    )


def test_ambiguous_and_broken_plugins(bench: Bench, registry: Registry) -> None:
    registry.add(Registration("plain", Plain, distribution="other", version="2", kind="algorithm"))
    assert "provided by dist 1 and other 2" in bench.problem(FIRST).message
    text = FIRST.replace("plain", "other:plain")
    assert bench.stages(text).stages["first"].component.registration.distribution == "other"
    registry.broken.append(
        Origin(plugin="x-gone", distribution="x-gone", version="3", reason="ImportError: no torch")
    )
    with pytest.raises(
        RecipeError, match=r"plugin 'x-gone' \(x-gone 3\) failed to load: ImportError: no torch"
    ) as caught:
        bench.stages(FIRST.replace("plain", "x-gone"))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1", "'model' is missing(.|\n)*'stages' is missing"),
        ("model: {base: tiny}\nstages: {}", "at least 1"),
        ("model: tiny\nstages: []", "must be an object"),
    ],
)
def test_a_recipe_needs_a_model_and_stages(bench: Bench, text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        bench.load(text)


def fails(*args: Any) -> Any:
    """A bug in a plugin."""
    raise ZeroDivisionError("in a plugin")


@pytest.mark.parametrize(
    ("cls", "name", "override", "message"),
    [
        (Sum, "parts", "stages.align.reward={sum: {main: helpful}}", "`Sum.parts`"),
        (Online, "needs", "seed=1", "`Online.needs`"),
    ],
)
def test_a_bug_in_a_plugin_is_the_plugins_error(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, cls: type, name: str, override: str, message: str
) -> None:
    monkeypatch.setattr(cls, name, property(fails) if name == "needs" else fails)
    with pytest.raises(RecipeError) as caught:
        bench.stages(ALL, override)
    (problem,) = caught.value.problems
    assert problem.message.startswith("plugin '")
    assert f"in {message}: ZeroDivisionError: in a plugin (test_load.py:" in problem.message
    assert caught.value.exit_code == 2
