"""How to load an export in other programs: commands for the terminal and for the model card."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alignkit.data.group import Message

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM reserves memory for; the second is its default
ASKED: Message = {"role": "user", "content": "Hello!"}
ANSWERED: Message = {"role": "assistant", "content": "Hi."}


@dataclass(frozen=True)
class Loading:
    """What a program must know to load an export.

    path: its folder or repository. folder: where it is, once it has been downloaded. base: what readers call the base,
    or its folder; hub: whether it is an id on the hub. rank: of an adapter. gguf: the file's name. template: whether
    the folder has a chat template. quantization: of the base that an adapter was trained on, as arguments of
    `BitsAndBytesConfig`. dtype: the option that vLLM needs; empty if its own choice is right. chat_template_kwargs: of
    the run. scored: `ASKED` and `ANSWERED` as a reward model of vLLM must get them; empty if messages will do.
    """

    path: str
    folder: str
    name: str
    form: str
    is_reward: bool
    base: str = ""
    hub: bool = False
    rank: int = 0
    gguf: str = ""
    template: bool = True
    trust_remote_code: bool = False
    quantization: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = ""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    scored: str = ""

    @property
    def base_place(self) -> str:
        """The base as a program can load it."""
        return self.base if self.hub or self.base.startswith("/") else f"FOLDER OF {self.base}"

    @property
    def download(self) -> str:
        """The command, with its line break, that puts a repository into `folder`; empty if it is there."""
        command = shlex.join(["hf", "download", self.path, "--local-dir", self.folder])
        return "" if self.path == self.folder else f"{command}\n"


def vllm(loading: Loading) -> str:
    """The command that serves it with vLLM; for what vLLM cannot load, a sentence that begins with `#`."""
    if loading.form == "gguf":
        return "# export with --merge for vLLM"
    if loading.form != "adapter":
        pooling = ["--runner", "pooling"] if loading.is_reward else []
        return shlex.join(["vllm", "serve", loading.path, *pooling, *_vllm_options(loading)]) + _vllm_score(loading)
    if loading.is_reward:
        return "# vLLM loads no reward model from an adapter (modules_to_save): export it with --merge"
    if loading.quantization:
        return "# vLLM does not load bases of bitsandbytes, as the adapter needs it: export it with --merge"
    words = ["vllm", "serve", loading.base_place, "--enable-lora", "--lora-modules", f"{loading.name}={loading.folder}"]
    if loading.rank > RANKS[1]:
        words += ["--max-lora-rank", str(next((rank for rank in RANKS if rank >= loading.rank), loading.rank))]
    # vLLM would take both from the base.
    words += ["--chat-template", f"{loading.folder}/chat_template.jinja"] if loading.template else []
    return loading.download + shlex.join([*words, "--generation-config", loading.folder, *_vllm_options(loading)])


def _vllm_options(loading: Loading) -> list[str]:
    """Options without which vLLM would compute, or write prompts, in another way than the run."""
    words = ["--dtype", loading.dtype] if loading.dtype else []
    if loading.chat_template_kwargs and not loading.is_reward:
        words += ["--default-chat-template-kwargs", json.dumps(loading.chat_template_kwargs)]
    return words + (["--trust-remote-code"] if loading.trust_remote_code else [])


def _vllm_score(loading: Loading) -> str:
    """Lines that ask the server of a reward model for a score; vLLM has no default for the template's arguments."""
    if not loading.is_reward:
        return ""
    body: dict[str, Any] = {"messages": [ASKED, ANSWERED]}
    if loading.chat_template_kwargs:
        body["chat_template_kwargs"] = loading.chat_template_kwargs
    note = "# the score is data[0].probs[0] of the reply"
    if loading.scored:
        body = {"input": loading.scored, "add_special_tokens": False}
        note += "; send the rendered text without the padding at its end,\n# where vLLM would read the score"
    kind = ["-H", "Content-Type: application/json"]
    ask = shlex.join(["curl", "http://localhost:8000/classify", *kind, "-d", json.dumps(body)])
    return f"\n\n{note}:\n{ask}"


