"""From groups to tokens: which tokens of a conversation count, under many chat templates, and what
does not fit.

What counts is found here another way than by the encoder: in the text that the template renders
whole.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from alignkit.data.chat_templates import PLAIN, set_chat_template
from alignkit.data.group import Group, Message, Pair, Response
from alignkit.errors import DataError
from alignkit.models.generate import Continuation, _response
from alignkit.testing.examples import encode_all
from alignkit.tokens.encoder import DROP_REASONS, Encoder, ResponseTokens, drop_reason
from alignkit_plugins.environments.turns import Turns
from alignkit_plugins.models.templates import CHATML
from alignkit_plugins.models.tiny import CHAT_TEMPLATE, _tokenizer
from alignkit_plugins.rewards.form import Form
from tests.models.own_templates import QWEN3_THINKING
from tests.models.tiny import encoded, encoder, user, words

SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "Be kind.<|im_end|>\n"
    "' }}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start|>' + m['role'] + '<|head|>\n\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|head|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start|>' + ('model' if m['role'] == 'assistant' "
    "else m['role']) }}{{ '\n"
    "' + m['content'] | trim + '<|eot|>\n"
    "' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>model\n"
    "' }}{% endif %}"
)
BRACKETS = (  # the generation prompt is empty
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] + "
    "eos_token }}{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
NO_END = (  # a template without an end of turn for the last message
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
WIDE = CHATML.replace("'<|im_end|>\n'", "' :<|im_end|>\n'")
TEMPLATES = {
    "tiny": (CHAT_TEMPLATE, "<|im_end|>"),
    "chatml": (CHATML, "<|im_end|>"),
    "plain, for base models": (PLAIN, "<|im_end|>"),
    "a system message of its own": (SYSTEM + CHATML, "<|im_end|>"),
    "llama 3": (HEADERS, "<|eot|>"),
    "gemma": (GEMMA, "<|eot|>"),
    "mistral": (BRACKETS, "<|im_end|>"),
    "an end of turn of several tokens": (WIDE, " :<|im_end|>"),
}
SAID = ("Hello there", "Good day, I am here.", "and 2 + 2?", "4, of course\nor four", "Thank you")


def assistant(content: str, **more: Any) -> Message:
    return Message(role="assistant", content=content, **more)


def conversation(*train: bool) -> Group:
    """user, then assistant, user, assistant, user, assistant: three turns that may count."""
    turns = (SAID[1], SAID[3], "Goodbye.")
    said = [assistant(turns[0], train=train[0]), user(SAID[2]), assistant(turns[1], train=train[1])]
    said += [user(SAID[4]), assistant(turns[2], train=train[2])]
    return Group((user(SAID[0]),), (Response(messages=tuple(said)),), id="talk")


def counted(made: Encoder, row: ResponseTokens) -> list[str]:
    """The runs of counted tokens, as text."""
    runs: list[list[int]] = [[]]
    for token, counts in zip(row.tokens, row.mask, strict=True):
        if counts:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [made.tokenizer.decode(run) for run in runs if run]


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
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("turns", ["all", "last"])
def test_the_assistants_text_and_ends_of_turn_count(name: str, turns: str) -> None:
    template, end = TEMPLATES[name]
    made = encoder(template, bos="bos" in template)
    group = conversation(True, True, True)
    if name != "a system message of its own":
        group = replace(group, prompt=(Message(role="system", content="Be brief."), *group.prompt))
    found = encoded(made.encode(group, 500, turns=turns))
    messages = [*group.prompt, *(group.responses[0].messages or ())]
    whole = made.chat.render(messages, False)
    assert (
        made.tokenizer.decode([*found.prompt, *found.rows[0].tokens])
        == whole[: whole.rindex(end) + len(end)]
    )
    space = " " if "plain" in name else ""  # one token with the word
    wanted = [space + words + end for words in (SAID[1], SAID[3], "Goodbye.")]
    assert counted(made, found.rows[0]) == (wanted if turns == "all" else wanted[-1:])
    assert made.tokenizer.decode(list(found.prompt)) == made.chat.prompt(group.prompt)
    assert found.prompt.count(made.tokenizer.convert_tokens_to_ids("<|bos|>")) == (
        "bos" in template
    )


def test_turns_that_do_not_count_are_context() -> None:
    made = encoder()
    found = encoded(made.encode(conversation(False, True, False), 500))
    assert counted(made, found.rows[0]) == [SAID[3] + "<|im_end|>"]
    assert (
        counted(
            made, encoded(made.encode(conversation(True, True, False), 500, turns="last")).rows[0]
        )
        == []
    )


def test_a_response_is_its_text_and_an_end_of_turn() -> None:
    made = encoder()
    group = Group(
        (user("q"),),
        (Response(text="some words"), Response(text=""), Response(text="more", truncated=True)),
    )
    rows = encoded(made.encode(group, 100)).rows
    assert [made.tokenizer.decode(row.tokens) for row in rows] == [
        "some words<|im_end|>",
        "<|im_end|>",
        "more",
    ]
    assert all(row.mask == (True,) * len(row.tokens) for row in rows)
    assert [row.truncated for row in rows] == [False, False, True]


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
@pytest.mark.parametrize("name", ["chatml", "an end of turn of several tokens"])
def test_a_scored_response_ends_once(name: str) -> None:
    template, end = TEMPLATES[name]
    made = encoder(template)
    cut = Response(text="more", truncated=True)
    group = Group(
        (user("q"),), (Response(text="ab"), cut, Response(text="", tokens=made.end_of_turn))
    )
    rows = encoded(made.encode(group, 100, scoring=True)).rows
    # All that the template writes, so that others find the score at the last token, too
    end += "\n"
    assert [made.tokenizer.decode(row.tokens) for row in rows] == ["ab" + end, "more" + end, end]
    assert not any(row.truncated for row in rows)
    room = len(made.prompt(group.prompt)) + 1 + len(made.closing)
    short = encoded(made.encode(group, room, scoring=True)).rows[1]
    assert made.tokenizer.decode(short.tokens) == "m" + end


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
    assert Encoder(tokenizer).bos == ()  # the tokenizer has one, but does not add it
    process = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.bos_token_id)]
    )
    tokenizer.backend_tokenizer.post_processor = process
    made = Encoder(tokenizer)
    assert made.bos == (tokenizer.bos_token_id,)
    assert tokenizer.bos_token_id not in made.prompt((user("q"),))
    for name in ("plain", "chatml", "hermes", "llama2", "zephyr"):
        set_chat_template(tokenizer, name)
        prompt = Encoder(tokenizer).prompt((user("q"),))
        assert prompt[0] == tokenizer.bos_token_id and prompt.count(tokenizer.bos_token_id) == 1


def test_decoded_text_has_no_end_of_turn() -> None:
    made = encoder()
    ids = made.text("some <|im_end|> words")
    assert made.decode(ids) == made.decode([*ids, *made.end_of_turn]) == "some <|im_end|> words"
    assert made.decode(made.end_of_turn) == "" == made.decode([])


def test_a_template_without_an_end_of_turn_ends_with_eos() -> None:
    made = encoder(NO_END)
    assert made.end_of_turn == (made.tokenizer.eos_token_id,)
    row = encoded(made.encode(Group((user("q"),), (Response(text="a"),)), 100)).rows[0]
    assert row.tokens == (*made.text("a"), made.tokenizer.eos_token_id)


def test_a_template_that_drops_text_is_refused() -> None:
    forgets = CHATML.replace(
        "m['content']", "(m['content'] if loop.last or m['role'] == 'user' else '...')"
    )
    with pytest.raises(DataError, match="does not write the assistant's words"):
        encoder(forgets).encode(conversation(True, True, True), 500)


def test_special_tokens_in_data_are_ordinary_text() -> None:
    """An end of turn written by a user or in a demonstration does not end a turn."""
    made = encoder()
    end = made.end_of_turn[-1]
    row = encoded(made.encode(Group((user("q"),), (Response(text="a<|im_end|>b"),)), 100)).rows[0]
    assert row.tokens.count(end) == 1 and row.tokens[-1] == end
    assert made.tokenizer.decode(row.tokens) == "a<|im_end|>b<|im_end|>"


@pytest.mark.silent_bug(
    "templates: written twice",
    "Text that a template already rendered is rendered again.",
    "Control tokens in data are read as plain text, and the run says so.",
    "huggingface/trl#696",
)
def test_a_text_that_was_rendered_before_is_counted() -> None:
    """Data sets hold such texts for trainers that tokenize them with the template's tokens; here
    these are letters.
    """
    made = encoder()
    for group in (
        Group((user("<|im_start|>user\nq<|im_end|>"),), (Response(text="a"),)),
        Group((user("q"),), (Response(text="a<|im_end|>"),)),
        Group((), (Response(text="<|im_start|>user\nq<|im_end|>"),)),
    ):
        made.forget_counts()
        made.encode(group, 200)
        assert made.counts == {"typed_tokens": 1}
    made.forget_counts()
    made.encode(Group((user("q"),), (Response(text="</s> is a tag"),)), 200)
    assert not made.counts and "give a conversation as messages" in drop_reason("typed_tokens", 1)


@pytest.mark.parametrize("bos", [False, True])
def test_every_token_of_raw_text_that_can_be_predicted_counts(bos: bool) -> None:
    made = encoder(bos=bos)
    made.tokenizer.add_bos_token = bos
    made.bos = (made.tokenizer.bos_token_id,) if bos else ()
    found = encoded(made.encode(Group((), (Response(text="raw text"),)), 100))
    assert found.prompt == made.bos
    row = found.rows[0]
    assert row.tokens == (*made.text("raw text"), made.tokenizer.eos_token_id)
    assert row.mask == (bos, *[True] * (len(row.tokens) - 1))


THINKS = CHATML.replace("assistant\n' }}{% end", "assistant\n<think>\n' }}{% end").replace(
    "m['content'] +", "m['content'].split('</think>')[-1].lstrip() +"
)
# Both the prompt and the finished turn open the block, and the words follow as they are.
VERBATIM = CHATML.replace(
    "+ '\n' + m['content']",
    "+ '\n' + ('<think>\n' if m['role'] == 'assistant' else '') + m['content']",
)
VERBATIM = VERBATIM.replace("assistant\n' }}{% end", "assistant\n<think>\n' }}{% end")


@pytest.mark.silent_bug(
    "templates: reasoning",
    "Earlier turns lose their block, and the mask is wrong from there on.",
    "A turn that does not begin with its prompt is context, and the run says so.",
    "axolotl-ai-cloud/axolotl#3088",
)
def test_a_generation_prompt_that_the_template_does_not_keep() -> None:
    """Reasoning models whose templates drop `<think>` from finished turns: from all of them, or
    from earlier ones.
    """
    said = (assistant("yes"), user("and now?"), assistant("<think>\nWell.\n</think>\n\nno"))
    group = Group((user("please say yes or no"),), (Response(messages=said),), id="talk")
    with pytest.raises(DataError, match="does not write the answer after its own prompt"):
        encoder(THINKS).encode(group, 500)
    made = encoder(QWEN3_THINKING)
    found = encoded(made.encode(group, 500))
    assert counted(made, found.rows[0]) == ["Well.\n</think>\n\nno<|im_end|>"]
    # The first turn's prompt ends with `<think>`, too, but the template does not write it there.
    assert made.counts == {"unprompted_turns": 1}
    assert made.tokenizer.decode([*found.prompt, *found.rows[0].tokens]) == (
        "<|im_start|>user\n"
        "please say yes or no<|im_end|>\n"
        "<|im_start|>assistant\n"
        "yes<|im_end|>\n"
        "<|im_start|>user\n"
        "and now?<|im_end|>\n"
        "<|im_start|>assistant\n"
        "<think>\n"
        "Well.\n"
        "</think>\n"
        "\n"
        "no<|im_end|>"
    )


def _reasons(made: Encoder, text: str) -> list[float | None]:
    """A sample with these words after its prompt, as `format` scores it, and as an environment's
    turn.
    """
    sampled = Continuation((*made.text(text), *made.end_of_turn), (), True)
    response = _response(made, sampled, "policy")
    turn = Turns(made).read(sampled.tokens)
    assert turn["content"] == response.text
    group = Group((user("q"),), (response,))
    return list(Form(Form.Options(tags=["think", "answer"])).score([group])[""])


@pytest.mark.silent_bug(
    "templates: reasoning",
    "The template opens `<think>`, the reward sees only sampled tokens, and every right answer "
    "scores 0.",
    "Rewards see the response as the template continues it.",
    "huggingface/trl#6966",
    "huggingface/trl#7141",
    "huggingface/open-r1#560",
)
@pytest.mark.parametrize("code", [THINKS, QWEN3_THINKING, VERBATIM])
def test_a_reward_sees_the_reasoning_that_the_prompt_opens(code: str) -> None:
    made = encoder(code)
    assert _reasons(made, "Two.\n</think>\n\n<answer>4</answer>") == [1.0]
    assert _reasons(made, "\n</think>\n\n<answer>4</answer>") == [0.0]  # has no reasoning
    assert _reasons(made, "<answer>4</answer>") == [0.0]  # is still thinking
    # The prompt opens nothing
    assert _reasons(encoder(CHATML), "<think>Two.</think><answer>4</answer>") == [1.0]


@pytest.mark.silent_bug(
    "templates: reasoning",
    "A sample's reasoning lands behind an empty block when it is rendered again.",
    "A sample read as text has the tokens that were sampled.",
    "huggingface/trl#6361",
)
@pytest.mark.parametrize("code", [QWEN3_THINKING, VERBATIM])
def test_a_sample_read_as_text_has_its_tokens(code: str) -> None:
    """The tag that its text begins with is the template's."""
    made = encoder(code)
    tokens = (*made.text("Two.\n</think>\n\n4"), *made.end_of_turn)
    sampled = _response(made, Continuation(tokens, (), True), "policy")
    group = Group(
        (user("q"),), (replace(sampled, tokens=None), replace(sampled, tokenizer=made.digest))
    )
    read, own = encoded(made.encode(group, 500)).rows
    assert sampled.text.startswith("<think>") and read.tokens == own.tokens == tokens


