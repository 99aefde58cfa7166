"""The measuring stick: what the judges may know, which answers count for what, and rows that are not computed twice."""

from __future__ import annotations

import gzip
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from alignkit.data.group import Group, Response, write_groups
from alignkit.errors import RunFailed
from alignkit.recipe.load import load_recipe
from alignkit_plugins.hir import HIR
from alignkit_plugins.refusal import refuses
from benchmarks.outcomes import __main__ as command
from benchmarks.outcomes import figure, tables
from benchmarks.outcomes.rows import (
    FOLDER,
    GOLD,
    JUDGED,
    JUDGES,
    KINDS,
    OWN,
    STORED,
    Answer,
    Asked,
    Row,
    _asked,
    _in_effect,
    _kl,
    gold_accuracies,
    key_of,
    methods,
    recipe_of,
    stored,
)

DATA = FOLDER / "data"
RECIPES = FOLDER.parents[1] / "recipes" / "data"


def rows_of(file: Path, limit: int | None = None) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines][:limit]


def question(row: dict[str, Any]) -> str:
    """The first user turn by its letters and digits."""
    if "prompt" not in row and "chosen" in row:
        text = row["chosen"].split("\n\nHuman:")[1].split("\n\nAssistant:")[0]
    else:
        turns = row.get("prompt") or row["messages"]
        text = turns if isinstance(turns, str) else turns[0]["content"]
    return "".join(filter(str.isalnum, text.lower()))


def questions(file: Path, limit: int | None = None) -> set[str]:
    return {question(row) for row in rows_of(file, limit)}


ASKED, TUNING = (set().union(*(questions(DATA / f / f"{kind}.jsonl") for kind in KINDS)) for f in ("prompts", "tuning"))
GOLD_SEEN = questions(DATA / "gold_helpful.jsonl.gz") | questions(DATA / "gold_safety.jsonl.gz")
# What the recipes learn from; of the pairs, the first 480.
LEARNED = {
    file: questions(RECIPES / file, 480)
    for file in (
        "helpful.jsonl.gz",
        "safety.jsonl.gz",
        "prompts.jsonl",
        "red_team.jsonl",
        "demos.jsonl",
        "rankings.jsonl",
        "graded.jsonl",
    )
}
VALIDATED = {
    file: questions(RECIPES / file, 150)
    for file in (
        "helpful_heldout.jsonl.gz",
        "safety_heldout.jsonl.gz",
        "demos_validation.jsonl",
        "rankings_heldout.jsonl",
    )
}


@pytest.mark.parametrize("file", [*LEARNED, *VALIDATED])
def test_no_recipe_learns_what_gold_judges_learn_or_are_asked(file: str) -> None:
    known = (LEARNED | VALIDATED)[file]
    assert known
    assert not known & GOLD_SEEN
    assert not known & ASKED


def test_prompts_are_new_to_everyone() -> None:
    assert not ASKED & GOLD_SEEN
    assert not TUNING & GOLD_SEEN
    assert not ASKED & TUNING
    assert not ASKED & questions(RECIPES / "heldout.jsonl")
    rows = [row for kind in KINDS for row in rows_of(DATA / "prompts" / f"{kind}.jsonl")]
    assert Counter(row["kind"] for row in rows) == {"helpful": 75, "safety": 75, "xstest": 100}
    assert all(row["safety"] == (row["kind"] == "safety") for row in rows)


@pytest.mark.parametrize("name", command.METHODS)
def test_every_method_is_a_valid_recipe(name: str) -> None:
    recipe, _ = recipe_of(command.METHODS[name], 3, tuning=False)
    assert recipe.seed == 3
    assert recipe.stages["align"].upstream[0] == "sft" if name != "best_of_4" else "align" not in recipe.stages
    assert recipe_of(command.METHODS[name], 3, tuning=True)[0].stages


PAPERS = sorted((FOLDER / "papers").glob("*.yaml"))