def llama_cpp(loading: Loading) -> str:
    """The command that starts a conversation in llama.cpp."""
    given = loading.chat_template_kwargs
    words = ["llama-cli", "-m", f"{loading.folder}/{loading.gguf}", "--jinja", "-cnv"]
    return loading.download + shlex.join([*words, *(["--chat-template-kwargs", json.dumps(given)] if given else [])])


def python(loading: Loading) -> str:
    """Lines of Python that load it with transformers and peft."""
    trust = ", trust_remote_code=True" if loading.trust_remote_code else ""
    path = f'"{loading.path}"'
    if loading.form == "gguf":
        return (
            "from transformers import AutoModelForCausalLM\n\n"
            f'model = AutoModelForCausalLM.from_pretrained({path}, gguf_file="{loading.gguf}"{trust})'
        )
    on_base = loading.form == "adapter" and not (loading.hub and not loading.quantization)
    if loading.is_reward:
        return _loaded(loading, path, trust, on_base) + (
            f"\nmessages = {json.dumps([ASKED, ANSWERED])}\n"
            'inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)\n'
            "print(model(**inputs).logits[0, 0])  # the score"
        )
    if on_base:
        return _loaded(loading, path, trust, on_base)
    return (
        "from transformers import pipeline\n\n"
        f'generate = pipeline("text-generation", model={path}{trust})\n'
        'print(generate([{"role": "user", "content": "Hello!"}], max_new_tokens=100)[0]["generated_text"][-1])'
    )


def _loaded(loading: Loading, path: str, trust: str, on_base: bool) -> str:
    """Lines that load model and tokenizer. on_base: peft cannot load the base of the adapter by itself."""
    kind = "AutoModelForSequenceClassification" if loading.is_reward else "AutoModelForCausalLM"
    labels = ", num_labels=1" if loading.is_reward and loading.form == "adapter" else ""
    if on_base:
        setup, option = _quantized(loading)
        load = f"from peft import PeftModel\nfrom transformers import {kind}, AutoTokenizer\n\n{setup}"
        load += f'base = {kind}.from_pretrained("{loading.base_place}"{labels}{option}{trust})\n'
        load += f"model = PeftModel.from_pretrained(base, {path})\n"
    elif loading.form == "adapter":
        load = f"from peft import AutoPeft{kind[4:]}\nfrom transformers import AutoTokenizer\n\n"
        load += f"model = AutoPeft{kind[4:]}.from_pretrained({path}{labels}{trust})\n"
    else:
        load = f"from transformers import {kind}, AutoTokenizer\n\nmodel = {kind}.from_pretrained({path}{trust})\n"
    return f"{load}tokenizer = AutoTokenizer.from_pretrained({path})"


def _quantized(loading: Loading) -> tuple[str, str]:
    """Lines that say how the base is quantized, and the argument that uses them; empty for one that is not.

    An adapter corrects the rounding of its own base: on unquantized weights it computes something else.
    """
    if not loading.quantization:
        return "", ""
    texts = {key: f'"{value}"' if isinstance(value, str) else value for key, value in loading.quantization.items()}
    bits = ", ".join(f"{key}={value}" for key, value in texts.items())
    bits += ', llm_int8_skip_modules=["score"]' if loading.is_reward else ""
    setup = f"from transformers import BitsAndBytesConfig\n\nquantization = BitsAndBytesConfig({bits})\n"
    return setup, ", quantization_config=quantization"


def commands(loading: Loading) -> str:
    """What the terminal shows: how to serve it, and how to load it in Python."""
    serve = llama_cpp(loading) if loading.form == "gguf" else vllm(loading)
    more = f"\n{llama_cpp(loading)}" if loading.form == "whole+gguf" else ""
    return f"\nto serve it:\n{_indented(serve + more)}\n\nin Python:\n{_indented(python(loading))}"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.split("\n"))
