"""A verifiable reward: whether the sum is right. The function has the signature that TRL's rewards
have.
"""

import re


def correct(completions: list[str], answer: list[int], **columns: object) -> list[float]:
    """1 where the last whole number of the completion is the answer, else 0."""
    return [
        float(_last_number(text) == number)
        for text, number in zip(completions, answer, strict=True)
    ]


def _last_number(text: str) -> int | None:
    numbers = re.findall(r"\d+", text)
    return int(numbers[-1]) if numbers else None
