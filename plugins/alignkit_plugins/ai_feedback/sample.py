"""The step `sample`: responses of a policy to a file of prompts, with the scores of a reward and
the best of N.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

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
    StepContext,
    StepData,
    seeds,
)
from alignkit.contract.report import Block, Report, Table
from alignkit.contract.reward import REWARD_KEY
from alignkit.data.group import group_from_json, group_to_json, with_responses
from alignkit.evaluation import statistics
from alignkit_plugins.ai_feedback.make_data import WHO, AskingStep, policies_of
from alignkit_plugins.ai_feedback.writer import (
    Server,
    ServerWriter,
    ask,
    bill,
    billed,
    check_sampling,
)
from alignkit_plugins.compare.comparison import checked_prompts, prompts_to_compare
from alignkit_plugins.compare.scores import Measure, Scale, compare, scores_of
from alignkit_plugins.text.rows import prompt_to_row, prompts_from_rows


class SamplingStep(AskingStep):
    """A step with a policy that responds to prompts, in chunks that a resumed run finds again."""

    maps: ClassVar[tuple[str, ...]] = ("responses",)

    def sampled(self, context: StepContext, prompts: Sequence[Group]) -> list[Group]:
        """The prompts with responses."""
        rows = [prompt_to_row(index, group) for index, group in enumerate(prompts)]
        lines = context.map("responses", rows, self.mapper("responses", context))
        groups = []
        for group, line in zip(prompts, lines, strict=True):
            responses = list[Response]()
            for response in group_from_json(line).responses:
                responses.append(replace(response, source=str(self.options.policy)))
            groups.append(with_responses(group, responses, pairs=None))
        return groups

    def mapper(self, name: str, context: StepContext) -> Callable[[Sequence[Any]], list[Any]]:
        options = self.options
        model = context.models[str(options.policy)]  # a server does its own work

        def respond(rows: Sequence[Any]) -> list[str]:
            sampled = model.sample(
                prompts_from_rows(rows),
                seed=self.seed_of(context, rows),
                samples_per_prompt=options.samples_per_prompt,
                **options.sampled(),
            )
            return list(map(group_to_json, sampled))

        return respond

    def seed_of(self, context: StepContext, rows: Sequence[Any]) -> int:
        """The seed of a chunk: the n-th prompts of all chunks must not share their random numbers."""
        return seeds.number(context.seed, context.stage, "sample", rows[0][0])


class Sample(SamplingStep):
    """Sample responses to every prompt, for later stages to learn from or for people to read.

    With `keep: best`, the policy of the data is best-of-N, whose KL from the policy is at most log
    N - (N - 1) / N (Stiennon et al. 2020, appendix G.3; Beirami et al. 2024).
    """

    class Options(alignkit.SamplingOptions):
        policy: PolicyRef | Server = Field("base", f"who responds: {WHO}")
        prompts: DataRef = Field(
            description="prompts to respond to; rows with the same words and columns count once"
        )
        samples_per_prompt: int = Field(1, "responses to each prompt", ge=1, le=1024)
        reward: RewardRef | None = Field(
            None, "reward that scores the responses; default: no scores"
        )
        keep: Literal["all", "best"] = Field(
            "all", "all: every response; best: only the one with the highest reward (best of N)"
        )

        def check_values(self) -> None:
            if self.keep == "best" and self.reward is None:
                raise ValueError("'keep: best' needs a 'reward' to choose by")
            check_sampling(self.policy, self)

        def policies_to_sample(self) -> list[str]:
            return policies_of(self.policy)

    options: Options

    def check_data(self, data: StepData) -> None:
        checked_prompts(data, self.options.prompts, self.options.reward)

    def run(self, context: StepContext) -> Artifact:
        options = self.options
        # A missing key shows here
        scorer = options.reward and context.scorer(options.reward)
        prompts, notes = prompts_to_compare(context.load(options.prompts))
        facts: dict[str, Any] = {"notes": [f"sampled with {options.described()}", *notes]}
        if isinstance(options.policy, Server):
            name, sampled = options.policy.model, self._written(context, prompts, facts)
        else:
            name, sampled = options.policy, self.sampled(context, prompts)
        groups = [group for group in sampled if group.responses]
        facts |= {"prompts": len(groups), "left_out": len(prompts) - len(groups)}
        if not groups:
            why = ", ".join(facts.get("bill", {}).get("refused", ["no room"]))
            text = f"none of {len(prompts)} prompts has a response: {why}"
            raise RunFailed(f"stage '{context.stage}': {text}")
        if scorer is not None:
            groups = scorer.score(groups)
            facts |= scores(groups, scorer.bounds)
        if options.keep == "best":
            groups = [group for group in map(best, groups) if group.responses]
        facts["responses"] = sum(len(group.responses) for group in groups)
        return Artifact(groups=groups, summary=facts, report=report(name, facts))

    def _written(
        self, context: StepContext, prompts: Sequence[Group], facts: dict[str, Any]
    ) -> list[Group]:
        """The prompts with what a server's model wrote, and who it was in the column `writer`.

        facts: get the bill.
        """
        server, sampling = self.options.policy, self.options.sampled()
        assert isinstance(server, Server)
        count, most = self.options.samples_per_prompt, sampling["max_new_tokens"]
        writer = ServerWriter(context, "sample", server, sampling)
        replies = ask(context, "written", writer, prompts, most, count)
        groups, cut_off = [], 0
        for place, group in enumerate(prompts):
            own = replies[place * count : (place + 1) * count]
            responses = list[Response]()
            for each in own:
                cut_off += each.truncated
                if each.text:
                    one = Response(each.text, truncated=each.truncated, source=server.model)
                    responses.append(one)
            meta = {**group.meta, "writer": {**writer.origin, "max_new_tokens": most}}
            groups.append(with_responses(group, responses, pairs=None, meta=meta))
        facts["bill"] = {**bill(replies), "cut_off": cut_off}
        return groups


def best(group: Group) -> Group:
    """The group with its best response only, the first one of equals; none if no response has a
    score.
    """
    highest, kept = float("-inf"), group.responses[:0]
    for response in group.responses:
        score = response.scores[REWARD_KEY]
        if score is not None and score > highest and not statistics.equal(score, highest):
            highest, kept = score, (response,)
    return with_responses(group, kept)


def scores(groups: Sequence[Group], bounds: tuple[float, float]) -> dict[str, Any]:
    """The mean reward, and the expected reward of the best of n with its KL bound, for n = 1, 2, 4
    ... N. bounds: the lowest and the highest score.
    """
    import torch

    from alignkit import functional as F

    policy = str(groups[0].responses[0].source)
    measure = Measure("reward", Scale(None, bounds=bounds))
    (row,) = compare(scores_of(groups, [policy], {REWARD_KEY: measure}))
    facts: dict[str, Any] = {"unscored": row.missing, "mean_reward": row.estimate, "best_of_n": []}
    whole, count = list[list[Any]](), max(len(group.responses) for group in groups)
    for group in groups:
        every = [response.scores[REWARD_KEY] for response in group.responses]
        if None not in every and len(every) == count:
            whole.append(every)
    if whole:
        rewards = torch.tensor(whole, dtype=torch.float64)
        for n in sorted({count, *(2**power for power in range(count.bit_length()))}):
            expected = float(F.expected_best_of_n(rewards, n).mean())
            point = {"n": n, "reward": expected, "kl_at_most": F.best_of_n_kl(n)}
            facts["best_of_n"].append(point)
    return facts


def report(policy: str, facts: Mapping[str, Any]) -> Report:
    """What there is of responses, what they cost, and how good they are."""
    lines = [
        f"{policy}: {facts['responses']} responses to {facts['prompts']} prompts, "
        f"{facts['left_out']} left out"
    ]
    if cost := facts.get("bill"):
        lines += [*billed(cost), f"cut off at max_new_tokens: {cost['cut_off']}"]
    blocks: list[Block] = []
    if "mean_reward" in facts:
        reward = statistics.interval_text(facts["mean_reward"])
        lines.append(f"mean reward {reward}, {facts['unscored']} responses without a score")
        rows = []
        for one in facts["best_of_n"]:
            rows.append([f"{one['n']}", f"{one['reward']:.4g}", f"{one['kl_at_most']:.3g}"])
        blocks.append(Table("", ["best of", "expected reward", "KL at most (nats)"], rows))
    return Report(["\n".join([*lines, *facts["notes"]]), *blocks])
