"""Files of a command line: prompts that policies answer, and answers that rewards score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from alignkit import Group
from alignkit.contract.commands import Result
from alignkit.contract.settings import SamplingOptions
from alignkit.data.group import (
    group_to_json,
    responses_of,
    with_responses,
    write_groups,
)
from alignkit.errors import DataError, refuse
from alignkit.evaluation.statistics import interval_text
from alignkit.io.console import Reporter
from alignkit.io.text import printable
from alignkit_plugins.command_line.words import Named
from alignkit_plugins.compare.comparison import (
    label,
    prompts_to_compare,
    sample_policies,
    scored_by,
)
from alignkit_plugins.compare.pairs import accuracy, choices, gaps
from alignkit_plugins.compare.scores import Measure, compare, scale_of, scores_of
from alignkit_plugins.serving.policy import Opened, opened

AUTHOR = ""  # stands for all authors of responses, whose scores are averaged


def answer_and_score(
    named: Named, overrides: Sequence[str], out: Path | None, limit: int | None = None
) -> Result:
    """Let the policies, if there are any, answer a file, and the rewards score its responses; both
    in one row each.

    out: where the rows go; default: stdout, with the summary on stderr. limit: of rows.
    """
    if out is not None and (out.suffix != ".jsonl" or out.exists()):
        refuse(
            f"--out {out}: what is written is JSON lines, in a new file", "name a new FILE.jsonl"
        )
    reporter = Reporter()
    with opened(named, overrides, reporter, lambda: None, "alignkit") as models:
        groups = models.data[:limit]
        if models.policies:
            groups = _answered(models, groups, reporter)
        groups, facts = _scored(models, groups, reporter)
    if out is not None:
        write_groups(out, groups)

    def show() -> None:
        say = reporter.say if out is None else print
        for group in groups if out is None else ():
            print(group_to_json(group))
        for line in _lines(groups, facts):
            say(printable(line))

    return Result("scores", {"examples": len(groups), "rewards": facts, "file": out}, show)


def _answered(models: Opened, rows: Sequence[Group], reporter: Reporter) -> list[Group]:
    """The prompts that leave room for an answer, with one of every policy."""
    prompts, notes = prompts_to_compare(rows)
    options = SamplingOptions(sampling=models.sampling)
    reporter.say("; ".join([f"sampled with {options.described()}", *notes]))
    roles = {name: policy.role for name, policy in models.policies.items()}
    context: Any = SimpleNamespace(models=roles, seed=0, out=Path("file"), say=reporter.say)
    return sample_policies(context, [*roles], prompts, **options.sampled())


def _scored(
    models: Opened, rows: Sequence[Group], reporter: Reporter
) -> tuple[Sequence[Group], dict[str, Any]]:
    """The rows with scores; of each reward the mean over examples, and the share of pairs that it
    orders as people do.

    Raises DataError if there is no response.
    """
    groups = [group for group in rows if group.responses]
    if not groups:
        help = (
            "a policy answers prompts: alignkit chat RUN/STAGE --prompts FILE --out ANSWERS.jsonl"
        )
        raise DataError(f"none of {len(rows)} examples has a response\nhelp: {help}")
    if without := len(rows) - len(groups):
        reporter.say(f"examples without a response, which are left out: {without}")
    scorers = dict(zip(map(label, models.specs), models.scorers, strict=True))
    groups = scored_by(groups, scorers, lambda name: reporter.say(f"scoring with {name}"))
    alike = [
        with_responses(group, [replace(r, source=AUTHOR) for r in group.responses])
        for group in groups
    ]
    pairs, facts = choices(groups), dict[str, Any]()
    for name, scorer in scorers.items():
        measure = Measure("reward", scale_of(alike, name, scorer.bounds))
        scores = scores_of(alike, [AUTHOR], {name: measure})
        (row,) = compare(scores)
        scored = sum(one.value is not None for one in scores.rows)
        known, right = gaps(pairs, name), None
        if count := len(known) - known.count(None):
            (found,) = accuracy(pairs, {name: known})
            right = {"accuracy": found.estimate, "pairs": count}
        facts[name] = {"mean": row.estimate, "examples": scored, "missing": row.missing}
        facts[name]["pairs_right"] = right
    return groups, facts


def _lines(groups: Sequence[Group], facts: Mapping[str, Any]) -> list[str]:
    """`helpful: mean 0.31 [0.2, 0.42] of 200 examples; pairs right 71% [64%, 77%] of 200`"""
    truncated = sum(response.truncated for response in responses_of(groups))
    lines = [
        f"examples: {len(groups)}" + (f"; truncated responses: {truncated}" if truncated else "")
    ]
    for name, found in facts.items():
        mean, examples = found["mean"], found["examples"]
        line = f"{name}: mean {interval_text(mean)} of {examples} examples"
        if mean["n"] < examples:
            line += f" ({mean['n']} independent)"
        if missing := found["missing"]:
            line += f"; {missing} responses without a score"
        if right := found["pairs_right"]:
            line += f"; pairs right {interval_text(right['accuracy'], percent=True)} of {right['pairs']}"
        lines.append(line)
    return lines
