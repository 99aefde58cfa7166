"""A stage's results side by side: what the evaluation of each found, and how they differ prompt by prompt.

Nothing is sampled again: an evaluation that was set aside has the answers of an earlier result to the same prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.data.group import Group, group_from_json, length
from alignkit.evaluation import statistics
from alignkit.io.results import find_result, folders_of, read_record, results_of_stage
from alignkit.report import Block, Table
from alignkit_apps.report.files import each_object, read_object
from alignkit_plugins.evaluate.compared import averages, compare, scale_of, scores_of
from alignkit_plugins.evaluate.comparison import answers_of
from alignkit_plugins.evaluate.readable import shown
from alignkit_plugins.evaluate.who_judged import conclusion, lower_is_better, percent

MOST = 3  # earlier results of a policy, the newest ones
LENGTH = "tokens"
_SOURCES = ("now", "then")  # of answers
Pair = dict[str, Any]


def pairs_of(run: Path, stage: str) -> list[Pair]:
    """The current result of each evaluated policy against its earlier ones, as plain data for report.json.

    Each has `stage`, `policy`, `result` and `against` (names), `folder` and `kept` (where both are), `differs` (why
    they do not compare, or an empty string), `prompts`, `measures` (of the evaluation), `conclusion` (a sentence), and
    by reward `results`: `mean` and `was` (estimates), and the comparison of both.
    Raises what reading damaged files raises.
    """
    record, summary = read_record(run / stage), read_object(run / stage / "evaluation.json")
    if not record.get("complete") or not summary:
        return []
    earlier = _earlier(run, stage)
    return [
        _pair(run, stage, str(policy), now, then, earlier[policy, hash])
        for policy in summary["policies"]
        for now, then, hash in _results(run, str(policy), record)
        if (policy, hash) in earlier
    ]


def _results(run: Path, policy: str, record: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The name of a policy's result that was evaluated, with the name and the hash of each earlier one."""
    results = {name: read_record(folder)["hash"] for name, folder in results_of_stage(run, policy).items()}
    now = next((name for name in results if results[name] == _upstream(record).get(policy)), None)
    if now is not None:
        yield from ((now, name, results[name]) for name in [name for name in results if name != now][:MOST])


def _earlier(run: Path, stage: str) -> dict[tuple[str, str], Path]:
    """The newest evaluation that was set aside, by policy and hash of its result."""
    current = (run / stage).resolve()
    folders = [folder for folder in folders_of(run, stage) if folder.resolve() != current]
    found: dict[tuple[str, str], Path] = {}
    for folder in sorted(folders, key=lambda folder: (folder / "stage.json").stat().st_mtime):
        record, summary = read_record(folder), read_object(folder / "evaluation.json")
        upstream = _upstream(record)
        found |= {(name, upstream[name]): folder for name in summary.get("policies", ()) if name in upstream}
    return found


def _upstream(record: Mapping[str, Any]) -> Mapping[str, str]:
    """The hashes of the stages that a complete result depends on."""
    return record["depends_on"].get("upstream", {}) if record.get("complete") else {}


def _pair(run: Path, stage: str, policy: str, now: str, then: str, before: Path) -> Pair:
    folder = run / stage
    pair: Pair = {
        "stage": stage,
        "policy": policy,
        "result": now,
        "against": then,
        "folder": find_result(run, now).relative_to(run).as_posix(),
        "kept": find_result(run, then).relative_to(run).as_posix(),
        "differs": _difference(folder, before),
        "prompts": 0,
        "measures": {},
        "conclusion": "",
        "results": {},
    }
    if pair["differs"]:
        return pair
    summary = read_object(folder / "evaluation.json")
    rewards = list(summary["rewards"])
    groups = _joined(folder, before, policy, rewards)
    if not groups:
        return pair
    measures = summary.get("measures") or {}
    results = _compared(groups, rewards, measures)
    found = {"measures": measures, "results": results, "conclusion": _concluded(summary, pair, results)}
    return {**pair, "prompts": len(groups), **found}


def _concluded(summary: Mapping[str, Any], pair: Pair, results: Mapping[str, Any]) -> str:
    """What all rewards and measures together say of a result against an earlier one."""
    now, own = pair["result"], (summary.get("trained_on") or {}).get(pair["policy"]) or {}
    against = {name: result for name, result in results.items() if name != LENGTH}
    one = {**summary, "baseline": pair["against"], "trained_on": {now: own}, "against": {now: against}}
    return conclusion({**one, "against_base": {}, "judged": {}}, now).sentence


