"""Chat templates by name: for base models without one, and for models whose own puts words into every prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignkit.errors import RunFailed

PLAIN = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ m['content'] + '\n\n' }}"
    "{% elif m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\n\n' }}"
    "{% else %}{{ 'Assistant: ' + m['content'] + eos_token + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
# Without a system message that nobody wrote: SmolLM2's own template, and others', begin every prompt with one.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {"plain": PLAIN, "chatml": CHATML}
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


def write_template(tokenizer: Any, name: str | None) -> None:
    """Give a tokenizer the chat template that `model.chat_template` names; None: its own, else the plain one.

    Raises RunFailed where the tokenizer lacks the template's tokens, or nothing has the name.
    """
    if name in TEMPLATES:
        missing = [token for token in CHATML_TOKENS if token not in tokenizer.get_vocab()] if name == "chatml" else []
        if missing:
            raise RunFailed(f"model.chat_template: chatml needs tokens that this tokenizer lacks: {', '.join(missing)}")
        tokenizer.chat_template = TEMPLATES[name]
    elif name is not None:
        if not Path(name).is_file():
            known = " nor ".join(f"'{known}'" for known in TEMPLATES)
            raise RunFailed(f"model.chat_template: '{name}' is neither {known} nor a Jinja file")
        tokenizer.chat_template = Path(name).read_text(encoding="utf-8")
    elif not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN
