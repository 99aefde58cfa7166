"""The recipe of the command `feedback rate`: one step, and the models that its rewards and judges need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignkit.errors import Problem, RecipeError
from alignkit_apps.feedback.rows import store_digest
from alignkit_apps.policies.recipe import models_of

NAME = "rate-feedback"
NO_MODEL = "tiny"  # is not even loaded: rewards that are no models need none


def recipe_of(
    store: Path, rewards: Sequence[str], judges: Sequence[str], model: str | None
) -> tuple[dict[str, Any], Sequence[str]]:
    """The recipe as plain data, and notes; relative paths start at the current folder.

    model: that judges of this process use; None: that of the rewards. Raises RecipeError for a word that means no model
    or reward, and if judges may need a model and none is named.
    """
    if not rewards and not judges:
        raise RecipeError(
            [Problem("nobody is named whose opinion to ask", help="add --reward RUN/STAGE or --judge JUDGE")]
        )
    named = models_of([model] if model else [], rewards, judges)
    if not named.base and judges:
        help = "name it: --model RUN/STAGE, RUN/base or a folder; --model tiny if the judge is on a server"
        raise RecipeError([Problem("the judge may need a model, and none is named", help=help)])
    raters = {"rewards": list(named.rewards), "judges": list(named.judges)}
    step = {"step": "rate_feedback", "store": str(store.resolve()), "contents": store_digest(store), **raters}
    others = {"bases": dict(named.others)} if named.others else {}
    base = dict(named.base) or {"base": NO_MODEL}
    return {"name": NAME, "model": base, **others, "stages": {"rate": step}}, named.notes
