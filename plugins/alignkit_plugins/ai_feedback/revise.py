"""The step `revise` of Constitutional AI: answers, criticized and rewritten by principles (Bai et
al. 2022, arXiv:2212.08073).

As in section 3 of the paper, a policy answers prompts, and in each round a critic names what is
wrong with the answer by one principle and rewrites it. `sft` learns the last revisions. Section 4,
comparisons by principle, is `judge_pairs` with its option `constitution`. Differs from the paper: a
conversation of chat turns instead of one text; each round shows the critic only the newest
revision; no principle comes twice for a prompt before each has come once; a revision that was cut
off, is empty or was refused is left out and counted.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import alignkit
from alignkit import (
    Artifact,
    DataRef,
    Field,
    Group,
    Message,
    Options,
    PolicyRef,
    Response,
    RunFailed,
    Step,
    StepContext,
    StepData,
    seeds,
)
from alignkit.evaluation import statistics
from alignkit.report import Report, SideBySide, Table
from alignkit_plugins.ai_feedback.constitution import ConstitutionRef, Principle, drawn
from alignkit_plugins.ai_feedback.remote import key_of
from alignkit_plugins.ai_feedback.server import Server
from alignkit_plugins.ai_feedback.writers import Writer, Written, writer_of
from alignkit_plugins.compare.comparison import prompts_to_compare
from alignkit_plugins.formats.rows import prompt_to_row, prompts_from_rows
from alignkit_plugins.formats.spoken import answer_of

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


class Example(Options):
    """A conversation that shows how to criticize and revise."""

    principle: str = Field(
        min_length=1, description="name of the principle whose words ask the questions"
    )
    prompt: str = Field(min_length=1, description="what the user says")
    answer: str = Field(min_length=1, description="the answer to be criticized")
    critique: str = Field(min_length=1, description="a good critique")
    revision: str = Field(min_length=1, description="a good revision")


def critique_question(
    shots: Sequence[Message], prompt: Sequence[Message], answer: str, by: Principle
) -> list[Message]:
    """The conversation whose next turn is the critique. The prompt's system turns stay in front."""
    system = [turn for turn in prompt if turn["role"] == "system"]
    rest = [turn for turn in prompt if turn["role"] != "system"]
    return [
        *system,
        *shots,
        *rest,
        _said(answer),
        _asked(CRITIQUE.replace("{critique}", by.critique or "")),
    ]


def revision_question(before: Sequence[Message], critique: str, by: Principle) -> list[Message]:
    """The conversation whose next turn is the revision. before: the conversation that led to the
    critique.
    """
    return [*before, _said(critique), _asked(REVISION.replace("{revise}", by.revise or ""))]


def few_shot(examples: Sequence[Example], principles: Sequence[Principle]) -> list[Message]:
    """The examples as turns, in the form of the questions."""
    named = {principle.name: principle for principle in principles}
    turns: list[Message] = []
    for example in examples:
        by, user = named[example.principle], [_asked(example.prompt)]
        turns += revision_question(
            critique_question((), user, example.answer, by), example.critique, by
        )
        turns.append(_said(example.revision))
    return turns


def without_lead_in(text: str) -> str:
    """A revision without "Here is the revised answer:" and quotation marks around it, which nobody
    should learn.
    """
    bare = _LEAD_IN.sub("", text, count=1)
    if bare == text:
        return text
    quoted = _QUOTED.match(bare)
    return (quoted[1] or quoted[2]).strip() if quoted else bare


def _said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _asked(text: str) -> Message:
    return {"role": "user", "content": text}


