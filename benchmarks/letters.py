"""The reward of levels.yaml."""


def contains_a(completions: list[str], **columns: object) -> list[float]:
    """1 where a completion contains the letter a, else 0."""
    return [float("a" in text) for text in completions]
