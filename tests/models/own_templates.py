"""Chat templates of families that TRL does not ship, written to behave like the real ones."""

from __future__ import annotations

from alignkit_plugins.bases.templates import CHATML

ALTERNATE = (
    "{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% endfor %}"
)
ONLY_TWO_ROLES = (
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif "
    "%}{% endfor %}"
)
MISTRAL_1 = (
    "{{ bos_token }}{% set turns = messages %}" + ALTERNATE + "{% for m in turns %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token + ' ' }}" + ONLY_TWO_ROLES
)
MISTRAL_3 = (
    "{{ bos_token }}{% set turns = messages %}" + ALTERNATE + "{% for m in turns %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}" + ONLY_TWO_ROLES
)
# The system message precedes the last user message, so an earlier turn is written differently in a
# longer conversation.
MISTRAL_NEMO = (
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else none %}"
    "{% set turns = messages[1:] if system is not none else messages %}"
    + ALTERNATE
    + (
        "{{ bos_token }}{% set last = (turns | selectattr('role', 'equalto', 'user') | list)[-1] "
        "%}{% for m in turns %}{% if m['role'] == 'user' %}{{ '[INST]' + (system + '\n"
        "\n"
        "' if system is not none and m == last else '') + m['content'] + '[/INST]' }}{% else "
        "%}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
)
VICUNA = (
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else 'A chat with "
    "an assistant.' %}{% set turns = messages[1:] if messages[0]['role'] == 'system' else "
    "messages %}{{ bos_token + system + ' ' }}{% for m in turns %}{% if m['role'] == 'user' %}{{ "
    "'USER: ' + m['content'] + ' ' }}{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% "
    "endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
SMOLLM2 = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n"
    "' }}{% endif %}" + CHATML
)
# Only the last answer ends with the tokenizer's EOS token.
OLMO3 = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You have no functions.<|im_end|>\n"
    "' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n"
    "' + m['content'] }}{% if m['role'] == 'assistant' and loop.last %}{{ eos_token }}{% else "
    "%}{{ '<|im_end|>\n"
    "' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n"
    "' }}{% endif %}"
)
PHI4_MINI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + "
    "'<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
# The answer's reasoning is dropped, but the generation prompt starts one.
QWQ = (
    "{% for m in messages %}{% set content = m['content'] %}{% if m['role'] == 'assistant' %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
# The last answer keeps its reasoning, empty or not; earlier ones lose it.
QWEN3_THINKING = (
    "{% set last = namespace(user=-1) %}{% for m in messages %}{% if m['role'] == 'user' %}{% "
    "set last.user = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}{% set content "
    "= m['content'] %}{% set thought = '' %}{% if m['role'] == 'assistant' %}{% if "
    "m['reasoning_content'] is string %}{% set thought = m['reasoning_content'] %}{% elif "
    "'</think>' in content %}{% set thought = content.split('</think>')[0].rstrip('\n"
    "').split('<think>')[-1].lstrip('\n"
    "') %}{% set content = content.split('</think>')[-1].lstrip('\n"
    "') %}{% endif %}{% if loop.index0 > last.user %}{% set content = '<think>\n"
    "' + thought.strip('\n"
    "') + '\n"
    "</think>\n"
    "\n"
    "' + content.lstrip('\n"
    "') %}{% endif %}{% endif %}{{ '<|im_start|>' + m['role'] + '\n"
    "' + content + '<|im_end|>\n"
    "' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n"
    "<think>\n"
    "' }}{% endif %}"
)
HUMAN = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '\n"
    "\n"
    "Assistant: ' + m['content'] + eos_token }}{% elif m['role'] == 'user' %}{{ '\n"
    "\n"
    "Human: ' + m['content'] }}{% else %}{{ m['content'] }}{% endif %}{% endfor %}{% if "
    "add_generation_prompt %}{{ '\n"
    "\n"
    "Assistant:' }}{% endif %}"
)
# The two hard cases for base models: a prompt that ends in a space, and no end of turn at all.
HUMAN_SPACE = HUMAN.replace("'\n\nAssistant:' }}", "'\n\nAssistant: ' }}")
NO_END = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
