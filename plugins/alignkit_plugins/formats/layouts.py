"""The table of layouts: how rows of public data sets are read, and in which ones rows are written.

TEMPLATES are read by `template`, as in a recipe: whoever wants other words copies one and changes
it. PAIRS, whose labels a template cannot tell apart, are read by `labeled_pairs`, and lists that no
template reads by the classes of `public_sets`. LAYOUTS are those of TRL and of other tools, which
`alignkit data convert` writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import yaml

from alignkit.data.group import Group, Response, group_to_json, resolved_pairs
from alignkit_plugins.text.rows import turns_of_response, with_labels


@dataclass(frozen=True)
class DataSet:
    """A public data set, in the layout in which the Hugging Face Hub has it.

    template: as in a recipe. example: a row as JSON. recognized: by the columns of the example;
    false if these may mean something else, or if another format recognizes them.
    """

    summary: str
    template: Mapping[str, Any]
    example: str
    recognized: bool = True


@dataclass(frozen=True)
class TwoAnswers:
    """Columns of a data set with two answers and a label, and what its labels mean.

    prompt: columns, joined by a blank line; empty if the answers are whole conversations.
    labels: value -> first, second or tie. margins: value -> margin. soft: values between 1 and 2
    are 1 + the probability that the second answer is better. others: columns by which the set is
    told from one with other labels.
    """

    prompt: Sequence[str] = ()
    first: str = ""
    second: str = ""
    label: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    margins: Mapping[str, float | str] = field(default_factory=dict)
    soft: bool = False
    others: Sequence[str] = ()

    def fits(self, row: Any) -> bool:
        """Whether the row has these columns; all but the first of the prompt may be missing."""
        needed = {*self.prompt[:1], self.first, self.second, *self.label, *self.others}
        return isinstance(row, Mapping) and needed <= row.keys()


_TEMPLATES = r"""
arc:
  summary: "ARC and CommonsenseQA: a question with choices"
  template:
    prompt: "{{ question }}\n{{ choices.text | letters }}"
    response: "{{ answerKey | letter(choices.text, choices.label) }}"
    answer: "{{ answerKey | letter(choices.text, choices.label) }}"
    # the test split of CommonsenseQA has none
    required: "{{ answerKey }}"
  example: >-
    {"question": "What is wet?", "choices": {"text": ["Fire", "Rain"], "label": ["1", "2"]},
    "answerKey": "2"}
boolq:
  summary: "BoolQ: a passage and a question, with yes or no"
  template:
    # the set's questions have no mark at their end
    prompt: "{{ passage }}\n\n{{ question }}?"
    response: '{{ {"true": "yes", "false": "no"}[answer | string | lower] }}'
    answer: '{{ {"true": "yes", "false": "no"}[answer | string | lower] }}'
  example: '{"passage": "Rain is wet.", "question": "is rain wet", "answer": true}'
race:
  summary: "RACE: an article and a question with choices"
  template:
    prompt: "{{ article }}\n\n{{ question }}\n{{ options | letters }}"
    response: "{{ answer | letter(options) }}"
    answer: "{{ answer | letter(options) }}"
  example: >-
    {"article": "Rain is wet.", "question": "Rain is _.", "options": ["dry", "wet"], "answer":
    "B"}
drop:
  summary: "DROP: a passage and a question, with one or several spans"
  template:
    prompt: "{{ passage }}\n\n{{ question }}"
    response: "{{ answers_spans.spans | join(', ') }}"
    answer: "{{ answers_spans.spans | join(', ') }}"
    required: "{{ answers_spans.spans }}"
  example: >-
    {"passage": "Ann is 7.", "question": "Who is 7?", "answers_spans": {"spans": ["Ann"],
    "types": ["span"]}}
coqa:
  summary: "CoQA: a story, questions and answers"
  template:
    messages: "{{ questions | dialogue(answers.input_text, story) }}"
  example: >-
    {"story": "Ann is 7.", "questions": ["Who is 7?", "Is she?"], "answers": {"input_text":
    ["Ann", "yes"]}}
