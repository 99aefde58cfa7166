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

from alignkit.data.group import Group, Response
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.bases import templates

CONTROL = re.compile(r"<\|[a-zA-Z_]+\|>|<｜[^｜<>]+｜>|<\|\w+>|<\w+\|>|<[a-z]+_of_[a-z]+>")


@dataclass(frozen=True, eq=False)
class Family:
    """What is known about a family, besides its template.

    kinds: tokenizers, as of `family_tokenizers`; the first is the family's own. ends: what ends the
    assistant's turn. special: control tokens that the template's text does not show; None if even
    those that it shows are ordinary text. ordinary: added tokens that are not special. strips:
    whether control tokens swallow the white space after them. stops: what generation_config.json
    lists as ends; default: `ends`. reasoning_key: where the template reads reasoning.
    """

    name: str
    template: str
    kinds: Sequence[str]
    ends: Sequence[str]
    bos: str | None = None
    eos: str = "<|endoftext|>"
    special: Sequence[str] | None = ()
    ordinary: Sequence[str] = ()
    strips: bool = False
    tools: bool = False
    stops: Sequence[str] = ()
    reasoning_key: str = "reasoning_content"

    @cached_property
    def control(self) -> tuple[str, ...]:
        """The control tokens: those that the template's text shows, and the others."""
        if self.special is None:
            return ()
        shown = [token for token in CONTROL.findall(self.template) if token not in self.ordinary]
        return tuple(dict.fromkeys([*shown, *self.special, *self.ends]))


@cache
def tokenizer(family: Family, kind: str) -> Any:
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


def encoder(family: Family, kind: str, **kwargs: Any) -> Encoder:
    """kwargs: of the chat template."""
    made = tokenizer(family, kind)
    return Encoder(made, kwargs, made.convert_tokens_to_ids(list(family.stops or family.ends)))


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
thinker: *qwen
qwq: {<<: *qwen, tools: false}
lfm2: &lfm2 {<<: *chatml, bos: "<|startoftext|>", ordinary: &think [<think>, </think>], tools: true}
lfm2 without tools: {<<: *lfm2, tools: false}
lfm2.5: {<<: *lfm2, reasoning_key: thinking}
smollm2: {<<: *chatml, kinds: [gpt2, bytes]}
sentencepiece: {<<: *chatml, kinds: [spm_first, spm_legacy, unigram]}
olmo3: {<<: *chatml, eos: "<|endoftext|>", ends: ["<|im_end|>", "<|endoftext|>"]}
phi4: *chatml
phi4 mini:
  <<: *bytes
  ends: ["<|end|>"]
  special: ["<|system|>", "<|user|>"]
phi3:
  strips: true
  kinds: [spm_legacy, spm_first, bytes]
  ends: ["<|end|>"]
  bos: <s>
  special: ["<|system|>", "<|user|>"]
llama3: &llama3
  kinds: [bytes_bos, bytes]
  ends: ["<|eot_id|>"]
  bos: <|begin_of_text|>
  eos: <|eot_id|>
llama3 with tools: {<<: *llama3, tools: true}
gemma: &gemma
  kinds: [spm_bare, bytes]
  ends: [<end_of_turn>]
  bos: <bos>
  eos: <eos>
gemma4: {<<: *gemma, ends: [<turn|>, "<|tool_response>"], tools: true}
cohere: &cohere
  <<: *bytes
  ends: [<|END_OF_TURN_TOKEN|>]
  bos: <BOS_TOKEN>
  eos: <|END_OF_TURN_TOKEN|>
cohere2: *cohere
deepseek:
  <<: *bytes
  ends: [<｜end▁of▁sentence｜>]
  bos: <｜begin▁of▁sentence｜>
  eos: <｜end▁of▁sentence｜>
  ordinary: *think
glm:
  <<: *bytes
  ends: []
  special: ["[gMASK]", <sop>, <|system|>]
  ordinary: *tags
  tools: true
gptoss: &gptoss
  <<: *bytes
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
images: {kinds: [bytes], ends: [<end_of_utterance>], eos: <end_of_utterance>}
sequence: &sequence {ends: [</s>], bos: <s>, eos: </s>}
llama2: &llama2
  <<: *sequence
  kinds: [spm_legacy, spm_first, unigram]
  special: null  # what the template shows is ordinary text