def _difference(folder: Path, before: Path) -> str:
    """Why two evaluations do not compare; empty if they do."""
    now, then = read_object(folder / "evaluation.json"), read_object(before / "evaluation.json")
    records = [read_record(folder)["depends_on"], read_record(before)["depends_on"]]
    options = [one["component"]["options"] for one in records]
    if options[0].get("prompts") != options[1].get("prompts"):
        return "the prompts have changed"
    if now["sampling"] != then["sampling"]:
        return "the sampling has changed"
    for raters in ("rewards", "measures"):
        if options[0].get(raters) != options[1].get(raters):
            return f"the {raters} have changed"
    policies = {str(name).partition("@")[0] for one in (now, then) for name in one["policies"]}
    upstream = [{k: v for k, v in one["upstream"].items() if k.partition("@")[0] not in policies} for one in records]
    changed = [name for name in upstream[0] if upstream[0][name] != upstream[1].get(name)]
    return f"{', '.join(changed)} {'have' if len(changed) > 1 else 'has'} changed" if changed else ""


def _joined(folder: Path, before: Path, policy: str, rewards: Sequence[str]) -> list[Group]:
    """The prompts that both evaluations have, with the answers of both results, whose sources are `now` and `then`."""
    then = {_key(group): group for group in _groups(before)}
    return [
        replace(
            group,
            responses=tuple(
                replace(response, source=source, scores={name: response.scores.get(name) for name in rewards})
                for source, one in zip(_SOURCES, (group, then[_key(group)]), strict=True)
                for response in answers_of(one, policy)
            ),
        )
        for group in _groups(folder)
        if _key(group) in then
    ]


def _groups(folder: Path) -> list[Group]:
    return [group_from_json(row) for row in each_object(folder / "samples.jsonl")]


def _key(group: Group) -> str:
    return repr((group.prompt, sorted(group.meta.items())))


def _compared(groups: Sequence[Group], rewards: Sequence[str], measures: Mapping[str, Any]) -> dict[str, Any]:
    """By reward, and by length: the mean of each result over these prompts, and their difference."""
    found: dict[str, Any] = {}
    for name in rewards:
        scale = scale_of(groups, name)
        scores = [scores_of(averages(groups, source, name)) for source in _SOURCES]
        lower = (measures.get(name) or {}).get("better") == "lower"
        compared = compare(groups, *_SOURCES, name, measure=name in measures, lower=lower)
        found[name] = {**_means(*(scale.mean(*each) for each in scores)), **compared}
    lengths = [[statistics.mean([length(r) for r in answers_of(g, source)]) for g in groups] for source in _SOURCES]
    both = _means(*map(statistics.estimate, lengths))
    return {**found, LENGTH: {**both, "difference": statistics.paired_difference(*lengths)}}


def _means(now: Any, then: Any) -> dict[str, Any]:
    return {"mean": now, "was": then}


# Tables


def blocks(pairs: Sequence[Pair], run: Path | str, stage: str | None = None) -> list[Block]:
    """Old against new, a table per pair; a line for two results that do not compare.

    run: what paths start with. stage: only what it evaluated.
    """
    chosen = [pair for pair in pairs if stage in (None, pair["stage"])]
    return [block for pair in chosen for block in (_table(pair, Path(run)), pair.get("conclusion")) if block]


def _table(pair: Pair, run: Path) -> Block:
    now, then = pair["result"], pair["against"]
    if not pair["results"]:
        why = pair["differs"] or "they answered no prompt in common"
        return f"{pair['stage']}: {now} and {then} do not compare: {why}"
    rows = [
        [
            str(name),
            *(shown(one[key], percent=percent(pair, name)) for key in ("was", "mean")),
            *(shown(one.get(key), sign=True, percent=percent(pair, name)) for key in ("difference", "at_equal_length")),
        ]
        for name, one in pair["results"].items()
    ]
    title = f"{pair['stage']}: {now} against {then}, prompt by prompt ({pair['prompts']} prompts)"
    places = f"{then} is kept in {run / pair['kept']}; {now} is in {run / pair['folder']}"
    note = "; ".join(filter(None, (lower_is_better(pair), places)))
    return Table(title, ["", then, now, "difference", "at equal length"], rows, note=note)
