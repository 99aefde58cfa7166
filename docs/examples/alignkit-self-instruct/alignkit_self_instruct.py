"""The step `self_instruct`: new tasks, written by a model that reads some of people's and some of
its own.

Wang et al. 2022, "Self-Instruct: Aligning Language Models with Self-Generated Instructions",
arXiv:2212.10560. Differs from the paper: a chat model is asked for a list of tasks, as in Alpaca,
and `sample` writes the responses.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

from alignkit import (
    Add,
    Artifact,
    DataError,
    DataRef,
    Field,
    Group,
    StepContext,
    StepData,
    hookimpl,
    seeds,
)
from alignkit_plugins.ai_feedback.make_data import (
    AskingStep,
    Desk,
    Writing,
    common_words,
    filled,
    question_of,
    row,
)
from alignkit_plugins.ai_feedback.writer import Written, writer_of
from alignkit_plugins.compare.comparison import distinct_prompts
from alignkit_plugins.text.text_metrics import words_of

ROUND = 8  # questions that read the same tasks; the next ones read what these have brought
IDLE = 2  # rounds without a new task after which the writer is asked no more
EXAMPLES, NEW = 8, 2  # tasks in a question, and how many of them the model wrote, as in the paper
OVERLAP = 0.7  # ROUGE-L from which on a task is a near duplicate, as in the paper
FEWEST, MOST = 3, 150  # words of a task, as in the paper's code
TEMPLATE = """\
Come up with 8 new tasks that people could ask an assistant for. They differ in topic, form and length from each \
other and from the tasks below. Each can be done in words, without pictures, files or actions. Write nothing but the \
tasks, each after its number. This is list {number}: its topics are others than those of earlier lists.

{examples}"""
_ITEM = re.compile(
    r"^([ \t]*)(?:(?:#+[ \t]*)?(?:\*\*)?(?:Task[ \t]*)?\d+[ \t]*[.):](?:\*\*)?(?!\d)[ \t]*)+",
    re.MULTILINE | re.IGNORECASE,
)


class SelfInstruct(AskingStep):
    """Write tasks until there are enough, all questions are asked, or 16 questions bring none.

    The rows are prompts. A task is left out if it is cut off, too short or too long, or resembles
    one of people's or an earlier one: their ROUGE-L is at least 0.7.
    """

    class Options(Writing):
        tasks: DataRef = Field(description="tasks of people, which are shown as examples: prompts")
        count: int = Field(100, ge=1, description="number of tasks to write")
        questions: int = Field(
            200, ge=1, description="most questions to ask the writer, for 8 tasks each"
        )

    options: Options

    def check_data(self, data: StepData) -> None:
        if (rows := data.load(self.options.tasks)) is not None:
            tasks_of(rows)

    def run(self, context: StepContext) -> Artifact:
        options, desk, sampling = self.options, Desk(context), self.options.sampled()
        people = tasks_of(context.load(options.tasks))
        writer = writer_of(context, "self_instruct", options.writer, sampling)
        texts, made, idle = Texts(people), list[Group](), 0
        for start in range(0, options.questions, ROUND):
            numbers = range(start, min(start + ROUND, options.questions))
            new = [group.prompt[0]["content"] for group in made]
            questions = [question_of(_question(context, n, people, new)) for n in numbers]
            most = sampling["max_new_tokens"]
            replies = desk.ask(f"tasks-{start}", writer, questions, most)
            for number, reply in zip(numbers, replies, strict=True):
                origin = {**writer.origin, "template": "self_instruct", "question": number}
                for text in itertools.islice(
                    _new_tasks(desk, reply, texts), options.count - len(made)
                ):
                    made.append(row(question_of(text), {"writer": origin}))
            done = f"{len(made)} of {options.count} tasks after {numbers.stop} questions"
            context.say(f"{context.out.name}: {done}")
            idle = 0 if len(made) > len(new) else idle + 1
            if len(made) >= options.count or idle == IDLE:
                break
        headline = f"{writer.name}: {len(made)} new tasks after {len(people)} of people"
        more = "give more different tasks of people"
        if idle == IDLE:
            headline += f"; the last {IDLE * ROUND} questions brought none: {more}"
        elif len(made) < options.count:
            headline += f"; {options.count} were wanted: raise 'questions', or {more}"
        facts = {"tasks": len(made), "of_people": len(people)}
        return desk.artifact(headline, made, facts, usable=bool(made))


def _question(context: StepContext, number: int, people: Sequence[str], new: Sequence[str]) -> str:
    """A question with examples, most of them people's."""
    draw = seeds.stream(context.seed, context.stage, "examples", number)
    own = min(NEW, len(new))
    shown = [people[i] for i in draw.permutation(len(people))[: EXAMPLES - own]]
    shown += [new[i] for i in draw.permutation(len(new))[:own]]
    order = enumerate(draw.permutation(len(shown)), 1)
    examples = "\n".join(f"{place}. {shown[i]}" for place, i in order)
    # Equal requests have one reply, and few tasks make equal ones: the number tells them apart.
    return filled(TEMPLATE, number=number + 1, examples=examples)


