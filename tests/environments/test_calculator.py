"""The calculator: what it calculates, refuses and rewards, and a policy that learns to use it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alignkit import DataError, Group
from alignkit.data.group import Origin
from alignkit_plugins.environments.calculator import Calculator
from tests.rows import cells


def calculator(**options: Any) -> Calculator:
    return Calculator(Calculator.Options(**options))


RESULTS = """
2 + 3           | 5
(2 + 3) * -4    | -20
7 // 2 + 7 % 2  | 4
1 / 3           | 0.333333333333
2 ** 10         | 1024
1e3 + 0.5       | 1000.5
+5              | 5
"""
REFUSED = """
__import__('os').system('true') | only numbers and
a + 1                           | only numbers and
'a' * 9                         | only numbers and
True + 1                        | only numbers and
1j                              | only numbers and
2 if 1 else 3                   | only numbers and
1 / 0                           | division by zero
9 ** 9 ** 9 ** 9                | an exponent is above 64
1 ** 65                         | an exponent is above 64
1 ** -65                        | an exponent is above 64
10 ** 60                        | beyond 1e
(-8) ** 0.5                     | beyond 1e
1e400                           | beyond 1e
-1e12 - 1                       | beyond 1e
1e12 ** 64                      | out of range
2 +                             | not an arithmetic expression
                                | not an arithmetic expression
"""
LONG = [
    ("(" * 150 + ")" * 20, "not an arithmetic expression"),
    ("1" * 201, "longer than 200"),
    ("1\0", "null byte|not an arithmetic"),
]
REWARDS = """
It is 1,024. | 1024    | 1.0
5            | "5"     | 1.0
5, no, 6     | "5"     | 0.0
none         | "5"     | 0.0
-3           | "#### -3" | 1.0
3.0001       | 3       | 0.0
3.0000009    | 3       | 1.0
1e999        | "5"     | 0.0
"""


@pytest.mark.parametrize(
    ("expression", "result"), [(" 1 ", "1"), (f"1{'+1' * 99}0", "109"), *cells(RESULTS)]
)
def test_arithmetic(expression: str, result: str) -> None:
    assert calculator().calculate(expression) == result


@pytest.mark.parametrize(("expression", "message"), [*cells(REFUSED), *LONG])
def test_anything_else_is_refused(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calculator().calculate(expression)


@pytest.mark.parametrize(("said", "answer", "reward"), cells(REWARDS))
def test_the_last_number_is_the_answer(said: str, answer: str, reward: str) -> None:
    environment = calculator()
    environment.reset({"answer": json.loads(answer)})
    environment.turns = ({"role": "assistant", "content": said},)
    assert environment.get_reward() == float(reward)


def test_prompts_need_an_answer() -> None:
    groups = [Group((), meta={"answer": word}, origin=Origin("a", 2)) for word in ("3", "unknown")]
    calculator().check_prompts(groups[:1])
    with pytest.raises(DataError, match=r"a:2: .* needs a number in the column 'answer'"):
        calculator().check_prompts([Group((), meta={"answer": 5}), groups[1]])
