"""Two files in which everything that `alignkit data` looks for was planted, and a list of it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

ENGLISH = """the house garden water people morning window street children school music summer winter bread coffee
table letter friend mother father sister brother doctor teacher question answer number country city river
mountain forest animal flower book story paper picture color machine engine market money business
government history science language weather evening kitchen bicycle journey island village bridge church
castle holiday birthday dinner breakfast because between through without before after during against
always never often sometimes quickly slowly carefully beautiful important different possible difficult
expensive comfortable interesting dangerous necessary understand remember believe consider describe
explain follow happen include produce provide receive require suggest support would should could might
which where while these those their there about other every another several"""
GERMAN = """das Haus der Garten Wasser Leute Morgen Fenster Straße Kinder Schule Musik Sommer Winter Brot Kaffee
Tisch Brief Freund Mutter Vater Schwester Bruder Arzt Lehrer Frage Antwort Zahl Land Stadt Fluss Berg
Wald Tier Blume Buch Geschichte Papier Bild Farbe Maschine Markt Geld weil zwischen durch ohne vor nach
während gegen immer niemals oft manchmal schnell langsam vorsichtig schön wichtig verschieden möglich
schwierig teuer bequem gefährlich notwendig verstehen erinnern glauben betrachten beschreiben erklären
folgen geschehen nicht auch noch schon wieder"""
ROWS = 400
# What is planted in the training file, by the rule that must see it, and in the held-out file, by
# what it repeats.
PLANTED = {
    "duplicates": 20,
    "near": 20,
    "stock_phrases": 8,
    "languages": 12,
    "unreadable": 2,
}
PERSONAL = 7
LEAKS = {"equal prompts": 9, "near prompts": 6, "equal answers": 4, "prompts in later turns": 3}
CLEAN = 100  # held-out rows that are nowhere else

Row = dict[str, Any]


class Writer:
    """Sentences of random words: no two are alike by chance."""

    def __init__(self, seed: int = 0):
        self.random = random.Random(seed)

    def text(self, words: int, of: str = ENGLISH) -> str:
        return " ".join(self.random.choices(of.split(), k=words)).capitalize() + "."

    def row(self) -> Row:
        return {"prompt": self.text(16), "completion": self.text(40)}

    def almost(self, text: str) -> str:
        """The text with one other word."""
        words = text.split()
        words[self.random.randrange(1, len(words) - 1)] = "elephant"
        return " ".join(words)


def plant(folder: Path) -> tuple[Path, Path]:
    """Write train.jsonl and heldout.jsonl."""
    make = Writer()
    base = [make.row() for _ in range(ROWS)]
    held_out = [make.row() for _ in range(CLEAN)]
    rows: list[Row | str] = []
    rows += [{name: text.upper() + "  " for name, text in row.items()} for row in base[:20]]
    rows += [{**row, "completion": make.almost(row["completion"])} for row in base[20:40]]
    rows += [
        {**make.row(), "completion": f"As an AI language model, {make.text(20)}"} for _ in range(8)
    ]
    rows += [{**make.row(), "completion": make.text(30, GERMAN)} for _ in range(12)]
    rows += [
        {**make.row(), "completion": f"{make.text(20)} Write to ann{i}@example.org."}
        for i in range(PERSONAL)
    ]
    # No duplicates: the same sum with other numbers, and short answers that many rows share.
    rows += [
        {"prompt": f"What is {i} + {i + 1}, and how do you know it?", "completion": "I add them."}
        for i in range(9)
    ]
    rows += [{"prompt": 7, "completion": "x"}, "{"]
    held_out += [{**make.row(), "prompt": row["prompt"].lower()} for row in base[40:49]]
    long = [make.row() | {"prompt": make.text(40)} for _ in range(6)]
    held_out += [{**make.row(), "prompt": make.almost(row["prompt"])} for row in long]
    held_out += [{**make.row(), "completion": row["completion"]} for row in base[60:64]]
    # Too short to be a leak
    held_out += [{"prompt": make.text(20), "completion": "I add them."} for _ in range(3)]
    later = [make.row() for _ in range(3)]
    held_out += later
    dialogues = [
        {
            "messages": [
                *_turns(make.row()),
                {"role": "user", "content": row["prompt"]},
                _turns(make.row())[1],
            ]
        }
        for row in later
    ]
    plain = [*base, *rows, *long]
    _write(folder / "train.jsonl", plain)
    _write(folder / "dialogues.jsonl", dialogues)
    _write(folder / "heldout.jsonl", held_out)
    return folder / "train.jsonl", folder / "heldout.jsonl"


def _turns(row: Row) -> list[Row]:
    return [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["completion"]},
    ]


def _write(path: Path, rows: list[Any]) -> None:
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
