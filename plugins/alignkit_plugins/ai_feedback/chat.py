"""Questions to a chat-completions server: the first ones alone, so that a wrong setting costs no
more than those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignkit.errors import RunFailed
from alignkit.reward import Progress
from alignkit_plugins.ai_feedback.replies import Reply
from alignkit_plugins.ai_feedback.service import Remote, Unusable

PROBE = 4  # questions that are asked one by one, as long as none has a reply of use
# What a server says of a limit on the reply that is beyond its own. vLLM names both options in it.
TOO_MUCH_ROOM = re.compile(
    r"max_(completion_)?tokens\b.{0,60}(too large|greater than|at most|exceed|less than)", re.I
)
_REJECTED = re.compile(r"HTTP 4\d\d: ")
# What a server rejects for the text of one question, which says nothing of the next one.
_ITS_TEXT = re.compile(
    r"context|too (long|large|many)|content.?(filter|management)|policy|moderation|safety", re.I
)


class Chat:
    """A server that answers questions. hopeless: reasons why a reply is of no use that hold for
    every question.

    faults: kinds of reasons that are the server's fault, which may have been repaired, so that a
    stored reply is asked for again. Any other one is the model's own: at temperature 0, it would
    say and cost the same.
    """

    def __init__(self, remote: Remote, faults: Sequence[str] = (), hopeless: Sequence[str] = ()):
        self.remote, self._faults, self._hopeless = remote, faults, hopeless
        self._useful = False  # whether a reply could be used

    def ask(
        self,
        bodies: Sequence[Mapping[str, Any]],
        unusable: Unusable,
        advice: Callable[[str], str],
        progress: Progress,
    ) -> list[Reply]:
        """Replies to requests, in order.

        unusable: why a reply, with its place, is of no use; empty if it is. Raises RunFailed, with
        the advice, if the server rejects the first question, or if none of the first few has a
        reply of use, all for the same reason.
        """

        def after(count: int) -> Unusable:
            def fault(place: int, reply: Reply) -> str:
                reason = unusable(count + place, reply)
                return reason if _kind(reason) in self._faults else ""

            return fault

        first: list[Reply] = []
        reasons: list[str] = []
        while not self._useful and len(first) < min(PROBE, len(bodies)):
            first += self.remote.ask([bodies[len(first)]], unusable=after(len(first)))
            reasons.append(unusable(len(first) - 1, first[-1]))
            self._useful = not reasons[-1]
            hopeless = len(reasons) == PROBE < len(bodies) and len(set(map(_kind, reasons))) == 1
            if reasons[-1] and (hopeless or self._is_setting(reasons[-1])):
                what = f"no reply of use to the first questions: {reasons[-1]}"
                raise RunFailed(f"{self.remote.name}: {what}\nhelp: {advice(reasons[-1])}")
        rest = bodies[len(first) :]
        return [*first, *(self.remote.ask(rest, progress, after(len(first))) if rest else [])]

    def _is_setting(self, reason: str) -> bool:
        """Whether a server would reject all questions for this reason."""
        if not _REJECTED.match(reason):
            return reason in self._hopeless
        return bool(TOO_MUCH_ROOM.search(reason)) or not _ITS_TEXT.search(reason)


def other_name(reason: str, most: int) -> str:
    """What to set if a model refuses a name of the request, as some of OpenAI's do; empty for
    another reason.

    most: tokens of a reply.
    """
    if not _REJECTED.match(reason):
        return ""
    if "max_completion_tokens" in reason:
        return f"set the server's 'request: {{max_tokens: null, max_completion_tokens: {most}}}'"
    refused = next((name for name in ("temperature", "seed") if name in reason), "")
    return (
        f"set the server's 'request: {{{refused}: null}}', which leaves it out" if refused else ""
    )


def _kind(reason: str) -> str:
    """A reason without what it quotes; a server's own words are all of it."""
    return reason if reason.startswith("HTTP ") else reason.partition(":")[0]
