"""What a valid recipe becomes; and every mistake is reported at once, at its place, with help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignkit import (
    Algorithm,
    Field,
    Judge,
    Needs,
    Options,
    Reward,
    RewardCombination,
    Source,
    StageDefaults,
    Step,
    Trains,
)
from alignkit.data.sources import DataSpec
from alignkit.errors import Problem, RecipeError
from alignkit.kinds import Monitor
from alignkit.options import DataRef, JudgeRef, PolicyRef, RewardRef, StageRef
from alignkit.plugins import plugins
from alignkit.recipe.load import build
from alignkit.recipe.schema import Recipe, RewardSpec
from alignkit.recipe.yaml import dump, load_document
from alignkit.registry import Origin, Registration, Registry


class Plain(Algorithm):
    class Options(Algorithm.Options):
        beta: float = Field(0.1, gt=0, description="pull towards the reference")
        loss_type: str | None = None

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


class Compare(Step):
    class Options(Step.Options):
        policies: list[PolicyRef] = Field(default_factory=list)
        rewards: dict[str, RewardRef] = Field(default_factory=dict)
        data: DataRef | None = None
        judge: JudgeRef | None = None
        strict: bool = False
        opponent: StageRef | None = None


class Preference:
    class Options(Options):
        chosen: str = "chosen"


@pytest.fixture
def registry() -> Registry:
    result = Registry()
    result.add(Registration("reward_hacking", Monitor, kind="monitor"))
    for kind in ("optimizer", "schedule"):
        for registration in plugins().registrations(kind):
            result.add(registration)
    things: dict[str, dict[str, Any]] = {
        "algorithm": {"plain": Plain, "scores": Scores, "online": Online, "critic": Critic},
        "reward": {"length": Length, "sum": Sum},
        "judge": {"asks": Asks},
        "step": {"compare": Compare},
        "format": {"pref": Preference},
        "model": {"tiny": lambda cache: cache},
    }
    for kind, table in things.items():
        for name, thing in table.items():
            result.add(
                Registration(name, thing, plugin="p", distribution="dist", version="1", kind=kind)
            )
    return result


class Bench:
    """Writes recipes next to two data files and loads them."""

    def __init__(self, folder: Path, registry: Registry):
        self.folder, self.registry = folder, registry
        for name in ("d.jsonl", "p.jsonl"):
            (folder / name).write_text("")

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
    return Bench(tmp_path, registry)


FIRST = "  first: {algorithm: plain, data: d.jsonl}\n"  # line 3
HELPFUL = "  helpful: {algorithm: scores, from: first, data: d.jsonl}\n"  # line 4
# Lines 5-9
ALIGN = (
    "  align:\n    algorithm: online\n    from: first\n    prompts: p.jsonl\n    reward: helpful\n"
)
ALL = FIRST + HELPFUL + ALIGN


# what a recipe becomes


def test_defaults_come_from_the_algorithm_then_from_alignkit(bench: Bench) -> None:
    recipe = bench.stages(ALL, "stages.first.epochs=2", "stages.align.rollout.temperature=0.7")
    first, align = recipe.stages["first"].settings, recipe.stages["align"].settings
    assert first is not None and align is not None
    assert (first.epochs, first.batch_size, first.lr_scheduler_type) == (2, 16, "linear")
    assert (align.epochs, align.iterations, align.prompts_per_iteration) == (1, 10, 32)
    assert first.learning_rate is align.learning_rate is None  # known once the model is
    rollout = align.rollout
    assert (rollout.samples_per_prompt, rollout.max_new_tokens, rollout.temperature) == (4, 64, 0.7)


def test_a_stage_carries_the_needs_of_its_algorithm(bench: Bench) -> None:
    stages = bench.stages(ALL + "  s: {step: compare}\n").stages
    assert [stages[name].needs for name in ("first", "align", "s")] == [
        Needs(),
        Needs(min_samples=2),
        None,
    ]


def test_null_means_the_default(bench: Bench) -> None:
    settings = bench.stages(FIRST, "stages.first.epochs=null").stages["first"].settings
    assert settings is not None and settings.epochs == 3


def test_the_model(bench: Bench) -> None:
    recipe = bench.stages(FIRST)
    assert recipe.model.lora is not None and recipe.model.lora.r == 16
    assert recipe.name == "r" and recipe.seed == 0 and recipe.folder == bench.folder
    assert bench.stages(FIRST, "model.lora=none").model.lora is None
    assert bench.stages(FIRST, "model.quantization=nf4").model.quantization == "nf4"
    (bench.folder / "m").mkdir()
    assert bench.stages(FIRST, "model.base=m").model.base == str(bench.folder / "m")
    assert bench.stages(FIRST, "model.base=org/name").model.base == "org/name"
    assert bench.stages(FIRST, "name=x").resolved["name"] == "x"


def test_rewards_become_specs(bench: Bench) -> None:
    (bench.folder / "rm").mkdir()
    (bench.folder / "rm" / "config.json").touch()
    override = (
        "stages.align.reward={sum: {main: helpful, more: [{reward: {length: {target: 3}}}, "
        "{reward: {folder: rm}}]}}"
    )
    stage = bench.stages(ALL, override).stages["align"]
    assert stage.settings is not None
    spec = stage.settings.reward
    assert isinstance(spec, RewardSpec) and (spec.kind, spec.name) == ("combine", "sum")
    assert {name: (child.kind, child.name) for name, child in spec.children.items()} == {
        "main": ("stage", "helpful"),
        "more0": ("reward", "length"),
        "more1": ("folder", str(bench.folder / "rm")),
    }
    assert spec.component is not None and spec.children["more0"].component is not None
    assert spec.component.options.more[0].reward is spec.children["more0"]  # type: ignore[attr-defined]
    assert tuple(stage.upstream) == ("first", "helpful")


def test_data_becomes_a_spec(bench: Bench) -> None:
    text = "  made: {step: compare}\n  first:\n    algorithm: plain\n    data: "
    text += (
        "[d.jsonl, {path: p.jsonl, limit: 3, weight: 2}, {pref: {path: d.jsonl, chosen: c, "
        "columns: {a: b}}}, "
    )
    text += "{pref: d.jsonl}, {hub: org/set, split: train}, made, {stage: made, limit: 1}]\n"
    stage = bench.stages(text).stages["first"]
    assert stage.settings is not None and isinstance(stage.settings.data, DataSpec)
    a, b, c, d, e, f, g = stage.settings.data.sources
    assert a.path == bench.folder / "d.jsonl" and a.format is None and a.on_bad_row == "error"
    assert (b.limit, b.weight) == (3, 2.0)
    assert c.format is not None and c.format.options.chosen == "c" and c.columns == {"a": "b"}  # type: ignore[attr-defined]
    assert d.format is not None and d.path == bench.folder / "d.jsonl"
    assert (e.hub, e.split, e.path) == ("org/set", "train", None)
    assert (f.stage, g.stage, g.limit) == ("made", "made", 1)
    assert tuple(stage.upstream) == ("made",)


def test_paths_of_an_extended_file_start_at_its_folder(bench: Bench) -> None:
    (bench.folder / "sub").mkdir()
    (bench.folder / "sub/own.jsonl").write_text("")
    (bench.folder / "sub/base.yaml").write_text(
        "model: {base: tiny}\nstages: {a: {algorithm: plain, data: own.jsonl}}"
    )
    recipe = bench.load("extends: sub/base.yaml\nstages: {b: {algorithm: plain, data: d.jsonl}}\n")
    paths = [
        stage.settings.data.sources[0].path for stage in recipe.stages.values() if stage.settings
    ]
    assert paths == [bench.folder / "sub/own.jsonl", bench.folder / "d.jsonl"]


def test_steps_take_options_next_to_their_name(bench: Bench) -> None:
    beside = (
        "  s: {step: compare, policies: [base, first], judge: {asks: {role: align}}, rewards: "
        "{x: helpful}}\n"
    )
    inside = "  t: {step: compare, opponent: first}\n"
    recipe = bench.stages(beside + inside + ALL)
    # Sorted so that it can run
    assert list(recipe.stages) == ["first", "helpful", "align", "s", "t"]
    options = recipe.stages["s"].component.options
    assert options.policies == ["base", "first"]  # type: ignore[attr-defined]
    assert options.judge.options.role == "align"  # type: ignore[attr-defined]
    assert options.rewards["x"].kind == "stage"  # type: ignore[attr-defined]
    assert tuple(recipe.stages["s"].upstream) == ("first", "helpful", "align")
    assert tuple(recipe.stages["t"].upstream) == ("first",) and recipe.stages["t"].settings is None


def test_from_an_adapter_folder(bench: Bench) -> None:
    (bench.folder / "ad").mkdir()
    text = "  first: {algorithm: plain, data: d.jsonl, from: ad}\n"
    assert "neither an adapter" in bench.problem(text).message
    (bench.folder / "ad/adapter_config.json").write_text("{}")
    settings = bench.stages(text).stages["first"].settings
    assert settings is not None and settings.from_ == str(bench.folder / "ad")


def test_versions(bench: Bench) -> None:
    text = "  next: {algorithm: plain, data: d.jsonl, from: first@2}\n"
    assert "keeps only its last version" in bench.problem(FIRST + text).message
    keep = "stages.first.keep_versions=true"
    assert tuple(bench.stages(FIRST + text, keep).stages["next"].upstream) == ("first",)
    assert "starting at 1" in bench.problem(FIRST + text, keep, "stages.next.from=first@0").message
    assert "no stage 'base'" in bench.problem(FIRST + text, keep, "stages.next.from=base@1").message


# mistakes

CASES = {
    "unknown stage key": (FIRST[:-2] + ", epochz: 1}\n", (
        "unknown key 'epochz'"
    ), (3, 44, 6), (
        "did you mean 'epochs'?"
    )),
    "other tool's key": (FIRST[:-2] + (
        ", num_train_epochs: 1}\n"
    ), (
        "unknown key 'num_train_epochs'"
    ), (3, 44, 16), "use 'epochs'"),
    "option at stage level": (FIRST[:-2] + ", beta: 1}\n", (
        "unknown key 'beta'"
    ), (3, 44, 4), (
        "algorithm: {plain: {beta: ...}}"
    )),
    "model key in a stage": (FIRST[:-2] + (
        ", lora_alpha: 1}\n"
    ), (
        "unknown key 'lora_alpha'"
    ), (3, 44, 10), "known keys"),
    "stage key in options": ((
        "  s: {algorithm: {plain: {epochs: 1}}, data: d.jsonl}\n"
    ), (
        "unknown key 'epochs'"
    ), (3, 27, 6), "known keys"),
    "unknown option": ((
        "  s: {algorithm: {plain: {betta: 1}}, data: d.jsonl}\n"
    ), (
        "unknown key 'betta'"
    ), (3, 27, 5), "'beta'"),
    "out of range": ((
        "  s: {algorithm: {plain: {beta: 0}}, data: d.jsonl}\n"
    ), (
        "must be greater than 0, got 0"
    ), (3, 33, 1), "pull towards"),
    "text for a number": (FIRST[:-2] + (
        ", batch_size: 1_000}\n"
    ), (
        "stages.first.batch_size: must be a valid integer, got '1_000'"
    ), (3, 56, 5), ""),
    "boolean for a number": (FIRST[:-2] + ", epochs: true}\n", (
        "must be a valid integer, got true"
    ), (3, 52, 4), ""),
    "fraction": (FIRST[:-2] + ", epochs: 1.5}\n", (
        "must be a valid integer, got 1.5"
    ), (3, 52, 3), ""),
    "yes is no boolean": (FIRST[:-2] + (
        ", keep_versions: yes}\n"
    ), (
        "must be a valid boolean, got 'yes'"
    ), (3, 59, 3), ""),
    "infinite": (FIRST[:-2] + (
        ", learning_rate: .inf}\n"
    ), (
        "must be a valid number, got '.inf'"
    ), (3, 59, 4), ""),
    "choice": (FIRST[:-2] + (
        ", mix: {data: d.jsonl, weight: 1, objective: tex}}\n"
    ), (
        "must be 'text' or 'sft', got 'tex'"
    ), (3, 87, 3), (
        "did you mean 'text'?"
    )),
    "schedule": (FIRST[:-2] + (
        ", lr_scheduler_type: cosin}\n"
    ), (
        "no schedule 'cosin'"
    ), (3, 63, 5), (
        "did you mean 'cosine'?"
    )),
    "optimizer": (FIRST[:-2] + (
        ", optimizer: sdg}\n"
    ), (
        "no optimizer 'sdg'"
    ), (3, 55, 3), (
        "did you mean 'sgd'?"
    )),
    "optimizer's option": (FIRST[:-2] + (
        ", optimizer: {sgd: {momentun: 0.9}}}\n"
    ), (
        "unknown key 'momentun'"
    ), (3, 62, 8), "'momentum'"),
    "no norm": (FIRST[:-2] + (
        ", optimizer: {sgd: {max_grad_norm: 0}}}\n"
    ), (
        "max_grad_norm: must be greater than 0, got 0"
    ), (3, 77, 1), "clipped"),
    "schedule's option": (FIRST[:-2] + (
        ", lr_scheduler_type: {cosine: {num_cycles: many}}}\n"
    ), (
        "lr_scheduler_type.cosine.num_cycles: must be a valid number"
    ), (3, 85, 4), ""),
    "unknown algorithm": ((
        "  s: {algorithm: plane, data: d.jsonl}\n"
    ), (
        "no algorithm 'plane'"
    ), (3, 18, 5), (
        "did you mean 'plain'?"
    )),
    "unknown algorithm as key": ((
        "  s: {algorithm: {plane: {}}, data: d.jsonl}\n"
    ), (
        "no algorithm 'plane'"
    ), (3, 19, 5), "'plain'"),
    "two algorithms": ((
        "  s: {algorithm: {plain: {}, online: {}}, data: d.jsonl}\n"
    ), (
        "expected the name of one algorithm"
    ), (3, 18, 23), ""),
    "options not a mapping": ((
        "  s: {algorithm: {plain: 3}, data: d.jsonl}\n"
    ), (
        "must be an object, got 3"
    ), (3, 26, 1), ""),
    "neither": ((
        "  s: {algoritm: plain}\n"
    ), (
        "needs 'algorithm' or 'step'"
    ), (3, 3, 1), (
        "did you mean 'algorithm'?"
    )),
    "both": ((
        "  s: {algorithm: plain, step: compare}\n"
    ), (
        "needs 'algorithm' or 'step', and not both"
    ), (3, 3, 1), ""),
    "stage not a mapping": ("  s: plain\n", "needs 'algorithm' or 'step'", (3, 3, 1), ""),
    "no data": ((
        "  s: {algorithm: plain}\n"
    ), (
        "'stages.s.data' is missing: plain requires it"
    ), (3, 3, 1), ""),
    "rollout without need": (FIRST[:-2] + ", rollout: {}}\n", (
        "plain does not use 'rollout'"
    ), (3, 44, 7), "samples nothing"),
    "missing file": ((
        "  s: {algorithm: plain, data: dd.jsonl}\n"
    ), (
        "no such file: dd.jsonl"
    ), (3, 31, 8), "jsonl'?"),
    "missing path": ((
        "  s: {algorithm: plain, data: {path: x/y.jsonl}}\n"
    ), (
        "no such file: x/y.jsonl"
    ), (3, 38, 9), "looked in"),
    "no origin": ((
        "  s: {algorithm: plain, data: {limit: 3}}\n"
    ), (
        "expected exactly one of 'path', 'hub' and 'stage'"
    ), (3, 31, 10), ""),
    "two origins": ((
        "  s: {algorithm: plain, data: {path: d.jsonl, hub: a/b}}\n"
    ), (
        "got 'path' and 'hub'"
    ), (3, 31, 25), ""),
    "data key": ((
        "  s: {algorithm: plain, data: {path: d.jsonl, limt: 1}}\n"
    ), (
        "unknown key 'limt'"
    ), (3, 47, 4), "'limit'"),
    "data range": ((
        "  s: {algorithm: plain, data: {path: d.jsonl, validation: 1}}\n"
    ), (
        "must be less than 1"
    ), (3, 59, 1), ""),
    "unknown format": ((
        "  s: {algorithm: plain, data: {prf: {path: d.jsonl}}}\n"
    ), "no format 'prf'", (3, 32, 3), "'pref'"),
    "data of no step": (FIRST + (
        "  s: {algorithm: plain, data: first}\n"
    ), (
        "'first' does not produce data; only steps do"
    ), (4, 31, 5), ""),
    "no data in the first round": ((
        "  b:\n"
        "    repeat: 1\n"
        "    stages:\n"
        "      s: {algorithm: plain, data: [m@all]}\n"
        "      m: {step: compare}\n"
    ), (
        "expected at least one data source"
    ), (6, 35, 7), ""),
    "empty data": ((
        "  s: {algorithm: plain, data: []}\n"
    ), (
        "expected at least one data source"
    ), (3, 31, 2), ""),
    "unknown from": (FIRST[:-2] + ", from: frist}\n" + FIRST.replace("first", "other"), (
        "neither a stage nor a folder"
    ), (3, 50, 5), "'first'"),
    "itself": (FIRST[:-2] + ", from: first}\n", "stage 'first' refers to itself", (3, 50, 5), ""),
    "unknown reference": (ALL + (
        "    reference: bse\n"
    ), (
        "'bse' is neither a stage nor a folder"
    ), (10, 16, 3), (
        "did you mean 'base'?"
    )),
    "ref in a list": (FIRST + (
        "  s: {step: compare, policies: [base, frst]}\n"
    ), (
        "'frst' is neither a stage nor a folder"
    ), (4, 39, 4), "'first'"),
    "ref not text": ((
        "  s: {step: compare, policies: [3]}\n"
    ), (
        "must be a valid string, got 3"
    ), (3, 33, 1), ""),
    "reward of a policy": (FIRST + (
        "  s: {step: compare, rewards: {x: first}}\n"
    ), (
        "'first' does not train a reward model"
    ), (4, 35, 5), ""),
    "unknown reward": (FIRST + (
        "  s: {step: compare, rewards: {x: lenght}}\n"
    ), (
        "no reward 'lenght'"
    ), (4, 35, 6), "'length'"),
    "no reward at all": (FIRST + (
        "  s: {step: compare, rewards: {x: zzz}}\n"
    ), "no reward 'zzz'", (4, 35, 3), (
        "`alignkit plugins reward` lists all"
    )),
    "unknown reward with options": (FIRST + (
        "  s: {step: compare, rewards: {x: {helpfull: {}}}}\n"
    ), (
        "no reward 'helpfull'"
    ), (4, 36, 8), "lists all"),
    "reward option": ((
        "  s: {step: compare, rewards: {x: {length: {target: 0}}}}\n"
    ), (
        "must be greater than or equal to 1, got 0"
    ), (3, 53, 1), ""),
    "missing nested": ((
        "  s: {step: compare, rewards: {x: {sum: {}}}}\n"
    ), (
        "'stages.s.rewards.x.sum.main' is missing"
    ), (3, 36, 3), ""),
    "missing folder": ((
        "  s: {step: compare, rewards: {x: {folder: no}}}\n"
    ), (
        "'no' is neither a stage nor a folder"
    ), (3, 44, 2), ""),
    "judge option": ((
        "  s: {step: compare, judge: {asks: {role: q}}}\n"
    ), "no stage 'q'", (3, 43, 1), ""),
    "step key": ((
        "  s: {step: compare, policy: [base]}\n"
    ), (
        "unknown key 'policy'"
    ), (3, 22, 6), (
        "did you mean 'policies'?"
    )),
    "next to a full step": ((
        "  s: {step: {compare: {}}, strict: true}\n"
    ), (
        "expected the name of a step"
    ), (3, 13, 13), (
        "next to 'step: NAME'"
    )),
    "a reward model as policy": (ALL + (
        "  s: {step: compare, policies: [helpful]}\n"
    ), (
        "'helpful' is a reward model"
    ), (10, 33, 7), ""),
    "misspelt algorithm": (ALL + (
        "    algorthm: plain\n"
    ), (
        "unknown key 'algorthm'"
    ), (10, 5, 8), (
        "did you mean 'algorithm'?"
    )),
    "base": ((
        "  base: {algorithm: plain, data: d.jsonl}\n"
    ), (
        "'base' cannot be the name of a stage"
    ), (3, 3, 4), ""),
    "a folder of the run": ((
        "  cache: {algorithm: plain, data: d.jsonl}\n"
    ), (
        "'cache' cannot be the name of a stage"
    ), (3, 3, 5), ""),
    "bad name": ((
        "  a/b: {algorithm: plain, data: d.jsonl}\n"
    ), (
        "'a/b' cannot be the name of a stage"
    ), (3, 3, 3), ""),
    "rollout range": (ALL + (
        "    rollout: {samples_per_prompt: 0}\n"
    ), (
        "must be greater than or equal to 1, got 0"
    ), (10, 35, 1), ""),
    "too few samples": (ALL + (
        "    rollout: {samples_per_prompt: 1}\n"
    ), (
        "needs at least 2 responses"
    ), (10, 35, 1), ""),
    "data for rollouts": (ALL + (
        "    data: d.jsonl\n"
    ), (
        "online does not use 'data'"
    ), (10, 5, 4), (
        "'mix: {data: ...}'"
    )),
    "value without need": (ALL + (
        "    value_from: helpful\n"
    ), (
        "online does not use 'value_from'"
    ), (10, 5, 10), (
        "no value function of its own"
    )),
    "reference without need": (FIRST[:-2] + (
        ", reference: base}\n"
    ), (
        "plain does not use 'reference'"
    ), (3, 44, 9), ""),
    "empty stop": (ALL + (
        "    rollout: {stop: ['']}\n"
    ), (
        "must have at least 1 character"
    ), (10, 22, 2), ""),
    "from a reward model": (ALL.replace("    from: first", "    from: helpful"), (
        "'helpful' is a reward model"
    ), (7, 11, 7), ""),
    "mix without weight": (ALL + (
        "    mix: {data: d.jsonl}\n"
    ), (
        "'stages.align.mix.weight' is missing"
    ), (10, 5, 3), ""),
    "no room": (ALL + (
        "    max_length: 32\n"
        "    rollout: {max_new_tokens: 32}\n"
    ), (
        "max_new_tokens 32 leaves no room for a prompt in max_length 32"
    ), (11, 31, 2), (
        "a prompt and its response"
    )),
    "no room by default": (ALL + (
        "    max_length: 64\n"
    ), (
        "max_new_tokens 64 leaves no room for a prompt in max_length 64"
    ), (5, 3, 5), ""),
    "key for data": (FIRST[:-2] + (
        ", promts: p.jsonl}\n"
    ), (
        "unknown key 'promts'"
    ), (3, 44, 6), (
        "did you mean 'prompts'?"
    )),
    "a number as a name": ((
        "  s: {algorithm: 3, data: d.jsonl}\n"
    ), (
        "expected the name of one algorithm"
    ), (3, 18, 1), ""),
    "list of names": ((
        "  s: {algorithm: [plain], data: d.jsonl}\n"
    ), (
        "expected the name of one algorithm"
    ), (3, 18, 7), ""),
    "cycle": (ALL.replace((
        "scores, from: first"
    ), (
        "scores, from: align"
    )), (
        "depend on each other in a cycle: helpful -> align -> helpful"
    ), (4, 3, 7), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_reported_at_its_place(bench: Bench, name: str) -> None:
    text, message, where, help = CASES[name]
    problem = bench.problem(text)
    assert message in problem.message
    assert (problem.line, problem.column, problem.length) == where
    assert help in problem.help


def test_room_for_a_prompt_is_checked_even_if_another_key_is_wrong(bench: Bench) -> None:
    text = ALL + (
        "    epochs: 0\n"
        "    max_length: 10\n"
        "    rollout: {max_new_tokens: 10, samples_per_prompt: 1}\n"
    )
    said = [problem.message.partition(" ")[0] for problem in bench.problems(text)]
    assert said == ["stages.align.epochs:", "max_new_tokens", "online"]


@pytest.mark.parametrize(
    ("text", "overrides", "messages"),
    [
        ((
            "  s: {algorithm: plain, data: {path: e.jsonl, validation: 1.2}}\n"
        ), [], [(
            "no such file: e.jsonl"
        ), "validation"]),
        ((
            "  s: {algorithm: plain, data: {prf: e.jsonl}}\n"
        ), [], ["no format 'prf'", (
            "no such file: e.jsonl"
        )]),
        ((
            "  s: {algorithm: plain, data: {prf: {path: e.jsonl, x: 1, limit: 0}}}\n"
        ), [], ["no format", "no such file", "limit"]),
        ((
            "  s: {algorithm: plain, data: {stage: made, limit: 0}}\n"
        ), [], ["no stage 'made'", "limit"]),
        (ALL, [(
            "stages.align.mix={data: e.jsonl}"
        )], [(
            "mix.weight' is missing"
        ), (
            "no such file: e.jsonl"
        )]),
        (ALL, [(
            "stages.align.mix={weight: -1, data: e.jsonl}"
        )], ["mix.weight", (
            "no such file: e.jsonl"
        )]),
        (FIRST, [(
            "stages.first.learning_rate=.inf"
        ), (
            "stages.first.from=frst"
        ), (
            "stages.first.epochs=0"
        )], ["got '.inf'", "frst", "epochs"]),
        (FIRST, ["model.lora.r=0", "model.base=./no", (
            "model.chat_template=no.jinja"
        )], ["lora.r", "no such folder", "Jinja"]),
        ((
            "  s: {step: compare, policies: [3, nobody]}\n"
        ), [], [(
            "must be a valid string, got 3"
        ), (
            "'nobody' is neither a stage nor a folder"
        )]),
        (ALL, [(
            "stages.align.from=helpful"
        ), (
            "stages.align.epoks=1"
        )], [(
            "'helpful' is a reward model"
        ), "'epoks'"]),
        (FIRST + (
            "  n: {algorithm: plain, data: d.jsonl, from: first@2}\n"
        ), [(
            "stages.first.epoks=2"
        )], ["'epoks'", (
            "keeps only its last"
        )]),
        (FIRST + (
            "  n: {algorithm: plain, data: d.jsonl, from: first@2}\n"
        ), [(
            "stages.first.keep_version=true"
        )], ["'keep_version'", (
            "keeps only its last"
        )]),
    ],
)  # fmt: skip
def test_a_mistake_hides_no_other(
    bench: Bench, text: str, overrides: list[str], messages: list[str]
) -> None:
    said = [problem.message for problem in bench.problems(text, *overrides)]
    assert len(said) == len(messages)
    assert all(any(message in one for one in said) for message in messages), said


def test_a_stage_comes_before_a_reward_with_its_name(bench: Bench) -> None:
    text = ALL.replace("helpful", "length")
    stage = bench.stages(text).stages["align"]
    assert stage.settings is not None and (
        stage.settings.reward.kind,
        stage.settings.reward.name,
    ) == (
        "stage",
        "length",
    )


class Reads(Step):
    class Options(Step.Options):
        file: Path
        limit: int = Field(1, ge=1)


def test_a_missing_file_next_to_a_wrong_option(bench: Bench, registry: Registry) -> None:
    registry.add(Registration("reads", Reads, kind="step"))
    problems = bench.problems("  s: {step: reads, file: no.py, limit: 0}\n")
    assert [problem.message for problem in problems] == [
        "no such file: no.py",
        "stages.s.limit: must be greater than or equal to 1, got 0",
    ]


def test_the_resolved_recipe_works_in_any_folder(bench: Bench, registry: Registry) -> None:
    registry.add(Registration("reads", Reads, kind="step"))
    for folder in ("sub", "ad", "rm", "run"):
        (bench.folder / folder).mkdir()
    for file in ("sub/own.jsonl", "sub/own.py", "t.jinja", "rm/config.json"):
        (bench.folder / file).write_text("")
    (bench.folder / "ad/adapter_config.json").write_text("{}")
    (bench.folder / "sub/base.yaml").write_text(
        "model: {base: tiny}\n"
        "stages: {a: {algorithm: plain, data: own.jsonl}, r: {step: reads, file: own.py}}"
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
    assert recipe.stages["r"].component.options.file == bench.folder / "sub/own.py"  # type: ignore[attr-defined]
    assert recipe.model.chat_template == "t.jinja" and again.model.chat_template == str(
        bench.folder / "t.jinja"
    )
    (bench.folder / "sub/base.yaml").write_text("model: {base: tiny, chat_template: own.jsonl}")
    elsewhere = bench.load("extends: sub/base.yaml\nstages: {a: {algorithm: plain, data: d.jsonl}}")
    # A run looks in the recipe's folder
    assert elsewhere.model.chat_template == str(bench.folder / "sub/own.jsonl")


def test_online_algorithms_require_prompts_and_a_reward(bench: Bench) -> None:
    messages = [problem.message for problem in bench.problems("  s: {algorithm: online}\n")]
    assert messages == [
        f"'stages.s.{key}' is missing: online requires it" for key in ("prompts", "reward")
    ]


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
    assert [(problem.line, problem.message) for problem in caught.value.problems] == [
        (1, "seed: must be a valid integer, got 'x'"),
        (2, "'model.base' is missing"),
        (2, "unknown key 'bas'"),
        (2, "unknown key 'lora_dropout'"),
        (2, "model.lora.r: must be greater than or equal to 1, got 0"),
        (4, "stages.first.algorithm.plain.beta: must be greater than 0, got -1"),
        (4, "no such file: none.jsonl"),
        (4, "unknown key 'lr'"),
        (5, "'nobody' is neither a stage nor a folder"),
        (5, "stages.s.strict: must be a valid boolean, got 3"),
        (5, "no reward 'lenth'"),
        (5, "'stages.s.rewards.x.sum.more.0.reward' is missing"),
        (5, "stages.s.rewards.x.sum.more.0.weight: must be a valid number, got 'a'"),
        (6, "no step 'nothing'"),
        (7, "unknown key 'extra'"),
    ]


@pytest.mark.parametrize(
    ("overrides", "message", "origin"),
    [
        (
            ["stages.first.epochs=0"],
            "must be greater than or equal to 1, got 0",
            "stages.first.epochs=0",
        ),
        (["stages.first.epoks=1"], "unknown key 'epoks'", "stages.first.epoks=1"),
        (
            ["stages.first.algorithm.plain.beta=x"],
            "must be a valid number, got 'x'",
            "stages.first.algorithm.plain.beta=x",
        ),
        (["stages.first.data=gone"], "no such file: gone", "stages.first.data=gone"),
        (
            ["model.lora=none", "model.quantization=nf4"],
            "nf4 weights cannot be trained",
            "model.quantization=nf4",
        ),
        (
            ["model.mixed_precision=bf16"],
            "adapter multiplies in the dtype of the base",
            "model.mixed_precision=bf16",
        ),
        (["model.quantization=nf5"], "got 'nf5'", "model.quantization=nf5"),
        (["model.lora={r: 4, fp: 1}"], "unknown key 'fp'", "model.lora={r: 4, fp: 1}"),
        (["mdoel.base=tiny"], "unknown key 'mdoel'", "mdoel.base=tiny"),
    ],
)
def test_mistakes_of_overrides_name_them(
    bench: Bench, overrides: list[str], message: str, origin: str
) -> None:
    problem = bench.problem(FIRST, *overrides)
    assert message in problem.message
    assert f"--> override '{origin}'" in str(problem)


def test_a_stage_of_an_unknown_algorithm_is_checked_anyway(bench: Bench) -> None:
    problems = bench.problems(
        FIRST + "  s: {algorithm: plane, data: d.jsonl, from: frist, epochs: 0}\n"
    )
    assert [problem.message.split(":")[0] for problem in problems] == [
        "no algorithm 'plane'",
        "'frist' is neither a stage nor a folder",
        "stages.s.epochs",
    ]


def test_a_swap_is_one_line(bench: Bench) -> None:
    assert (
        bench.stages(ALL, "stages.align.algorithm=critic").stages["align"].component.name
        == "critic"
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


def test_a_misspelled_model_plugin(bench: Bench) -> None:
    problem = bench.problem(FIRST, "model.base=tinny")
    assert (problem.message, problem.help.startswith("did you mean 'tiny'?")) == (
        "no model 'tinny'",
        True,
    )
    assert "no such folder" in bench.problem(FIRST, "model.base=./x").message


def test_a_recipe_needs_a_model_and_stages(bench: Bench) -> None:
    with pytest.raises(RecipeError) as caught:
        bench.load("seed: 1\n")
    assert [problem.message for problem in caught.value.problems] == [
        "'model' is missing",
        "'stages' is missing",
    ]
    with pytest.raises(RecipeError, match="at least 1"):
        bench.load("model: {base: tiny}\nstages: {}\n")
    with pytest.raises(RecipeError, match="must be an object"):
        bench.load("model: tiny\nstages: []\n")


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