def test_written_must_match_the_tokens() -> None:
    group = Group(
        (user("a"),), (Response(text="b", tokens=(3, 4, 5), written=(True, False)),), id="odd"
    )
    with pytest.raises(DataError, match="the row 'a': a response has 3 tokens, but 2 marks"):
        encoder().encode(group, 100)


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
    group = Group((user("q"),), (Response(text="many words that do not fit"), Response(text="a")))
    room = len(made.prompt(group.prompt))
    cut, short = encoded(made.encode(group, room + 5)).rows
    assert (
        cut.tokens == made.text("many words that do not fit")[:5]
        and cut.truncated
        and all(cut.mask)
    )
    assert short.tokens == (*made.text("a"), *made.end_of_turn) and not short.truncated
    assert made.counts["cut"] == 1 and made.counts["equal_pairs"] == 0
    scored, _ = encoded(made.encode(group, room + 5, scoring=True)).rows
    assert scored.tokens == (*cut.tokens[:3], *made.closing) and not scored.truncated
    whole = len(made.text("many words that do not fit")) + 1
    assert (
        not encoded(made.encode(group, room + whole)).rows[0].truncated and made.counts["cut"] == 2
    )


def test_a_prompt_without_room_is_dropped() -> None:
    made = encoder()
    group = Group((user("q"),), (words(3),))
    prompt = len(made.prompt(group.prompt))
    assert (
        made.encode(group, prompt) is None and made.encode(group, prompt + 1, scoring=True) is None
    )
    assert made.counts["no_room"] == 2
    assert (
        made.encode(group, prompt + 1) is not None
        and made.encode(group, prompt + 3, scoring=True) is not None
    )
    assert encode_all(
        made, [group, replace(group, prompt=(user("longer " * 20),))], prompt + 3
    ) == [made.encode(group, prompt + 3)]


