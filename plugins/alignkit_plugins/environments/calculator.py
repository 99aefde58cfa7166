"""An environment with a tool: arithmetic. The policy may calculate, and is rewarded for the right
answer.

Expressions are parsed, never run: only numbers and `+ - * / // % **` with parentheses.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from alignkit import DataError, Environment, Group
from alignkit.evaluation.numbers import numbers_in
from alignkit_plugins.text.spoken import after_thoughts

LONGEST, LARGEST = 200, 1e12  # characters of an expression; its numbers and results
TOLERANCE = 1e-6  # largest distance between answers that count as equal
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


class Calculator(Environment):
    """The row's column `answer` is compared with the last number of the policy's last turn."""

    answer: Fraction

    def check_prompts(self, groups: Sequence[Group]) -> None:
        for group in groups:
            if _last_number(str(group.meta.get("answer", ""))) is None:
                raise DataError(
                    f"{group.origin}: the environment 'calculator' needs a number in the column "
                    "'answer'"
                )

    def reset(self, row: Mapping[str, Any]) -> None:
        number = _last_number(str(row["answer"]))
        assert number is not None  # checked before the run
        self.answer = number

    def calculate(self, expression: str) -> str:
        """Calculate an arithmetic expression.

        Args:
            expression: numbers and + - * / // % ** with parentheses, such as `(2 + 3) * 4`.

        Returns:
            The result.
        """
        if len(expression) > LONGEST:
            raise ValueError(f"the expression is longer than {LONGEST} characters")
        try:
            return f"{_value(ast.parse(expression.strip(), mode='eval').body):.12g}"
        except (SyntaxError, RecursionError, MemoryError):
            raise ValueError("this is not an arithmetic expression") from None
        except (ArithmeticError, TypeError) as error:
            raise ValueError(str(error)) from error

    def get_reward(self) -> float:
        """1 if the answer is right, else 0."""
        number = _last_number(after_thoughts(self.turns[-1]["content"]) or "")
        return float(number is not None and abs(number - self.answer) <= TOLERANCE)


def _value(node: ast.expr) -> float:
    """Raises ValueError for anything but numbers and operators, and for numbers that are too
    large.
    """
    value: Any
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = node.value
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        value = _OPERATORS[type(node.op)](_value(node.operand))
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and abs(right) > 64:
            raise ValueError("an exponent is above 64")
        value = _OPERATORS[type(node.op)](left, right)
    else:
        raise ValueError("only numbers and + - * / // % ** with parentheses can be calculated")
    if isinstance(value, complex) or not abs(value) <= LARGEST:
        raise ValueError(f"a number is beyond {LARGEST:g}")
    return float(value)


def _last_number(text: str) -> Fraction | None:
    """The exact value: a policy may write 1e999, which no float holds."""
    number = [*numbers_in(text)]
    return number[-1].value if number else None
