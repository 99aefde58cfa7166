"""The report of `evaluate`: tables, answers side by side, and one line of verdict per policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit import Group
from alignkit.evaluation.statistics import shown
from alignkit.report import Block, Report, SideBySide, Table
from alignkit_plugins.evaluate.comparison import answers_of
from alignkit_plugins.evaluate.judge_card import about_table, preferred_title, trust_tables
from alignkit_plugins.evaluate.who_judged import conclusion, percent
from alignkit_plugins.steps.evaluate.diversity import diversity_verdict

EXCERPT = 300  # longest text of a sample, in characters


def report(summary: Mapping[str, Any], groups: Sequence[Group]) -> Report:
    """All of it. groups: the prompts whose answers are shown."""
    from alignkit_plugins.evaluate import judging, verdicts  # only here: they are slow
    from alignkit_plugins.evaluate.tables import by_column, policy_means

    against = list(summary["against"])
    blocks: list[Block | None] = ["\n".join(summary["notes"]), policy_means(summary)]
    blocks += [comparison_table(summary)] if against else []
    blocks += judge_blocks(summary)
    blocks += [by_column(summary, column) for column in summary.get("by", {})]
    blocks += [side_by_side(group, list(summary["policies"]), summary["headline"]) for group in groups]
    judged = [] if against else list(summary.get("judged", {}))
    told = [f"{conclusion(summary, policy).sentence}." for policy in judged]  # of all raters; of rewards it is in these
    told += [one["sentence"] for raters in (verdicts, judging) for one in raters.verdicts("", summary)]
    told += filter(None, (diversity_verdict(summary, policy) for policy in against or judged))
    blocks += ["\n".join(told)] if told else []
    return Report([block for block in blocks if block is not None])


def comparison_table(summary: Mapping[str, Any]) -> Table:
    """A row per policy and reward."""
    results = [(policy, *item) for policy, rewards in summary["against"].items() for item in rewards.items()]
    rows = [
        [
            policy,
            reward,
            shown(result["difference"], sign=True, percent=percent(summary, reward)),
            shown(result["at_equal_length"], sign=True, percent=percent(summary, reward)),
            shown(result["win_rate"], percent=True),
            f"{result['wins']}/{result['losses']}/{result['ties']}",
        ]
        for policy, reward, result in results
    ]
    unknown = any(one["at_equal_length"] is None and name not in summary["measures"] for _, name, one in results)
    return Table(
        f"against {summary['baseline']}, prompt by prompt",
        ["policy", "reward", "difference", "at equal length", "win rate", "won/lost/tied"],
        rows,
        keys=2,
        note="at equal length: '-' if too few prompts have answers of similar length" if unknown else "",
    )


def judge_blocks(summary: Mapping[str, Any]) -> list[Block]:
    """What judges prefer, and what is to be known of them; empty without any."""
    results = [(policy, *item) for policy, judges in summary.get("judged", {}).items() for item in judges.items()]
    if not results:
        return []
    preferred = [
        [
            policy,
            judge,
            shown(found["preference"], percent=True),
            _length_controlled(found["length_controlled"]),
            f"{found['wins']}/{found['losses']}/{found['ties']}",
        ]
        for policy, judge, found in results
    ]
    about = [
        [
            policy,
            judge,
            str(found["comparisons"]),
            str(sum(found["unjudged"].values())),
            shown(found["inconsistent"], percent=True),
            shown(found["first_position"], percent=True),
        ]
        for policy, judge, found in results
    ]
    missing = Counter({why: 0 for *_, found in results for why in found["unjudged"]})
    for *_, found in results:
        missing.update(found["unjudged"])
    return [
        Table(
            preferred_title(summary["baseline"]),
            ["policy", "judge", "preferred", "length-controlled", "won/lost/tied"],
            preferred,
            keys=2,
        ),
        about_table(
            ["policy", "judge", "asked", "no verdict", "order decides", "first preferred"],
            about,
            "; ".join(f"no verdict, {why}: {count}" for why, count in missing.most_common()),
        ),
        *trust_tables(summary.get("judge_cards") or {}),
    ]


def _length_controlled(rate: Mapping[str, Any] | None) -> str:
    return "-" if rate is None else f"{rate['mean']:.0%} (s.e. {rate['standard_error']:.0%})"


def side_by_side(group: Group, policies: Sequence[str], headline: str | None) -> SideBySide:
    """The last turn of a prompt, and each policy's first answer with its score."""
    answers = [answers_of(group, name)[0] for name in policies]
    if headline not in answers[0].scores:
        title = f"prompt: {excerpt(group.prompt[-1]['content'])}"
        return SideBySide(title, list(policies), [excerpt(answer.text) for answer in answers])
    scores = [answer.scores[headline] for answer in answers]
    heads = [
        name if score is None else f"{name} ({headline} {score:.3g})"
        for name, score in zip(policies, scores, strict=True)
    ]
    title = f"prompt: {excerpt(group.prompt[-1]['content'])}"
    return SideBySide(title, heads, [excerpt(answer.text) for answer in answers])


def excerpt(text: str) -> str:
    """The beginning of a text, with blanks for control characters, which would act on the terminal."""
    printable = "".join(c if c.isprintable() or c == "\n" else " " for c in text).strip()
    return printable if len(printable) <= EXCERPT else f"{printable[: EXCERPT - 3].rstrip()}..."
