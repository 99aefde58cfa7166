"""The report of `evaluate`: tables, answers side by side, and one line of verdict per policy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alignkit import Group, statistics
from alignkit.comparison import answers_of

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 110  # of the printed tables, in characters
POLICIES_PER_TABLE = 4
EXCERPT = 300  # longest text of a sample, in characters
Rows = Iterator[tuple[str, list[str]]]  # a label, and a cell per policy


def verdict(summary: Mapping[str, Any], policy: str) -> str:
    """One line: the policy's gain over the baseline, and its cost."""
    name, baseline = summary["headline"], summary["baseline"]
    result = summary["against"][policy][name]
    difference, equal = result["difference"], result["at_equal_length"]
    if difference["mean"] is None:
        return f"{policy} against {baseline}: no prompt has a {name} score for both"
    text = f"{policy} against {baseline}: {name} {shown(difference, sign=True)}"
    if equal is not None:
        text += f" (at equal length {shown(equal, sign=True)})"
    text += f", wins {shown(result['win_rate'], percent=True)}" if result["win_rate"] else ", all prompts tied"
    unclear = difference["low"] is None or difference["low"] <= 0 <= difference["high"]
    return text + _kl(summary, policy) + ("; no clear difference" if unclear else "")


def _kl(summary: Mapping[str, Any], policy: str) -> str:
    kl, reference = summary["policies"][policy]["kl"], summary["reference"]
    if not kl or kl["mean"] is None:
        return ""
    to = "" if reference == summary["baseline"] else f"to {reference} "
    return f", KL {to}{kl['mean']:.{decimals(kl)}f} nats"


def tables(summary: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The numbers of each policy, then the comparisons with the baseline."""
    for names in batches(list(summary["policies"])):
        yield policy_table(summary, names)
    if summary["against"]:
        yield comparison_table(summary)


def policy_table(summary: Mapping[str, Any], names: Sequence[str]) -> RenderableType:
    """Means and intervals, a column per policy."""
    left_out = f", {summary['left_out']} left out for lack of room" if summary["left_out"] else ""
    table = new_table(f"mean and {statistics.CONFIDENCE:.0%} interval over {summary['prompts']} prompts{left_out}")
    table.add_column("", overflow="fold")
    for name in names:
        header = f"{name} (baseline)" if name == summary["baseline"] else name
        table.add_column(header, justify="right", overflow="fold")
    for label, cells in _policy_rows(summary, [summary["policies"][name] for name in names]):
        table.add_row(label, *cells)
    return table


def _policy_rows(summary: Mapping[str, Any], policies: Sequence[Mapping[str, Any]]) -> Rows:
    for reward in summary["rewards"]:
        yield from _estimates(reward, [policy["rewards"][reward] for policy in policies], "unscored")
    yield "length, tokens", [shown(policy["length"]) for policy in policies]
    yield "cut off", [f"{policy['truncated']:.0%}" for policy in policies]
    if summary["reference"] is not None:
        yield from _estimates(
            f"KL to {summary['reference']}, nats", [policy["kl"] for policy in policies], "unmeasured"
        )


def _estimates(label: str, estimates: Sequence[Mapping[str, Any]], missing: str) -> Rows:
    """A row of estimates, and a row of counts if values are missing."""
    yield label, [shown(estimate) for estimate in estimates]
    if any(estimate[missing] for estimate in estimates):
        yield f"  {missing}", [str(estimate[missing]) for estimate in estimates]


def comparison_table(summary: Mapping[str, Any]) -> RenderableType:
    """A row per policy and reward."""
    table = new_table(f"against {summary['baseline']}, prompt by prompt")
    for name in ("policy", "reward"):
        table.add_column(name, overflow="fold")
    for name in ("difference", "at equal length", "win rate", "won/lost/tied"):
        table.add_column(name, justify="right", overflow="fold")
    results = [(policy, *item) for policy, rewards in summary["against"].items() for item in rewards.items()]
    for policy, reward, result in results:
        table.add_row(
            policy,
            reward,
            shown(result["difference"], sign=True),
            shown(result["at_equal_length"], sign=True),
            shown(result["win_rate"], percent=True),
            f"{result['wins']}/{result['losses']}/{result['ties']}",
        )
    if any(result["at_equal_length"] is None for _, _, result in results):
        table.caption = "at equal length: '-' if too few prompts have answers of similar length"
    return table


def side_by_side(group: Group, policies: Sequence[str], headline: str) -> str:
    """The last turn of a prompt, and each policy's first answer with its score."""
    from rich.text import Text

    parts = [f"prompt: {excerpt(group.prompt[-1]['content'])}"]
    for names in batches(policies):
        table = new_table("")
        answers = [answers_of(group, name)[0] for name in names]
        for name, answer in zip(names, answers, strict=True):
            score = answer.scores[headline]
            header = f"{name} ({headline} {'-' if score is None else f'{score:.3g}'})"
            table.add_column(header, ratio=1, overflow="fold")
        table.add_row(*(Text(excerpt(answer.text)) for answer in answers))  # Text: brackets are not markup
        parts.append(render(table))
    return "\n".join(parts)


def shown(estimate: Mapping[str, Any] | None, *, sign: bool = False, percent: bool = False) -> str:
    """`0.42 [0.21, 0.63]`, with as many digits as the interval justifies."""
    if estimate is None or estimate["mean"] is None:
        return "-"
    scale, digits = (100, 0) if percent else (1, decimals(estimate))
    mean = f"{estimate['mean'] * scale:{'+' if sign else ''}.{digits}f}{'%' if percent else ''}"
    low, high = estimate["low"], estimate["high"]
    return mean if low is None else f"{mean} [{low * scale:.{digits}f}, {high * scale:.{digits}f}]"


def decimals(estimate: Mapping[str, Any]) -> int:
    """Decimals that show two digits of half the interval's width."""
    width = math.nan if estimate["low"] is None else estimate["high"] - estimate["low"]
    if not math.isfinite(width) or width <= 0:
        return 2
    return min(6, max(0, 1 - math.floor(math.log10(width / 2))))


def excerpt(text: str) -> str:
    """The beginning of a text, with blanks for control characters, which would act on the terminal."""
    printable = "".join(c if c.isprintable() or c == "\n" else " " for c in text).strip()
    return printable if len(printable) <= EXCERPT else f"{printable[: EXCERPT - 3].rstrip()}..."


def batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Names in runs that fit side by side."""
    return (names[start : start + POLICIES_PER_TABLE] for start in range(0, len(names), POLICIES_PER_TABLE))


def new_table(title: str) -> Any:
    """An empty table; without a title it takes the full width."""
    from rich import box
    from rich.table import Table

    return Table(
        title=title or None,
        title_justify="left",
        title_style="",
        caption_justify="left",
        caption_style="",
        box=box.SIMPLE_HEAD,
        expand=not title,
    )


def render(table: RenderableType) -> str:
    """Plain text of a fixed width, the same in a terminal, a pipe and a file."""
    from io import StringIO

    from rich.console import Console

    console = Console(file=StringIO(), width=WIDTH, color_system=None, force_terminal=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines() if line.strip())
