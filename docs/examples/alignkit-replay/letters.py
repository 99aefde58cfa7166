"""A reward in TRL's signature: 1 if more than half of a response's characters are ASCII letters,
else 0.
"""


def mostly_letters(completions, **columns):
    return [
        float(sum(c.isascii() and c.isalpha() for c in text) > len(text) / 2)
        for text in completions
    ]