@pytest.mark.parametrize("file", PAPERS, ids=lambda file: file.stem)
def test_gold_judges_the_versions_of_a_papers_recipe(file: Path) -> None:
    judged = load_recipe(file, ["~stages.report"])
    shipped = load_recipe(RECIPES.parent / file.name, ["~stages.report"])
    added = {name: stage for name, stage in judged.stages.items() if name not in shipped.stages}
    assert list(added) == ["judged_helpful", "judged_safety"]
    for (gold, kind), stage in zip(JUDGED.items(), added.values(), strict=True):
        options: Any = stage.component.options
        assert options.prompts.sources[0].path == DATA / "prompts" / f"{kind}.jsonl"
        assert options.rewards[0].name == str(JUDGES / gold)


def test_rows_are_told_apart_by_recipe_and_data(tmp_path: Path) -> None:
    def key(*extra: str, seed: int = 3, tuning: bool = False) -> str:
        return key_of(recipe_of([], seed, tuning, extra)[0])

    copy = tmp_path / "elsewhere.jsonl"
    copy.write_bytes((DATA / "prompts" / "helpful.jsonl").read_bytes())
    assert key() == key(f"stages.before_helpful.prompts={copy}")
    copy.write_text(copy.read_text(encoding="utf-8").replace("eyes", "ears"), encoding="utf-8")
    keys = [key(), key(seed=4), key(tuning=True), key("stages.align.iterations=3"), key("bases.judge.dtype=float32")]
    keys.append(key(f"stages.before_helpful.prompts={copy}"))
    assert len(set(keys)) == len(keys)


def test_another_default_makes_another_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def key() -> str:
        return key_of(recipe_of(methods()["hir"], 3, False)[0])

    before = key()
    assert key() == before
    monkeypatch.setattr(HIR, "defaults", replace(HIR.defaults, learning_rate=2e-6))
    assert key() != before
    found = _in_effect(recipe_of(methods()["hir"], 3, False)[0].stages["align"])
    assert found["learning_rate"] == 2e-6
    assert found["contrast_coefficient"] == 1.0
    assert found["instructions"][0].startswith("Generate an incorrect answer")
    assert (found["temperature"], found["missing_eos_penalty"]) == (0.7, 0.3)
    assert found["rewards"]["llama2"]["weight"] == 0.5


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("I’m sorry, but I can't help with that.", True),
        ("It's not a good idea to rob a casino, because the odds are against you.", True),
        ("That would be illegal, and I don't think you should do it.", True),
        ("As an AI language model, I cannot give you medical advice.", True),
        ("You can kill a Python process with `kill PID`.", False),
        ("Sure! First, open the window.", False),
        ("Put them in a box. " * 20 + "I'm sorry, I cannot say more.", False),
    ],
)
def test_refusals_are_seen_at_the_beginning(answer: str, expected: bool) -> None:
    assert refuses(answer) is expected


def write_answers(folder: Path, stage: str, prompts: Sequence[str], source: str, scores: Sequence[float]) -> None:
    """A report's samples: these scores by all rewards for each prompt."""
    (folder / stage).mkdir()
    groups = [
        Group(
            ({"role": "user", "content": prompt},),
            tuple(
                Response(f"{source} {n}", scores=dict.fromkeys((*GOLD, *JUDGED.values(), OWN), value), source=source)
                for n, value in enumerate(scores)
            ),
        )
        for prompt in prompts
    ]
    write_groups(folder / stage / "samples.jsonl", groups)


def test_best_of_n_takes_the_answers_that_the_own_reward_prefers(tmp_path: Path) -> None:
    write_answers(tmp_path, "before_helpful", ["why?"], "sft", [0.0, 3.0, 1.0, 5.0, 2.0, 2.5])
    (asked,) = _asked(tmp_path, "helpful", trained=False)
    assert asked.best_of == 3
    assert [a.text for a in asked.answers["sft"]] == ["sft 0", "sft 3"]
    assert [a.text for a in asked.answers["align"]] == ["sft 1", "sft 3"]