class Revise(Step):
    """Answer prompts, then criticize and rewrite each answer by a principle in every round.

    The rows are prompts with the last revision, which `sft` learns. Their column `revise` has the
    first answer, and principle, critique and revision of each round. A row is left out, with a
    reason, if there is no room for an answer, or if an answer, a critique or a revision is empty,
    was refused by the server, or if a revision was cut off. All of them are in `dropped.jsonl`.
    """

    class Options(alignkit.SamplingOptions):
        policy: PolicyRef = Field("base", description="policy that answers")
        prompts: DataRef = Field(
            description="prompts; rows that repeat words and columns count once"
        )
        constitution: ConstitutionRef = Field(
            description=(
                "file with principles, `harmless` or `helpful_honest`, or a list of principles"
            )
        )
        rounds: int = Field(
            2,
            ge=1,
            le=16,
            description="number of critiques and revisions of each answer; the paper has 4",
        )
        critic: PolicyRef | Server | None = Field(
            None,
            description=(
                "who criticizes and revises: `base`, a stage, or a model behind an "
                "OpenAI-compatible server, `{base_url: ..., model: ...}`; default: the policy "
                "itself"
            ),
        )
        critique_tokens: int = Field(
            200, ge=1, description="maximum length of a critique, in tokens"
        )
        examples: list[Example] = Field(
            default_factory=list,
            description="conversations that show the critic how: `principle`, `prompt` ...",
        )
        limit: int | None = Field(None, ge=1, description="use only the first N prompts")

        def policies_to_sample(self) -> list[str]:
            return list(
                dict.fromkeys(
                    [self.policy, *([self.critic] if isinstance(self.critic, str) else [])]
                )
            )

    options: Options

    @property
    def principles(self) -> list[Principle]:
        """Those that can criticize and revise."""
        return [
            principle for principle in self.options.constitution if principle.critique is not None
        ]

    def check(self, folder: Path) -> None:
        names = [principle.name for principle in self.principles]
        if not names:
            raise RunFailed("no principle of the constitution has 'critique' and 'revise'")
        if unknown := [
            each.principle for each in self.options.examples if each.principle not in names
        ]:
            known = ", ".join(names)
            raise RunFailed(
                f"an example names '{unknown[0]}', but the principles with 'critique' are: {known}"
            )
        if isinstance(self.options.critic, Server):
            key_of("revise", self.options.critic)

    def check_data(self, data: StepData) -> None:
        if (rows := data.load(self.options.prompts)) is not None:
            prompts_to_compare(rows, self.options.limit)

    def run(self, context: StepContext) -> Artifact:
        options = self.options
        # First, so that a missing key shows before sampling.
        # Of answers
        sampling = {
            key: value for key, value in options.sampled().items() if key != "min_new_tokens"
        }
        critic = writer_of(context, "revise", options.critic or options.policy, sampling)
        prompts, notes = prompts_to_compare(context.load(options.prompts), options.limit)
        principles = self.principles
        chains = [
            Chain(g, drawn(principles, options.rounds, context.seed, context.stage, g.id))
            for g in prompts
        ]
        self._answer(context, chains)
        for number in range(options.rounds):
            self._revise(context, critic, [chain for chain in chains if not chain.dropped], number)
        kept = [chain for chain in chains if not chain.dropped]
        gone = [json.dumps(_told(chain), ensure_ascii=False) for chain in chains if chain.dropped]
        context.write_text("dropped.jsonl", "".join(line + "\n" for line in gone))
        facts = facts_of(chains, critic.name)
        facts["notes"] = [f"sampled with {options.described()}", *notes]
        if not kept:
            reasons = "".join(f"\n  {count}: {why}" for why, count in facts["dropped"].items())
            raise RunFailed(
                f"stage '{context.stage}': no answer was revised{reasons}\n"
                f"help: {context.out}/dropped.jsonl has them; `stop` or smaller `max_new_tokens` "
                "and `critique_tokens` leave more room, or name another `critic`"
            )
        rows = [_row(chain, critic.name) for chain in kept]
        return Artifact(groups=rows, summary=facts, report=report(facts, kept))

    def _answer(self, context: StepContext, chains: Sequence[Chain]) -> None:
        """Let the policy answer every prompt."""
        options = self.options
        sampling = options.sampled()

        def answered(rows: Sequence[Any]) -> list[str | None]:
            seed = seeds.number(context.seed, context.stage, "answer", rows[0][0])
            groups = context.models[options.policy].sample(
                prompts_from_rows(rows), seed=seed, samples_per_prompt=1, **sampling
            )
            return [
                answer_of(group.responses[0]).strip() if group.responses else None
                for group in groups
            ]

        found = context.map(
            "answers", [prompt_to_row(i, c.group) for i, c in enumerate(chains)], answered
        )
        for chain, text in zip(chains, found, strict=True):
            chain.answer = text or ""
            if not text:
                chain.dropped = (
                    "the prompt leaves no room for an answer" if text is None else "empty answer"
                )

    def _revise(
        self, context: StepContext, critic: Writer, chains: Sequence[Chain], number: int
    ) -> None:
        """One round: a critique and a revision of every chain. number: of the round, from 0."""
        options = self.options
        shots = few_shot(options.examples, self.principles)
        named = {principle.name: principle for principle in self.principles}
        length = options.sampled()["max_new_tokens"]

        def revised(rows: Sequence[Any]) -> list[list[Any]]:
            seed = seeds.number(context.seed, context.stage, "critique", number, rows[0][0])
            by = [named[name] for *_, name, _ in rows]
            questions = [
                Group(tuple(critique_question(shots, prompt, text, principle)), tools=tuple(tools))
                for (_, prompt, text, _, tools), principle in zip(rows, by, strict=True)
            ]
            critiques = critic.write(questions, options.critique_tokens, seed)
            usable = [place for place, critique in enumerate(critiques) if critique.text]
            asked = [
                replace(
                    questions[p],
                    prompt=tuple(revision_question(questions[p].prompt, critiques[p].text, by[p])),
                )
                for p in usable
            ]
            seed = seeds.number(context.seed, context.stage, "revision", number, rows[0][0])
            revisions = dict(
                zip(usable, critic.write(asked, length, seed) if asked else [], strict=True)
            )
            return [
                [vars(critique), vars(revisions.get(p, Written()))]
                for p, critique in enumerate(critiques)
            ]

        rows = [
            [
                c.group.id,
                list(c.group.prompt),
                c.newest,
                c.principles[number].name,
                list(c.group.tools),
            ]
            for c in chains
        ]
        for chain, (critique, revision) in zip(
            chains, context.map(f"round-{number + 1}", rows, revised), strict=True
        ):
            _add(chain, chain.principles[number], Written(**critique), Written(**revision))


