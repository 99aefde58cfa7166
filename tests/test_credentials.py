"""Keys in the wrong place: refused, and in no file and no output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignkit.cli import main
from alignkit.io.credentials import HIDDEN, could_be_variable, places_of_keys, redacted
from alignkit_http import RemoteOptions

KEYS = {
    "openai": "sk-proj-Ab12Cd34Ef56Gh78Ij90",
    "github": "ghp_Ab12Cd34Ef56Gh78Ij90Kl12",
    "hub": "hf_AbCdEfGhIjKlMnOpQrSt",
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "stripe": "sk_live_Ab12Cd34Ef56Gh78",
    "fireworks": "fw_3ZabcDEF12ghIJK34lmnop",
    "nvidia": "nvapi-Ab12-Cd34_Ef56-Gh78_Ij90",
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_are_recognized_and_hidden(kind: str) -> None:
    key = KEYS[kind]
    assert redacted(f"a {key} b") == f"a {HIDDEN} b"
    assert key not in redacted(f"http://host/{key}/v1")


@pytest.mark.parametrize(
    "text",
    [
        "gpt-5-mini-2025-08-07",
        "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8",
        "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8",
        "http://localhost:8000/v1",
        "OPENAI_API_KEY",
        "task-force-one-hundred-and-one",
        "org/sk-slovak-preferences-2024",
        "max_completion_tokens",
        "hf_hub_download_of_a_file",
        "4f0c9c2d1b7e4a5f8d3e6b9a0c1d2e3f",  # the id of a run, or a digest
    ],
)
def test_names_are_not_keys(text: str) -> None:
    assert redacted(text) == text and list(places_of_keys([text])) == []


def test_keys_in_nested_data_are_found_by_name_and_look() -> None:
    assert list(places_of_keys({"extra_headers": {"Authorization": "x"}})) == ["extra_headers.Authorization"]
    assert list(places_of_keys({"a": [{"api_key": "x"}, KEYS["hub"]]})) == ["a.0.api_key", "a.1"]
    names = [
        "openai_api_key",
        "Ocp-Apim-Subscription-Key",
        "Cookie",
        "hf_token",
        "client_secret",
        "Proxy-Authorization",
    ]
    assert list(places_of_keys(dict.fromkeys(names, "short9"))) == names
    assert list(places_of_keys({"token": "<sep>", "eos_token": "<|im_end|>", "tokens": "secret"})) == []
    assert list(places_of_keys({"max_tokens": 5, "api_key": None, "stop": ["token"]})) == []


def test_a_variable_is_not_named_like_a_key() -> None:
    assert all(map(could_be_variable, ["OPENAI_API_KEY", "openai_key_2", "MyKey2", "_x", "MY_VERY_LONG_NAME_2026"]))
    random = ["aB3dE6gH9jK2mN5pQ8", "f3a9c1e2b4d5f6071829a3b4c5d6e7f8"]
    assert not any(map(could_be_variable, [*KEYS.values(), *random, "3ab", "a-b"]))


PLACES: dict[str, dict[str, Any]] = {
    "api_key_env": {"api_key_env": "KEY"},
    "base_url": {"base_url": "http://localhost:9/KEY/v1"},
    "model": {"model": "KEY"},
    "request": {"request": {"user": "KEY"}},
    "header": {"request": {"extra_headers": {"X-Other": "KEY"}}},
}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("place", PLACES)
def test_a_pasted_key_is_refused_and_repeated_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str, kind: str
) -> None:
    monkeypatch.delenv("ALIGNKIT_DEBUG", raising=False)
    options = {"base_url": "http://localhost:9/v1", "model": "m"} | PLACES[place]
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', encoding="utf-8")
    step = {"step": "judge_pairs", "judge": {"openai_judge": {"server": options}}, "data": "pairs.jsonl"}
    recipe = {"model": {"base": "tiny"}, "stages": {"labels": step}}
    file = tmp_path / "r.yaml"
    file.write_text(json.dumps(recipe).replace("KEY", KEYS[kind]), encoding="utf-8")
    out = tmp_path / "run"
    assert main(["run", str(file), "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert KEYS[kind] not in said.out + said.err and "key" in said.err
    assert not out.exists()
    file.write_text(json.dumps(recipe).replace("KEY", "x"), encoding="utf-8")
    (name, value) = next(iter(PLACES[place].items()))
    override = f"stages.labels.judge.openai_judge.server.{name}={json.dumps(value).replace('KEY', KEYS[kind])}"
    assert main(["run", str(file), override, "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert KEYS[kind] not in said.out + said.err
    assert not out.exists()


@pytest.mark.parametrize("name", ["api_key", "Authorization", "x-api-key"])
def test_a_field_that_holds_a_key_is_refused_whatever_it_looks_like(name: str) -> None:
    with pytest.raises(ValidationError, match=f"'request.{name}' seems to hold a key"):
        RemoteOptions(base_url="http://localhost/v1", request={name: "short"})


def test_a_password_in_an_address_is_hidden() -> None:
    assert (
        redacted("see http://user:hunter2@localhost:9/v1 or http://a/b:c@d")
        == "see http://***@localhost:9/v1 or http://a/b:c@d"
    )


@pytest.mark.parametrize("part", ["0", "a", "sk-", "a-", "eyJ0.", "x:y@"])
def test_a_long_text_is_searched_once(part: str) -> None:
    """With a search that begins again at every letter, this would take minutes."""
    text = part * (60_000 // len(part))
    assert redacted(text) == text
    assert redacted(f"{text} {KEYS['hub']} b") == f"{text} *** b"
