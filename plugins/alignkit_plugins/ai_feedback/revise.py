"""The step `revise` of Constitutional AI: answers, criticized and rewritten by principles (Bai et
al. 2022, arXiv:2212.08073).

As in section 3 of the paper, a policy answers prompts, and in each round a critic names what is
wrong with the answer by one principle and rewrites it. `sft` learns the last revisions. Section 4,
comparisons by principle, is `judge_pairs` with its option `constitution`. Differs from the paper: a
conversation of chat turns instead of one text, without examples; each round shows the critic only
the newest revision; no principle comes twice for a prompt before each has come once; a revision
that was cut off, is empty or was refused is left out and counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import alignkit
from alignkit import (
    Artifact,
    DataRef,
    Field,
    Group,
    Message,
    PolicyRef,
    Response,
    RunFailed,
    StepContext,
    StepData,
    seeds,
)
from alignkit.data.group import assistant_turn, user_turn, with_responses
from alignkit_plugins.ai_feedback.constitution import ConstitutionRef, Principle, drawn
from alignkit_plugins.ai_feedback.make_data import WHO, AskingStep, Desk, policies_of
from alignkit_plugins.ai_feedback.writer import Server, Writer, Written, ask, writer_of
from alignkit_plugins.compare.comparison import checked_prompts, prompts_to_compare

CRITIQUE = "{critique}\n\nWrite only the critique. If nothing is wrong by this measure, say so."
REVISION = (
    "{revise}\n"
    "\n"
    "Write only the rewritten answer, as the user will read it, and not much longer than before: "
    "no introduction, and no word about what changed. If there is nothing to change, repeat the "
    "answer."
)
# "Here is the revised answer:", "Sure! Below is a rewritten version of the response:", "Revision:"
_REWRITTEN = r"(?:revis|rewrit|rewrote|reword|improv|updat|modif)\w*"
_LEAD_IN = re.compile(
    r"\A(?:(?:sure|certainly|of course|okay)\b[^\n:.!]{0,40}[.!,]\s*)?"
    rf"(?:(?:here(?:'s|’s| is)|below is|this is)\b[^\n:]{{0,60}}\b{_REWRITTEN}\b[^\n:]{{0,60}}"
    rf"|(?:\*\*)?(?:{_REWRITTEN} )?(?:revision|rewrite|version|answer|response)(?:\*\*)?)"
    r":(?:\*\*)?\s*(?=\S)",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"\A(?:\"([^\"]+)\"|“([^“”]+)”)\Z", re.DOTALL)


@dataclass
class Chain:
    """A prompt with its answer and what became of it.

    principles: one for each round. turns: the conversation that is continued next. rounds: a
    dictionary with principle, critique and revision each. dropped: why the chain cannot be used;
    empty if it can.
    """

    group: Group
    principles: Sequence[Principle]
    turns: list[Message]
    answer: str = ""
    rounds: list[dict[str, str]] = field(default_factory=list)
    dropped: str = ""

    @property
    def newest(self) -> str:
        """The last revision, or the answer."""
        return self.rounds[-1]["revision"] if self.rounds else self.answer

    def ask_for_critique(self, by: Principle) -> None:
        """Begin a round."""
        question = CRITIQUE.replace("{critique}", by.critique or "")
        self.turns = [*self.group.prompt, assistant_turn(self.newest), user_turn(question)]
        self.rounds.append({"principle": by.name, "critique": "", "revision": ""})

    def ask_for_revision(self, by: Principle, critique: str) -> None:
        """Take a critique, also one that was cut off."""
        self.rounds[-1]["critique"] = critique
        question = REVISION.replace("{revise}", by.revise or "")
        self.turns += [assistant_turn(critique), user_turn(question)]


class Revise(AskingStep):
    """Answer prompts, then criticize and rewrite each answer by a principle in every round.

    The rows are prompts with the last revision, which `sft` learns. Their column `revise` has the
    first answer, and principle, critique and revision of each round. A row is left out, with a
    reason, if there is no room for an answer, or if an answer, a critique or a revision is empty,
    was refused by the server, or if a revision was cut off. All of them are in `dropped.jsonl`.
    """

    class Options(alignkit.SamplingOptions):
        policy: PolicyRef = Field("base", "policy that answers")
        prompts: DataRef = Field(
            description="prompts; rows with the same words and columns count once"
        )
        constitution: ConstitutionRef = Field(
            description=(
                "file with principles, `harmless` or `helpful_honest`, or a list of principles"
            )
        )
        rounds: int = Field(
            2, "number of critiques and revisions of each answer; the paper has 4", ge=1, le=16
        )
        critic: PolicyRef | Server | None = Field(
            None, f"who criticizes and revises: {WHO}; default: the policy itself"
        )
        critique_tokens: int = Field(200, "maximum length of a critique, in tokens", ge=1)

        def policies_to_sample(self) -> list[str]:
            return policies_of(self.policy, self.critic)

    options: Options

    def check(self, folder: Path) -> None:
        super().check(folder)
        if not self._principles():
            raise RunFailed("no principle of the constitution has 'critique' and 'revise'")

    def check_data(self, data: StepData) -> None:
        checked_prompts(data, self.options.prompts)

    def run(self, context: StepContext) -> Artifact:
        options, desk, sampling = self.options, Desk(context), self.options.sampled()
        length = sampling["max_new_tokens"]
        answering = writer_of(context, "revise", options.policy, sampling)
        sampling.pop("min_new_tokens", None)  # it applies to answers only
        # First, so that a missing key shows before sampling.
        critic = writer_of(context, "revise", options.critic or options.policy, sampling)
        prompts, notes = prompts_to_compare(context.load(options.prompts))
        chains = []
        for group in prompts:
            principles = self._principles()
            order = drawn(principles, options.rounds, context.seed, context.stage, group.id)
            chains.append(Chain(group, order, list(group.prompt)))

        def written(
            kind: str, writer: Writer, most: int, number: int = 0
        ) -> Iterator[tuple[Chain, Written]]:
            """What comes next in each chain, which ends without it. number: of the round, from 0."""
            going = [chain for chain in chains if not chain.dropped]

            def seed(first: int) -> int:
                which = [number, going[first].group.id] if writer is critic else [first]
                return seeds.number(context.seed, context.stage, kind, *which)

            questions = [Group(tuple(each.turns), tools=each.group.tools) for each in going]
            replies = ask(context, f"{kind}-{number + 1}", writer, questions, most, seed=seed)
            desk.spent += replies
            for chain, reply in zip(going, replies, strict=True):
                if reply.text:
                    yield chain, reply
                else:
                    chain.dropped = f"no {kind}, {reply.reason}"

        for chain, reply in written("answer", answering, length):
            chain.answer = reply.text
        for number in range(options.rounds):
            for chain in chains:
                if not chain.dropped:
                    chain.ask_for_critique(chain.principles[number])
            for chain, reply in written("critique", critic, options.critique_tokens, number):
                chain.ask_for_revision(chain.principles[number], reply.text)
            for chain, reply in written("revision", critic, length, number):
                chain.rounds[-1]["revision"] = without_lead_in(reply.text)
                if reply.truncated:
                    chain.dropped = "revision longer than max_new_tokens"
        rows = []
        for chain in chains:
            prompt, steps = chain.group, {"answer": chain.answer, "rounds": chain.rounds}
            if chain.dropped:
                desk.drop(chain.dropped, prompt=list(prompt.prompt), **steps)
                continue
            response = Response(chain.newest, source=critic.name)
            meta = {**prompt.meta, "revise": steps}
            rows.append(with_responses(prompt, (response,), meta=meta, pairs=None))
        notes = [f"sampled with {options.described()}", *notes]
        facts = {"critic": critic.name, "prompts": len(chains), "revised": len(rows)}
        headline = f"{len(rows)} of {len(chains)} answers revised by {critic.name}"
        parts = "\n".join(notes)
        return desk.artifact(headline, rows, {**facts, "notes": notes}, parts, usable=bool(rows))

    def _principles(self) -> list[Principle]:
        """The principles that can criticize and revise."""
        return [each for each in self.options.constitution if each.critique is not None]


def without_lead_in(text: str) -> str:
    """A revision without "Here is the revised answer:" and quotation marks around it, which nobody
    should learn.
    """
    bare = _LEAD_IN.sub("", text, count=1)
    quoted = _QUOTED.match(bare) if bare != text else None
    return (quoted[1] or quoted[2]).strip() if quoted else bare
