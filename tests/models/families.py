"""Model families: a chat template with the tokenizers and the control tokens that it is used with.

TRL installs the templates of many families; they are read from the installed package.
`own_templates` has the others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Any

import family_tokenizers
import own_templates as own

from alignkit_plugins.models import templates

THINK = ("<think>", "</think>")
TOOL_CALL = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
CONTROL = re.compile(r"<\|[a-zA-Z_]+\|>|<｜[^｜<>]+｜>|<\|\w+>|<\w+\|>|<[a-z]+_of_[a-z]+>")
SPM = ("spm_first", "spm_legacy", "unigram")
BYTES = ("bytes", "bytes_bos", "gpt2")


@dataclass(frozen=True)
class Family:
    """What is known about a family, besides its template.

    kinds: tokenizers, of family_tokenizers.KINDS; the first is the family's own. header: what
    precedes the assistant's own text. ends: what ends its turn. special: control tokens that the
    template's text does not show; ("none",) if even those that it shows are ordinary text.
    ordinary: added tokens that are not special. strips: whether control tokens swallow the white
    space after them. after: what the template writes after the last answer if there is no end of
    turn. stops: what generation_config.json lists as ends; default: `ends`. reasoning_key: where
    the template reads reasoning. training: a template with generation marks.
    """

    name: str
    template: str
    kinds: Sequence[str]
    header: str
    ends: Sequence[str]
    bos: str | None = None
    eos: str = "<|endoftext|>"
    special: Sequence[str] = ()
    ordinary: Sequence[str] = ()
    strips: bool = False
    tools: bool = False
    thinks: bool = False
    after: str = ""
    stops: Sequence[str] = ()
    reasoning_key: str = "reasoning_content"
    training: str = ""

    @cached_property
    def control(self) -> tuple[str, ...]:
        """The control tokens: those that the template's text shows, and the others."""
        shown = [token for token in CONTROL.findall(self.template) if token not in self.ordinary]
        return (
            tuple(dict.fromkeys([*shown, *self.special, *self.ends]))
            if self.special != ("none",)
            else ()
        )

    def end_ids(self, kind: str) -> list[int]:
        found: list[int] = self.tokenizer(kind).convert_tokens_to_ids(list(self.stops or self.ends))
        return found

    def tokenizer(self, kind: str) -> Any:
        return _tokenizer(self.name, kind)


@cache
def _tokenizer(name: str, kind: str) -> Any:
    family = FAMILIES[name]
    made = family_tokenizers.tokenizer(
        kind,
        bos=family.bos,
        eos=family.eos,
        special=family.control,
        ordinary=family.ordinary,
        strips=family.control if family.strips else (),
    )
    made.chat_template = family.template
    return made


@cache
def trl_template(stem: str) -> str:
    """A template of the installed TRL; empty if it has none of this name."""
    file = resources.files("trl") / "chat_templates" / f"{stem}.jinja"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _trl(name: str, stem: str, **facts: Any) -> Family:
    text = trl_template(stem)
    marked = text if re.search(r"\{%-?\s*generation", text) else trl_template(f"{stem}_training")
    return Family(name, text, training=marked, **facts)


