"""Before the first stage: data that can teach nothing are reported, so that no training is
wasted.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from alignkit.cli import main
from tests.rows import TINY, Said, cells, run, write_recipe, write_rows

# Rows of another kind than a stage needs, and the columns that later steps ask for.
FILES = {
    "demos.jsonl": '{"prompt": "is it?", "completion": "yes"}',
    "pairs.jsonl": '{"prompt": "is it?", "chosen": "yes", "rejected": "no"}',
    "prompts.jsonl": '{"prompt": "is it?", "question_id": 1}',
    "text.txt": "just a text",
    "reward.py": "def f(completions, answer, weight=1.0):\n    return [0.0 for _ in completions]",
    "picky.py": """
from alignkit import DataError, Reward, hookimpl

class Picky(Reward):
    def check_prompts(self, groups):
        if any("answer" not in group.meta for group in groups):
            raise DataError("picky: a prompt has no column 'answer'")

    def score(self, groups):
        return [0.0 for group in groups for _ in group.responses]

@hookimpl
def register(add):
    add("reward", "picky", Picky)
""",
}
FILES["rated.jsonl"] = '{"prompt": "a", "completion": "b", "label": true}'
FIRST = "first: {algorithm: sft, data: demos.jsonl, max_steps: 1}"
# What words in capitals below stand for.
WORDS = cells("""
GOLD     | ONLINE, prompts: prompts.jsonl, reward: LENGTH, monitors: [{gold:
ONLINE   | algorithm: rloo, iterations: 1, rollout: {samples_per_prompt: 2, max_new_tokens: 4}
EVALUATE | step: evaluate, policies: [base], rewards: [LENGTH]
OF_PAIRS | step: evaluate_reward, rewards: [LENGTH]
LENGTH   | {length: {unit: characters}}
PYTHON   | {python: {path: reward.py, function: f}}
JUDGE    | {openai_judge: {server: {base_url: 'http://localhost:9/v1', model: m, api_key_env: NO_KEY}}}
LOCAL    | step: judge_pairs, judge: {local_judge: {}}
""")
# A later stage, the code of the error, what it says, and the text at which its caret points.
MISTAKES = """
step: judge_pairs, data: pairs.jsonl, judge: JUDGE | 2 | NO_KEY is not set |
ONLINE, prompts: prompts.jsonl, reward: {rlaif: {judge: JUDGE}} | 2 | NO_KEY is not |
algorithm: kto, data: demos.jsonl | 4 | desirable and undesirable | demos.jsonl
algorithm: dpo, data: demos.jsonl | 4 | dpo learns from pairs | demos.jsonl
algorithm: {reward_model: {margin: data}}, data: pairs.jsonl | 4 | margin | pairs.jsonl
algorithm: sft, data: pairs.jsonl | 4 | 2 responses | pairs.jsonl
algorithm: sft, data: prompts.jsonl | 4 | on_bad_row: skip}` leaves out and counts such rows | prompts.jsonl
algorithm: dpo, data: rated.jsonl | 4 | of single ones are for `algorithm: kto` | rated.jsonl
algorithm: kto, data: rated.jsonl | 4 | are desirable, from which sft learns | rated.jsonl
ONLINE, prompts: text.txt, reward: LENGTH | 4 | 'prompts' are raw text | text.txt
ONLINE, prompts: prompts.jsonl, reward: picky | 4 | NO_ANSWER | picky
ONLINE, prompts: prompts.jsonl, reward: PYTHON | 4 | needs the argument 'answer' |
GOLD {prompts: text.txt, reward: LENGTH}}] | 4 | gold.prompts' are raw text |
GOLD {reward: PYTHON}}] | 4 | needs the argument 'answer' |
GOLD {prompts: demos.jsonl, reward: PYTHON}}] | 4 | needs the argument 'answer' |
EVALUATE, prompts: prompts.jsonl, by: [question_id, topic] | 4 | column topic | topic
step: evaluate, policies: [base], rewards: [picky], prompts: prompts.jsonl | 4 | NO_ANSWER | picky
EVALUATE, prompts: text.txt | 4 | the rows are raw text | text.txt
OF_PAIRS, pairs: demos.jsonl | 4 | none of 1 rows has a preference pair | demos.jsonl
OF_PAIRS, pairs: pairs.jsonl, by: [topic] | 4 | no pair has a column 'topic' | topic
step: evaluate_reward, rewards: [length], pairs: pairs.jsonl | 4 | counts tokens | length
step: sample, prompts: prompts.jsonl, reward: picky | 4 | NO_ANSWER | picky
step: sample, prompts: text.txt | 4 | the rows are raw text | text.txt
step: select_best, policies: [first, base], reward: picky, prompts: prompts.jsonl | 4 | NO_ANSWER | picky
LOCAL, data: demos.jsonl | 4 | no row has two different responses | demos.jsonl
LOCAL, prompts: text.txt, policy: base | 4 | the rows are raw text | text.txt
step: instruct, data: text.txt, instruction: Be brief. | 4 | the rows are raw text | text.txt
"""
CASES = [
    (stage, int(code), message.replace("NO_ANSWER", "a prompt has no column 'answer'"), place)
    for stage, code, message, place in cells(MISTAKES)
]


def recipe_of(folder: Path, *later: str) -> list[str]:
    """A recipe with these stages after a first one, and the plugin that it needs."""
    for name, text in FILES.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
    text = "\n".join([FIRST, *(f"later_{n}: {{{stage}}}" for n, stage in enumerate(later))])
    for word, meaning in WORDS:
        text = text.replace(word, meaning)
    return [str(write_recipe(folder, text, TINY)), "--plugin", str(folder / "picky.py")]


def pointed_at(err: str) -> str:
    """What a caret stands below, up to the end of the line."""
    for above, carets in itertools.pairwise(err.splitlines()):
        if "^" in carets:
            return above[carets.index("^") :]
    return ""


@pytest.mark.parametrize(("stage", "code", "message", "place"), CASES)
def test_a_mistake_of_a_later_stage_is_shown_in_the_recipe(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Said,
    stage: str,
    code: int,
    message: str,
    place: str,
) -> None:
    """By `check`, which makes no model."""
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    assert main(["check", *recipe_of(tmp_path, stage)]) == code
    err = said()
    assert "later_0" in err and message in err, err
    assert pointed_at(err).startswith(place), err
    assert not (tmp_path / "cache").exists()


def test_a_run_tells_all_mistakes_before_its_first_stage(tmp_path: Path, said: Said) -> None:
    found = [(stage, message) for stage, code, message, place in CASES if code == 4 and place]
    recipe, *plugin = recipe_of(tmp_path, *[stage for stage, _ in found])
    run(Path(recipe), *plugin, code=4)
    err = said()
    for number, (stage, message) in enumerate(found):
        assert f"later_{number}" in err and message in err, stage
    assert not (tmp_path / "run" / "first").exists()


def test_a_folder_that_is_no_data_set_is_told_by_a_run(tmp_path: Path, said: Said) -> None:
    (tmp_path / "nothing").mkdir()
    recipe, *plugin = recipe_of(tmp_path, "algorithm: sft, data: {hub: nothing}")
    assert main(["check", recipe, *plugin]) == 0
    run(Path(recipe), *plugin, code=4)
    assert "nothing[train]: `datasets` cannot load it" in said()
    assert not (tmp_path / "run" / "first").exists()


@pytest.mark.parametrize(
    "stages",
    [
        ["algorithm: dpo, data: [demos.jsonl, pairs.jsonl]"],
        # A stage may make what a file lacks, also if it is one of several sources.
        [
            "LOCAL, prompts: demos.jsonl, policy: base",
            "algorithm: dpo, data: [demos.jsonl, later_0]",
        ],
        [
            "step: sample, prompts: prompts.jsonl",
            "EVALUATE, prompts: [prompts.jsonl, later_0], by: [topic]",
            "OF_PAIRS, pairs: later_0",
        ],
    ],
)
def test_data_that_may_do_are_not_refused(tmp_path: Path, stages: list[str]) -> None:
    assert main(["check", *recipe_of(tmp_path, *stages)]) == 0


@pytest.mark.parametrize("data", ["pairs.jsonl", "[{hub: a/b}, {path: pairs.jsonl, part: [0, 1]}]"])
def test_bad_rows_are_listed_once_by_their_file(data: str, tmp_path: Path, said: Said) -> None:
    """Also next to what a run downloads."""
    stages = (f"OF_PAIRS, pairs: {data}", f"algorithm: dpo, data: {data}")
    recipe = recipe_of(tmp_path, *stages)
    with (tmp_path / "pairs.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "is it?", "chosen": "yes"}\n')
    assert main(["check", *recipe]) == 4
    err = said()
    assert err.count("pairs.jsonl:2: ") == 1 and "^" not in err


def test_a_device_that_cannot_be_is_a_mistake_of_the_recipe(tmp_path: Path, said: Said) -> None:
    assert main(["check", *recipe_of(tmp_path), "model.device='cuda:x'"]) == 2
    assert "model.device: must match pattern" in said()


# The chat template

TEMPLATES = {
    "{% for m in messages %}\n{{ m }}\n{% if %}{% endif %}{% endfor %}": (
        "t.jinja:3: Expected an expression"
    ),
    "\n{{ messages | shout }}": "t.jinja:2: No filter named 'shout'",
    "{% for m in messages %}{{ m.content }}": "t.jinja:1: Unexpected end of template",
    (
        "{% for m in messages %}{% generation %}{{ m.content | tojson }}{% endgeneration %}{% "
        "break %}{% endfor %}{{ raise_exception('no') if tools else strftime_now('%Y') }}"
    ): "",
}


@pytest.mark.parametrize(("template", "message"), TEMPLATES.items())
def test_a_broken_chat_template_is_reported_with_its_line(
    tmp_path: Path, said: Said, template: str, message: str
) -> None:
    recipe, *_ = recipe_of(tmp_path)
    (tmp_path / "t.jinja").write_text(template, encoding="utf-8")
    override = f"model.chat_template={tmp_path / 't.jinja'}"
    if not message:
        assert main(["check", recipe, override, "model.base=org/model"]) == 0
        return
    run(Path(recipe), override, code=1)
    assert message in said()
    assert not (tmp_path / "run" / "first").exists()


WEIGHTED = """
import json
from pathlib import Path
from alignkit import Algorithm, Field, Loss, RunFailed, hookimpl, per_token

class Weighted(Algorithm):
    class Options(Algorithm.Options):
        weights: Path = Field(description="weights by source")

    def check(self, folder):
        self.weights = json.loads(self.options.weights.read_text())
        if "yes" not in self.weights:
            raise RunFailed(f"{self.options.weights}: no weight for 'yes'")

    def loss(self, batch, out):  # of the algorithm that was checked
        return Loss(nll=per_token(-self.weights["yes"] * out.logprobs))

@hookimpl
def register(add):
    add("algorithm", "weighted", Weighted)
"""


def test_an_algorithms_file_is_checked_first(tmp_path: Path, said: Said) -> None:
    """The file lies next to the recipe, which may itself be somewhere else; its content is in the
    hash.
    """
    weights = tmp_path / "parts" / "weights.json"
    weights.parent.mkdir()
    (tmp_path / "weighted.py").write_text(WEIGHTED, encoding="utf-8")
    algorithm = {"weighted": {"weights": "parts/weights.json"}}
    stage = {"algorithm": algorithm, "data": "demos.jsonl", "max_steps": 1}
    command = [str(write_recipe(tmp_path, {"s": stage})), "--plugin", str(tmp_path / "weighted.py")]
    run, check = ["run", *command, "--out", str(tmp_path / "out")], ["check", *command]
    assert main(check) == 2 and "no such file: parts/weights.json" in said()
    weights.write_text('{"no": 1}')
    for words in (check, run):
        assert main(words) == 2
        err = said()
        assert f"stage 's': {weights}: no weight for 'yes'" in err and "loading tiny" not in err
    weights.write_text('{"yes": 2}')
    assert main(run) == 0
    weights.write_text('{"yes": 3}')
    assert main(run) == 0 and "starting over" in said()


REWARDS = """
from alignkit import DataError, Field, Reward, RewardCombination, RewardRef, RunFailed, hookimpl

class Column(Reward):
    class Options(Reward.Options):
        column: str = "answer"

    def check_prompts(self, groups):
        if any(self.options.column not in group.meta for group in groups):
            raise DataError(f"no column '{self.options.column}'", option=("column",))

class Part(RewardCombination):
    class Options(RewardCombination.Options):
        reward: RewardRef
        file: str = ""

    def check(self, folder):
        if self.options.file and not (folder / self.options.file).is_file():
            raise RunFailed(f"part: no file {self.options.file}")

    def parts(self):
        return {"only": self.options.reward}

@hookimpl
def register(add):
    add("reward", "column", Column)
    add("reward", "part", Part)
"""
PARTS = """\
stages:
  align:
    algorithm: rloo
    prompts: prompts.jsonl
    reward:
      REWARD
model:
  base: tiny
"""


@pytest.mark.parametrize(
    ("reward", "line", "message"),
    [
        ("column:\n        column: grade", 7, "stage 'align': no column 'grade'"),
        ("column: {}", 6, "stage 'align': no column 'answer'"),
        ("part: {reward: length, file: a.json}", 2, "stage 'align': part: no file a.json"),
    ],
)
def test_what_parts_of_a_reward_say_points_at_them(
    tmp_path: Path, said: Said, reward: str, line: int, message: str
) -> None:
    plugin, recipe = tmp_path / "parts.py", write_recipe(tmp_path, FIRST)
    plugin.write_text(REWARDS, encoding="utf-8")
    recipe.write_text(PARTS.replace("REWARD", reward), encoding="utf-8")
    assert main(["check", str(recipe), "--plugin", str(plugin)]) != 0
    err = said()
    assert message in err and f"recipe.yaml:{line}:" in err


@pytest.mark.silent_bug(
    "check: code of rewards",
    "A check says ok, and the run stops when it imports the reward, hours into the queue.",
    "`check` imports the code that a recipe names, and compares its arguments with the columns.",
    "inclusionAI/AReno#9",
)
def test_check_imports_rewards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "asked.jsonl", [{"prompt": "2 + 2?", "answer": "4"}])
    reward = "{python: {path: mine.py, function: f}}"
    stages = f"align: {{algorithm: grpo, prompts: asked.jsonl, reward: {reward}}}"
    check = ["check", str(write_recipe(tmp_path, stages))]
    for source, told in {
        "import no_such_module\ndef f(completions): ...": "No module named 'no_such_module' (line 1",
        "def f(completions, anser): ...": "needs the argument 'anser', but no prompt has a column",
    }.items():
        (tmp_path / "mine.py").write_text(source)
        assert main(check) in (2, 4) and told in capsys.readouterr().err
    (tmp_path / "mine.py").write_text("def f(completions, answer): ...")
    assert main(check) == 0 and capsys.readouterr().out.endswith("ok: recipe: stages align\n")
