"""Policies with examples in front: what the model reads, what nobody else reads, and the KL against transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit import DataError, Group, Message, Response, RunFailed, StepContext
from alignkit.cli import main
from alignkit.data.group import read_groups, write_groups
from alignkit.errors import RecipeError
from alignkit.recipe.load import load_recipe
from alignkit_plugins.steps.evaluate import Evaluate
from alignkit_plugins.steps.evaluate.few_shot import Examples

USER, ASSISTANT = "user", "assistant"
DEMOS = [("one?", "1"), ("two?", "2"), ("three?", "3")]


def asked(text: str, *before: Message, **meta: Any) -> Group:
    return Group((*before, Message(role=USER, content=text)), meta=meta)


def demo(question: str, answer: str, *before: Message) -> Group:
    return replace(asked(question, *before), responses=(Response(text=answer),))


def texts(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in messages]


class Models:
    """Models that answer the words that they read; log-probabilities are the number of turns that a role reads."""

    def __init__(self) -> None:
        self.read: dict[str, list[list[list[tuple[str, str]]]]] = {}
        self.seeds: list[int] = []
        self.room = 99  # turns

    def sample(self, role: str, prompts: Sequence[Sequence[Message]], *, seed: int, **sampling: Any) -> list[Group]:
        self.read.setdefault(role, []).append([texts(prompt) for prompt in prompts])
        self.seeds.append(seed)
        answers = [Response(f"{role} read {len(prompt)}", tokens=(1, 2)) for prompt in prompts]
        return [
            Group(tuple(prompt), (answer,) if len(prompt) <= self.room else ())
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def logprobs(self, role: str, groups: Sequence[Group], **options: Any) -> list[torch.Tensor]:
        return [torch.full((2,), float(len(group.prompt))) for group in groups for _ in group.responses]


class Scorer:
    """A reward that keeps the prompts that it is given; later answers are better."""

    untrained: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.read: list[list[tuple[str, str]]] = []

    def score(self, groups: Sequence[Group]) -> list[Group]:
        self.read += [texts(group.prompt) for group in groups]
        return [
            replace(g, responses=tuple(replace(r, scores={"reward": float(n)}) for n, r in enumerate(g.responses)))
            for g in groups
        ]


def evaluate(
    folder: Path,
    examples: Sequence[Group],
    prompts: Sequence[Group] = (asked("four?"), asked("five?")),
    models: Models | None = None,
    seed: int = 7,
    few_shot: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[dict[str, Any], Models, Scorer]:
    models, scorer = models or Models(), Scorer()
    data = {"prompts": prompts, "examples": examples}
    context = StepContext(
        models=models,  # type: ignore[arg-type]
        cache=folder,
        folder=folder,
        seed=seed,
        out=folder / "out",
        load=lambda spec: list(data[spec]),
        scorer=lambda spec: scorer,
        map=lambda name, rows, f: list(f(rows)),
        log=lambda **values: None,
        say=lambda text: None,
        stage="evaluate",
    )
    prefix = {"policies": ["base"], "examples": "examples", "shots": 2, **(few_shot or {})}
    options = {"policies": ["base", "sft"], "rewards": ["length"], **options}
    step = Evaluate(Evaluate.Options(prompts="prompts", few_shot=prefix, **options))
    step.options.rewards = []
    step.options.rewards = [_Spec()]
    return dict(step.run(context).summary or {}), models, scorer


class _Spec:
    kind, name = "plugin", "length"


# --- what the model reads


def test_examples_are_earlier_turns_and_the_same_for_all_prompts(tmp_path: Path) -> None:
    found, models, _ = evaluate(tmp_path, [demo(*each) for each in DEMOS])
    plain, with_examples = models.read["base"]
    assert plain == [[(USER, "four?")], [(USER, "five?")]]
    drawn = [(group.prompt[0]["content"], group.responses[0].text) for group in read_groups(_out(tmp_path))]
    turns = [turn for question, answer in drawn for turn in ((USER, question), (ASSISTANT, answer))]
    assert len(drawn) == 2 and set(drawn) <= set(DEMOS)
    assert with_examples == [[*turns, (USER, "four?")], [*turns, (USER, "five?")]]
    assert models.read["sft"] == [plain] and len(set(models.seeds)) == 1
    assert list(found["policies"]) == ["base", "base+2", "sft"]
    assert found["few_shot"] == {"policies": {"base+2": "base"}, "shots": 2, "own_words": 0}
    assert "base+2: 2 examples in front of each prompt" in found["notes"]


def _out(folder: Path) -> Path:
    return folder / "out" / "examples.jsonl"


def test_examples_are_drawn_with_the_seed(tmp_path: Path) -> None:
    many = [demo(f"question {number}?", str(number)) for number in range(40)]
    drawn = []
    for number, seed in enumerate((7, 7, 8)):
        evaluate(tmp_path / str(number), many, seed=seed)
        drawn.append(_out(tmp_path / str(number)).read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_prompt_never_sees_itself(tmp_path: Path) -> None:
    examples = [demo(*each) for each in DEMOS]
    prompts = [asked(question) for question, _ in DEMOS] + [asked("four?")]
    found, models, _ = evaluate(tmp_path, examples, prompts)
    for read in models.read["base"][1]:
        questions = [text for role, text in read if role == USER]
        assert len(questions) == 3 == len(set(questions))  # two examples and the prompt, which is none of them
    assert found["few_shot"]["own_words"] == 2
    assert any("at 2 prompts their own words were left out and the next example was used" in n for n in found["notes"])


def test_no_other_example_is_left(tmp_path: Path) -> None:
    prompts = [asked("one?"), asked("four?")]
    found, models, _ = evaluate(tmp_path, [demo(*each) for each in DEMOS[:2]], prompts)
    assert [len(read) for read in models.read["base"][1]] == [3, 5]
    assert "1 prompts have fewer than 2 examples, because no other one was left" in found["notes"]


def test_system_messages(tmp_path: Path) -> None:
    """The prompt's own stays first; those of examples would stand in the middle, which templates refuse."""
    own, other = (Message(role="system", content=text) for text in ("Be kind.", "Be brief."))
    found, models, _ = evaluate(tmp_path, [demo(*each, other) for each in DEMOS[:2]], [asked("four?", own)])
    read = models.read["base"][1][0]
    assert [role for role, _ in read] == ["system", USER, ASSISTANT, USER, ASSISTANT, USER]
    assert read[0][1] == "Be kind."
    assert "system messages of examples are left out; that of a prompt stays first" in found["notes"]


