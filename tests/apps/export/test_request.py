"""What cannot be exported in the form that was asked for, said before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignkit.errors import RecipeError
from alignkit_apps.export.request import Request, check
from alignkit_apps.policies.source import find


@pytest.mark.parametrize(
    ("stage", "keys", "expected"),
    [
        ("sft", {"dtype": "int3", "merge": True}, "--dtype int3 is unknown"),
        ("sft", {"dtype": "q8_0", "merge": True}, "--dtype q8_0 is for GGUF files"),
        ("sft", {"dtype": "q8_0", "merge": True, "gguf": True}, "use --gguf without --merge"),
        ("sft", {"dtype": "bfloat16"}, "an adapter stays as it is"),
        ("liked", {"gguf": True}, "'liked' is a reward model, and llama.cpp reads none"),
        ("sft", {"base": "/home/me/model"}, "is a path that only this machine has"),
        ("sft", {"public": True}, "--public is for --push"),
        ("sft", {"push": "me/model"}, "the base of 'sft', tiny, is not on the hub, so nobody could load its adapter"),
    ],
)
def test_refused(stage: str, keys: dict[str, Any], expected: str, lora_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        check(find(str(lora_run / stage)), Request(tmp_path / "out", **keys))
    assert expected in str(raised.value)
    assert len(raised.value.problems) == 1


@pytest.mark.parametrize(
    "keys",
    [
        {"dtype": "bfloat16", "merge": True},
        {"dtype": "q8_0", "gguf": True},
        {"push": "me/model", "base": "me/tiny"},
        {"push": "me/model", "merge": True, "public": True},
    ],
)
def test_accepted(keys: dict[str, Any], lora_run: Path, tmp_path: Path) -> None:
    check(find(str(lora_run / "sft")), Request(tmp_path, **keys))  # an empty folder is as good as none


def test_forms(lora_run: Path, whole_run: Path) -> None:
    adapter, whole = find(str(lora_run / "sft")), find(str(whole_run / "sft"))
    assert [Request(Path(), merge, gguf).form(adapter) for merge in (False, True) for gguf in (False, True)] == [
        *("adapter", "gguf", "whole", "whole+gguf")
    ]
    assert Request(Path()).form(whole) == "whole"
