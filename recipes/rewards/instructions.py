"""Whether an answer follows an instruction that code can check, as in IFEval (Zhou et al. 2023, arXiv:2311.07911)."""

import re
from collections.abc import Callable

CHECKS: dict[str, Callable[[str, str], bool]] = {
    "lowercase": lambda text, value: text == text.lower(),
    "uppercase": lambda text, value: text == text.upper(),
    "no commas": lambda text, value: "," not in text,
    "words at most": lambda text, value: len(text.split()) <= int(value),
    "bullets": lambda text, value: len(re.findall(r"^\s*[*-] ", text, re.MULTILINE)) == int(value),
    "begins with": lambda text, value: text.startswith(value),
    "ends with": lambda text, value: text.endswith(value),
    "contains": lambda text, value: re.search(rf"\b{re.escape(value)}\b", text, re.IGNORECASE) is not None,
}


def followed(completions: list[str], instruction: list[str], value: list[str], **columns: object) -> list[float]:
    """1 for an answer that has words and does what the prompt's `instruction` says, else 0."""
    rows = zip(completions, instruction, value, strict=True)
    return [float(any(map(str.isalnum, text)) and CHECKS[name](text.strip(), of)) for text, name, of in rows]
