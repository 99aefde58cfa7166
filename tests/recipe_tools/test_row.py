"""What `alignkit check` shows of a row is what the stage will learn from it, and nothing of it acts
on the terminal.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from alignkit.cli import main
from alignkit_plugins.recipe_tools.check_row import Inspection, Tokens
from tests.rows import Said, cells

ROWS = {
    "demos": """\
{"messages": [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "No.", "weight": 0},
 {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes “so” 😀"}]}
{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
 {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}
""".replace("\n ", " "),
    "pairs": """\
{"prompt": "Hi?", "chosen": "Hello.", "rejected": "No", "margin": 2}
{"prompt": "One?", "chosen": "1", "rejected": "2", "weight": 3}
""",
    "prompts": '{"prompt": "What is 1 + 1?", "answer": "2"}',
}
RECIPE = """\
model: {base: tiny}
stages:
  sft: {algorithm: sft, data: demos.jsonl}
  helpful: {algorithm: reward_model, from: sft, data: pairs.jsonl}
  align: {algorithm: ppo, from: sft, prompts: prompts.jsonl, reward: helpful}
  labels: {step: judge_pairs, policy: sft, judge: local_judge, prompts: prompts.jsonl}
  again: {algorithm: dpo, from: sft, data: labels}
"""
SHOWN = r"""
$ sft
sft (sft): row 1 of 2 (demos.jsonl:1)
--
user
  Is it?
--
assistant (not learned)
  No.
--
user
  Sure?
--
assistant
  Yes “so” 😀
--
prompt: 13 tokens, none learned
  context: <|im_start|>|user|⏎|I|s| |it|?|<|im_end|>|⏎|<|im_start|>|assistant|⏎
--
response: 34 tokens, 17 learned
  context: N|o|.|<|im_end|>|⏎|<|im_start|>|user|⏎|S|u|re|?|<|im_end|>|⏎|<|im_start|>|assistant|⏎
  learned: Y|es| |||“|s|o|||”| ||||😀|<|im_end|>

$ sft 2
sft (sft): row 2 of 2 (demos.jsonl:2)
--
user
  a
--
assistant
  b
--
user
  c
--
assistant
  d
--
prompt: 9 tokens, none learned
  context: <|im_start|>|user|⏎|a|<|im_end|>|⏎|<|im_start|>|assistant|⏎
--
response: 14 tokens, 4 learned
  learned: b|<|im_end|>
  context: ⏎|<|im_start|>|user|⏎|c|<|im_end|>|⏎|<|im_start|>|assistant|⏎
  learned: d|<|im_end|>

$ sft stages.sft.max_length=40
sft (sft): row 1 of 2 (demos.jsonl:1)
note: 1 response truncated at max_length
--
user
  Is it?
--
assistant (not learned)
  No.
--
user
  Sure?
--
assistant
  Yes “so” 😀
--
prompt: 13 tokens, none learned
  context: <|im_start|>|user|⏎|I|s| |it|?|<|im_end|>|⏎|<|im_start|>|assistant|⏎
--
response, truncated: 27 tokens, 10 learned
  context: N|o|.|<|im_end|>|⏎|<|im_start|>|user|⏎|S|u|re|?|<|im_end|>|⏎|<|im_start|>|assistant|⏎
  learned: Y|es| |||“|s|o||

$ sft stages.sft.max_length=3
sft (sft): row 1 of 2 (demos.jsonl:1)
note: 1 row left out: no room for a response in max_length
--
user
  Is it?
--
assistant (not learned)
  No.
--
user
  Sure?
--
assistant
  Yes “so” 😀

$ helpful
helpful (reward_model): row 1 of 2 (pairs.jsonl:1)
--
user
  Hi?
--
better (margin 2)
  Hello.
--
worse
  No
--
prompt: 11 tokens, none learned
  context: <|im_start|>|user|⏎|H|i|?|<|im_end|>|⏎|<|im_start|>|assistant|⏎
--
better, margin 2: 7 tokens, scored at the last
  context: H|e|ll|o|.|<|im_end|>
  scored:  ⏎
--
worse: 4 tokens, scored at the last
  context: N|o|<|im_end|>
  scored:  ⏎

$ helpful 2 ~stages.again
helpful (reward_model): row 2 of 2 (pairs.jsonl:2)
note: weight in the loss, by its column: 3
--
user
  One?
--
better
  1
--
worse
  2
--
prompt: 12 tokens, none learned
  context: <|im_start|>|user|⏎|O|n|e|?|<|im_end|>|⏎|<|im_start|>|assistant|⏎
--
better: 3 tokens, scored at the last
  context: 1|<|im_end|>
  scored:  ⏎
--
worse: 3 tokens, scored at the last
  context: 2|<|im_end|>
  scored:  ⏎

$ align
align (ppo): row 1 of 1 (prompts.jsonl:1)
note: other columns: answer: '2'
--
user
  What is 1 + 1?
--
prompt, after which the policy writes: 18 tokens, none learned
  context: <|im_start|>|user|⏎|Wh|at| is| |1| |+| |1|?|<|im_end|>|⏎|<|im_start|>|assistant|⏎
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {**{f"{name}.jsonl": ROWS[name] for name in ROWS}, "r.yaml": RECIPE}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("block", SHOWN.strip("\n").split("\n\n"))
def test_a_row_is_shown_as_the_stage_sees_it(block: str, tmp_path: Path, printed: Said) -> None:
    """`$ stage and overrides`; a line `--` is empty. Nothing is written."""
    words, _, wanted = block.removeprefix("$ ").partition("\n")
    assert main(["check", "r.yaml", *words.split()]) == 0
    out = printed().replace(f"{tmp_path}/", "")
    assert out.rstrip("\n").replace("\n\n", "\n--\n") == wanted
    assert not (tmp_path / "runs").exists()


MISTAKES = """
sfd   | 2 | did you mean 'sft'
sft 3 | 4 | has 2 rows, so there is no row 3
sft 0 | 4 | so there is no row 0
again | 4 | run the recipe as far as 'labels' first
"""


@pytest.mark.parametrize(("words", "code", "message"), cells(MISTAKES))
def test_what_is_not_there(words: str, code: str, message: str, said: Said) -> None:
    assert main(["check", "r.yaml", *words.split()]) == int(code)
    assert message in said()


def test_a_row_does_not_act_on_the_terminal() -> None:
    hostile = "\x1b]0;x\x07[red]y"
    tokens = Tokens(hostile, (hostile,), (True,))
    text = Inspection(hostile, [(hostile, hostile)], [hostile], [tokens]).text()
    assert "\x1b" not in text and text.count("[red]y") == 6
    lines = [*Tokens("one", ("a\tb\n",), (True,)).lines()]
    assert lines == ["one: 1 token, 1 learned", "  learned: a\u21e5b\u23ce"]
