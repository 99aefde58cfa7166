"""`make gpu-check`: what ten minutes of a GPU can show, in the order of its worth, and one table to
paste into docs/scale.md.

Each part has a time budget and a process of its own. A part that crashes, hangs or runs out of
memory has a row that says so, and the next one begins. Rows are written as they come, as JSON lines
from which `--table FILE` makes the table again. `--short` takes tiny sizes, to check that everything
works, and `--simulated` the device of tests/simulated_cuda.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import typer

from benchmarks.gpu import random_model
from benchmarks.measure import OFFLINE, ROOT

MODEL, TINY = "smollm2-135m-instruct", "tiny"
SIMULATED = ROOT / "tests" / "simulated_cuda"
NF4 = "nf4"  # another quantization where bitsandbytes has no kernels
LOOK = 0.2  # seconds between two looks at a part
SUITE = ("tests/backends", "tests/kernels", "tests/models", "tests/training", "tests/algorithms")
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Part:
    """seconds: its budget. options: of its function. environment: variables of its process."""

    name: str
    seconds: float
    work: Callable[..., None]
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Here:
    """The process of a part. out: the file of rows. folder: for files. short: tiny sizes."""

    part: str
    out: Path
    folder: Path
    short: bool

    def tell(self, what: str, result: str, **numbers: Any) -> None:
        """Write a row. A later one of the same part about the same replaces it in the table."""
        write(self.out, {"part": self.part, "what": what, "result": result, **numbers})


def write(out: Path, row: Mapping[str, Any]) -> None:
    """Append a row to the file, on the disk before anything else may fail."""
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


# The parts


def machine(here: Here) -> None:
    import torch

    from benchmarks.floor import machine as described

    facts = described()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    gibibytes = torch.cuda.get_device_properties(0).total_memory / 2**30
    result = f"{torch.cuda.get_device_name(0)}, {gibibytes:.0f} GiB, torch {torch.__version__}"
    here.tell("machine", f"{result}, commit {commit.stdout.strip() or 'unknown'}", **facts)


def suite(here: Here) -> None:
    """The tests that compute most come first; what has run until the time is up is counted."""
    import pytest

    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    told = time.monotonic()

    def tell(until: str) -> None:
        here.tell("tests with models and tensors on the device", f"{text()}{until}", **counts)

    def text() -> str:
        return ", ".join(f"{count} {outcome}" for outcome, count in counts.items())

    class Counting:
        def pytest_runtest_logreport(self, report: Any) -> None:
            nonlocal told
            if report.when == "call" or report.outcome != "passed":
                counts[report.outcome] += 1
            if time.monotonic() - told > 1:
                told = time.monotonic()
                tell(f", until {report.nodeid.partition('::')[0]}")

    os.environ["ALIGNKIT_TEST_DEVICE"] = "cuda"
    chosen = ["tests/algorithms/test_grpo_variants.py"] if here.short else SUITE
    pytest.main(["-q", "--tb=short", "-p", "no:cacheprovider", *chosen], plugins=[Counting()])
    tell("")


def nf4(here: Here) -> None:
    """The same 4-bit base and the same adapter on both devices, in fp32."""
    import torch

    found = []
    for device in ("cpu", "cuda"):
        learner = _learner(_folder(here), "float32", NF4, device)
        metrics = learner.step(_examples(learner.model, 4, 48), 0.0)
        packed = {
            name: weight.cpu()
            for name, weight in learner.model.model.named_parameters()
            if weight.dtype == torch.uint8
        }
        found.append((metrics, packed))
    (ours, weights), (theirs, others) = found
    equal = sum(torch.equal(others[name], weight) for name, weight in weights.items())
    here.tell("nf4 weights packed as on the CPU", f"{equal} of {len(weights)} layers")
    for name in ("loss", "grad_norm"):
        difference = abs(theirs[name] - ours[name]) / abs(ours[name])
        here.tell(
            f"nf4, {name} against the CPU's", f"differs by {difference:.1e}", value=difference
        )


def sampling(here: Here, merged: bool) -> None:
    """Eight samples of 128 tokens to each of 64 prompts, with an adapter."""
    import torch

    from alignkit.contract.settings import Sampling
    from alignkit.models import generate as sampler
    from alignkit.tokens.encoder import Encoder
    from benchmarks import data, models

    count, samples, tokens = (4, 2, 16) if here.short else (64, 8, 128)
    groups = data.prompts(count, 64)
    source = _folder(here) if here.short else random_model("1.5b", _cache())
    model = _learner(source, "bfloat16", "none", "cuda").model
    separate: Any = patch("alignkit_plugins.backends.gpu.Gpu.prepares", lambda *_: False)
    with nullcontext() if merged else separate:
        for seed in range(3):  # the first one compiles
            request = sampler.build_request(
                model,
                models.ROLE,
                Encoder(model.tokenizer),
                groups,
                Sampling(max_new_tokens=tokens, min_new_tokens=tokens),
                seed=seed,
                path=(),
                numbers=range(count),
                samples_per_prompt=samples,
            )
            began = time.perf_counter()
            sampler.generate(request)
            torch.cuda.synchronize()
            speed = count * samples * tokens / (time.perf_counter() - began)
            how = "merged" if merged else "apart"
            what = f"sampling, {'tiny' if here.short else '1.5B'}, bf16, adapter {how}"
            here.tell(what, f"{speed:,.0f} tokens/s, {_peak()}", value=speed)


def grpo(here: Here) -> None:
    """Two runs of one recipe."""
    from alignkit.io.digest import file_digest

    recipe, size = here.folder / "grpo.yaml", 4 if here.short else 16
    recipe.write_text(
        f"name: grpo\nmodel: {{base: {TINY if here.short else MODEL}}}\n"
        "stages:\n  align:\n    algorithm: grpo\n    reward: length\n"
        f"    prompts: {{path: {ROOT / 'recipes' / 'data' / 'prompts.jsonl'}, limit: 64}}\n"
        "    rollout: {samples_per_prompt: 4, max_new_tokens: 24}\n"
        f"    iterations: 2\n    prompts_per_iteration: {size}\n",
        encoding="utf-8",
    )
    digests = []
    for name in ("first", "second"):
        out = here.folder / f"{here.part}-{name}"
        _run([str(recipe), "--out", str(out)])
        digests.append(file_digest(out / "align" / "adapter" / "adapter_model.safetensors"))
    how = "with" if os.environ.get("ALIGNKIT_DETERMINISTIC") == "1" else "without"
    result = "equal" if digests[0] == digests[1] else "different"
    here.tell(f"adapters of two GRPO runs, {how} ALIGNKIT_DETERMINISTIC", result, digests=digests)


def quickstart(here: Here) -> None:
    """Its rates against the intervals that CPUs have had over several seeds."""
    out, words = here.folder / "quickstart", list[str]()
    prompts = ROOT / "recipes" / "data" / "quickstart" / "heldout.jsonl"
    if here.short:
        words = [
            "model.base=tiny",
            "stages.align.iterations=1",
            "stages.align.prompts_per_iteration=2",
            "stages.align.rollout.max_new_tokens=4",
            f"stages.report.prompts={{path: {prompts}, part: [0, 0.1]}}",
            "stages.report.sampling.max_new_tokens=4",
            "~stages.helpful.validation",
            "~stages.safety.validation",
            "stages.sft.max_steps=2",
            "stages.helpful.max_steps=2",
            "stages.safety.max_steps=2",
        ]
    began = time.perf_counter()
    _run([str(ROOT / "recipes" / "quickstart.yaml"), *words, "--out", str(out), "seed=3"])
    here.tell("quick start, whole", f"{time.perf_counter() - began:.0f} s, {_peak()}")
    known = intervals()
    for policy, metric, value in rates(out / "report" / "evaluation.json"):
        low, high = known[policy, metric]
        side = "inside" if low <= value <= high else "OUTSIDE"
        result = f"{value:.0%}, {side} the CPU's [{low:.0%}, {high:.0%}]"
        here.tell(f"quick start, {policy}, {metric}", result, value=value)


def intervals() -> dict[tuple[str, str], tuple[float, float]]:
    """The intervals of PPO's cells in benchmarks/outcomes/cells, by policy and metric."""
    from alignkit_plugins.cells.rows import rows_of
    from alignkit_plugins.cells.table import table_of

    cells = rows_of(ROOT / "benchmarks" / "outcomes")
    cells = [cell for cell in cells if cell["values"]["methods"] == "ppo"]
    rows = table_of(cells, "report").rows
    found = {}
    for row in rows:
        policy = "align" if row.policy == "ppo" else row.policy
        if "low" in row.estimate:  # minutes have no interval
            found[policy, row.metric] = row.estimate["low"], row.estimate["high"]
    return found


