"""Personal details in texts, by their shape: e-mail addresses, telephone numbers and keys.

The rules would rather miss a detail than replace what is none: dates, times, versions, sizes,
sums of money, ISBNs, IBANs, numbers of cards, check sums, commits and names of packages stay, and
so do names of people.
"""

from __future__ import annotations

import re
import unicodedata
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from alignkit.io.text import HIDDEN, listed, redacted

FIRST = 5  # examples of a kind
# What the patterns below name: letters, but those of scripts without spaces; what may stand between
# digits, also where no line ends; a number with the code of its country; what follows no number.
_PARTS = {
    "<abroad>": r"(?:[17]<more>{10}|(?:2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]"
    r"|(?:2[1-689]|3[578]|42|5[09]|6[7-9]|8[0578]|9[679])\d)<more>{7,12})",
    "<more>": r"(?:[/(<gap>)]{0,3}\d)",
    "<end>": r"(?![<word>-]|[.,:/]\d)",
    "<card>": r"\d{4}(?:[ -]\d{4}){3}",
    "<base58>": "[1-9A-HJ-NP-Za-km-z]",
    "<link>": r"[-\s.:：=#*\"'`]",
    "<year>": r"(?:1[5-9]|20)\d\d",
    "<power>": r"1024|2048|4096|8192",
    "<sum>": r"[\d<gap>]{0,12}000[<gap>]?000",
    "<word>": r"0-9A-Za-z_\u00c0-\u024f\u0370-\u052f\ufb00-\ufb06",
    "<gap>": r" .\u00a0\u2009\u202f\u2010-\u2013-",
    "<at>": r"(?:@|&#(?:64|x40);|%40|\s?[\[({]\s?at\s?[\])}]\s?)",
    "<point>": r"(?:\.|\s?[\[({]\s?dot\s?[\])}]\s?)",
    "<far>": r"[\u0530-\u1fff\u3041-\u9fff\uac00-\ud7a3]",
}
# No files such as icon@2x.png, versions, addresses of git, prompts of a shell, and no code, of which
# the last names are words of programs
_EMAIL = (
    r"(?i)(?<![<word>.+@-])(?<!//)(?P<part>(?!(?:git|hg|svn|root|this|super)@)[<word>][<word>.+'%-]{0,63}?<at>"
    r"(?!v?\d+\.[\dx]|self\.)(?:[<word>-]{1,63}<point>){1,8}(?!(?:png|jpe?g|gif|svg|webp|js|json|ya?ml|txt|html?|tgz|gz"
    r"|service|timer|socket|target|mount|slice|local\w*|internal|latest|canary|data|shape|dtype|grad|device|weights?|bias"
    r"|values?|transpose|inverse|array|numpy|size|cpu|cuda|real|imag|flat|(?-i:m[HT]))\b)"
    r"(?:[a-z]{2,24}|[\u0430-\u052f]{2,9}|xn--[a-z\d-]+)(?![<word>(\[]|(?-i:\.(?:[a-z]|T\b))|:[~/])"
    r"|<far>{1,16}@(?:<far>{1,63}\.)+(?:中[国國]|公司|网[络址]|網[絡址]|香港|台[湾灣]|[\u0530-\u1fff\uac00-\ud7a3]{2,}))"
)
# With three numbers or more, which names rarely have, and not of base 16; no addresses of Ethereum,
# Bitcoin and IPFS
_RANDOM = (
    r"(?<![A-Za-z0-9])(?P<part>(?=[A-Za-z0-9]{32})(?![0-9a-f]+\b|[0-9A-F]+\b|0x[\dA-Fa-f]{40}\b|bc1[02-9ac-hj-np-z]+\b"
    r"|(?:[13]<base58>{25,33}|Qm<base58>{44})\b|baf[2-7a-z]{50,}\b)(?=[A-Z0-9]*[a-z])"
    r"(?=[A-Za-z]*\d+[A-Za-z]+\d+[A-Za-z]+\d)[A-Za-z0-9]+)"
)
# Not after the name of a thing that has a number; no digits in order, binary numbers and sizes.
# Numbers of bank accounts and cards stay as a whole: they match without a part.
_PHONE = (
    r"\b(?:[A-Z]{2}\d\d(?:[<gap>]?[A-Z\d]{4}){3,7}(?:[<gap>]?[A-Z\d]{1,3})?|<card>)\b"
    r"|(?=[+(\d])(?<![<word>.,/#=+-])(?<!\d:)(?i:(?<!sku.)(?<!part.)(?<!room.)(?<!case.)(?<!item.)(?<!isbn.)(?<!model.)"
    r"(?<!order.)(?<!serial.)(?<!account.)(?<!invoice.)(?<!version.))(?P<part>(?![01<gap>]{9,20}<end>|012[<gap>]?3)(?:"
    r"\+(?!<sum>)<abroad>|00(?=[1-9]\d*[<gap>/(])<abroad>"
    # North America
    r"|(?:1[<gap>])?\([2-9]\d\d\)[<gap>]?\d{3}[<gap>]\d{4}"
    r"|(?:1[<gap>])?(?![2346]00)[2-9]\d\d(?P<mark>(?! )[<gap>])\d{3}(?P=mark)(?!\d\d00|<power>)\d{4}"
    # France: mobile numbers, and others that are in no order
    r"|(?=0[67](?!.0[789])|(?:...){1,3}(?:1..0|2..[01]|3..[0-2]|4..[0-3]|5..[0-4]|6..[0-5]|7..[0-6]|8..[0-7]|9..[0-8]))"
    r"0[1-9](?P<pair>[<gap>])\d\d(?:(?P=pair)\d\d){3}(?![<gap>]?\d)"
    # Europe and Australia
    r"|\(0[1-9]\d{1,3}\)(?:[<gap>]?\d){5,9}|0[1-9]\d{1,3}[<gap>/]\d{6,8}|0[1-9]\d[<gap>]\d{3,4}[<gap>]\d{4}"
    r"|0[1-9]\d\d[<gap>/](?!\d00[<gap>]\d00)\d{3}[<gap>]\d{3,4}"
    r"|0[1-9]\d{1,2}[<gap>]\d{3}[<gap>]\d\d[<gap>]\d\d|01[567]\d{8}|07\d{9}|0[26][<gap>](?!19|20)\d{7,8}"
    r"|0[1-9][<gap>](?!19|20|<power>)\d{4}[<gap>](?!19|20|<power>)\d{4}|08-\d{3}[<gap>]\d{3}[<gap>]\d\d"
    r"|04[5-9]\d[<gap>/]\d\d(?P<dot>[<gap>])\d\d(?P=dot)\d\d|0[2-9]-\d{3}-\d{4}"
    # Latin America; no pages after a number of a magazine
    r"|(?<!\d )\((?!00)\d\d\)[<gap>]?(?:9\d{4}[<gap>]"
    r"|(?!19|20|<power>)(?P<two>\d\d)\d\d[<gap>](?!(?P=two)|<power>))\d{4}"
    # Japan, China, Russia
    r"|0[789]0\d{8}"
    r"|(?=.{12,13}<end>)0[1-9]\d{0,2}-\d{2,4}-\d{4}|1[3-9]\d[ -]\d{4}[ -]\d{4}"
    r"|8[ -]?\(?\d{3}\)?[ -]?\d{3}-\d\d-\d\d))<end>"
)
# A number after its name, or after a word that asks to call it, may have any shape but those
# of a date, of two years and of a sum
_CALLED = (
    r"(?i)(?:(?<![^\W\d_])(?:t[eé]l|t[eé]l[eé]phone|tel[eé]fon[oe]?|phone|call|dial|fax|mobil|mobile|m[oó]vil|whatsapp"
    r"|sms|ruf|rufen|handy|celular|cellulare|telem[oó]vel|my cell|cell(?=[\s-]?(?:phone|number|no\b|#))|appell?ez?"
    r"|ll[aá]me|ll[aá]ma(?:me)?|chiama(?:mi)?|ligue|(?:reach|text|contact)(?= (?:me|us)\b)|(?:по)?звоните?"
    r"|моб(?:ильный)?|тел|телефон[ауы]?|điện thoại)|电话|手机|電話|手機|携帯"
    r"|전화|휴대폰|연락처|هاتف|मोबाइल|फ\u093c?ोन|โทร)"
    r"(?:<link>{1,3}(?:me|my|us|him|her|at|on|is|are|no|nr|moi|mich|mir|sie|al|au|le|am|an|unter|ist|est|es|é|è|lautet"
    r"|по|номеру?|мне|это)|<link>{0,3}(?:num(?:bers?|mern?|ero)|n[uú]m[eé]ro|phone|号|號|码|碼|是|为|為|は|番号|번호|는|은"
    r"|नंबर|है)){0,6}<link>{0,4}(?![+(]?(?:\d{1,2}[./-]\d{1,2}[./-](?:\d{4}|\d\d)(?![./-]?\d)|(?:19|20)\d\d(?!\d)"
    r"|<year>[/<gap>]<year>(?!\d)|<sum>|<card>))(?P<part>[+(]?\d<more>{7,13})<end>"
)
# What has the name of a secret, and is no word, file, call or variable
_SECRET = (
    r"(?i)(?<![a-z])(?:pass(?:w(?:or[dt]|d)|phrase|code)|pwd|mot de passe|contraseña|senha|парол[ья]"
    r"|密码|密碼|パスワード|(?:api|secret|access)[ _-]?(?:key|token))[\"'*`]{0,3}"
    r"(?:\s?[:=：＝]|\s(?:is|ist|est|es|é)\s)[\s\"'*`]{0,4}"
    r"(?P<part>(?![/$%<{~*-]|\d+-)(?=[^\s.,]*\d)(?=[^\s.,]*[a-z]|\d+\b)[^\s.,;:()\[\]{}<>\"'`]{6,})"
    r"(?=[\"'`,;]|\.?(?:\s|$)|\.[\"'`)])"
)
# An id in an address, unless that may be a key of a service
_IN_ADDRESS = re.compile(
    r"://(?!\S*(?i:api|hook|key|token|secret|auth|sig|pass|pwd|/v\d|/bot))\S+[/=]$"
)
_DIGITS = r"\d(?:\D{0,4}\d){6}"
BEFORE = 100  # characters of a detail and its name before what a detail never lacks
# What replaces a detail, what a detail never lacks, and the detail
_KINDS = (
    (HIDDEN, r"\d", _SECRET),
    (HIDDEN, r"\d[A-Za-z]+\d", _RANDOM),
    ("[e-mail]", "(?i)<at>", _EMAIL),
    ("[phone]", _DIGITS, _CALLED),
    ("[phone]", _DIGITS, _PHONE),
)
# Other forms of letters, digits and signs that are one character each
_FORMS = re.compile(
    r"[^\x00-\x7f](?:(?<=\d)|(?<=（)(?=\d)|(?<=\d）)|(?<=\d[ー\u2010-\u2013\u2212])(?=\d)|(?<=[\u24b6-\u24e9\ufe52\ufe62"
    r"\ufe63\ufe6b\uff0b\uff0d\uff0e\uff20-\uff3a\uff3f\uff41-\uff5a\U0001d400-\U0001d7ff]))"
)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    for name, part in _PARTS.items():
        pattern = pattern.replace(name, part)
    return re.compile(pattern)