openbookqa:
  summary: "OpenBookQA: a question with choices"
  template:
    prompt: "{{ question_stem }}\n{{ choices.text | letters }}"
    response: "{{ answerKey | letter(choices.text, choices.label) }}"
    answer: "{{ answerKey | letter(choices.text, choices.label) }}"
  example: >-
    {"question_stem": "Wet is", "choices": {"text": ["fire", "rain"], "label": ["A", "B"]},
    "answerKey": "B"}
mnli:
  summary: "MNLI and SNLI: premise and hypothesis; label 0 entailment, 1 neutral, 2 contradiction"
  template:
    prompt: "{{ premise }}\n\nDoes this entail or contradict the following, or is it neutral?\n\n{{ hypothesis }}"
    response: '{{ {"0": "entailment", "1": "neutral", "2": "contradiction"}[label | string] }}'
    answer: '{{ {"0": "entailment", "1": "neutral", "2": "contradiction"}[label | string] }}'
    # people did not agree
    required: "{{ label | string != '-1' }}"
  example: '{"premise": "Ann is 7.", "hypothesis": "Ann is a child.", "label": 0}'
  # Other sets with these columns have other labels: in CommitmentBank 1 is a contradiction
  recognized: false
quac:
  summary: "QuAC: a text, questions and answers"
  template:
    messages: >-
      {{ questions | dialogue(orig_answers.texts | map("replace", "CANNOTANSWER", "I don't know.") |
      list, context) }}
  example: >-
    {"context": "Ann is 7.", "questions": ["Who is 7?", "Why?"], "orig_answers": {"texts":
    ["Ann", "CANNOTANSWER"], "answer_starts": [0, 10]}}
winogrande:
  summary: "WinoGrande: a sentence with a gap and two options"
  template:
    prompt: "{{ sentence }}\nA. {{ option1 }}\nB. {{ option2 }}"
    response: '{{ {"1": "A", "2": "B"}[answer | string] }}'
    answer: '{{ {"1": "A", "2": "B"}[answer | string] }}'
    # the test split has none
    required: "{{ answer }}"
  example: >-
    {"sentence": "Rain fell on Ann, so _ was wet.", "option1": "rain", "option2": "Ann",
    "answer": "2"}
stack_exchange:
  summary: "StackExchange pairs: question, better response_j, worse response_k"
  template:
    prompt: "{{ question }}"
    chosen: "{{ response_j }}"
    rejected: "{{ response_k }}"
  example: '{"question": "Why?", "response_j": "Because it rains.", "response_k": "Why not?"}'
ultrafeedback:
  summary: "UltraFeedback: an instruction and completions with scores"
  template:
    prompt: "{{ instruction }}"
    responses: "{{ completions | map(attribute='response') | list }}"
    scores: "{{ completions | map(attribute='overall_score') | list }}"
    # a score of 85 lies on a scale of 10, and 10 was written for 1, as other ratings (1 to 5) tell
    required: >-
      {% for c in completions if c.overall_score > 10 or c.overall_score == 10 and
      c['fine-grained_score'] | default((c.annotations | default({'': {'Rating': 5}})).values() |
      map(attribute='Rating') | map('float') | max) <= 2 %}{% else %}{{ completions | length or '' }}{% endfor %}
  example: >-
    {"instruction": "Hi", "completions": [{"response": "Hello!", "overall_score": 8.0},
    {"response": "What?", "overall_score": 3.5}]}
helpsteer2:
  summary: "HelpSteer 1 and 2: responses with ratings, of which helpfulness is the score"
  template:
    prompt: "{{ prompt }}"
    response: "{{ response }}"
    scores: "{{ helpfulness }}"
  example: >-
    {"prompt": "Hi", "response": "Hello!", "helpfulness": 4, "correctness": 4, "verbosity": 0}
  recognized: false  # `prompt_completion` does, without a score
helpsteer3:
  summary: "HelpSteer 3: two responses and a preference from -3 (the first) to 3 (the second)"
  template:
    prompt: "{{ context }}"
    responses: "{{ [response1, response2] }}"
    best: '{{ {"-3": "A", "-2": "A", "-1": "A", "0": "", "1": "B", "2": "B", "3": "B"}[overall_preference | string] }}'
    margin: "{{ overall_preference | abs }}"
  example: >-
    {"context": [{"role": "user", "content": "Hi"}], "response1": "Hello!", "response2":
    "What?", "overall_preference": -2}
