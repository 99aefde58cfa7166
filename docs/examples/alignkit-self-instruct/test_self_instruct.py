"""ROUGE-L, lists of tasks, and runs against a server that says what it is told to."""

import json
import random
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml
from alignkit_self_instruct import SelfInstruct, Texts, listed

from alignkit.cli import main
from alignkit.data.group import read_groups
from alignkit.testing import ConformanceError, check_step
from alignkit_plugins.ai_feedback.writer import Written

HERE = Path(__file__).parent
INSTALLED = any(point.name == "alignkit_self_instruct" for point in entry_points(group="alignkit"))
PLUGIN = [] if INSTALLED else ["--plugin", str(HERE / "alignkit_self_instruct.py")]
LIST = """Sure, here they are:
1. Task 1: Write a letter to a landlord about a leaking roof.
2) Name three red fruits that children love.
**Task 3:** Go home
4. Translate this sentence to Spanish:
I am late today.
5. Write a letter to the landlord about a leaking roof."""


class Server(ThreadingHTTPServer):
    """Says what `words` makes of a question."""

    words: Callable[[str], str]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.questions: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        question = json.loads(body)["messages"][-1]["content"]
        self.server.questions.append(question)  # type: ignore[attr-defined]
        text = self.server.words(question)  # type: ignore[attr-defined]
        reply = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def run(folder: Path, server: Server, expected: int = 0, **keys: Any) -> Path:
    writer = {"base_url": server.url, "model": "m", "concurrency": 1}
    stage = {"step": "self_instruct", "tasks": str(HERE / "tasks.jsonl"), "writer": writer, **keys}
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"model": {"base": "tiny"}, "stages": {"made": stage}}))
    assert main(["run", str(recipe), "--out", str(folder / "run"), *PLUGIN]) == expected
    return folder / "run" / "made"


def test_rouge_l_is_that_of_the_table_of_all_prefixes() -> None:
    draw = random.Random(0)
    for _ in range(500):
        one, other = (draw.choices("abcd", k=draw.randint(1, 70)) for _ in range(2))
        table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
        for i, word in enumerate(one):
            for j, with_ in enumerate(other):
                table[i + 1][j + 1] = (
                    table[i][j] + 1 if word == with_ else max(table[i][j + 1], table[i + 1][j])
                )
        assert Texts([" ".join(one)]).nearest(" ".join(other))[0] == 2 * table[-1][-1] / (
            len(one) + len(other)
        )
    texts = Texts(["Name three red fruits.", "Write a poem"])
    assert texts.nearest("name five RED fruits!") == (0.75, "Name three red fruits.")
    assert Texts([]).nearest("x") == (0.0, "") and Texts([""]).nearest("") == (0.0, "")


def test_a_list_within_a_task_is_part_of_it() -> None:
    text = "Tasks:\n 1. Order these:\n    1. a red fox\n    2. an old dog\n 2. Add 2.5 and 3"
    tasks = [("Order these:\n    1. a red fox\n    2. an old dog", True), ("Add 2.5 and 3", False)]
    assert listed(Written(text, truncated=True)) == tasks and listed(Written("none")) == []


def test_new_tasks_resemble_neither_peoples_nor_each_other(tmp_path: Path, server: Server) -> None:
    server.words = lambda question: (
        LIST if len(server.questions) == 1 else "1. Name three red fruits for children."
    )
    folder = run(tmp_path, server, count=50)
    made = [group.prompt[0]["content"] for group in read_groups(folder / "data.jsonl")]
    assert made == [
        "Write a letter to a landlord about a leaking roof.",
        "Translate this sentence to Spanish:\nI am late today.",
    ]
    lines = (folder / "dropped.jsonl").read_text(encoding="utf-8").splitlines()
    dropped = [(each["dropped"], each.get("of")) for each in map(json.loads, lines)]
    fruits = "Name three red fruits that children like."
    assert dropped[:3] == [
        ("near duplicate", fruits),
        ("too short", None),
        ("near duplicate", made[0]),
    ]
    # The first round has some, the next two none
    assert len(server.questions) == 24


def test_later_questions_show_tasks_that_the_model_wrote(tmp_path: Path, server: Server) -> None:
    words = iter(f"1. Compare {n} {n}a {n}b {n}c." for n in range(100))
    server.words = lambda question: next(words)
    run(tmp_path, server, count=12, questions=12)
    counts = [len(re.findall(r"^\d+\. Compare", each, re.M)) for each in server.questions]
    assert counts == [0] * 8 + [2] * 4


def test_a_policy_writes_tasks_by_the_rules_of_steps() -> None:
    """The tiny model lists nothing, which the rules say like a run."""
    sampling = {"max_new_tokens": 4}
    keys = {"tasks": "x", "writer": "sft", "count": 3, "questions": 1, "sampling": sampling}
    with pytest.raises(ConformanceError, match="0 new tasks after 4 of people; 3 were wanted"):
        check_step(SelfInstruct, keys)