def test_a_dialogue_keeps_its_turns(tmp_path: Path) -> None:
    turns = (
        Message(role=ASSISTANT, content="1", train=True),
        Message(role=USER, content="and?"),
        Message(role=ASSISTANT, content="2", train=False),
    )
    dialogue = replace(asked("one?"), responses=(Response("2", messages=turns),))
    _, models, _ = evaluate(tmp_path, [dialogue], few_shot={"shots": 1})
    assert [text for _, text in models.read["base"][1][0]] == ["one?", "1", "and?", "2", "four?"]
    # The question at its end is one of its prompts, and would be answered in front of it.
    last = Group((Message(role=USER, content="one?"), *turns[:2]))
    assert Examples([dialogue], 1).of(last) == []
    assert all("train" not in turn for turn in Examples([dialogue], 1).messages(asked("four?")))


def test_raw_texts_are_put_in_front_of_the_first_turn(tmp_path: Path) -> None:
    raw = [Group((), (Response(text=text),)) for text in ("Q: one? A: 1", "Q: two? A: 2", "Q: four? A: 4")]
    system = Message(role="system", content="Be kind.")
    _, models, _ = evaluate(tmp_path, raw, [asked("four?", system)])
    ((_, kind), (role, text)) = models.read["base"][1][0]
    assert (kind, role) == ("Be kind.", USER)
    assert sorted(text.split("\n\n")) == ["Q: one? A: 1", "Q: two? A: 2", "four?"] and text.endswith("\n\nfour?")


# --- what nobody else reads


