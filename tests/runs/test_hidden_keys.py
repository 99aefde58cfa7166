"""Keys of services in a recipe: results depend on them, and nothing that a run writes holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit.cli import main
from alignkit.errors import RecipeError
from alignkit.io.console import Metrics
from alignkit.io.results import RECIPE, read_record, write_record
from alignkit.io.text import redacted
from alignkit.recipe.load import load_recipe
from alignkit.recipe.yaml import without_keys
from alignkit_plugins.serving.export_folder import recipe_text
from tests.rows import Said, run, write_recipe

KEY = "ghp_abcdefghijklmnopqrstuvwxyz0123456789"
PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----"
# A text of a recipe -> what is left of it
TEXTS = [
    (KEY, "***"),
    (PEM, "***"),
    (f"a {KEY}: b", "a ***: b"),
    (f"{'words ' * 30}{KEY}", f"{'words ' * 30}***"),
    ("http://me:secret@host/v1", "http://***@host/v1"),
    (f"Bearer {KEY}", "Bearer ***"),
]


@pytest.mark.parametrize(("text", "left"), TEXTS)
def test_what_is_written_stays_valid(tmp_path: Path, text: str, left: str) -> None:
    """Also where a text is all of a value, a key of a mapping, or longer than a line."""
    data = {"a": text, "list": [text], "b": {text: 1}, "none": None}
    clear = {"a": left, "list": [left], "b": {left: 1}, "none": None}
    written = without_keys(data)
    assert yaml.safe_load(written) == clear == redacted(data)
    assert written.startswith("# *** stands for a key at: a list.0\n")
    assert without_keys(clear).startswith("a: ")
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / RECIPE).write_text(yaml.safe_dump(data), encoding="utf-8")
    assert yaml.safe_load(recipe_text(folder))["a"] == left
    write_record(folder, data)
    assert read_record(folder) == clear
    Metrics(folder / "metrics.jsonl").write(a=text)
    assert json.loads((folder / "metrics.jsonl").read_text())["a"] == left


NAMED = [
    "api_key",
    "X-API-Key",
    "Authorization",
    "proxy-authorization",
    "hub_token",
    "client_secret",
    "password",
    "accessToken",
    "Ocp-Apim-Subscription-Key",
    "credentials",
    "bearer",
    "passphrase",
    "pwd",
]
IN_REQUESTS = ["token", "key"]
UNNAMED = [
    "api_key_env",
    "pad_token",
    "num_memory_tokens",
    "secretary",
    "monkey",
    "prompt_cache_key",
]


def test_what_has_the_name_of_a_key_is_hidden() -> None:
    request = {name: "plain" for name in NAMED + UNNAMED + IN_REQUESTS}
    clear = {**request, **{name: "***" for name in NAMED}}
    hidden = {**clear, **dict.fromkeys(IN_REQUESTS, "***")}
    assert redacted({"request": [request, {"more": request}]}) == {
        "request": [hidden, {"more": hidden}]
    }
    assert redacted("server.request.token=plain") == "server.request.token=***"
    login = {"request": {"auth": {"user": "a", "pw": "b"}}, "author": {"pw": "c"}}
    assert redacted(login) == {
        "request": {"auth": {"user": "***", "pw": "***"}},
        "author": {"pw": "c"},
    }
    first, *rest = without_keys({"headers": request, "api_key": ""}).splitlines()
    assert first.removeprefix("# *** stands for a key at: ").split() == [
        f"headers.{name}" for name in NAMED
    ]
    assert yaml.safe_load("\n".join(rest)) == {"headers": clear, "api_key": ""}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with keys in its data, in arguments of its template and in a stage without data."""
    monkeypatch.setenv("ALIGNKIT_REPORT", "1")
    data: dict[str, Any] = {"path": "demos.jsonl", "meta": {"note": KEY}}
    stages = {"sft": {"algorithm": "sft", "data": data, "max_steps": 1}}
    model = {"base": "tiny", "lora": {"r": 4}, "chat_template_kwargs": {"token": KEY}}
    return write_recipe(tmp_path, stages, model, description=f"of {KEY}")


def test_no_file_of_a_run_holds_a_key(recipe: Path, said: Said) -> None:
    out = run(recipe, f"stages.sft.data.meta.other=sk-{KEY[4:]}")
    holders = [
        file
        for file in out.rglob("*")
        if file.is_file() and any(each in file.read_bytes() for each in (b"ghp_", b"sk-abc"))
    ]
    assert holders == []
    record = read_record(out / "sft")
    assert record["depends_on"]["model"]["chat_template_kwargs"] == {"token": "***"}
    said()
    assert main(["show", str(out), "--json"]) == 0 and "ghp_" not in said()
    # The key of a stage is one of what was there
    run(recipe, f"stages.sft.data.meta.other=sk-{KEY[4:]}")
    assert "sft: unchanged, reused" in said()
    # A recipe of a run lacks keys, and says so
    with pytest.raises(RecipeError, match="was a key") as caught:
        load_recipe(out / RECIPE)
    assert len(caught.value.problems) == 4
    given = [
        f"description=of {KEY}",
        f"model.chat_template_kwargs.token={KEY}",
        f"stages.sft.data.meta={{note: {KEY}, other: sk-{KEY[4:]}}}",
    ]
    run(out / RECIPE, *given, out=out)
    assert "sft: unchanged, reused" in said()
    run(recipe)
    assert "sft: changed since the last run (data.meta.other: *** -> not set)" in said()
