"""Rows of public data sets, shortened or written by hand in their documented layout: which format
recognizes them, and what it makes of them.

`tests/formats/reading.py` says how a table is read.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from alignkit import BadRow, Pair
from alignkit_plugins.formats.layouts import PAIRS
from tests.formats.reading import FORMATS, check, read, shown
from tests.rows import cells, json_rows

# Formats that recognize the example of another one; the others recognize their own, and no other.
EXAMPLES = {
    "dialogues": ["text"],
    "gsm8k": [],
    "mnli": [],
    "oasst_paths": ["oasst"],
    "template": [],
    "helpsteer2": ["prompt_completion"],
    "tulu3_preference": ["preference"],
}


@pytest.mark.parametrize("name", sorted({*FORMATS} - {"template"}))
def test_the_example_of_a_format_is_read_and_claimed_by_no_other(name: str) -> None:
    row = json.loads(FORMATS[name].example)
    assert read(name, row) and FORMATS[name].wants
    claims = [other for other, cls in FORMATS.items() if cls.matches(row)]
    assert claims == EXAMPLES.get(name, [name])


def test_questions_with_choices() -> None:
    check(r"""
arc {"id": "M", "question": "Which?", "choices": {"text": ["tv", "airplane"], "label": ["1", "2"]}, "answerKey": "2"}
  u: Which?\nA. tv\nB. airplane -> B {"id": "M", "answer": "B"}

openbookqa {"id": "7", "question_stem": "The sun is", "choices": {"text": ["far", "hot"], "label": ["A", "B"]},
    "answerKey": "B"}
  u: The sun is\nA. far\nB. hot -> B {"id": "7", "answer": "B"}

race {"example_id": "h", "article": "Rain.", "answer": "A", "question": "It is _ .", "options": ["wet", "dry"]}
  u: Rain.\n\nIt is _ .\nA. wet\nB. dry -> A {"example_id": "h", "answer": "A"}

winogrande {"sentence": "Ann thanked Eve, as _ helped.", "option1": "Ann", "option2": "Eve", "answer": "2"}
  u: Ann thanked Eve, as _ helped.\nA. Ann\nB. Eve -> B {"answer": "B"}

winogrande {"sentence": "_", "option1": "a", "option2": "b", "answer": 1}
  u: _\nA. a\nB. b -> A {"answer": "A"}

boolq {"question": "q", "answer": true, "passage": "p"}
  u: p\n\nq? -> yes {"answer": "yes"}

boolq {"question": "is rain wet", "answer": false, "passage": "Rain."}
  u: Rain.\n\nis rain wet? -> no {"answer": "no"}

mnli () {"premise": "Rain.", "hypothesis": "It is wet. ", "genre": "g", "label": 1}
  u: Rain.\n\nDoes this entail or contradict the following, or is it neutral?\n\nIt is wet. -> neutral
    {"genre": "g", "answer": "neutral"}

mnli () {"premise": "p", "hypothesis": "h", "label": 0}
  u: p\n\nDoes this entail or contradict the following, or is it neutral?\n\nh -> entailment {"answer": "entailment"}

mnli () {"premise": "p", "hypothesis": "h", "label": "2"}
  u: p\n\nDoes this entail or contradict the following, or is it neutral?\n\nh -> contradiction
    {"answer": "contradiction"}

drop {"section_id": "n", "query_id": "f", "passage": "Rain.", "question": "Who?",
    "answers_spans": {"spans": ["Lions", "Bears"], "types": ["span", "span"]}}
  u: Rain.\n\nWho? -> Lions, Bears {"section_id": "n", "query_id": "f", "answer": "Lions, Bears"}

squad {"id": "1", "title": "T", "context": "Ann is 7.", "question": "Who?", "answers": {"text": ["Ann"]}}
  u: Ann is 7.\n\nWho? If the text does not say, answer: I don't know. -> Ann
    {"id": "1", "title": "T", "answers": ["Ann"], "answerable": true}
""")


def test_conversations_about_a_text() -> None:
    check(r"""
coqa {"source": "m", "story": "A kitten.", "questions": ["What?", "Where?"],
    "answers": {"input_text": ["white", "in a barn"], "answer_start": [59, 18], "answer_end": [93, 80]}}
  u: A kitten.\n\nWhat? -> a: white / u: Where? / a: in a barn {"source": "m"}

