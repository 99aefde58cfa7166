"""Chat templates by name or in files: for base models without one, and for models whose own does
not fit.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateSyntaxError
from jinja2.ext import loopcontrols

from alignkit.errors import RunFailed, reason_of
from alignkit.host.plugins import plugins

# The white space before an answer belongs to it: words and the space before them are one token.
PLAIN = (
    "{% for m in messages %}{% if not loop.first %}{{ '\n"
    "\n"
    "' }}{% endif %}{% if m['role'] == 'system' %}{{ m['content'] }}{% elif m['role'] == "
    "'assistant' %}{{ 'Assistant: ' + m['content'] + eos_token }}{% else %}{{ ('Tool: ' if "
    "m['role'] == 'tool' else 'User: ') + m['content'] }}{% endif %}{% endfor %}{% if "
    "add_generation_prompt %}{{ '\n"
    "\n"
    "Assistant:' }}{% endif %}"
)
# A tag of transformers around the assistant's words
GENERATION = re.compile(r"{%[-+]?\s*(end)?generation\s*[-+]?%}")
MARKER = re.compile(r"<\|\w+\|>|<\w+_of_\w+>")  # texts that are always one token


def named_template(name: str) -> str | None:
    """The Jinja code of a template; None if no plugin has this name. Raises PluginError if several
    have it.
    """
    registry = plugins()
    code: str | None = (
        registry.get("template", name).implementation if registry.has("template", name) else None
    )
    return code


def set_chat_template(tokenizer: Any, name: str | None) -> None:
    """Set a tokenizer's chat template to the one that `model.chat_template` names: a plugin's, or a
    Jinja file.

    None keeps the tokenizer's own template, or sets the plain one if it has none. Raises
    `RunFailed` for an unknown name, or if the tokenizer lacks tokens of the template.
    """
    if name is None:
        if not tokenizer.chat_template:
            tokenizer.chat_template = _with_bos(tokenizer, PLAIN)
        return
    code = named_template(name)
    if code is None:
        tokenizer.chat_template = read_template(Path(name))
        return
    missing = [
        token for token in dict.fromkeys(MARKER.findall(code)) if token not in tokenizer.get_vocab()
    ]
    if missing:
        raise RunFailed(
            f"model.chat_template: this tokenizer lacks tokens that {name} needs: "
            f"{', '.join(missing)}; use another template"
        )
    tokenizer.chat_template = _with_bos(tokenizer, code)


def is_plain(tokenizer: Any) -> bool:
    """Whether a tokenizer's chat template is `plain`."""
    return isinstance(tokenizer.chat_template, str) and tokenizer.chat_template.endswith(PLAIN)


def read_template(path: Path) -> str:
    """The Jinja code in a file. Raises `RunFailed` if it is not text, or not Jinja as transformers
    reads it.
    """
    try:
        code = path.read_text(encoding="utf-8")
        Environment(extensions=[loopcontrols]).from_string(GENERATION.sub("", code))
    except TemplateSyntaxError as error:
        raise RunFailed(f"model.chat_template: {path}:{error.lineno}: {error.message}") from error
    # The latter two are of the Python code that Jinja writes, or of too many nested blocks.
    except (OSError, UnicodeDecodeError, SyntaxError, RecursionError) as error:
        raise RunFailed(
            f"model.chat_template: {path} is not a Jinja template: {reason_of(error)}"
        ) from error
    return code


def _with_bos(tokenizer: Any, template: str) -> str:
    """The template, beginning with the token that the tokenizer puts before every text, if it does
    not write it.
    """
    ids = tokenizer("")["input_ids"]
    if (
        "bos_token" in template
        or tokenizer.bos_token_id is None
        or tokenizer.bos_token_id not in ids[:1]
    ):
        return template
    return "{{ bos_token }}" + template