def _add(chain: Chain, by: Principle, critique: Written, revision: Written) -> None:
    """Add a round to a chain, or the reason why it ends here. A critique may be cut off: what it
    says still counts.
    """
    text = without_lead_in(revision.text)
    chain.rounds.append({"principle": by.name, "critique": critique.text, "revision": text})
    if not critique.text:
        chain.dropped = f"critique: {critique.reason}" if critique.reason else "empty critique"
    elif not text:
        chain.dropped = f"revision: {revision.reason}" if revision.reason else "empty revision"
    elif revision.truncated:
        chain.dropped = "revision longer than max_new_tokens"


def _told(chain: Chain) -> dict[str, Any]:
    """A chain as JSON, for people who read it."""
    return {
        "prompt": list(chain.group.prompt),
        "dropped": chain.dropped,
        "answer": chain.answer,
        "rounds": chain.rounds,
    }


def _row(chain: Chain, critic: str) -> Group:
    """The prompt with the last revision."""
    meta = {**chain.group.meta, "revise": {"answer": chain.answer, "rounds": chain.rounds}}
    return replace(
        chain.group, responses=(Response(chain.newest, source=critic),), meta=meta, pairs=None
    )


# Statistics and examples to read


SHOWN = 2  # chains in the report


@dataclass
class Chain:
    """A prompt with its answer and what became of it.

    principles: one for each round. rounds: a dictionary with principle, critique and revision each.
    dropped: why the chain is of no use; empty if it is.
    """

    group: Group
    principles: Sequence[Principle]
    answer: str = ""
    rounds: list[dict[str, str]] = field(default_factory=list)
    dropped: str = ""

    @property
    def newest(self) -> str:
        """The last revision, or the answer."""
        return self.rounds[-1]["revision"] if self.rounds else self.answer


def facts_of(chains: Sequence[Chain], critic: str) -> dict[str, Any]:
    """The statistics as JSON."""
    kept = [chain for chain in chains if not chain.dropped]
    rounds = [entry for chain in kept for entry in chain.rounds]
    before = [chain.answer for chain in kept]
    after = [chain.newest for chain in kept]
    return {
        "critic": critic,
        "prompts": len(chains),
        "revised": len(kept),
        "dropped": dict(
            Counter(_kind(chain.dropped) for chain in chains if chain.dropped).most_common()
        ),
        "unchanged": sum(a == b for a, b in zip(before, after, strict=True)),
        "principles": dict(Counter(entry["principle"] for entry in rounds).most_common()),
        "characters": {
            "answer": statistics.mean([len(text) for text in before]) if before else None,
            "revision": statistics.mean([len(text) for text in after]) if after else None,
        },
    }


def _kind(reason: str) -> str:
    """A reason without what differs from row to row, such as the words of a server's error."""
    return ": ".join(reason.split(": ")[:2])


def report(facts: Mapping[str, Any], kept: Sequence[Chain]) -> Report:
    """The statistics, and the first chains side by side."""
    lines = [f"{facts['revised']} of {facts['prompts']} answers revised by {facts['critic']}"]
    lines += [f"  left out, {why}: {count}" for why, count in facts["dropped"].items()]
    if facts["unchanged"]:
        lines.append(
            f"the last revision equals the answer: {facts['unchanged']} of {facts['revised']}"
        )
    length = facts["characters"]
    lines.append(
        f"mean length: answers {length['answer']:.0f} characters, revisions "
        f"{length['revision']:.0f}"
    )
    rows = [[name, str(count)] for name, count in facts["principles"].items()]
    counts = Table("", ["principle", "revisions"], rows)
    return Report(["\n".join(lines), counts, *map(_shown, kept[:SHOWN]), "\n".join(facts["notes"])])


def _shown(chain: Chain) -> SideBySide:
    prompt = " ".join(chain.group.prompt[-1]["content"].split())
    first = chain.rounds[0]
    headings = ["answer", f"first critique, by '{first['principle']}'", "last revision"]
    return SideBySide(
        f"prompt: {prompt}", headings, [chain.answer, first["critique"], chain.newest]
    )
