"""Chat templates by name, for base models that have none, and for models whose own adds text to
every prompt.

A marker written as one word, such as `<|im_end|>`, must be a token of the tokenizer. Where a
template joins it from parts, as `zephyr` does, it may be ordinary text.
"""

from __future__ import annotations

# Adds no default system message, as the templates of SmolLM2 and other models do.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n"
    "' + m['content'] + '<|im_end|>\n"
    "' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n"
    "' }}{% endif %}"
)
# ChatML with tools, as Hermes 2 Pro writes them: the widespread format of calls. Every turn is only
# appended.
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
# The system message becomes a part of the first user message, and every user message starts a
# sequence of its own.
LLAMA2 = (
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else none %}"
    "{% set turns = messages[1:] if system is not none else messages %}"
    "{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% endfor %}{% for m in turns %}"
    "{% if loop.first and system is not none %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ (bos_token or '') + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token or '' }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n"
    "\n"
    "' }}{{ m['content'] + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|start_header_id|>assistant<|end_header_id|>\n"
    "\n"
    "' }}{% endif %}"
)
# The system message precedes the first user message in its turn.
GEMMA = (
    "{{ bos_token or '' }}{% set own = messages[0]['role'] == 'system' %}{% for m in "
    "(messages[1:] if own else messages) %}{{ '<start_of_turn>' + ('model' if m['role'] == "
    "'assistant' else 'user') + '\n"
    "' }}{{ (messages[0]['content'] + '\n"
    "\n"
    "' if own and loop.first else '') + m['content'] + '<end_of_turn>\n"
    "' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n"
    "' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n"
    "' + m['content'] + eos_token + '\n"
    "' }}{% endfor %}{% if add_generation_prompt %}{{ '<|' + 'assistant' + '|>\n"
    "' }}{% endif %}"
)