quac {"dialogue_id": "C", "background": "B.", "context": "In 1926.", "questions": ["when", "how"],
    "answers": {"texts": [["1926"], ["CANNOTANSWER"]], "answer_starts": [[0], [9]]},
    "orig_answers": {"texts": ["In 1926.", "CANNOTANSWER"], "answer_starts": [0, 9]}}
  u: In 1926.\n\nwhen -> a: In 1926. / u: how / a: I don't know. {"dialogue_id": "C", "background": "B.",
    "answers": {"texts": [["1926"], ["CANNOTANSWER"]], "answer_starts": [[0], [9]]}}
""")


def test_rated_answers() -> None:
    check(r"""
ultrafeedback {"source": "e", "instruction": "q", "models": ["x", "y"], "completions":
    [{"model": "x", "principle": "p", "response": "a", "critique": "c", "overall_score": 7.5},
    {"model": "y", "response": "b", "overall_score": 10, "annotations": {"x": {"Rating": "5"}}}],
    "correct_answers": ["None"]}
  u: q -> a (scores {"reward": 7.5}) | b (scores {"reward": 10.0}) [1>0 by 2.5]
    {"source": "e", "models": ["x", "y"], "correct_answers": ["None"]}

helpsteer2 (prompt_completion) {"prompt": "q", "response": "a", "helpfulness": 3, "verbosity": 1}
  u: q -> a (scores {"reward": 3.0}) {"verbosity": 1}

prm800k {"labeler": "3", "generation": 9, "question": {"problem": "q", "ground_truth_answer": "200",
    "pre_generated_steps": ["I factor.", "# Answer\n\n320"], "pre_generated_answer": "320"},
    "label": {"steps": [], "finish_reason": "found_error"}}
  u: q -> I factor.\n# Answer\n\n320 (label false) {"labeler": "3", "generation": 9, "answer": "200"}

prm800k {"question": {"problem": "q", "ground_truth_answer": "200", "pre_generated_steps": ["I."]},
    "label": {"steps": [], "finish_reason": "solution"}}
  u: q -> I. (label true) {"answer": "200"}
""")


def test_two_answers_and_a_preference() -> None:
    check(r"""
stack_exchange {"qid": 1, "question": "How?", "response_j": "a", "response_k": "b"}
  u: How? -> a | b [0>1] {"qid": 1}

tulu3_preference (preference) {"id": "x", "prompt": "q", "chosen": <u: q / a: a>, "rejected": <u: q / a: b>}
preference {"id": "x", "prompt": "q", "chosen": <u: q / a: a>, "rejected": <u: q / a: b>}
  u: q -> a | b [0>1] {"id": "x"}

reward_bench_2 {"prompt": "q", "chosen": ["a"], "rejected": ["b", "c", "d"], "num_correct": 1}
  u: q -> a | b | c | d [0>1, 0>2, 0>3] {"num_correct": 1}

labeled_pairs {"split": "train", "prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": 2}
  u: q -> a | b [1>0 by 2.0] {"split": "train", "preference_strength": 2}

helpsteer3 {"domain": "g", "context": <u: q / a: a / u: r>, "response1": "b", "response2": "c",
    "overall_preference": -2}
  u: q / a: a / u: r -> b | c [0>1 by 2.0] {"domain": "g"}

""")


@pytest.mark.parametrize("strength", range(-3, 4))
def test_strengths_of_helpsteer(strength: int) -> None:
    two = {"prompt": "q", "response_1": "b", "response_2": "c", "preference_strength": strength}
    three = {"context": "q", "response1": "b", "response2": "c", "overall_preference": strength}
    better = int(strength > 0)
    wanted = (Pair(better, 1 - better, margin=abs(strength)),) if strength else ()
    for name, row in (("labeled_pairs", two), ("helpsteer3", three)):
        assert read(name, row)[0].pairs == wanted


# Rows of LLMBar, Auto-J, SuperHF, Tulu, AlpacaEval, PandaLM, a battle, SHP and PKU-SafeRLHF without their
# labels, and the labels of each pair
LABELED = json_rows(
    """
[{"input": "q", "output_1": "a", "output_2": "b"}, {"0>1": [{"label": 1}], "1>0": [{"label": "2"}]}]
[{"prompt": "q", "response 1": "a", "response 2": "b"}, {"0>1": [{"label": 0}], "1>0": [{"label": 1}],
  "": [{"label": 2}]}]
