"""Changes to the run loop that neither crash a run nor show in its metrics, each with the test that
must fail.

`python tests/mutants.py --only run_loop` plants them one at a time, `--only same_prompts` only that
one.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUP = "run_loop"  # the name of all of them together


@dataclass(frozen=True)
class Planted:
    """A change of one place: `old`, which occurs once in `file`, becomes `new`.

    test: `FILE::FUNCTION`, which must fail; empty if the change is equivalent, whose reason is
    `equivalent`.
    """

    file: str
    old: str
    new: str
    test: str
    equivalent: str = ""


ONLINE, ITERATION = "alignkit/training/online.py", "test_iteration_loop.py"
PACKING = "alignkit/models/packing.py"
ROLLOUTS, REPLAYED = "alignkit/training/rollouts.py", "test_replayed_rollouts.py"
DRAWS = "alignkit/training/sampler.py"
ROLES, MEASURED = "alignkit/training/trainer.py", "test_reference_and_values.py"
SCORING, AUXILIARY = "alignkit/training/rewards.py", "alignkit/training/sampler.py"
LEARNER, SERVICE = "alignkit/training/learner.py", "alignkit/models/models.py"

_EARLIER = f"{REPLAYED}::test_earlier_iterations_are_offered_as_they_were_selected_from"
_KEPT = f"{ITERATION}::test_a_kept_version_is_the_policy_after_its_iteration"
_MIXED = "test_auxiliary.py::test_every_step_of_a_stage_mixes_in_the_next_groups"
_PHASES = f"{ITERATION}::test_a_phase_has_its_own_epochs_and_learning_rate"
_RECORDED = f"{MEASURED}::test_groups_that_select_makes_are_measured_by_the_reference"
_BY_REFERENCE = "return self.logprobs(self.reference_role, read, self.reference_models.model)"
_TEACHER = "test_reference_check.py::test_a_whole_teacher_reads_the_policys_tokens"
_OFFLINE = "test_reference_check.py::test_an_offline_reference_is_read_by_the_whole_model"
_REWARDS = "test_scoring.py::test_selection_sees_raw_rewards_and_learning_those_after_whitening"
_ENDS = "test_sampling.py::test_every_end_token_ends_a_response"
_ON_SEVERAL = "test_reducer.py::test_every_algorithm_learns_the_same_on_several_processes"
_OVER_BATCH = "test_reducer.py::test_numbers_over_the_batch_are_over_all_processes"
_COMBINED = (
    "combined = self.combine(some, {name: child.raw[rows] for name, child in children.items()})"
)
_WHOLE = "combined = self.root.reward(table.sampled, table.parts, answered)"
_REJECTED = "return [self._kept(groups)[0] for groups in"

PLANTED = {
    # Sampling
    "same_prompts": Planted(
        ROLLOUTS,
        "start = (number - 1) * self.per_iteration + self.extra + first",
        "start = first",
        f"{ITERATION}::test_iterations_walk_through_the_prompts",
    ),
    "same_epochs": Planted(
        DRAWS,
        "self.stream(number).permutation(self.size)",
        "self.stream(0).permutation(self.size)",
        f"{ITERATION}::test_iterations_walk_through_the_prompts",
    ),
    "same_samples": Planted(
        ROLLOUTS,
        'path = self.context.name, "rollout", number',
        'path = self.context.name, "rollout", 0',
        f"{ITERATION}::test_every_iteration_draws_other_samples",
    ),
    "reference_samples": Planted(
        ROLLOUTS,
        "            trainer.role,",
        "            trainer.reference_role,",
        f"{ITERATION}::test_the_policy_samples_and_not_its_reference",
    ),
    "samples_by_order": Planted(
        SERVICE,
        "            numbers=fitting,\n",
        "            numbers=range(len(fitting)),\n",
        "test_service.py::test_a_prompt_without_room_changes_no_other_prompts_samples",
    ),
    "one_end": Planted(
        "alignkit/tokens/encoder.py",
        "frozenset({self.end_of_turn[-1], *markers}) | self._known_ends",
        "frozenset({self.tokenizer.eos_token_id})",
        _ENDS,
    ),
    "no_further_ends": Planted(
        "alignkit/tokens/encoder.py",
        "frozenset({self.end_of_turn[-1], *markers}) | self._known_ends",
        "frozenset({self.end_of_turn[-1], *markers, self.tokenizer.eos_token_id} - {None})",
        _ENDS,
    ),
    # Scoring
    "failed_score_is_0": Planted(
        SCORING,
        "[math.nan if value is None else value",
        "[0.0 if value is None else value",
        _REWARDS,
    ),
    "unread_score_is_0": Planted(
        SERVICE,
        "None if score is None else float(score[0])",
        "0.0 if score is None else float(score[0])",
        "test_service.py::test_truncated_and_unscored_responses_are_reported",
    ),
    "certain_tokens_do_not_count": Planted(
        "plugins/alignkit_plugins/evaluate/examples.py",
        "(logprobs != 0) | (likeliest != 0)",
        "logprobs != 0",
        "test_evaluate_examples.py::test_tokens_that_do_not_count_are_no_misses",
    ),
    "soft_pairs_are_not_turned": Planted(
        "plugins/alignkit_plugins/evaluate/examples.py",
        "(pair.better, pair.worse) if pair.p > 0.5 else (pair.worse, pair.better)",
        "(pair.better, pair.worse)",
        "test_evaluate_examples.py::test_labels_may_say_that_the_second_is_better_and_rankings_have_several_pairs",
    ),
    "held_out_is_not_linearized": Planted(
        "alignkit/evaluation/held_out.py",
        "total - mean * weight",
        "total - mean",
        "test_held_out.py::test_values_have_the_ratio_of_sums_as_their_mean_and_its_spread",
    ),
    "likeliest_is_any_of_equal_tokens": Planted(
        "alignkit/kernels/lm_head.py",
        "likeliest = [(logits.argmax(dim=-1) == tokens).to(logits)]",
        "likeliest = [(logits.amax(dim=-1) == logits.gather(-1, tokens[:, None])[:, "
        "0]).to(logits)]",
        "test_lm_head.py::test_the_likeliest_tokens_are_those_of_the_largest_logits",
    ),
    "nested_whitened": Planted(
        SCORING,
        _COMBINED,
        _COMBINED.replace("child.raw", "child.reward"),
        _REWARDS,
    ),
    "nested_raw_whitened": Planted(
        SCORING,
        "raw = missing.masked_scatter(rows, combined.raw.double())",
        "raw = missing.masked_scatter(rows, (combined.raw if total is None else total).double())",
        _REWARDS,
    ),
    "nested_not_whitened": Planted(
        SCORING,
        "        if total is not None:\n",
        "        if False:\n",
        _REWARDS,
    ),
    "selection_whitened": Planted(
        SCORING,
        "{**table.parts, REWARD_KEY: raw}",
        "{**table.parts, REWARD_KEY: reward}",
        _REWARDS,
    ),
    "safety_rows": Planted(
        "plugins/alignkit_plugins/algorithms/llama2.py",
        "present.new_tensor(safety_prompts(groups))[present]",
        "present.new_tensor(safety_prompts(groups))[: int(present.sum())]",
        "test_llama2.py::test_a_missing_score_moves_no_safety_prompt_to_another_row",
    ),
    # Selecting
    "same_selection": Planted(
        ONLINE,
        'self.context.rng("select", number)',
        'self.context.rng("select")',
        f"{ITERATION}::test_every_iteration_draws_other_samples",
    ),
    "first_rewards": Planted(
        PACKING,
        "scores_of(groups, LEARNED_KEY),",
        "scores_of(groups, LEARNED_KEY).flip(0),",
        f"{ITERATION}::test_kept_groups_keep_their_rewards",
    ),
    "rollout_order": Planted(
        ONLINE,
        "rollouts.take([index_of[id(group)] for group in phase.groups])",
        "rollouts.take(sorted(index_of[id(group)] for group in phase.groups))",
        "",
        "Every epoch shuffles the groups by a permutation that does not depend on them, so any "
        "order before it has the same distribution of minibatches. `take` moves every column "
        "with its group, so each keeps its own numbers.",
    ),
    "selected_once": Planted(
        ONLINE,
        "rollouts.take([index_of[id(group)] for group in phase.groups])",
        "rollouts.take(sorted({index_of[id(group)] for group in phase.groups}))",
        f"{ITERATION}::test_selected_groups_are_learned_as_often_as_they_are_selected",
    ),
    "carried_without_penalty": Planted(
        ROLLOUTS,
        "self.rewards.score(groups, penalty)",
        "self.rewards.score(groups)",
        f"{REPLAYED}::test_replayed_rollouts_pay_the_penalty_of_this_stage",
    ),
    "current_is_earlier": Planted(
        ROLLOUTS, "range(1, iteration))", "range(1, iteration + 1))", _EARLIER
    ),
    "rejected_again": Planted(ONLINE, _REJECTED, "return [groups for groups in", _EARLIER),
    "unscored_again": Planted(
        ROLLOUTS,
        "[with_scores(groups) for groups in",
        "[groups for groups in",
        _EARLIER,
    ),
    # Measuring
    "no_reference": Planted(
        ROLES,
        "self.reference_name = self.settings.reference or self.start",
        "self.reference_name = self.start",
        f"{MEASURED}::test_the_reference_is_the_one_that_the_recipe_names",
    ),
    "reference_at_1": Planted(
        ROLES,
        _BY_REFERENCE,
        'return measure(self.reference_models.model, self.reference_role, read)["logprobs"]',
        _RECORDED,
    ),
    "policy_as_reference": Planted(
        ROLES,
        _BY_REFERENCE,
        "return self.logprobs(self.role, read)",
        _RECORDED,
    ),
    "teacher_on_the_policys_base": Planted(
        ROLES, _BY_REFERENCE, "return self.logprobs(self.reference_role, read)", _TEACHER
    ),
    "teacher_in_the_policys_template": Planted(
        "alignkit/training/encoding.py",
        "messages == group.prompt and ids == self.policy.prompt(messages, group.tools)",
        "messages == group.prompt",
        _OFFLINE,
    ),
    "no_value_from": Planted(
        ROLES,
        "source = context.settings.value_from or (reward_models[0] if reward_models else None)",
        "source = reward_models[0] if reward_models else None",
        f"{MEASURED}::test_values_start_from_the_reward_model_that_the_recipe_names",
    ),
    "combination_keeps_head": Planted(
        ROLES,
        'and reward.kind == "stage"\n        and reward.name == source',
        "",
        f"{MEASURED}::test_values_start_from_the_reward_model_that_the_recipe_names",
    ),
    # Learning
    "full_learning_rate": Planted(ONLINE, "factor * phase.lr_scale", "factor", _PHASES),
    "improve_steps_at_full_rate": Planted(
        "plugins/alignkit_plugins/algorithms/rejection_sampling.py",
        "Phase(above, lr_scale=self.options.lr_decay**step)",
        "Phase(above)",
        "test_online.py::test_rest",
    ),
    "no_own_epochs": Planted(
        ONLINE,
        "phase.epochs if phase.epochs is not None else self.settings.epochs",
        "self.settings.epochs",
        _PHASES,
    ),
    "same_mix": Planted(LEARNER, "auxiliary.batch(self.steps)", "auxiliary.batch(0)", _MIXED),
    "same_mix_batch": Planted(
        AUXILIARY,
        "range(step * self.batch_size, (step + 1) * self.batch_size)",
        "range(self.batch_size)",
        _MIXED,
    ),
    "mix_in_one_order": Planted(
        DRAWS, "return self.epoch(epoch)[index]", "return self.epoch(0)[index]", _MIXED
    ),
    "overlapping_mix": Planted(
        AUXILIARY,
        "range(step * self.batch_size, (step + 1) * self.batch_size)",
        "range(step, step + self.batch_size)",
        _MIXED,
    ),
    "failures_add_up": Planted(
        LEARNER,
        "            self.skipped = 0\n",
        "",
        "test_learner_steps.py::test_a_step_that_succeeds_ends_a_row_of_failures",
    ),
    "failed_value_step": Planted(
        LEARNER,
        "self.clipped.keys() & unfit",
        '"grad_norm" in unfit',
        "test_learner_steps.py::test_a_gradient_of_the_values_that_is_not_finite_changes_no_weight",
    ),
    # Several processes
    "own_denominators": Planted(
        LEARNER, "self.collectives.sum(totals).items()", "totals.items()", _ON_SEVERAL
    ),
    "own_gradients": Planted(
        LEARNER,
        "        self.collectives.add_gradients(self.parameters.values())\n",
        "",
        _ON_SEVERAL,
    ),
    "own_metrics": Planted(
        "alignkit/training/learner.py",
        "collectives.sum(self.sums), collectives.sum(self.totals)",
        "self.sums, self.totals",
        _ON_SEVERAL,
    ),
    "own_skip": Planted(
        LEARNER,
        "means = self.collectives.sum(terms)",
        "means = terms",
        "test_reducer.py::test_a_step_that_one_process_must_skip_is_skipped_by_all",
    ),
    "own_whitening": Planted(
        SCORING,
        f"        {_WHOLE}\n",
        f"        {_WHOLE}\n"
        "        if self.collectives.processes > 1:\n"
        "            sizes = [len(group.responses) for group in table.sampled]\n"
        "            def alone(own):\n"
        "                places = [sum(sizes[:i]) + k for i in own for k in range(sizes[i])]\n"
        f"                some = {{name: column[places] for name, column in "
        f"table.parts.items()}}\n"
        "                groups = [table.sampled[i] for i in own]\n"
        "                return self.root.reward(groups, some, "
        "answered[places]).reward.tolist()\n"
        "            rewards = torch.tensor(self.collectives.map_sharded(sizes, alone), "
        "dtype=torch.float64)\n"
        "            combined = replace(combined, reward=rewards)\n",
        _OVER_BATCH,
    ),
    "draws_by_share": Planted(
        ROLLOUTS, "[first + index for index in own]", "[*range(len(own))]", _ON_SEVERAL
    ),
    "results_by_process": Planted(
        "alignkit/training/collectives.py",
        "results[index] = list(islice(rows, sizes[index]))",
        "results[sum(map(bool, results))] = list(islice(rows, sizes[index]))",
        _ON_SEVERAL,
    ),
    "outputs_by_process": Planted(
        "alignkit/models/packing.py",
        "whole[order.to(whole.device)]",
        "whole",
        "test_reducer.py::test_statistics_before_a_step_see_the_whole_batch_in_its_order",
    ),
    # Keeping
    "version_before": Planted(
        ONLINE, "self.keep_version(number)", "self.keep_version(number - 1)", _KEPT
    ),
    "version_before_learning": Planted(
        ONLINE,
        "                metrics = self._iterate(number).metrics\n",
        "                self.keep_version(number)\n"
        "                self.keep_version = lambda number: None\n"
        "                metrics = self._iterate(number).metrics\n",
        _KEPT,
    ),
    "another_version": Planted(
        "alignkit/io/results.py",
        '"kept" / version\n',
        '"kept" / str(int(version) - 1)\n',
        _KEPT,
    ),
    "remaining_rollouts": Planted(
        ROLLOUTS,
        "                path.unlink()\n",
        "                pass\n",
        f"{ITERATION}::test_rollouts_of_an_iteration_that_was_not_completed_are_removed",
    ),
}
