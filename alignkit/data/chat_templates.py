"""Named chat templates: for base models without one, and for models whose own template adds text to every prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Const, Mul, Node, Pow
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from alignkit.errors import RunFailed
from alignkit.io.lookup import is_file

# The white space before an answer belongs to it: words and the space before them are one token.
PLAIN = (
    "{% for m in messages %}{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{% if m['role'] == 'system' %}{{ m['content'] }}{% elif m['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + m['content'] + eos_token }}"
    "{% else %}{{ ('Tool: ' if m['role'] == 'tool' else 'User: ') + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
# Adds no default system message, as the templates of SmolLM2 and other models do.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# ChatML with tools, as Hermes 2 Pro writes them: the widespread format of calls. Every turn is only appended.
HERMES = (
    "{% set own = messages[0]['role'] == 'system' %}"
    "{% if own or tools %}{{ '<|im_start|>system\n' + (messages[0]['content'] if own else '') }}"
    "{% if tools %}{{ '\n\n' if own else '' }}{{ 'You may call these tools:\n<tools>' }}"
    "{% for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}{{ '\n</tools>\nWrite a call as JSON in tags:\n"
    '<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>\' }}{% endif %}{{ \'<|im_end|>\n\' }}{% endif %}'
    "{% for m in (messages[1:] if own else messages) %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'tool' %}{{ '<tool_response>\n' + m['content'] + '\n</tool_response>' }}"
    "{% else %}{{ m['content'] }}{% for call in m['tool_calls'] or [] %}"
    "{{ '\n' if m['content'] or not loop.first else '' }}{{ '<tool_call>\n{\"name\": ' }}"
    "{{ (call['function']['name'] | tojson) + ', \"arguments\": ' + (call['function']['arguments'] | tojson) }}"
    "{{ '}\n</tool_call>' }}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {"plain": PLAIN, "chatml": CHATML, "hermes": HERMES}
LARGEST = 10_000  # number by which a template may multiply
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


def set_chat_template(tokenizer: Any, name: str | None) -> None:
    """Set a tokenizer's chat template to the one that `model.chat_template` names: a key of TEMPLATES or a Jinja file.

    None keeps the tokenizer's own template, or sets the plain one if it has none. Raises `RunFailed` for an unknown
    name, if the tokenizer lacks tokens of the template, or if the template may take forever.
    """
    if name in TEMPLATES:
        needed = () if name == "plain" else CHATML_TOKENS
        missing = [token for token in needed if token not in tokenizer.get_vocab()]
        if missing:
            raise RunFailed(
                f"model.chat_template: this tokenizer lacks tokens that {name} needs: {', '.join(missing)}; "
                "use another template"
            )
        tokenizer.chat_template = _with_bos(tokenizer, TEMPLATES[name])
    elif name is not None:
        if not is_file(name):
            known = ", ".join(TEMPLATES)
            raise RunFailed(f"model.chat_template: there is no template or file '{name}'; use {known} or a Jinja file")
        tokenizer.chat_template = read_template(Path(name))
    elif not tokenizer.chat_template:
        tokenizer.chat_template = _with_bos(tokenizer, PLAIN)
    own = tokenizer.chat_template
    for code in own.values() if isinstance(own, dict) else [own]:
        if reason := endless(str(code)):
            raise RunFailed(f"the base model's chat template, line {reason}; set model.chat_template")


def is_plain(tokenizer: Any) -> bool:
    """Whether a tokenizer's chat template is `plain`."""
    return isinstance(tokenizer.chat_template, str) and tokenizer.chat_template.endswith(PLAIN)


def read_template(path: Path) -> str:
    """The Jinja code in a file. Raises `RunFailed` if it is not text, or not Jinja as transformers reads it."""
    try:
        code = path.read_text(encoding="utf-8")
        if reason := endless(code):
            raise RunFailed(f"model.chat_template: {path}:{reason}")
        _environment().from_string(code)
    except UnicodeDecodeError as error:
        raise RunFailed(
            f"model.chat_template: {path} is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from error
    except TemplateSyntaxError as error:
        raise RunFailed(f"model.chat_template: {path}:{error.lineno}: {error.message}") from error
    except (SyntaxError, RecursionError) as error:  # of the Python code that Jinja writes, or of too many nested blocks
        raise RunFailed(f"model.chat_template: {path} is not a Jinja template: {error}") from error
    return code


def endless(code: str) -> str:
    """What in a template may take forever, as `LINE: what`; empty if nothing does, or if the code is not Jinja.

    One operation on huge numbers cannot be interrupted, not even by the limit on a rendering's time, and Jinja computes
    constants when it compiles. No template needs such numbers.
    """
    try:
        tree = _environment().parse(code)
    except (TemplateSyntaxError, RecursionError):
        return ""
    if power := tree.find(Pow):
        return f"{power.lineno}: a chat template must not compute powers"
    for product in tree.find_all(Mul):
        if any(isinstance(part, Const) and _is_large(part.value) for part in (product.left, product.right)):
            return f"{product.lineno}: a chat template must not multiply by more than {LARGEST}"
    return ""


def _is_large(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) > LARGEST


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers reads templates."""
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])


class _Generation(Extension):
    """`{% generation %}`, with which transformers finds the assistant's words."""

    tags = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_never_called"), [], [], body).set_lineno(line)


def _with_bos(tokenizer: Any, template: str) -> str:
    """The template, beginning with the token that the tokenizer puts before every text, if it does."""
    ids = tokenizer("")["input_ids"]
    starts = bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    return "{{ bos_token }}" + template if starts else template
