"""Rewards in TRL's signature, of the share of a response's characters that are ASCII letters."""


def share_of_letters(completions, **columns):
    return [
        sum(c.isascii() and c.isalpha() for c in text) / max(1, len(text)) for text in completions
    ]


def mostly_letters(completions, **columns):
    """1 if more than half of them are, else 0."""
    return [float(share > 0.5) for share in share_of_letters(completions)]