@pytest.mark.silent_bug(
    "data: truncation",
    "An answer is cut to nothing, and its mean is NaN.",
    "Pairs without a counted token are left out and counted.",
    "huggingface/trl#6548",
    "huggingface/trl#3382",
)
def test_equal_pairs_and_pairs_without_counted_tokens_are_dropped() -> None:
    made = encoder()
    one, other = words(8), Response(text="", tokens=(*range(30, 36), 90, 91))
    group = Group((user("q"),), (one, other), pairs=(Pair(0, 1),))
    room = len(made.prompt(group.prompt))
    assert encoded(made.encode(group, room + 8)).pairs == (Pair(0, 1),)
    assert made.counts["equal_pairs"] == 0
    assert encoded(made.encode(group, room + 6)).pairs == ()
    assert made.counts["equal_pairs"] == 1
    silent = replace(other, written=(False,) * 8)
    for responses in ((one, silent), (silent, one)):
        assert encoded(made.encode(replace(group, responses=responses), room + 8)).pairs == ()
        # A reward model reads the last token's state, whoever wrote it.
        assert (
            len(
                encoded(
                    made.encode(replace(group, responses=responses), room + 9, scoring=True)
                ).pairs
            )
            == 1
        )
    assert made.counts["equal_pairs"] == 3


