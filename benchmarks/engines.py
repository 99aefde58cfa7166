"""The engine `vllm` and alignkit's own sampler, with servers of vLLM that the benchmark starts on
this machine.

ALIGNKIT_TEST_VLLM holds the command that starts one, such as `/opt/vllm/bin/vllm serve`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import grpo, models, sample
from benchmarks.floor import Shape, Work
from benchmarks.worker import Gate, Job

if TYPE_CHECKING:
    from alignkit.contract.engine import Completion
    from alignkit.contract.settings import Sampling
    from alignkit.models.models import LoadedModel

COMMAND = os.environ.get("ALIGNKIT_TEST_VLLM", "")
MISSING = "it needs vLLM: write the command that starts a server into ALIGNKIT_TEST_VLLM"
# For a CPU: without compiling, with room for the 128 samples only, and so that no prompt is read in
# parts: vLLM 0.32 then ends on a CPU if the prompt's sample has a seed.
FLAGS = "--max-model-len 1024 --max-num-seqs 128 --max-num-batched-tokens 32768 --enforce-eager"
STARTING = 900.0  # seconds
SWAPS = 4  # of a round
CHECKED = 8  # samples whose log-probabilities are compared


def missing() -> str:
    """Why no server can be started; empty if one can."""
    return "" if COMMAND and shutil.which(shlex.split(COMMAND)[0]) else MISSING


# --- 128 samples


def sampled(job: Job, gate: Gate) -> None:
    """32 prompts x 4 samples x 64 tokens, by the policy's adapter. options: `servers`, 0 for
    alignkit's own sampler.
    """
    with _base(job) as base:
        groups, samples, tokens, ends = sample.plan(job)
        prompts = [base.encoder.prompt(group.prompt) for group in groups]
        work = Work(Shape.of(job.source), job.dtype)
        work.write([(len(prompt), [tokens] * samples) for prompt in prompts])
        pieces = [] if job.options["servers"] else work.pieces
        seed = 0
        while True:
            gate.begin()
            seed += 1
            if gate.checking:
                loss, evidence = _checked(gate, base, prompts[:CHECKED], tokens)
                gate.end(1, {"loss": loss}, evidence=evidence)
                continue
            sampling = _sampling(tokens, tokens)
            streams = [
                [seed * 10_000 + len(groups) * k + p for k in range(samples)]
                for p in range(len(groups))
            ]
            _generate(base, prompts, streams, sampling)
            gate.end(sum(ends), {"loss": 0.0}, pieces)


def _checked(
    gate: Gate, base: LoadedModel, prompts: Sequence[Any], tokens: int
) -> tuple[float, Any]:
    """The mean -log P of the first side's samples: as its engine reports it, and as training
    measures it.
    """
    from alignkit.models.packing import measure
    from alignkit.tokens.encoder import Encoded

    if gate.evidence is None:
        # An engine tells log-probabilities without filters only, so some samples may be shorter.
        streams = [[number] for number in range(len(prompts))]
        written = [one for (one,) in _generate(base, prompts, streams, _sampling(tokens))]
        values = [value for one in written for value in one.logprobs or ()]
        evidence = [[list(p), list(one.tokens)] for p, one in zip(prompts, written, strict=True)]
        return -sum(values) / len(values), evidence
    rows = [Encoded.of(tuple(prompt), tuple(tokens)) for prompt, tokens in gate.evidence]
    values = [
        value
        for row in measure(base.model, models.ROLE, rows)["logprobs"]
        for value in row.tolist()
    ]
    return -sum(values) / len(values), None


# --- a whole iteration, and new weights


def iteration(job: Job, gate: Gate) -> None:
    """The iteration of the benchmark `grpo`. options: `servers`, 0 for alignkit's own sampler."""
    grpo.ours(job, gate, {"engine": {"vllm": _options()}} if job.options["servers"] else {})


def swap(job: Job, gate: Gate) -> None:
    """New weights of the policy. options: `servers`, 0 for only writing the adapter and its
    version.
    """
    from alignkit.testing.tiny import add_noise
    from alignkit_plugins.processes.engine import version_of

    with _base(job) as base:
        folder = Path(job.adapters) / "written"
        number = 0
        while True:
            gate.begin()
            for _ in range(SWAPS):
                number += 1
                add_noise(base.model, models.ROLE, 1e-4, number)
                if job.options["servers"]:
                    # Asked for nothing, it takes the weights
                    _generate(base, [], [], _sampling(1))
                else:
                    version_of(base.model, models.ROLE)
                    base.model.save(models.ROLE, folder)
            gate.end(SWAPS, {})


# --- servers


@contextmanager
def _base(job: Job) -> Iterator[LoadedModel]:
    """The base with the policy's adapter, and an engine if `servers` is above 0, each server on a
    core of its own.
    """
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    from alignkit.models.models import LoadedModel

    base, count = LoadedModel(models.load(job), Path), int(job.options["servers"])
    base.model.add_role(models.ROLE, start=job.adapter(models.POLICY))
    with ExitStack() as stack:
        if count and job.options.get("pinned"):
            urls = [stack.enter_context(_server(job, core)) for core in range(count)]
            base.engine = _engine(job, {"url": urls})
        elif count:
            base.engine = _engine(job, _options())
        stack.callback(base.close_engine)
        yield base


def _options() -> dict[str, Any]:
    return {"command": f"{COMMAND} {FLAGS}", "timeout": STARTING}


def _engine(job: Job, options: dict[str, Any]) -> Any:
    from alignkit.host.plugins import launcher, plugins
    from alignkit.host.registry import Component

    found = plugins().get("engine", "vllm")
    component = Component("engine", "vllm", found, found.implementation.Options(**options))
    return launcher().engine(component, Path(job.adapters) / "engine", stage="", seed=0, say=_say)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


@contextmanager
def _server(job: Job, core: int) -> Iterator[str]:
    """The address of a server that uses one core."""
    from alignkit_plugins.vllm.own_server import OwnServer

    words = [
        "taskset",
        "-c",
        str(core),
        *shlex.split(COMMAND),
        job.source,
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
    ]
    words += [
        "--dtype",
        job.dtype,
        "--enable-lora",
        "--max-lora-rank",
        "16",
        "--logprobs-mode",
        "processed_logprobs",
    ]
    words += ["--generation-config", "vllm", *shlex.split(FLAGS)]
    environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    server = OwnServer.of("vLLM", words, Path(job.adapters) / f"server-{core}", environment)
    try:
        server.wait(STARTING, _say)
        yield server.url
    finally:
        server.end()


def _sampling(tokens: int, least: int = 0) -> Sampling:
    from alignkit.contract.settings import Sampling

    return Sampling(max_new_tokens=tokens, min_new_tokens=least)


def _generate(
    base: LoadedModel,
    prompts: Sequence[Any],
    streams: Sequence[Any],
    sampling: Sampling,
) -> list[list[Completion]]:
    from alignkit.models.generate import SamplingRequest

    request = SamplingRequest(base.model, models.ROLE, base.encoder, prompts, streams, sampling)
    return base.engine.request(request).result()