def rates(evaluation: Path) -> Iterator[tuple[str, str, float]]:
    """The means of an evaluation by policy and metric."""
    from alignkit_plugins.compare.rows import main_rows, rows_in

    for row in main_rows(rows_in(json.loads(evaluation.read_text(encoding="utf-8")))):
        if row.kind == "metric" and row.estimate["mean"] is not None:
            yield row.policy, row.metric, row.estimate["mean"]


def large(here: Here, tokens: int, rows: int) -> None:
    """An SFT step on 4-bit weights of an 8B model, in bf16."""
    import torch

    source = _folder(here) if here.short else random_model("8b", _cache())
    learner = _learner(source, "bfloat16", NF4, "cuda")
    size, tokens = ("tiny", 64) if here.short else ("8B", tokens)
    examples = _examples(learner.model, rows, tokens)
    total = sum(encoded.length for encoded in examples.groups)
    for _ in range(3):  # the first one compiles
        began = time.perf_counter()
        learner.step(examples, 0.0)
        torch.cuda.synchronize()
        speed = total / (time.perf_counter() - began)
        what = f"SFT step, {size} in {NF4}, {rows} x {tokens:,} tokens"
        here.tell(what, f"{speed:,.0f} tokens/s, {_peak()}", value=speed)


REPEATING = {"ALIGNKIT_DETERMINISTIC": "1", "ALIGNKIT_REUSE": "0"}
PARTS = (
    Part("machine", 30, machine),
    Part("suite", 150, suite),
    Part("nf4", 40, nf4),
    Part("sampling", 60, sampling, {"merged": True}),
    Part("sampling_apart", 45, sampling, {"merged": False}),
    Part("grpo", 60, grpo, environment=REPEATING),
    Part("grpo_default", 40, grpo, environment={"ALIGNKIT_REUSE": "0"}),
    Part("quickstart", 150, quickstart, environment={"ALIGNKIT_REUSE": "0"}),
    Part("8b_2k", 120, large, {"tokens": 2048, "rows": 4}),
    Part("8b_8k", 60, large, {"tokens": 8192, "rows": 1}),
)