@pytest.mark.parametrize("scoring", [False, True])
def test_groups_that_are_encoded_together_are_encoded_the_same(scoring: bool) -> None:
    groups = [
        conversation(True, False, True),
        Group(
            (user("q <|im_end|>"),),
            (Response(text="a<|im_end|>"), Response(text="b", truncated=True)),
        ),
        Group((), (Response(text="raw"),)),
        Group((user("sampled"),), (words(3),)),
        Group((user("long " * 9999),), (Response(text="a"),)),
    ]
    alone = [encoder().encode(group, 120, scoring=scoring) for group in groups]
    made = encoder()
    assert (
        made.encode_batch(made.accepted(groups, scoring), 120, turns="all", scoring=scoring)
        == alone[:-1]
    )
    assert alone[-1] is None and all(alone[:-1])


def test_an_end_of_turn_that_takes_in_the_line_break_after_it() -> None:
    """As in Phi 3, whose control tokens have `rstrip`."""
    from tokenizers import AddedToken

    tokenizer = _tokenizer()
    end = AddedToken("<|im_end|>", rstrip=True, special=True)
    tokenizer.add_special_tokens({"eos_token": end})
    tokenizer.chat_template = CHATML
    made = Encoder(tokenizer)
    assert made.end_of_turn == made.closing == (tokenizer.eos_token_id,) and made.end_ids == {
        tokenizer.eos_token_id
    }
    group = conversation(True, True, True)
    ids = tokenizer.apply_chat_template([*group.prompt, *(group.responses[0].messages or ())])[
        "input_ids"
    ]
    for scoring in (False, True):
        found = encoded(made.encode(group, 500, scoring=scoring))
        assert [*found.prompt, *found.rows[0].tokens] == ids
        assert counted(made, found.rows[0]) == [
            words + "<|im_end|>" for words in (SAID[1], SAID[3], "Goodbye.")
        ]


