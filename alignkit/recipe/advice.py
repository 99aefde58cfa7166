"""What to do about an unknown key: a misspelling, a key in the wrong place, or a key of another tool."""

from __future__ import annotations

import re
from collections.abc import Collection

from alignkit.errors import did_you_mean
from alignkit.recipe.schema import TopKeys, allowed_keys
from alignkit.settings import LoraSpec, ModelSpec, Rollout, SamplingKeys, Settings

# Place -> the keys that belong there, to recognize a key that was written elsewhere.
_PLACES: dict[str, Collection[str]] = {
    "at the top level of the recipe": allowed_keys(TopKeys),
    "under 'model:'": allowed_keys(ModelSpec),
    "under 'model: lora:'": allowed_keys(LoraSpec),
    "in the stage": allowed_keys(Settings),
    "under the stage's 'rollout:'": allowed_keys(Rollout),
    "in a data source": ("hub", "columns", "on_bad_row", "meta"),
    "in a block of stages, next to its 'stages:'": ("repeat",),
}
# Of what asks a server.
_SERVER = ("base_url", "model", "api_key_env", "concurrency", "timeout_seconds", "max_retries", "request", "price")

_BATCH = "use 'batch_size': groups per optimizer step over all devices; micro-batches follow from memory"
# Key of TRL, OpenRLHF, axolotl, LLaMA-Factory or another tool -> what to write here.
_OTHER_TOOLS: dict[tuple[str, ...], str] = {
    ("num_train_epochs", "num_epochs", "num_ppo_epochs", "ppo_epochs", "num_iterations"): "use 'epochs'",
    ("lr", "learn_rate", "actor_learning_rate"): "use 'learning_rate'",
    ("lora_rank", "lora_r", "rank"): "use 'r' under 'model: lora:'",
    ("lora_dropout",): "remove it: alignkit trains without dropout, so that old and new log-probabilities agree",
    ("lora_target", "lora_target_modules"): "use 'target_modules' under 'model: lora:'",
    ("base_model", "model_name_or_path", "model_name", "pretrain"): "use 'base' under 'model:'",
    ("cutoff_len", "sequence_len", "max_seq_length", "max_seq_len", "max_len"): "use 'max_length'",
    ("max_prompt_length", "prompt_max_len"): "use 'max_length', which covers the prompt and its response",
    ("per_device_train_batch_size", "train_batch_size", "micro_batch_size", "micro_train_batch_size"): _BATCH,
    ("gradient_accumulation_steps", "mini_batch_size", "ppo_mini_batch_size", "num_mini_batches"): _BATCH,
    ("rollout_batch_size",): "use 'prompts_per_iteration'",
    ("total_episodes", "num_episodes"): "use 'iterations' and 'prompts_per_iteration'",
    ("ptx_coef", "ptx_coefficient"): "use 'mix: {data: ..., weight: ...}' in the stage",
    ("num_generations", "num_return_sequences", "n_samples_per_prompt"): "use 'samples_per_prompt' under 'rollout:'",
    ("max_completion_length", "response_length", "generate_max_len"): "use 'max_new_tokens' under 'rollout:'",
    ("stop_token", "stop_strings", "stop_sequences"): "use 'stop' under 'rollout:'",
    ("load_in_4bit", "bnb_4bit_quant_type"): "use 'quantization: nf4' under 'model:'",
    ("bnb_4bit_use_double_quant", "use_double_quant", "bnb_4bit_compute_dtype"): (
        "use 'quantization: {type: nf4, double_quant: true}' under 'model:'"
    ),
    ("load_in_8bit",): "use 'quantization: int8' under 'model:'",
    ("adapter", "finetuning_type", "use_peft"): "LoRA is the default; 'model: {lora: none}' trains all weights",
    ("bf16", "fp16", "torch_dtype", "precision"): "use 'dtype' under 'model:'",
    ("datasets", "dataset", "dataset_name", "train_file"): "use 'data' in the stage",
    ("data_dir", "streaming", "dataset_streaming"): "use 'data_files', patterns such as FOLDER/train*, and 'limit'",
    ("eval_dataset", "eval_file"): "use 'validation' in the stage",
    ("ref_model", "reference_model", "ref_policy"): "use 'reference', with the name of a stage or 'base'",
    ("reward_model", "reward_funcs", "reward_model_path"): "use 'reward', with the name of a stage or a reward plugin",
    ("value_model", "critic", "critic_model"): "use 'value_from', with the name of a reward-model stage",
    ("scheduler", "lr_scheduler"): "use 'lr_scheduler_type'",
    ("warmup_steps",): "use 'warmup_ratio', a fraction of all steps",
    ("template", "prompt_template"): "use 'chat_template' under 'model:'",
    ("save_steps", "save_every", "save_strategy"): "use 'checkpoint_every'",
    ("save_total_limit",): "use 'keep_versions: true'; versions are then STAGE@k",
    ("replay_buffer", "replay"): "use 'replay_from', a list of stages",
    (
        "max_grad_norm",
        "gradient_clipping",
        "clip_grad",
        "max_norm",
    ): "use 'optimizer', as in {adamw: {max_grad_norm: 1}}",
    ("adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay"): (
        "use 'optimizer', as in {adamw: {betas: [0.9, 0.95], eps: 1.0e-8, weight_decay: 0.1}}"
    ),
    ("depends_on", "after", "needs"): "leave it out: a stage runs after the stages that it refers to",
    ("resume_from_checkpoint",): "leave it out: an interrupted run resumes when you run it again",
    ("output_dir", "save_path"): "set the folder on the command line: --out DIR",
    ("type",): "write a plugin as its name, or as 'NAME: {options}'",
}
# The same for algorithm options -> the name that all algorithms of alignkit use.
_OPTIONS: dict[tuple[str, ...], str] = {
    ("kl_coef", "init_kl_coef", "kl_coeff", "kl_loss_coef", "kl_penalty"): "kl_coefficient",
    ("clip", "clip_coef", "clip_eps", "eps_clip", "cliprange", "clip_ratio"): "clip_range",
    ("clip_eps_high", "epsilon_high", "clip_ratio_high"): "clip_range_high",
    ("cliprange_value", "value_clip"): "value_clip_range",
    ("scale_rewards",): "scale_by_std",
    ("sft_coef", "sft_weight", "rpo_alpha", "nll_weight", "nll_coef"): "nll_coefficient",
}
_ADVICE = {key: text for keys, text in _OTHER_TOOLS.items() for key in keys}
_OPTION = {key: option for keys, option in _OPTIONS.items() for key in keys}


