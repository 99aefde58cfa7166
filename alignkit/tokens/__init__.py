"""From text to token ids, masks, turns and tools. Nothing here needs a model.

- `chat_template`, `chat`: what the template renders, and where each assistant turn is in it.
- `text_tokens`, `template_tokens`, `encoding`: from rendered text to tokens and masks.
- `turns`, `tool_calls`: what stands between two turns of the policy, and the calls that it writes.
"""
