"""`alignkit init FILES`: the recipe fits the data, holds out examples, is valid, runs, and replaces
no file.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import Group, Response
from alignkit.cli import main
from alignkit.recipe.load import load_recipe
from alignkit.runs.fingerprint import RunData
from alignkit.runs.model_source import locate_model
from alignkit_plugins.command_line.words import data_of
from alignkit_plugins.recipe_tools import init_write
from alignkit_plugins.recipe_tools.init_write import is_number
from alignkit_plugins.rewards.exact_match import ExactMatch
from tests.rows import Said, cells, read_json, user

# Rows of a kind, one for each number n: `<n>` are words with it, so that no two rows are nearly
# equal, `<#>` is it, and `<even>` whether it is even.
KINDS = r"""
DEMO     {"instruction": "Tell me of <n>?", "output": "It is all about <n+700>."}
CHAT     {"chat": [{"from": "human", "value": "Tell me of <n>?"}, {"from": "gpt", "value": "All about <n+700>."}]}
SAID     {"chat": [{"by": "Eve", "text": "Tell me of <n>?"}, {"by": "bot", "text": "All about <n+700>."}]}
LARGE    {"instruction": "Tell me of <n>?", "output": "MUCH is all about <n+700>."}
PAIR     {"prompt": "Why is <n>?", "chosen": "For <n+800>.", "rejected": "Who can say?"}
THRICE   {"prompt": "Why is the <n/3>th?", "chosen": "For <n+800>.", "rejected": "Who can say?"}
ASKED    {"prompt": "I would like to know all of it, so why is <n>, and <n+500>?",
  "chosen": "For <n+800>.", "rejected": "Who can say?"}
TOLD     {"prompt": "Why is <n>?", "chosen": "For <n+800>, and no other.", "rejected": "Who can say?"}
CANNED   {"prompt": "Tell <n+300>?", "chosen": "For <n+800>, AND no other", "rejected": "I do not know."}
AGAIN    {"prompt": "Now I would like to know all of it, so why is <n>, and <n+500>?",
  "chosen": "For <n+800>.", "rejected": "Who can say?"}
REPLY    {"prompt": {"text": "What is <n>?", "role": "prompter", "replies": [
  {"text": "Say <n>.", "role": "assistant", "rank": 0}]}}
TREE     {"prompt": {"text": "What is <n>?", "role": "prompter", "replies": [
  {"text": "Say <n>.", "role": "assistant", "rank": 0}, {"text": "Say <n+90>.", "role": "assistant", "rank": 1},
  {"text": "Say <n+180>.", "role": "assistant", "rank": 2}]}}
