"""Keys in the wrong place: refused, and in no file and no output."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from alignkit.io.text import HIDDEN, redacted
from tests.rows import run, write_recipe

KEYS = yaml.safe_load("""
- sk-proj-Ab12Cd34Ef56Gh78Ij90
- ghp_Ab12Cd34Ef56Gh78Ij90Kl12
- hf_AbCdEfGhIjKlMnOpQrSt
- AKIAIOSFODNN7EXAMPLE
- sk_live_Ab12Cd34Ef56Gh78
- fw_3ZabcDEF12ghIJK34lmnop
- nvapi-Ab12-Cd34_Ef56-Gh78_Ij90
- ASIAIOSFODNN7EXAMPLE
- AIzaAb12Cd34Ef56Gh78Ij90Kl12Mn34Op56
- eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.Ab_12
- -----BEGIN RSA PRIVATE KEY-----Ab12 Cd34-----END RSA PRIVATE KEY-----
""")
PREFIXES = """pk_ rk- gsk_ xai- pplx- csk- r8_ tgp_v1_ npm_ pypi- glpat- GOCSPX- ya29. xoxa- xoxb- xoxp- xoxr- xoxs-
gho_ ghr_ ghs_ ghu_ github_pat_"""
KEYS += [f"{prefix}Ab12Cd34Ef56Gh78Ij90" for prefix in PREFIXES.split()]
NO_KEYS = """
gpt-5-mini-2025-08-07
Qwen/Qwen3-235B-A22B-Instruct-2507-FP8
meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8
http://localhost:8000/v1
OPENAI_API_KEY
task-force-one-hundred-and-one
org/sk-slovak-preferences-2024
max_completion_tokens
hf_hub_download_of_a_file
4f0c9c2d1b7e4a5f8d3e6b9a0c1d2e3f
"""
STEP = """
step: judge_pairs
data: pairs.jsonl
judge: {openai_judge: {server: {base_url: "http://localhost:9/v1", model: m, api_key_env: VARIABLE}}}
"""


@pytest.mark.parametrize("key", KEYS)
def test_keys_are_hidden_and_names_are_not(key: str) -> None:
    assert redacted(f"a {key} b") == f"a {HIDDEN} b"
    assert key not in redacted(f"http://host/{key}/v1")
    assert redacted(NO_KEYS) == NO_KEYS


@pytest.mark.parametrize("place", ["recipe", "override"])
def test_a_key_in_place_of_its_variables_name_is_refused_and_repeated_nowhere(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    monkeypatch.delenv("ALIGNKIT_DEBUG", raising=False)
    key = KEYS[0]
    step = yaml.safe_load(STEP.replace("VARIABLE", key if place == "recipe" else "x"))
    override = f"stages.labels.judge.openai_judge.server.api_key_env={key}"
    words = [override] if place == "override" else []
    out = run(write_recipe(tmp_path, {"labels": step}), *words, code=2)
    said = capsys.readouterr()
    assert key not in said.out + said.err and "key" in said.err and not out.exists()


def test_a_password_or_a_key_in_an_address_is_hidden() -> None:
    told = redacted("see http://user:hunter2@localhost:9/v1 or http://a/b:c@d")
    assert told == "see http://***@localhost:9/v1 or http://a/b:c@d"
    told = redacted("'//a/v1?api_key=Q-1' //a?v=1&X-Api-Key=Q&token=Q&max_tokens=9&monkey=2#key=3")
    assert (
        told == "'//a/v1?api_key=***' //a?v=1&X-Api-Key=***&token=***&max_tokens=9&monkey=2#key=3"
    )
    assert redacted("Bearer is-a-key, bearer is-a-key") == "Bearer *** bearer ***"
    told = redacted("""401 {'x-api-key': 'Q', "Api-Key":"Q R", password = 'Q'} redis://:Q@h""")
    assert told == """401 {'x-api-key': '***', "Api-Key":"*** R", password = '***'} redis://***@h"""
    assert redacted("x-api-key: 8hidden8, cookie: id=8hidden8") == "x-api-key: *** cookie: ***"
    told = "The password: it is long. The secret: 12. api_key='' or cookie: what?"
    assert redacted(told) == told


@pytest.mark.parametrize("part", ["0", "sk-", "eyJ0.", "x:y@", "?a-"])
def test_a_long_text_is_searched_once(part: str) -> None:
    """With a search that begins again at every letter, this would take minutes."""
    text = part * (60_000 // len(part))
    assert redacted(f"{text} {KEYS[2]} b") == f"{text} *** b"