def _form(match: re.Match[str]) -> str:
    """The plain form of a character."""
    form = unicodedata.normalize("NFKC", match[0])
    return form if form.isascii() else str(unicodedata.decimal(form, "-"))


def redact(text: str, found: list[tuple[str, str]] | None = None) -> str:
    """The text without e-mail addresses, telephone numbers and keys; doing it twice changes nothing
    more.

    - E-mail: `name@host.tld`, also as `name(at)host(dot)tld`, becomes `[e-mail]`.
    - Telephone: a number as a country writes it, such as +49 30 1234567, 06 12 34 56 78 or
      555-123-4567, or after a word such as `call` or `phone number`, becomes `[phone]`.
    - Keys: those of known hosts, passwords in addresses and after their name, as in
      `password: ...`, and 32 letters and digits in no order become `***`.

    Digits may be of any script, and letters, digits and signs may be full-width.

    found: gets each part that is replaced, after what replaces it; of a key only the beginning.
    """
    known = redacted(text)
    if found is not None and known != text:
        found.append((HIDDEN, "a key"))
    plain = _FORMS.sub(_form, known)  # with the same places
    for word, needed, pattern in _KINDS:
        first = _compiled(needed).search(plain)
        if first is None:
            continue
        matches = [*_compiled(pattern).finditer(plain, max(0, first.start() - BEFORE))]
        for match in reversed(matches):  # so that the places before it stay
            start, end = match.span("part")
            part = known[start:end]
            if not part or (pattern is _RANDOM and _is_no_key(plain, start, end)):
                continue
            known = known[:start] + word + known[end:]
            if word == HIDDEN:
                part = f"{part[: len(part) // 8]}..."
            if found is not None:
                found.append((word, part))
        if matches:
            plain = _FORMS.sub(_form, known)
    return known