def common_name(option: str) -> str:
    """The name that alignkit's algorithms give an option of another tool; other names stay."""
    return _OPTION.get(option, option)


def advice(key: str, allowed: list[str]) -> str:
    """Return the help for an unknown key. allowed: the keys that are known at its place."""
    if f"{key}s" in allowed:
        return f"did you mean '{key}s'?"
    if key in SamplingKeys.model_fields and key not in allowed:
        if "sampling" in allowed:
            return f"'{key}' belongs under 'sampling:'"
        if "rollout" not in allowed:  # it may be an option of a plugin, whose stage is not known here
            return f"'{key}' belongs under 'rollout:' of a stage that trains, or 'sampling:' of a step"
    if key in _SERVER and "server" in allowed:
        return f"'{key}' belongs under 'server:'"
    places = [place for place, keys in _PLACES.items() if key in keys and key not in allowed]
    if places:
        return f"'{key}' belongs {' or '.join(places)}"
    if option := _OPTION.get(key):
        elsewhere = f"write it as an option of the algorithm: 'algorithm: {{NAME: {{{option}: ...}}}}'"
        return f"use '{option}'" if option in allowed else elsewhere
    known = _ADVICE.get(key, "")
    here = re.fullmatch(r"(use '(\w+)') (under .*|in the stage)", known)
    if here and here[2] in allowed:  # the key is in the right place
        return here[1]
    return known or did_you_mean(key, allowed) or f"known keys: {', '.join(sorted(allowed)) or 'none'}"