def _new_tasks(desk: Desk, reply: Written, texts: Texts) -> Iterator[str]:
    """The tasks of a reply that differ from all others."""
    tasks = listed(reply)
    if reply.text and not tasks:
        desk.drop("no list of tasks", text=reply.text)
    for text, whole in tasks:
        words = len(text.split())
        overlap, nearest = texts.nearest(text)
        if not whole:
            desk.drop("cut off", text=text)
        elif words <= FEWEST:
            desk.drop("too short", text=text)
        elif words > MOST:
            desk.drop("too long", text=text)
        elif overlap >= OVERLAP:
            desk.drop("near duplicate", text=text, of=nearest)
        else:
            texts.add(text)
            yield text


def tasks_of(groups: Sequence[Group]) -> list[str]:
    """The tasks of people: the last thing that the user says. Raises DataError if there is none."""
    texts: dict[str, None] = {}
    for group in distinct_prompts(groups):
        turns = [turn["content"] for turn in group.prompt if turn["role"] == "user"]
        texts |= dict.fromkeys(turns[-1:])
    if not texts:
        problem = "no row has a prompt, and the writer needs examples of tasks"
        raise DataError(problem, option=("tasks",))
    return list(texts)


def listed(reply: Written) -> list[tuple[str, bool]]:
    """The tasks in a numbered list, and whether each is whole: the last task of a reply that was
    cut off is not.
    """
    every = list(_ITEM.finditer(reply.text))
    items = [item for item in every if len(item[1]) <= len(every[0][1])]  # no list within a task
    ends = [item.start() for item in items[1:]]
    tasks = []
    for item, end in itertools.zip_longest(items, ends):
        text = reply.text[item.end() : end].strip()
        if text:
            tasks.append((text, end is not None or not reply.truncated))
    return tasks


class Texts:
    """Texts that differ from each other: which one is nearest to a new one."""

    def __init__(self, texts: Iterable[str] = ()):
        self._texts = [(text, _words(text)) for text in texts]

    def add(self, text: str) -> None:
        """Compare later ones with this text, too."""
        self._texts.append((text, _words(text)))

    def nearest(self, text: str) -> tuple[float, str]:
        """The highest ROUGE-L with a text here (F-measure, Lin 2004), and that text; 0 and "" if
        there is none.
        """
        words, best, nearest = _words(text), 0.0, ""
        for other, others in self._texts:
            both = len(words) + len(others)
            # The common subsequence is no longer than the shorter text: most pairs are not
            # compared.
            if 2 * min(len(words), len(others)) <= best * both:
                continue
            value = 2 * common_words(words, others) / both
            if value > best:
                best, nearest = value, other
        return best, nearest


def _words(text: str) -> list[str]:
    return [word for word in words_of(text) if word[0].isalnum()]


@hookimpl
def register(add: Add) -> None:
    add("step", "self_instruct", SelfInstruct, "new tasks like those of people, written by a model")
