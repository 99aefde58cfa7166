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
import yaml

from alignkit_plugins.models import templates

CONTROL = re.compile(r"<\|[a-zA-Z_]+\|>|<｜[^｜<>]+｜>|<\|\w+>|<\w+\|>|<[a-z]+_of_[a-z]+>")


@dataclass(frozen=True)
class Family:
    """What is known about a family, besides its template.

    kinds: tokenizers, of family_tokenizers.KINDS; the first is the family's own. header: what
    precedes the assistant's own text. ends: what ends its turn. special: control tokens that the
    template's text does not show; ("none",) if even those that it shows are ordinary text.
    ordinary: added tokens that are not special. strips: whether control tokens swallow the white
    space after them. after: what the template writes after the last answer if there is no end of
    turn. stops: what generation_config.json lists as ends; default: `ends`. reasoning_key: where
    the template reads reasoning.
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

    @cached_property
    def control(self) -> tuple[str, ...]:
        """The control tokens: those that the template's text shows, and the others."""
        shown = [token for token in CONTROL.findall(self.template) if token not in self.ordinary]
        return (
            tuple(dict.fromkeys([*shown, *self.special, *self.ends]))
            if list(self.special) != ["none"]
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


# Facts that families share: the fields of `Family`.
ALIKE: dict[str, dict[str, Any]] = yaml.safe_load("""
bytes: &bytes {kinds: [bytes, bytes_bos, gpt2]}
chatml: &chatml
  <<: *bytes
  header: "<|im_start|>assistant\\n"
  ends: ["<|im_end|>"]
  eos: "<|im_end|>"
qwen: &qwen
  <<: *chatml
  special: ["<|endoftext|>"]
  ordinary: &tags
  - <think>
  - </think>
  - <tool_call>
  - </tool_call>
  - <tool_response>
  - </tool_response>
  tools: true
thinker: {<<: *qwen, thinks: true}
qwq: {<<: *qwen, thinks: true, tools: false}
lfm2: &lfm2 {<<: *chatml, bos: "<|startoftext|>", ordinary: &think [<think>, </think>], tools: true}
lfm2 without tools: {<<: *lfm2, tools: false}
lfm2.5: {<<: *lfm2, reasoning_key: thinking}
smollm2: {<<: *chatml, kinds: [gpt2, bytes]}
sentencepiece: {<<: *chatml, kinds: [spm_first, spm_legacy, unigram]}
olmo3: {<<: *chatml, eos: "<|endoftext|>", ends: ["<|im_end|>", "<|endoftext|>"]}
phi4: {<<: *chatml, header: "<|im_start|>assistant<|im_sep|>"}
phi4 mini:
  <<: *bytes
  header: "<|assistant|>"
  ends: ["<|end|>"]
  special: ["<|system|>", "<|user|>"]
phi3:
  strips: true
  kinds: [spm_legacy, spm_first, bytes]
  header: "<|assistant|>\\n"
  ends: ["<|end|>"]
  bos: <s>
  special: ["<|system|>", "<|user|>"]
llama3: &llama3
  kinds: [bytes_bos, bytes]
  header: "<|start_header_id|>assistant<|end_header_id|>\\n\\n"
  ends: ["<|eot_id|>"]
  bos: <|begin_of_text|>
  eos: <|eot_id|>
llama3 with tools: {<<: *llama3, tools: true}
gemma: &gemma
  kinds: [spm_bare, bytes]
  header: "<start_of_turn>model\\n"
  ends: [<end_of_turn>]
  bos: <bos>
  eos: <eos>
gemma4: {<<: *gemma, header: "<|turn>model\\n", ends: [<turn|>, "<|tool_response>"], tools: true}
cohere: &cohere
  <<: *bytes
  header: <|CHATBOT_TOKEN|>
  ends: [<|END_OF_TURN_TOKEN|>]
  bos: <BOS_TOKEN>
  eos: <|END_OF_TURN_TOKEN|>
cohere2: {<<: *cohere, header: <|CHATBOT_TOKEN|><|START_RESPONSE|>}
deepseek:
  <<: *bytes
  header: <｜Assistant｜>
  ends: [<｜end▁of▁sentence｜>]
  bos: <｜begin▁of▁sentence｜>
  eos: <｜end▁of▁sentence｜>
  ordinary: *think
  thinks: true
glm:
  <<: *bytes
  header: <|assistant|>
  ends: []
  special: ["[gMASK]", <sop>, <|system|>]
  ordinary: *tags
  tools: true
  thinks: true
gptoss: &gptoss
  <<: *bytes
  header: <|start|>assistant
  ends: [<|return|>, <|end|>, <|call|>]
  stops: [<|return|>, <|call|>]
  eos: <|return|>
  tools: true
  reasoning_key: thinking
muse:
  <<: *gptoss
  ends: [<|eot|>]
  stops: []
  eos: <|eot|>
  special: [<|eom|>]
  reasoning_key: reasoning_content
images: {kinds: [bytes], header: "Assistant:", ends: [<end_of_utterance>], eos: <end_of_utterance>}
sequence: &sequence {ends: [</s>], bos: <s>, eos: </s>}
llama2: &llama2
  <<: *sequence
  kinds: [spm_legacy, spm_first, unigram]
  header: "[/INST]"
  special: [none]  # the rest of the template is ordinary text
llava: {<<: *llama2, kinds: [spm_legacy]}
mistral: &mistral {<<: *llama2, special: ["[INST]", "[/INST]"]}
nemo: {<<: [*bytes, *mistral]}
zephyr: {<<: *llama2, header: "<|assistant|>\\n"}
vicuna: {<<: *llama2, header: "ASSISTANT:"}
human: &human
  <<: *sequence
  kinds: [unigram, spm_legacy, bytes]
  header: "\\n\\nAssistant:"
human space: {<<: *human, header: "\\n\\nAssistant: "}
role: {kinds: [bytes, spm_legacy], header: "assistant:", ends: [], after: "\\n"}
""")

# A family, its template in TRL, in `templates` or in `own_templates`, and what it is like.
TABLE = """
Llama 3 | llama3 | llama3
`chat_template: llama3` | LLAMA3 | llama3
Llama 3.1, 3.3 | llama3_1 | llama3 with tools
Llama 3.2 | llama3_2 | llama3 with tools
Qwen 2.5 | qwen2_5 | qwen
Qwen 2.5 VL | qwen2_5_vl | chatml
Qwen 3 | qwen3 | thinker
Qwen 3 Instruct 2507 | qwen3_instruct_2507 | qwen
Qwen 3 VL | qwen3_vl | qwen
Qwen 3.5, thinking | qwen3_5_think | thinker
Qwen 3.5, not thinking | qwen3_5_nothink | thinker
Qwen 3.6 | qwen3_6 | thinker
Qwen 3.8 | qwen3_8 | thinker
Gemma 1, 2 | gemma | gemma
Gemma 3 | gemma3 | gemma
`chat_template: gemma` | GEMMA | gemma
Gemma 4 | gemma4 | gemma4
Gemma 4 (first) | gemma4_v2 | gemma4
Gemma 4 (second) | gemma4_v3 | gemma4
Gemma 4 (fourth) | gemma4_v4 | gemma4
Gemma 4 (newest) | gemma4_v5 | gemma4
Diffusion Gemma | diffusion_gemma | gemma4
Phi 3 | phi3 | phi3
Phi 3.5 | phi3_5 | phi3
DeepSeek R1 distills | deepseek_r1_distill | deepseek
DeepSeek V3 | deepseekv3 | deepseek
Nemotron 3 Nano | nemotron_3_nano | thinker
Nemotron 3 Super | nemotron_3_super | thinker
Nemotron 3 Ultra | nemotron_3_ultra | thinker
Nemotron 3.5 Lightning | nemotron_3_5_lightning | thinker
Cohere Aya Expanse | cohere | cohere
Cohere Tiny Aya | cohere2 | cohere2
GLM 4.5 to 4.6 | glm4moe | glm
GPT-OSS | gptoss | gptoss
LFM 2 | lfm2 | lfm2 without tools
LFM 2 (newer) | lfm2_v2 | lfm2
LFM 2.5 | lfm2_2_5 | lfm2.5
LFM 2.5 (newer) | lfm2_2_5_v2 | lfm2.5
LFM 2.5 VL | lfm2_2_5_vl | lfm2.5
Muse Glimmer | muse_glimmer | muse
Idefics 3 | idefics3 | images
SmolVLM | smolvlm | images
LLaVA NeXT | llava_next | llava
Llama 2 | LLAMA2 | llama2
Mistral 7B v0.1, v0.2 | MISTRAL_1 | llama2
Mistral 7B v0.3 | MISTRAL_3 | mistral
Mistral Nemo | MISTRAL_NEMO | nemo
Zephyr, TinyLlama | ZEPHYR | zephyr
Vicuna | VICUNA | vicuna
Yi, ChatML on SentencePiece | CHATML | sentencepiece
SmolLM2, ChatML | SMOLLM2 | smollm2
OLMo 3 | OLMO3 | olmo3
Phi 4 | PHI4 | phi4
Phi 4 mini | PHI4_MINI | phi4 mini
QwQ | QWQ | qwq
Qwen 3 Thinking 2507 | QWEN3_THINKING | qwq
Human/Assistant | HUMAN | human
Human/Assistant, prompt ends in a space | HUMAN_SPACE | human space
role: text, no end of turn | NO_END | role
"""


def _family(name: str, template: str, like: str) -> Family:
    if template.islower():
        text = trl_template(template)
    else:
        text = getattr(own if hasattr(own, template) else templates, template)
    return Family(name, text, **ALIKE[like])


CHATML = ALIKE["chatml"]
FAMILIES = {
    line.partition(" | ")[0]: _family(*line.split(" | ")) for line in TABLE.strip().splitlines()
}


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
