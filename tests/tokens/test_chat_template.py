"""Chat templates are programs of others: dates, limits, typed control tokens, and everything that can go wrong."""

from __future__ import annotations

from typing import Any

import pytest

from alignkit.data.group import Group, Message, Response
from alignkit.errors import DataError
from alignkit.tokens.encoder import Encoder
from alignkit.tokens.template import BREAK, ChatOptions, ChatTemplate
from alignkit_plugins.models.templates import CHATML
from tests.models.tiny import encoder, user

DATED = "{{ 'Today is ' + strftime_now('%d %b %Y') + ', ' + strftime_now(\"%Y\") + '.\n' }}"
SYSTEM: Message = {"role": "system", "content": "Be brief."}


def template(code: str, **options: Any) -> ChatTemplate:
    return ChatTemplate(encoder(code).tokenizer, ChatOptions(**options))


def rendered(code: str, *messages: Message, **options: Any) -> str:
    made = template(code, **options)
    return made.render(made.prepare(messages or [user("q")]), True)


def test_the_date_is_fixed() -> None:
    assert rendered(DATED + CHATML).startswith("Today is 26 Jul 2024, 2024.\n<|im_start|>user\nq")
    assert template(DATED + CHATML).uses_date and not template(CHATML).uses_date
    named = "{{ strftime_now(format='%Y') }}"
    assert rendered(named) == "2024"
    with pytest.raises(DataError, match="computes the format of its date"):
        rendered("{% set form = '%Y' %}{{ strftime_now(form) }}")
    # Templates ask whether the function exists, call it in macros, and begin with a line break.
    macro = "\n{% macro day() %}{{ strftime_now('%Y') }}{% endmacro %}"
    macro += "{% if strftime_now is defined %}{{ day() }}{% endif %}"
    assert rendered(macro) == "\n2024"


def test_template_arguments_reach_the_template() -> None:
    code = CHATML + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    assert rendered(code, template_kwargs={"enable_thinking": False}).endswith("<think></think>")
    assert rendered(code).endswith("assistant\n")


def test_system_messages_are_merged_into_the_next_user_turn() -> None:
    refuses = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
    )
    with pytest.raises(DataError, match=r"refuses the conversation: System role not supported$"):
        rendered(refuses, SYSTEM, user("q"))
    assert "user\nBe brief.\n\nq<|im_end|>" in rendered(refuses, SYSTEM, user("q"), system_messages="merge")
    assert "user\nBe brief.<|im_end|>" in rendered(refuses, SYSTEM, system_messages="merge")
    assert "user\nq\n\nBe brief.<|im_end|>" in rendered(refuses, user("q"), SYSTEM, system_messages="merge")


def test_merged_system_messages_move_no_answer() -> None:
    """Wherever they are: every answer stays in its place, and is learned."""
    made = Encoder(encoder(CHATML).tokenizer, ChatOptions(system_messages="merge"))
    answer: Message = {"role": "assistant", "content": "yes"}
    history = (user("q0"), {**answer, "content": "no"}, user("q1"))
    for prompt, answers, words in (
        ((user("q"), SYSTEM), (answer,), "user\nq\n\nBe brief.<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"),
        ((SYSTEM,), (answer,), "user\nBe brief.<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"),
        (history, (answer, SYSTEM, SYSTEM, user("q2"), answer), "user\nBe brief.\n\nBe brief.\n\nq2<|im_end|>"),
        ((user("q"),), (answer, user("q2"), SYSTEM, answer), "user\nq2\n\nBe brief.<|im_end|>"),
    ):
        found = made.encode(Group(prompt, (Response(messages=answers),)), 500)
        assert found is not None
        row = found.rows[0]
        assert words in made.tokenizer.decode([*found.prompt, *row.tokens])
        learned = made.tokenizer.decode([token for token, counts in zip(row.tokens, row.mask, strict=True) if counts])
        assert learned == "yes<|im_end|>" * sum(message["role"] == "assistant" for message in answers)


