"""What cannot be verified is refused before anything runs, with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignkit.cli import main
from alignkit.io.results import read_record, write_record
from tests.rows import Said, cells

# A file, what it says instead of what (it is deleted if there is nothing), what is then verified,
# and why not
REFUSED = """\
run/none | | | . | is no run: it has no recipe.resolved.yaml
run/none | | | run/dpoo | no stage 'dpoo' help: did you mean 'dpo'?
pairs.jsonl | good bread | old bread | run/liked | stage 'liked' has other inputs now: data.content has changed
pairs.jsonl | | | run/liked | no such file
run/ppo/stage.json | "complete": true | "complete": false | run | stage 'ppo': it is not finished, so 'ppo'
run/report | | | run/report | stage 'report': it is not finished, so 'report' cannot be run again
run/ppo/rollouts/0001.jsonl | { | {{ | run/ppo | stage 'ppo': FOLDER/run/ppo/rollouts/0001.jsonl is not as the stage
run/sft/stage.json | "hash": " | "hash": "0 | run/ppo | stage 'ppo' has other inputs now: upstream.sft
run/sft/adapter/adapter_config.json | { | {{ | run/ppo | stage 'sft':
run/recipe.resolved.yaml | iterations: 1 | iterations: 3 | run/ppo | has other inputs now: iterations: 1 -> 3
"""


@pytest.mark.parametrize(("file", "old", "new", "target", "reason"), cells(REFUSED))
def test_what_is_not_as_it_was_is_refused(
    file: str,
    old: str,
    new: str,
    target: str,
    reason: str,
    house_copy: Path,
    said: Said,
) -> None:
    folder = house_copy.parent
    path = folder / file
    if path.name == "stage.json":
        text = json.dumps(read_record(path.parent))
        assert old in text
        write_record(path.parent, json.loads(text.replace(old, new, 1)))
    elif old:
        path.write_text(path.read_text().replace(old, new, 1), encoding="utf-8")
    else:
        path.unlink(missing_ok=True)
    before = sorted(folder.rglob("*"))
    assert main(["verify", str(folder / target)]) == 2
    err = " ".join(said().split())
    assert reason.replace("FOLDER", str(folder)) in err and "stage 3 of" not in err
    assert sorted(folder.rglob("*")) == before
