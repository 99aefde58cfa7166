"""Runs the recipes of a folder and reads what they trained: digests and fingerprints of all
weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

NET = Path(__file__).parent
ROOT = NET.parent.parent
RECIPES = ("smoke", "pairs", "rollouts", "rounds")
PROJECTIONS = 4


def processor() -> str:
    """What the bits of a float32 result depend on."""
    text = (
        Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    )
    facts: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        facts[name.strip()] = value.strip()
    capability = torch.backends.cpu.get_cpu_capability()
    words = [
        os.uname().machine,
        *(facts.get(name, "") for name in ("vendor_id", "cpu family", "model")),
        capability,
    ]
    if capability == "AVX512":
        words += [
            flag for flag in ("avx512_bf16", "amx_tile") if flag in facts.get("flags", "").split()
        ]
    return "-".join(
        word for word in (*words, f"torch{torch.__version__.split('+')[0]}", "1thread") if word
    )


def run(python: Path | str, recipe: Path, out: Path, cache: Path, *more: str) -> None:
    """Run a recipe by the environment of `python`, on one thread. Raises AssertionError with what
    it printed.
    """
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("ALIGNKIT", "PYTHON"))
    }
    environment = {
        **clean, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ALIGNKIT_REPORT": "0", "ALIGNKIT_REUSE": "0",
        "ALIGNKIT_CACHE": str(cache), "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    command = [str(python), "-m", "alignkit", "run", str(recipe), "--out", str(out), *more]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=recipe.parent, check=False
    )
    assert done.returncode == 0, (
        f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )


def weights(out: Path, recipe: str) -> dict[str, dict[str, Any]]:
    """Entry (RECIPE/STAGE/FILE) -> digest and fingerprint of what a run trained."""
    files = sorted(out.glob("*/adapter/*.safetensors"))
    return {
        f"{recipe}/{file.parts[-3]}/{file.name}": {"sha256": digest(file), "about": about(file)}
        for file in files
    }


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def about(file: Path) -> list[float]:
    """The norm of what was learned, and its products with fixed random directions of length 1.

    LoRA's first matrices begin at random and hardly move, so they say little; its second ones begin
    at 0.
    """
    tensors = {name: tensor for name, tensor in load_file(file).items() if "lora_A" not in name}
    numbers = torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])
    found = [numbers.norm()]
    for seed in range(PROJECTIONS):
        direction = torch.randn(
            len(numbers), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        found.append(numbers @ direction / direction.norm())
    return [float(f"{value:.8g}") for value in found]


def trained(
    python: Path | str, folder: Path, recipe: str, place: Path
) -> dict[str, dict[str, Any]]:
    found = {}
    # A stage on another base model has a recipe of its own
    for file in sorted(folder.glob(f"{recipe}*.yaml")):
        run(python, file, place / file.stem, place / "cache")
        found |= weights(place / file.stem, recipe)
    return found


def base_python() -> Path | None:
    """The Python of an environment with the commit in `tests/net/base`, made once in `.net/`; None
    without history.
    """
    commit = (NET / "base").read_text(encoding="utf-8").split()[0]
    tree = ROOT / ".net" / commit
    python = tree / ".venv" / "bin" / "python"
    if (tree / ".ready").exists():
        return python
    git = ["git", "-C", str(ROOT)]
    if subprocess.run(
        [*git, "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True, check=False
    ).returncode:
        return None
    tree.mkdir(parents=True, exist_ok=True)
    packed = subprocess.run([*git, "archive", commit, "alignkit", "plugins", "recipes", "pyproject.toml", "README.md",
                             "LICENSE"], capture_output=True, check=True).stdout  # fmt: skip
    subprocess.run(["tar", "-x", "-C", str(tree)], input=packed, check=True)
    subprocess.run(
        [sys.executable, "-m", "venv", "--clear", "--without-pip", str(tree / ".venv")], check=True
    )
    site = next((tree / ".venv" / "lib").glob("python*/site-packages"))
    # The commit's own packages come first; the libraries are those of this environment.
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", (
        "--disable-pip-version-check"
    ), "-q",
           "--no-deps", "--no-build-isolation", "--no-index", "-e", str(tree)]  # fmt: skip
    subprocess.run(pip, check=True)
    (tree / ".ready").touch()
    return python


def main() -> None:
    """`python tests/net/recipes.py [FILE]`: the pins of this processor, from the old recipes and
    the base commit.
    """
    python = base_python()
    assert python is not None, "the base commit is not in this clone"
    name = f"adapters-{processor()}.json"
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else NET / "pins" / name
    pins: dict[str, Any] = {}
    place = ROOT / ".net" / "old"
    for recipe in RECIPES:
        subprocess.run(["rm", "-rf", str(place / recipe)], check=True)
        pins |= trained(python, NET / "old", recipe, place)
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(entry)}: {json.dumps(pin)}" for entry, pin in sorted(pins.items())]
    target.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
