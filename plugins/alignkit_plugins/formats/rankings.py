"""A prompt and several answers: ranked, scored, compared, or not yet.

Rankings of K responses to a prompt are as in InstructGPT (Ouyang et al. 2022, arXiv:2203.02155);
rank 1 is best. Responses may have scores instead of ranks, such as grades from 1 to 7: a higher
score is better, and the difference is the pair's margin. Equal scores make no pair.

Two answers and a label are read in the layouts of public data sets: LLMBar, Auto-J, PandaLM,
SuperHF, Tulu, AlpacaEval and others. The same label means different things in them: 1 is the first
answer in LLMBar, the second one in Auto-J. So numbers other than 1 and 2 are not guessed; a
`template` says what they mean. A tie makes a group without a pair. If several columns have a label,
the most frequent one counts; without one, it is a tie.

Files of people's own are recognized by the names of their columns: a prompt, two answers such as
`Answer A` and `Answer B`, and columns of labels such as `rated by Ann`; or a recipe says `columns:
{prompt: COLUMN, A: COLUMN, B: COLUMN, label_1: COLUMN, label_2: COLUMN}`. A label names an answer
by its letter, its number or its column, or as `labels` says; an empty cell is none. Rows about the same two answers, in
any order, are votes about one pair, which the first of them makes; a person, whom a column such as
`annotator` names or whose labels are one of several columns, has one.

A row of OpenAssistant (Koepf et al. 2023, arXiv:2304.07327) holds a tree, so that it becomes
several groups: every prompt, with the conversation before it and all its replies; those that people
ranked form pairs (rank 0 is best). Deleted messages and messages that failed the review are left
out, with all that follows them. As demonstrations, it holds the conversations from its first
message to a last reply.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, filterfalse, permutations
from shlex import quote
from statistics import multimode
from typing import Any, Literal, get_args

from alignkit import BadRow, Field, Format, Group, Message, Options, Pair, Response
from alignkit.contract.formats import check_group, columns_of, with_renamed_columns
from alignkit.data.group import ranking_pairs
from alignkit.evaluation.statistics import agreement_of, agreement_text
from alignkit_plugins.formats.columns import (
    LABEL_COLUMNS,
    NUMBER,
    NUMBERED,
    PEOPLE,
    PROMPTS,
    ColumnFormat,
    is_empty,
    own_layout,
    rated_alike,
    shared_turns,
    side_of,
    with_text,
)
from alignkit_plugins.formats.layouts import PAIRS, TwoAnswers
from alignkit_plugins.formats.turns import first_of, read_message

MAX_RESPONSES = 64  # K responses form up to K (K - 1) / 2 pairs
# Columns that say which answer is better.
JUDGED = (
    *LABEL_COLUMNS,
    *("labels", "preference", "winner", "verdict", "rating", "ranks", "scores", "pairs"),
    *("chosen", "rejected", "winner_model_a", "winner_model_b"),
)
Meant = Literal["A", "B", "tie"]  # what a label may say
_SOFT = re.compile(r"1\.\d+")
Votes = dict[Any, Pair | None]  # by who voted; None is a tie


class Rankings(ColumnFormat):
    """A prompt and its responses, with ranks (ties allowed) or with scores."""

    example = (
        '{"prompt": "Hi", "responses": [{"text": "Hello!", "rank": 1}, {"text": "What?", "rank": '
        "2}]}"
    )
    wants = (
        "prompt and responses [{text, rank or score}], or responses [text] with ranks [1, 2, "
        "...] or scores"
    )

    @classmethod
    def matches(cls, row: Any) -> bool:
        if not cls.has(row, "prompt", "responses") or "alignkit" in row:
            return False
        items, rated = row["responses"], first_of(row, ("ranks", "scores"))
        if not isinstance(items, list):
            return False
        return bool(rated or (items and all(first_of(one, ("rank", "score")) for one in items)))

    def read(self, row: Any) -> Group:
        items = columns_of(row).get("responses")
        if not isinstance(items, list) or not 2 <= len(items) <= MAX_RESPONSES:
            raise BadRow(f"responses must be a list of 2 to {MAX_RESPONSES} responses")
        ranks, scores = _column(row, "ranks", items), _column(row, "scores", items)
        responses = []
        for item, rank, score in zip(items, ranks, scores, strict=True):
            columns = {"rank": rank, "score": score, **with_text(item)}
            if rank not in (None, columns["rank"]) or score not in (None, columns["score"]):
                raise BadRow("a response contradicts the columns of ranks and scores")
            score = self.number(columns, "score")
            rank, text = self.number(columns, "rank"), self.text(columns, "text")
            responses.append(Response(text=text, rank=rank, scores=self.scores(score)))
        known: Any = [(one.rank, one.scores["reward"]) for one in responses if one.scores]
        for (rank, high), (later, low) in permutations(known, 2):
            if None not in (rank, later) and rank < later and high < low:
                raise BadRow(
                    f"rank {rank:g} has score {high:g} and rank {later:g} has {low:g}, which "
                    "contradict each other"
                )
        pairs = None
        if all(response.rank is None for response in responses):
            pairs = self.pairs_by_score(responses)
        used = ("prompt", "responses", "ranks", "scores")
        return self.group(row, used, self.column(row, "prompt"), responses, pairs)


def _column(row: Mapping[str, Any], name: str, items: Sequence[Any]) -> Sequence[Any]:
    """A value for each response; nulls without such a column."""
    values = row.get(name)
    if values is None:
        return [None] * len(items)
    if not isinstance(values, list) or len(values) != len(items):
        raise BadRow(f"{name} must be a list of {len(items)}, one for each response")
    return values


class LabeledPairs(ColumnFormat):
    """A prompt, two answers, and labels that say which one is better."""

    example = '{"input": "Hi", "output_1": "Go away.", "output_2": "Hello!", "label": 2}'
    wants = (
        "prompt, answer_a, answer_b and label, or other words for these; or those of "
        f"{', '.join(PAIRS)}"
    )

    class Options(Options):
        labels: dict[str, Meant] = Field(
            {}, "what labels mean, in columns of your own: {left: A, right: B, draw: tie}"
        )

    def __init__(self, options: Any = None):
        super().__init__(options)
        means = {} if options is None else options.labels
        self.meant = {
            label.strip().lower(): get_args(Meant).index(side) for label, side in means.items()
        }
        self.unknown = ""  # labels that say nothing, and how often
        self.own: TwoAnswers | None = None  # columns of no public data set
        self.unclear = ""  # numbers in labels, if these may mean several things
        self.votes, self.made = dict[Any, Votes](), set[Any]()  # by what they are about

    @classmethod
    def matches(cls, row: Any) -> bool:
        return layout_of(row) is not None

    def rows(self, rows: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """The rows as they are; of people's own, all votes about two answers are counted before."""
        head, layout = list[tuple[int, Any]](), None
        while layout is None and (numbered := next(rows, None)):
            head.append(numbered)
            layout = layout_of(self._named(numbered[1]), self.meant)
        if layout and not layout.labels:
            head += rows
            named = [self._named(raw) for _, raw in head]
            self._count(named, own_layout(named, self.meant) or layout)
        return chain(head, rows)

    def groups(self, row: Any) -> Iterable[Group]:
        group = self.read(row)
        if self.own is None:
            return (group,)
        about, _ = self._about(row, self.own)
        is_first = about not in self.made
        self.made.add(about)
        return (group,) * is_first

    def read(self, row: Any) -> Group:
        layout = self.own or layout_of(columns_of(row))
        if layout is None:
            raise BadRow(
                f"the columns are none of {', '.join(PAIRS)}; name them, as in `columns: {{prompt: "
                "COLUMN, A: COLUMN, B: COLUMN, label: COLUMN}`, or write a `template`"
            )
        turns = [self.column(row, name, user=False) for name in (layout.first, layout.second)]
        shared = 0
        if not layout.prompt:
            shared = shared_turns(*turns)
            prompt = turns[0][:shared]
        elif len(layout.prompt) == 1:
            prompt = self.column(row, layout.prompt[0])
        else:
            prompt = self.joined(row, layout.prompt)
        responses = [self.answer(answer[shared:]) for answer in turns]
        votes, turned = self._votes(row, layout), False
        if self.own:
            about, turned = self._about(row, layout)
            votes = self.votes.get(about, votes)
        pair = _turned(_majority(votes), turned)
        if pair and layout.labels:
            answers = layout.first, layout.second
            rated_alike(row, answers[pair.better], answers[pair.worse])
        used = (*layout.prompt, layout.first, layout.second)
        return self.group(row, used, prompt, responses, (pair,) if pair else ())

    def _named(self, raw: Any) -> dict[str, Any]:
        """A row as `read` gets it; empty for one that cannot be read."""
        with suppress(BadRow):
            return dict(with_renamed_columns(columns_of(raw), self.renamed))
        return {}

    def _votes(self, row: Mapping[str, Any], layout: TwoAnswers) -> Votes:
        """What the labels of a row say. Raises BadRow for one that says nothing."""
        if layout.labels:
            return {name: _vote(row, name, layout) for name in layout.label}
        heads, votes = self._called(layout.first, layout.second), Votes()
        for name in layout.label:
            label = row.get(name)
            if is_empty(label):
                continue
            side = self._side(label, heads)
            if side is None:
                why = self.unclear and f" (here {self.unclear}, so that 1 may be either answer)"
                raise BadRow(
                    f"column '{self.renamed.get(name, name)}' holds {label!r}, which does not say "
                    f"which answer is better: expected A, B, '{heads[0]}', '{heads[1]}', a tie, or "
                    f"nothing; or their numbers, such as 1 and 2, and no other{why}. {self.unknown}"
                    "If it is no label, say which column is, as in `columns: {label: COLUMN}`"
                )
            votes[name] = (Pair(0, 1), Pair(1, 0), None)[side]
        return votes

    def _side(self, label: Any, heads: Sequence[str]) -> int | None:
        """The place of the better answer, 2 for a tie; None if a label does not say it."""
        meant = self.meant.get(str(label).strip().lower())
        if meant is None and not (self.unclear and NUMBER.fullmatch(str(label))):
            return side_of(label, heads)
        return meant

    def _called(self, *names: str) -> list[str]:
        """What the file calls columns."""
        return [self.renamed.get(name, name) for name in names]

    def _about(self, row: Mapping[str, Any], layout: TwoAnswers) -> tuple[Any, bool]:
        """The prompt and the two answers, as the first row with them has these; and whether this
        row has them in the other order.
        """
        names = (*layout.prompt, layout.first, layout.second)
        *prompt, one, other = (str(row.get(name)).strip() for name in names)
        turned = (*prompt, other, one)
        if one != other and turned in self.votes:
            return turned, True
        return (*prompt, one, other), False

    def _count(self, rows: Sequence[Mapping[str, Any]], layout: TwoAnswers) -> None:
        """Count the votes in all rows, and note what they say together."""
        self.own, heads = layout, self._called(layout.first, layout.second)
        repeated = unnamed = 0
        texts = Counter(str(row.get(name)) for row in rows for name in layout.label)
        numbers = sorted(
            text for text in filter(NUMBER.fullmatch, texts) if self.meant.get(text) is None
        )
        sides = {side_of(number, heads) for number in numbers}
        if None in sides or sides & {1, 2} == {2}:  # without a 2, 0 may be an answer or a tie
            self.unclear = ", ".join(numbers[:5])
        strange = {
            text: count
            for text, count in texts.most_common()
            if not is_empty(text) and self._side(text, heads) is None
        }
        if strange:
            shown = [*strange][:5]
            counts = ", ".join(f"{text!r} ({strange[text]:,})" for text in shown)
            means = ",".join(
                f'"{text}"=WHICH' if "," in text else f"{text}=WHICH" for text in shown
            )
            self.unknown = (
                f"Labels that are not understood: {counts}{', ...' * (len(strange) > 5)}; say "
                f"whether each means A, B or tie: `alignkit init --labels {quote(means)}`, or in a "
                "recipe `labels` of `labeled_pairs`. "
            )
            seen = {text.strip().lower() for text in texts}
            if unused := [repr(text) for text in self.meant if text not in seen]:
                self.unknown += f"No row has {', '.join(unused)}, which `labels` names. "
        # A column is a person if there are several, or if it names one
        is_wide = len(layout.label) > 1 or " by " in self._called(*layout.label)[0].lower()
        for row in rows:
            with suppress(BadRow):  # reading the row raises it again
                check_group(self.read(row))
                about, turned = self._about(row, layout)
                votes = self._votes(row, layout)
                before = self.votes.setdefault(about, {})
                named = filterfalse(is_empty, map(row.get, filter(PEOPLE.fullmatch, row)))
                people = [str(name).strip().casefold() for name in named]
                for name, label in votes.items():
                    # Without a name, nobody votes twice
                    who = people or is_wide or len(before)
                    unnamed += bool(before) and not (people or is_wide)
                    voter, vote = (name, str(who)), _turned(label, turned)
                    repeated += voter in before
                    if before.setdefault(voter, vote) != vote:
                        before[voter] = None
        units = [*self.votes.values()]
        names = ", ".join(self._called(*layout.label))
        text = f"labels in {names}: {sum(map(len, units)):,} for {len(units):,} pairs"
        ends = Counter((len({*unit.values(), None}) > 2, _majority(unit) is None) for unit in units)
        left = {
            "tied or without a label": ends[False, True],
            "without a majority": ends[True, True],
        }
        if any(left.values()):
            parts = [f"{count:,} {why}" for why, count in left.items() if count]
            text += f", of which {sum(left.values()):,} are left out ({', '.join(parts)})"
        if shared := sum(len(unit) > 1 for unit in units):
            values = [[*map(str, unit.values())] for unit in units]  # also of ties
            text += f"; {agreement_text(agreement_of(values), shared)}"
        if split := ends[True, False]:
            text += f"; {split:,} pairs with contradicting labels, which the majority decides"
        if repeated:
            text += (
                f"; {repeated:,} labels repeated by one person, which count once, or as a tie where "
                "they differ"
            )
        if unnamed:
            text += (
                f"; {unnamed:,} further labels of a pair, each of another person, as no column "
                "'annotator' says whose"
            )
        self.notes = [text]
        if unused := self._unused(rows, layout, texts):
            self.notes.append(f"not used: {', '.join(self._called(*unused))}")

    def _unused(
        self, rows: Sequence[Mapping[str, Any]], layout: TwoAnswers, texts: Collection[str]
    ) -> list[str]:
        """Columns that are not read and look like labels: they hold a few values, most of which say
        which answer is better. texts: in the columns of labels.
        """
        used, found = {*layout.prompt, layout.first, layout.second, *layout.label}, list[str]()
        heads = self._called(layout.first, layout.second)
        for name in dict.fromkeys(chain.from_iterable(rows)):
            if name in used or PEOPLE.fullmatch(name):
                continue
            cells = [str(row[name]) for row in rows if not is_empty(row.get(name))]
            if 2 * len(set(cells)) <= len(cells) or not set(texts).isdisjoint(cells):
                keys = [cell.strip().lower() for cell in cells]
                sides = [self.meant.get(key, side_of(key, heads)) for key in keys]
                found += [name] * (2 * sides.count(None) < len(cells))
        return found


