"""A model: a random Llama of one layer with a token for each byte, made on the first use."""

from __future__ import annotations

import tempfile
from pathlib import Path

from alignkit import Add, hookimpl

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"
CHAT = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def bytewise(cache: Path) -> Path:
    """A transformers folder below the cache; a hub id would do, too."""
    folder = cache / "bytewise"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            _save(Path(temporary, "made"))
            Path(temporary, "made").rename(folder)  # it is complete, or not there
    return folder


def _save(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = [PAD, START, END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        chat_template=CHAT,
        model_max_length=512,
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)


@hookimpl
def register(add: Add) -> None:
    add("model", "bytewise", bytewise, "a random layer, for tries")
