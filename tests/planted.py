"""Changes to the run loop that neither crash a run nor show in its metrics, each with the test that
must fail.

`python tests/mutants.py --only run_loop` plants them one at a time, `--only same_prompts` only that
one.
"""

from __future__ import annotations

from dataclasses import dataclass

import yaml

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
    test: str = ""
    equivalent: str = ""


PLANTED = {
    name: Planted(**change)
    for name, change in yaml.safe_load(r"""
# Sampling
same_prompts:
  file: alignkit/training/prompts.py
  old: start = (number - 1) * self.per_iteration + self.extra + first
  new: start = first
  test: test_iteration_loop.py::test_iterations_walk_through_the_prompts
same_epochs:
  file: alignkit/training/data_sampler.py
  old: self.stream(number).permutation(self.size)
  new: self.stream(0).permutation(self.size)
  test: test_iteration_loop.py::test_iterations_walk_through_the_prompts
same_samples:
  file: alignkit/training/prompts.py
  old: path=(stage.name, self.purpose, self.number)
  new: path=(stage.name, self.purpose, 0)
  test: test_iteration_loop.py::test_every_iteration_draws_other_samples
reference_samples:
  file: alignkit/training/prompts.py
  old: self.trainer.role,
  new: self.trainer.reference_role,
  test: test_iteration_loop.py::test_the_policy_samples_and_not_its_reference
samples_by_order:
  file: alignkit/models/models.py
  old: "            numbers=fitting,\n"
  new: "            numbers=range(len(fitting)),\n"
  test: test_service.py::test_a_prompt_without_room_changes_no_other_prompts_samples
one_end:
  file: alignkit/tokens/encoder.py
  old: frozenset({self.end_of_turn[-1], *markers}) | self._known_ends
  new: frozenset({self.tokenizer.eos_token_id})
  test: test_sampling.py::test_every_end_token_ends_a_response
no_further_ends:
  file: alignkit/tokens/encoder.py
  old: frozenset({self.end_of_turn[-1], *markers}) | self._known_ends
  new: frozenset({self.end_of_turn[-1], *markers, self.tokenizer.eos_token_id} - {None})
  test: test_sampling.py::test_every_end_token_ends_a_response
# Scoring
failed_score_is_0:
  file: alignkit/training/rewards.py
  old: '[math.nan if value is None else value'
  new: '[0.0 if value is None else value'
  test: test_scoring.py::test_a_combination_makes_one_number_of_the_scores_of_its_parts
unread_score_is_0:
  file: alignkit/models/models.py
  old: float(found["scores"]) if found else None for
  new: float(found["scores"]) if found else 0.0 for
  test: test_service.py::test_truncated_and_unscored_responses_are_reported
certain_tokens_do_not_count:
  file: plugins/alignkit_plugins/evals/examples.py
  old: (logprobs != 0) | (likeliest != 0)
  new: logprobs != 0
  test: test_evaluate_examples.py::test_tokens_that_do_not_count_are_no_misses
soft_pairs_are_not_turned:
  file: plugins/alignkit_plugins/evals/examples.py
  old: (pair.better, pair.worse) if pair.p > 0.5 else (pair.worse, pair.better)
  new: (pair.better, pair.worse)
  test: test_evaluate_examples.py::test_labels_may_say_that_the_second_is_better_and_rankings_have_several_pairs
held_out_is_not_linearized:
  file: alignkit/evaluation/held_out.py
  old: total - mean * weight
  new: total - mean
  test: test_held_out.py::test_values_have_the_ratio_of_sums_as_their_mean_and_its_spread
likeliest_is_any_of_equal_tokens:
  file: plugins/alignkit_plugins/backends/frozen_head.py
  old: best = (logits.argmax(dim=-1) == tokens).to(logits)
  new: best = (logits.amax(dim=-1) == logits.gather(-1, tokens[:, None])[:, 0]).to(logits)
  test: test_lm_head.py::test_the_likeliest_tokens_are_those_of_the_largest_logits
nested_rows:
  file: alignkit/training/rewards.py
  old: child.reward(groups, parts, wanted).reward[wanted]
  new: 'child.reward(groups, parts, wanted).reward[: int(wanted.sum())]'
  test: test_scoring.py::test_a_combination_makes_one_number_of_the_scores_of_its_parts
selection_whitened:
  file: alignkit/training/rollouts.py
  old: '{**self.parts, REWARD_KEY: reward}'
  new: '{**self.parts, REWARD_KEY: learned}'
  test: test_scoring.py::test_whitening_sees_all_that_has_a_score_and_the_penalty_comes_after_it
whitened_after_filter:
  file: alignkit/training/rollouts.py
  old: self.keep = self.keep.masked_scatter(self.keep, stays)
  new: self.keep = self.keep.masked_scatter(self.keep, stays.flip(0))
  test: test_scoring.py::test_whitening_sees_all_that_has_a_score_and_the_penalty_comes_after_it
penalty_is_whitened:
  file: alignkit/training/rollouts.py
  old: learned[present] = F.whiten(reward[present])
  new: learned[present] = F.whiten((reward - penalty * (reward > 6))[present])  # the response without an end
  test: test_scoring.py::test_whitening_sees_all_that_has_a_score_and_the_penalty_comes_after_it
safety_rows:
  file: plugins/alignkit_plugins/rewards/llama2.py
  old: present.new_tensor(safety_prompts(groups))[present]
  new: 'present.new_tensor(safety_prompts(groups))[: int(present.sum())]'
  test: test_llama2.py::test_a_missing_score_moves_no_safety_prompt_to_another_row
# Selecting
same_selection:
  file: alignkit/training/online.py
  old: self.stage.rng("select", number)
  new: self.stage.rng("select")
  test: test_iteration_loop.py::test_every_iteration_draws_other_samples
first_rewards:
  file: alignkit/training/online.py
  old: rollouts.learned[rollouts.keep]
  new: 'rollouts.learned[: int(rollouts.keep.sum())]'
  test: test_iteration_loop.py::test_kept_groups_keep_their_rewards
rollout_order:
  file: alignkit/training/online.py
  old: rollouts.take([index_of[id(group)] for group in phase.groups])
  new: rollouts.take(sorted(index_of[id(group)] for group in phase.groups))
  equivalent:
    Every epoch shuffles the groups by a permutation that does not depend on them, so any order before it has
    the same distribution of minibatches. `take` moves every column with its group, so each keeps its own
    numbers.
selected_once:
  file: alignkit/training/online.py
  old: rollouts.take([index_of[id(group)] for group in phase.groups])
  new: rollouts.take(sorted({index_of[id(group)] for group in phase.groups}))
  test: test_iteration_loop.py::test_selected_groups_are_learned_as_often_as_they_are_selected
carried_without_penalty:
  file: alignkit/training/replay.py
  old: self.rewards.score(groups, penalty)
  new: self.rewards.score(groups)
  test: test_replayed_rollouts.py::test_replayed_rollouts_pay_the_penalty_of_this_stage
current_is_earlier:
  file: alignkit/training/replay.py
  old: range(1, iteration))
  new: range(1, iteration + 1))
  test: test_replayed_rollouts.py::test_earlier_iterations_are_offered_as_they_were_selected_from
rejected_again:
  file: alignkit/training/online.py
  old: return [[*compress(groups, self._chosen(groups)[0])] for groups in
  new: return [groups for groups in
  test: test_replayed_rollouts.py::test_earlier_iterations_are_offered_as_they_were_selected_from
unscored_again:
  file: alignkit/training/replay.py
  old: list(map(with_scores, everything)) if
  new: list(everything) if
  test: test_replayed_rollouts.py::test_earlier_iterations_are_offered_as_they_were_selected_from
# Measuring
no_reference:
  file: alignkit/training/trainer.py
  old: self.reference_name = self.settings.reference or self.start
  new: self.reference_name = self.start
  test: test_reference_and_values.py::test_the_reference_is_the_one_that_the_recipe_names
reference_at_1:
  file: alignkit/training/trainer.py
  old: return self.logprobs(self.reference_role, read, self.reference_models.model)
  new: return measure(self.reference_models.model, self.reference_role, read)["logprobs"]
  test: test_reference_and_values.py::test_groups_that_select_makes_are_measured_by_the_reference
policy_as_reference:
  file: alignkit/training/trainer.py
  old: return self.logprobs(self.reference_role, read, self.reference_models.model)
  new: return self.logprobs(self.role, read)
  test: test_reference_and_values.py::test_groups_that_select_makes_are_measured_by_the_reference
teacher_on_the_policys_base:
  file: alignkit/training/trainer.py
  old: return self.logprobs(self.reference_role, read, self.reference_models.model)
  new: return self.logprobs(self.reference_role, read)
  test: test_reference_check.py::test_a_whole_teacher_reads_the_policys_tokens
teacher_in_the_policys_template:
  file: alignkit/training/encoding.py
  old: messages == group.prompt and ids == self.policy.prompt(messages, group.tools)
  new: messages == group.prompt
  test: test_reference_check.py::test_an_offline_reference_is_read_by_the_whole_model
no_value_from:
  file: alignkit/training/trainer.py
  old: source = stage.settings.value_from or (reward_models[0] if reward_models else None)
  new: source = reward_models[0] if reward_models else None
  test: test_reference_and_values.py::test_values_start_from_the_reward_model_that_the_recipe_names
combination_keeps_head:
  file: alignkit/training/trainer.py
  old: |-
    and reward.kind == "stage"
            and reward.name == source
  new: ""
  test: test_reference_and_values.py::test_values_start_from_the_reward_model_that_the_recipe_names
# Learning
full_learning_rate:
  file: alignkit/training/online.py
  old: factor * phase.lr_scale
  new: factor
  test: test_iteration_loop.py::test_a_phase_has_its_own_epochs_and_learning_rate
improve_steps_at_full_rate:
  file: plugins/alignkit_plugins/algorithms/rejection_sampling.py
  old: Phase(above, lr_scale=self.options.lr_decay**step)
  new: Phase(above)
  test: test_online.py::test_rest
no_own_epochs:
  file: alignkit/training/online.py
  old: phase.epochs if phase.epochs is not None else self.settings.epochs
  new: self.settings.epochs
  test: test_iteration_loop.py::test_a_phase_has_its_own_epochs_and_learning_rate
same_mix:
  file: alignkit/training/learner.py
  old: auxiliary.batch(self.steps)
  new: auxiliary.batch(0)
  test: test_auxiliary.py::test_every_step_of_a_stage_mixes_in_the_next_groups
same_mix_batch:
  file: alignkit/training/data_sampler.py
  old: range(step * self.batch_size, (step + 1) * self.batch_size)
  new: range(self.batch_size)
  test: test_auxiliary.py::test_every_step_of_a_stage_mixes_in_the_next_groups
mix_in_one_order:
  file: alignkit/training/data_sampler.py
  old: return self.epoch(epoch)[index]
  new: return self.epoch(0)[index]
  test: test_auxiliary.py::test_every_step_of_a_stage_mixes_in_the_next_groups
overlapping_mix:
  file: alignkit/training/data_sampler.py
  old: range(step * self.batch_size, (step + 1) * self.batch_size)
  new: range(step, step + self.batch_size)
  test: test_auxiliary.py::test_every_step_of_a_stage_mixes_in_the_next_groups
failures_add_up:
  file: alignkit/training/learner.py
  old: "            self.skipped = 0\n"
  new: ""
  test: test_learner_steps.py::test_a_step_that_succeeds_ends_a_row_of_failures
failed_value_step:
  file: alignkit/training/learner.py
  old: self.clipped.keys() & unfit
  new: '"grad_norm" in unfit'
  test: test_learner_steps.py::test_a_gradient_of_the_values_that_is_not_finite_changes_no_weight
# Several processes
own_denominators:
  file: alignkit/training/learner.py
  old: totals.over(self.collectives).items()
  new: totals.over(ONE_PROCESS).items()
  test: test_reducer.py::test_every_algorithm_learns_the_same_on_several_processes
own_gradients:
  file: alignkit/training/learner.py
  old: "        self.collectives.add_gradients(self.parameters.values())\n"
  new: ""
  test: test_reducer.py::test_every_algorithm_learns_the_same_on_several_processes
own_metrics:
  file: alignkit/training/learner.py
  old: self.sums.over(collectives), self.totals.over(collectives)
  new: self.sums.over(ONE_PROCESS), self.totals.over(ONE_PROCESS)
  test: test_reducer.py::test_every_algorithm_learns_the_same_on_several_processes
own_skip:
  file: alignkit/training/learner.py
  old: losses = terms.over(self.collectives)
  new: losses = terms.over(ONE_PROCESS)
  test: test_reducer.py::test_a_step_that_one_process_must_skip_is_skipped_by_all
own_whitening:
  file: alignkit/training/rewards.py
  old: "        rollouts.add_reward(combined.reward, learns=learns, whiten=whiten, penalty=penalty)\n"
  new: |2
            rollouts.add_reward(combined.reward, learns=learns, whiten=whiten, penalty=penalty)
            if self.collectives.processes > 1 and whiten:
                sizes = [len(group.responses) for group in rollouts.sampled]
                def alone(own):
                    places = [sum(sizes[:i]) + k for i in own for k in range(sizes[i])]
                    rewards = combined.reward[places]
                    return ((rewards - rewards.mean()) / (rewards.std() + 1e-8)).tolist()
                rewards = self.collectives.map_sharded(sizes, alone)
                rollouts.learned = torch.tensor(rewards, dtype=torch.float64)
  test: test_reducer.py::test_numbers_over_the_batch_are_over_all_processes
draws_by_share:
  file: alignkit/training/prompts.py
  old: '[self.first + index for index in own]'
  new: '[*range(len(own))]'
  test: test_reducer.py::test_every_algorithm_learns_the_same_on_several_processes
results_by_process:
  file: alignkit/training/collectives.py
  old: results[index] = list(islice(computed, sizes[index]))
  new: results[sum(map(bool, results))] = list(islice(computed, sizes[index]))
  test: test_reducer.py::test_every_algorithm_learns_the_same_on_several_processes
outputs_by_process:
  file: alignkit/models/packing.py
  old: whole[order.to(whole.device)]
  new: whole
  test: test_reducer.py::test_statistics_before_a_step_see_the_whole_batch_in_its_order
# Keeping
version_before:
  file: alignkit/training/online.py
  old: self.keep_version(number)
  new: self.keep_version(number - 1)
  test: test_iteration_loop.py::test_a_kept_version_is_the_policy_after_its_iteration
version_before_learning:
  file: alignkit/training/online.py
  old: "                metrics = self._iterate(number).metrics\n"
  new: |2
                    self.keep_version(number)
                    self.keep_version = lambda number: None
                    metrics = self._iterate(number).metrics
  test: test_iteration_loop.py::test_a_kept_version_is_the_policy_after_its_iteration
another_version:
  file: alignkit/io/results.py
  old: "\"kept\" / version\n"
  new: "\"kept\" / str(int(version) - 1)\n"
  test: test_iteration_loop.py::test_a_kept_version_is_the_policy_after_its_iteration
remaining_rollouts:
  file: alignkit/training/replay.py
  old: "                path.unlink()\n"
  new: "                pass\n"
  test: test_iteration_loop.py::test_rollouts_of_an_iteration_that_was_not_completed_are_removed
""").items()
}