[{"prompt": "q", "model_a_completion": "a", "model_b_completion": "b"}, {"0>1": [{"rating": "A"}],
  "1>0": [{"rating": "B"}]}]
[{"prompt": "q", "completion_a": "a", "completion_b": "b"}, {"0>1 by better": [{"preference": "a-is-better"}],
  "0>1 by slightly": [{"preference": "a-is-slightly-better"}], "": [{"preference": "tie"}],
  "1>0 by slightly": [{"preference": "b-is-slightly-better"}], "1>0 by better": [{"preference": "b-is-better"}]}]
[{"instruction": "q", "output_1": "a", "generator_1": "x", "output_2": "b", "generator_2": "y"},
  {"0>1": [{"preference": 1}], "1>0": [{"preference": 2.0}], "0>1 p 0.75": [{"preference": 1.25}],
  "1>0 p 0.75": [{"preference": 1.75}], "": [{"preference": 1.5}, {"preference": 0}]}]
[{"instruction": "q", "input": "", "response1": "a", "response2": "b"},
  {"0>1": [{"annotator1": 1, "annotator2": 1, "annotator3": 2}], "1>0": [{"annotator1": 2, "annotator2": 0,
  "annotator3": 2}], "": [{"annotator1": 0, "annotator2": 0, "annotator3": 1}, {"annotator1": 1, "annotator2": 0,
  "annotator3": 2}]}]
[{"conversation_a": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
  "conversation_b": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]},
  {"0>1": [{"winner": "model_a"}], "1>0": [{"winner": "model_b"}], "": [{"winner": "tie (bothbad)"}]}]
[{"history": "q", "human_ref_A": "a", "human_ref_B": "b"}, {"0>1": [{"labels": 1}], "1>0": [{"labels": 0}]}]
[{"prompt": "q", "response_0": "a", "response_1": "b"}, {"0>1": [{"better_response_id": 0}],
  "1>0": [{"better_response_id": 1}]}]
""".replace("\n  ", " ")
)


@pytest.mark.parametrize(("row", "pairs"), LABELED)
def test_a_label_means_what_it_means_in_its_data_set(row: Any, pairs: dict[str, Any]) -> None:
    for pair, labels in pairs.items():
        for label in labels:
            read_as = shown(read("labeled_pairs", {**row, **label})[0])
            assert (
                read_as.startswith(f"u: q -> a | b [{pair}] {{")
                and json.dumps(label)[1:] in read_as
            )
            claims = [name for name, cls in FORMATS.items() if cls.matches({**row, **label})]
            assert claims == ["labeled_pairs"]


def test_labels_that_say_nothing_are_bad_rows() -> None:
    check(r"""
labeled_pairs {"scenario": "s", "label": 2, "prompt": "q", "response 1": "a", "response 2": "a"}
  u: q -> a | a [] {"scenario": "s", "label": 2}

labeled_pairs {"instruction": "q", "input": "r", "response1": "a", "response2": "b", "annotator1": 1,
    "annotator2": 1, "annotator3": 2}
  u: q\n\nr -> a | b [0>1] {"annotator1": 1, "annotator2": 1, "annotator3": 2}

labeled_pairs {"scenario": "s", "label": 0, "prompt": "q", "response 1": "a", "response 2": "a"}
  ! are the same

labeled_pairs {"input": "q", "output_1": "a", "output_2": "b", "label": 0}
  ! column 'label' holds 0, but the known labels are 1, 2

labeled_pairs {"input": "q", "output_1": "a", "output_2": "b", "label": null}
  ! holds None

labeled_pairs {"prompt": "q", "rating": "Sorry", "model_a_completion": "a", "model_b_completion": "b"}
  ! the known labels are a, b, tie

labeled_pairs {"input": "q", "output_1": true, "output_2": "b", "label": 1}
  ! must be text

labeled_pairs {"input": "q", "output_1": "a", "output_2": null, "label": 1}
  ! 'output_2' is missing or null

labeled_pairs {"prompt": "q", "answer_1": "x", "answer_3": "y", "label": 1}
  ! write a `template`
