"""From text to token ids, masks, turns and tools. Nothing here needs a model.

- `template`: what the chat template renders, and where each assistant turn is in it.
- `encoder`: from rendered text to tokens and masks.
- `turns`: what stands between two turns of the policy, and the calls that it writes.
- `check`: whether a tokenizer and a template can be used.
"""