prm800k:
  summary: "PRM800K, phase 2: whole solutions, good if people found no wrong step"
  template:
    prompt: "{{ question.problem }}"
    response: "{{ question.pre_generated_steps | join('\n') }}"
    label: '{{ {"solution": true, "found_error": false}[label.finish_reason] }}'
    answer: "{{ question.ground_truth_answer }}"
    # phase 1 has no whole solutions, and people gave up on some problems
    required: "{{ question.pre_generated_steps is defined and label.finish_reason in ['solution', 'found_error'] }}"
  example: >-
    {"question": {"problem": "1 + 1", "ground_truth_answer": "2", "pre_generated_steps": ["1 +
    1 is 3."]}, "label": {"steps": [], "finish_reason": "found_error"}}
tulu3_preference:
  summary: "Tulu 3 preference mixtures: prompt, and chosen and rejected as messages"
  template:
    prompt: "{{ prompt }}"
    chosen: "{{ chosen }}"
    rejected: "{{ rejected }}"
  example: >-
    {"prompt": "Hi", "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant",
    "content": "Hello!"}], "rejected": [{"role": "user", "content": "Hi"}, {"role":
    "assistant", "content": "What?"}]}
  recognized: false  # `preference` does
gsm8k:
  summary: "GSM8K: question and answer with '#### 18' at the end"
  template:
    prompt: "{{ question }}"
    response: "{{ answer | solution }}"
    answer: "{{ answer | final }}"
  example: '{"question": "Ann has 2 pens and buys 3. How many has she?", "answer": "2+3=<<2+3=5>>5\n#### 5"}'
  recognized: false  # many sets have a question and an answer; `init` looks for the line
svamp:
  # Patel et al. 2021, arXiv:2103.07191; some stories lack the mark at their end
  summary: "SVAMP: Body, Question and Answer"
  template:
    prompt: "{{ Body | trim }}{{ '' if (Body | trim)[-1:] in '.!?,;:' else '.' }} {{ Question }}"
    answer: "{{ Answer | number }}"
  example: '{"Body": "Ann has 2 pens and buys 3", "Question": "How many has she?", "Answer": 5.0}'
"""
_PAIRS = """
LLMBar:
  prompt: [input]
  first: output_1
  second: output_2
  label: [label]
  labels: {"1": first, "2": second}
Auto-J:
  prompt: [prompt]
  first: response 1
  second: response 2
  label: [label]
  labels: {"0": first, "1": second, "2": tie}
PandaLM:
  prompt: [instruction, input]
  first: response1
  second: response2
  label: [annotator1, annotator2, annotator3]
  labels: {"1": first, "2": second, "0": tie}
SuperHF:
  prompt: [prompt]
  first: model_a_completion
  second: model_b_completion
  label: [rating]
  labels: {a: first, b: second, tie: tie}
Tulu:
  prompt: [prompt]
  first: completion_a
  second: completion_b
  label: [preference]
  labels: {a-is-better: first, a-is-slightly-better: first, tie: tie, b-is-slightly-better: second,
    b-is-better: second}
  margins: {a-is-better: better, a-is-slightly-better: slightly, b-is-better: better,
    b-is-slightly-better: slightly}
AlpacaEval:
  prompt: [instruction]
  first: output_1
  second: output_2
  label: [preference]
  labels: {"1": first, "2": second, "0": tie, "1.5": tie}
  soft: true
  others: [generator_1, generator_2]  # other sets count from 0, where it means a tie
Chatbot Arena:
  first: conversation_a
  second: conversation_b
  label: [winner]
  labels: {model_a: first, model_b: second, tie: tie, "tie (bothbad)": tie}
SHP:
  prompt: [history]
  first: human_ref_A
  second: human_ref_B
  label: [labels]
  labels: {"1": first, "0": second}
PKU-SafeRLHF:
  prompt: [prompt]
  first: response_0
  second: response_1
  label: [better_response_id]
  labels: {"0": first, "1": second, "2": tie}
HelpSteer2-Preference:
  prompt: [prompt]
  first: response_1
  second: response_2
  label: [preference_strength]
  labels: {"-3": first, "-2": first, "-1": first, "0": tie, "1": second, "2": second, "3": second}
  margins: {"-3": 3.0, "-2": 2.0, "-1": 1.0, "1": 1.0, "2": 2.0, "3": 3.0}
"""
TEMPLATES = {name: DataSet(**fields) for name, fields in yaml.safe_load(_TEMPLATES).items()}
PAIRS = {name: TwoAnswers(**fields) for name, fields in yaml.safe_load(_PAIRS).items()}


# Writing

Row = dict[str, Any]
# Steps between the levels of a margin (Llama 2, Touvron et al. 2023, table 27).
DEGREES = {"unsure": 1, "slightly": 2, "better": 3, "significantly": 4}


_PARTS = "alignkit prompt responses pairs id meta tools bundle text messages better worse"
_OF_RESPONSE = " ".join(vars(Response()))


class Layout(NamedTuple):
    """How groups are written. rows: of a group. lack: what is said of groups that give none. holds:
    what the rows say of responses and pairs; all, if they are not wanted.
    """

    rows: Callable[[Group], Iterable[Row]]
    lack: str
    holds: str

    def written(self, group: Group) -> list[Row]:
        """The rows of a group, with its tools."""
        tools = {"tools": list(group.tools)} if group.tools else {}
        return [{**row, **tools} for row in self.rows(group)]

    def lost(self, group: Group, rows: Sequence[Row]) -> set[str]:
        """The names of what a group says and its rows do not."""
        parts, text = json.loads(group_to_json(replace(group, meta={}))), str(rows)
        names = set[str]().union(parts, *parts.get("responses", ()), *parts.get("pairs", ()))
        names -= {*_PARTS.split()}
        for response in group.responses:
            if str(turns_of_response(response)[-1]) not in text:
                names.add("responses")
        return names.difference(self.holds.split()).union(group.meta)


def _sft(group: Group) -> Iterable[Row]:
    if len(group.responses) == 1 and group.prompt and group.responses[0].label is not False:
        completion = list(turns_of_response(group.responses[0]))
        yield {"prompt": list(group.prompt), "completion": completion}


def _messages(group: Group) -> Iterable[Row]:
    for row in _sft(group):
        yield {"messages": row["prompt"] + row["completion"]}


def _preference(group: Group) -> Iterable[Row]:
    """The likelier order of each pair, with its probability; none of an undecided one."""
    turns = [list(turns_of_response(response)) for response in group.responses]
    for pair in resolved_pairs(group):
        margin = pair.margin or 0.0
        if isinstance(margin, str):
            margin = (DEGREES[margin] - 1) / 3
        answers = [turns[pair.better], turns[pair.worse]]
        chosen, rejected = answers if pair.p > 0.5 else reversed(answers)
        if pair.p != 0.5:
            row = {"prompt": list(group.prompt), "chosen": chosen, "rejected": rejected}
            row["margin"] = round(margin, 6)
            likelier = max(pair.p, 1 - pair.p)
            yield row if likelier == 1 else {**row, "p": round(likelier, 6)}


def _ranked(group: Group) -> Iterable[Row]:
    ranks = [response.rank for response in group.responses]
    if len(ranks) > 1 and None not in ranks:
        completions = [list(turns_of_response(response)) for response in group.responses]
        yield {"prompt": list(group.prompt), "completions": completions, "ranks": ranks}


def _kto(group: Group) -> Iterable[Row]:
    for response in with_labels(group).responses:
        completion = list(turns_of_response(response))
        yield {"prompt": list(group.prompt), "completion": completion, "label": response.label}


def _prompts(group: Group) -> Iterable[Row]:
    if group.prompt:
        yield {"prompt": list(group.prompt)}


LAYOUTS = {
    "messages": Layout(_messages, "they are no demonstrations", "label"),
    "sft": Layout(_sft, "they are no demonstrations", "label"),
    "preference": Layout(_preference, "nobody said which response is better", "rank p margin"),
    "ranked": Layout(_ranked, "they have no ranks", "rank"),
    "kto": Layout(_kto, "nothing says that a response is good or bad", "label"),
    "prompts": Layout(_prompts, "they have no prompt", f"responses weight p margin {_OF_RESPONSE}"),
}