llava: {<<: *llama2, kinds: [spm_legacy]}
mistral: &mistral {<<: *llama2, special: ["[INST]", "[/INST]"]}
nemo: {<<: *mistral, kinds: [bytes, bytes_bos, gpt2]}
zephyr: *llama2
vicuna: *llama2
human: &human
  <<: *sequence
  kinds: [unigram, spm_legacy, bytes]
human space: *human
role: {kinds: [bytes, spm_legacy], ends: []}
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


FAMILIES = {
    line.partition(" | ")[0]: _family(*line.split(" | ")) for line in TABLE.strip().splitlines()
}


# Conversations. `{}` stands for a control token of the family.
TEXTS = yaml.safe_load(r"""
tools: &tools
- type: function
  function:
    name: weather
    description: The weather.
    parameters: {type: object, properties: {city: {type: string, description: A city.}}}
question: &question {role: user, content: "What is two plus two?"}
answer: &answer {role: assistant, content: "It is four, of course."}
more: &more {role: user, content: "And 3 + 3?"}
later: &later {role: assistant, content: That makes 6.}
brief: &brief {role: system, content: Be brief.}
typed: &typed {role: user, content: "a {} b"}
writes: &writes {role: assistant, content: "a {} b"}
thought: &thought
  role: assistant
  content: It is four.
  reasoning_content: Two and two make four.

conversations:
  single: [*question, *answer]
  two turns: [*question, *answer, *more, *later]
  three turns:
  - *question
  - *answer
  - *more
  - *later
  - {role: user, content: Thanks.}
  - {role: assistant, content: "You are welcome!\n\nBye."}
  the question holds the answer:
  - {role: user, content: "Is it yes?"}
  - &yes {role: assistant, content: "yes"}
  - {role: user, content: "yes or no?"}
  - *yes
  system: [*brief, *question, *answer]
  system, two turns: [*brief, *question, *answer, *more, *later]
  two users: [*question, {role: user, content: "Quickly, please."}, *answer]
  two assistants: [*question, *answer, *later]
  reasoning: [*question, *thought]
  reasoning, two turns:
  - *question
  - *thought
  - *more
  - {role: assistant, content: Six., reasoning_content: Three and three.}
  inline reasoning:
  - *question
  - role: assistant
    content: "<think>\nTwo and two make four.\n</think>\n\nIt is four."
  empty: [*question, {role: assistant, content: ""}]
  trailing line break: [*question, {role: assistant, content: "It is four.\n"}]
  white space, two turns:
  - *question
  - {role: assistant, content: " \n It is four. "}
  - {role: user, content: " And 3 + 3?\n"}
  - {role: assistant, content: "  6\n\n"}
  control tokens of the user: [*typed, *answer, *typed, *later]
  control tokens of the assistant: [*question, *writes, *more, *writes]
  unicode:
  - {role: user, content: "Comment ça va ? 🙂"}
  - {role: assistant, content: "Ça va très bien 👍🏽, 谢谢!"}
  tools:
  - {role: user, content: "Weather in Oslo?"}
  - role: assistant
    content: ""
    tool_calls:
    - id: call1
      type: function
      function: {name: weather, arguments: {city: Oslo}}
  - {role: tool, name: weather, tool_call_id: call1, content: Rain.}
  - {role: assistant, content: It rains.}
  ends with the user: [*question, *answer, *more]
""")
CONVERSATIONS: dict[str, list[dict[str, Any]]] = TEXTS["conversations"]


def conversation(family: Family, name: str) -> list[dict[str, Any]]:
    typed = family.ends[0] if family.ends else family.eos
    return [
        {**message, "content": message["content"].replace("{}", typed)}
        for message in CONVERSATIONS[name]
    ]


def group(family: Family, name: str) -> Group:
    """A conversation as the formats read it: a single answer is text, several turns are
    messages.
    """
    said: list[Any] = conversation(family, name)
    first = [message["role"] for message in said].index("assistant")
    rest = said[first:]
    simple = len(rest) == 1 and rest[0].keys() == {"role", "content"}
    response = Response(text=rest[0]["content"]) if simple else Response(messages=tuple(rest))
    tools = tuple(TEXTS["tools"]) if name == "tools" else ()
    return Group(tuple(said[:first]), (response,), id=name, tools=tools)