def test_the_templates_end_is_its_own_although_a_token_joins_it_with_the_answer() -> None:
    """In the example the end is one token with the answer's full stop, which a sample need not
    have.
    """
    made = encoder(CHATML.replace("'<|im_end|>\n'", "'\n<|im_end|>\n'"))
    made.tokenizer.add_tokens([".\n"])
    fresh = Encoder(made.tokenizer)
    assert made.tokenizer.decode(fresh.closing) == "\n<|im_end|>\n"
    assert made.tokenizer.decode(fresh.end_of_turn) == "\n<|im_end|>"
    sample = Response(text="", tokens=fresh.text("so it has"), truncated=True)
    (row,) = encoded(fresh.encode(Group((user("q"),), (sample,)), 100, scoring=True)).rows
    assert made.tokenizer.decode(row.tokens) == "so it has\n<|im_end|>\n"


@pytest.mark.parametrize("special", [False, True])
def test_reasoning_tags_of_an_assistant_are_tokens(special: bool) -> None:
    made = encoder()
    made.tokenizer.add_tokens(["<think>", "</think>"], special_tokens=special)
    fresh = Encoder(made.tokenizer)
    text = "<think>\nWell.\n</think>\n\nno"
    (row,) = encoded(fresh.encode(Group((user("<think>"),), (Response(text=text),)), 100)).rows
    tags = made.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert [row.tokens.count(tag) for tag in tags] == [1, 1]
    assert (
        tags[0]
        in encoded(fresh.encode(Group((user("<think>"),), (Response(text="a"),)), 100)).prompt
    ) != special