def _turned(vote: Pair | None, turned: bool) -> Pair | None:
    """A vote about two answers, as it is or in the other order."""
    return Pair(vote.worse, vote.better) if vote and turned else vote


def _majority(votes: Votes) -> Pair | None:
    """The most frequent vote; None for a tie, and without votes."""
    modes = multimode(votes.values())
    return modes[0] if len(modes) == 1 else None


def layout_of(row: Any, meant: Collection[str] = ()) -> TwoAnswers | None:
    """The layout that a row has: of a public data set, or of people's own, as `own_layout`."""
    if not isinstance(row, Mapping):
        return None
    public = next((layout for layout in PAIRS.values() if layout.fits(row)), None)
    return public or own_layout([row], meant)


def _vote(row: Mapping[str, Any], name: str, layout: TwoAnswers) -> Pair | None:
    """The pair that a label means; None for a tie."""
    value = str(row[name]).strip().lower().removesuffix(".0")
    side, margin = layout.labels.get(value), layout.margins.get(value)
    if side == "tie":
        return None
    if side is not None:
        better = int(side == "second")
        return Pair(better, 1 - better, margin=margin)
    if layout.soft and _SOFT.fullmatch(value):
        p = float(value) - 1
        return Pair(1, 0, p=p) if p > 0.5 else Pair(0, 1, p=1 - p)
    labels = ", ".join(layout.labels)
    raise BadRow(f"column '{name}' holds {row[name]!r}, but the known labels are {labels}")


