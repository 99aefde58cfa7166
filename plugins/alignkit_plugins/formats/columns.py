"""Columns with conversations, labels and ratings of answers; `turns` reads each turn."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from alignkit import BadRow, Format, Group, Message, Pair, Response
from alignkit.contract.formats import columns_of, renamed, to_number
from alignkit.data.files import Twice, kind_of, parse
from alignkit.data.group import LEVELS, ROLES, user_turn
from alignkit_plugins.formats.layouts import TwoAnswers
from alignkit_plugins.formats.turns import (
    PLAIN,
    SPEAKERS,
    only_of,
    read_message,
    tools_of,
)

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
LABEL_COLUMNS = ("label", "kto_tag")
PROMPTS = ("prompt", "instruction", "question", "query", "input")
# One of several answers, which `labeled_pairs` and `unlabeled` read.
NUMBERED = re.compile(
    r"(response|output|completion|answer|conversation)[ _-]?[0-9a-i]|model_[ab]_completion", re.I
)
# A list of messages or one message, as Python prints it.
_MESSAGES = re.compile(r"""\s*\[?\s*\{.*(['"])(role|from)\1\s*:.*\}\s*\]?\s*""", re.DOTALL)


def with_text(row: Any, name: str = "text") -> Mapping[str, Any]:
    """A row, which may be the text of one column. Raises BadRow for anything else."""
    return columns_of({name: row} if isinstance(row, str) else row)


def check_one(row: Mapping[str, Any], name: str, prompt: str) -> None:
    """Raise BadRow for a column that holds two answers, with the line that reads them. prompt: of a
    template.
    """
    answers = row.get(name)
    if isinstance(answers, list) and list(map(type, answers)) == [str, str]:
        raise BadRow(
            f"column '{name}' has two answers; if the first is the better one, write `data: "
            f'{{template: {{path: FILE, prompt: "{prompt}", chosen: "{{{{ {name}[0] }}}}", '
            f'rejected: "{{{{ {name}[1] }}}}"}}}}`'
        )


# Columns that rate two answers

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_RATING = re.compile(
    "(?i:score|rating|reward|grade|(up)?votes|rank|avg|average|mean|overall|final)"
)
_NAMED = ("better", "best", "winner", "preferred", "preference", "verdict", "label", "status")
_TIE = re.compile(r"(?i)ties?|tied|draw|equal|same|(?:tie\W+)?both[\W_]*(?:bad|good)\W*")


def rated_alike(row: Mapping[str, Any], better: str, worse: str) -> bool:
    """Whether two answers have the same rating, or a column calls them a tie. Raises BadRow if one
    says that the worse answer is better.

    better, worse: the columns of the answers. Ratings are called alike, such as score_chosen for
    chosen.
    """
    alike = any(_TIE.fullmatch(str(row.get(name)).strip()) for name in _NAMED)
    # A status says what became of a row, such as rejected.
    against = [n for n in _NAMED if n != "status" and str(row.get(n)).lower() == worse]
    for name, ratings in row.items():
        if _RATING.fullmatch(name.removesuffix("s")) and isinstance(ratings, list):
            alike |= len(ratings) == 2 and ratings[0] == ratings[1] is not None
        pair = name, _twin(name, better, worse)
        with suppress(BadRow):  # ratings may be in words
            high, low = (to_number(row.get(each), each) for each in pair)
            if high is None or low is None:
                continue
            alike |= high == low
            if high != low and (high < low) != ("rank" in name.lower()):  # the best has rank 1
                against.append(f"{name} {high:g} and {pair[1]} {low:g}")
    if against:
        raise BadRow(f"{' and '.join(against)} contradict that the {better} answer is better")
    return alike


@cache
def _twin(name: str, better: str, worse: str) -> str:
    """The column that rates the worse answer, of the one that rates the better; empty if that is
    none.
    """
    words = list(map(_WORD.findall, (better, worse, name)))
    one, other = next(pair for pair in zip(*words[:2], strict=False) if pair[0] != pair[1])
    twins = {form(one): form(other) for form in (str, str.capitalize, str.upper)}
    others = [word for word in words[2] if word not in twins]
    if len(words[2]) - len(others) != 1 or not others or not all(map(_RATING.fullmatch, others)):
        return ""
    return _WORD.sub(lambda word: twins.get(word[0], word[0]), name)


# Two answers and labels, as people name them

_HEAD = re.compile(rf"(?i:{NUMBERED.pattern})|[A-I]")
_GIVEN = re.compile(r"label(?:_\d+)?")  # What a recipe's `columns` call labels
# A word for a label, but not how sure one is, which answer is worse, or who labeled
_LABEL = re.compile(
    r"(?is)(?!.*(?:strength|confiden|certain|margin|(?<![a-z])(?:no[nt]|least|less|wors[et])(?![a-z])"
    r"|ed[ _-]?by(?:[ _-]?(?:id|name))?$)).*?"
    r"(?<![a-z])(labels?|rat(?:ed|ing)|prefer(?:ence|red|s)|votes?|winner|better|verdict"
    r"|judge?ment|choice|pick|favou?rite)(?![a-z])"
)
PEOPLE = re.compile(
    r"(?i)(?:annotator|labell?er|rater|judge|worker|voter|reviewer|evaluator"
    r"|(?:annotat|labell?|rat|judg|vot|review)ed[ _-]?by)(?:[ _-]?(?:id|name))?"
)
NUMBER = re.compile(r"\s*-?\d+(\.\d+)?\s*")
# Words around the letter, the number or the name of an answer
_AROUND = re.compile(
    "answer|response|output|completion|conversation|model|is|was|the|better|best|wins|won|winner"
    "|preferred|slightly|much|clearly"
)
_MEANT = {"a": 0, "first": 0, "b": 1, "second": 1}
_UNDECIDED = re.compile(
    r"(?:ties?|tied|draw|equal|equally|same|both|neither|unsure|no (?:preference|difference))\b"
)


def is_empty(label: Any) -> bool:
    """Whether a cell has no label."""
    return str(label).strip().lower() in ("", "none", "null", "nan", "n/a", "-")


def is_word(label: Any) -> bool:
    """Whether a cell has a label that is no number."""
    return not is_empty(label) and NUMBER.fullmatch(str(label)) is None


def side_of(label: Any, heads: Sequence[str]) -> int | None:
    """The place of the answer that a label calls better, 2 for a tie; None if that is not clear.

    heads: the columns of the answers.
    """
    text = re.split(r">|\bthan\b|\bover\b", str(label).lower())[0]
    names, bare = list(map(_bare, heads)), _bare(text)
    if bare in names and names[0] != names[1]:
        return names.index(bare)
    if not bare.lstrip("-").isdigit():
        return 2 if _UNDECIDED.match(bare) else _MEANT.get(bare)
    if names == ["1", "2"]:
        return 2 if bare == "0" else None
    return None if names[0].isdigit() else {"1": 0, "2": 1}.get(bare)


def _bare(text: str) -> str:
    """What names an answer in a label, or in the name of its column: `a` of `Answer A is better`."""
    words = re.findall(r"(?<!\w)-?\d+|\d+|[^\W\d_]+", text.lower().removesuffix(".0"))
    return " ".join(word for word in words if not _AROUND.fullmatch(word))


def own_layout(rows: Sequence[Mapping[str, Any]], meant: Collection[str] = ()) -> TwoAnswers | None:
    """The columns of two answers and of their labels, by what people call them and by the cell of
    each column that says most; None if these are not clear.

    meant: labels that a recipe explains, in lower case.
    """
    row = dict[str, list[Any]]()
    for each in rows:
        for name, value in each.items():
            row.setdefault(name, []).append(value)
    heads = sorted(filter(_HEAD.fullmatch, row), key=str.lower)
    asked = ["prompt"] if "prompt" in row else [name for name in row if name.lower() in PROMPTS]
    both = [name.lower() for name in asked] == ["instruction", "input"]
    if "".join(map(_bare, heads)) not in ("ab", "12", "01") or len(asked) != 1 + both:
        return None
    labels, parts = list(filter(_GIVEN.fullmatch, row)), list[str]()

    def says(value: Any) -> int:
        if str(value).strip().lower() in meant:
            return 3
        return 2 * is_word(value) or int(side_of(value, heads) is not None)

    cells = {name: max(values, key=says) for name, values in row.items()}
    for name, value in cells.items() if not labels else ():
        named = _LABEL.match(name)
        if named is None or not {_twin(name, *heads), _twin(name, *heads[::-1])}.isdisjoint(row):
            continue  # such as the rating of one answer
        number, part = NUMBER.fullmatch(str(value)) and says(value) < 2, named[1] != name
        # A short word that says nothing is a mistake, which `read` names; a number may be a rating
        short = not number and len(str(value)) < 20
        if short or not part or says(value) == 3 or side_of(value, heads) is not None:
            (parts if number and part else labels).append(name)
    if not any(map(is_word, map(cells.get, labels))):
        labels += parts
    first, second = heads
    return TwoAnswers(asked, first, second, labels) if labels else None


def shared_turns(one: Sequence[Message], other: Sequence[Message]) -> int:
    """The number of turns that both conversations begin with, up to a turn that the assistant
    answers.
    """
    same = 0
    for count, (turn, theirs) in enumerate(zip(one, other, strict=False), 1):
        if turn != theirs:
            break
        if turn["role"] != "assistant":
            same = count
    return same


# Columns of a row


class ColumnFormat(Format):
    """Base class of formats with conversations in their columns, in any layout of `turns`."""

    def group(
        self,
        row: Mapping[str, Any],
        used: Sequence[str],
        prompt: Sequence[Message],
        responses: Sequence[Response] = (),
        pairs: tuple[Pair, ...] | None = None,
    ) -> Group:
        """The group of a row, with the system message and the tools that the row has.

        Args:
            row: Its columns.
            used: Columns whose content is in the prompt and the responses; the others become
                `meta`.
            prompt: The turns before the responses.
            responses: To the prompt.
            pairs: Pairs of the responses; None derives them from their ranks.
        """
        meta = self.rest(row, *used, *SYSTEM_COLUMNS, "tools")
        return Group(
            self.opened(prompt, row), tuple(responses), pairs, meta=meta, tools=self.tools(row)
        )

    @classmethod
    def column(cls, row: Any, name: str, user: bool = True) -> tuple[Message, ...]:
        """The turns in a column of a row, as `conversation` reads them.

        Args:
            row: Its columns.
            name: A column.
            user: Whether plain text is the user's turn; else it is the assistant's.

        Raises:
            BadRow: Also for a column that is missing.
        """
        if columns_of(row).get(name) is None:
            raise BadRow(f"column '{name}' is missing or null")
        return cls.conversation(row[name], name, user)

    @classmethod
    def joined(cls, row: Mapping[str, Any], names: Iterable[str]) -> tuple[Message, ...]:
        """One turn of the user: the texts of some columns, with a blank line between them.

        Args:
            row: Its columns.
            names: Columns, which may be missing or blank.
        """
        parts = [cls.text(row, name, "").strip() for name in names]
        return (user_turn("\n\n".join(filter(None, parts))),)

    @staticmethod
    def margin(row: Mapping[str, Any]) -> float | str | None:
        """A pair's margin: a number, or the name of a level; None if absent.

        Args:
            row: Its columns.
        """
        value = columns_of(row).get("margin")
        if value in LEVELS:
            return str(value)
        return to_number(value, f"column 'margin', unless one of {', '.join(LEVELS)},")

    @staticmethod
    def conversation(value: Any, name: str, user: bool = True) -> tuple[Message, ...]:
        """The turns of a column: a list of messages (OpenAI or ShareGPT), one message, JSON of
        these, or plain text.

        Plain text becomes one turn: the user's, or the assistant's if `user` is false.

        Args:
            value: What the column holds.
            name: A column.
            user: Whether plain text is the user's turn; else it is the assistant's.

        Raises:
            BadRow: For text that looks like messages and cannot be read.
        """
        if isinstance(value, str):
            value = _messages_in_cell(value, name, user)
        if isinstance(value, str):
            value = {"role": "user" if user else "assistant", "content": value}
        turns = value
        if isinstance(value, Mapping):
            turns = [value]
        if not isinstance(turns, list | tuple):
            raise BadRow(
                f"column '{name}' must be text or a list of messages, not {kind_of(value)}"
            )
        return tuple(read_message(turn, f"{name}[{index}]") for index, turn in enumerate(turns))

    @classmethod
    def opened(cls, turns: Sequence[Message], row: Mapping[str, Any]) -> tuple[Message, ...]:
        """The turns, after the system message that one of SYSTEM_COLUMNS holds.

        Args:
            turns: A conversation's, in order.
            row: Its columns.
        """
        words = {cls.text(row, name, "").strip() for name in SYSTEM_COLUMNS} - {""}
        if not words or not turns:
            return tuple(turns)
        is_opened = turns[0]["role"] == "system"
        if is_opened:
            words.add(turns[0]["content"].strip())
        if len(words) > 1:
            raise BadRow(
                f"the row has {len(words)} different system messages, but a conversation has one"
            )
        return tuple(turns) if is_opened else (Message(role="system", content=words.pop()), *turns)

    @classmethod
    def label(cls, row: Mapping[str, Any]) -> bool | None:
        """Whether the row's answer is good, by one of LABEL_COLUMNS; None if it does not say."""
        name = only_of(row, LABEL_COLUMNS) or "label"
        try:
            return cls.flag(row, name)
        except BadRow as error:
            text = f"{error}; write true for a good response, or {renamed(name)}"
            raise BadRow(text) from None

    @staticmethod
    def tools(row: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """The functions in `tools`: a list of JSON schemas, or JSON text of one."""
        return tools_of(columns_of(row).get("tools"))

    @staticmethod
    def answer(turns: Sequence[Message], **fields: Any) -> Response:
        """A response from the turns after the prompt: text if it is one turn of text alone, else
        messages.

        Args:
            turns: A conversation's, in order.
            fields: Further fields of the response.
        """
        if not turns or turns[-1]["role"] != "assistant":
            raise BadRow("the last turn must be an assistant turn")
        if turns[0]["role"] != "assistant":
            raise BadRow(
                "the first turn after the prompt must be an assistant turn, not a "
                f"{turns[0]['role']} turn"
            )
        if (
            len(turns) == 1
            and turns[0].keys() <= {"role", "content", "train"}
            and turns[0].get("train", True) is True
        ):
            return Response(text=turns[0]["content"], **fields)
        return Response(messages=tuple(turns), **fields)

    @classmethod
    def demonstration(
        cls, turns: Sequence[Message], **fields: Any
    ) -> tuple[tuple[Message, ...], Response]:
        """Split a conversation before the first answer to the user, into prompt and response.

        A greeting of the assistant, before the user has spoken, is part of the prompt. A label
        belongs to the last answer, so that all other turns are part of the prompt.

        Args:
            turns: A conversation's, in order.
            fields: Further fields of the response.
        """
        roles = [turn["role"] for turn in turns]
        if "assistant" not in roles:
            raise BadRow("there is no assistant turn")
        first = len(roles)
        if fields.get("label") is not None:
            while first and roles[first - 1] == "assistant":
                first -= 1
        else:
            start = 0
            if "user" in roles:
                start = roles.index("user")
            if "assistant" in roles[start:]:
                first = roles.index("assistant", start)
        return tuple(turns[:first]), cls.answer(turns[first:], **fields)

    @staticmethod
    def scores(score: float | None) -> dict[str, float | None]:
        """The scores of a response that has one, or none.

        Args:
            score: A higher one is better.
        """
        return {} if score is None else {"reward": score}

    @staticmethod
    def pairs_by_score(responses: Sequence[Response]) -> tuple[Pair, ...]:
        """All pairs whose scores differ by more than rounding; the margin is the difference.

        Args:
            responses: With a score each.
        """
        scores = [score for one in responses if (score := one.scores.get("reward")) is not None]
        if not scores:
            raise BadRow("the row has neither ranks nor scores nor pairs")
        missing = len(responses) - len(scores)
        if missing:
            raise BadRow(f"{missing} of {len(responses)} responses have no score")
        from alignkit import functional as F  # with torch, which reading a recipe does not need

        pairs = []
        for i, high in enumerate(scores):
            for j, low in enumerate(scores):
                if F.preferred([(low, high)]) == [1]:
                    pairs.append(Pair(i, j, margin=high - low))
        return tuple(pairs)


def _messages_in_cell(text: str, name: str, user: bool) -> Any:
    """The messages in a table's cell, if it holds JSON or Python's text of them; else the text
    unchanged.

    user: whether the user may speak. An answer may be data that somebody asked for, such as a
    message.
    """
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        value = parse(text)
    except BadRow as error:
        is_message = _MESSAGES.fullmatch(text)
        if is_message and isinstance(error, Twice):
            raise BadRow(f"column '{name}': a message {error}") from error
        value = _python_value(text, name) if is_message else None
    if isinstance(value, dict):  # one that is no message may be what the user asks about
        speaker = str(value.get("role", value.get("from"))).strip().lower()
        speaks = SPEAKERS.get(speaker) in (ROLES if user else ("assistant",))
        return value if speaks and value.keys() in (PLAIN, {"from", "value"}) else text
    turns = value if isinstance(value, list) else []
    for turn in turns:
        if not isinstance(turn, dict) or not {"role", "from"} & turn.keys():
            return text
    return turns or text


def _python_value(text: str, name: str) -> Any:
    """The list that pandas wrote into a table as Python prints it. Raises BadRow for one as numpy
    prints it.
    """
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if text.lstrip().startswith("["):
            raise BadRow(
                f"column '{name}' looks like messages but is not JSON; write it with json.dumps"
            ) from None
        return None
