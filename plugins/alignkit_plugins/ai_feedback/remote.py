"""JSON over HTTP for judges and rewards on a server: bounded, retried, with every reply stored on
disk.

    remote = Remote("my_reward", self.options.server, "score", context.cache, read)  # server:
    RemoteOptions replies = remote.ask([{"text": ...}, ...])  # one Reply per request body, in order

`read` turns the bytes of a reply into a JSON value, which is stored, or raises `Malformed`.
Failures that may be temporary (no connection, time-outs, 408, 429, 5xx, malformed replies) are
retried. Other statuses, and a server that stays unavailable, end the run with a `RemoteError`.
Replies received by then are stored and not requested again.

Design: docs/architecture.md.
"""

from alignkit_plugins.ai_feedback.replies import Malformed, Reply, ReplyStore, TryAgain
from alignkit_plugins.ai_feedback.server_options import RemoteOptions, key_of
from alignkit_plugins.ai_feedback.service import Remote, retry_after

__all__ = [
    "Malformed",
    "Remote",
    "RemoteOptions",
    "Reply",
    "ReplyStore",
    "TryAgain",
    "key_of",
    "retry_after",
]
