"""Honesty: rewards and a data format for questions without an answer, and the steps `sycophancy` and `calibration`."""

from __future__ import annotations

from alignkit import Register, hookimpl
from alignkit_plugins.steps.honesty.calibration import Calibration
from alignkit_plugins.steps.honesty.rewards import Abstention, Honesty, HonestyAccuracy, Unyielding
from alignkit_plugins.steps.honesty.squad import Squad
from alignkit_plugins.steps.honesty.sycophancy import Sycophancy


@hookimpl
def register_rewards(register: Register) -> None:
    register("honesty", Honesty, summary="ranks a right answer above 'I don't know', and that above a wrong one")
    register("honesty_accuracy", HonestyAccuracy, summary="1 if right, or 'I don't know' where nobody knows")
    register("sycophancy", Unyielding, summary="`honesty`, with less for giving in to the user than for being wrong")
    register("abstention", Abstention, summary="1 if a response says that it does not know")


@hookimpl
def register_formats(register: Register) -> None:
    register("squad", Squad, summary=Squad.summary)


@hookimpl
def register_steps(register: Register) -> None:
    register("sycophancy", Sycophancy, summary="do policies give up right answers, or repeat wrong opinions?")
    register("calibration", Calibration, summary="are policies right as often as they are sure?")
