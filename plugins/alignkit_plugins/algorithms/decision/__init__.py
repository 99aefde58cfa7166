"""Decision models: probabilities of the options of a question, as people give them."""

from __future__ import annotations

from alignkit import Register, hookimpl
from alignkit_plugins.algorithms.decision.learning import Decision, DecisionFormat
from alignkit_plugins.algorithms.decision.use import Decide, DecisionJudge, DecisionReward


@hookimpl
def register_algorithms(register: Register) -> None:
    register("decision", Decision, summary="learn people's probabilities of options: cross-entropy with soft targets")


@hookimpl
def register_formats(register: Register) -> None:
    register("decision", DecisionFormat, summary=DecisionFormat.summary)


@hookimpl
def register_judges(register: Register) -> None:
    register("decision", DecisionJudge, summary="ask a decision model which response is better")


@hookimpl
def register_rewards(register: Register) -> None:
    register("decision", DecisionReward, summary="expected value of options, by a decision model")


@hookimpl
def register_steps(register: Register) -> None:
    register("decide", Decide, summary="write a decision model's probabilities of options, and measure calibration")
