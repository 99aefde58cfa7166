"""Two files in which everything that `alignkit data` looks for was planted, and a list of it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from alignkit.cli import main
from tests.rows import assistant, user, write_rows

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


def data(*words: object, code: int = 0) -> None:
    """`alignkit data` with these words."""
    assert main(["data", *map(str, words)]) == code


def plant(folder: Path) -> tuple[Path, Path]:
    """Write train.jsonl and heldout.jsonl."""
    make = Writer()

    def rows(count: int, **columns: str) -> list[Row]:
        return [{**make.row(), **columns} for _ in range(count)]

    base, held_out = rows(ROWS), rows(CLEAN)
    train = [*base]
    train += [{name: text.upper() + "  " for name, text in row.items()} for row in base[:20]]
    train += [{**row, "completion": make.almost(row["completion"])} for row in base[20:40]]
    train += [{**row, "completion": f"As an AI language model, {row['prompt']}"} for row in rows(8)]
    train += [{**row, "completion": make.text(30, GERMAN)} for row in rows(12)]
    for number, row in enumerate(rows(PERSONAL)):
        train.append({**row, "completion": f"{make.text(20)} Write to ann{number}@example.org."})
    # No duplicates: the same sum with other numbers, and short answers that many rows share.
    for i in range(9):
        question = f"What is {i} + {i + 1}, and how do you know it?"
        train.append({"prompt": question, "completion": "I add them."})
    held_out += [{**make.row(), "prompt": row["prompt"].lower()} for row in base[40:49]]
    long = [{**row, "prompt": make.text(40)} for row in rows(6)]
    held_out += [{**make.row(), "prompt": make.almost(row["prompt"])} for row in long]
    held_out += [{**make.row(), "completion": row["completion"]} for row in base[60:64]]
    held_out += rows(3, completion="I add them.")  # too short to be a leak
    dialogues = []
    for row in rows(3):
        held_out.append(row)
        first, then = make.row(), make.row()
        talk = [user(first["prompt"]), assistant(first["completion"]), user(row["prompt"])]
        dialogues.append({"messages": [*talk, assistant(then["completion"])]})
    write_rows(folder / "train.jsonl", [*train, {"prompt": 7, "completion": "x"}, *long])
    with (folder / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write("{\n")
    write_rows(folder / "dialogues.jsonl", dialogues)
    return folder / "train.jsonl", write_rows(folder / "heldout.jsonl", held_out)
