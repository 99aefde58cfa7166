"""A mathematical answer is right if it means the same, however it is written."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from alignkit import DataError, Group, Response
from alignkit_plugins.rewards.math_verify import MathVerify
from tests.rows import assistant, user

pytest.importorskip("math_verify")


def reward(**options: str) -> MathVerify:
    return MathVerify(MathVerify.Options(**options))


def group(answer: object, *texts: str, column: str = "answer") -> Group:
    return Group((user("How much?"),), tuple(map(Response, texts)), meta={column: answer})


RIGHT = yaml.safe_load(r"""
- ['1/2', 'It is \boxed{0.5}.']
- ['\frac{1}{2}', The answer is 0.5]
- [12, 3 times 4 is 12.]
- ['1,000', '1000']
- [x + 1, $1 + x$]
- [0.25, '$\frac{1}{4}$']
""")


@pytest.mark.parametrize(("answer", "text"), RIGHT)
def test_the_same_value_is_right(answer: object, text: str) -> None:
    assert reward().score([group(answer, text, "I do not know", "999983")]) == [1.0, 0.0, 0.0]


@pytest.mark.silent_bug(
    "rewards: math",
    "The right answer scores 0 without dollar signs around it.",
    "The text of the answer column is always right.",
    "huggingface/Math-Verify#56",
)
@pytest.mark.parametrize(
    "answer", ["(1,2)", "[0,1)", r"\{1,2\}", "x^2+1", r"2\sqrt{3}", r"\pi", r"x \in [0,1]"]
)
def test_the_known_answer_itself_is_right(answer: str) -> None:
    """Also without the marks of LaTeX, which the package needs to read it."""
    ways = ("{}", " {}. ", "${}$", r"\boxed{{{}}}", "So:\n#### {}")
    texts = [way.format(answer) for way in ways]
    assert reward().score([group(answer, *texts, "(2,1)", "7")]) == [1.0] * 5 + [0.0] * 2


@pytest.mark.silent_bug(
    "rewards: math",
    "One of two required answers is enough.",
    "All of them are required.",
    "huggingface/Math-Verify#47",
)
def test_one_of_several_answers_is_not_all() -> None:
    texts = ("1728", "1331", r"\boxed{1728, 1331}")
    for answer in ("1331 and 1728", "1331, 1728"):
        assert reward().score([group(answer, *texts)]) == [0.0, 0.0, 1.0]


@pytest.mark.silent_bug(
    "rewards: math",
    "Two formulas that cannot be parsed are equal because they contain the same number.",
    "A formula is read whole, or it is no answer.",
    "huggingface/Math-Verify#82",
)
def test_a_formula_is_read_whole() -> None:
    """The package takes a number out of a formula that it cannot read, here the 1: that is no
    answer.
    """
    minus, plus = r"1 - \frac{1}{\mathrm{e}}", r"$1 + \frac{1}{\mathrm{e}}$"
    same = [r"$1 - \frac{1}{e}$", rf"${minus}$".replace("mathrm", "operatorname")]
    assert reward().score([group(minus, plus, "1", *same)]) == [0.0, 0.0, 1.0, 1.0]
    bold = plus.replace("rm", "bf")
    assert reward().score([group("1", plus, bold, "$1$")]) == [0.0, 0.0, 1.0]
    with pytest.raises(DataError, match="cannot read the answer"):
        reward().check_prompts([group(r"\frac{1}{\unknown{3}}")])


def test_scores_come_in_order_outside_the_main_thread_and_of_the_last_message() -> None:
    talk = Response(messages=tuple(map(assistant, ("7?", "no", "8"))))
    groups = [group("1/2", "3", "0.5"), group(3, "3"), Group((), (talk,), meta={"answer": 8})]
    with ThreadPoolExecutor(1) as threads:
        found = threads.submit(reward().score, groups).result()
    assert found == [0.0, 1.0, 1.0, 1.0]


def test_prompts_need_an_answer_that_can_be_read() -> None:
    reward(column="target").check_prompts([group(2, column="target")])
    none = r"'How much\?' has no column 'target' \(its columns: answer\)"
    with pytest.raises(DataError, match=none):
        reward(column="target").check_prompts([group(2)])
    for other in (None, True, ["2"]):
        with pytest.raises(DataError, match="not a number or text"):
            reward().check_prompts([group(other)])
    for unreadable in ("...", ""):
        with pytest.raises(DataError, match="cannot read the answer"):
            reward().check_prompts([group(2), group(unreadable)])