LABELED  {"prompt": "How is <n>?", "completion": "As <n+900>.", "label": <even>}
SOLVED   {"question": "How many of <n>, times <#>?", "answer": "2 x <#>\n#### <#>"}
LONG     {"question": "How many of <n>, times <#>?", "answer": "COUNT<#>\n#### <#>"}
SUM      {"question": "What is <#> + 3, said <n>?", "answer": <#>}
FORMULA  {"question": "What is <#> / 7, said <n>?", "answer": "\\frac{<#>}{7}"}
HOLES    problem,solution,answer§What is it?,I count.,4§What is that?,I count,
EQUAL    {"prompt": "Hi", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 1}]}
RANKED   {"prompt": "Ho", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]}
ONE_TIE  prompt,answer A,answer B,label§One?,x,y,links§Two?,x,y,tie
TIES     prompt,answer A,answer B,label§One?,x,y,tie§Two?,x,y,tie§Three?,x,y,tie
WORKED   {"problem": "Of <n>?", "answer": "<#>", "solution": "I count <n+500>."}
PROMPT   "Talk about <n+300>."
NAMED    {"question": "Who is <n>?", "answer": "Ann <n>"}
UNRATED  {"prompt": "How is <n+300>?", "completion": "As <n+950>.", "label": null}
NONE     {"question": "What is <#> + 3, said <n+200>?", "answer": null}
COMMA    prompt,score,completion§What is it?,"4,5",A thing.
BAD      {"prompt": "hi", "completion": "no", "label": false}
TEXT     {"text": "It is."}
OPEN     {"prompt": "hi", "response_a": "ho", "response_b": "no"}
BROKEN   {"prompt"
STRANGE  {"x": 1}
FAQ      id,Frage,Antwort§1,Ist es?,Ja.
WORDS    prompt,answer A,answer B,label§One?,x,y,links§Two?,x,y,rechts§Three?,x,y,links
WIDE     Nr,Tag,Frage,alt,neu,Ann,Tom§1,1.5.,Wo ist er?,Da drüben ist er,Im Garten,links,a§2,2.5.,Wer ist da?,
  Ein Mann aus Wien,Nur der Hund,links,so§3,3.5.,Wie war es?,Es war schön,Nicht so gut,a,
ODD      Frage,a,b§Ist es?,b,c
TURN     {"messages": [{"role": "user", "content": "Number <#>?"}, {"role": "assistant", "content": "So."}]}
EMPTY    {"messages": [{"role": "user", "content": "Number <#>?"}, {"role": "assistant", "content": ""}]}
UPPER    {"messages": [{"role": "user", "content": "NUMBER  <#>?"}, {"role": "assistant", "content": "Well."}]}
TURNS    {"messages": [{"role": "user", "content": "Number <#>?"}, {"role": "assistant", "content": "So."},
  {"role": "user", "content": "And?"}, {"role": "assistant", "content": "So."}]}
"""
MUCH = " ".join(f"<n+{place * 7}>" for place in range(80))
ROWS = dict(
    line.replace("MUCH", MUCH).replace("COUNT", "Count. " * 55).replace("§", "\n").split(maxsplit=1)
    for line in KINDS.strip("\n").replace("\n  ", " ").split("\n")
)


pytestmark = pytest.mark.usefixtures("here")


def write(lines: str) -> None:
    """Add rows to files: `FILE KIND COUNT`. About 12 of 60 are held out."""
    for name, kind, count in map(str.split, lines.splitlines()):
        with Path(name).open("a", encoding="utf-8") as file:
            for number in range(int(count)):
                row = ROWS[kind].replace("<#>", str(number)).replace("<n/3>", str(number // 3))
                row = row.replace("<even>", str(number % 2 == 0).lower())
                words = re.sub(
                    r"<n\+?(\d*)>",
                    lambda at, n=number: f"the {n + int(at[1] or 0)}th of all things",
                    row,
                )
                file.write(words + "\n")


WRITTEN = r"""
d.jsonl DEMO 60
$ d.jsonl
read: d.jsonl as 60 conversations (alpaca)
held out: 21 of 60 demonstrations
answer: loss and accuracy of the next tokens of held-out demonstrations, against the base model; whether
  answers are better, people or a judge can say
stages:
  sft:
    algorithm: sft
    data: {path: d.jsonl, part: [0.35, 1]}
    validation: {path: d.jsonl, part: [0, 0.35]}
    epochs: 2
  report:
    step: evaluate
    policies: [base, sft]
    examples: {path: d.jsonl, part: [0, 0.35]}
    prompts: {path: d.jsonl, part: [0, 0.35]}
    limit: 20
    sampling: {temperature: 0.7, max_new_tokens: 32}
    kl: false

d.jsonl LARGE 400
$ d.jsonl
read: d.jsonl as 180 conversations (alpaca), of its first 180 rows
held out: 37 of 180 demonstrations
answer: loss and accuracy of the next tokens of held-out demonstrations, against the base model; whether
  answers are better, people or a judge can say
stages, of which:
  sft: {data: {limit: 180}, validation: {limit: 180}}
  report: {examples: {limit: 180}, prompts: {limit: 180}, sampling: {max_new_tokens: 128}}

a.jsonl DEMO 30
b.jsonl DEMO 30
p.jsonl PAIR 60
$ p.jsonl a.jsonl b.jsonl
read: p.jsonl as 60 conversations, 60 pairs (preference); a.jsonl as 30 conversations (alpaca); b.jsonl as 30
  conversations (alpaca)
held out: 20 of 60 pairs, 24 of 60 demonstrations; too few pairs for a second reward model
  that judges `align`
answer: the share of the held-out pairs that `align` gets right, within 22 points at worst, against `sft` and
  the base model; whether answers are better, people or a judge can say
stages:
  sft:
    algorithm: sft
    data: [{path: a.jsonl, part: [0.35, 1]}, {path: b.jsonl, part: [0.35, 1]}]
    validation: [{path: a.jsonl, part: [0, 0.35]}, {path: b.jsonl, part: [0, 0.35]}]
    epochs: 2
  align:
    algorithm: dpo
    from: sft
    data: {path: p.jsonl, part: [0.35, 1]}
    validation: {path: p.jsonl, part: [0, 0.35]}
    batch_size: 8
    learning_rate: 4e-4
  report:
    step: evaluate
    policies: [base, sft, align]
    examples: [{path: p.jsonl, part: [0, 0.35]}, {path: a.jsonl, part: [0, 0.35]}, {path: b.jsonl, part: [0, 0.35]}]
    prompts: {path: p.jsonl, part: [0, 0.35]}
    limit: 20
    sampling: {temperature: 0.7, max_new_tokens: 32}
    kl: false

p.jsonl PAIR 300
$ p.jsonl
read: p.jsonl as 300 conversations, 300 pairs (preference)
held out: 66 of 300 pairs; and 121 pairs for `gold`, a reward model that judges
  `align`, which never sees them
answer: the share of the held-out pairs that `align` gets right, within 12 points at worst, against the base
  model; and how `gold` scores its answers; whether answers are better, people or a judge can say
stages:
  align:
    algorithm: dpo
    from: base
    data: {path: p.jsonl, part: [0.2, 0.6]}
    validation: {path: p.jsonl, part: [0, 0.2]}
    batch_size: 8
    learning_rate: 4e-4
  gold:
    algorithm: reward_model
    from: base
    data: {path: p.jsonl, part: [0.6, 1]}
    validation: {path: p.jsonl, part: [0, 0.2]}
  report:
    step: evaluate
    policies: [base, align]
    examples: {path: p.jsonl, part: [0, 0.2]}
    metrics: {gold reward: {reward: gold}}
    prompts: {path: p.jsonl, part: [0, 0.2]}
    limit: 50
    sampling: {temperature: 0.7, max_new_tokens: 32}
    kl: false

a.jsonl PROMPT 60
p.jsonl PAIR 300
$ a.jsonl p.jsonl
read: a.jsonl as 60 prompts (prompt_only); p.jsonl as 300 conversations, 300 pairs (preference)
held out: 20 of 60 prompts, 83 of 300 pairs; and 115 pairs for `gold`, a reward model that
  judges `align`, which never sees them
answer: how `gold` scores answers of `align`, against the base model; it is worth as much as the share of
  held-out pairs that the reward model gets right
stages:
  reward:
    algorithm: reward_model
    from: base
    data: {path: p.jsonl, part: [0.25, 0.625]}
    validation: {path: p.jsonl, part: [0, 0.25]}
  align:
    algorithm: {ppo: {group_baseline: true, shared_value: true}}
    from: base
    prompts: {path: a.jsonl, part: [0.25, 1]}
    reward: reward
    rollout: {samples_per_prompt: 4, max_new_tokens: 32}
    iterations: 20
    prompts_per_iteration: 16
    epochs: 1
    learning_rate: 3e-4
  gold:
    algorithm: reward_model
    from: base
    data: {path: p.jsonl, part: [0.625, 1]}
    validation: {path: p.jsonl, part: [0, 0.25]}
  report:
    step: evaluate
    policies: [base, align]
    metrics: {gold reward: {reward: gold}}
    prompts: {path: a.jsonl, part: [0, 0.25]}
    limit: 50
    sampling: {temperature: 0.7, max_new_tokens: 32}
    kl: false

a.jsonl PROMPT 60
p.jsonl PAIR 60
d.jsonl DEMO 60
$ a.jsonl p.jsonl d.jsonl
read: a.jsonl as 60 prompts (prompt_only); p.jsonl as 60 conversations, 60 pairs (preference); d.jsonl as 60
  conversations (alpaca)
held out: 20 of 60 prompts, 16 of 60 pairs, 13 of 60 demonstrations; too few pairs for a second
  reward model that judges `align`
answer: how the reward model that it learned from scores answers of `align`, against `sft` and the base model;
  it is worth as much as the share of held-out pairs that the reward model gets right
stages, of which:
  sft: {data: {path: d.jsonl}}
  reward: {from: sft, data: {path: p.jsonl, part: [0.25, 1]}}
  align: {from: sft, prompts: {path: a.jsonl}, reward: reward}
  report: {policies: [base, sft, align], rewards: [reward]}

l.jsonl LABELED 60
$ l.jsonl
read: l.jsonl as 60 conversations (prompt_completion)
held out: 21 of 60 labeled responses
answer: the loss of good held-out responses, against the base model; whether answers are better, people or a
  judge can say
stages:
  align:
    algorithm: kto
    from: base
    data: {path: l.jsonl, part: [0.3, 1]}
    validation: {path: l.jsonl, part: [0, 0.3]}
    batch_size: 8
    learning_rate: 4e-4
  report:
    step: evaluate
    policies: [base, align]
    examples: {path: l.jsonl, part: [0, 0.3]}
    prompts: {path: l.jsonl, part: [0, 0.3]}
    limit: 20
    sampling: {temperature: 0.7, max_new_tokens: 32}
    kl: false

s.jsonl SUM 60
$ s.jsonl
read: s.jsonl as 60 prompts with a known answer (prompt_only)
held out: 20 of 60 questions
answer: the share of the held-out questions that `align` gets right, within 22 points at worst, against the
  base model
answers are read: by their last number, by the form of the known ones; a --base on this machine would be asked
stages:
  align:
    algorithm: grpo
    from: base
    prompts: {path: s.jsonl, part: [0.3, 1], columns: {prompt: question}}
    reward: {exact_match: {extract: last number}}
    rollout: {samples_per_prompt: 8, max_new_tokens: 64}
    iterations: 10
    prompts_per_iteration: 8
    epochs: 1
    learning_rate: 3e-4
  report:
    step: evaluate
    policies: [base, align]
    metrics: {right: {reward: {exact_match: {extract: last number}}}}
    prompts: {path: s.jsonl, part: [0, 0.3], columns: {prompt: question}}
    limit: 100
    sampling: {temperature: 0.7, max_new_tokens: 64}
    kl: false

s.jsonl LONG 60
$ s.jsonl
read: s.jsonl as 60 conversations with a known answer (gsm8k)
held out: 23 of 60 questions
answer: the share of the held-out questions that `align` gets right, within 20 points at worst, against `sft`
  and the base model
answers are read: by their last number, by the form of the known ones; a --base on this machine would be asked
stages, of which:
  sft: {data: {gsm8k: {path: s.jsonl, part: [0.35, 1]}}}
  align: {from: sft, rollout: {max_new_tokens: 160}, iterations: 4}
  report: {policies: [base, sft, align], sampling: {max_new_tokens: 160}}

s.jsonl WORKED 60
$ s.jsonl
read: s.jsonl as 60 conversations with a known answer (prompt_completion)
held out: 20 of 60 questions
answer: the share of the held-out questions that `align` gets right, within 22 points at worst, against `sft`
  and the base model
answers are read: by their last number, by the form of the known ones; a --base on this machine would be asked
stages, of which:
  sft: {validation: {path: s.jsonl, part: [0, 0.3], columns: {prompt: problem, completion: solution}}}
  align: {prompts: {part: [0.3, 1], columns: {prompt: problem, completion: solution}}, iterations: 20}
  report: {prompts: {part: [0, 0.3], columns: {prompt: problem, completion: solution}}}

n.jsonl NAMED 60
$ known-answers=n.jsonl
read: n.jsonl as 60 prompts with a known answer (prompt_only)
held out: 22 of 60 questions
answer: the share of the held-out questions that `align` gets right, within 21 points at worst, against the
  base model
answers are read: in a sentence, by the form of the known ones; a --base on this machine would be asked
stages, of which:
  align: {algorithm: grpo, reward: {exact_match: {within: true}}}
  report: {metrics: {right: {reward: {exact_match: {within: true}}}}}

n.jsonl NAMED 60
$ n.jsonl
read: n.jsonl as 60 conversations (prompt_completion)
held out: 22 of 60 demonstrations
answer: loss and accuracy of the next tokens of held-out demonstrations, against the base model; whether
  answers are better, people or a judge can say
stages, of which:
  sft: {data: {path: n.jsonl, part: [0.3, 1], columns: {prompt: question, completion: answer}}}
  report: {examples: {path: n.jsonl, part: [0, 0.3], columns: {prompt: question, completion: answer}}}

s.jsonl FORMULA 60
$ s.jsonl
read: s.jsonl as 60 prompts with a known answer (prompt_only)
held out: 20 of 60 questions
answer: the share of the held-out questions that `align` gets right, within 22 points at worst, against the
  base model
answers are read: by math_verify, by the form of the known ones; a --base on this machine would be asked
stages, of which:
  align: {reward: math_verify}
  report: {metrics: {right: {reward: math_verify}}}

t.jsonl TREE 60
$ t.jsonl
read: t.jsonl as 60 conversations, 180 pairs (oasst)
held out: 60 of 180 pairs; too few pairs for a second reward model that judges
  `align`
answer: the share of the held-out pairs that `align` gets right, within 22 points at worst, against the base
  model; whether answers are better, people or a judge can say
stages, of which:
  align: {algorithm: dpo, data: {path: t.jsonl, part: [0.3, 1]}}
  report: {policies: [base, align]}

t.jsonl THRICE 60
$ t.jsonl
read: t.jsonl as 60 conversations, 60 pairs (preference)
held out: nothing, because a report needs 20 conversations that differ, and 40% of these are 7
stages:
  align:
    algorithm: dpo
    from: base
    data: t.jsonl
    batch_size: 8
    learning_rate: 4e-4

t.jsonl TREE 40
t.jsonl REPLY 60
$ demos=t.jsonl
read: t.jsonl as 60 conversations, 40 bad rows (oasst)
dropped of t.jsonl: bad rows, 40; the first are t.jsonl:1: the row has 3 responses, all of which would be
  learned; use an algorithm that learns comparisons; t.jsonl:2: the row has 3 responses, ...; t.jsonl:3: the row
  has 3 responses, ...
held out: 20 of 60 demonstrations
answer: loss and accuracy of the next tokens of held-out demonstrations, against the base model; whether
  answers are better, people or a judge can say
stages, of which:
  sft: {data: {on_bad_row: skip}, validation: {on_bad_row: skip}}
  report: {examples: {on_bad_row: skip}, prompts: {on_bad_row: skip}}

g.jsonl SOLVED 1
$ demos=g.jsonl
read: g.jsonl as 1 conversation (gsm8k)
held out: nothing, because a report needs 20 conversations that differ, and 40% of these are 0
stages:
  sft:
    algorithm: sft
    data: {gsm8k: g.jsonl}
    epochs: 2

faq.csv FAQ 1
odd.csv ODD 60
$ demos=faq.csv pairs=odd.csv --columns prompt=Frage,completion=Antwort,chosen=a,rejected=b
read: faq.csv as 1 conversation (prompt_completion); odd.csv as 119 conversations, 119 pairs (preference)
odd.csv: 117 of 119 rows repeat others
held out: nothing, because a report needs 20 conversations that differ, and 40% of these are 1
stages:
  sft:
    algorithm: sft
    data: {path: faq.csv, columns: {prompt: Frage, completion: Antwort}}
    epochs: 2
  align:
    algorithm: dpo
    from: sft
    data: {path: odd.csv, columns: {prompt: Frage, chosen: a, rejected: b}}
    batch_size: 8
    learning_rate: 4e-4
"""


def shared_part(written: Any, wanted: Any) -> Any:
    """What `written` has at the keys that `wanted` names."""
    if not isinstance(wanted, dict):
        return written
    return {key: shared_part(written[key], each) for key, each in wanted.items()}


@pytest.mark.parametrize("block", WRITTEN.strip("\n").split("\n\n"))
def test_the_recipe_answers_what_the_data_can(block: str, printed: Said) -> None:
    """The files, the words of the command, what it says, and the stages that it writes: all of
    them, or what is special.
    """
    files, _, block = block.partition("$ ")
    words, _, block = block.partition("\n")
    said, which, stages = re.split(r"^(stages.*:)\n", block, maxsplit=1, flags=re.M)
    write(files)
    assert main(["init", *words.split()]) == 0
    said = said.replace("\n  ", " ")
    assert printed() == f"recipe.yaml\n{said}next: alignkit run recipe.yaml\n"
    text = Path("recipe.yaml").read_text(encoding="utf-8")
    written, wanted = yaml.safe_load(text)["stages"], yaml.safe_load(stages)
    assert written.keys() == wanted.keys()
    assert (shared_part(written, wanted) if "of which" in which else written) == wanted
    assert all(f"# {line}\n" in text.replace("\n#   ", " ") for line in said.splitlines())
    assert ("To use all rows" in text) == (", limit: " in text)
    assert load_recipe(Path("recipe.yaml"))


def test_the_reward_compares_the_last_number_of_an_answer() -> None:
    reward = ExactMatch(ExactMatch.Options(extract="last number"))
    for known in ("42", "1,234", "-5", "1/2", ".5"):
        said = [f"First 7, so it is {known} and no more.", "It is 43.", f"**{known}**"]
        group = Group((user("?"),), tuple(map(Response, said)), meta={"answer": known})
        assert is_number(known) and reward.score([group]) == [1.0, 0.0, 1.0]
    for known, right, wrong in (
        ("150 minutes", "150", "150 hours"),
        ("4000 m", "4000m", "4000 km"),
        ("5%", "5", "6%"),
        ("7 €", "7 left", "7 dollars"),
        ("7 €", "€7 remaining", "€8 left"),
        ("9/2", "4 1/2", "4"),
    ):
        said = [f"It takes 3 and {word} in all." for word in (known, right, wrong)]
        group = Group((user("?"),), tuple(map(Response, said)), meta={"answer": known})
        assert reward.score([group]) == [1.0, 1.0, 0.0], known


# What the base model says to the rows of KNOWN, and which reading of it is written
KNOWN = [("17 + 39?", "56"), ("How long?", "150 minutes"), ("2 + 2?", "4"), ("6 - 3?", "3")]
ANSWERS = """\
56;150 minutes;5;2 | as a whole; right of 4 | exact_match
17 + 39 = 56.;It is 150.;I am 4;The answer is 12.    | by their last number; right of 4 | {exact_match: {extract:
56 is it, so 1.;It is 150, not 2;4 of 9;3 of 7       | in a sentence; right of 4 | {exact_match: {within: true}}
Hi.;Hi.;Hi.;Hi.                                      | none of 4 answers of the base  | {exact_match: {extract:
"""


@pytest.mark.parametrize(("answers", "reading", "reward"), cells(ANSWERS))
def test_answers_of_the_base_model_decide_how_they_are_read(
    answers: str, reading: str, reward: str, printed: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init_write, "find_spec", lambda name: None)  # without math_verify
    said = dict(zip([asked for asked, _ in KNOWN], answers.split(";"), strict=True))

    def answered(base: str, rows: list[Group]) -> list[Group]:
        return [replace(row, responses=(Response(said[row.prompt[0]["content"]]),)) for row in rows]

    monkeypatch.setattr(init_write, "_answered", answered)
    lines = ["question,answer", *map(",".join, KNOWN)]
    Path("k.csv").write_text("\n".join(lines), encoding="utf-8")
    assert main(["init", "known-answers=k.csv", "--base", "tiny"]) == 0
    assert reading in printed() and f"reward: {reward}" in Path("recipe.yaml").read_text(
        encoding="utf-8"
    )


def test_a_base_model_that_is_here_is_asked(printed: Said) -> None:
    lines = ["question,answer", *map(",".join, KNOWN)]
    Path("k.csv").write_text("\n".join(lines), encoding="utf-8")
    locate_model("tiny")
    assert main(["init", "known-answers=k.csv", "--base", "tiny"]) == 0
    assert (
        "by the form of the known ones; none of 4 answers of the base model to questions was right"
        in printed()
    )


# The last of thirteen rows of a file with units, and what is said of it
ODD = """\
What?,N/A      | their last number.*; 1 of 13 known answers are no numbers, such as 'N/A' \\(k.csv:14\\), where
What?,7m       | by their last number, by the form of the known ones; a .* such as '7m' \\(k.csv:14\\), where
What?,         | k.csv: left out: '{{ answer }}' is empty or false \\(1: row 14\\)
Trip 3?,3.0 km | \\(prompt_only\\).held out
Trip 3?,4 km   | k.csv: warning: 1 with the same question and another known answer, where each .*: row 5 and 14
"""


@pytest.mark.parametrize(
    ("answer", "says"), [("Please write to our help desk, at any time.", True), ("No.", False)]
)
def test_what_is_held_out_and_learned_as_well_is_counted(
    answer: str, says: bool, printed: Said
) -> None:
    words, rows = [*map("".join, product("bdfgk", "aeiou", "lmn"))], list[dict[str, str]]()
    for n in range(120):
        question = " ".join(random.Random(n).sample(words, 9))
        rows.append(
            {
                "prompt": question,
                "completion": f"All that {words[n % 75]} says, and {n} more of it."
                if n % 5
                else answer,
            }
        )
    lines = [json.dumps(row) for row in (*rows, rows[1])]
    Path("faq.jsonl").write_text("\n".join(lines))
    assert main(["init", "faq.jsonl"]) == 0
    shown = printed()
    assert "1 of 121 rows repeat others" in shown
    found = re.search(r"; (\d+) of them have an answer, word for word, that is learned", shown)
    if not says:
        assert not found
        return
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    entry = data_of(recipe["stages"]["report"]["examples"], "here")
    held_out = RunData(Path).read(entry).groups
    assert found and int(found[1]) == sum(row.responses[0].text == answer for row in held_out) > 0


@pytest.mark.parametrize(("row", "wanted"), cells(ODD))
def test_a_known_answer_unlike_the_others_is_named(row: str, wanted: str, printed: Said) -> None:
    lines = ["question,answer", *(f"Trip {n}?,{n} km" for n in range(12)), row]
    Path("k.csv").write_text("\n".join(lines), encoding="utf-8")
    assert main(["init", "known-answers=k.csv"]) == 0
    assert re.search(wanted, printed(), re.DOTALL)
    assert main(["check", "recipe.yaml", "model.base=tiny"]) == 0
    assert ("warning: 1 with the same question" in printed()) == ("warning" in wanted)


@pytest.mark.parametrize("kinds", [("ASKED", "AGAIN"), ("TOLD", "CANNED")])
def test_what_nearly_repeats_a_held_out_example_is_held_out_with_it(kinds: Sequence[str]) -> None:
    """Every row has a near double with another beginning, or with the same answer."""
    write("".join(f"pairs.jsonl {kind} 50\n" for kind in kinds))
    assert main(["init", "pairs.jsonl"]) == 0
    align = load_recipe(Path("recipe.yaml")).stages["align"].settings
    assert align is not None
    data = RunData(Path)
    training, held_out = (
        {n % 50 for n in rows(data, spec)} for spec in (align.data, align.validation)
    )
    assert held_out and not training & held_out and len(training | held_out) == 50


def rows(data: RunData, spec: Any) -> list[int]:
    return [group.origin.row - 1 for group in data.read(spec).groups if group.origin]


@pytest.mark.parametrize(
    ("files", "headline"),
    [
        ("d.jsonl DEMO 40\np.jsonl PAIR 40", "pairs right"),
        ("l.jsonl LABELED 60", "next tokens right"),
    ],
)
def test_a_recipe_runs_and_ends_in_its_answer(files: str, headline: str) -> None:
    write(files)
    assert main(["init", *re.findall(r"\S+\.jsonl", files)]) == 0
    words = ["run", "recipe.yaml", "model.base=tiny", "model.lora.r=2", "--out", "run"]
    assert main(words) == 0
    found = read_json(Path("run/report/evaluation.json"))
    assert found["headline"] == headline


# There is room for nine of ten responses. 400 large rows have 796,012 characters. There is time for
# 90,000 tokens of 4, of which pairs, or samples, take two thirds: 120,000 are left, or 60 rows. Answers
# of which some are no numbers are compared as they are.
CHOSEN = """\
d.jsonl LARGE 7;d.jsonl DEMO 53    | d.jsonl         | {temperature: 0.7, max_new_tokens: 128}
d.jsonl LARGE 400;p.jsonl PAIR 60  | d.jsonl p.jsonl | {path: d.jsonl, part: [0.35, 1], limit: 60}
d.jsonl LARGE 400;s.jsonl SUM 60   | d.jsonl s.jsonl | {path: d.jsonl, part: [0.3, 1], limit: 60}
l.jsonl LABELED 60;l.jsonl UNRATED 20 | l.jsonl      |     algorithm: kto
s.jsonl NONE 3;s.jsonl SUM 60      | known-answers=s.jsonl | is empty or false (3: row 1, 2, 3)
c.jsonl CHAT 60                    | c.jsonl         | {path: c.jsonl, part: [0.35, 1], columns: {messages: chat}}
c.jsonl SAID 60                    | c.jsonl         | turns("by", "text", user=["Eve"], assistant=["bot"]) }}'}}
s.jsonl SUM 30;s.jsonl NAMED 30    | known-answers=s.jsonl | {right: {reward: {exact_match: {within: true}}}}
"""


@pytest.mark.parametrize(("files", "words", "text"), cells(CHOSEN))
def test_what_a_recipe_says(files: str, words: str, text: str) -> None:
    write(files.replace(";", "\n"))
    assert main(["init", *words.split()]) == 0
    assert f"{text}\n" in Path("recipe.yaml").read_text(encoding="utf-8")


def test_a_recipe_reads_the_rows_that_were_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignkit_plugins.recipe_tools.init_write.MOST_ROWS", 50)
    write("d.jsonl DEMO 60")
    assert main(["init", "d.jsonl"]) == 0
    text = Path("recipe.yaml").read_text(encoding="utf-8")
    assert "{path: d.jsonl, part: [0.4, 1], limit: 50}\n" in text


COLUMNS = """\
demos=faq.csv  question,answer       {prompt: question, completion: answer}
demos=faq.csv  input,output          {prompt: input, completion: output}
demos=faq.csv  prompt,answer         {completion: answer}
demos=faq.csv  instruction,output    {}
pairs=faq.csv  question,good,bad     {prompt: question, chosen: good, rejected: bad}
pairs=faq.csv  prompt,better,worse   {chosen: better, rejected: worse}
faq.csv        question,answer       {prompt: question, completion: answer}
faq.csv        prompt,good,bad       {chosen: good, rejected: bad}
faq.csv        prompt,reply          {completion: reply}
"""


@pytest.mark.parametrize("line", COLUMNS.splitlines())
def test_usual_names_of_columns_are_recognized(line: str) -> None:
    """One prompt is held out of nothing, so there is one stage."""
    word, header, columns = line.split(maxsplit=2)
    row = re.sub(r"(\w+)", r"\1 of it", header)
    Path("faq.csv").write_text(f"{header}\n{row}\n", encoding="utf-8")
    assert main(["init", word]) == 0
    (stage,) = load_recipe(Path("recipe.yaml")).stages.values()
    assert stage.settings is not None and stage.settings.data is not None
    assert stage.settings.data.sources[0].columns == yaml.safe_load(columns)
    assert main(["init", "faq.csv", "--base", "tiny"]) == 2  # the recipe stays


RATED = """\
Frage,eins,zwei,von Ann,"von Tom, 9b"
Who is he?,The first one,It is Ben,links,A
Who is she?,The other one,It is Eve,zwei,B
Who are you?,The third one,It is Joe,eins,b
Who am I?,The fourth one,It is Sue,2,
Who are they?,The fifth one,It is Ian,,=
"""


@pytest.mark.parametrize("header", ["question,Answer 1,answer 2,Rated by Ann,vote of Tom", ""])
def test_labels_of_several_people_make_pairs(header: str, printed: Said) -> None:
    """Three of five are decided, and two of three ratings by both are the same."""
    columns = 'prompt=Frage,A=eins,B=zwei,label=von Ann,label="von Tom, 9b"'
    words, table = ["--columns", columns, "--labels", "Links=A,==tie"], RATED
    if header:
        words, table = (
            [],
            f"{header}\n{RATED.partition(chr(10))[2]}".replace("eins", "a").replace("zwei", "b"),
        )
        table = table.replace("links", "A").replace(",=", ",tie")
    Path("rated.csv").write_text(table, encoding="utf-8")
    assert main(["init", "rated.csv", *words]) == 0
    names = "von Ann, von Tom, 9b" if words else "Rated by Ann, vote of Tom"
    note = (
        f"labels in {names}: 8 for 5 pairs, of which 2 are left out (1 tied or without a label, 1 without "
        "a majority); 67% of labels agree, alpha 0.4"
    )
    said = printed()
    assert f"rated.csv: {note}" in said and "3 conversations, 3 pairs (labeled_pairs)" in said
    keys = (
        "{prompt: Frage, A: eins, B: zwei, label: von Ann, label_2: 'von Tom, 9b'}"
        if words
        else "{}"
    )
    meant = "{Links: A, '=': tie}" if words else "{}"
    entry = f"{{labeled_pairs: {{path: rated.csv, columns: {keys}, labels: {meant}}}}}"
    assert main(["data", "convert", entry, "--to", "preference", "--out", "p.jsonl"]) == 0
    assert main(["data", "check", entry]) == 0
    assert main(["check", "recipe.yaml"]) == 0
    assert " ".join(printed().split()).count(note[:60]) >= 3


# What cannot be used

FILES = """\
demos.jsonl DEMO 1
pairs.jsonl PAIR 1
prompts.jsonl PROMPT 1
labeled.jsonl LABELED 2
sums.jsonl SUM 1
holes.csv HOLES 1
ties.csv TIES 1
words.csv WORDS 1
one_tie.csv ONE_TIE 1
ranked.jsonl TREE 9
bad.jsonl BAD 1
text.jsonl TEXT 1
open.jsonl OPEN 1
broken.jsonl BROKEN 1
strange.jsonl STRANGE 1
empty.jsonl TEXT 0
faq.csv FAQ 1
odd.csv ODD 1
wide.csv WIDE 1
comma.csv COMMA 1"""
MISTAKES = """\
prompts.jsonl                                      2  prompts need pairs
prompts=prompts.jsonl                              2  prompts need pairs
sums.jsonl pairs.jsonl                             2  a recipe each
labeled.jsonl pairs.jsonl                          2  need a recipe
demos=nowhere.jsonl                                2  no such file: nowhere.jsonl
known-answer=sums.jsonl                            2  did you mean 'known-answers'?
strange.jsonl                                      4  no format matches the first row (columns x)
demos=strange.jsonl                                4  no format matches the first row (columns x)
empty.jsonl                                        4  no row that the recipe reads
known-answers=holes.csv                            4  holes.csv:3: no answer, as in 1 of 2 rows
demos=broken.jsonl                                 4  bad rows skipped: 1
demos=prompts.jsonl                                4  (format prompt_only)
demos=pairs.jsonl                                  4  (format preference)
demos=bad.jsonl                                    4  (format prompt_completion)
demos=text.jsonl                                   4  (format text)
pairs=demos.jsonl                                  4  (format alpaca)
pairs=open.jsonl                                   4  compare responses: alignkit label
pairs=odd.csv                                      4  --columns prompt=Frage,chosen=a,rejected=b or --columns prompt
wide.csv                                           4  prompt=Frage,A=alt,B=neu,label=Ann,label=Tom
wide.csv --columns prompt=Frage,A=alt,B=neu,label=Ann  4  2 of 3 rows cannot be read; the first is
faq.csv                                            4  prompt=Frage,completion=Antwort or --columns prompt=id,A=Fr
demos=faq.csv --columns prompt=no,completion=id    2  columns: id, Frage, Antwort
demos=faq.csv --columns prompt=Frage,completion=Antwrot  2  did you mean 'Antwort'?
demos=faq.csv --columns promt=Frage,completion=Antwort   4  --columns prompt=Frage,comp
demos=faq.csv --columns prompt=Frage,completion=Antwort,x=y  2  no file has a column 'y'
demos=faq.csv --columns prompt=Frage,completion=Antwort,prompt=id  2  with a new name
demos=faq.csv --columns prompt                     2  'prompt' is not NAME=VALUE
open.jsonl                                         4  1 comparisons, all tied or without a label help: compare
ties.csv                                           4  all tied or without a label; labels in label: 3 for 3
comma.csv                                          4  'score' must be a number, not '4,5'
words.csv                                          4  'links' (2), 'rechts' (1); say whether each means
words.csv                                          4  `alignkit init --labels links=WHICH,rechts=WHICH`
one_tie.csv                                        4  that are not understood: 'links' (1); say
one_tie.csv                                        4  help: say first how those rows are to be read
words.csv --labels links=C                         2  must be 'A', 'B' or 'tie', got 'C'
demos.jsonl --labels links=A                       2  --labels: no file has labels of two answers
demos.jsonl --labels links                         2  --labels: 'links' is not NAME=VALUE
labels=sums.jsonl                                  2  kinds: pairs, good-and-bad
prompts.jsonl                                      2  name two answers and their label
--from smoke --base tiny                           2  a recipe is copied unchanged
"""


@pytest.mark.parametrize("line", MISTAKES.splitlines())
def test_data_that_no_recipe_fits(line: str, said: Said) -> None:
    """`files  exit code  words`; nothing is written."""
    words, code, message = re.split(r"\s\s+", line)
    write(FILES)
    assert main(["init", "new", *words.split()]) == int(code)
    assert message in " ".join(said().split()) and not Path("new").exists()


def test_bad_rows_and_turns_of_conversations_give_a_recipe_that_is_checked(
    printed: Said,
) -> None:
    """A row for each answer of a conversation, prompts that differ in case only, and an empty
    answer.
    """
    write("d.jsonl EMPTY 1\nd.jsonl TURN 8\nd.jsonl TURNS 8\nd.jsonl UPPER 8")
    assert main(["init", "demos=d.jsonl"]) == 0
    assert "bad rows, 1; the first is d.jsonl:1: " in printed()
    write("r.jsonl EQUAL 2\nr.jsonl RANKED 1")
    assert main(["init", "new", "r.jsonl"]) == 0
    assert "r.jsonl: 2 comparisons are tied or without a label" in printed()
    assert main(["check", "recipe.yaml", "model.base=tiny"]) == 0
