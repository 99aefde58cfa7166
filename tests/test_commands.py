"""Commands of other packages, as they are installed: a module in the entry-point group
`alignkit.commands`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

GOOD = '''
import typer
from alignkit import hookimpl

tools = typer.Typer(help="Tools of mine.")

@tools.command()
def count(number: int) -> None:
    print(number + 1)

@tools.command()
def fail() -> None:
    raise ValueError("odd")

def say_hello(name: str, loud: bool = False) -> None:
    """Greet somebody."""
    print(f"hello {name}".upper() if loud else f"hello {name}")

@hookimpl
def register_commands(register):
    register(say_hello)
    register(tools, name="tools")
'''


def install(folder: Path, name: str, source: str) -> None:
    """A distribution with a module of commands."""
    code, info = f"fake_{name}", folder / f"{name}-1.2.dist-info"
    info.mkdir()
    (folder / f"{code}.py").write_text(textwrap.dedent(source), encoding="utf-8")
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n", encoding="utf-8"
    )
    (info / "entry_points.txt").write_text(
        f"[alignkit.commands]\n{name} = {code}\n", encoding="utf-8"
    )


def alignkit(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "alignkit", *words]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )


def test_a_package_adds_commands(tmp_path: Path) -> None:
    install(tmp_path, "good", GOOD)
    help = alignkit(tmp_path, "--help").stdout
    assert "Greet somebody." in help and "Tools of mine." in help and "Run a recipe." in help
    assert alignkit(tmp_path, "say-hello", "Ann", "--loud").stdout == "HELLO ANN\n"
    assert alignkit(tmp_path, "tools", "count", "2").stdout == "3\n"


def test_mistakes_end_as_those_of_our_own_commands(tmp_path: Path) -> None:
    install(tmp_path, "good", GOOD)
    wrong = alignkit(tmp_path, "say-hello")
    assert (wrong.returncode, "error: Missing argument" in wrong.stderr) == (2, True)
    failed = alignkit(tmp_path, "tools", "fail")
    assert (failed.returncode, "odd" in failed.stderr, "Traceback" in failed.stderr) == (
        1,
        True,
        False,
    )


def test_a_broken_package_takes_no_other_command_with_it(tmp_path: Path) -> None:
    install(tmp_path, "bad", "import no_such_module_at_all")
    install(tmp_path, "left", "from alignkit.contract.commands import refuse")
    install(tmp_path, "good", GOOD)
    install(
        tmp_path,
        "misspelled",
        "from alignkit import hookimpl\n@hookimpl\ndef register_comands(register): ...\n",
    )
    install(
        tmp_path, "taken", GOOD.replace("register(say_hello)", "register(say_hello, name='run')")
    )
    found = alignkit(tmp_path, "say-hello", "Ann")
    assert found.stdout == "hello Ann\n"
    lines = found.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["warning"] * 4
    assert (
        "no commands of bad" in lines[0] and "No module named 'no_such_module_at_all'" in lines[0]
    )
    assert "import refuse from alignkit.errors instead" in lines[1]
    assert "has no attribute 'register_commands'" in lines[2]
    assert "alignkit has a command 'run' already" in lines[3]


def test_help_loads_no_plugin(tmp_path: Path) -> None:
    code = "import sys; from alignkit.cli import main; main(['--help']); "
    needs = ("table", "formats", "rewards", "algorithms", "environments", "models", "ai_feedback")
    heavy = (*(f"alignkit_plugins.{need}" for need in needs), "torch", "numpy", "pydantic")
    code += f"print([name for name in sys.modules if name.startswith({heavy})])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