CHATML: dict[str, Any] = {
    "kinds": BYTES,
    "header": "<|im_start|>assistant\n",
    "ends": ("<|im_end|>",),
    "eos": "<|im_end|>",
}
QWEN: dict[str, Any] = {
    **CHATML,
    "special": ("<|endoftext|>",),
    "ordinary": (*THINK, *TOOL_CALL),
    "tools": True,
}
THINKER: dict[str, Any] = {**QWEN, "thinks": True}
LFM2: dict[str, Any] = {**CHATML, "bos": "<|startoftext|>", "ordinary": THINK, "tools": True}
LLAMA3: dict[str, Any] = {
    "kinds": ("bytes_bos", "bytes"),
    "header": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "ends": ("<|eot_id|>",),
    "bos": "<|begin_of_text|>",
    "eos": "<|eot_id|>",
}
GEMMA: dict[str, Any] = {
    "kinds": ("spm_bare", "bytes"),
    "header": "<start_of_turn>model\n",
    "ends": ("<end_of_turn>",),
    "bos": "<bos>",
    "eos": "<eos>",
}
GEMMA4: dict[str, Any] = {
    **GEMMA,
    "header": "<|turn>model\n",
    "ends": ("<turn|>", "<|tool_response>"),
    "tools": True,
}
COHERE: dict[str, Any] = {
    "kinds": BYTES,
    "header": "<|CHATBOT_TOKEN|>",
    "ends": ("<|END_OF_TURN_TOKEN|>",),
    "bos": "<BOS_TOKEN>",
    "eos": "<|END_OF_TURN_TOKEN|>",
}
DEEPSEEK: dict[str, Any] = {
    "kinds": BYTES,
    "header": "<｜Assistant｜>",
    "ends": ("<｜end▁of▁sentence｜>",),
    "bos": "<｜begin▁of▁sentence｜>",
    "eos": "<｜end▁of▁sentence｜>",
    "ordinary": THINK,
    "thinks": True,
}
PHI3: dict[str, Any] = {
    "strips": True,
    "kinds": ("spm_legacy", "spm_first", "bytes"),
    "header": "<|assistant|>\n",
    "ends": ("<|end|>",),
    "bos": "<s>",
    "special": ("<|system|>", "<|user|>"),
}
LLAMA2: dict[str, Any] = {
    "kinds": ("spm_legacy", "spm_first", "unigram"),
    "header": "[/INST]",
    "ends": ("</s>",),
    "bos": "<s>",
    "eos": "</s>",
    "special": ("none",),  # the rest of the template is ordinary text
}
GPT_OSS: dict[str, Any] = {
    "kinds": BYTES,
    "header": "<|start|>assistant",
    "ends": ("<|return|>", "<|end|>", "<|call|>"),
    "stops": ("<|return|>", "<|call|>"),
    "eos": "<|return|>",
    "tools": True,
    "reasoning_key": "thinking",
}
MUSE: dict[str, Any] = {
    **{**GPT_OSS, "ends": ("<|eot|>",), "stops": (), "eos": "<|eot|>", "special": ("<|eom|>",)},
    "reasoning_key": "reasoning_content",
}
IMAGES: dict[str, Any] = {
    "kinds": ("bytes",),
    "header": "Assistant:",
    "ends": ("<end_of_utterance>",),
    "eos": "<end_of_utterance>",
}

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _trl("Llama 3", "llama3", **LLAMA3),
        Family("`chat_template: llama3`", templates.LLAMA3, **LLAMA3),
        _trl("Llama 3.1, 3.3", "llama3_1", **LLAMA3, tools=True),
        _trl("Llama 3.2", "llama3_2", **LLAMA3, tools=True),
        _trl("Qwen 2.5", "qwen2_5", **QWEN),
        _trl("Qwen 2.5 VL", "qwen2_5_vl", **CHATML),
        _trl("Qwen 3", "qwen3", **THINKER),
        _trl("Qwen 3 Instruct 2507", "qwen3_instruct_2507", **QWEN),
        _trl("Qwen 3 VL", "qwen3_vl", **QWEN),
        _trl("Qwen 3.5, thinking", "qwen3_5_think", **THINKER),
        _trl("Qwen 3.5, not thinking", "qwen3_5_nothink", **THINKER),
        _trl("Qwen 3.6", "qwen3_6", **THINKER),
        _trl("Qwen 3.8", "qwen3_8", **THINKER),
        _trl("Gemma 1, 2", "gemma", **GEMMA),
        _trl("Gemma 3", "gemma3", **GEMMA),
        Family("`chat_template: gemma`", templates.GEMMA, **GEMMA),
        _trl("Gemma 4", "gemma4", **GEMMA4),
        _trl("Gemma 4 (first)", "gemma4_v2", **GEMMA4),
        _trl("Gemma 4 (second)", "gemma4_v3", **GEMMA4),
        _trl("Gemma 4 (fourth)", "gemma4_v4", **GEMMA4),
        _trl("Gemma 4 (newest)", "gemma4_v5", **GEMMA4),
        _trl("Diffusion Gemma", "diffusion_gemma", **GEMMA4),
        _trl("Phi 3", "phi3", **PHI3),
        _trl("Phi 3.5", "phi3_5", **PHI3),
        _trl("DeepSeek R1 distills", "deepseek_r1_distill", **DEEPSEEK),
        _trl("DeepSeek V3", "deepseekv3", **DEEPSEEK),
        _trl("Nemotron 3 Nano", "nemotron_3_nano", **THINKER),
        _trl("Nemotron 3 Super", "nemotron_3_super", **THINKER),
        _trl("Nemotron 3 Ultra", "nemotron_3_ultra", **THINKER),
        _trl("Nemotron 3.5 Lightning", "nemotron_3_5_lightning", **THINKER),
        _trl("Cohere Aya Expanse", "cohere", **COHERE),
        _trl("Cohere Tiny Aya", "cohere2", **{**COHERE, "header": (
            "<|CHATBOT_TOKEN|><|START_RESPONSE|>"
        )}),
        _trl(
            "GLM 4.5 to 4.6", "glm4moe", kinds=BYTES, header="<|assistant|>", ends=(),
            special=("[gMASK]", "<sop>", "<|system|>"), ordinary=(*THINK, *TOOL_CALL), tools=True, thinks=True,
        ),
        _trl("GPT-OSS", "gptoss", **GPT_OSS),
        _trl("LFM 2", "lfm2", **{**LFM2, "tools": False}),
        _trl("LFM 2 (newer)", "lfm2_v2", **LFM2),
        _trl("LFM 2.5", "lfm2_2_5", **LFM2, reasoning_key="thinking"),
        _trl("LFM 2.5 (newer)", "lfm2_2_5_v2", **LFM2, reasoning_key="thinking"),
        _trl("LFM 2.5 VL", "lfm2_2_5_vl", **LFM2, reasoning_key="thinking"),
        _trl("Muse Glimmer", "muse_glimmer", **MUSE),
        _trl("Idefics 3", "idefics3", **IMAGES),
        _trl("SmolVLM", "smolvlm", **IMAGES),
        _trl("LLaVA NeXT", "llava_next", **{**LLAMA2, "kinds": ("spm_legacy",)}),
        Family("Llama 2", templates.LLAMA2, **LLAMA2),
        Family("Mistral 7B v0.1, v0.2", own.MISTRAL_1, **LLAMA2),
        Family("Mistral 7B v0.3", own.MISTRAL_3, **{**LLAMA2, "special": ("[INST]", "[/INST]")}),
        Family(
            "Mistral Nemo", own.MISTRAL_NEMO, **{**LLAMA2, "special": ("[INST]", "[/INST]"), "kinds": BYTES}
        ),
        Family("Zephyr, TinyLlama", templates.ZEPHYR, **{**LLAMA2, "header": "<|assistant|>\n"}),
        Family("Vicuna", own.VICUNA, **{**LLAMA2, "header": "ASSISTANT:"}),
        Family("Yi, ChatML on SentencePiece", templates.CHATML, **{**CHATML, "kinds": SPM}),
        Family("SmolLM2, ChatML", own.SMOLLM2, **{**CHATML, "kinds": ("gpt2", "bytes")}),
        Family("OLMo 3", own.OLMO3, **{**CHATML, "eos": "<|endoftext|>", "ends": ("<|im_end|>", "<|endoftext|>")}),
        Family("Phi 4", own.PHI4, **{**CHATML, "header": "<|im_start|>assistant<|im_sep|>"}),
        Family(
            "Phi 4 mini", own.PHI4_MINI, kinds=BYTES, header="<|assistant|>", ends=("<|end|>",),
            special=("<|system|>", "<|user|>"),
        ),
        Family("QwQ", own.QWQ, **{**THINKER, "tools": False}),
        Family("Qwen 3 Thinking 2507", own.QWEN3_THINKING, **{**THINKER, "tools": False}),
        Family(
            "Human/Assistant", own.HUMAN, kinds=("unigram", "spm_legacy", "bytes"), header="\n\nAssistant:",
            ends=("</s>",), bos="<s>", eos="</s>",
        ),
        Family(
            "Human/Assistant, prompt ends in a space", own.HUMAN_SPACE, kinds=("unigram", "spm_legacy", "bytes"),
            header="\n\nAssistant: ", ends=("</s>",), bos="<s>", eos="</s>",
        ),
        Family(
            "role: text, no end of turn", own.NO_END, kinds=("bytes", "spm_legacy"), header="assistant:", ends=(),
            after="\n",
        ),
    )
}  # fmt: skip