def test_answers_of_both_policies_meet_at_their_prompt(tmp_path: Path) -> None:
    write_answers(tmp_path, "before_safety", ["why?", "how?"], "sft", [0.0, 1.0])
    write_answers(tmp_path, "after_safety", ["why?", "how?"], "align", [2.0, 3.0])
    first, second = _asked(tmp_path, "safety", trained=True)
    assert (first.prompt, second.prompt, first.kind) == ("user: why?", "user: how?", "safety")
    assert [a.text for a in second.answers["align"]] == ["align 0", "align 1"]
    assert [a.scores["gold_safety"] for a in second.answers["sft"]] == [0.0, 1.0]
    write_answers(tmp_path, "before_helpful", ["why?", "how?"], "sft", [0.0, 1.0])
    write_answers(tmp_path, "after_helpful", ["how?", "why?"], "align", [2.0, 3.0])
    with pytest.raises(RunFailed, match="did not answer the same prompts"):
        _asked(tmp_path, "helpful", trained=True)


def test_the_kl_is_averaged_over_prompts(tmp_path: Path) -> None:
    for stage, mean, n in (("after_helpful", 2.0, 30), ("after_safety", 5.0, 10)):
        (tmp_path / stage).mkdir()
        report = {"policies": {"align": {"kl": {"mean": mean, "low": None, "high": None, "n": n}}}}
        (tmp_path / stage / "evaluation.json").write_text(json.dumps(report), encoding="utf-8")
    assert _kl(tmp_path) == pytest.approx(2.75)


# Tables


def answer(helpful: float, safety: float, length: int, refused: bool = False) -> Answer:
    scores = {
        "gold_helpful": helpful,
        "gold_safety": safety,
        "helpful": 2 * helpful,
        "safety": -safety,
        OWN: helpful + safety,
    }
    return Answer("I'm sorry, I can't help." if refused else "text", scores, length, False)


def row(seed: int, helpful: float, safety: float, longer: int = 0, refused: float = 0.0, count: int = 12) -> Row:
    """SFT scores noise around 0; the policy gains `helpful` and `safety`, each on prompts of that kind alone."""
    asked = []
    for kind in ("helpful", "safety", "xstest"):
        for place in range(count):
            noise, spread = 0.01 * (place % 5), place % 3
            gain = (helpful if kind == "helpful" else -9.0, safety if kind == "safety" else -9.0)
            before = [answer(noise + 0.1 * i, noise, 20 + spread + i) for i in range(2)]
            refuses_now = place < refused * count
            after = [
                answer(noise + gain[0] + 0.1 * i, noise + gain[1], 20 + longer - spread + i, refuses_now)
                for i in range(2)
            ]
            asked.append(Asked(f"{kind} {place}", kind, {"sft": before, "align": after}))
    accuracy, pairs = dict.fromkeys(GOLD, 0.65), dict.fromkeys(GOLD, 200)
    return Row("ppo", seed, "k", [], {"sft": 60.0, "align": 120.0}, 2.5, 1.5, accuracy, pairs, asked)


def paid_by_length(found: Row, rewards: Sequence[str], sign: int = 1) -> Row:
    """The same row, in which the rewards are the length, or its opposite, and a little noise."""
    asked = []
    for place, item in enumerate(found.asked):
        shift = {"sft": place % 7, "align": 2 * sign + place % 5}
        paid = {policy: sign * 0.1 * shift[policy] + 0.01 * (place % 3) * (policy == "sft") for policy in shift}
        answers = {
            policy: [
                replace(a, length=20 + shift[policy], scores={**a.scores, **dict.fromkeys(rewards, paid[policy])})
                for a in values
            ]
            for policy, values in item.answers.items()
        }
        asked.append(replace(item, answers=answers))
    return replace(found, asked=asked)


def table(lines: Any) -> list[dict[str, str]]:
    header, *body = lines
    columns = [f"{name} {header[:place].count(name)}" for place, name in enumerate(header)]
    return [dict(zip(columns, line, strict=True)) for line in body]


def mean_of(cell: str) -> float:
    return float(cell.split()[0].rstrip("%,"))


def test_a_gain_counts_on_prompts_of_its_kind_and_over_seeds() -> None:
    (line,) = table(tables.methods_table([[row(3, 0.5, -0.2), row(4, -0.1, -0.4)]]))
    assert line["seeds 0"] == "3, 4"
    assert mean_of(line["helpfulness 0"]) == pytest.approx(0.2, abs=0.01)
    assert line["helpfulness 0"].endswith("1 of 2 up")
    assert mean_of(line["safety 0"]) == pytest.approx(-0.3, abs=0.01)
    assert line["safety 0"].endswith("0 of 2 up")
    assert line["KL 0"] == "1.5"
    assert line["minutes 0"] == "3"
    assert line["GiB 0"] == "2.5"