def test_rewards_and_files_have_the_plain_prompt(tmp_path: Path) -> None:
    _, _, scorer = evaluate(tmp_path, [demo(*each) for each in DEMOS])
    assert scorer.read == [[(USER, "four?")], [(USER, "five?")]]
    samples = read_groups(tmp_path / "out" / "samples.jsonl")
    assert [texts(group.prompt) for group in samples] == scorer.read
    assert [(r.source, r.text) for r in samples[0].responses] == [
        ("base", "base read 1"), ("base+2", "base read 5"), ("sft", "sft read 1"),
    ]  # fmt: skip


def test_the_kl_is_of_what_each_reads(tmp_path: Path) -> None:
    """The policy's log-probabilities are 5 a token with two examples, the reference's 1 without."""
    found, _, _ = evaluate(tmp_path, [demo(*each) for each in DEMOS])
    assert found["reference"] == "base"
    assert {name: each["kl"]["mean"] for name, each in found["policies"].items()} == {
        "base": 0.0, "base+2": 2 * (5.0 - 1.0), "sft": 0.0,
    }  # fmt: skip


def test_it_can_be_the_baseline(tmp_path: Path) -> None:
    found, _, _ = evaluate(tmp_path, [demo(*each) for each in DEMOS], few_shot={"baseline": True})
    assert (found["baseline"], found["reference"]) == ("base+2", "base")
    assert list(found["against"]) == ["base", "sft"]
    assert found["against"]["sft"]["length"]["difference"]["mean"] == 1.0
    assert found["policies"]["base+2"]["kl"]["mean"] == 8.0


def test_a_policy_may_only_answer_with_examples(tmp_path: Path) -> None:
    found, models, _ = evaluate(tmp_path, [demo(*each) for each in DEMOS], policies=["sft"])
    assert list(found["policies"]) == ["base+2", "sft"] and found["baseline"] == "base+2"
    assert len(models.read["base"]) == 1


def test_prompts_without_room_for_the_examples_are_left_out_for_all(tmp_path: Path) -> None:
    models = Models()
    models.room = 5
    long = asked("six?", Message(role=USER, content="a"), Message(role=ASSISTANT, content="b"))
    found, _, _ = evaluate(tmp_path, [demo(*each) for each in DEMOS], [asked("four?"), long], models)
    assert (found["prompts"], found["left_out"]) == (1, 1)
    models.room = 1
    with pytest.raises(RunFailed, match=r"none of 2 prompts could be answered .*\nhelp: set few_shot\.shots to less"):
        evaluate(tmp_path, [demo(*each) for each in DEMOS], models=models)


