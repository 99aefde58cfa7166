"""The step `sample`: responses of a policy to a file of prompts, with the scores of a reward and
the best of N.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

import alignkit
from alignkit import (
    Artifact,
    DataRef,
    Field,
    Group,
    PolicyRef,
    Response,
    RewardRef,
    RunFailed,
    Step,
    StepContext,
    StepData,
    seeds,
)
from alignkit.data.group import group_from_json, group_to_json
from alignkit.evaluation import statistics
from alignkit.report import Report, Table
from alignkit.reward import REWARD_KEY
from alignkit_plugins.ai_feedback.remote import key_of
from alignkit_plugins.ai_feedback.writer import (
    Server,
    ServerWriter,
    ask,
    bill,
    billed,
    check_sampling,
    origin_of,
)
from alignkit_plugins.compare.comparison import prompts_to_compare
from alignkit_plugins.formats.rows import prompt_to_row, prompts_from_rows


class Sample(Step):
    """Sample responses to every prompt, for later stages to learn from or for people to read.

    With `keep: best`, the policy of the data is best-of-N, whose KL from the policy is at most log
    N - (N - 1) / N (Stiennon et al. 2020, appendix G.3; Beirami et al. 2024).
    """

    class Options(alignkit.SamplingOptions):
        policy: PolicyRef | Server = Field(
            "base",
            description=(
                "who responds: `base`, a stage, or a model behind an OpenAI-compatible server, "
                "`{base_url: ..., model: ...}`"
            ),
        )
        prompts: DataRef = Field(
            description="prompts to respond to; rows that repeat words and columns count once"
        )
        samples_per_prompt: int = Field(1, ge=1, le=1024, description="responses to each prompt")
        reward: RewardRef | None = Field(
            None, description="reward that scores the responses; default: no scores"
        )
        keep: Literal["all", "best"] = Field(
            "all",
            description=(
                "all: every response; best: only the one with the highest reward (best of N)"
            ),
        )
        limit: int | None = Field(None, ge=1, description="use only the first N prompts")

        @model_validator(mode="after")
        def _best_by_a_reward(self) -> Any:
            if self.keep == "best" and self.reward is None:
                raise ValueError("'keep: best' needs a 'reward' to choose by")
            return self

        @model_validator(mode="after")
        def _as_a_server_takes_it(self) -> Any:
            check_sampling(self.policy, self)
            return self

        def policies_to_sample(self) -> list[str]:
            return [self.policy] if isinstance(self.policy, str) else []

    options: Options
    maps = ("responses",)

    def check(self, folder: Path) -> None:
        if isinstance(self.options.policy, Server):
            key_of("sample", self.options.policy)

    def check_data(self, data: StepData) -> None:
        if (rows := data.load(self.options.prompts)) is not None:
            prompts, _ = prompts_to_compare(rows, self.options.limit)
            if self.options.reward is not None:
                data.check_prompts(self.options.reward, prompts)

    def run(self, context: StepContext) -> Artifact:
        options = self.options
        # A missing key shows here
        scorer = context.scorer(options.reward) if options.reward is not None else None
        prompts, notes = prompts_to_compare(context.load(options.prompts), options.limit)
        if isinstance(options.policy, Server):
            name = options.policy.model
            sampled, spent = self._written(context, prompts, options.policy)
        else:
            name, sampled, spent = (
                options.policy,
                self._sampled(context, prompts, options.policy),
                {},
            )
        groups = [group for group in sampled if group.responses]
        if not groups:
            why = ", ".join(spent["refused"]) if spent else "none leaves room"
            raise RunFailed(
                f"stage '{context.stage}': none of {len(prompts)} prompts has a response: "
                f"{why or 'empty'}"
            )
        if scorer is not None:
            groups = scorer.score(groups)
        facts: dict[str, Any] = {"prompts": len(groups), "no_room": len(sampled) - len(groups)}
        facts |= {"notes": [f"sampled with {options.described()}", *notes]}
        if spent:
            facts |= {"no_room": 0, "unanswered": len(sampled) - len(groups), "bill": spent}
        if scorer is not None:
            facts |= scores(groups)
        kept = [best(group) for group in groups] if options.keep == "best" else groups
        kept = [group for group in kept if group.responses]
        facts["responses"] = sum(len(group.responses) for group in kept)
        return Artifact(groups=kept, summary=facts, report=report(name, facts))

    def _sampled(self, context: StepContext, prompts: Sequence[Group], policy: str) -> list[Group]:
        """The prompts with responses, sampled in chunks that a resumed run finds again."""
        rows = [prompt_to_row(index, group) for index, group in enumerate(prompts)]
        found = context.map("responses", rows, self.mapper("responses", context))
        return [
            replace(
                group,
                responses=tuple(replace(response, source=policy) for response in answer.responses),
                pairs=None,
            )
            for group, answer in zip(prompts, map(group_from_json, found), strict=True)
        ]

    def mapper(self, name: str, context: StepContext) -> Callable[[Sequence[Any]], list[str]]:
        options = self.options
        assert isinstance(options.policy, str)  # a server does its own work
        role = options.policy

        def respond(rows: Sequence[Any]) -> list[str]:
            sampled = context.models[role].sample(
                prompts_from_rows(rows),
                seed=seeds.number(context.seed, context.stage, "sample", rows[0][0]),
                samples_per_prompt=options.samples_per_prompt,
                **options.sampled(),
            )
            return [group_to_json(group) for group in sampled]

        return respond

    def _written(
        self, context: StepContext, prompts: Sequence[Group], server: Server
    ) -> tuple[list[Group], dict[str, Any]]:
        """The prompts with what a server's model wrote, and who it was in the column `writer`; and
        the bill.
        """
        sampling, count = self.options.sampled(), self.options.samples_per_prompt
        writer = ServerWriter(context, "sample", server, sampling)
        said = ask(context, "written", writer, prompts, sampling["max_new_tokens"], count)
        groups, repeated = [], 0
        for place, group in enumerate(prompts):
            own = said[place * count : (place + 1) * count]
            texts = [
                Response(each.text, truncated=each.truncated, source=server.model)
                for each in own
                if each.text
            ]
            repeated += len(texts) - len({response.text for response in texts})
            meta = {
                **group.meta,
                "writer": origin_of(writer.origin, own, max_new_tokens=sampling["max_new_tokens"]),
            }
            groups.append(replace(group, responses=tuple(texts), pairs=None, meta=meta))
        return groups, {
            **bill(said),
            "cut_off": sum(each.truncated for each in said),
            "repeated": repeated,
        }


def best(group: Group) -> Group:
    """The group with its best response only, the first one of equals; none if no response has a
    score.
    """
    scored = [
        (response, score)
        for response in group.responses
        if (score := response.scores[REWARD_KEY]) is not None
    ]
    highest = max((score for _, score in scored), default=0.0)
    return replace(
        group, responses=tuple(r for r, score in scored if statistics.equal(score, highest))[:1]
    )


def scores(groups: Sequence[Group]) -> dict[str, Any]:
    """The mean reward, and the expected reward of the best of n with its KL bound, for n = 1, 2, 4
    ... N.
    """
    import torch

    from alignkit import functional as F

    columns = [[response.scores[REWARD_KEY] for response in group.responses] for group in groups]
    known = [[score for score in column if score is not None] for column in columns]
    means = [statistics.mean(column) for column in known if column]
    facts: dict[str, Any] = {"unscored": sum(column.count(None) for column in columns)}
    if means:
        facts["mean_reward"] = statistics.estimate(means)
    count = max(map(len, columns))
    whole = [column for column in known if len(column) == count]
    if whole:
        table = torch.tensor(whole, dtype=torch.float64)
        sizes = sorted(
            {count, *(2**power for power in range(count.bit_length()) if 2**power <= count)}
        )
        facts["best_of_n"] = [
            {
                "n": n,
                "reward": float(F.expected_best_of_n(table, n).mean()),
                "kl_at_most": F.best_of_n_kl(n),
            }
            for n in sizes
        ]
    return facts


def report(policy: str, facts: Mapping[str, Any]) -> Report:
    left_out = (
        f"; {facts['no_room']} prompts left out: no room for a response" if facts["no_room"] else ""
    )
    parts: list[Any] = [
        f"{policy}: {facts['responses']} responses to {facts['prompts']} prompts{left_out}"
    ]
    if "bill" in facts:
        parts += _server_lines(facts, facts["bill"])
    if "mean_reward" in facts:
        unscored = f"; {facts['unscored']} responses without a score" if facts["unscored"] else ""
        parts.append(f"mean reward {facts['mean_reward']['mean']:.4g}{unscored}")
    if curve := facts.get("best_of_n"):
        rows = [
            [str(each["n"]), f"{each['reward']:.4g}", f"{each['kl_at_most']:.3g}"] for each in curve
        ]
        parts.append(Table("", ["best of", "expected reward", "KL at most (nats)"], rows))
    return Report([*parts, "\n".join(facts["notes"])])


def _server_lines(facts: Mapping[str, Any], spent: Mapping[str, Any]) -> list[str]:
    """What a server's responses cost, and what is wrong with some of them."""
    lines = [
        billed(spent),
        *(f"no response: {why}: {count}" for why, count in spent["refused"].items()),
    ]
    counts = {
        "prompts without a response, left out": facts["unanswered"],
        "cut off at max_new_tokens": spent["cut_off"],
        "responses that repeat another one of the same prompt": spent["repeated"],
    }
    return ["\n".join([*lines, *(f"{what}: {count}" for what, count in counts.items() if count)])]