# What parts have in common


def _cache() -> Path:
    from alignkit.io.text import cache_folder

    return cache_folder()


def _folder(here: Here) -> str:
    from benchmarks.models import folder_of

    return folder_of(TINY if here.short else MODEL)


def _learner(source: str, dtype: Any, quantization: Any, device: str) -> Any:
    """A learner of SFT, whose adapter has the same random numbers on every device."""
    import torch

    from alignkit.contract.settings import ModelSpec, Settings
    from alignkit.host.plugins import plugins
    from alignkit.models.shared_model import SharedModel
    from alignkit.training.learner import Learner
    from benchmarks.models import LORA_STD, ROLE

    spec = ModelSpec(base=source, dtype=dtype, quantization=quantization, device=device)
    model = SharedModel(spec, source)
    model.add_role(ROLE, head="language")
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters_of(ROLE).values():
        numbers = LORA_STD * torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(numbers.to(parameter))
    algorithm = plugins().get("algorithm", "sft").implementation
    return Learner(model, algorithm(algorithm.Options()), Settings(), ROLE)


def _examples(model: Any, rows: int, tokens: int) -> Any:
    """Demonstrations of this many tokens, half of which are learned."""
    import numpy as np

    from alignkit import Group, Response
    from alignkit.models.packing import Examples
    from alignkit.tokens.encoder import Encoded, ResponseTokens

    ids = np.random.default_rng(0).integers(5, len(model.tokenizer), (rows, tokens)).tolist()
    half, group = tokens // 2, Group((), (Response(""),))
    encoded = [
        Encoded(group, row[:half], (ResponseTokens(row[half:], (1.0,) * (tokens - half)),))
        for row in ids
    ]
    return Examples(encoded)


