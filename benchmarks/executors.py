"""Rows in a step's own process and in two workers of Ray: rows per second, memory, and whether the bytes are equal.

`python -m benchmarks.executors` prints the table of docs/scoring-at-scale.md. The rows are scored by the cheap reward
`length`, judged by a server on this machine that takes a moment for each reply, and answered by the model `tiny`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import log
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
import yaml

from alignkit import Group, Pair, Response
from alignkit.data.group import write_groups

LATENCY = 0.1  # seconds that the judge takes for a reply
RAY: dict[str, Any] = {"ray": {"workers": 2}}
GIB = 2**30

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Measured:
    """seconds: of the stage. driver, workers: most memory of the run's own process and of all others, in bytes."""

    seconds: float
    driver: int
    workers: int
    content: str


@app.command()
def main(
    rewards: Annotated[int, typer.Option(help="rows to score")] = 100_000,
    judged: Annotated[int, typer.Option(help="pairs to judge, each in both orders")] = 500,
    sampled: Annotated[int, typer.Option(help="prompts to answer")] = 500,
) -> None:
    """Measure, and print the table."""
    print("| step | rows | executor | seconds | rows/s | memory of the run | memory of its workers | bytes |")
    print("|---|---|---|---|---|---|---|---|")
    url = serve()
    scored = {"step": "evaluate_reward", "pairs": "rows.jsonl", "rewards": [{"length": {"unit": "words"}}]}
    for name, count, stage in (
        ("reward `length`", rewards, scored),
        ("judge, 0.1 s per reply", judged, judge(url)),
        ("sampling", sampled, {"step": "sample", "prompts": "rows.jsonl", "sampling": {"max_new_tokens": 32}}),
    ):
        if count:
            compare(name, count, stage)


def compare(name: str, count: int, stage: Mapping[str, Any]) -> None:
    """Print a line for a step's own process, and one for Ray."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_groups(folder / "rows.jsonl", map(row, range(count)))
        alone = measured(folder, "local", stage)
        dealt = measured(folder, "ray", {**stage, "executor": RAY})
    for executor, found in (("local", alone), ("ray, 2 workers", dealt)):
        equal = "equal" if found.content == alone.content else "**different**"
        workers = f"{found.workers / GIB:.1f} GiB" if found.workers > GIB / 10 else "—"
        facts = (
            f"{found.seconds:.0f} | {count / found.seconds:,.0f} | {found.driver / GIB:.1f} GiB | {workers} | {equal}"
        )
        print(f"| {name} | {count:,} | {executor} | {facts} |", flush=True)


def row(number: int) -> Group:
    """A pair of short answers."""
    question = f"What is {number} and {number % 7}?"
    answers = Response(f"It is {number + number % 7}."), Response("I do not know" + "." * (1 + number % 5))
    return Group(({"role": "user", "content": question},), answers, (Pair(0, 1),))


def measured(folder: Path, name: str, stage: Mapping[str, Any]) -> Measured:
    """Run one stage in a process of its own."""
    recipe = {"model": {"base": "tiny", "dtype": "float32"}, "stages": {"stage": dict(stage)}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    out = folder / name
    command = [sys.executable, "-m", "alignkit", "run", str(folder / "recipe.yaml"), "--out", str(out)]
    environment = {**os.environ, "ALIGNKIT_REPORT": "0", "BENCHMARK_KEY": "none"}
    run = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    driver = workers = 0
    while run.poll() is None:
        try:
            driver = max(driver, run.memory_info().rss)
            workers = max(workers, sum(private(child) for child in run.children(recursive=True)))
        except psutil.Error:
            pass
        time.sleep(0.5)
    if run.returncode:
        raise SystemExit(f"the run failed: {(out / 'run.log').read_text(encoding='utf-8')[-2000:]}")
    record = json.loads((out / "stage" / "stage.json").read_text(encoding="utf-8"))
    files = sorted(path for path in (out / "stage").glob("*.jsonl") if path.name != "metrics.jsonl")
    content = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    return Measured(record["seconds"], driver, workers, content)


def private(process: Any) -> int:
    """The memory of a process that no other one shares with it, in bytes."""
    try:
        return int(process.memory_full_info().uss)
    except psutil.Error:
        return 0


def judge(url: str) -> dict[str, Any]:
    options = {"base_url": url, "model": "scripted", "api_key_env": "BENCHMARK_KEY", "concurrency": 8}
    judge = {"openai_judge": options}
    return {"step": "judge_pairs", "data": "rows.jsonl", "judge": judge, "no_judge": "warn"}  # it is a coin


def serve() -> str:
    """A judge on this machine, whose opinion depends on the question only. Returns its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(LATENCY)
            first = 0.05 + 0.9 * hashlib.sha256(request).digest()[0] / 255
            top = [{"token": "1", "logprob": log(first)}, {"token": "2", "logprob": log(1 - first)}]
            content = [{"token": "1", "logprob": log(first), "top_logprobs": top}]
            message = {"role": "assistant", "content": "1"}
            choice = {"message": message, "finish_reason": "stop", "logprobs": {"content": content}}
            body = json.dumps({"model": "scripted", "choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/v1"


if __name__ == "__main__":
    app()
