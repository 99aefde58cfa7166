"""The command: what it prints, and that it is quick to say no."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from exported import export

from alignkit.cli import main


def test_what_it_prints(lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(lora_run / "sft", tmp_path / "out", "--merge") == 0
    output = capsys.readouterr().out
    assert f"wrote {tmp_path / 'out'}: README.md, chat_template.jinja, config.json" in output
    assert f"python convert_hf_to_gguf.py {tmp_path / 'out'} --outfile run-sft.gguf" in output


def test_the_default_folder(
    lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert export(f"{lora_run / 'sft'}@1") == 0
    assert (tmp_path / "exports" / "run-sft-1" / "README.md").is_file()


@pytest.mark.parametrize("words", [["gone/sft"], ["{run}/report"]])
def test_no_torch_for_what_cannot_be_exported(
    words: list[str], lora_run: Path, tmp_path: Path
) -> None:
    code = (
        "import sys\nfrom alignkit.cli import main\nassert main(sys.argv[1:]) == 2\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    command = ["export", *(word.format(run=lora_run) for word in words)]
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_commands_of_the_documentation(
    lora_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those of docs/policies.md and of --help, on a run of the tiny model."""
    page = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
    assert export("--help") == 0
    texts = [
        *re.findall(r"^```\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL),
        capsys.readouterr().out,
    ]
    lines = [line for text in texts for line in text.splitlines()]
    commands = [line.split()[1:] for line in lines if re.match(r" *alignkit export", line)]
    assert len(commands) >= 3
    for number, words in enumerate(commands):
        run = tmp_path / str(number) / "runs" / "quickstart"
        shutil.copytree(lora_run, run, symlinks=True)
        (run / "sft").rename(run / "align")
        (run / "liked").rename(run / "helpful")
        monkeypatch.chdir(tmp_path / str(number))
        assert main(words) == 0, words
        assert (Path(words[2]) / "README.md").is_file()
