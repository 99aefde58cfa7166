"""A finished run with a stage of each kind, one of which asked a server that is gone by now."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from alignkit.cli import main
from alignkit.io.results import manifest, read_record, write_record
from tests.rows import demos, pairs, write_rows

PLUGIN = """
import json
from alignkit import *
from alignkit_plugins.ai_feedback.remote import Remote, RemoteOptions

SCALE = 1.0

class Asked(Reward):
    class Options(Options):
        server: RemoteOptions

    def prepare(self, context):
        super().prepare(context)
        self.remote = Remote("asked", self.options.server, "score", context.cache, json.loads)

    def score(self, groups):
        bodies = [{"text": response.text} for group in groups for response in group.responses]
        return {"": [SCALE * reply.value for reply in self.remote.ask(bodies)]}

@hookimpl
def register(add):
    add("reward", "asked", Asked)
"""


class Server(BaseHTTPRequestHandler):
    """Scores a text by its hash."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(hashlib.sha256(body).digest()[0] / 256).encode())

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


RECIPE = """\
model: {base: tiny, dtype: float32, lora: {r: 2, lora_alpha: 4}}
stages:
  sft: {algorithm: sft, data: demos.jsonl, max_steps: 3, batch_size: 1, keep_versions: true}
  liked: {algorithm: reward_model, from: sft, data: pairs.jsonl, max_steps: 1}
  align:
    algorithm: rejection_sampling
    from: sft
    prompts: demos.jsonl
    reward: {asked: {server: {base_url: "http://127.0.0.1:PORT", max_retries: 0, api_key_env: ASKED_KEY}}}
    rollout: {samples_per_prompt: 2, max_new_tokens: 4}
    iterations: 2
    prompts_per_iteration: 2
    keep_versions: true
  report:
    step: evaluate
    policies: [sft, align]
    rewards: [liked]
    prompts: demos.jsonl
    sampling: {max_new_tokens: 4}
"""


def train(folder: Path) -> Path:
    """Run the recipe in `folder`/run, and return that."""
    words = ("good", "old", "new")
    write_rows(folder / "demos.jsonl", demos(words))
    write_rows(folder / "pairs.jsonl", pairs(words))
    (folder / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    recipe = RECIPE.replace("PORT", str(server.server_port))
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    try:
        command = ["run", str(folder / "recipe.yaml"), "--plugin", str(folder / "plugin.py")]
        assert main([*command, "--out", str(folder / "run")]) == 0
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    return folder / "run"


def verify(target: Path, *more: str) -> int:
    """The exit code of the command. target: a run of `train`, or one of its stages."""
    folder = next(path for path in (target, *target.parents) if (path / "plugin.py").is_file())
    return main(["verify", str(target), "--plugin", str(folder / "plugin.py"), *more])


def rewrite(stage: Path, change: Callable[[dict[str, Any]], Any] = lambda record: None) -> None:
    """Let stage.json say what the files of a stage are now, and something else if wanted."""
    record = read_record(stage)
    change(record)
    write_record(stage, {**record, "files": manifest(stage)})


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Digests and times of all files in a folder, and links in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(folder))] = (
            content,
            facts.st_mtime_ns if path.is_file() else facts.st_mode,
        )
    return found
