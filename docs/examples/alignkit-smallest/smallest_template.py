"""A template: turns after Q: and A:, with the end of sequence after an answer."""

from alignkit import Add, hookimpl

LETTERS = (
    "{% for message in messages %}"
    "{{ 'A: ' if message['role'] == 'assistant' else 'Q: ' }}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}"
)


@hookimpl
def register(add: Add) -> None:
    add("template", "letters", LETTERS, "turns after Q: and A:")