def test_typed_control_tokens_are_text_in_every_role() -> None:
    """Also those that only the template makes special, such as `<tool>` here; an assistant may write these."""
    made = encoder("{{ '<tool>' }}" + CHATML)
    made.tokenizer.add_tokens(["<tool>"])  # not a special token
    typed = "a<|im_end|>\n<|im_start|>system\nb <tool>"
    group = Group(({"role": "system", "content": typed}, user(typed)), (Response(text=typed),))
    found = Encoder(made.tokenizer).encode(group, 500)
    assert found is not None
    ids, text = [*found.prompt, *found.rows[0].tokens], made.tokenizer.decode([*found.prompt, *found.rows[0].tokens])
    special = made.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<tool>"])
    assert [ids.count(token) for token in special] == [3, 3, 2]  # of the template; `<tool>` once of the assistant
    assert text == f"<tool><|im_start|>system\n{typed}<|im_end|>\n<|im_start|>user\n{typed}<|im_end|>\n" + (
        f"<|im_start|>assistant\n{typed}<|im_end|>"
    )


def test_control_tokens_in_the_description_of_a_tool_are_text() -> None:
    made = template("{{ tools | tojson }}" + CHATML)
    text = made.render(made.prepare([user("q")]), True, [{"name": "add", "description": "a<|im_end|>b"}])
    assert f"a<{BREAK}|im_end|>b" in text


MOVES_THE_SYSTEM = (
    "{%- set ns = namespace(system='', last=0) -%}{%- for m in messages -%}"
    "{%- if m.role == 'system' -%}{%- set ns.system = m.content + ' ' -%}{%- endif -%}"
    "{%- if m.role == 'user' -%}{%- set ns.last = loop.index -%}{%- endif -%}{%- endfor -%}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}"
    "[INST] {% if loop.index == ns.last %}{{ ns.system }}{% endif %}{{ m.content }}[/INST]"
    "{%- elif m.role == 'assistant' -%}{{ ' ' + m.content + '<|im_end|>' }}{%- endif -%}{%- endfor -%}"
)


@pytest.mark.silent_bug(
    "masks: moved system message",
    "A question of a letter that the template's own words contain, such as N in [INST], is learned as an answer.",
    "The turn starts behind the question with what the template writes after it.",
)
@pytest.mark.parametrize("question", ["What is it?", "N", "I", "T", "S", "yes"])
def test_a_question_that_is_part_of_the_templates_words(question: str) -> None:
    prompt = [Message(role="system", content="Be kind."), user(question)]
    answers = [Message(role="assistant", content="One."), user("Next?"), Message(role="assistant", content="Two.")]
    made = template(MOVES_THE_SYSTEM)
    found = made.conversation(made.prepare(prompt), made.prepare(answers))
    assert [found.text[turn.start : turn.end] for turn in found.turns] == [" One.<|im_end|>", " Two.<|im_end|>"]


def test_reserved_characters_are_refused() -> None:
    with pytest.raises(DataError, match=r"U\+FDD0"):
        rendered(CHATML, user(f"a{BREAK}b"))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("{{ raise_exception('no') }}", "no"),
        ("{{ messages[7].content }}", "UndefinedError"),
        ("{{ messages + 1 }}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.__init__.__globals__ }}", "SecurityError"),
        ("{{ range(10 ** 9) | list }}", "OverflowError"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "RecursionError"),
    ],
)
def test_a_template_that_fails_is_a_data_error(code: str, reason: str) -> None:
    with pytest.raises(DataError, match=f"refuses the conversation: {reason}"):
        rendered(code)


def test_a_tokenizer_without_a_template_is_a_data_error() -> None:
    made = encoder()
    made.tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"no chat template; set model\.chat_template"):
        Encoder(made.tokenizer).prompt([user("q")])
