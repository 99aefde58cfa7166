"""Checks of a tokenizer before the weights are loaded: no two tokens share an id, and every id has an embedding.

Checks a chat template before any weights are loaded: on an example, prompt and answer must be its own rendering.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.errors import DataError, RunFailed
from alignkit.tokens.encoder import Encoder
from alignkit.tokens.template import ANSWER, CLOSE, OPEN, QUESTION, TODAY, common_length


def loaded_tokenizer(load: Callable[[], Any], source: str) -> Any:
    """Call `load`. Raises RunFailed if the tokenizer's files are missing or damaged."""
    try:
        return load()
    except Exception as error:  # of any class: tokenizers are read by several libraries
        reason = str(error).strip().split("\n")[0]
        if "trust_remote_code" in str(error):
            raise RunFailed(
                f"{source}: its tokenizer comes with its own code, which is not run\n"
                "help: set model.trust_remote_code if you trust it"
            ) from error
        raise RunFailed(
            f"{source}: its tokenizer cannot be read ({type(error).__name__}: {reason})\n"
            "help: copy the tokenizer's files (tokenizer.json, tokenizer_config.json) again"
        ) from error


def check_ids(tokenizer: Any, rows: int, source: str) -> None:
    """Raise RunFailed if two tokens share an id, or an id has no row. rows: of the model's embedding."""
    words: dict[int, str] = {}
    for word, number in sorted(tokenizer.get_vocab().items()):
        if number in words:
            raise RunFailed(
                f"{source}: two tokens have the id {number}, {words[number]!r} and {word!r}\n"
                "help: use the tokenizer that belongs to the model"
            )
        words[number] = word
    largest = max(words, default=-1)
    if largest >= rows:
        raise RunFailed(
            f"{source}: the tokenizer has the token {words[largest]!r} with the id {largest}, but the model has only "
            f"{rows} embeddings\nhelp: use the tokenizer that belongs to the model, or resize the model's embeddings"
        )


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
    for name in chat.options.template_kwargs:
        if not re.search(rf"\b{re.escape(name)}\b", chat.template.source()):
            yield f"the chat template does not use '{name}' of model.chat_template_kwargs"
    if not chat.shape.close:
        end = encoder.tokenizer.convert_ids_to_tokens(encoder.end_of_turn[-1])
        marked = {False: "a turn in the middle", True: "a call of a tool"}
        ends = "".join(f", {marked[call]} with {token}" for call, token in chat.markers.items())
        yield f"the chat template writes no end of turn, so responses end with {end}{ends}"
    if chat.template.uses_date:
        yield f"the chat template writes a date, which is always {TODAY}"
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
    lines = [
        f"{base}: the chat template does not write a finished answer after its own prompt, so the tokens to learn are "
        "not the tokens that the model sees when it answers",
        *rows,
    ]
    return "\n".join([*lines, *_help(encoder, "set model.chat_template to a template without this difference")])


def _help(encoder: Encoder, last: str) -> list[str]:
    """What the user can do: turn reasoning off, choose what to do about it, and at last `last`."""
    shape = encoder.chat.shape
    fixes: list[str] = []
    for switch in SWITCHES:
        if not fixes and _follows_with(encoder, switch):
            fixes.append(f"set model.chat_template_kwargs: {{{next(iter(switch))}: false}} (no reasoning)")
    if OPEN in shape.header or CLOSE in shape.lead:
        fixes.append("set model.reasoning: empty (answers without reasoning) or keep (learn the reasoning)")
    help, *others = [*fixes, last]
    return [f"help: {help}", *(f"  or: {other}" for other in others)]


def _tokens(encoder: Encoder, text: str, common: int) -> str:
    """The tokens around the first difference."""
    ids = encoder.rendered.ids(text)
    kept = len(encoder.rendered.ids(text[:common]))
    first = max(0, kept - SHOWN // 2)
    words = [repr(encoder.tokenizer.decode([token])) for token in ids[first : first + SHOWN]]
    return ("... " if first else "") + " ".join(words) + (" ..." if len(ids) > first + SHOWN else "")


def _follows_with(encoder: Encoder, switch: dict[str, Any]) -> bool:
    """Whether a finished answer would follow its prompt with another template argument."""
    options = encoder.chat.options
    switched = replace(options, template_kwargs={**options.template_kwargs, **switch})
    try:
        other = Encoder(encoder.tokenizer, switched)
        return other.chat.shape.follows and not _shared_token(other)
    except DataError:
        return False


def _shared_token(encoder: Encoder) -> tuple[str, str] | None:
    """The example's prompt and its whole text if a token of the text covers the prompt's end."""
    question, answer = [{"role": "user", "content": QUESTION}], {"role": "assistant", "content": ANSWER}
    opened = encoder.chat.open(question)
    prompt = opened.text
    if encoder.chat.options.reasoning == "keep" and prompt.rfind(OPEN) > prompt.rfind(CLOSE):
        answer["reasoning_content"] = "Two and two."  # an empty block may share its line break with the prompt
    whole = encoder.chat.conversation(opened, [answer]).text
    alone, together = encoder.rendered.ids(prompt), encoder.rendered.ids(whole)
    return None if together[: len(alone)] == alone else (prompt, whole)


def _check_boundary(encoder: Encoder, base: str) -> None:
    """Raise RunFailed if the example's prompt and answer share a token."""
    if (texts := _shared_token(encoder)) is None:
        return
    prompt, whole = texts
    lines = [
        f"{base}: the prompt's last token changes when an answer follows it",
        f"  prompt:         {_tokens(encoder, prompt, len(prompt))}",
        f"  finished turn:  {_tokens(encoder, whole, len(prompt))}",
    ]
    last = "in model.chat_template, write the white space at the end of the generation prompt before the answer instead"
    raise RunFailed("\n".join([*lines, *_help(encoder, last)]))


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
