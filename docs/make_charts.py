"""Draw the README's chart of speed and memory against TRL from `docs/benchmarks/results.json`.

    python docs/make_charts.py

Writes `docs/assets/speed-light.svg` and `speed-dark.svg`. SVG is plain text, so this needs no
plotting library, and the same numbers always make the same bytes: a test compares them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
RESULTS = DOCS / "benchmarks" / "results.json"
MACHINE = "AMD EPYC, family 26"
SHOWN = {  # benchmark -> its label, in the order of the chart
    "dpo": "DPO",
    "sft": "SFT",
    "ppo_shared": "PPO (value head)",
    "sft_packed": "SFT, TRL packing",
    "reward": "Reward model",
}
FONT = "-apple-system, BlinkMacSystemFont, 'Segoe UI', Helvetica, Arial, sans-serif"
WIDTH, ROW, TOP, LABELS, PANEL, GAP = 780, 34, 74, 160, 250, 80


@dataclass(frozen=True)
class Theme:
    """Colors of text, of secondary text, of TRL's reference line or bar, and of alignkit's bars."""

    text: str
    muted: str
    peer: str
    ours: str


THEMES = {
    "light": Theme(text="#1f2328", muted="#59636e", peer="#d1d9e0", ours="#0969da"),
    "dark": Theme(text="#f0f6fc", muted="#9198a1", peer="#3d444d", ours="#4493f8"),
}


def machine() -> dict[str, Any]:
    """The machine whose results are drawn, with its rows."""
    machines = json.loads(RESULTS.read_text(encoding="utf-8"))["machines"]
    return next(entry for entry in machines if entry["name"] == MACHINE)


def chart(theme: Theme) -> str:
    """The SVG: speed on the left, peak memory on the right, one row per benchmark."""
    measured = machine()
    rows = {row["name"]: row for row in measured["rows"]}
    height = TOP + ROW * len(SHOWN) + 44
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img" aria-labelledby="title" '
            f'font-family="{FONT}" font-size="14">'
        ),
        f'<title id="title">alignkit compared with TRL: {_described(rows)}</title>',
        _text(LABELS, 24, "Training speed, TRL = 1", theme.text, weight=600),
        _text(LABELS, 44, "longer is faster", theme.muted, size=12),
        _text(LABELS + PANEL + GAP, 24, "Peak memory, GiB", theme.text, weight=600),
        _text(LABELS + PANEL + GAP, 44, "alignkit in blue, TRL in gray", theme.muted, size=12),
    ]
    fastest = max(rows[name]["ratio"] for name in SHOWN)
    largest = max(rows[name]["peer_gib"] for name in SHOWN)
    for index, (name, label) in enumerate(SHOWN.items()):
        top = TOP + ROW * index
        parts += _row(top, label, rows[name], PANEL / fastest, PANEL / largest, theme)
    one = LABELS + PANEL / fastest
    parts.append(
        f'<path d="M{one:.1f} {TOP - 8}V{TOP + ROW * len(SHOWN) - 6}" stroke="{theme.muted}" '
        'stroke-dasharray="3 3"/>'
    )
    note = (
        f"SmolLM2-135M with LoRA in fp32, {measured['cores']} cores, "
        f"{measured['processor'].split(';')[0]})"
    )
    parts += [_text(12, height - 12, note, theme.muted, size=12), "</svg>"]
    return "\n".join(parts) + "\n"


def _row(
    top: int, label: str, row: dict[str, Any], speed: float, memory: float, theme: Theme
) -> list[str]:
    """One benchmark. speed, memory: pixels per unit."""
    right = LABELS + PANEL + GAP
    return [
        _text(LABELS - 12, top + 15, label, theme.text, anchor="end"),
        _bar(LABELS, top, row["ratio"] * speed, 20, theme.ours),
        _text(LABELS + row["ratio"] * speed + 8, top + 15, f"{row['ratio']:.1f}x", theme.text),
        _bar(right, top - 1, row["ours_gib"] * memory, 10, theme.ours),
        _bar(right, top + 11, row["peer_gib"] * memory, 10, theme.peer),
        _text(
            right + row["ours_gib"] * memory + 6,
            top + 9,
            f"{row['ours_gib']:.1f}",
            theme.text,
            size=11,
        ),
        _text(
            right + row["peer_gib"] * memory + 6,
            top + 20,
            f"{row['peer_gib']:.1f}",
            theme.muted,
            size=11,
        ),
    ]


def _bar(x: float, y: float, width: float, height: int, color: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width:.1f}" height="{height}" rx="2" fill="{color}"/>'


def _text(
    x: float,
    y: float,
    text: str,
    color: str,
    *,
    size: int = 14,
    weight: int = 400,
    anchor: str = "start",
) -> str:
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y}" fill="{color}" {style}>{text}</text>'


def _described(rows: dict[str, Any]) -> str:
    """The chart in words, for readers who cannot see it."""
    return "; ".join(
        f"{label} {rows[name]['ratio']:.1f} times as fast with {rows[name]['memory_ratio']:.0%} "
        "of the memory"
        for name, label in SHOWN.items()
    )


def main() -> None:
    for name, theme in THEMES.items():
        (DOCS / "assets" / f"speed-{name}.svg").write_text(chart(theme), encoding="utf-8")


if __name__ == "__main__":
    main()
