"""Where a reward model reads its score, so that transformers, peft and TRL read it at the same token.

Transformers scores a sequence at its last token that is not the padding of the model's configuration. An adapter is
loaded onto its base, so the base's configuration decides. If the end of a turn is also the padding, that is one token
before it. A base without padding is read at the last token; whoever pads needs a token that ends no turn.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

UNREAD = "unread_token"  # in the metadata of a saved adapter: the padding that it skips
WORDS = ("pad", "reserved", "unused", "unk")  # in special tokens that may serve as padding, the best first


def padding_of(config: Any) -> int | None:
    """The id of the padding in a model's configuration; None if there is none."""
    found = config.get_text_config().pad_token_id
    return None if found is None or found < 0 else int(found)


def saved_unread(folder: Path) -> int | None:
    """The padding that a saved reward model skips; None for adapters of earlier versions, which read the last token."""
    weights = folder / "adapter_model.safetensors"
    if weights.is_file():
        with safe_open(weights, "pt") as file:
            value = (file.metadata() or {}).get(UNREAD)
        return None if value is None else int(value)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = config.get("pad_token_id", config.get("text_config", {}).get("pad_token_id"))
    return None if found is None else int(found)


def with_padding(tokenizer: Any, config: Any) -> Any:
    """A copy of a tokenizer that pads with the base's padding, or else with a special token that ends no turn."""
    padded, padding = copy.deepcopy(tokenizer), padding_of(config)
    if padding is not None and (token := tokenizer.convert_ids_to_tokens(padding)) is not None:
        padded.pad_token = token
    elif padded.pad_token_id in (None, padded.eos_token_id):
        padded.pad_token = _ending_no_turn(padded) or padded.pad_token
    return padded


def _ending_no_turn(tokenizer: Any) -> str | None:
    """A special token that may serve as padding; else the one that begins texts, which ends none."""
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    special = [token for token in special if token not in (tokenizer.eos_token, tokenizer.bos_token)]
    best = min(special, key=lambda token: [word not in token.lower() for word in WORDS], default=None)
    if best is not None and any(word in best.lower() for word in WORDS):
        return best
    beginning: str | None = tokenizer.bos_token
    return beginning if beginning != tokenizer.eos_token else None
