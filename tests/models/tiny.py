"""The tiny model, its encoder, and groups for both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignkit.data.group import Group, Message, Response
from alignkit.models.packing import Examples
from alignkit.models.shared_model import SharedModel
from alignkit.settings import LoraSpec, ModelSpec
from alignkit.tokens.encoder import Encoded, Encoder
from alignkit_plugins.models.tiny import CHAT_TEMPLATE, _tokenizer


def tiny_model(tmp_path: Path) -> SharedModel:
    import alignkit_plugins.models.tiny

    lora = LoraSpec(r=4, lora_alpha=8)
    return SharedModel(
        ModelSpec(base="tiny", dtype="float32", device="cpu", lora=lora),
        str(alignkit_plugins.models.tiny.source(tmp_path)),
    )


def encoded_groups(policy: SharedModel, count: int, bundles: int = 0) -> Examples:
    encoder = Encoder(policy.tokenizer)
    groups = [
        Group(({"role": "user", "content": (
            f"how are you, {n}?"
        )},), (Response(text="well"),), id=str(n),
              bundle=str(n % bundles) if bundles else None)
        for n in range(count)
    ]  # fmt: skip
    return Examples([e for group in groups if (e := encoder.encode(group, 200)) is not None])


SPECIAL = ["start", "head", "eot", "bos", "user", "assistant", "observation"]


def encoder(template: str = CHAT_TEMPLATE, bos: bool = False, **kwargs: Any) -> Encoder:
    tokenizer = _tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{name}|>" for name in SPECIAL]})
    tokenizer.bos_token = "<|bos|>" if bos else None
    tokenizer.chat_template = template
    return Encoder(tokenizer, kwargs)


def user(content: str) -> Message:
    return Message(role="user", content=content)


def encoded(found: Encoded | None) -> Encoded:
    assert found is not None
    return found


def words(count: int, first: int = 30) -> Response:
    return Response(text="", tokens=tuple(range(first, first + count)))
