"""Checks a chat template before any weights are loaded: on an example, prompt and answer must be its own rendering."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.errors import DataError, RunFailed
from alignkit.models.chat import CLOSE, OPEN, Chat, common_length
from alignkit.models.encoding import Encoder

SHOWN = 12  # tokens in an error
MEMORY = 2**30  # bytes that a template may add to the process while the example is rendered
# Arguments by which templates of several families turn reasoning off.
SWITCHES: tuple[dict[str, Any], ...] = ({"enable_thinking": False}, {"thinking": False})


def check_chat(encoder: Encoder, base: str) -> list[str]:
    """Return facts about the template that the user should know. Raises RunFailed if it cannot be followed."""
    chat = encoder.chat
    try:
        with _memory_limit():
            shape = chat.shape
    except DataError as error:
        raise RunFailed(f"{base}: {error}\nhelp: set model.chat_template to another template") from error
    if encoder.tokenizer.eos_token_id is None and not shape.close:
        raise RunFailed(
            f"{base}: the tokenizer has no EOS token and the chat template writes no end of turn, so responses would "
            "never end\nhelp: set model.chat_template to a template that ends the assistant's turn with a control token"
        )
    if not shape.follows and chat.options.reasoning == "refuse":
        raise RunFailed(_unlike(encoder, base))
    _check_boundary(encoder, base)
    return list(_facts(encoder))


def _facts(encoder: Encoder) -> Iterator[str]:
    chat = encoder.chat
    if not chat.shape.close:
        end = encoder.tokenizer.convert_ids_to_tokens(encoder.end_of_turn[-1])
        yield f"the chat template writes no end of turn, so responses end with {end}"
    if chat.template.uses_date and chat.options.date:
        yield f"the chat template writes a date: {chat.options.date}"
    if chat.options.reasoning != "refuse" and not chat.reasons:
        yield f"the chat template knows no reasoning; model.reasoning: {chat.options.reasoning} may change nothing"


def _unlike(encoder: Encoder, base: str) -> str:
    """The error for a template whose finished turn does not begin with its own generation prompt."""
    shape = encoder.chat.shape
    common = common_length(shape.prompt, shape.whole)
    rows = [
        f"  {name:<16}{_tokens(encoder, text, common)}"
        for name, text in (("prompt:", shape.prompt), ("finished turn:", shape.whole))
    ]
    fixes = [
        f"set model.chat_template_kwargs: {{{next(iter(switch))}: false}} (no reasoning)"
        for switch in SWITCHES
        if _follows_with(encoder, switch)
    ]
    if OPEN in shape.prompt[common:] or CLOSE in shape.whole[common : shape.answer]:
        fixes.append("set model.reasoning: empty (answers without reasoning) or keep (learn the reasoning)")
    fixes.append("set model.chat_template to a template without this difference")
    lines = [
        f"{base}: the chat template does not write a finished answer after its own prompt, so the tokens to learn are "
        "not the tokens that the model sees when it answers",
        *rows,
        *(f"help: {fix}" for fix in fixes[:1]),
        *(f"  or: {fix}" for fix in fixes[1:]),
    ]
    return "\n".join(lines)


def _tokens(encoder: Encoder, text: str, common: int) -> str:
    """The tokens around the first difference."""
    ids = encoder.rendered.ids(text)
    kept = len(encoder.rendered.ids(text[:common]))
    first = max(0, kept - SHOWN // 2)
    words = [repr(encoder.tokenizer.decode([token])) for token in ids[first : first + SHOWN]]
    return ("... " if first else "") + " ".join(words) + (" ..." if len(ids) > first + SHOWN else "")


def _follows_with(encoder: Encoder, switch: dict[str, Any]) -> bool:
    """Whether the finished turn would begin with its prompt with another template argument."""
    options = encoder.chat.options
    kwargs = {**options.template_kwargs, **switch}
    try:
        return Chat(encoder.tokenizer, replace(options, template_kwargs=kwargs)).shape.follows
    except DataError:
        return False


def _check_boundary(encoder: Encoder, base: str) -> None:
    """Raise RunFailed if the example's prompt and answer share a token."""
    question = [{"role": "user", "content": "What is two plus two?"}]
    answer = [{"role": "assistant", "content": "It is four."}]
    prompt = encoder.chat.prompt(question)
    whole = encoder.chat.conversation(question, answer).text
    alone, together = encoder.rendered.ids(prompt), encoder.rendered.ids(whole)
    if together[: len(alone)] == alone:
        return
    raise RunFailed(
        f"{base}: the prompt's last token changes when an answer follows it\n"
        f"  prompt:         {_tokens(encoder, prompt, len(prompt))}\n"
        f"  finished turn:  {_tokens(encoder, whole, len(prompt))}\n"
        "help: write white space at the end of the generation prompt before the answer instead"
    )


@contextmanager
def _memory_limit() -> Iterator[None]:
    """Let a template that grows without end fail with a MemoryError (Linux only)."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = used + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit if soft == resource.RLIM_INFINITY else min(soft, limit), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
