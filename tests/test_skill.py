"""The skill for coding agents: its front matter, and every command in it, in order, on the files
that it writes.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from documented_commands import ROOT

from alignkit import cli
from alignkit.host.plugins import load_plugins
from tests.rows import Said

SKILL = (ROOT / "docs" / "skill" / "SKILL.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_it_has_every_exit_code() -> None:
    commands = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    ours, all_codes = (
        re.findall(r"\d+", " ".join(re.findall(r"^\| ([\d, ]+) \|", page, re.MULTILINE)))
        for page in (SKILL, commands.partition("## Exit codes")[2])
    )
    assert ours and {*ours} == {*all_codes}


@pytest.mark.slow
def test_every_command_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGNKIT_REPORT", raising=False)
    done = []
    for language, block in FENCE.findall(SKILL):
        if name := re.match(r"# ([\w./-]+\.(?:yaml|py))\n", block):
            Path(name[1]).write_text(block, encoding="utf-8")
            continue
        assert language == "sh"  # a file without a name would be tried by nothing
        for line in block.splitlines():
            program, *words = shlex.split(line, comments=True)
            assert program == "alignkit"
            expected = re.search(r"# exit code (\d+)$", line)
            code = cli.main(words)
            load_plugins()
            assert code == int(expected[1] if expected else 0), f"{line}\n{said()}"
            done.append(" ".join([program, *words[:1]]))
    assert {
        "alignkit init",
        "alignkit check",
        "alignkit run",
        "alignkit show",
        "alignkit plugins",
    } <= set(done)
    for file in ("report.json", "align/metrics.jsonl", "align/rollouts"):  # what a program reads
        assert (tmp_path / "runs" / "small" / file).exists()
    for file in ("evaluation.json", "samples.jsonl"):
        assert list((tmp_path / "runs" / "evaluate").glob(f"*/{file}"))
