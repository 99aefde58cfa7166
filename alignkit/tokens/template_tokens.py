"""From rendered text to the tokens of prompts and answers, and back.

A response's tokens are those of the whole text after its prompt's: the policy continues exactly these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from alignkit.data.group import Message
from alignkit.data.spoken import OPENED_AT_END
from alignkit.errors import DataError
from alignkit.io.digest import digest
from alignkit.tokens.chat import ANSWER, CLOSE, Chat, Turn
from alignkit.tokens.chat_template import ChatOptions
from alignkit.tokens.text_tokens import Ids, TextTokenizer, TextTokens


@dataclass(frozen=True)
class PromptTokens:
    """A prompt as text and tokens. cut: character of its last control token. tail: the tokens from there on."""

    text: str
    ids: Ids
    cut: int
    tail: Ids


class TemplateTokens:
    """A tokenizer with its chat template."""

    def __init__(self, tokenizer: Any, chat: ChatOptions | None = None, end_ids: Iterable[int] = ()):
        """chat: how the chat template is used. end_ids: tokens that end a response, besides the template's own."""
        self.tokenizer = tokenizer
        self.rendered = TextTokenizer(tokenizer)
        self._more_ends = frozenset(end_ids)
        known = {self.tokenizer.eos_token_id, *self._more_ends} - {None}
        ends = frozenset(map(str, self.tokenizer.convert_ids_to_tokens(sorted(known))))
        self.chat = Chat(tokenizer, chat or ChatOptions(), ends)

    @cached_property
    def digest(self) -> str:
        """16 hex digits. Sampled tokens mean the same, and end the same way, for encoders with an equal one."""
        return digest([self.tokenizer.get_vocab(), self.end_of_turn])[:16]

    # The template's tokens

    @cached_property
    def bos(self) -> Ids:
        """The beginning-of-sequence token, if the tokenizer adds one to raw text."""
        empty = self.tokenizer("")["input_ids"]
        return tuple(empty[:1]) if empty and empty[0] == self.tokenizer.bos_token_id else ()

    @cached_property
    def _example(self) -> TextTokens:
        return self.rendered.tokens(self.chat.shape.whole)

    @cached_property
    def closing(self) -> Ids:
        """All tokens that the template writes after an answer."""
        return self._after(self.chat.shape.close + self.chat.shape.tail)

    @cached_property
    def end_of_turn(self) -> Ids:
        """The tokens from the end of the assistant's text through the end of turn; EOS if the template writes none."""
        shape = self.chat.shape
        if not shape.close:
            return (self.eos,)
        tail = len(self._example.ids) - self._example.first_from(len(shape.whole) - len(shape.tail))
        return self.closing[: len(self.closing) - tail]

    def _after(self, end: str) -> Ids:
        """The tokens of the example's end; by themselves, if one token covers the answer's last character, too."""
        place = len(self.chat.shape.whole) - len(end)
        first = self._example.first_from(place)
        whole = first == 0 or self._example.ends[first - 1] <= place
        return self._example.ids[first:] if whole else self.rendered.following(end).ids

    @property
    def eos(self) -> int:
        """The end-of-sequence token. Without one, the template's end of turn ends raw text, too."""
        eos = self.tokenizer.eos_token_id
        return int(self.end_of_turn[-1] if eos is None else eos)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a response."""
        markers = self.tokenizer.convert_tokens_to_ids(list(self.chat.markers.values()))
        return frozenset({self.end_of_turn[-1], *markers, *self._more_ends, self.tokenizer.eos_token_id} - {None})

    @property
    def end_of_call(self) -> Ids:
        """What ends a last turn that calls a tool, if the template writes no end of turn."""
        marker = self.chat.markers.get(True)
        return self.end_of_turn if marker is None else (int(self.tokenizer.convert_tokens_to_ids(marker)),)

    @cached_property
    def _before_answer(self) -> Ids:
        """The last tokens of every prompt, after which a response is decoded: its first space depends on them.

        Without a decoder, tokenizers put spaces between all tokens, and nothing depends on them.
        """
        if self.tokenizer.backend_tokenizer.decoder is None:
            return ()
        return self.prompt_of(self.chat.prompt([{"role": "user", "content": "?"}])).tail

    # Pieces of text

    def text(self, text: str) -> Ids:
        """Encode raw text. Special tokens in it are ordinary text, so data cannot end a turn."""
        return tuple(
            self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        )

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode a response to the words from which the template would render it, without its end of turn."""
        return self._continued(tokens).removeprefix(self._decoded_lead)

    def said(self, tokens: Sequence[int]) -> str:
        """Decode a sample as rewards, judges and people read it: with the block of reasoning that its prompt opens.

        A sample that closes the block at once, as the template itself does, has no reasoning.
        """
        closes = CLOSE in self._decoded_lead and self._continued(tokens).startswith(self._decoded_lead)
        return self.decode(tokens) if closes else self._opening + self.decode(tokens)

    @cached_property
    def _opening(self) -> str:
        """The end of every prompt that opens a block of reasoning, such as `<think>`; empty if it opens none."""
        opened = OPENED_AT_END.search(self.chat.prompt([{"role": "user", "content": "?"}]))
        return opened[0] if opened else ""

    def _continued(self, tokens: Sequence[int]) -> str:
        """The text of tokens after a prompt, without the end of turn."""
        ids = list(tokens)
        while ids and ids[-1] in self.end_ids:
            ids.pop()
        before, text = self._decoded(self._before_answer), self._decoded([*self._before_answer, *ids])
        return text[len(before) :] if text.startswith(before) else self._decoded(ids)

    def may_be_lead(self, text: str) -> bool:
        """Whether a decoded text may be the beginning of what `decode` leaves out before an answer."""
        return self._decoded_lead.startswith(text)

    @cached_property
    def _decoded_lead(self) -> str:
        """What the template writes before an answer, as it is decoded: SentencePiece may add a space."""
        shape = self.chat.shape
        if not shape.follows:
            return shape.lead
        ids, _ = self.continuation(self.prompt_of(shape.prompt), shape.whole)
        found = self._decoded([*self._before_answer, *ids]).removeprefix(self._decoded(self._before_answer))
        return found[: found.index(ANSWER)] if ANSWER in found else shape.lead

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    # Prompts

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> Ids:
        """Encode a prompt up to the start of the assistant's text; raw text has an empty prompt.

        Raises DataError if the template refuses it.
        """
        return self.prompt_of(self.chat.prompt(messages, tools)).ids if messages else self.bos

    def answers(self, messages: Sequence[Message], prefill: str, answers: Sequence[str]) -> tuple[Ids, list[Ids]]:
        """A prompt that ends with `prefill`, outside of any reasoning, and the tokens of each answer after it."""
        text = self.chat.prompt(messages, answering=True) + prefill
        prompt = self.prompt_of(text)
        return prompt.ids, [self.continuation(prompt, text + answer)[0] for answer in answers]

    def prompt_of(self, text: str) -> PromptTokens:
        if not text:  # the prompt's last token predicts a response's first one
            raise DataError("the chat template renders the prompt as empty text")
        cut = self.cut_of(text)
        ids, tail = self.rendered.ids(text), self._tail(text[cut:])
        return PromptTokens(text, ids, cut, tail) if ids[-len(tail) :] == tail else PromptTokens(text, ids, 0, ids)

    def cut_of(self, prompt: str) -> int:
        """The character at which the prompt's last special token begins.

        Tokenizers read the text between special tokens separately, so a response is tokenized with the text from there.
        """
        return max((match.start() for match in self.chat.template.special.finditer(prompt)), default=0)

    @lru_cache(maxsize=64)  # noqa: B019 - an encoder lives as long as its model; prompts end in the same few words
    def _tail(self, text: str) -> Ids:
        return self.rendered.ids(text)

    def continuation(self, prompt: PromptTokens, text: str) -> tuple[Ids, bool]:
        """The tokens of a text that begins with the prompt, after the prompt's.

        Also returns whether a token of the text covers the prompt's end. Then the rest is tokenized after the prompt,
        which the policy sees as it is.
        """
        found = self.rendered.ids(text[prompt.cut :])
        count = len(prompt.tail)
        if found[:count] == prompt.tail:
            return found[count:], False
        return self.rendered.following(text[len(prompt.text) :]).ids, True

    def mask(self, prompt: PromptTokens, text: str, ids: Ids, learned: Sequence[Turn]) -> list[bool]:
        """Whether each token after the prompt belongs to one of the turns."""
        start = prompt.cut
        tokens = self.rendered.tokens(text[start:])
        skipped = len(tokens.ids) - len(ids)
        if tokens.ids[skipped:] != ids:
            start, skipped = len(prompt.text), 0
            tokens = self.rendered.following(text[start:])
        mask = [False] * len(ids)
        for turn in learned:
            # A token that begins before the turn is the header's: the policy never writes it.
            begin, end = (max(0, tokens.first_from(place - start) - skipped) for place in (turn.start, turn.end))
            mask[begin:end] = [True] * (min(end, len(mask)) - begin)
        return mask
