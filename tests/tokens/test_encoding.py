"""From groups to tokens: which tokens of a conversation count, under many chat templates, and what
does not fit.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from alignkit.contract.engine import Completion
from alignkit.contract.settings import Sampling
from alignkit.data.group import Group, Pair, Response
from alignkit.errors import DataError
from alignkit.models.generate import attach
from alignkit.testing.examples import encode_all
from alignkit.tokens.chat_templates import PLAIN, set_chat_template
from alignkit.tokens.encoder import Encoded, Encoder
from alignkit.tokens.turns import Turns
from alignkit_plugins.bases.templates import CHATML, HERMES
from alignkit_plugins.rewards.format import Form
from tests.models import family_tokenizers
from tests.models.own_templates import QWEN3_THINKING
from tests.models.tiny import encoded, encoder, user, words

# The generation prompt is empty
BRACKETS = """\
{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}\
{{ eos_token }}{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"""
# No end of turn for the last message
NO_END = """\
{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""
WIDE = CHATML.replace("'<|im_end|>\n'", "' :<|im_end|>\n'")
# A turn has no end of its own: the next role's marker ends it.
GLM = """\
{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>{{ m['content'] }}\
{% for c in m['tool_calls'] or [] %}<call>{{ c['function']['name'] }}</call>{% endfor %}\
{% else %}{{ '<|observation|>' if m['role'] == 'tool' else '<|user|>' }}{{ m['content'] }}\
{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
# Only the last turn has an end of its own
LAST = GLM.replace(
    "{% else %}{{ '<|obs", "{% if loop.last %}{{ eos_token }}{% endif %}{% else %}{{ '<|obs"
)
# Its markers are no tokens, so nothing ends a turn
WORDS = GLM.replace("<|", "[").replace("|>", "]")
ONLY_TWO = CHATML.replace("in messages %}", "in messages if m.role in ('user', 'assistant') %}")
# The prompt opens a block that finished turns have lost, or that they keep with the words as they
# are.
THINKS = CHATML.replace("assistant\n' }}{% end", "assistant\n<think>\n' }}{% end").replace(
    "m['content'] +", "m['content'].split('</think>')[-1].lstrip() +"
)
VERBATIM = CHATML.replace(
    "+ '\n' + m['content']",
    "+ '\n' + ('<think>\n' if m['role'] == 'assistant' else '') + m['content']",
).replace("assistant\n' }}{% end", "assistant\n<think>\n' }}{% end")

TOOL = yaml.safe_load("{type: function, function: {name: weather, parameters: {}}}")
# What a turn of the assistant is besides its words: it has a call, or does not count.
KINDS = yaml.safe_load("""
calls: {role: assistant, tool_calls: [{type: function, function: {name: weather, arguments: {}}}]}
context: {role: assistant, train: false}
""")


def conversation(talk: list[dict[str, str]], **more: Any) -> Group:
    said: list[Any] = []
    for turn in talk:
        ((role, content),) = turn.items()
        said.append({**KINDS.get(role, {"role": role}), "content": content})
    first = [message["role"] for message in said].index("assistant")
    return Group(tuple(said[:first]), (Response(messages=tuple(said[first:])),), id="talk", **more)


def shown(made: Encoder, found: Encoded) -> str:
    """The prompt, and each response behind a bar. «» are around what counts, ⟨⟩ around the names
    of control tokens.
    """
    names = {
        token: f"⟨{name.strip('<|>')}⟩" for name, token in made.tokenizer.get_added_vocab().items()
    }

    def text(ids: Any) -> str:
        return "".join(names.get(token) or made.tokenizer.decode([token]) for token in ids)

    parts = [text(found.prompt)]
    for response in found.responses:
        runs = groupby(
            zip(response.tokens, response.mask, strict=True), key=lambda pair: bool(pair[1])
        )
        pieces = [(counts, text([token for token, _ in run])) for counts, run in runs]
        parts.append("".join(f"«{piece}»" if counts else piece for counts, piece in pieces))
    return "|".join(parts)


TEMPLATES = {
    "CHATML": CHATML,
    "PLAIN": PLAIN,
    "BRACKETS": BRACKETS,
    "WIDE": WIDE,
    "NO_END": NO_END,
    "QWEN3_THINKING": QWEN3_THINKING,
    "CALLING": HERMES.replace("{% if own or tools %}", "{% if own %}"),
    "ONLY_TWO": ONLY_TWO,
    "GLM": GLM,
    "LAST": LAST,
    "WORDS": WORDS,
}
# What counts of which tokens, and the cases of DROP_REASONS.
TABLE: dict[str, dict[str, Any]] = yaml.safe_load(r"""
chatml:
  template: CHATML
  talk: &talk
  - system: Be brief.
  - user: Hello there
  - assistant: Good day, I am here.
  - user: and 2 + 2?
  - assistant: |-
      4, of course
      or four
  - user: Thank you
  - assistant: Goodbye.
  shown: |-
    ⟨im_start⟩system
    Be brief.⟨im_end⟩
    ⟨im_start⟩user
    Hello there⟨im_end⟩
    ⟨im_start⟩assistant
    |«Good day, I am here.⟨im_end⟩»
    ⟨im_start⟩user
    and 2 + 2?⟨im_end⟩
    ⟨im_start⟩assistant
    «4, of course
    or four⟨im_end⟩»
    ⟨im_start⟩user
    Thank you⟨im_end⟩
    ⟨im_start⟩assistant
    «Goodbye.⟨im_end⟩»
# A space is one token with the word
plain, for base models:
  template: PLAIN
  talk: *talk
  shown: |-
    Be brief.

    User: Hello there

    Assistant:|« Good day, I am here.⟨im_end⟩»

    User: and 2 + 2?

    Assistant:« 4, of course
    or four⟨im_end⟩»

    User: Thank you

    Assistant:« Goodbye.⟨im_end⟩»
mistral:
  template: BRACKETS
  talk: *talk
  shown: "⟨bos⟩[INST] Be brief. [/INST][INST] Hello there [/INST]|«Good day, I am here.⟨im_end⟩»\
    [INST] and 2 + 2? [/INST]«4, of course\nor four⟨im_end⟩»[INST] Thank you [/INST]\
    «Goodbye.⟨im_end⟩»"
an end of several tokens:
  template: WIDE
  talk: *talk
  shown: |-
    ⟨im_start⟩system
    Be brief. :⟨im_end⟩
    ⟨im_start⟩user
    Hello there :⟨im_end⟩
    ⟨im_start⟩assistant
    |«Good day, I am here. :⟨im_end⟩»
    ⟨im_start⟩user
    and 2 + 2? :⟨im_end⟩
    ⟨im_start⟩assistant
    «4, of course
    or four :⟨im_end⟩»
    ⟨im_start⟩user
    Thank you :⟨im_end⟩
    ⟨im_start⟩assistant
    «Goodbye. :⟨im_end⟩»
no end of turn, so EOS:
  template: NO_END
  talk: *talk
  shown: |-
    system: Be brief.
    user: Hello there
    assistant: |«Good day, I am here.»
    user: and 2 + 2?
    assistant: «4, of course
    or four»
    user: Thank you
    assistant: «Goodbye.⟨im_end⟩»
turns that do not count:
  template: BRACKETS
  talk:
  - user: a
  - context: b
  - user: c
  - assistant: d
  shown: |-
    ⟨bos⟩[INST] a [/INST]|b⟨im_end⟩[INST] c [/INST]«d⟨im_end⟩»
# An end of turn that a user or a demonstration writes does not end a turn; data sets hold texts
# that were rendered before.
typed control tokens:
  template: BRACKETS
  talk:
  - {user: "<|im_start|>user\na<|im_end|>"}
  - {assistant: "b<|im_end|>c"}
  counts: {typed_tokens: 1}
  shown: |-
    ⟨bos⟩[INST] <|im_start|>user
    a<|im_end|> [/INST]|«b<|im_end|>c⟨im_end⟩»
a tag in the words:
  template: BRACKETS
  talk:
  - user: q
  - {assistant: "The tag </think> closes a </s>."}
  shown: |-
    ⟨bos⟩[INST] q [/INST]|«The tag </think> closes a </s>.⟨im_end⟩»
# The first turn's prompt ends with `<think>`, too, but the template does not write it there.
reasoning of earlier turns is dropped:
  template: QWEN3_THINKING
  talk:
  - user: yes or no
  - {assistant: "yes"}
  - user: and now?
  - {assistant: "<think>\nWell.\n</think>\n\nno"}
  counts: {unprompted_turns: 1}
  shown: |-
    ⟨im_start⟩user
    yes or no⟨im_end⟩
    ⟨im_start⟩assistant
    |yes⟨im_end⟩
    ⟨im_start⟩user
    and now?⟨im_end⟩
    ⟨im_start⟩assistant
    <think>
    «Well.
    </think>

    no⟨im_end⟩»
calls:
  template: CALLING
  talk: &weather
  - user: Say two.
  - assistant: Two.
  - user: And in Oslo?
  - {calls: ""}
  - {tool: "3"}
  - assistant: It is 3.
  counts: {dropped_tools: 1}
  shown: |-
    ⟨im_start⟩user
    Say two.⟨im_end⟩
    ⟨im_start⟩assistant
    |«Two.⟨im_end⟩»
    ⟨im_start⟩user
    And in Oslo?⟨im_end⟩
    ⟨im_start⟩assistant
    «<tool_call>
    {"name": "weather", "arguments": {}}
    </tool_call>⟨im_end⟩»
    ⟨im_start⟩tool
    <tool_response>
    3
    </tool_response>⟨im_end⟩
    ⟨im_start⟩assistant
    «It is 3.⟨im_end⟩»
no calls, tools and results:
  template: ONLY_TWO
  talk: *weather
  counts: {dropped_messages: 1, dropped_tools: 1, unprompted_turns: 1}
  shown: |-
    ⟨im_start⟩user
    Say two.⟨im_end⟩
    ⟨im_start⟩assistant
    |«Two.⟨im_end⟩»
    ⟨im_start⟩user
    And in Oslo?⟨im_end⟩
    ⟨im_start⟩assistant
    ⟨im_end⟩
    ⟨im_start⟩assistant
    «It is 3.⟨im_end⟩»
# Phi-3's first template
no system message:
  template: ONLY_TWO
  talk:
  - system: Speak French.
  - user: hi
  - assistant: Oui.
  counts: {dropped_messages: 1}
  shown: |-
    ⟨im_start⟩user
    hi⟨im_end⟩
    ⟨im_start⟩assistant
    |«Oui.⟨im_end⟩»
the next role's marker:
  template: GLM
  talk: *weather
  counts: {dropped_tools: 1}
  shown: "⟨user⟩Say two.⟨assistant⟩|«Two.⟨user⟩»And in Oslo?⟨assistant⟩\
    «<call>weather</call>⟨observation⟩»3⟨assistant⟩«It is 3.⟨im_end⟩»"
an end for the last turn only:
  template: LAST
  talk: *weather
  counts: {dropped_tools: 1}
  shown: "⟨user⟩Say two.⟨assistant⟩|«Two.⟨user⟩»And in Oslo?⟨assistant⟩\
    «<call>weather</call>⟨observation⟩»3⟨assistant⟩«It is 3.⟨im_end⟩»"
markers that are no tokens:
  template: WORDS
  talk: *weather
  counts: {dropped_tools: 1}
  shown: "[user]Say two.[assistant]|«Two.»[user]And in Oslo?[assistant]«<call>weather</call>»\
    [observation]3[assistant]«It is 3.⟨im_end⟩»"
a call at the end:
  template: GLM
  talk:
  - user: q
  - calls: Let me look.
  counts: {dropped_tools: 1}
  shown: |-
    ⟨user⟩q⟨assistant⟩|«Let me look.<call>weather</call>⟨observation⟩»
""")
TALK = TABLE["chatml"]["talk"]


@pytest.mark.silent_bug(
    "masks: end of turn",
    "The end of turn is missing, or masked because it equals the padding, and the model never "
    "stops.",
    "The end of each learned turn is learned; masks go by place, not by id.",
    "huggingface/trl#1623",
    "huggingface/trl#931",
    "mlabonne/llm-course#33",
)
@pytest.mark.silent_bug(
    "masks: turns",
    "Only the last answer is learned, or none is, under a template that the search does not "
    "expect.",
    "Turns are located in the template's own rendering.",
    "axolotl-ai-cloud/axolotl#1761",
    "axolotl-ai-cloud/axolotl#2089",
    "unslothai/unsloth#1290",
)
@pytest.mark.silent_bug(
    "templates: written twice",
    "Text that a template already rendered is rendered again.",
    "Control tokens in data are read as plain text, and the run says so.",
    "huggingface/trl#696",
)
@pytest.mark.silent_bug(
    "templates: reasoning",
    "Earlier turns lose their block, and the mask is wrong from there on.",
    "A turn that does not begin with its prompt is context, and the run says so.",
    "axolotl-ai-cloud/axolotl#3088",
)
@pytest.mark.silent_bug(
    "templates: lost parts",
    "Calls and schemas of tools are missing in the prompt.",
    "A turn whose calls are not written is context, and the run says so.",
    "axolotl-ai-cloud/axolotl#3824",
    "huggingface/trl#6259",
)
@pytest.mark.silent_bug(
    "templates: lost parts",
    "The template writes no system message or no result of a tool, without an error.",
    "The run counts such rows and says so.",
    "huggingface/transformers#30545",
    "raullenchai/Rapid-MLX#1765",
    "axolotl-ai-cloud/axolotl#3824",
)
@pytest.mark.silent_bug(
    "templates: the next role's marker ends a turn",
    "The marker is masked as the next role's header, so the end of a turn in the middle, or of a "
    "call, is not learned, and sampling does not stop at it: the model writes call after call.",
    "The token behind a turn is learned and ends responses; a template that writes none is "
    "reported.",
    "thinking-machines-lab/tinker-cookbook#932",
    "PrimeIntellect-ai/renderers#66",
    "huggingface/trl#6044",
    "InternLM/xtuner#1997",
)
@pytest.mark.parametrize("name", TABLE)
def test_the_assistants_text_and_ends_of_turn_count(name: str) -> None:
    case = TABLE[name]
    template, wanted = TEMPLATES[case["template"]], case["shown"]
    made, counts = encoder(template, bos="bos" in template), case.get("counts", {})
    group = conversation(case["talk"], tools=(TOOL,) if "dropped_tools" in counts else ())
    found = encoded(made.encode(group, 500))
    assert shown(made, found) == wanted and made.counts == counts
    ends = ("im_end", "user", "observation") if template in (GLM, LAST) else ("im_end",)
    assert made.end_ids == {*made.tokenizer.convert_tokens_to_ids([f"<|{end}|>" for end in ends])}
    earlier, _, last = wanted.rpartition("«")
    only_last = encoded(made.encode(group, 500, turns="last"))
    assert shown(made, only_last) == re.sub("[«»]", "", earlier) + "«" + last


@pytest.mark.parametrize(
    "template", [THINKS, CHATML.replace("m['content']", "(m['content'] if loop.last else '...')")]
)
def test_a_template_that_drops_words_or_its_prompt_is_refused(template: str) -> None:
    made = encoder(template)
    with pytest.raises(DataError, match="does not write"):
        made.encode(conversation(TALK), 500)
    assert made.accepted([conversation(TALK)]) == []
    with pytest.raises(DataError, match="does not write"):
        made.count_refused()
    made.forget_counts()
    assert made.count_refused() == []


ANSWERS = (Response(text="ab"), Response(text=""), Response(text="more", truncated=True))


@pytest.mark.silent_bug(
    "templates: written twice",
    "Template and tokenizer both add the end.",
    "It is there once.",
    "hiyouga/LlamaFactory#420",
)
@pytest.mark.silent_bug(
    "rewards: place of the score",
    "The score is read one token away from the end.",
    "It is read at the end that the template writes.",
    "EleutherAI/gpt-neox#1285",
)
@pytest.mark.parametrize(("template", "end"), [(BRACKETS, ""), (WIDE, " :")])
def test_a_response_ends_once(template: str, end: str) -> None:
    """A scored one with all that the template writes, so that others find the score at the last
    token, too.
    """
    made = encoder(template.replace("{{ bos_token }}", ""))
    group = Group((user("q"),), (*ANSWERS, Response(tokens=made.end_of_turn)))
    end = f"{end}⟨im_end⟩"
    found = encoded(made.encode(group, 100))
    said = shown(made, found).partition("|")[2]
    assert said == f"«ab{end}»|«{end}»|«more»|«{end}»"
    assert [response.truncated for response in found.responses] == [False, False, True, False]
    scored = encoded(made.encode(group, 100, scoring=True))
    end += "\n" if template == WIDE else ""
    said = re.sub("[«»]", "", shown(made, scored).partition("|")[2])
    assert said == f"ab{end}|{end}|more{end}|{end}"
    assert not any(response.truncated for response in scored.responses)
    room = len(made.prompt(group.prompt)) + 1 + len(made.closing)
    short = encoded(made.encode(group, room, scoring=True))
    assert shown(made, short).split("|")[3] == f"«m{end}»"


@pytest.mark.silent_bug(
    "templates: written twice",
    "Rendered text is tokenized with special tokens.",
    "Only the template writes a BOS token.",
    "huggingface/alignment-handbook#127",
    "huggingface/trl#1400",
    "MakazhanAlpamys/Soup#785",
)
def test_only_the_template_writes_a_bos_token() -> None:
    """`apply_chat_template` adds none. alignkit's own templates write one if the tokenizer puts it
    before any text.
    """
    from tokenizers.processors import TemplateProcessing

    tokenizer = encoder(bos=True).tokenizer
    bos = tokenizer.bos_token_id
    end = TemplateProcessing(single="$A <|im_end|>", special_tokens=[("<|im_end|>", 2)])
    tokenizer.backend_tokenizer.post_processor = end
    assert Encoder(tokenizer).bos == ()  # the tokenizer has one, but adds an end only
    set_chat_template(without := encoder(bos=True).tokenizer, "chatml")
    assert bos not in Encoder(without).prompt((user("q"),))
    process = TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", bos)])
    tokenizer.backend_tokenizer.post_processor = process
    assert Encoder(tokenizer).bos == (bos,)
    assert bos not in Encoder(tokenizer).prompt((user("q"),))
    for name in ("plain", "chatml", "hermes", "llama2", "zephyr"):
        set_chat_template(tokenizer, name)
        prompt = Encoder(tokenizer).prompt((user("q"),))
        assert prompt[0] == bos and prompt.count(bos) == 1


def test_decoded_text_has_no_end_of_turn() -> None:
    made = encoder()
    ids = made.text("some <|im_end|> , words")
    assert (
        made.decode(ids) == made.decode([*ids, *made.end_of_turn * 2]) == "some <|im_end|> , words"
    )
    assert made.decode(made.end_of_turn) == "" == made.decode([])
    made.tokenizer.backend_tokenizer.decoder = None
    assert Encoder(made.tokenizer).decode(made.text("to do")) == "t o Ġd o"


def test_every_token_of_raw_text_that_can_be_predicted_counts() -> None:
    """Without a BOS token there is nothing before the first."""
    made = encoder(bos=True)
    group = Group((), (Response(text="raw text"), words(2), Response(tokens=())))
    for bos in ((), (made.tokenizer.bos_token_id,)):
        made.bos = bos
        found = encoded(made.encode(group, 100))
        assert found.prompt == bos
        assert found.responses[0].tokens == (*made.text("raw text"), made.tokenizer.eos_token_id)
        assert [response.mask[:2] for response in found.responses] == [(bool(bos), True)] * 2 + [()]
        assert all(found.responses[0].mask[1:])


@pytest.mark.silent_bug(
    "templates: reasoning",
    "The template opens `<think>`, the reward sees only sampled tokens, and every right answer "
    "scores 0.",
    "Rewards see the response as the template continues it.",
    "huggingface/trl#6966",
    "huggingface/trl#7141",
    "huggingface/open-r1#560",
)
@pytest.mark.silent_bug(
    "templates: reasoning",
    "A sample's reasoning lands behind an empty block when it is rendered again.",
    "A sample read as text has the tokens that were sampled.",
    "huggingface/trl#6361",
)
@pytest.mark.parametrize(
    ("template", "text", "score"),
    [
        (QWEN3_THINKING, "Two.\n</think>\n\n<answer>4</answer>", 1.0),
        (VERBATIM, "Two.\n</think>\n\n<answer>4</answer>", 1.0),
        (THINKS, "Two.\n</think>\n\n<answer>4</answer>", 1.0),
        (THINKS, "\n</think>\n\n<answer>4</answer>", 0.0),  # has no reasoning
        (VERBATIM, "<answer>4</answer>", 0.0),  # is still thinking
        (CHATML, "<think>Two.</think><answer>4</answer>", 1.0),  # the prompt opens nothing
    ],
)
def test_a_sample_is_read_with_the_reasoning_that_its_prompt_opens(
    template: str, text: str, score: float
) -> None:
    """By the reward `format`, as an environment's turn, and as text, which has its tokens."""
    made = encoder(template)
    tokens = (*made.text(text), *made.end_of_turn)
    asked: Any = SimpleNamespace(encoder=made, role="policy", sampling=Sampling())
    (group,) = attach(asked, [Group(())], [[Completion(tokens, (), 0)]])
    (sampled,) = group.responses
    assert Turns(made).read(tokens)["content"] == sampled.text
    reward = Form(Form.Options(tags=["think", "answer"]))
    assert list(reward.score([Group((user("q"),), (sampled,))])) == [score]
    if template != THINKS and score:  # refused, or read with an end of the block
        again = (replace(sampled, tokens=None), replace(sampled, tokenizer=made.digest))
        read, own = encoded(made.encode(Group((user("q"),), again), 500)).responses
        assert read.tokens == own.tokens == tokens


@pytest.mark.parametrize("template", [THINKS, VERBATIM, QWEN3_THINKING])
def test_an_answer_that_is_asked_for_follows_the_reasoning(template: str) -> None:
    made = encoder(template)
    prompt, (one, _) = made.answers((user("q"),), "x=", ["1", "2"])
    assert made.tokenizer.decode(prompt).endswith("assistant\n<think>\n\n</think>\n\nx=")
    assert one == made.text("1")


def test_written_must_match_the_tokens() -> None:
    odd = Response(tokens=(3, 4, 5), action_mask=(True, False))
    with pytest.raises(DataError, match="'a': a response has 3 tokens, but 2 entries"):
        encoder().encode(Group((user("a"),), (odd,)), 100)


# What does not fit


@pytest.mark.silent_bug(
    "data: truncation",
    "The prompt is cut where the answer should be, or one answer of a pair is not cut.",
    "Each answer is cut on the right, without an end, and counted.",
    "huggingface/trl#2209",
    "hiyouga/LlamaFactory#4617",
)
def test_a_long_response_is_truncated_without_an_end_of_turn() -> None:
    made = encoder()
    long = made.text("many words that do not fit")
    group = Group((user("q"),), (Response(text="many words that do not fit"), Response(text="a")))
    room = len(made.prompt(group.prompt))
    cut, short = encoded(made.encode(group, room + 5)).responses
    assert cut.tokens == long[:5] and cut.truncated and all(cut.mask)
    assert short.tokens == (*made.text("a"), *made.end_of_turn) and not short.truncated
    assert made.counts == {"cut": 1}
    scored, _ = encoded(made.encode(group, room + 5, scoring=True)).responses
    assert scored.tokens == (*cut.tokens[:3], *made.closing) and not scored.truncated
    whole, _ = encoded(made.encode(group, room + len(long) + 1)).responses
    assert not whole.truncated and made.counts == {"cut": 2}


def test_a_prompt_without_room_is_dropped() -> None:
    made = encoder()
    group = Group((user("q"),), (words(3),))
    room = len(made.prompt(group.prompt))
    kept = [
        made.encode(group, room + more, scoring=scoring) is not None
        for more, scoring in ((0, False), (1, False), (2, True), (3, True))
    ]
    assert kept == [False, True, False, True] and made.counts["no_room"] == 2
    groups = [group, replace(group, prompt=(user("longer " * 20),))]
    assert encode_all(made, groups, room + 3) == [made.encode(group, room + 3)]


@pytest.mark.silent_bug(
    "data: truncation",
    "An answer is cut to nothing, and its mean is NaN.",
    "Pairs without a counted token are left out and counted.",
    "huggingface/trl#6548",
    "huggingface/trl#3382",
)
def test_equal_pairs_and_pairs_without_counted_tokens_are_dropped() -> None:
    """For scoring, the last token's state is read, whoever wrote it."""
    made = encoder()
    one, other = words(8), Response(tokens=(*range(30, 36), 90, 91))
    silent = replace(other, action_mask=(False,) * 8)
    room = len(made.prompt((user("q"),)))

    def pairs(size: int, *both: Response, scoring: bool = False) -> int:
        group = Group((user("q"),), both, pairs=(Pair(0, 1),))
        return len(encoded(made.encode(group, room + size, scoring=scoring)).pairs)

    assert pairs(8, one, other) == 1 and made.counts["equal_pairs"] == 0
    assert pairs(6, one, other) == 0 and made.counts["equal_pairs"] == 1
    for both in ((one, silent), (silent, one)):
        assert pairs(8, *both) == 0 and pairs(9, *both, scoring=True) == 1
    assert pairs(8, Response(text="caf\u00e9"), Response(text="cafe\u0301")) == 0
    assert made.counts["equal_pairs"] == 4


@pytest.mark.parametrize("scoring", [False, True])
def test_groups_that_are_encoded_together_are_encoded_the_same(scoring: bool) -> None:
    groups = [
        conversation(TALK),
        Group((user("q <|im_end|>"),), ANSWERS),
        Group((), (Response(text="raw"),)),
        Group((user("sampled"),), (words(3),)),
        Group((user("long " * 9999),), (Response(text="a"),)),
    ]
    alone = [encoder().encode(group, 200, scoring=scoring) for group in groups]
    made = encoder()
    accepted = made.accepted(groups, scoring)
    assert made.encode_batch(accepted, 200, turns="all", scoring=scoring) == alone[:-1]
    assert alone[-1] is None and all(alone[:-1])


# What tokenizers do at the edges of turns


def test_the_templates_end_is_its_own_although_a_token_joins_it_with_the_answer() -> None:
    """In the example the end is one token with the answer's full stop, which a sample need not
    have.
    """
    tokenizer = encoder(CHATML.replace("'<|im_end|>\n'", "'\n<|im_end|>\n'")).tokenizer
    tokenizer.add_tokens([".\n"])
    made = Encoder(tokenizer)
    assert tokenizer.decode(made.closing) == "\n<|im_end|>\n"
    assert tokenizer.decode(made.end_of_turn) == "\n<|im_end|>"
    sample = Response(tokens=made.text("so it has"), truncated=True)
    (response,) = encoded(made.encode(Group((user("q"),), (sample,)), 100, scoring=True)).responses
    assert tokenizer.decode(response.tokens) == "so it has\n<|im_end|>\n"


@pytest.mark.parametrize("special", [False, True])
def test_reasoning_tags_of_an_assistant_are_tokens(special: bool) -> None:
    """Those of a user, too, unless they are special tokens."""
    tokenizer = encoder(BRACKETS.replace("{{ bos_token }}", "")).tokenizer
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=special)
    made = Encoder(tokenizer)
    group = Group((user("<think>"),), (Response(text="<think>\nWell.\n</think>\n\nno"),))
    typed = "<think>" if special else "⟨think⟩"
    assert shown(made, encoded(made.encode(group, 100))) == (
        f"[INST] {typed} [/INST]|«⟨think⟩\nWell.\n⟨/think⟩\n\nno⟨im_end⟩»"
    )


@pytest.mark.parametrize("space", ["", " "])
def test_a_sample_decodes_to_the_words_that_were_written(space: str) -> None:
    """Templates that write a space before the answer, and tokenizers that add one of their own."""
    tokenizer = family_tokenizers.tokenizer("spm_legacy", bos=None, eos="</s>")
    tokenizer.chat_template = f"""\
{{% for m in messages %}}{{{{ ('{space}' if m.role == 'assistant' else '') + m.content + '</s>' }}}}\
{{% endfor %}}"""
    made = Encoder(tokenizer)
    (response,) = encoded(
        made.encode(Group((user("is it?"),), (Response(text="It is."),)), 100)
    ).responses
    assert made.decode(response.tokens) == "It is."