# --- refusals


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (
            [demo(*DEMOS[0])],
            "few_shot.examples has 1 different examples, but shots is 2\nhelp: .* set shots to 1 or less",
        ),
        ([demo(*DEMOS[0])] * 5, "has 1 different examples"),
        ([asked("one?")], "few_shot.examples: a row .'one.'. has no response\nhelp"),
        ([replace(demo(*DEMOS[0]), responses=(Response("a", label=False),))], "is labeled as bad"),
        ([replace(demo(*DEMOS[0]), responses=(Response("a"), Response("b")))], "has 2 responses"),
        ([demo(*DEMOS[0]), Group((), (Response("text"),))], "mixes demonstrations and raw texts"),
    ],
)
def test_data_that_has_no_examples(tmp_path: Path, examples: list[Group], message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(tmp_path, examples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"few_shot": {"policies": ["base", "base"]}}, "policies has duplicates: base"),
        ({"few_shot": {"policies": []}}, "at least 1"),
        ({"few_shot": {"policies": ["sft+4"]}}, r"'sft\+4' is no stage: results call sft so with 4 examples"),
        ({"policies": ["base", "sft@2+4"]}, r"`few_shot: \{policies: \[sft@2\], examples: DATA, shots: 4\}`"),
        ({"policies": ["base", "sft"], "baseline": "sft+4"}, r"shots: 4, baseline: true\}`"),
        ({"few_shot": {"shots": 0}}, "greater than or equal to 1"),
        ({"few_shot": {"baseline": True}, "baseline": "sft"}, "baseline and few_shot.baseline name two baselines"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        evaluate(tmp_path, [], **options)


def recipe(folder: Path, few_shot: dict[str, Any], **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_groups(folder / "demos.jsonl", [demo(*each) for each in DEMOS])
    write_groups(folder / "prompts.jsonl", [asked("four?"), asked("one?")])
    adapted = {"learning_rate": 0.02, "max_steps": 3, "batch_size": 1}
    stages = {
        "sft": {"algorithm": "sft", "data": "demos.jsonl", **adapted},
        "whole": {"step": "merge", "model": "sft"},
        "compare": {"step": "evaluate", "policies": ["base", "sft"], "rewards": ["length"], "prompts": "prompts.jsonl"}
        | {"max_new_tokens": 8, "temperature": 0.7, "few_shot": few_shot, **options},
    }
    model = {"base": "tiny", "dtype": "float32", "lora": {"r": 4, "lora_alpha": 8}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": model, "stages": stages}), encoding="utf-8")
    return folder / "recipe.yaml"


@pytest.mark.parametrize(
    ("few_shot", "said", "line", "help"),
    [
        ({"policies": ["sfd"]}, "no stage 'sfd'", "- sfd", "did you mean 'sft'"),
        ({"policies": ["sft"], "count": 3}, "unknown key 'count'", "count: 3", "shots"),
        ({"policies": ["sft"], "shots": "many"}, "expected an integer", "shots: many", ""),
        ({"policies": ["sft"], "examples": "demo.jsonl"}, "demo.jsonl", "examples: demo.jsonl", "demos.jsonl"),
    ],
)
def test_refusals_show_the_line(tmp_path: Path, few_shot: dict[str, Any], said: str, line: str, help: str) -> None:
    path = recipe(tmp_path, {"examples": "demos.jsonl", **few_shot})
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    message = str(caught.value)
    shown = next(number for number, text in enumerate(message.splitlines()) if line in text)
    assert said in message and "^" in message.splitlines()[shown + 1] and help in message


# --- with real models


def test_the_kl_against_transformers(tmp_path: Path) -> None:
    """Sampled with examples; log p with the examples minus log p without, both by transformers on the merged model."""
    few_shot = {"policies": ["sft"], "examples": "demos.jsonl", "shots": 2, "baseline": True}
    judges = [{"local_judge": {"role": "base", "min_mass": 0}}]
    path = recipe(tmp_path, few_shot, judges=judges)
    assert main(["run", str(path), "--out", str(tmp_path / "run")]) == 0
    out = tmp_path / "run" / "compare"
    found = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert (found["baseline"], found["reference"]) == ("sft+2", "sft")
    assert list(found["judged"]) == ["base", "sft"] and list(found["ranking"]["length"]) != []
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "whole" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "whole" / "model")
    drawn = [(g.prompt[0]["content"], g.responses[0].text) for g in read_groups(out / "examples.jsonl")]
    spare = next(each for each in DEMOS if each not in drawn)

    def logprob(messages: list[dict[str, str]], response: tuple[int, ...]) -> float:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(text, add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = plain(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].double()
        return float((logits / 0.7).log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum())

    ratios = []
    for group in read_groups(out / "samples.jsonl"):
        question = {"role": USER, "content": group.prompt[0]["content"]}
        others = [each for each in drawn if each[0] != question["content"]]
        others += [spare] if len(others) < 2 else []
        turns = [{"role": r, "content": t} for q, a in others for r, t in ((USER, q), (ASSISTANT, a))]
        (response,) = [r for r in group.responses if r.source == "sft+2"]
        assert response.tokens is not None and len(group.prompt) == 1
        ratios.append(logprob([*turns, question], response.tokens) - logprob([question], response.tokens))
    assert len(ratios) == 2 and abs(ratios[0]) > 1e-3
    assert found["policies"]["sft+2"]["kl"]["mean"] == pytest.approx(sum(ratios) / 2, abs=1e-5)


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    few_shot = {"policies": ["base"], "examples": "demos.jsonl", "shots": 2}
    names = ("samples.jsonl", "examples.jsonl", "evaluation.json", "report.txt")
    found = []
    for place in ("a", "b"):
        path = recipe(tmp_path / place, few_shot)
        assert main(["run", str(path), "--out", str(tmp_path / place / "run")]) == 0
        found.append([(tmp_path / place / "run" / "compare" / name).read_bytes() for name in names])
    assert found[0] == found[1]
