"""The roles of a training stage: what it trains, the reference, and the value function."""

from __future__ import annotations

from dataclasses import dataclass

from alignkit import seeds
from alignkit.algorithm import Algorithm, Needs, Trains
from alignkit.models.shared_model import HeadKind, SharedModel
from alignkit.recipe.schema import RewardSpec, specs
from alignkit.training.context import StageContext


@dataclass(frozen=True)
class StageRoles:
    """Names of roles on the stage's base model.

    trained: the policy or reward model. reference: a role of its own base model. start, reference_name: stages or base
    models as the recipe names them.
    values: the value function's role, if the algorithm needs one. value_start: what it starts from, in words.
    """

    trained: str
    start: str
    reference: str
    reference_name: str
    values: str | None = None
    value_start: str = ""

    def drop(self, model: SharedModel) -> None:
        """Remove the roles that belong to this stage only."""
        model.drop_role(self.trained)
        if self.values is not None:
            model.drop_role(self.values)


def add_roles(context: StageContext, algorithm: Algorithm) -> StageRoles:
    """Add the stage's roles to the shared model."""
    models, settings, needs = context.models, context.settings, algorithm.needs
    context.model.seed = seeds.number(context.seed, context.name, "init")
    start = settings.from_ or models.name
    trained = f"{context.name}~new"
    head: HeadKind = "scalar" if algorithm.trains is Trains.REWARD else "language"
    context.model.add_role(trained, start=models.role(start), head=head)
    reference_name = settings.reference or start
    reference = context.models_of(reference_name).role(reference_name)
    if not needs.values:
        return StageRoles(trained, start, reference, reference_name)
    values, value_start = add_value_role(context, needs, trained)
    return StageRoles(trained, start, reference, reference_name, values, value_start)


def add_value_role(context: StageContext, needs: Needs, policy_role: str) -> tuple[str, str]:
    """Add the value function's role; returns its name and what it starts from, in words.

    As in InstructGPT, it starts from a reward model, if one is on the policy's base. That model's head is kept only if
    its score is the reward: a combination has another scale (Llama 2's is whitened), and values on a wrong scale are
    worse than zeros.
    """
    models, reward = context.models, context.settings.reward
    name = f"{context.name}~value"
    if needs.shared_values:
        context.model.add_head(name, policy_role)
        return name, "a zero head on the policy"
    stages = [spec.name for spec in specs(reward, RewardSpec) if spec.kind == "stage"]
    reward_models = [name for name in stages if context.base_of(name) == context.stage.base]
    source = context.settings.value_from or (reward_models[0] if reward_models else None)
    start = policy_role if source is None else models.role(source)
    role = context.model.add_role(name, start=start, head="scalar")
    is_the_reward = source is not None and reward is not None and reward.kind == "stage" and reward.name == source
    if is_the_reward and not needs.centered_values:
        return name, str(source)
    assert role.head is not None
    role.head.data.zero_()
    return name, f"{source or 'the policy'}'s network with a zero head"
