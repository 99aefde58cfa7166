"""The step `self_instruct`: new tasks, written by a model that reads some of people's and some of
its own.

Wang et al. 2022, "Self-Instruct: Aligning Language Models with Self-Generated Instructions",
arXiv:2212.10560. Differs from the paper: a chat model is asked for a list of tasks, as in Alpaca,
and `sample` writes the responses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from alignkit import Artifact, DataError, DataRef, Field, Group, StepContext, StepData, seeds
from alignkit.report import Table
from alignkit_plugins.ai_feedback.likeness import Texts
from alignkit_plugins.ai_feedback.writers import Written, origin_of, writer_of
from alignkit_plugins.ai_feedback.writing import Asking, Desk, Writing, asked, filled, row
from alignkit_plugins.compare.comparison import distinct_prompts

ROUND = 8  # questions that read the same tasks; the next ones read what these have brought
IDLE = 2  # rounds without a new task after which the writer is asked no more
EXAMPLES, NEW = 8, 2  # tasks in a question, and how many of them the model wrote, as in the paper
OVERLAP = 0.7  # ROUGE-L from which on a task is a near duplicate, as in the paper
FEWEST, MOST = 3, 150  # words of a task, as in the paper's code
SHOWN = 5  # new tasks in the report
TEMPLATE = """\
Come up with 8 new tasks that people could ask an assistant for. They differ in topic, form and length from each \
other and from the tasks below. Each can be done in words, without pictures, files or actions. Write nothing but the \
tasks, each after its number. This is list {number}: its topics are others than those of earlier lists.

{examples}"""
_ITEM = re.compile(
    r"^([ \t]*)(?:(?:#+[ \t]*)?(?:\*\*)?(?:Task[ \t]*)?\d+[ \t]*[.):](?:\*\*)?(?!\d)[ \t]*)+",
    re.MULTILINE | re.IGNORECASE,
)


class SelfInstruct(Asking):
    """Write tasks until there are enough, all questions are asked, or 16 questions bring none. The
    rows are prompts.

    A task is left out if it is cut off, too short or too long, or resembles one of people's or an
    earlier one: their ROUGE-L is at least 0.7.
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
        options, desk = self.options, Desk(context)
        people = tasks_of(context.load(options.tasks))
        writer = writer_of(context, "self_instruct", options.writer, options.sampled())
        texts, made, idle = Texts(people), list[Group](), 0
        for start in range(0, options.questions, ROUND):
            numbers = range(start, min(start + ROUND, options.questions))
            before, new = len(made), [group.prompt[0]["content"] for group in made]
            questions = [asked(_question(context, number, people, new)) for number in numbers]
            said = desk.ask(
                f"tasks-{start}", writer, questions, options.sampled()["max_new_tokens"]
            )
            for number, each in zip(numbers, said, strict=True):
                origin = origin_of(writer.origin, [each], template="self_instruct", question=number)
                new = _new_tasks(desk, each, texts, options.count - len(made))
                made += [row(asked(text), {"writer": origin}) for text in new]
            context.say(
                f"{context.out.name}: {len(made)} of {options.count} tasks after {numbers.stop} "
                "questions"
            )
            idle = 0 if len(made) > before else idle + 1
            if len(made) >= options.count or idle == IDLE:
                break
        headline = f"{writer.name}: {len(made)} new tasks after {len(people)} of people"
        if idle == IDLE:
            headline += (
                f"; the last {IDLE * ROUND} questions brought none: give more different tasks of "
                "people"
            )
        elif len(made) < options.count:
            headline += (
                f"; {options.count} were wanted: raise 'questions', or give more different tasks "
                "of people"
            )
        shown = [[" ".join(group.prompt[0]["content"].split())] for group in made[:SHOWN]]
        facts = {"tasks": len(made), "of_people": len(people)}
        return desk.artifact(
            headline, made, facts, Table("", ["the first new tasks"], shown), usable=bool(made)
        )


def _question(context: StepContext, number: int, people: Sequence[str], new: Sequence[str]) -> str:
    """A question with examples, most of them people's."""
    draw, own = seeds.stream(context.seed, context.stage, "examples", number), min(NEW, len(new))
    shown = [people[i] for i in draw.permutation(len(people))[: EXAMPLES - own]]
    shown += [new[i] for i in draw.permutation(len(new))[:own]]
    listed = "\n".join(
        f"{place}. {shown[i]}" for place, i in enumerate(draw.permutation(len(shown)), 1)
    )
    # Equal requests have one reply, and few tasks make equal ones: the number tells them apart.
    return filled(TEMPLATE, number=number + 1, examples=listed)


def _new_tasks(desk: Desk, said: Written, texts: Texts, most: int) -> list[str]:
    """The first tasks of a reply that differ from all others."""
    tasks, new = listed(said), list[str]()
    if said.text and not tasks:
        desk.drop("no list of tasks", text=said.text)
    for text, whole in tasks:
        if len(new) == most:
            break
        overlap, nearest = texts.nearest(text)
        words = len(text.split())
        if not whole:
            desk.drop("cut off", text=text)
        elif not FEWEST < words <= MOST:
            desk.drop("too short" if words <= FEWEST else "too long", text=text)
        elif overlap >= OVERLAP:
            desk.drop("near duplicate", text=text, of=nearest)
        else:
            texts.add(text)
            new.append(text)
    return new


def tasks_of(groups: Sequence[Group]) -> list[str]:
    """The tasks of people: the last thing that the user says. Raises DataError if there is none."""
    prompts = distinct_prompts(groups)
    texts = [
        turns[-1]
        for group in prompts
        if (turns := [t["content"] for t in group.prompt if t["role"] == "user"])
    ]
    if not texts:
        raise DataError(
            "no row has a prompt, and the writer needs examples of tasks", option=("tasks",)
        )
    return list(dict.fromkeys(texts))


def listed(said: Written) -> list[tuple[str, bool]]:
    """The tasks in a numbered list, and whether each is whole: the last task of a reply that was
    cut off is not.
    """
    items = [*_ITEM.finditer(said.text)]
    # Not those of a list within a task
    items = [item for item in items if len(item[1]) <= len(items[0][1])]
    ends = [*(item.start() for item in items[1:]), len(said.text)]
    # No items: no part
    parts = [said.text[item.end() : end].strip() for item, end in zip(items, ends, strict=False)]
    return [
        (part, not (said.truncated and place == len(parts)))
        for place, part in enumerate(parts, 1)
        if part
    ]
