"""What must not be shared of a text: e-mail addresses, telephone numbers and keys."""

from __future__ import annotations

import re

from alignkit.io.text import HIDDEN, redacted

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}\b")
_RANDOM = re.compile(
    r"(?<![A-Za-z0-9])(?=[A-Za-z0-9]*[0-9])(?=[A-Za-z0-9]*[A-Za-z])[A-Za-z0-9]{32,}"
)
# Spaces and hyphens at which no line ends are among them
_GAP = " .\u00a0\u2009\u202f\u2010\u2011\u2012\u2013-"
_DIGITS = rf"(?:[/(){_GAP}]{{0,2}}\d){{7,13}}"
_PHONE = re.compile(
    rf"(?<![\w.,/+-])(?:(?:\+|\(?00?)[1-9]{_DIGITS}|\(?[2-9]\d\d\)?[{_GAP}]\d{{3}}[{_GAP}]\d{{4}})(?![\w-])"
)


def redact(text: str) -> str:
    """The text without e-mail addresses, telephone numbers and keys; doing it twice changes nothing
    more.

    The rules are simple on purpose, and find only what has a shape of its own; names and addresses
    stay.

    - E-mail: `name@host.tld` becomes `[e-mail]`.
    - Telephone: 9 to 15 digits in groups that begin with `+`, `00` or `0`, or an American number
      such as `555-123-4567`, become `[phone]`.
    - Keys: those of known hosts, passwords in addresses, and 32 letters and digits without a break
      become `***`.
    """
    return _PHONE.sub("[phone]", _EMAIL.sub("[e-mail]", _RANDOM.sub(HIDDEN, redacted(text))))