""")


# The columns of two answers, and labels that mean the first, the second, a tie, or nothing
LABELS = """
answer A | answer B | A, a, 1, 1.0, first, Answer A, answer_a, A is better, A > B | B, b, 2 | tie, both, Neither | 0
answer_a | answer_b | A is better than B | the second answer, B wins | equally good, no preference | -1, maybe, not A
answer_a | answer_b | 1 | 2 | Both A and B | A or B, A/B, true
Response 1 | Response 2 | 1, response_1, A, first | 2, Response 2, b | 0, tie, same | -1
response_0 | response_1 | 0, response 0, A | 1, response_1, b | tie | 2, response 2, -1
"""


@pytest.mark.parametrize("line", cells(LABELS))
def test_labels_are_read_as_people_write_them(line: tuple[str, ...]) -> None:
    first, second, *said = line
    for wanted, words in zip(["[0>1]", "[1>0]", "[]", ""], said, strict=True):
        for word in words.split(", "):
            row = {"prompt": "q", first: "x", second: "y", "Preference": word}
            if not wanted:
                with pytest.raises(BadRow, match=f"'Preference' holds '{word}'.*'{first}'"):
                    read("labeled_pairs", row)
                continue
            assert [name for name, cls in FORMATS.items() if cls.matches(row)] == ["labeled_pairs"]
            assert (
                shown(read("labeled_pairs", row)[0])
                == f'u: q -> x | y {wanted} {{"Preference": "{word}"}}'
            ), word


# Rows of which it is not clear which columns are meant
UNCLEAR = json_rows("""
{"question": "q", "A": "x", "B": "y", "answer": "A"}
{"question": "q", "A": "x", "B": "y", "C": "z", "label": "A"}
{"question": "q", "query": "p", "A": "x", "B": "y", "label": "A"}
{"prompt": "q", "response_a": "x", "response_b": "y", "rating_a": 1, "rating_b": 2}
{"prompt": "q", "response_a": "x", "response_b": "y", "rating by us": 4}
{"prompt": "q", "A": "x", "B": "y", "preference strength": 1, "rating_certainty": "A", "vote margin": 1}
{"prompt": "q", "response_a": "x", "response_b": "y", "least preferred": "A", "worst vote": "B", "not better": "A"}
{"prompt": "q", "response_a": "x", "response_b": "y", "preferred because": "it says more, and better"}
{"prompt": "q", "model_a": "x", "model_b": "y", "label": "A"}
{"prompt": "q", "answer_1": "x", "answer_3": "y", "label": 1}
""")


@pytest.mark.parametrize("row", UNCLEAR)
def test_columns_that_may_be_something_else_are_no_labeled_pairs(row: dict[str, object]) -> None:
    assert not FORMATS["labeled_pairs"].matches(row)


def test_alpaca_evals_columns_alone_do_not_say_what_0_means() -> None:
    """There it is a tie; sets that count from 0 mean the first answer."""
    row = {"instruction": "q", "output_1": "a", "output_2": "b", "preference": 0}
    assert not PAIRS["AlpacaEval"].fits(row)
    assert PAIRS["AlpacaEval"].fits({**row, "generator_1": "x", "generator_2": "y"})


def test_a_tree_holds_a_ranking_for_every_prompt() -> None:
    check(r"""
oasst {"message_tree_id": "t", "prompt": {"role": "prompter", "text": "q", "replies": [
    {"role": "assistant", "text": "worse", "rank": 1},
    {"role": "assistant", "text": "best", "rank": 0, "replies": [
    {"role": "prompter", "text": "r", "replies": [{"role": "assistant", "text": "only"}]},
    {"role": "prompter", "text": "s", "replies": []}]},
    {"role": "assistant", "text": "gone", "rank": 2, "deleted": true}]}}
  u: q -> worse (rank 1.0) | best (rank 0.0) [1>0] {"message_tree_id": "t"}
  u: q / a: best / u: r -> only [] {"message_tree_id": "t"}

oasst {"prompt": {"role": "prompter", "text": "q", "replies": []}}
  ! no prompt of the tree has a reply

oasst {"prompt": {"role": "prompter", "text": "q", "review_result": false,
    "replies": [{"role": "assistant", "text": "a"}]}}
  ! failed the review

oasst {"prompt": {"role": "someone", "text": "q", "replies": [{"role": "assistant", "text": "a"}]}}
  ! unknown role 'someone'

oasst {"prompt": {"role": "prompter", "text": 5, "replies": [{"role": "assistant", "text": "a"}]}}
  ! must have text

oasst {"prompt": {"role": "prompter", "text": "q", "replies": "a"}}
  ! must be a list of messages
