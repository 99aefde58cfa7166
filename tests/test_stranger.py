"""A stranger's plugin: a wheel of its own, installed beside alignkit's wheel, found by its entry point, and run."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "docs" / "examples" / "alignkit-reinforce"


def call(*command: object, cwd: Path | None = None, **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("ALIGNKIT", "PYTHON"))}
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**clean, "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(project: Path, out: Path) -> Path:
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, project)
    (wheel,) = out.glob(f"{project.name.replace('-', '_') if project != ROOT else 'alignkit'}-*.whl")
    return wheel


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that has both wheels, and borrows torch and the rest from this one."""
    folder = tmp_path_factory.mktemp("stranger")
    copy = shutil.copytree(EXAMPLE, folder / EXAMPLE.name, ignore=shutil.ignore_patterns("__pycache__"))
    wheels = [build(ROOT, folder), build(copy, folder)]
    venv.create(folder / "env", with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "env" / "lib" / version / "site-packages"
    # Links rather than this environment's own folder: that one has alignkit's editable install and its entry points.
    borrowed = folder / "borrowed"
    borrowed.mkdir()
    for package in site_packages().iterdir():
        if "alignkit" not in package.name and package.suffix != ".pth":
            (borrowed / package.name).symlink_to(package)
    (site / "borrowed.pth").write_text(f"{borrowed}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    python = folder / "env" / "bin" / "python"
    call(*pip, "--python", python, "install", "--quiet", "--no-deps", "--no-index", *wheels)
    return python


def site_packages() -> Path:
    import torch

    return Path(torch.__file__).parent.parent


def test_both_come_from_their_wheels(stranger: Path, tmp_path: Path) -> None:
    code = (
        "import json, alignkit, alignkit_reinforce, alignkit_plugins.ppo, importlib.metadata as m;"
        "print(json.dumps([alignkit.__file__, alignkit_reinforce.__file__, alignkit_plugins.ppo.__file__,"
        "sorted(p.dist.name for p in m.entry_points(group='alignkit') if p.name == 'alignkit_reinforce')]))"
    )
    *files, owners = json.loads(call(stranger, "-c", code, cwd=tmp_path))
    site = stranger.parent.parent / "lib"
    assert all(Path(file).is_relative_to(site) for file in files), files
    assert owners == ["alignkit-reinforce"]


def test_it_is_listed(stranger: Path, tmp_path: Path) -> None:
    rows = [line.split() for line in call(stranger.parent / "alignkit", "plugins", cwd=tmp_path).splitlines()]
    (row,) = [row for row in rows if "reinforce" in row]
    assert row[:2] == ["algorithm", "reinforce"] and row[-2:] == ["alignkit-reinforce", "0.1.0"]


def test_its_recipe_is_valid_and_runs(stranger: Path, tmp_path: Path) -> None:
    for name in ("recipe.yaml", "prompts.jsonl", "letters.py"):
        shutil.copy(EXAMPLE / name, tmp_path)
    alignkit, recipe = stranger.parent / "alignkit", tmp_path / "recipe.yaml"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert call(alignkit, "validate", recipe, cwd=elsewhere).endswith("ok: reinforce: stages align\n")
    call(alignkit, "run", recipe, cwd=elsewhere, ALIGNKIT_STRICT="1")
    folder = elsewhere / "runs" / "reinforce" / "align"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rewards = [row["reward"] for row in rows]
    assert len(rows) == 30
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-4) and rows[-1]["kl"] > 1
    # One seed gives 0.57 -> 0.82; half of that gain is far outside the noise of one iteration (0.01).
    assert sum(rewards[-5:]) / 5 - rewards[0] > 0.12
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()


def test_a_shipped_recipe_can_name_it(stranger: Path, tmp_path: Path) -> None:
    """What the README says: the stranger's algorithm in the place of PPO, by one override."""
    words = ["validate", "quickstart", "stages.align.algorithm=reinforce"]
    assert "align" in call(stranger.parent / "alignkit", *words, cwd=tmp_path)
