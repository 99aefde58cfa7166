"""A reward in TRL's signature: the share of a response's characters that are ASCII letters."""


def share_of_letters(completions, **columns):
    return [
        sum(c.isascii() and c.isalpha() for c in text) / max(1, len(text)) for text in completions
    ]
