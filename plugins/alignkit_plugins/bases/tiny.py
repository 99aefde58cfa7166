"""A random two-layer Llama of 0.1 million weights with a byte-level tokenizer, made on the first
use.

For tests, smoke runs and writing plugins: it runs transformers' own code, needs no download and
always has the same weights. It knows no language, and writes noise until it is trained.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.io.atomic import made_once

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"  # ids 0, 1, 2
MERGES = 100
CONTEXT_LENGTH = 1024  # tokens
SEED = 0

# A deviation of 0.1, not the usual 0.02: at 64 dimensions 0.02 leaves the layers' contributions
# near zero, and the tied head only repeats the token it reads.
CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT_LENGTH,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
}

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

SENTENCES = (
    "user\nWhat is the capital of France?\nassistant\nThe capital of France is Paris.\n",
    "user\n"
    "Please tell me how to bake a simple loaf of bread.\n"
    "assistant\n"
    "Mix the flour, water, salt and yeast.\n",
    "system\n"
    "You are a helpful, honest and harmless assistant.\n"
    "user\n"
    "Can you help me with this question?\n",
    "I would like to know which of these two answers is better, and why the other one is worse.\n",
    "They said that there was nothing to worry about, but she thought that something was wrong "
    "with the car.\n",
    "The weather in the morning was cold and there was rain, so we stayed at home and read the "
    "old books.\n",
    "I am sorry, but I cannot help you to do that because it could hurt someone.\n",
    "When he had finished all of his work, he went out for a long walk along the river and then "
    "had dinner.\n",
)


def source(cache: Path) -> Path:
    """A transformers folder under `cache`, named by a digest of its ingredients; made on the first
    call.
    """
    everything = [PAD, START, END, MERGES, CONTEXT_LENGTH, SEED, CONFIG, CHAT_TEMPLATE, SENTENCES]
    digest = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:12]
    return made_once(cache / f"tiny-{digest}", _save)


def _save(folder: Path) -> None:
    import transformers

    tokenizer = _tokenizer()
    transformers.utils.logging.disable_progress_bar()  # for 100 kB
    _model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    """All 256 bytes, so that any text survives a round trip, and some merges, so that tokens differ
    in length.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, START, END]
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + 256 + MERGES,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT_LENGTH,
    )


def _model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **CONFIG,
    )
    # The constructor draws, too; keep the caller's random state
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config).to(torch.float32)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.ndim > 1:  # norms stay at one
                weight.normal_(0.0, config.initializer_range, generator=generator)
    return model
