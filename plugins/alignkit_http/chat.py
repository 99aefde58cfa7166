"""Questions to a chat-completions server: the first one alone, and in the dialect that the server speaks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

from alignkit.errors import RunFailed
from alignkit.reward import Progress
from alignkit_http.replies import Reply, ReplyStore
from alignkit_http.service import Remote

PROBE = 4  # questions that are asked one by one, as long as none has a reply of use
# What a server says of a limit on the reply that is beyond its own. vLLM names both options in it.
TOO_MUCH_ROOM = re.compile(r"max_(completion_)?tokens\b.{0,60}(too large|greater than|at most|exceed|less than)", re.I)
_REJECTED = re.compile(r"HTTP 4\d\d: ")
# What a server rejects for the text of one question, which says nothing of the next one.
_ITS_TEXT = re.compile(r"context|too (long|large|many)|content.?(filter|management)|policy|moderation|safety", re.I)
# Names in requests that some models refuse, what the server then says, and the name instead; None: leave it out.
_DIALECTS: tuple[tuple[str, str, str | None], ...] = (
    ("max_tokens", "max_completion_tokens", "max_completion_tokens"),
    ("temperature", "temperature", None),
    ("seed", "seed", None),
)
Body = Mapping[str, Any]


class Chat:
    """A server that answers questions.

    remote: where it is. model: its name there. kept: names in requests that the recipe has chosen. hopeless: reasons
    why a reply is of no use that hold for every question.
    """

    def __init__(self, remote: Remote, model: str, kept: Sequence[str], hopeless: Sequence[str] = ()):
        self.remote, self._kept, self._hopeless = remote, set(kept), hopeless
        self._useful = False  # whether a reply could be used
        self._place = f"dialect of {model} at {remote.url}"  # among the stored replies
        with closing(ReplyStore(remote.folder, remote.name)) as store:
            known = store.get([self._place]).get(self._place, Reply({}))
        self._dialect: dict[str, str | None] = dict(known.value)

    def ask(
        self,
        bodies: Sequence[Body],
        unusable: Callable[[int, Reply], str],
        advice: Callable[[str], str],
        progress: Progress,
    ) -> list[Reply]:
        """Replies to requests, in order.

        unusable: why a reply, with its place, is of no use; empty if it is. Raises RunFailed, with the advice, if the
        server rejects the first question, or if none of the first few has a reply of use, all for the same reason.
        """
        first: list[Reply] = []
        reasons: list[str] = []
        while not self._useful and len(first) < min(PROBE, len(bodies)):
            first.append(self._alone(bodies[len(first)]))
            reasons.append(unusable(len(first) - 1, first[-1]))
            self._useful = not reasons[-1]
            hopeless = len(reasons) == PROBE < len(bodies) and len(set(map(_kind, reasons))) == 1
            if reasons[-1] and (hopeless or self._is_setting(reasons[-1])):
                raise RunFailed(f"{self._no_use(reasons)}\nhelp: {advice(reasons[-1])}")
        rest = [self._spoken(body) for body in bodies[len(first) :]]
        return [*first, *(self.remote.ask(rest, progress) if rest else [])]

    def _is_setting(self, reason: str) -> bool:
        """Whether a server would reject all questions for this reason."""
        if not _REJECTED.match(reason):
            return reason in self._hopeless
        return bool(TOO_MUCH_ROOM.search(reason)) or not _ITS_TEXT.search(reason)

    def _no_use(self, reasons: Sequence[str]) -> str:
        what = "the first question has no" if len(reasons) == 1 else f"none of the first {len(reasons)} questions has a"
        return f"{self.remote.name}: {what} reply of use: {reasons[-1]}"

    def _alone(self, body: Body) -> Reply:
        """The reply to one question, asked again in the server's dialect if it says what that is."""
        (reply,) = self.remote.ask([self._spoken(body)])
        while self._learns(body, reply.reason):
            (reply,) = self.remote.ask([self._spoken(body)])
        return reply

    def _spoken(self, body: Body) -> dict[str, Any]:
        """The request in the server's dialect."""
        names = ((self._dialect.get(name, name), value) for name, value in body.items())
        return {name: value for name, value in names if name is not None}

    def _learns(self, body: Body, reason: str) -> bool:
        """Whether the server's words tell of a name that it does not take; they are remembered for later runs."""
        rejects_a_name = _REJECTED.match(reason) and not TOO_MUCH_ROOM.search(reason)
        for name, words, instead in _DIALECTS if rejects_a_name else ():
            if words in reason and name in body.keys() - self._kept - self._dialect.keys():
                self._dialect[name] = instead
                with closing(ReplyStore(self.remote.folder, self.remote.name)) as store:
                    store.put(self._place, self._dialect)
                return True
        return False


def _kind(reason: str) -> str:
    """A reason without what it quotes; a server's own words are all of it."""
    return reason if reason.startswith("HTTP ") else reason.partition(":")[0]
