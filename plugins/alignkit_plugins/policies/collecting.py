"""What users of the endpoint agree to, and their questions, answers and thumbs, kept if they
agreed.

The client says for whom it asks, and the server believes every client that may use it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alignkit.errors import AlignkitError
from alignkit.io.text import printable
from alignkit_plugins.people.collection import Collection, Exchange
from alignkit_plugins.people.labels import TERMS, BadLabel, StrictModel, check_annotator, read

WHO, KEPT = "x-alignkit-annotator", "x-alignkit-kept"  # headers of requests and of replies
MOST = 10_000  # replies that thumbs can be about


class _Consent(StrictModel):
    granted: bool
    terms: str = ""


class _Thumb(StrictModel):
    id: str
    good: bool


@dataclass
class Collecting:
    """A store that users of the endpoint fill. Raises BadLabel for what it does not take."""

    collection: Collection
    _replies: dict[str, tuple[str, str]] = field(default_factory=dict)  # id -> annotator, item

    def consent(self, headers: Mapping[str, str], body: bytes | None) -> dict[str, Any]:
        """What a user is asked, and what the user said last. body: says it now; a yes repeats the
        terms.
        """
        who = annotator_of(headers)
        if body is not None:
            said = read(_Consent, json.loads(body))
            if said.granted and said.terms != TERMS:
                raise BadLabel(
                    "a yes must repeat the 'terms' of GET /v1/consent, which the user has read"
                )
            self.collection.agree(who, said.granted)
        known = {"file": self.collection.path.name, "license": self.collection.license}
        return {"annotator": who, "agreed": self.collection.agreed(who), "terms": TERMS, **known}

    def agreed(self, headers: Mapping[str, str]) -> bool:
        """Whether the answers to a request are kept."""
        try:
            return WHO in headers and self.collection.agreed(annotator_of(headers))
        except AlignkitError as error:  # a store that fails is no reason to answer nobody
            return _unkept(error)

    def keep(self, headers: Mapping[str, str], reply: str, exchange: Exchange) -> bool:
        """Keep a request's answer, if its user agreed. reply: its id. Returns whether it is
        kept.
        """
        if not self.agreed(headers):
            return False
        who = annotator_of(headers)
        try:
            item = self.collection.keep(who, exchange)
        except AlignkitError as error:
            return _unkept(error)
        while len(self._replies) >= MOST:
            del self._replies[next(iter(self._replies))]
        self._replies[reply] = (who, item)
        return True

    def rate(self, headers: Mapping[str, str], body: bytes | None) -> dict[str, Any]:
        """Store a thumb for an answer that was kept; a later one replaces it."""
        said, who = read(_Thumb, json.loads(body or b"")), annotator_of(headers)
        known, item = self._replies.get(said.id, ("", ""))
        if known != who:
            raise BadLabel(f"no answer {said.id:.60} was kept for {who} since the server started")
        self.collection.rate(who, item, said.good)
        return {"id": said.id, "good": said.good}


def _unkept(reason: object) -> bool:
    print(printable(f"warning: an answer is not kept: {reason}"), file=sys.stderr)
    return False


def annotator_of(headers: Mapping[str, str]) -> str:
    """For whom a client asks. Raises BadLabel if it does not say."""
    if not (who := headers.get(WHO, "")):
        raise BadLabel("say for whom, in the header X-Alignkit-Annotator")
    check_annotator(who)
    return who
