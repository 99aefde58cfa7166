"""A question, and the same question typed in other ways."""

from __future__ import annotations

import unicodedata

ASKED = "Où est l'hôpital \"Saint-Luc\", s'il vous plaît ?"
TYPINGS = [
    unicodedata.normalize("NFD", ASKED),
    ASKED.upper(),
    ASKED.replace(" ", "\u00a0"),
    ASKED.replace(" ", "\t\n"),
    ASKED.replace("'", "\u2019"),
    ASKED.replace("'", "\u02bc"),
    ASKED.replace("'", "&#39;").replace('"', "&quot;"),
    ASKED.replace("'", "&#x27;").replace("ô", "&ocirc;"),
    ASKED.replace("'", "&amp;#39;"),
    ASKED.replace(' "', " \u201c").replace('",', "\u201d,"),
    ASKED.replace("-", "\u2011"),
    ASKED.replace("-", "\u2013"),
    "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in ASKED),
    *(
        ASKED.replace("i", f"i{mark}")
        for mark in "\u00ad\u200b\u200c\u200d\u200e\u200f\u202a\u2060\u2069\ufe0f\ufeff"
    ),
]
