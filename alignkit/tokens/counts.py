"""What is left out or changed on the way from groups to tokens, in words."""

from __future__ import annotations

# Name of a count -> what is counted, and what happened to it, in words that fit one and several.
DROP_REASONS = {
    "no_room": ("row", "left out: no room for a response in max_length"),
    "cut": ("response", "truncated at max_length"),
    "equal_pairs": (
        "pair",
        "left out: both responses have the same tokens, or one has none that counts",
    ),
    "unprompted_turns": (
        "turn",
        "not learned: empty, or not written by the chat template as the policy would continue, "
        "with all reasoning and tool calls",
    ),
    "dropped_tools": ("row", "learned without tools: the chat template does not write them"),
    "dropped_messages": (
        "row",
        "learned without a message: the chat template does not write that of the system or of a "
        "tool; set model.chat_template",
    ),
    "typed_tokens": (
        "row",
        "with control tokens in the words, which are read as letters: give a conversation as "
        "messages, not as the text that a chat template made of it",
    ),
    "weightless": ("row", "of weight 0 left out"),
    "refused": ("row", "left out: refused by the chat template"),
    "split": ("document", "longer than max_length and learned in pieces"),
    "chunks": ("piece", "of these"),
}


def counted(count: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def drop_reason(name: str, count: int) -> str:
    """`2 responses truncated at max_length`."""
    noun, what = DROP_REASONS[name]
    return f"{counted(count, noun)} {what}"
