"""Why a stage went wrong, by rules on its curves (docs/report.md). Nothing is said of a healthy one.

Each rule looks at one cause, and returns a sentence that names it, with the numbers that show it
and what to change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise, takewhile
from statistics import correlation, fmean
from typing import Any, NamedTuple

from alignkit_plugins.monitors.reward_hacking import KINDS_LEVEL, fallen
from alignkit_plugins.report.drawing import Line
from alignkit_plugins.report.figures import NONE, lines_of
from alignkit_plugins.text.readable import short

SPENT = 0.02  # share of its peak below which a learning rate teaches nothing
IDLE = 0.2  # share of the stage for which that may be so
JUMP = 0.1  # nats per token by which an iteration moves the policy
LEAP = 0.3  # the same, by the KL to the reference, which is noisier
FAR = 0.5  # nats per token to the reference, as far as a policy goes that nothing holds
UNMOVED = 0.02  # nats per response that a policy of a whole stage has moved
BEGAN_APART = 0.1  # nats per response between policy and reference before the first update
BEGAN_UNEVEN = 0.02  # the same, of DPO's loss, which is log 2 if they are equal
WITH_LENGTH = 0.8  # correlation of reward and length over iterations
LONGER = 1.25  # lengths of the last part against the first
CUT = 0.5  # share of truncated responses, and of clipped tokens
ALIKE = 0.8  # self-BLEU above which samples hardly differ
CLEAR = 2.5  # standard errors by which a reward falls
OPPOSITE = 0.3  # share of a margin by which held-out pairs say the opposite
STRONG = 10  # KL coefficient, in deviations of the reward: no policy gains a tenth of one
EQUAL = 0.02  # share of the rewards' deviation that is within prompts
TURNED = 0.1  # share of what a held-out loss had gained that it gives back
RISEN = 0.01  # share of its lowest that it has risen by
FLAT = 0.99  # a loss against that at the start
FEW, FEW_STEPS = 4, 20  # iterations, and steps, that show no trend


class Course(NamedTuple):
    """A stage as rules see it: the rows and curves of its metrics, and the options of its algorithm,
    as far as the recipe names them.
    """

    rows: Sequence[Mapping[str, Any]]
    curves: Mapping[str, Line]
    options: Mapping[str, Any]

    def y(self, name: str) -> Sequence[float]:
        return self.curves.get(name, NONE).y

    @property
    def kl_coefficient(self) -> float | None:
        """That of the first iteration; None if nothing says it."""
        known: list[float | None] = [*self.y("kl_coefficient")]
        return [*known, self.options.get("kl_coefficient")][0]

    def ends(self, name: str) -> tuple[float, float]:
        """Means of the first and of the last third of a curve; without values 0."""
        y = self.y(name) or [0.0]
        part = max(1, len(y) // 3)
        return fmean(y[:part]), fmean(y[-part:])

    def gain(self) -> tuple[float, float]:
        """The gain in the reward from the first third to the last, and its standard error."""
        before, after = self.ends("reward")
        errors = self.y("reward_se")
        part = max(1, len(errors) // 3)
        return after - before, math.hypot(*errors[:part], *errors[-part:]) / part


def diagnosis(rows: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> list[str]:
    """What is wrong with a training stage, the cause of most other trouble first. rows: of its
    metrics.jsonl.
    """
    course = Course(rows, lines_of(rows), options)
    found = list[str]()
    for rule in RULES["response_tokens" in course.curves]:
        found += rule(course)
    return found


def _rate_ran_out(course: Course) -> Iterator[str]:
    x, rates, *_ = course.curves.get("learning_rate", NONE)
    spent = [*takewhile(lambda rate: rate < SPENT * max(rates), reversed(rates))]
    if len(spent) > IDLE * len(x) and len(x) >= FEW:
        what, unit = "Learning is", "step"
        if course.y("approx_kl"):
            what, unit = "Clip fraction and KL of the updates are", "iteration"
        yield (
            f"{what} near 0 from {unit} {x[-len(spent)]:.0f} of {x[-1]:.0f} on, because the "
            f"learning rate ran out: choose another lr_scheduler_type, or fewer {unit}s."
        )


def _rate_too_high(course: Course) -> Iterator[str]:
    moved, far = max(course.y("approx_kl"), default=0.0), 0.0
    for before, after in pairwise(course.y("kl")):
        far = max(far, (after - before) / max(1.0, *course.y("response_tokens")))
    if moved > JUMP or far > LEAP:
        yield (
            "The learning rate is too high: an iteration moved the policy by "
            f"{max(moved, far):.2g} nats per token. Lower it."
        )


def _equal_rewards(course: Course) -> Iterator[str]:
    within, every = course.y("reward_std_within"), course.y("reward_std")
    alike = course.y("self_bleu")
    if alike and alike[0] > ALIKE:
        yield (
            f"The answers to a prompt are nearly the same (self-BLEU {alike[0]:.2g} at the start), "
            "so there is little to learn from: raise rollout.temperature."
        )
    elif within and max(within) <= EQUAL * max(every, default=0.0):
        yield (
            "All answers to a prompt have the same reward, or almost, so there is little to learn "
            "from: choose a reward that tells them apart, or other prompts."
        )


def _truncated(course: Course) -> Iterator[str]:
    before, share = course.ends("truncated")
    if share > CUT:
        yield (
            f"{share:.0%} of the answers are truncated at the end ({before:.0%} at the start), so "
            "rewards are of unfinished texts: raise rollout.max_new_tokens, set "
            "rollout.missing_eos_penalty, or begin with SFT."
        )


def _length(course: Course) -> Iterator[str]:
    rewards, lengths = course.y("reward"), course.y("response_tokens")
    before, after = course.ends("response_tokens")
    if len(rewards) != len(lengths) or len(rewards) < FEW or course.gain()[0] <= 0:
        return
    if after > LONGER * before and (together := correlation(rewards, lengths)) > WITH_LENGTH:
        yield (
            f"The reward rises with the length of answers, from {before:.3g} to {after:.3g} tokens "
            f"(correlation {together:.2f}): it may pay for length alone. Look at the samples, and "
            "compare at equal length."
        )


def _no_penalty(course: Course) -> Iterator[str]:
    kl, tokens = course.ends("kl")[1], max(1.0, course.ends("response_tokens")[1])
    if course.kl_coefficient == 0 and kl > FAR * tokens:
        yield (
            f"Nothing holds the policy near its reference, and it is {kl:.3g} nats per response "
            f"from it ({kl / tokens:.2g} per token): raise kl_coefficient."
        )


def _clipped(course: Course) -> Iterator[str]:
    shares = course.y("clip_fraction")
    if shares and fmean(shares) > CUT and not any(_rate_too_high(course)):
        yield (
            f"{fmean(shares):.0%} of the tokens are clipped, and so not learned from, although the "
            "policy moves little: raise clip_range."
        )


def _value(course: Course) -> Iterator[str]:
    still = max(course.y("value_grad_norm"), default=1.0) == 0
    if still and not any(_equal_rewards(course)):
        yield "The value function learns nothing: raise value_coefficient."


def _reference(course: Course) -> Iterator[str]:
    losses, kl = course.y("sigmoid"), course.y("kl")
    if kl and kl[0] > BEGAN_APART:
        apart = f"{kl[0]:.3g} nats per response from its reference"
    elif losses and abs(losses[0] - math.log(2)) > BEGAN_UNEVEN:
        apart = f"with a loss of {losses[0]:.3g}, and not with the log 2 of its reference"
    else:
        return
    yield (
        f"It began {apart}, before it had learned anything: 'reference' is not the policy that it "
        "begins with."
    )


def _kind_fell(course: Course) -> Iterator[str]:
    for text in fallen(course.rows, KINDS_LEVEL, 2).values():
        yield f"{text[:1].upper()}{text[1:]}."


def _nothing_learned(course: Course) -> Iterator[str]:
    gain, error = course.gain()
    if len(course.y("reward_se")) < FEW or any(_equal_rewards(course)):
        return
    moved, pull = max(course.y("kl") or [math.inf]), course.kl_coefficient
    within = max(course.y("reward_std_within"), default=math.inf)
    if pull and gain < error and pull > STRONG * within:
        yield (
            f"The penalty of the KL outweighs the reward: kl_coefficient is {pull:.3g}, and rewards "
            f"of a prompt's answers differ by {within:.2g}. Lower it."
        )
    elif moved < UNMOVED:
        yield (
            f"The policy moved only {moved:.2g} nats from its reference: raise learning_rate, or "
            "train for more iterations."
        )
    elif gain < -CLEAR * error:
        yield f"The reward fell by {-gain:.2g} (standard error {error:.2g}): lower learning_rate."
    elif gain < error:
        yield (
            f"The samples are too few to say that it learned: the reward moved by {gain:+.2g}, and "
            f"the standard error of that is {error:.2g}. Raise prompts_per_iteration, "
            "rollout.samples_per_prompt or iterations."
        )


def _turned(course: Course) -> Iterator[str]:
    x, losses, *_ = course.curves.get("validation/loss", NONE)
    learned, margins = course.ends("rewards/margins")[1], course.y("validation/rewards/margins")
    if margins and margins[-1] < -OPPOSITE * learned < 0:
        yield (
            f"The held-out pairs say the opposite of what it learned: a margin of {margins[-1]:.2g} "
            f"against {learned:.2g}. Check which of them have their labels flipped."
        )
        return
    if not losses:
        return
    low = min(losses)
    if losses[-1] - low > max(TURNED * (losses[0] - low), RISEN * low):
        best = x[losses.index(low)]
        yield (
            f"The held-out loss was lowest at step {best:.0f} ({short(low)}) and is "
            f"{short(losses[-1])} at the end: it learns its training data by heart. The best epoch "
            "is the result; lower epochs or learning_rate."
        )


def _loss(course: Course) -> Iterator[str]:
    before, after = course.ends("loss")
    if len(course.y("loss")) >= FEW_STEPS and after >= FLAT * before:
        yield (
            f"The loss did not fall, from {short(before)} to {short(after)}: raise learning_rate, "
            "or lower it if the loss rose, or check what the data say to learn."
        )


# By whether a stage samples
RULES: Mapping[bool, Sequence[Callable[[Course], Iterator[str]]]] = {
    True: (
        _equal_rewards,
        _rate_too_high,
        _clipped,
        _value,
        _rate_ran_out,
        _reference,
        _truncated,
        _length,
        _no_penalty,
        _kind_fell,
        _nothing_learned,
    ),
    False: (_rate_ran_out, _reference, _turned, _loss),
}