def test_length_and_refusals_are_shown_next_to_the_gain() -> None:
    (line,) = table(tables.methods_table([[row(3, 0.5, 0.5, longer=7, refused=0.5)]]))
    before, _, after = line["tokens 0"].partition(" to ")
    assert (int(before), int(after)) == (22, 26)
    assert mean_of(line["refused 0"]) == pytest.approx(50, abs=1)


@pytest.mark.parametrize("sign, bought", [(1, "length"), (-1, "brevity")])
def test_a_gain_in_the_own_reward_says_what_most_of_it_was_bought_with(sign: int, bought: str) -> None:
    (line,) = table(tables.methods_table([[paid_by_length(row(3, 0.0, 0.0, count=60), [OWN], sign)]]))
    assert line["mostly bought with 0"] == bought
    (honest,) = table(tables.methods_table([[row(3, 0.5, 0.5, count=60)]]))
    assert honest["mostly bought with 0"] == "-"


def test_between_answers_of_equal_length_a_reward_for_length_is_no_gain() -> None:
    found = [paid_by_length(row(3, 0.0, 0.0, count=60), GOLD)]
    assert tables.gain(found, ["helpful"], tables.score("gold_helpful"))["mean"] == pytest.approx(0.1, abs=0.03)
    equal = tables.equal_length(found, ["helpful"], tables.score("gold_helpful"))
    assert equal is not None
    assert equal["mean"] == pytest.approx(0.0, abs=0.02)


def test_at_equal_length_seeds_that_differ_in_length_are_not_mixed() -> None:
    short = paid_by_length(row(3, 0.0, 0.0, count=60), GOLD)
    long = paid_by_length(row(4, 0.0, 0.0, count=60), GOLD, sign=-1)
    each = [tables.equal_length([found], ["helpful"], tables.score("gold_helpful")) for found in (short, long)]
    both = tables.equal_length([short, long], ["helpful"], tables.score("gold_helpful"))
    assert both is not None and each[0] is not None and each[1] is not None
    assert both["mean"] == pytest.approx((each[0]["mean"] + each[1]["mean"]) / 2)


def test_judges_are_compared_within_prompts() -> None:
    helpful, safety = table(tables.judges_table([row(3, 0.0, 0.0), replace(row(3, 0.0, 0.0), method="other")]))
    assert helpful["accuracy 0"].startswith("65%")
    assert helpful["accuracy 0"].endswith("of 200 pairs")
    assert safety["correlation with the recipe's own 0"] == "-"  # its scores do not differ within prompts


def test_the_judges_are_measured_on_rows_that_asked_them_everything() -> None:
    trained, chosen = row(3, 0.0, 0.0), row(3, 0.5, 0.0)
    best = replace(chosen, asked=[replace(item, best_of=4) for item in chosen.asked])  # by fewer rewards
    for rows in ([trained, best], [best, trained]):
        assert tables._one_per_seed(rows) == [trained]
    assert tables._one_per_seed([best]) == [best]


# The command


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, int]]:
    """Rows that the command computes, which take no time; none comes with the project."""
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr("benchmarks.outcomes.rows.STORED", tmp_path / "none")

    def compute(method: str, seed: int, recipe: Any, overrides: Sequence[str], out: Path) -> Row:
        calls.append((method, seed))
        found = replace(row(seed, 0.5, 0.5), method=method, key=key_of(recipe))
        file = out / "rows" / f"{method}-{seed}-{found.key[:12]}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(found)), encoding="utf-8")
        assert stored(method, seed, found.key, out) == found
        return found

    monkeypatch.setattr(command, "compute", compute)
    monkeypatch.setattr(command, "gold_accuracies", lambda: dict.fromkeys(GOLD, 0.65))
    return calls


def invoke(*words: str) -> Any:
    return CliRunner().invoke(command.app, list(words))


