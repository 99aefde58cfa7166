"""The step `self_instruct`: new tasks, written by a model that reads some of people's and some of its own.

Wang et al. 2022, "Self-Instruct: Aligning Language Models with Self-Generated Instructions", arXiv:2212.10560.
Differs from the paper: a chat model is asked for a list of tasks, as in Alpaca, and `sample` writes the responses.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit import Artifact, DataError, DataRef, Field, Group, RunFailed, Step, StepContext, StepData, seeds
from alignkit.data.group import distinct_prompts
from alignkit.report import Report, Table
from alignkit_http.writers import Written, ask, bill, origin_of, writer_of
from alignkit_plugins.steps.make_data.likeness import Texts
from alignkit_plugins.steps.make_data.writing import Writing, asked, check_keys, filled, lines_of, row, write_lines

ROUND = 8  # questions that read the same tasks; the next ones read what these have brought
SHOWN = 5  # new tasks in the report
FEWEST, MOST = 3, 150  # words of a task, as in the paper's code
TEMPLATE = """\
Come up with {count} new tasks that people could ask an assistant for. They differ in topic, form and length from each \
other and from the tasks below. Each can be done in words, without pictures, files or actions. Write nothing but the \
tasks, each after its number. This is list {number}: its topics are others than those of earlier lists.