def test_a_sample_decodes_to_the_words_that_were_written() -> None:
    """Templates that write a space before the answer, and tokenizers that add one of their own."""
    from test_text_tokens import sentencepiece

    tokenizer = sentencepiece()
    tokenizer.eos_token = "</s>"
    for space in ("", " "):
        tokenizer.chat_template = (
            "{% for m in messages %}{{ ('"
            + space
            + "' + m.content + '</s>') if m.role == 'assistant' "
            "else m.content + '</s>' }}{% endfor %}"
        )
        made = Encoder(tokenizer)
        row = encoded(made.encode(Group((user("is it?"),), (Response(text="It is."),)), 100)).rows[
            0
        ]
        assert made.decode(row.tokens) == "It is."


@pytest.mark.silent_bug(
    "templates: lost parts",
    "Calls and schemas of tools are missing in the prompt.",
    "A turn whose calls are not written is context, and the run says so.",
    "axolotl-ai-cloud/axolotl#3824",
    "huggingface/trl#6259",
)
def test_tools_and_calls_that_the_template_drops_are_counted() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    said = (assistant("", tool_calls=[call]), Message(role="tool", content="4"), assistant("Four."))
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    group = Group((user("2 + 2?"),), (Response(messages=said),), tools=(tool,))
    made = encoder()
    (row,) = encoded(made.encode(group, 200)).rows
    assert counted(made, row) == ["Four.<|im_end|>"] and made.counts == {
        "unprompted_turns": 1,
        "dropped_tools": 1,
    }
    writes = CHATML.replace(
        "m['content'] +", "(m.tool_calls | default('')) | string + m['content'] +"
    )
    made = encoder("{{ tools | string }}" + writes)
    (row,) = encoded(made.encode(group, 500)).rows
    assert len(counted(made, row)) == 2 and "add" in counted(made, row)[0] and not made.counts


ONLY_TWO = CHATML.replace(
    "{% for m in messages %}", "{% for m in messages if m.role in ('user', 'assistant') %}"
)
SYSTEM_SAID = Message(role="system", content="Speak French.")


@pytest.mark.silent_bug(
    "templates: lost parts",
    "The template writes no system message or no result of a tool, without an error.",
    "The run counts such rows and says so.",
    "huggingface/transformers#30545",
    "raullenchai/Rapid-MLX#1765",
    "axolotl-ai-cloud/axolotl#3824",
)
@pytest.mark.parametrize(
    ("prompt", "answers"),
    [
        ((SYSTEM_SAID, user("hi")), (assistant("French."),)),
        ((user("hi"),), (assistant("a"), Message(role="tool", content="42"), assistant("42"))),
    ],
)
def test_a_message_that_the_template_does_not_write_is_counted(prompt: Any, answers: Any) -> None:
    """Phi-3's first template wrote no system message, and several write no results of tools."""
    group = Group(prompt, (Response(messages=answers),))
    for code, count in ((ONLY_TWO, 1), (CHATML, 0)):
        made = encoder(code)
        made.encode(group, 200)
        assert made.counts["dropped_messages"] == count
    assert "learned without a message" in drop_reason("dropped_messages", 1)


@pytest.mark.parametrize("name", DROP_REASONS)
def test_what_happened_to_texts_reads_well_for_one_and_several(name: str) -> None:
    assert not {"its", "is"} & set(re.findall(r"\w+", drop_reason(name, 3)))


def test_an_answer_about_the_tag_is_no_reasoning() -> None:
    said = assistant("The tag </think> closes a block.")
    made = encoder(CHATML)
    (row,) = encoded(made.encode(Group((user("q"),), (Response(messages=(said,)),)), 200)).rows
    assert made.tokenizer.decode(row.tokens) == "The tag </think> closes a block.<|im_end|>"


def test_raw_tokens_without_a_bos_token_have_nothing_before_the_first() -> None:
    made = encoder()
    rows = encoded(made.encode(Group((), (words(3), Response(text="", tokens=()))), 100)).rows
    assert [row.mask for row in rows] == [(False, True, True), ()]