def _is_no_key(text: str, start: int, end: int) -> bool:
    """Whether a part is a text in base 64, or an id in an address."""
    part = text[start:end]
    is_text = b64decode(part + "A" * (-len(part) % 4)).isascii()
    return is_text or _IN_ADDRESS.search(text, max(0, start - BEFORE), start) is not None


def examples(found: Iterable[tuple[str, str, str]]) -> list[str]:
    """What was replaced, a line for each kind with its first examples. found: what replaces it, the
    part, and where it was.
    """
    kinds: dict[str, list[str]] = {}
    for word, part, where in found:
        kinds.setdefault(word, []).append(f"{part} ({where})")
    lines = []
    for word, parts in kinds.items():
        lines.append(f"{word} replaces {listed(parts, FIRST)}")
    return lines


def outline(part: str) -> str:
    """The shape of a detail, such as `00.00.0000`, for files that others may read."""
    return re.sub(r"[^\W\d_]", "x", re.sub(r"\d", "0", part))


def mapped(value: Any, change: Callable[[str, str], str], name: str = "") -> Any:
    """Nested plain data with each text changed; keys stay. change: gets a text and its key."""
    if isinstance(value, str):
        return change(value, name)
    if isinstance(value, Mapping):
        return {key: mapped(below, change, key) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(below, change, name) for below in value)
    return value