class Unlabeled(ColumnFormat):
    """Answers that nobody has compared yet, as `alignkit label` shows them: in columns with numbers
    or letters, or in a list of texts.
    """

    example = '{"prompt": "Hi", "response_a": "Hello!", "response_b": "Go away."}'
    wants = (
        "prompt, question or instruction, and response_a, response_b ... or responses [text], "
        "and no label"
    )

    @classmethod
    def matches(cls, row: Any) -> bool:
        if not cls.lacks(row, *JUDGED) or layout_of(row) is not None:
            return False
        answers = _answers(row)
        are_texts = all(isinstance(answer, str | list) for _, answer in answers)
        return first_of(row, PROMPTS) != "" and len(answers) > 1 and are_texts

    def read(self, row: Any) -> Group:
        prompt, answers = first_of(columns_of(row), PROMPTS), _answers(row)
        if not prompt:
            raise BadRow(f"a prompt is required, in one of the columns {', '.join(PROMPTS)}")
        if len(answers) < 2:
            raise BadRow(
                "two answers are required, such as response_a and response_b, or a list of "
                "texts: responses"
            )
        turns = (self.conversation(answer, name, user=False) for name, answer in answers)
        used = (prompt, *dict(answers))
        return self.group(row, used, self.column(row, prompt), [*map(self.answer, turns)], ())


