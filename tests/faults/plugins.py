"""Plugins that fail, leave, or return something else: the run stops, and names plugin, class,
method and line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from alignkit.plugins import load_plugins
from tests.faults.case import HELD, SILENT, UNTIDY, Case, command
from tests.test_author import PLUGIN, STAGES

PLACES = (
    "R.__init__",
    "R.check",
    "R.prepare",
    "R.score",
    "C.parts",
    "C.combine",
    "J.prepare",
    "J.compare",
    "S.run",
    "A.__init__",
    "A.loss",
    "F.read",
    "source",
    "metrics_logged",
)
LEAVE = [
    "1 / 0",
    "{}['x']",
    "[][0]",
    "open('/nowhere')",
    "sys.exit(0)",
    "sys.exit(3)",
    "sys.exit('bye')",
    "exit()",
    "(_ for _ in ()).throw(RuntimeError('no'))",
    "(_ for _ in ()).throw(StopIteration())",
    "int('x')",
    "undefined",
    "(_ for _ in ()).throw(GeneratorExit())",
    "(_ for _ in ()).throw(AssertionError())",
    "(lambda f: f(f))(lambda f: f(f))",
    "(_ for _ in ()).throw(type('Odd', (BaseException,), {})('odd'))",
    "torch.zeros(2) @ torch.zeros(3)",
    "(_ for _ in ()).throw(OSError(13, 'denied'))",
    "'\\x1b[31m'.nothing",
    "(_ for _ in ()).throw(ValueError('\\x1b]0;x\\x07'))",
]
RETURN = [
    "None",
    "0",
    "True",
    "float('nan')",
    "float('inf')",
    "''",
    "'text'",
    "b'bytes'",
    "[]",
    "{}",
    "()",
    "[None]",
    "[[]]",
    "{'': None}",
    "{'': []}",
    "{'': [None]}",
    "{'': ['a']}",
    "{1: [1.0]}",
    "{'': [1.0] * 999}",
    "{'': [float('nan')] * 4}",
    "{'': [10 ** 400] * 4}",
    "object()",
    "type",
    "lambda *a: None",
    "torch.zeros(0)",
    "torch.zeros(4, 4)",
    "iter([])",
    "Verdict(0.5)",
    "[Verdict(float('nan'))]",
    "[Verdict(-1.0)]",
    "[Verdict('a')]",
    "Artifact(text=7)",
    "CombinedReward(None, None, {})",
    "Loss()",
    "Loss(loss=torch.zeros(3))",
    "'/dev/null'",
    "'..'",
    "0 * 1j",
]
RETURNS_NOTHING = (
    "R.__init__",
    "R.check",
    "R.prepare",
    "J.prepare",
    "A.__init__",
    "metrics_logged",
)


def cases(recipe: Path) -> list[Case]:
    """Every place with every way to leave it, and every wrong result where one is used."""
    left = [(place, what) for place in PLACES for what in LEAVE]
    returned = [
        (place, what) for place in PLACES if place not in RETURNS_NOTHING for what in RETURN
    ]
    return [
        Case("plugin", f"{place}: {what}", _named(place, what)) for place, what in left + returned
    ]


def _named(place: str, what: str) -> Callable[[Path], tuple[str, str]]:
    kind = place.split(".")[0]

    def run(folder: Path) -> tuple[str, str]:
        (folder / "strange.py").write_text(PLUGIN, encoding="utf-8")
        rows = {
            "pairs": {"prompt": "how are you", "chosen": "fine", "rejected": "bad"},
            "rows": {"prompt": "how are you"},
            "demos": {"prompt": "how are you", "completion": "fine"},
            "odd": {"odd": "how are you"},
        }
        for name, row in rows.items():
            (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        model = {"base": "stranger" if kind == "source" else "tiny"}
        (folder / "r.json").write_text(
            json.dumps({"model": model, "stages": {"only": STAGES[kind]}}), encoding="utf-8"
        )
        os.environ["FAULT"] = f"{place}={what}"
        try:
            said = command(
                [
                    "run",
                    str(folder / "r.json"),
                    "--plugin",
                    str(folder / "strange.py"),
                    "--out",
                    str(folder / "o"),
                ]
            )
        finally:
            os.environ.pop("FAULT")
            load_plugins()
        if said.code == 0:
            return SILENT, said.text
        return (HELD if said.tidy and "strange.py" in said.text else UNTIDY), said.text

    return run
