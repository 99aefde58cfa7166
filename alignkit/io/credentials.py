"""Keys that were pasted where a recipe, a message or a file would keep them."""

from __future__ import annotations

import re

HIDDEN = "***"
_KEY = re.compile(
    r"""\b[srp]k[-_](?=[\w-]{0,200}?(?=[A-Za-z]{0,200}[0-9])[A-Za-z0-9]{12})[\w-]+  # OpenAI; not sk-slovak-texts
    | \b(?:gsk|fw|nvapi|xai|pplx|csk|r8|tgp_v1|npm|pypi|glpat|GOCSPX|ya29|xox[abprs])[-_.](?=[A-Za-z_-]*[0-9])[\w-]{16,}
    | \b(?:hf|gh[oprsu]|github_pat)_[A-Za-z0-9]{16,}\w*
    | \bA(?:KIA|SIA)[0-9A-Z]{12,}                # AWS
    | \bAIza[\w-]{30,}                           # Google
    | \beyJ[\w-]{10,}\.[\w-]{5,}\.[\w-]*         # JSON web tokens
    | (?<=[Bb]earer\ )[^\s'"]{8,}
    | -----BEGIN[ A-Z]*PRIVATE\ KEY-----[^-]*(?:-----END[ A-Z]*PRIVATE\ KEY-----)?
    | (?<=://)[^\s/@:]+:[^\s/@]+(?=@)            # user:password@host""",
    re.VERBOSE,
)


def redacted(text: str) -> str:
    """The text with `***` in place of keys of known kinds, and of passwords in addresses."""
    return _KEY.sub(HIDDEN, text)