def _run(words: Sequence[str]) -> None:
    """A run in this process. Raises RuntimeError if it fails; what it said is above."""
    from alignkit.cli import main as alignkit

    if code := alignkit(["run", *words]):
        raise RuntimeError(f"alignkit run ended with exit code {code}")


def _peak() -> str:
    import torch

    return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"


# The processes


@contextmanager
def ended(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Nothing of a part outlives it: its GPU memory would be missing in the next one."""
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def attempt(
    name: str, command: Sequence[str], seconds: float, out: Path, log: Path, **env: str
) -> None:
    """Run the process of a part. What ends it early becomes its row."""
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **OFFLINE, **env},
            start_new_session=True,
        )
        with ended(process):
            while process.poll() is None and time.monotonic() - began < seconds:
                time.sleep(LOOK)
            code = process.poll()
    took = time.monotonic() - began
    if code is None:
        write(out, {"part": name, "what": name, "result": f"stopped after {took:.0f} s"})
    elif code:
        said = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()]
        last = next((line for line in reversed(said) if line), "")
        killed = f"signal {-code}" if code < 0 else f"exit code {code}"
        write(out, {"part": name, "what": name, "result": f"failed: {killed}: {last[:160]}"})
    write(out, {"part": name, "seconds": round(took, 1)})


def table(out: Path) -> str:
    """The rows of a file in Markdown. A line that a crash cut short is left out."""
    rows, seconds = dict[tuple[str, str], str](), dict[str, float]()
    for line in out.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "what" in row:
            rows[row["part"], row["what"]] = row["result"].replace("|", "/")
        else:
            seconds[row["part"]] = row["seconds"]
    lines = ["| what | on the GPU |", "|---|---|"]
    lines += [f"| {what} | {result} |" for (_, what), result in rows.items()]
    took = ", ".join(f"{part} {value:.0f}" for part, value in seconds.items())
    return "\n".join([*lines, "", f"Seconds: {took}."])


@app.command()
def main(
    only: Annotated[str, typer.Option(metavar="PART,...", help="Parts to run; default: all.")] = "",
    out: Annotated[Path, typer.Option(help="File of rows, to which they are added.")] = Path(
        "gpu-check.jsonl"
    ),
    seconds: Annotated[float, typer.Option(help="Time for all parts together.")] = 600,
    short: Annotated[bool, typer.Option("--short", help="Tiny model and sizes.")] = False,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="On the simulated device of the tests.")
    ] = False,
    again: Annotated[
        Path | None, typer.Option("--table", help="Only print the table of such a file.")
    ] = None,
    part: Annotated[str, typer.Option(hidden=True)] = "",
    folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure on a GPU what has only been tried on a CPU."""
    known = {each.name: each for each in PARTS}
    if again is not None:
        print(table(again))
        return
    if part and folder is not None:
        chosen = known[part]
        chosen.work(Here(part, out, folder, short), **chosen.options)
        return
    names = [name for name in only.split(",") if name] or list(known)
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(f"no part {', '.join(unknown)}; choose from {', '.join(known)}")
    out, ends = out.resolve(), time.monotonic() + seconds
    script = [str(SIMULATED / "gpu_check.py")] if simulated else ["-m", "benchmarks.gpu_check"]
    switches = ["--short"] if short else []
    with tempfile.TemporaryDirectory(prefix="alignkit-gpu-check-") as temporary:
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            left = min(known[name].seconds if not simulated else seconds, ends - time.monotonic())
            words = ["--part", name, "--folder", temporary, "--out", str(out), *switches]
            log = out.with_name(f"{out.stem}-{name}.log")
            if left <= 0:
                write(out, {"part": name, "what": name, "result": "no time was left"})
                continue
            attempt(
                name, [sys.executable, *script, *words], left, out, log, **known[name].environment
            )
    print(table(out))


if __name__ == "__main__":
    app()