# --- conversations


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


QUESTION, ANSWER = user("What is two plus two?"), assistant("It is four, of course.")
MORE, LATER = user("And 3 + 3?"), assistant("That makes 6.")
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {
    "id": "call1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Oslo"}},
}
TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "A city."}},
            },
        },
    },
)
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "call1", "content": "Rain."}
TYPED = "a {} b"  # filled with a control token

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "single": [QUESTION, ANSWER],
    "two turns": [QUESTION, ANSWER, MORE, LATER],
    "three turns": [QUESTION, ANSWER, MORE, LATER, user("Thanks."), assistant(
        "You are welcome!\n"
        "\n"
        "Bye."
    )],
    "the question holds the answer": [user("Is it yes?"), assistant("yes"), user("yes or no?"), assistant("yes")],
    "system": [SYSTEM, QUESTION, ANSWER],
    "system, two turns": [SYSTEM, QUESTION, ANSWER, MORE, LATER],
    "two users": [QUESTION, user("Quickly, please."), ANSWER],
    "two assistants": [QUESTION, ANSWER, LATER],
    "reasoning": [QUESTION, assistant("It is four.", reasoning_content="Two and two make four.")],
    "reasoning, two turns": [
        QUESTION, assistant("It is four.", reasoning_content="Two and two make four."),
        MORE, assistant("Six.", reasoning_content="Three and three."),
    ],
    "inline reasoning": [QUESTION, assistant(
        "<think>\n"
        "Two and two make four.\n"
        "</think>\n"
        "\n"
        "It is four."
    )],
    "empty": [QUESTION, assistant("")],
    "leading space": [QUESTION, assistant(" It is four.")],
    "trailing line break": [QUESTION, assistant("It is four.\n")],
    "leading line break": [QUESTION, assistant("\nIt is four.")],
    "white space, two turns": [QUESTION, assistant(" \n It is four. "), user(" And 3 + 3?\n"), assistant("  6\n\n")],
    "control tokens of the user": [user(TYPED), ANSWER, user(TYPED), LATER],
    "control tokens of the assistant": [QUESTION, assistant(TYPED), MORE, assistant(TYPED)],
    "unicode": [user("Comment ça va ? 🙂"), assistant("Ça va très bien 👍🏽, 谢谢!")],
    "long": [user("word " * 60), assistant("another word, " * 60 + "and the end.")],
    "tools": [user("Weather in Oslo?"), assistant("", tool_calls=[CALL]), RESULT, assistant("It rains.")],
    "ends with the user": [QUESTION, ANSWER, MORE],
}  # fmt: skip


# Conversations for the tokenizers that are not the family's own.
OTHERS = (
    "two turns",
    "system, two turns",
    "white space, two turns",
    "control tokens of the user",
    "unicode",
)


def conversation(name: str, typed: str) -> list[dict[str, Any]]:
    """A conversation whose control tokens are those of a family."""
    return [
        {**message, "content": message["content"].replace("{}", typed)}
        for message in CONVERSATIONS[name]
    ]