def _answers(row: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The answers, each with its column."""
    if isinstance(row.get("responses"), list):
        return [("responses", answer) for answer in row["responses"]]
    names = list(filter(NUMBERED.fullmatch, row))
    return [(name, row[name]) for name in names if row[name] is not None]


Node = Mapping[str, Any]


class Oasst(Format):
    """Trees {message_tree_id, prompt: {text, role, replies: [{text, role, rank, replies}]}}."""

    example = (
        '{"prompt": {"text": "Hi", "role": "prompter", "replies": [{"text": "Hello!", '
        '"role": "assistant", "rank": 0}, {"text": "What?", "role": "assistant", "rank": 1}]}}'
    )
    wants = "prompt as a tree {text, role, replies}, as in OpenAssistant's *.trees.jsonl"

    @classmethod
    def matches(cls, row: Any) -> bool:
        return (
            cls.has(row, "prompt")
            and isinstance(row["prompt"], Mapping)
            and "replies" in row["prompt"]
        )

    def read(self, row: Any) -> Group:
        """The first group of a tree."""
        return self.groups(row)[0]

    def groups(self, row: Any) -> list[Group]:
        root = columns_of(row).get("prompt")
        if not isinstance(root, Mapping):
            raise BadRow("column 'prompt' must be a message with replies")
        if not _is_kept(root):
            raise BadRow("the tree's first message was deleted, or failed the review")
        try:
            groups = list(self.found(root, self.rest(row, "prompt")))
        except RecursionError as error:
            raise BadRow("the tree is nested too deeply") from error
        if not groups:
            raise BadRow("no prompt of the tree has a reply")
        return groups

    def found(self, root: Node, meta: dict[str, Any]) -> Iterator[Group]:
        """The groups below a first message."""
        return _rankings(root, (), meta)


class OasstPaths(Oasst):
    """Demonstrations from trees: the path of the best replies, or every path."""

    class Options(Options):
        every: bool = Field(
            False,
            "every path of a tree, and not only that of the best replies; what two paths share is "
            "learned once",
        )

    wants = "the same trees; never detected, so name the format"
    matches = Format.matches

    def found(self, root: Node, meta: dict[str, Any]) -> Iterator[Group]:
        for path in _paths(root, [], self.options.every):
            while path and path[-1]["role"] == "user":  # nobody answered
                path.pop()
            if path and path[-1].get("train", True):
                prompt, response = ColumnFormat.demonstration(path)
                yield Group(prompt, (response,), meta=meta)


def _is_kept(node: Node) -> bool:
    return not node.get("deleted") and node.get("review_result") is not False


def _replies(node: Node) -> list[Node]:
    """The replies to a message that are kept."""
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, Mapping) for reply in replies):
        raise BadRow("the replies of a message must be a list of messages")
    return list(filter(_is_kept, replies))


def _rankings(node: Node, before: Sequence[Message], meta: dict[str, Any]) -> Iterator[Group]:
    """Every prompt of a tree that has replies, with all of them."""
    path = (*before, read_message(node, "a message of the tree"))
    replies = _replies(node)
    if path[-1]["role"] == "user" and replies:
        responses = []
        for reply in replies:
            text = read_message(reply, "a reply")["content"]
            responses.append(Response(text=text, rank=Format.number(reply, "rank")))
        order = ranking_pairs([response.rank for response in responses])
        pairs = tuple(Pair(better, worse) for better, worse in order)
        yield Group(path, tuple(responses), pairs, meta=meta)
    for reply in replies:
        yield from _rankings(reply, path, meta)


def _paths(node: Node, before: Sequence[Message], every: bool) -> Iterator[list[Message]]:
    """The conversations from the first message to a last one, those of better replies first; not
    every one: the first of them.
    """
    path = [*before, read_message(node, "a message of the tree")]
    # A reply without a rank comes after those that have one.
    replies = sorted(
        _replies(node), key=lambda reply: (reply.get("rank") is None, reply.get("rank"))
    )
    if not replies:
        yield path
    for reply in replies[: None if every else 1]:
        yield from _paths(reply, path, every)
        for place, turn in enumerate(path):
            if turn["role"] == "assistant":  # the next path has learned it already
                path[place] = {**turn, "train": False}