{examples}"""
_ITEM = re.compile(
    r"^[ \t]*(?:#+[ \t]*)?(?:\*\*)?(?:Task[ \t]*)?\d+[ \t]*[.):](?:\*\*)?[ \t]*", re.MULTILINE | re.IGNORECASE
)
# The paper's code leaves these out: a model of words cannot do them.
_NO_WORDS = re.compile(
    r"\b(?:images?|graphs?|pictures?|files?|maps?|draw|plot|videos?|audio|music|flowcharts?|diagrams?)\b", re.I
)


class SelfInstruct(Step):
    """Write tasks until there are enough, or until all questions are asked. The rows are prompts.

    A task is left out if it is cut off, too short or too long, needs more than words, or resembles one of people's or
    an earlier one: their ROUGE-L is at least `max_overlap`.
    """

    class Options(Writing):
        tasks: DataRef = Field(description="tasks of people, which are shown as examples: prompts")
        count: int = Field(100, ge=1, description="tasks to write")
        questions: int = Field(200, ge=1, description="questions to ask the writer at most")
        tasks_per_question: int = Field(8, ge=1, le=50, description="tasks that each question asks for")
        examples: int = Field(8, ge=1, description="tasks in each question; a quarter are new ones, as in the paper")
        max_overlap: float = Field(
            0.7, gt=0, le=1, description="ROUGE-L with another task from which on one is left out"
        )

    options: Options

    def check(self, folder: Path) -> None:
        check_keys("self_instruct", self.options.writer)

    def check_data(self, data: StepData) -> None:
        if (rows := data.load(self.options.tasks)) is not None:
            tasks_of(rows)

    def run(self, context: StepContext) -> Artifact:
        options = self.options
        people = tasks_of(context.load(options.tasks))
        writer = writer_of(context, "self_instruct", options.writer, options.sampling())
        texts, made, spent, gone = Texts(people), list[Group](), list[Written](), list[dict[str, str]]()
        for start in range(0, options.questions, ROUND):
            numbers, new = range(start, min(start + ROUND, options.questions)), texts.texts[len(people) :]
            questions = [asked(self._question(context, number, people, new)) for number in numbers]
            said = ask(context, f"tasks-{start}", writer, questions, options.sampling()["max_new_tokens"])
            for number, each in zip(numbers, said, strict=True):
                self._add(
                    each, origin_of(writer.origin, [each], template="self_instruct", question=number), texts, made, gone
                )
            spent += said
            context.say(f"{context.out.name}: {len(made)} of {options.count} tasks after {len(spent)} questions")
            if len(made) >= options.count:
                break
        write_lines(context, "dropped.jsonl", gone)
        dropped = dict(Counter(each["dropped"] for each in gone).most_common())
        facts: dict[str, Any] = {"tasks": len(made), "of_people": len(people), "dropped": dropped, "bill": bill(spent)}
        if not made:
            raise RunFailed(f"stage '{context.stage}': {lines_of('no task was written', facts['bill'], dropped)}")
        return Artifact(groups=made, summary=facts, report=_report(writer.name, facts, made, options.count))

    def _question(self, context: StepContext, number: int, people: Sequence[str], new: Sequence[str]) -> str:
        """A question with examples, most of them people's."""
        draw, count = seeds.stream(context.seed, context.stage, "examples", number), self.options.examples
        own = min(count // 4, len(new))
        shown = [people[i] for i in draw.permutation(len(people))[: count - own]]
        shown += [new[i] for i in draw.permutation(len(new))[:own]]
        listed = "\n".join(f"{place}. {shown[i]}" for place, i in enumerate(draw.permutation(len(shown)), 1))
        # Equal requests have one reply, and few tasks make equal ones: the number tells them apart.
        return filled(TEMPLATE, count=self.options.tasks_per_question, number=number + 1, examples=listed)

    def _add(
        self, said: Written, origin: Mapping[str, Any], texts: Texts, made: list[Group], gone: list[dict[str, str]]
    ) -> None:
        """Add the tasks of one reply that differ from all others, until there are enough."""
        found = listed(said)
        if said.text and not found:
            gone.append({"dropped": "no list of tasks", "text": said.text})
        for text, whole in found:
            if len(made) >= self.options.count:
                return
            overlap, other = texts.nearest(text)
            if reason := why_not(text, whole):
                gone.append({"dropped": reason, "text": text})
            elif overlap >= self.options.max_overlap:
                gone.append({"dropped": "near duplicate", "text": text, "of": other})
            else:
                texts.add(text)
                made.append(
                    row(asked(text), {"writer": origin, "nearest": {"overlap": round(overlap, 4), "task": other}})
                )


def tasks_of(groups: Sequence[Group]) -> list[str]:
    """The tasks of people: the last thing that the user says. Raises DataError if there is none."""
    prompts = distinct_prompts(groups)
    texts = [turns[-1] for group in prompts if (turns := [t["content"] for t in group.prompt if t["role"] == "user"])]
    if not texts:
        raise DataError("no row has a prompt, and the writer needs examples of tasks", option=("tasks",))
    return list(dict.fromkeys(texts))


def listed(said: Written) -> list[tuple[str, bool]]:
    """The tasks in a numbered list, and whether each is whole: the last task of a reply that was cut off is not."""
    parts = [part.strip() for part in _ITEM.split(said.text)[1:]]
    return [(part, not (said.truncated and place == len(parts))) for place, part in enumerate(parts, 1) if part]


def why_not(text: str, whole: bool) -> str:
    """Why a task is of no use whatever the others are; empty if it is."""
    words = len(text.split())
    if not whole:
        return "cut off"
    if not FEWEST < words <= MOST:
        return "too short" if words <= FEWEST else "too long"
    return "needs more than words" if _NO_WORDS.search(text) else ""


def _report(writer: str, facts: dict[str, Any], made: Sequence[Group], wanted: int) -> Report:
    headline = f"{writer}: {facts['tasks']} new tasks after {facts['of_people']} of people"
    if facts["tasks"] < wanted:
        headline += f"; {wanted} were wanted: raise 'questions', or give more different tasks of people"
    rows = [
        [" ".join(group.prompt[0]["content"].split()), f"{group.meta['nearest']['overlap']:.2f}"]
        for group in made[:SHOWN]
    ]
    table = Table("the first new tasks", ["task", "ROUGE-L with the nearest"], rows)
    return Report([lines_of(headline, facts["bill"], facts["dropped"]), table])
