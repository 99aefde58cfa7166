"""Takes out of texts what identifies a person or opens a door: e-mail addresses, telephone numbers and keys.

The rules are simple on purpose, and find only what has a shape of its own; names and addresses stay. Redacting twice
changes nothing more.

- E-mail: `name@host.tld` becomes `[e-mail]`.
- Telephone: 9 to 15 digits in groups that begin with `+`, `00` or `0`, or an American number such as `555-123-4567`,
  become `[phone]`.
- Keys: those of known hosts, passwords in addresses, and 32 letters and digits without a break become `***`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from alignkit.io.credentials import redacted

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}\b")
_DIGITS = r"(?:[ ./()-]{0,2}\d){7,13}"
_PHONE = re.compile(rf"(?<![\w.,/+-])(?:(?:\+|\(?00?)[1-9]{_DIGITS}|\(?[2-9]\d\d\)?[ .-]\d{{3}}[ .-]\d{{4}})(?![\w-])")


def redact(text: str) -> str:
    """The text without e-mail addresses, telephone numbers and keys."""
    return _PHONE.sub("[phone]", _EMAIL.sub("[e-mail]", redacted(text, random=True)))


def redact_all(value: Any) -> Any:
    """Nested plain data with all its texts redacted; keys stay."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: redact_all(below) for name, below in value.items()}
    return [redact_all(below) for below in value] if isinstance(value, list | tuple) else value
