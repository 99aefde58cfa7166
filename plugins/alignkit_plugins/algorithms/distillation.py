"""On-policy distillation: the policy learns, token by token, what a teacher says of the policy's
own samples.

The reverse KL to the teacher, without a reward: the advantage of a token is log p_teacher - log
p_policy (Lu and Thinking Machines 2025, "On-Policy Distillation"; GKD with lambda 1 and the reverse
KL, Agarwal et al. 2023, arXiv:2306.13649). Only the token itself counts, not what follows it
(discount 0), and the policy ends at the teacher's distribution. The teacher is the stage's
`reference`. With `context` it reads other messages first, so that a policy can learn from itself
(context distillation, Askell et al. 2021, arXiv:2112.00861). Differs from Thinking Machines: the
ratio is clipped as in PPO, so that samples can be learned from more than once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import alignkit
from alignkit import (
    Algorithm,
    Batch,
    Field,
    Group,
    Loss,
    Message,
    Needs,
    Outputs,
    Skip,
    Source,
    StageDefaults,
    per_token,
)
from alignkit import functional as F

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING = 1e-5  # nats; smaller differences between teacher and policy are rounding errors


class ContextTurn(alignkit.Options):
    """A message that only the teacher reads."""

    role: Literal["system", "user", "assistant"] = Field(description="who says the message")
    content: str = Field(description="text of the message")


class Distillation(Algorithm):
    """Make tokens likelier that the teacher finds likelier than the policy, and the others less
    likely.
    """

    source = Source.ROLLOUTS
    needs = Needs(
        reward=False,
        old_logprobs=True,
        reference_logprobs=True,
        advantages="token",
        teacher="context",
    )
    defaults = StageDefaults(
        learning_rate=3e-4,
        epochs=1,
        batch_size=16,
        lr_scheduler_type="linear",
        samples_per_prompt=4,
    )

    class Options(Algorithm.Options):
        context: list[ContextTurn] = Field(
            [], "messages that the teacher reads before each prompt, such as examples"
        )
        clip_range: float = Field(0.2, "clip range of the policy ratio", gt=0)

    def reference_prompt(self, group: Group) -> Sequence[Message]:
        """The context and the prompt; a system message of the prompt stays first."""
        context = [Message(role=turn.role, content=turn.content) for turn in self.options.context]
        first = 1 if context and group.prompt[0]["role"] == "system" else 0
        return (*group.prompt[:first], *context, *group.prompt[first:])

    def signal(self, rollouts: Batch) -> Mapping[str, Tensor] | Skip:
        """Advantages, [R, T]."""
        advantages = -F.kl_k1(rollouts.old_logprobs, rollouts.reference_logprobs, rollouts.mask)
        self.metrics = {"teacher_kl": -float(F.masked_mean(advantages, rollouts.mask))}
        if not advantages.abs().max() > ROUNDING:
            return Skip(
                "teacher and policy agree on every token; name another `reference`, or set "
                "`context`"
            )
        return {"advantages": advantages}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        advantages = batch["advantages"]
        policy = F.ppo_policy_loss(
            out.logprobs, batch.old_logprobs, advantages, self.options.clip_range
        )
        return Loss(policy_loss=per_token(policy))
