"""The tiny model, its encoder, and groups for both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignkit.contract.settings import LoraSpec, ModelSpec
from alignkit.data.group import Message, Response
from alignkit.io.text import cache_folder
from alignkit.models.shared_model import SharedModel
from alignkit.tokens.encoder import Encoded, Encoder
from alignkit_plugins.bases import tiny
from alignkit_plugins.bases.tiny import CHAT_TEMPLATE, _tokenizer


def shared(source: Path | None = None, **fields: Any) -> SharedModel:
    """The model in a folder, or `tiny`: in fp32, on the CPU, for adapters of rank 2, if the fields
    of its ModelSpec say nothing else.
    """
    folder = str(source or tiny.source(cache_folder()))
    usual = {"base": folder, "dtype": "float32", "device": "cpu", "lora": LoraSpec(r=2)}
    return SharedModel(ModelSpec.model_validate({**usual, **fields}), folder)


def tiny_model(folder: Path | None = None) -> SharedModel:
    return shared(base="tiny", lora=LoraSpec(r=4, lora_alpha=8))


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