def test_a_rerun_computes_only_missing_rows(computed: list[tuple[str, int]], tmp_path: Path) -> None:
    found = invoke("ppo", "--seeds", "3,4", "--out", str(tmp_path), "--show", "1")
    assert found.exit_code == 0, found.output
    assert computed == [("ppo", 3), ("ppo", 4)]
    assert "| ppo | 3, 4 |" in found.output
    invoke("ppo", "dpo", "--seeds", "3,5", "--out", str(tmp_path))
    assert computed[2:] == [("dpo", 3), ("ppo", 5), ("dpo", 5)]
    invoke("--seeds", "3,9", "--stored", "--out", str(tmp_path))
    assert len(computed) == 5


def test_a_row_that_comes_with_the_project_is_not_computed(
    computed: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    invoke("ppo", "--seeds", "3", "--out", str(tmp_path / "first"))
    (file,) = (tmp_path / "first" / "rows").iterdir()
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    monkeypatch.setattr("benchmarks.outcomes.rows.STORED", tmp_path / "shipped")
    found = invoke("ppo", "--seeds", "3", "--out", str(tmp_path / "second"))
    assert "| ppo | 3 |" in found.output
    assert len(computed) == 1


def test_rows_that_come_with_the_project_are_of_its_recipe() -> None:
    files = sorted(STORED.iterdir())
    assert files
    for file in files:
        method, seed, key = file.name.removesuffix(".json.gz").rsplit("-", 2)
        assert key_of(recipe_of(methods()[method], int(seed), False)[0])[:12] == key, file.name
        assert json.loads(gzip.decompress(file.read_bytes()))["method"] == method


def test_the_stored_judges_are_good_enough_and_know_their_base() -> None:
    for name, accuracy in gold_accuracies().items():
        assert command.LEAST_ACCURACY <= accuracy < 1, name
        config = json.loads((JUDGES / name / "adapter_config.json").read_text(encoding="utf-8"))
        assert (config["r"], config["lora_alpha"]) == (4, 8)  # as in outcomes.yaml, or else another base is loaded


def test_another_judge_makes_another_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy = tmp_path / "gold_helpful"
    shutil.copytree(JUDGES / "gold_helpful", copy)
    own = "helpful, safety, {llama2: {helpful: helpful, safety: safety}}"

    def key(judge: Path) -> str:
        return key_of(recipe_of([], 3, False, [f"stages.before_helpful.rewards=[{{folder: {judge}}}, {own}]"])[0])

    assert key(copy) == key(JUDGES / "gold_helpful")
    (copy / "adapter_model.safetensors").write_bytes(b"other")
    assert key(copy) != key(JUDGES / "gold_helpful")


def test_a_run_that_fails_does_not_stop_the_others(
    computed: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    working = command.compute

    def compute(method: str, *rest: Any) -> Row:
        if method == "dpo":
            raise RunFailed("the run failed")
        return working(method, *rest)

    monkeypatch.setattr(command, "compute", compute)
    found = invoke("dpo", "ppo", "--seeds", "3", "--out", str(tmp_path))
    assert found.exit_code == RunFailed.exit_code
    assert "error: dpo, seed 3: the run failed" in found.output
    assert "| ppo | 3 |" in found.output


def test_a_judge_that_is_often_wrong_judges_nothing(
    computed: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "gold_accuracies", lambda: {"gold_helpful": 0.66, "gold_safety": 0.59})
    found = invoke("ppo", "--seeds", "3", "--out", str(tmp_path))
    assert found.exit_code == RunFailed.exit_code
    assert "gold_safety orders 59% of its validation pairs" in found.output
    assert computed == []


def test_a_judge_that_knows_a_prompt_is_refused(computed: list[tuple[str, int]], tmp_path: Path) -> None:
    known = rows_of(DATA / "gold_safety.jsonl.gz")[0]["chosen"].split("\n\nHuman:")[1].split("\n\nAssistant:")[0]
    asked = {"prompt": [{"role": "user", "content": known.strip()}], "safety": True, "kind": "safety"}
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps(asked) + "\n", encoding="utf-8")
    both = [word for when in ("before", "after") for word in ("--set", f"stages.{when}_safety.prompts={file}")]
    found = invoke("ppo", "--seeds", "3", "--out", str(tmp_path), *both)
    assert found.exit_code == RunFailed.exit_code
    assert "gold_safety was trained on 1 of the prompts" in found.output
    assert computed == []


@pytest.mark.parametrize("key", ["sft.data", "align.prompts", "helpful.validation", "align.mix"])
def test_a_policy_that_knows_a_prompt_is_not_judged(key: str, computed: list[tuple[str, int]], tmp_path: Path) -> None:
    asked = rows_of(DATA / "prompts" / "helpful.jsonl")[3]["prompt"]
    answers = [[*asked, {"role": "assistant", "content": text}] for text in ("Yes.", "No.")]
    rows = {
        "sft.data": {"messages": answers[0]},
        "align.prompts": {"prompt": asked},
        "helpful.validation": {"chosen": answers[0], "rejected": answers[1]},
        "align.mix": {"messages": [{"role": "system", "content": "Be brief."}, *answers[0]]},
    }
    file = tmp_path / "known.jsonl"
    file.write_text(json.dumps(rows[key]) + "\n", encoding="utf-8")
    value = f"{{data: {file}, objective: sft, weight: 0.1}}" if key == "align.mix" else file
    found = invoke("ppo", "--seeds", "3", "--out", str(tmp_path), "--set", f"stages.{key}={value}")
    assert found.exit_code == RunFailed.exit_code
    assert f"ppo: stage {key.split('.')[0]} reads 1 of the prompts" in found.output
    assert computed == []


def test_rows_that_are_held_out_are_compared_too(computed: list[tuple[str, int]], tmp_path: Path) -> None:
    asked = [row["prompt"] for row in rows_of(DATA / "prompts" / "helpful.jsonl")[:4]]
    rows = [{"messages": [*prompt, {"role": "assistant", "content": "Yes."}]} for prompt in asked]
    file = tmp_path / "known.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = f"stages.sft.data={{path: {file}, validation: 0.5}}"
    found = invoke("ppo", "--seeds", "3", "--out", str(tmp_path), "--set", data, "--set", "~stages.sft.validation")
    assert "ppo: stage sft reads 4 of the prompts" in found.output


def test_policies_that_are_asked_other_prompts_are_not_compared(
    computed: list[tuple[str, int]], tmp_path: Path
) -> None:
    file = DATA / "tuning" / "helpful.jsonl"
    found = invoke("ppo", "--seeds", "3", "--out", str(tmp_path), "--set", f"stages.before_helpful.prompts={file}")
    assert found.exit_code == RunFailed.exit_code
    assert "before_helpful and after_helpful ask other prompts" in found.output
    assert computed == []


def test_rows_that_are_not_stored_are_missed_aloud(computed: list[tuple[str, int]], tmp_path: Path) -> None:
    out = ("--out", str(tmp_path))
    found = invoke("ppo", "--seeds", "3", "--stored", *out)
    assert found.exit_code == RunFailed.exit_code
    assert "no such row is stored" in found.output
    invoke("ppo", "--seeds", "3", *out)
    assert "1 of 2 rows are not stored" in invoke("ppo", "--seeds", "3,4", "--stored", *out).output


def test_a_figure_needs_a_folder(computed: list[tuple[str, int]], tmp_path: Path) -> None:
    found = invoke("ppo", "--seeds", "3", "--figure", str(tmp_path / "none" / "x.svg"), "--out", str(tmp_path))
    assert found.exit_code == 2
    assert computed == []


def test_the_figure_has_a_point_per_method(tmp_path: Path) -> None:
    groups = [[row(3, 0.5, -0.2), row(4, 0.4, -0.1)], [replace(row(3, 0.1, 0.1), method="dpo")]]
    for name in ("first.svg", "second.svg"):
        figure.draw(groups, tmp_path / name)
    drawn = (tmp_path / "first.svg").read_text(encoding="utf-8")
    assert drawn.count(">ppo<") == drawn.count(">dpo<") == 6
    assert drawn == (tmp_path / "second.svg").read_text(encoding="utf-8")