""")


TREE = """{"prompt": {"role": "prompter", "text": "q", "replies": [
    {"role": "assistant", "text": "worse", "rank": 1, "replies": [{"role": "prompter", "text": "why"}]},
    {"role": "assistant", "text": "gone", "rank": -1, "deleted": true},
    {"role": "assistant", "text": "best", "rank": 0, "replies": [
    {"role": "prompter", "text": "r", "rank": 1, "replies": [{"role": "assistant", "text": "late"}]},
    {"role": "prompter", "text": "s", "rank": 0, "replies": [
    {"role": "assistant", "text": "new"}, {"role": "assistant", "text": "first", "rank": 0}]}]}]}}"""


def test_a_tree_holds_conversations() -> None:
    check(f"""
oasst_paths (oasst) {TREE}
  u: q -> a: best / u: s / a: first
with every: true
oasst_paths (oasst) {TREE}
  u: q -> a: best / u: s / a: first
  u: q -> a: best {{"train": false}} / u: s / a: new
  u: q -> a: best {{"train": false}} / u: r / a: late
  u: q -> worse

oasst_paths {{"prompt": {{"role": "prompter", "text": "q", "replies": []}}}}
  ! no prompt of the tree has a reply
""")


@pytest.mark.silent_bug(
    "data: contradicting columns",
    "A score of 85 lies on a scale of 10.",
    "Such rows are left out, and counted.",
    "OpenBMB/UltraFeedback#8",
)
def test_rows_that_have_no_answer_are_left_out() -> None:
    check(r"""
arc {"question": "Which?", "choices": {"text": ["tv", "airplane"], "label": ["1", "2"]}, "answerKey": ""}
winogrande {"sentence": "Ann _ .", "option1": "a", "option2": "b", "answer": ""}
drop {"passage": "Rain.", "question": "Who?", "answers_spans": {"spans": []}}
mnli () {"premise": "Rain.", "hypothesis": "It is wet. ", "label": -1}
  - is empty or false

ultrafeedback {"instruction": "q", "completions": []}
ultrafeedback {"instruction": "q", "completions":
    [{"response": "a", "overall_score": 85.0}, {"response": "b", "overall_score": 1.0}]}
ultrafeedback {"instruction": "q", "completions":
    [{"response": "a", "overall_score": 10, "fine-grained_score": 1.0}, {"response": "b", "overall_score": 1.0}]}
ultrafeedback {"instruction": "q", "completions": [{"response": "a", "overall_score": 1.0},
    {"response": "b", "overall_score": 10, "annotations": {"x": {"Rating": "1"}, "y": {"Rating": "N/A"}}}]}
  - is empty or false

prm800k {"question": {"problem": "q", "ground_truth_answer": "200", "pre_generated_steps": ["I."]},
    "label": {"steps": [], "finish_reason": "give_up"}}
prm800k {"question": {"problem": "q", "ground_truth_answer": "1"}, "label": {"finish_reason": "solution"}}
  - is empty or false
""")


def test_labels_that_a_data_set_does_not_have_are_bad_rows() -> None:
    check(r"""
arc {"question": "Which?", "choices": {"text": ["tv", "airplane"], "label": ["1", "2"]}, "answerKey": "A"}
  ! arc.

race {"article": "Rain.", "answer": "C", "question": "It is _ .", "options": ["wet", "dry"]}
  ! race.

winogrande {"sentence": "Ann _ .", "option1": "a", "option2": "b", "answer": "3"}
  ! winogrande.

mnli {"premise": "Rain.", "hypothesis": "It is wet. ", "label": 3}
  ! mnli.

boolq {"question": "is rain wet", "answer": 2, "passage": "Rain."}
  ! boolq.

coqa {"story": "A kitten.", "questions": ["What?"], "answers": {"input_text": ["white", "in a barn"]}}
  ! coqa.

helpsteer3 {"context": <u: q>, "response1": "b", "response2": "c", "overall_preference": 4}
  ! helpsteer3.
""")


OTHERS = json_rows("""
{"question": "Why?", "label": 1}
{"question": "q", "answer": "no more than it makes", "passage": "Rain."}
{"question": "q", "choices": "red or blue", "answerKey": ""}
{"passage": "Rain.", "question": "Who?", "answers_spans": "Lions"}
""")


@pytest.mark.parametrize("row", OTHERS)
def test_columns_with_these_names_may_hold_something_else(row: dict[str, object]) -> None:
    assert not [name for name, cls in FORMATS.items() if cls.matches(row)]
