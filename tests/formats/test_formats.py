"""Each format: what it reads, what it refuses, and that no row is claimed by two of them.

`tests/formats/reading.py` says how a table is read.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from alignkit import BadRow, Format
from alignkit.data.group import resolved_pairs
from alignkit_plugins.formats import text
from alignkit_plugins.formats.columns import ColumnFormat
from alignkit_plugins.formats.turns import read_message
from tests.formats.reading import FORMATS, check, read
from tests.rows import json_rows


@pytest.mark.parametrize("row", [None, 3, True, [], {}, {"x": 1}, {"prompt": None}, [1, 2]])
def test_other_rows_are_claimed_by_none_and_refused_by_all(row: Any) -> None:
    for name, cls in FORMATS.items():
        assert not cls.matches(row)
        if name != "template":
            with pytest.raises(BadRow):
                cls().read(row)


def test_transcripts_of_hh() -> None:
    check(r"""
hh_rlhf "\n\nHuman: q\n\nAssistant: a"
hh_rlhf (text) {"text": "\n\nHuman: q\n\nAssistant: a"}
  u: q -> a

hh_rlhf {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b "}
  u: q -> a | b [0>1]

hh_rlhf {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant:"}
  u: q -> a | "" [0>1]

hh_rlhf {"chosen": "\n\nHuman: q\n\nAssistant:", "rejected": "\n\nHuman: q\n\nAssistant: a", "x": 1}
  u: q -> "" | a [0>1] {"x": 1}

hh_rlhf "\n\nHuman: q\n\nmore\n\nAssistant: a\n\nHuman: r\n\nAssistant: b"
  u: q\n\nmore -> a: a / u: r / a: b

hh_rlhf "\n\nAssistant: hello\n\nHuman: q\n\nAssistant: a"
  a: hello / u: q -> a

hh_rlhf "\n\nHuman: says Assistant: so?\nHuman: me\n\nAssistant: Human: you do  Human: b"
  u: says Assistant: so?\nHuman: me -> Human: you do  Human: b

hh_rlhf "\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant: d\n\nHuman: e\n\nAssistant: f"
  u: a\n\nb -> a: c\n\nd / u: e / a: f

hh_rlhf {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: r\n\nAssistant: a"}
hh_rlhf {"chosen": "\n\nHuman: q\n\nAssistant: x\n\nAssistant: a",
    "rejected": "\n\nHuman: q\n\nAssistant: b"}
  ! differ before their last turn

hh_rlhf {"chosen": "\n\nHuman: q\n\nHuman: a", "rejected": "\n\nHuman: q\n\nHuman: b"}
  ! does not end with an assistant turn

hh_rlhf {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: a "}
  ! are the same

hh_rlhf {"chosen": "\n\nHuman: q\n\nAssistant:", "rejected": "\n\nHuman: q\n\nAssistant: "}
  ! both responses are empty

hh_rlhf {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}
  ! no prompt

hh_rlhf {"chosen": "\n\nHuman:\n\nAssistant: a", "rejected": "\n\nHuman:\n\nAssistant: b"}
  ! prompt is empty

hh_rlhf {"chosen": "hello Human: q", "rejected": "hello"}
  ! starts with 'Human:'

hh_rlhf {"chosen": "\n\nHuman: q\n\nAssistant: a"}
  ! 'rejected' is missing

hh_rlhf {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": 4}
  ! must be text, not a number

hh_rlhf "\n\nHuman: q"
  ! no assistant turn

hh_rlhf "\n\nHuman: q\n\nAssistant:"
  ! response is empty

hh_rlhf "\n\nHuman: q\n\nAssistant: a\n\nHuman: r"
  ! must be an assistant turn
""")


def test_preferences() -> None:
    check(r"""
preference {"prompt": "q", "chosen": "a", "rejected": "b"}
preference {"prompt": <u: q>, "chosen": <a: a>, "rejected": <a: b>}
preference {"prompt": <u: q>, "chosen": <u: q / a: a>, "rejected": <u: q / a: b>}
preference {"prompt": "q", "chosen": <u: q / a: a>, "rejected": <u: q / a: b>}
preference {"chosen": <u: q / a: a>, "rejected": <u: q / a: b>}
preference {"chosen": <u: q / a: a>, "rejected": <u: q / a: b>, "prompt": null}
preference {"prompt": "[{\"role\": \"user\", \"content\": \"q\"}]", "chosen": "a", "rejected": "b", "p": ""}
preference {"prompt": "q", "chosen": "a", "rejected": "b", "margin": ""}
  u: q -> a | b [0>1]

preference {"prompt": "q", "chosen": "a", "rejected": "b", "history": null, "images": [], "input": ""}
  u: q -> a | b [0>1] {"history": null, "images": [], "input": ""}

preference {"chosen": <s: s / u: q / a: ? / u: r / a: a / u: t / a: b>,
    "rejected": <s: s / u: q / a: ? / u: r / a: c>}
  s: s / u: q / a: ? / u: r -> a: a / u: t / a: b | c [0>1]

preference {"chosen": <u: q / a: a / u: r / a: b>, "rejected": <u: q / a: a / u: s / a: c>}
  u: q -> a: a / u: r / a: b | a: a / u: s / a: c [0>1]

preference {"prompt": "[1, 2]", "chosen": "[{\"a\": 1}]", "rejected": "[]"}
  u: [1, 2] -> [{\"a\": 1}] | [] [0>1]

preference {"prompt": "q", "chosen": <u: q / a: a>, "rejected": <u: q / a: b>, "system": "s"}
  s: s / u: q -> a | b [0>1]

preference {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "slightly"}
  u: q -> a | b [0>1 by slightly]

preference {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2, "p": 0.7, "n": 3}
  u: q -> a | b [0>1 by 2.0 p 0.7] {"n": 3}

preference {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "0.5"}
  u: q -> a | b [0>1 by 0.5]

preference {"prompt": "q ", "chosen": <u: q / a: a>, "rejected": <u: q / a: b>, "margin": "unsure", "p": 0}
  u: "q " -> a | b [0>1 by unsure p 0.0]

preference {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "enormous"}
  ! unless one of significantly

preference {"prompt": "q", "chosen": "a", "rejected": "b", "margin": true}
  ! must be a number

preference {"prompt": "q", "chosen": "a", "rejected": "b", "margin": -1}
  ! must not be negative

preference {"prompt": "q", "chosen": "a", "rejected": "b", "p": 1.5}
  ! between 0 and 1

preference {"prompt": "q", "chosen": "a", "rejected": "b", "p": "sure"}
  ! 'p' must be a number

preference {"prompt": "q", "chosen": "a", "rejected": null}
  ! 'rejected' is missing or null

preference {"prompt": "q", "chosen": "b", "rejected": "b "}
preference {"prompt": "q", "chosen": "caf\u00e9", "rejected": "cafe\u0301"}
preference {"prompt": "q", "chosen": <a: a b>, "rejected": "a\u200b\u00a0b\ufeff "}
preference {"prompt": "q", "chosen": <a: it’s / u: r / a: b>, "rejected": <a: it's / u: r / a: b >}
rankings {"prompt": "q", "responses": ["a", "a", "b"], "ranks": [1, 3, 2]}
rankings {"prompt": "q", "responses": ["a\u200b", "b", "a"], "scores": [1, 1, 2]}
  ! are the same, or differ only in how they are typed

preference {"prompt": "q", "chosen": "", "rejected": " "}
  ! both responses are empty

preference {"prompt": "q", "chosen": true, "rejected": "b"}
  ! not true or false

preference {"prompt": "", "chosen": "a", "rejected": "b"}
preference {"prompt": [], "chosen": "a", "rejected": "b"}
  ! there is no prompt

preference {"prompt": [{"role": "judge", "content": "x"}], "chosen": "a", "rejected": "b"}
  ! unknown role 'judge'

preference {"prompt": "q", "chosen": <u: r>, "rejected": "b"}
  ! last turn must be an assistant turn

preference {"prompt": "q", "chosen": <u: r / a: a>, "rejected": "b"}
  ! must be an assistant turn, not a user turn

preference {"prompt": null, "chosen": "I like cats.", "rejected": "I like dogs."}
  ! name the prompt's column

preference {"prompt": null, "chosen": <u: x / a: a>, "rejected": <u: y / a: a>}
  ! begin with different turns
""")


def test_prompts_and_demonstrations() -> None:
    check(r"""
prompt_only {"prompt": "q"}
prompt_only {"prompt": <u: q>}
prompt_only "q"
  u: q ->

prompt_only {"prompt": <s: s / u: q>, "safety": true, "answer": 7}
prompt_only {"prompt": "q", "system": "s", "safety": true, "answer": 7}
prompt_only {"prompt": "q", "system_message": "s", "safety": true, "answer": 7}
  s: s / u: q -> {"safety": true, "answer": 7}

prompt_completion {"prompt": "q", "completion": "a"}
  u: q -> a

prompt_completion {"prompt": "{\"role\": \"admin\", \"content\": \"x\"}", "completion": "{'a': 1}"}
  u: {\"role\": \"admin\", \"content\": \"x\"} -> {'a': 1}

prompt_completion {"prompt": <u: q>, "completion": <a: a>, "label": false}
prompt_completion {"prompt": "q", "completion": "a", "label": "False"}
  u: q -> a (label false)

prompt_completion {"prompt": <s: s / u: q>, "completion": <a: a / u: r / a: b>, "label": true}
  s: s / u: q / a: a / u: r -> b (label true)

prompt_completion {"prompt": "q", "completion": "a", "score": 0.5, "n": 1}
  u: q -> a (scores {"reward": 0.5}) {"n": 1}

prompt_completion {"prompt": "q", "completion": "a", "system_prompt": "s"}
prompt_completion {"prompt": "q", "response": "a", "system": "s"}
prompt_completion {"prompt": "q", "completion": "a", "system": "", "system_prompt": "s"}
  s: s / u: q -> a

prompt_completion {"prompt": "q", "completion": "a", "system": "s", "system_prompt": "r"}
  ! 2 different system messages

prompt_completion {"prompt": "q", "completion": "a", "label": 1}
prompt_completion {"prompt": "q", "completion": "a", "label": "safe"}
prompt_completion {"prompt": "q", "completion": "a", "label": "0"}
  ! column 'label' must be true or false

prompt_completion {"prompt": "q", "completion": "a", "label": 0}
alpaca {"instruction": "q", "output": "a", "label": "greeting"}
messages {"messages": <u: q / a: a>, "label": "greeting"}
  ! write true for a good response, or rename a column of another meaning: `columns: {other_label: label}`

messages {"messages": <u: q / a: a>, "kto_tag": 1}
  ! `columns: {other_kto_tag: kto_tag}`

prompt_completion {"prompt": "q", "response": ["a", "b"]}
  ! `data: {template: {path: FILE, prompt: "{{ prompt }}", chosen: "{{ response[0] }}", rejected: "{{ response[1] }}"}}`

dolly {"instruction": "q", "response": ["a", "b"]}
  ! chosen: "{{ response[0] }}", rejected: "{{ response[1] }}"}}`

alpaca {"instruction": "q", "input": "r", "output": ["a", "b"]}
  ! prompt: "{{ instruction }}\n\n{{ input | default('', true) }}", chosen: "{{ output[0] }}"

alpaca {"instruction": "q", "output": ["a", "b", "c"]}
  ! column 'output' must be text, not a list

prompt_completion {"prompt": "q", "completion": "a", "score": "good"}
  ! column 'score' must be a number

prompt_completion {"prompt": "q", "completion": "a", "score": "-1e99"}
preference {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1e16}
rankings {"prompt": "q", "responses": ["a", "b"], "scores": [1e308, -1e308]}
  ! which is too large

prompt_completion {"prompt": "q", "completion": "\n"}
  ! response is empty
""")


def test_messages() -> None:
    check(r"""
messages {"messages": <u: q / a: a>}
messages {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
messages {"messages": [{"role": "user", "from": "human", "content": "q"}, {"from": "gpt", "value": "a"}]}
messages {"messages": "[{\"role\": \"user\", \"content\": \"q\"}, {\"from\": \"gpt\", \"value\": \"a\"}]"}
messages {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "tool_calls": []}]}
  u: q -> a

messages {"prompt": "q", "prompt_id": 1, "messages": <u: q / a: a>, "lang": "en"}
  u: q -> a {"prompt": "q", "prompt_id": 1, "lang": "en"}

messages {"messages": <s: s / u: q / a: a / u: r / a: b>}
  s: s / u: q -> a: a / u: r / a: b

messages {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a",
    "reasoning_content": "\u0000"}]}
  ! contains a NUL character

messages {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "train": false},
    {"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}]}
  u: q -> a: a {"train": false} / u: r / a: b

messages {"messages": <s: s / u: q / a: a / u: r / a: b>, "label": false}
messages {"messages": <s: s / u: q / a: a / u: r / a: b>, "kto_tag": false}
  s: s / u: q / a: a / u: r -> b (label false)

messages {"messages": <u: q / a: a / a: b>, "label": true}
  u: q -> a: a / a: b (label true)

messages {"messages": <s: s / u: q / a: a / u: r>}
  s: s / u: q / a: a / u: r ->

messages {"messages": <s: s / a: hello / u: q / a: a / u: r / a: b>}
  s: s / a: hello / u: q -> a: a / u: r / a: b

messages {"messages": <u: q / a: a>, "system": "s"}
messages {"messages": <u: q / a: a>, "system_message": "s"}
messages {"conversations": <s: s / u: q / a: a>, "system": " s "}
  s: s / u: q -> a

messages {"messages": <s: s / u: q / a: a>, "system": "r"}
  ! 2 different system messages

messages {"messages": [{"role": "user", "from": "gpt", "content": "q"}]}
  ! role and from contradict each other

messages {"messages": [{"from": "human", "value": "q"}, {"from": "narrator", "value": "x"}]}
  ! unknown role 'narrator'; expected one of human

messages {"messages": <s: q>}
messages {"messages": []}
  ! no assistant turn

messages {"messages": <u: q / a: a / s: r>}
messages {"messages": <u: q / a: a / u: r>, "label": true}
  ! last turn must be an assistant turn

messages {"messages": <a: a>}
  ! no prompt

messages {"messages": <u: q / a: >}
  ! the response is empty

messages {"messages": <u: q / a:  / u: r / a:   >}
messages {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "train": false}]}
messages {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]}
  ! no assistant turn can be learned

messages {"messages": "hello"}
  ! must be a list of messages, not text
""")


@pytest.mark.silent_bug(
    "data: columns",
    "A list of messages that pandas wrote into a table becomes the user's words.",
    "It is read as messages.",
)
def test_messages_in_a_cell_are_messages_however_they_are_written() -> None:
    """pandas writes a list into a table as Python prints it, which is no JSON; numpy does so
    without commas.
    """
    check(r"""
messages {"messages": "[{'role': 'user', 'content': 'what\\'s \"up\"?'}, {'role': 'assistant', 'content': 'a'}]"}
prompt_completion {"prompt": "[{'role': 'user', 'content': 'what\\'s \"up\"?'}]",
    "completion": "{'role': 'assistant', 'content': 'a'}"}
  u: what's \"up\"? -> a

messages {"messages": "[{'role': 'user', 'content': 'q'}\n {'role': 'assistant', 'content': 'a'}]"}
prompt_completion {"prompt": "[{'role': 'user', 'content': 'q'}\n {'role': 'assistant', 'content': 'a'}]",
    "completion": "a"}
  ! looks like messages but is not JSON
""")


@pytest.mark.silent_bug(
    "data: ratings",
    "The ratings of a pair are equal, or contradict it.",
    "Equal ones make no pair, and contradicting ones are refused.",
    "OpenBMB/UltraFeedback#11",
)
def test_equal_ratings_make_no_pair_and_contradicting_ones_are_refused() -> None:
    check(r"""
preference {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 0.0, "score_rejected": 0}
  u: q -> a | b [] {"score_chosen": 0.0, "score_rejected": 0}

preference {"prompt": "q", "chosen": "a", "rejected": "b", "winner": "tie"}
  u: q -> a | b [] {"winner": "tie"}

preference {"prompt": "q", "chosen": "a", "rejected": "b", "verdict": "TIE (both bad)"}
  u: q -> a | b [] {"verdict": "TIE (both bad)"}

preference {"prompt": "q", "chosen": "a", "rejected": "b", "status": "both_bad"}
  u: q -> a | b [] {"status": "both_bad"}

preference {"prompt": "q", "chosen": "a", "rejected": "b", "rating": [8, 8.0]}
  u: q -> a | b [] {"rating": [8, 8.0]}

preference {"prompt": "q", "chosen": "a", "rejected": "b", "rating": [5, 8], "status": "swapped"}
  u: q -> a | b [0>1] {"rating": [5, 8], "status": "swapped"}

hh_rlhf {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b", "label": "tie"}
  u: q -> a | b [] {"label": "tie"}

preference {"prompt": "q", "chosen": "a", "rejected": "b", "chosen-rating": "4.5", "rejected-rating": "4"}
  u: q -> a | b [0>1] {"chosen-rating": "4.5", "rejected-rating": "4"}

preference {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 3.5, "score_rejected": 4}
preference {"prompt": "q", "chosen": "a", "rejected": "b", "chosen-rating": "3.5", "rejected-rating": "4"}
preference {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_score": 3.5, "rejected_score": 4}
preference {"prompt": "q", "chosen": "a", "rejected": "b", "chosenScore": 1, "rejectedScore": 5}
preference {"prompt": "q", "chosen": "a", "rejected": "b", "AVGRatingChosen": 1, "AVGRatingRejected": 5}
  ! contradict that the chosen answer is better
""")


@pytest.mark.silent_bug(
    "data: ratings",
    "Ranks count from the worst, or a label names the answer with the lower score, and every pair "
    "is learned inverted.",
    "Two columns that contradict each other are refused.",
    "argilla-io/argilla#5712",
)
def test_columns_that_contradict_each_other_are_refused() -> None:
    check(r"""
rankings {"prompt": "q", "responses": [{"text": "a", "rank": 1, "score": 1}, {"text": "b", "rank": 2, "score": 5}]}
rankings {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2], "scores": [1, 5]}
rankings {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [0, 2, 1], "scores": [0, -1, 3]}
rankings {"prompt": "q", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}], "scores": [1, 5]}
rankings {"prompt": "q", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}], "ranks": [2, 1]}
preference {"prompt": "q", "chosen": "a", "rejected": "b", "p": 0.1, "score_chosen": 4, "score_rejected": 3}
preference {"prompt": "q", "chosen": "a", "rejected": "b", "reward_chosen": 0, "reward_rejected": "0.5"}
preference {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_avg_rating": 1, "rejected_avg_rating": 2}
preference {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_rank": 2, "rejected_rank": 1}
preference {"prompt": "q", "chosen": "a", "rejected": "b", "better": "rejected"}
hh_rlhf {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b",
    "score_chosen": 1, "score_rejected": 2}
labeled_pairs {"input": "q", "output_1": "a", "output_2": "b", "label": 1, "score_1": 1, "score_2": 2}
labeled_pairs {"input": "q", "output_1": "a", "output_2": "b", "label": 2, "votes1": 7, "votes2": 2}
labeled_pairs {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 1, "score_B": 2}
labeled_pairs {"prompt": "q", "completion_a": "a", "completion_b": "b", "preference": "a-is-better", "rating_a": 1,
    "rating_b": 2}
prompt_completion {"prompt": "q", "completion": "a", "label": true, "kto_tag": false}
prompt_completion {"prompt": "q", "completion": "a", "response": "b"}
messages {"messages": <u: q / a: a>, "conversations": <u: q / a: b>}
messages {"messages": [{"role": "user", "content": "q", "value": "r"}, {"role": "assistant", "content": "a"}]}
messages {"messages": [{"role": "user", "content": "q"},
    {"role": "assistant", "content": "a", "thinking": "b", "reasoning": "c"}]}
  ! contradict
""")


def test_columns_that_agree_are_read() -> None:
    """So are those that say the same, or another thing."""
    check(r"""
rankings {"prompt": "q", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}], "scores": [4, 4]}
  u: q -> a (rank 1.0, scores {"reward": 4.0}) | b (rank 2.0, scores {"reward": 4.0})

preference {"prompt": "q", "chosen": "a", "rejected": "b", "p": 0.2, "score_chosen": 3, "score_rejected": 4}
  u: q -> a | b [0>1 p 0.2] {"score_chosen": 3, "score_rejected": 4}

preference {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_rating": "low", "rejected_rating": "high"}
  u: q -> a | b [0>1] {"chosen_rating": "low", "rejected_rating": "high"}

preference {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_verbosity_score": 1, "rejected_verbosity_score": 2}
  u: q -> a | b [0>1] {"chosen_verbosity_score": 1, "rejected_verbosity_score": 2}

preference {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": null, "score_rejected": null}
  u: q -> a | b [0>1] {"score_chosen": null, "score_rejected": null}

prompt_completion {"prompt": "q", "completion": "a", "response": "a", "label": null}
  u: q -> a {"response": "a"}

messages {"messages": [{"role": "user", "content": "q", "value": "q"},
    {"role": "assistant", "content": "a", "weight": 1}]}
  u: q -> a
""")


def test_instructions() -> None:
    check(r"""
alpaca {"instruction": "Add {{name}}.", "input": " 1 and 2\n", "output": "3", "system": "s"}
  s: s / u: Add {{name}}.\n\n1 and 2 -> 3

alpaca {"instruction": "i", "output": "o", "input": null}
alpaca {"instruction": "i", "output": "o", "input": ""}
  u: i -> o

alpaca {"instruction": "i", "output": "o", "text": "all of it"}
  u: i -> o {"text": "all of it"}

preference {"prompt": "p", "instruction": "i", "output": "o", "chosen": "a", "rejected": "b"}
  u: p -> a | b [0>1] {"instruction": "i", "output": "o"}

messages {"instruction": "i", "output": "o", "messages": [{"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"}]}
  u: q -> a {"instruction": "i", "output": "o"}

dolly {"instruction": "i", "context": "c", "response": "r", "category": "qa"}
dolly {"instruction": "i", "input": "c", "response": "r", "category": "qa"}
  u: i\n\nc -> r {"category": "qa"}

self_instruct {"instruction": "Add.", "instances": [{"input": "1 2", "output": "3"},
    {"input": "", "output": "0"}], "id": 7}
  u: Add.\n\n1 2 -> 3 {"id": 7}
  u: Add. -> 0 {"id": 7}

alpaca {"instruction": "i", "input": "", "output": ""}
  ! response is empty

alpaca {"instruction": "i", "input": "", "output": true}
  ! not true or false

alpaca {"instruction": "", "input": "", "output": "o"}
  ! empty

dolly {"instruction": "i", "input": "c", "context": "more", "response": "r"}
  ! 'input' and 'context' both hold text

self_instruct {"instruction": "i", "instances": []}
  ! not empty

self_instruct {"instruction": "i", "instances": ["x"]}
  ! must be an object with columns
""")


@pytest.mark.silent_bug(
    "data: columns",
    "`<noinput>` and `N/A`, which Alpaca's generator wrote for an empty input, are learned as a "
    "part of the prompt.",
    "They are no input.",
)
def test_what_alpaca_wrote_for_no_input_is_none() -> None:
    check(r"""
alpaca {"instruction": "i", "input": "<noinput>", "output": "n/a"}
alpaca {"instruction": "i", "input": "No input", "output": "n/a"}
alpaca {"instruction": "i", "input": "N/A", "output": "n/a"}
alpaca {"instruction": "i", "input": "no input.", "output": "n/a"}
  u: i -> n/a
""")


@pytest.mark.silent_bug(
    "data: columns",
    "A file with a row for each turn is learned as texts without a prompt, questions included.",
    "No format takes a turn for a document.",
)
def test_a_turn_is_no_document() -> None:
    check(r"""
text () {"message_id": "1", "parent_id": null, "text": "Hi", "role": "prompter"}
  -> Hi {"message_id": "1", "parent_id": null, "role": "prompter"}
""")


@pytest.mark.silent_bug(
    "data: columns",
    "Earlier turns in `history` are left out.",
    "They come before the instruction.",
    "hiyouga/LlamaFactory#4683",
)
def test_alpaca_history_comes_before_the_instruction() -> None:
    check(r"""
alpaca {"instruction": "r", "output": "b", "system": "s", "history": [["q", "a"]]}
  s: s / u: q -> a: a / u: r / a: b

alpaca {"instruction": "r", "output": "b", "system": "s", "history": [["q", "a"]], "label": false}
alpaca {"instruction": "r", "output": "b", "system": "s", "history": [["q", "a"]], "kto_tag": false}
  s: s / u: q / a: a / u: r -> b (label false)

alpaca {"instruction": "r", "output": "b", "history": [["q"]]}
alpaca {"instruction": "r", "output": "b", "history": "q"}
  ! list of pairs
""")


def test_rankings() -> None:
    check(r"""
rankings {"prompt": "q", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]}
  u: q -> a (rank 1.0) | b (rank 2.0)

rankings {"prompt": "q", "responses": ["a", "a", "b"], "ranks": [1, 1, 2]}
  u: q -> a (rank 1.0) | a (rank 1.0) | b (rank 2.0)

rankings {"prompt": <u: q>, "responses": ["a", "b", ""], "ranks": [2, 1, 2], "topic": "t"}
  u: q -> a (rank 2.0) | b (rank 1.0) | "" (rank 2.0) {"topic": "t"}

rankings {"prompt": "q", "responses": ["a", "b", "c"], "scores": ["3", 7, 3]}
rankings {"prompt": "q", "responses": [{"text": "a", "score": "3"}, {"text": "b", "score": 7},
    {"text": "c", "score": 3}]}
  u: q -> a (scores {"reward": 3.0}) | b (scores {"reward": 7.0}) | c (scores {"reward": 3.0})
    [1>0 by 4.0, 1>2 by 4.0]

rankings {"prompt": "q", "responses": [{"text": "a", "rank": 2, "score": 1}, {"text": "b", "rank": 1, "score": 9}]}
  u: q -> a (rank 2.0, scores {"reward": 1.0}) | b (rank 1.0, scores {"reward": 9.0})

rankings {"prompt": "q", "responses": ["a"], "ranks": [1]}
  ! 2 to 64 responses

rankings {"prompt": "q", "responses": "a", "ranks": [1, 2]}
  ! responses must be a list

rankings {"prompt": "q", "responses": ["a", "b"], "ranks": [1]}
  ! ranks must be a list of 2

rankings {"prompt": "q", "responses": ["a", "b"], "scores": [1]}
  ! scores must be a list of 2

rankings {"prompt": "q", "responses": ["a", "b"], "ranks": [1, null]}
  ! responses without a rank, counted from 0: 1

rankings {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 2, null]}
  ! 1 of 3 responses have no score

rankings {"prompt": "q", "responses": ["a", "b"], "ranks": [1, true]}
  ! must be a number

rankings {"prompt": "q", "responses": ["a", "b"], "ranks": null}
  ! neither ranks nor scores nor pairs

rankings {"prompt": "q", "responses": ["", " "], "ranks": [1, 2]}
  ! all responses are empty

rankings {"prompt": "q", "responses": ["a", 5], "ranks": [1, 2]}
  ! must be an object with columns

rankings {"prompt": "q", "responses": ["a", {"rank": 2}], "ranks": [1, 2]}
  ! 'text' is missing

rankings {"prompt": " ", "responses": ["a", "b"], "ranks": [1, 2]}
  ! empty
""")
    (tied,) = read("rankings", {"prompt": "q", "responses": ["a", "b"], "ranks": [3, 3]})
    assert resolved_pairs(tied) == ()
    with pytest.raises(BadRow, match="2 to 64 responses"):
        read("rankings", {"prompt": "q", "responses": ["a"] * 65, "ranks": [1] * 65})


def test_answers_that_nobody_has_compared() -> None:
    check(r"""
unlabeled {"prompt": "q", "response_a": "a", "response_b": "b"}
unlabeled {"question": "q", "answer 1": "a", "answer 2": "b"}
unlabeled {"instruction": "q", "output_1": "a", "output_2": "b"}
unlabeled {"prompt": "q", "responses": ["a", "b"]}
  u: q -> a | b []

unlabeled {"prompt": "q", "answer 1": "a", "answer 2": "b", "answer 3": "c", "answers": ["right"], "id": 7}
  u: q -> a | b | c [] {"answers": ["right"], "id": 7}

labeled_pairs {"prompt": "q", "response_a": "a", "response_b": "", "label": null}
  u: q -> a | "" [] {"label": null}

unlabeled {"prompt": "q", "model_a": "x", "completionA": "a", "completionB": "b"}
  u: q -> a | b [] {"model_a": "x"}

unlabeled {"prompt": "q"}
  ! two answers are required

unlabeled {"response_a": "a", "response_b": "b"}
  ! a prompt is required
""")


# The answers of "Capital of France?" are for exact_match
NOT_UNLABELED = json_rows("""
{"prompt": "q", "response_a": "a", "response_b": "b", "preference": "a"}
{"prompt": "q", "answers": ["a", "b"], "scores": [1.0, 2.0]}
{"prompt": "q", "response": "a"}
{"prompt": "q", "response_1": "a"}
{"prompt": "q", "responses": ["a"]}
{"prompt": "Capital of France?", "answers": ["Paris", "paris"]}
{"prompt": "q", "responses": [[1], 2]}
"text"
""")


@pytest.mark.parametrize("row", NOT_UNLABELED)
def test_rows_with_a_label_and_single_answers_are_not_unlabeled(row: Any) -> None:
    assert not FORMATS["unlabeled"].matches(row)


STORY = ["one", "still one", "", "", "two", " ", "three is longer", "and has two lines"]


@pytest.mark.parametrize(
    ("most", "paragraphs", "documents"),
    [
        (99, True, [(1, "one\nstill one"), (5, "two"), (7, "three is longer\nand has two lines")]),
        (99, False, [(1, "one\nstill one\n\ntwo\n\nthree is longer\nand has two lines")]),
        (33, False, [(1, "one\nstill one\n\ntwo"), (7, "three is longer\nand has two lines")]),
        # No longer than that, but for a line up to twice as long
        (17, False, [(1, "one\nstill one"), (5, "two"), (7, STORY[6]), (8, STORY[7])]),
        (12, True, [(1, "one"), (2, "still one"), (5, "two"), (7, STORY[6]), (8, STORY[7])]),
    ],
)
def test_text_files_are_cut_at_blank_lines(
    most: int, paragraphs: bool, documents: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "MAX_CHARS", most)
    cls = FORMATS["text"]
    reader = cls(cls.Options(paragraphs=paragraphs))
    assert list(reader.rows_of_text(enumerate(STORY, 1))) == documents


def test_a_line_that_is_too_long_is_cut_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_CHARS", 40)
    lines = [(4, "my-word " * 30 + "end"), (5, ""), (6, "next")]
    found = list(FORMATS["text"]().rows_of_text(lines))
    assert max(len(text) for _, text in found) <= 40 and found[0][0] == 4
    assert " ".join(text for _, text in found).split() == [*["my-word"] * 30, "end", "next"]


def test_texts_dialogues_and_groups() -> None:
    check(r"""
text {"text": " a ", "url": "u"}
  -> " a " {"url": "u"}

text (prompt_only) "a"
  -> a

text {"text": "  "}
  ! response is empty

dialogues (text) {"text": "Tale\n\nAnn: q\n\nBen: a\n\nAnn: r\n\nBen: b\n\nAnn: s\n\nBen: c\n\nEnd", "url": "u"}
dialogues (text) {"text": "Ann: q\n\nBen: a\n\nAnn: r\n\nBen: b\n\nAnn: s\n\nBen: c\n\nAnn: bye", "url": "u"}
  u: q -> a: a / u: r / a: b / u: s / a: c {"url": "u", "speakers": ["Ann: ", "Ben: "]}

dialogues "Ann: q\n\nBen: a\n\nAnn: r\n\nBen: b\n\nAnn: s"
  ! holds 0 dialogues

dialogues "A: q\n\nB: a\n\nA: r\n\nB: b\n\nA: s\n\nB: c\n\nE\n\nA: q\n\nB: a\n\nA: r\n\nB: b\n\nA: s\n\nB: c"
  ! holds 2 dialogues

dialogues "Ann: \n\nBen: a\n\nAnn: r\n\nBen: b\n\nAnn: s\n\nBen: c"
  ! prompt is empty

dialogues {"text": null}
  ! 'text' is missing or null

groups {"alignkit": 1, "prompt": <u: q>, "responses": [{"tokens": [1], "logprobs": [-0.5], "truncated": true}, {}]}
  u: q -> "" (tokens [1], logprobs [-0.5], truncated true) | ""

groups {"alignkit": 9}
  ! version
""")


def test_a_column_with_a_meaning_elsewhere_is_never_lost() -> None:
    check(r"""
preference {"prompt": "q", "chosen": "a", "rejected": "b", "history": [["u", "v"]]}
prompt_completion {"prompt": "q", "completion": "a", "history": [["u", "v"]]}
  ! column 'history' means something

preference {"prompt": "q", "chosen": "a", "rejected": "b", "images": ["a.png"]}
  ! column 'images' means

messages {"messages": <u: q / a: a>, "image": "a.png"}
  ! column 'image' means

prompt_completion {"prompt": "q", "completion": "a", "functions": [{"name": "f"}]}
  ! rename a column of another meaning: `columns: {other_functions:

prompt_completion {"prompt": "q", "completion": "a", "mask": [0, 1]}
  ! column 'mask' means

prompt_completion {"prompt": "q", "completion": "a", "chat_template_kwargs": {"a": false}}
  ! column 'chat_template_kwargs' means

preference {"prompt": "q", "chosen": "a", "rejected": "b", "input": "more"}
  ! column 'input' would be lost
""")


def test_a_word_problem_keeps_its_answer_for_math_verify() -> None:
    check(r"""
gsm8k () {"question": " How many? ", "answer": "2+3=<<2+3=5>>5 and <<x>>\n#### 1,005 ", "id": 3}
  u: How many? -> 2+3=5 and \n#### 1,005 {"id": 3, "answer": "1005"}

gsm8k () {"question": "q", "answer": "#### 1,450,000"}
  u: q -> #### 1,450,000 {"answer": "1450000"}

gsm8k () {"question": "q", "answer": "#### (1,2)"}
  u: q -> #### (1,2) {"answer": "(1,2)"}

gsm8k () {"question": "q", "answer": "#### $1,000.50"}
  u: q -> #### $1,000.50 {"answer": "1000.5"}

svamp {"Body": "Ann has 2 pens", "Question": "How many?", "Answer": 0.5, "Equation": "x", "ID": "1"}
  u: Ann has 2 pens. How many? -> {"Equation": "x", "ID": "1", "answer": "0.5"}

svamp {"Body": "Two.", "Question": "How many?", "Answer": "1e3"}
  u: Two. How many? -> {"answer": "1000"}

gsm8k {"question": "q", "answer": "about 5"}
gsm8k {"question": "q", "answer": "#### 5\nor so"}
gsm8k {"question": "q", "answer": "so many\n#### "}
gsm8k {"question": "q", "answer": "####"}
  ! gsm8k.answer: a solution must end with a line such as '#### 18'

svamp {"Body": "b", "Question": "q", "Answer": "many"}
  ! Answer
""")


RESULTS = yaml.safe_load("""
- [{temp: 3 °, ok: true}, '{"temp": "3 °", "ok": true}']
- [[], "[]"]
- [[{temp: 3}, {temp: 4}], '[{"temp": 3}, {"temp": 4}]']
- [3, "3"]
- [[{type: text, text: grey}], grey]
- [grey, grey]
""")


@pytest.mark.silent_bug(
    "data: results of tools",
    "A tool's result that is an object becomes Python's text of a dict in the prompt.",
    "It is read as JSON.",
    "langchain-ai/langchain#35382",
    "NousResearch/hermes-agent#48354",
)
@pytest.mark.parametrize(("result", "text"), RESULTS)
def test_results_of_tools_are_read_as_json(result: Any, text: str) -> None:
    assert read_message({"role": "tool", "content": result}, "turn")["content"] == text


@pytest.mark.silent_bug(
    "data: tools in other columns",
    "The schemas are in a column of another name, so the model learns calls of tools that its "
    "prompt does not name.",
    "Usual names are an error with the line that reads them.",
    "PrimeIntellect-ai/verifiers#1963",
)
def test_tools_in_columns_of_other_names_are_refused() -> None:
    check(r"""
prompt_only {"prompt": "q", "functions": [{"name": "f", "parameters": {}}]}
  ! as in `columns: {COLUMN: functions}`

prompt_only {"prompt": "q", "tool_defs": [{"name": "f", "parameters": {}}]}
  ! as in `columns: {COLUMN: tool_defs}`

prompt_only {"prompt": "q", "tool_schemas": [{"name": "f", "parameters": {}}]}
  ! as in `columns: {COLUMN: tool_schemas}`

prompt_only {"prompt": "q", "available_tools": [{"name": "f", "parameters": {}}]}
  ! as in `columns: {COLUMN: available_tools}`
""")
    schema = {"name": "weather", "parameters": {}}
    wanted = ({"type": "function", "function": schema},)
    assert ColumnFormat.tools({"tools": [schema]}) == wanted
    assert ColumnFormat.tools({"tools": json.dumps([schema])}) == wanted


def test_an_empty_cell_is_no_answer() -> None:
    cells = ("", "None", "FALSE", None)
    assert [Format.flag({"x": cell}, "x") for cell in cells] == [None, None, False, None]
    assert (
        Format.text({"x": ""}, "x", "absent") == "" and Format.text({}, "x", "absent") == "absent"
    )
