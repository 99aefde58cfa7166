"""Templates of public data sets, in the layout in which the Hugging Face Hub has them.

Whoever wants other words copies a template into the recipe and changes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DataSet:
    """A public data set.

    template: as in a recipe. example: a row as JSON. recognized: by the columns of the template;
    false if these may mean something else, or if another format recognizes them.
    """

    summary: str
    template: Mapping[str, Any]
    example: str
    recognized: bool = True


def _question(prompt: str, answer: str, **more: Any) -> dict[str, Any]:
    """A template whose response is the right answer."""
    return {"prompt": prompt, "response": answer, "answer": answer, **more}


DATA_SETS = {
    "arc": DataSet(
        "ARC and CommonsenseQA: a question with choices",
        _question(
            "{question}\n{choices:letters}",
            "{choices[answerKey]:letter}",
            required=["{answerKey}"],  # the test split of CommonsenseQA has none
        ),
        '{"question": "What is wet?", "choices": {"text": ["Fire", "Rain"], "label": ["1", '
        '"2"]}, "answerKey": "2"}',
    ),
    "boolq": DataSet(
        "BoolQ: a passage and a question, with yes or no",
        _question(
            "{passage}\n\n{question}?",  # the set's questions have no mark at their end
            "{answer:true=yes|false=no}",
        ),
        '{"passage": "Rain is wet.", "question": "is rain wet", "answer": true}',
    ),
    "race": DataSet(
        "RACE: an article and a question with choices",
        _question(
            "{article}\n\n{question}\n{options:letters}",
            "{options[answer]:letter}",
        ),
        '{"article": "Rain is wet.", "question": "Rain is _.", "options": ["dry", "wet"], '
        '"answer": "B"}',
    ),
    "drop": DataSet(
        "DROP: a passage and a question, with one or several spans",
        _question(
            "{passage}\n\n{question}",
            "{answers_spans.spans:commas}",
            required=["{answers_spans.spans}"],
        ),
        '{"passage": "Ann is 7.", "question": "Who is 7?", "answers_spans": {"spans": ["Ann"], '
        '"types": ["span"]}}',
    ),
    "coqa": DataSet(
        "CoQA: a story, questions and answers",
        {"prompt": "{story}", "turns": ["{questions}", "{answers.input_text}"]},
        '{"story": "Ann is 7.", "questions": ["Who is 7?", "Is she?"], "answers": {"input_text": '
        '["Ann", "yes"]}}',
    ),
    "openbookqa": DataSet(
        "OpenBookQA: a question with choices",
        _question(
            "{question_stem}\n{choices:letters}",
            "{choices[answerKey]:letter}",
        ),
        '{"question_stem": "Wet is", "choices": {"text": ["fire", "rain"], "label": ["A", "B"]}, '
        '"answerKey": "B"}',
    ),
    # Not recognized: other sets with these columns have other labels. In CommitmentBank 1 is a
    # contradiction.
    "mnli": DataSet(
        "MNLI and SNLI: premise and hypothesis; label 0 entailment, 1 neutral, 2 contradiction",
        _question(
            "{premise}\n"
            "\n"
            "Does this entail or contradict the following, or is it neutral?\n"
            "\n"
            "{hypothesis}",
            "{label:0=entailment|1=neutral|2=contradiction}",
            required=["{label:-1=|yes}"],  # people did not agree
        ),
        '{"premise": "Ann is 7.", "hypothesis": "Ann is a child.", "label": 0}',
        recognized=False,
    ),
    "quac": DataSet(
        "QuAC: a text, questions and answers",
        {
            "prompt": "{context}",
            "turns": ["{questions}", "{orig_answers.texts:CANNOTANSWER=I don't know.|{}}"],
        },
        '{"context": "Ann is 7.", "questions": ["Who is 7?", "Why?"], '
        '"orig_answers": {"texts": ["Ann", "CANNOTANSWER"], "answer_starts": [0, 10]}}',
    ),
    "winogrande": DataSet(
        "WinoGrande: a sentence with a gap and two options",
        _question(
            "{sentence}\nA. {option1}\nB. {option2}",
            "{answer:1=A|2=B}",
            required=["{answer}"],  # the test split has none
        ),
        '{"sentence": "Rain fell on Ann, so _ was wet.", "option1": "rain", "option2": "Ann", '
        '"answer": "2"}',
    ),
    "stack_exchange": DataSet(
        "StackExchange pairs: question, better response_j, worse response_k",
        {"prompt": "{question}", "chosen": "{response_j}", "rejected": "{response_k}"},
        '{"question": "Why?", "response_j": "Because it rains.", "response_k": "Why not?"}',
        recognized=False,  # `preference` does
    ),
    "ultrafeedback": DataSet(
        "UltraFeedback: an instruction and completions with scores",
        {
            "prompt": "{instruction}",
            "responses": "{completions.response}",
            "scores": "{completions.overall_score}",
            "required": ["{completions}"],
        },
        '{"instruction": "Hi", "completions": [{"response": "Hello!", "overall_score": 8.0}, '
        '{"response": "What?", "overall_score": 3.5}]}',
        recognized=False,  # `rankings` does
    ),
    "helpsteer2": DataSet(
        "HelpSteer 1 and 2: responses with ratings, of which helpfulness is the score",
        {"prompt": "{prompt}", "response": "{response}", "scores": "{helpfulness}"},
        '{"prompt": "Hi", "response": "Hello!", "helpfulness": 4, "correctness": 4, "verbosity": '
        "0}",
        recognized=False,  # `prompt_completion` does, without a score
    ),
    "helpsteer3": DataSet(
        "HelpSteer 3: two responses and a preference from -3 (the first) to 3 (the second)",
        {
            "prompt": "{context}",
            "responses": ["{response1}", "{response2}"],
            "best": "{overall_preference:-3=A|-2=A|-1=A|0=|1=B|2=B|3=B}",
            "margin": "{overall_preference:-3=3|-2=2|-1=1|0=|1=1|2=2|3=3}",
        },
        '{"context": [{"role": "user", "content": "Hi"}], "response1": "Hello!", "response2": '
        '"What?", "overall_preference": -2}',
        recognized=False,  # `labeled_pairs` does
    ),
    "prm800k": DataSet(
        "PRM800K, phase 2: whole solutions, good if people found no wrong step",
        {
            "prompt": "{question.problem}",
            "response": "{question.pre_generated_steps:lines}",
            "label": "{label.finish_reason:solution=true|found_error=false}",
            "answer": "{question.ground_truth_answer}",
            # Phase 1 has no whole solutions, and people gave up on some problems.
            "required": [
                "{question.pre_generated_steps?}",
                "{label.finish_reason:solution=true|found_error=false|}",
            ],
        },
        '{"question": {"problem": "1 + 1", "ground_truth_answer": "2", "pre_generated_steps": '
        '["1 + 1 is 3."]}, "label": {"steps": [], "finish_reason": "found_error"}}',
    ),
    "tulu3_preference": DataSet(
        "Tulu 3 preference mixtures: prompt, and chosen and rejected as messages",
        {"prompt": "{prompt}", "chosen": "{chosen}", "rejected": "{rejected}"},
        '{"prompt": "Hi", "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", '
        '"content": "Hello!"}], "rejected": [{"role": "user", "content": "Hi"}, {"role": '
        '"assistant", "content": "What?"}]}',
        recognized=False,  # `preference` does
    ),
}
