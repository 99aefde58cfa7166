"""What happens to texts that do not fit, in words."""

# Name of a count -> what is counted, and what happened to it, in words that fit one and several.
UNFIT = {
    "no_room": ("row", "left out: no room for a response in max_length"),
    "cut": ("response", "truncated at max_length"),
    "equal_pairs": ("pair", "left out: both responses have the same tokens"),
    "uncounted_pairs": ("pair", "left out: a response has no token that counts"),
    "unprompted_turns": (
        "turn",
        "not learned: the chat template does not write such a turn after the generation prompt",
    ),
    "endless_turns": (
        "turn",
        "learned without an end: the chat template writes no token behind such a turn, so the policy may not stop "
        "there; set model.chat_template to one that ends turns",
    ),
    "trimmed_turns": (
        "answer",
        "learned in other words: the chat template drops the indentation at the beginning, as of code; set "
        "model.chat_template to one that does not trim",
    ),
    "dropped_calls": ("turn", "not learned: the chat template does not write the tool calls"),
    "dropped_tools": ("row", "learned without tools: the chat template does not write them"),
    "dropped_messages": (
        "row",
        "learned without a message: the chat template does not write that of the system or of a tool; set "
        "model.chat_template, or, for the system's, model.system_messages to merge",
    ),
    "dropped_names": ("row", "learned without a name: the chat template does not write who speaks in a message"),
    "typed_tokens": (
        "row",
        "with control tokens in the words, which are read as letters: give a conversation as messages, not as the "
        "text that a chat template made of it",
    ),
    "closed_at_once": (
        "answer",
        "without reasoning: learned to end at once the block of reasoning that the chat template opens; set "
        "model.reasoning to empty, and prompts will end with an empty block",
    ),
    "blank_turns": ("turn", "not learned: empty"),
    "joined": ("response", "tokenized after the prompt: in the whole text, one token covers the end of the prompt"),
    "weightless": ("row", "of weight 0 left out"),
    "refused": ("row", "left out: refused by the chat template"),
    "split": ("document", "longer than max_length and learned in pieces"),
    "chunks": ("piece", "of these"),
}
