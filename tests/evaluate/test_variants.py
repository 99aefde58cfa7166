"""Policies with examples in front, or the best of several answers: what is read, chosen, paid and
said of them.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from by_policy import by_policy
from by_role import ByRole
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit import DataError, Group, Message, Response, RunFailed, StepContext
from alignkit import functional as F
from alignkit.cli import main
from alignkit.data.group import read_groups, write_groups
from alignkit.data.sources import DataSpec
from alignkit.errors import RecipeError
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import RewardSpec
from alignkit_plugins.evaluate.step import Evaluate
from alignkit_plugins.evaluate.variant import Variant, answering, best_places, shots_of

USER, ASSISTANT = "user", "assistant"
DEMOS = [("one?", "1"), ("two?", "2"), ("three?", "3")]


def asked(text: str, *before: Message, **meta: Any) -> Group:
    return Group((*before, Message(role=USER, content=text)), meta=meta)


def demo(question: str, answer: str, *before: Message) -> Group:
    return replace(asked(question, *before), responses=(Response(text=answer),))


def texts(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in messages]


class Models(ByRole):
    """Models that answer the words that they read; log-probabilities are the number of turns that a
    role reads.
    """

    def __init__(self) -> None:
        self.read: dict[str, list[list[list[tuple[str, str]]]]] = {}
        self.seeds: list[int] = []
        self.room = 99  # turns

    def sample(
        self, role: str, groups: Sequence[Group], *, seed: int, **sampling: Any
    ) -> list[Group]:
        prompts = [group.prompt for group in groups]
        self.read.setdefault(role, []).append([texts(prompt) for prompt in prompts])
        self.seeds.append(seed)
        drafts = range(sampling["samples_per_prompt"])
        return [
            Group(
                tuple(prompt),
                tuple(self.answer(role, prompt, k) for k in drafts)
                if len(prompt) <= self.room
                else (),
            )
            for prompt in prompts
        ]

    def answer(self, role: str, prompt: Sequence[Message], draft: int) -> Response:
        return Response(
            f"{role} read {len(prompt)}",
            tokens=(1, 2) + (3,) * draft,
            logprobs=(-1.0,) * (2 + draft),
        )

    def prompt_lengths(self, role: str, prompts: Sequence[Group]) -> list[int]:
        return [10 * len(group.prompt) for group in prompts]

    def logprobs(self, role: str, groups: Sequence[Group], **options: Any) -> list[torch.Tensor]:
        return [
            torch.full((len(r.tokens or ()),), float(len(g.prompt)))
            for g in groups
            for r in g.responses
        ]


class Scorer:
    """A reward that keeps the prompts that it is given; later answers are better."""

    def __init__(self) -> None:
        self.read: list[list[tuple[str, str]]] = []

    def score(self, groups: Sequence[Group]) -> list[Group]:
        self.read += [texts(group.prompt) for group in groups]
        return [
            replace(
                g,
                responses=tuple(
                    replace(r, scores={"reward": float(n)}) for n, r in enumerate(g.responses)
                ),
            )
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
    own = StepContext(
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
    prompted = {"policy": "base", "few_shot": "examples", **(few_shot or {})}
    options = {"policies": ["base", prompted, "sft"], "rewards": ["length"], **options}
    step = Evaluate(Evaluate.Options(prompts="prompts", **options))
    step.options.rewards = []
    step.options.rewards = [_SPEC]
    return by_policy(step.run(own).summary or {}), models, scorer


_SPEC = RewardSpec("reward", "length")


# --- what the model reads


def test_examples_are_earlier_turns_and_the_same_for_all_prompts(tmp_path: Path) -> None:
    found, models, _ = evaluate(tmp_path, [demo(*each) for each in DEMOS])
    plain, with_examples = models.read["base"]
    assert plain == [[(USER, "four?")], [(USER, "five?")]]
    turns = [turn for question, answer in DEMOS for turn in ((USER, question), (ASSISTANT, answer))]
    assert with_examples == [[*turns, (USER, "four?")], [*turns, (USER, "five?")]]
    assert models.read["sft"] == [plain] and len(set(models.seeds)) == 1
    assert list(found["policies"]) == ["base", "base, few-shot", "sft"]


def test_examples_that_show_a_prompt_are_an_error(tmp_path: Path) -> None:
    """Also a question within a dialogue; prompts beyond `limit` do not count."""
    prompts = [asked("four?"), asked("three?")]
    with pytest.raises(DataError, match=r"few_shot: a row .*'three\?'.* shows a prompt") as error:
        evaluate(tmp_path, [demo(*each) for each in DEMOS], prompts)
    assert error.value.option == ("policies", 1, "few_shot")
    evaluate(tmp_path, [demo(*each) for each in DEMOS], prompts, limit=1)
    turns = (Message(role=ASSISTANT, content="1"), Message(role=USER, content="and?"))
    answer = Response("2", messages=(*turns, Message(role=ASSISTANT, content="2")))
    inner = Group((Message(role=USER, content="one?"), *turns))
    with pytest.raises(DataError, match="shows a prompt"):
        shots_of([replace(asked("one?"), responses=(answer,))], [inner])


def test_system_messages(tmp_path: Path) -> None:
    """The prompt's own stays first; those of examples would stand in the middle, which templates
    refuse.
    """
    own, other = (Message(role="system", content=text) for text in ("Be kind.", "Be brief."))
    shots = [demo(*each, other) for each in DEMOS[:2]]
    _, models, _ = evaluate(tmp_path, shots, [asked("four?", own)])
    read = models.read["base"][1][0]
    assert [role for role, _ in read] == ["system", USER, ASSISTANT, USER, ASSISTANT, USER]
    assert read[0][1] == "Be kind."


def test_a_dialogue_keeps_its_turns(tmp_path: Path) -> None:
    turns = (
        Message(role=ASSISTANT, content="1", train=True),
        Message(role=USER, content="and?"),
        Message(role=ASSISTANT, content="2", train=False),
    )
    dialogue = replace(asked("one?"), responses=(Response("2", messages=turns),))
    _, models, _ = evaluate(tmp_path, [dialogue])
    assert [text for _, text in models.read["base"][1][0]] == ["one?", "1", "and?", "2", "four?"]
    few_shot = Variant(policy="sft", few_shot=DataSpec(()))
    read = answering(few_shot, [dialogue], None).read(asked("four?"))
    assert all("train" not in turn for turn in read.prompt)


# --- what nobody else reads


def test_rewards_and_files_have_the_plain_prompt(tmp_path: Path) -> None:
    _, _, scorer = evaluate(tmp_path, [demo(*each) for each in DEMOS])
    assert scorer.read == [[(USER, "four?")], [(USER, "five?")]]
    samples = read_groups(tmp_path / "out" / "samples.jsonl")
    assert [texts(group.prompt) for group in samples] == scorer.read
    assert [(r.source, r.text) for r in samples[0].responses] == [
        ("base", "base read 1"), ("base, few-shot", "base read 7"), ("sft", "sft read 1"),
    ]  # fmt: skip


def test_the_kl_is_of_what_each_reads(tmp_path: Path) -> None:
    """The policy's log-probabilities are 7 a token with three examples, the reference's 1
    without.
    """
    found, _, _ = evaluate(tmp_path, [demo(*each) for each in DEMOS])
    assert {name: each["kl"]["mean"] for name, each in found["policies"].items()} == {
        "base": 0.0, "base, few-shot": pytest.approx(2 * (math.exp(-6.0) - 1 + 6.0)), "sft": 0.0,
    }  # fmt: skip


def test_a_policy_may_only_answer_with_examples(tmp_path: Path) -> None:
    shots = {"policy": "base", "few_shot": "examples"}
    found, models, _ = evaluate(tmp_path, [demo(*each) for each in DEMOS], policies=[shots, "sft"])
    assert (
        list(found["policies"]) == ["base, few-shot", "sft"]
        and found["baseline"] == "base, few-shot"
    )
    assert len(models.read["base"]) == 1


def test_prompts_without_room_for_the_examples_are_left_out_for_all(tmp_path: Path) -> None:
    models = Models()
    models.room = 7
    long = asked("six?", Message(role=USER, content="a"), Message(role=ASSISTANT, content="b"))
    found, _, _ = evaluate(
        tmp_path, [demo(*each) for each in DEMOS], [asked("four?"), long], models
    )
    assert (found["prompts"], found["left_out"]) == (1, 1)
    models.room = 1
    with pytest.raises(
        RunFailed, match=r"none of 2 prompts could be answered .*\nhelp: leave more room"
    ):
        evaluate(tmp_path, [demo(*each) for each in DEMOS], models=models)


# --- refusals


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([asked("one?")], "few_shot: a row .'one.'. ends with the user"),
        ([replace(demo(*DEMOS[0]), responses=(Response("a", label=False),))], "is labeled as bad"),
        ([replace(demo(*DEMOS[0]), responses=(Response("a"), Response("b")))], "has 2 responses"),
        ([Group((), (Response("text"),))], "is raw text without a prompt"),
    ],
)
def test_data_that_has_no_examples(tmp_path: Path, examples: list[Group], message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(tmp_path, examples)


HELPED: dict[str, Any] = {"policy": "sft", "best_of": 4, "reward": "length"}


@pytest.mark.parametrize(
    ("policies", "message", "options"),
    [
        ([HELPED, HELPED], "policies has duplicates: sft, best of 4 by length", {}),
        ([{"policy": "sft", "best_of": 4}], "best_of and reward belong together", {}),
        ([{"policy": "sft", "reward": "length"}], "best_of and reward belong together", {}),
        ([{"policy": "sft"}], "it would answer as sft does", {}),
        (["base", HELPED], (
            "must be one of the policies: base"
        ), {"baseline": (
            "sft, best of 4 by length"
        )}),
    ],
)  # fmt: skip
def test_options_that_cannot_be(
    tmp_path: Path, policies: list[Any], message: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError, match=message):
        evaluate(tmp_path, [], policies=policies, **options)


# --- the best of several answers


def test_best_of_n_is_the_expected_maximum(tmp_path: Path) -> None:
    """Draft k of a prompt scores k. Of four answers, each the best of three, the mean is that of 2,
    5, 8 and 11.
    """
    best = {"policy": "sft", "best_of": 3, "reward": _SPEC, "name": "best"}
    found, models, _ = evaluate(
        tmp_path, [], policies=["base", "sft", best], samples_per_prompt=4, baseline="base"
    )
    samples = read_groups(tmp_path / "out" / "samples.jsonl")
    lengths = [
        [len(r.tokens or ()) for r in group.responses if r.source == "best"] for group in samples
    ]
    assert lengths == [[4, 7, 10, 13]] * 2  # of draft k: 2 + k
    assert [r.logprobs for r in samples[0].responses if r.source == "best"] == [None] * 4
    assert models.seeds[0] == models.seeds[1] and [len(g) for g in models.read["sft"]] == [2, 2]
    assert found["policies"]["best"]["kl"]["mean"] == pytest.approx(math.log(3) - 2 / 3)
    assert any(note.startswith("KL of best: at most this") for note in found["notes"])


def test_the_reward_reads_the_plain_prompt_when_it_chooses(tmp_path: Path) -> None:
    best = {"policy": "base", "few_shot": "examples", "best_of": 2, "reward": _SPEC}
    found, _, scorer = evaluate(tmp_path, [demo(*each) for each in DEMOS], policies=["sft", best])
    assert list(found["policies"]) == ["sft", "base, few-shot, best of 2 by length"]
    assert scorer.read == [[(USER, "four?")], [(USER, "five?")]] * 2  # to choose, and to score


@pytest.mark.parametrize(
    ("scores", "places"),
    [
        ([1, 3, 2, 5, 4, 4], [1, 3]),
        ([2, 2, 2, None, None, 0], [0, 5]),
        ([None, None, None], [0]),
        ([], []),
    ],
)
def test_the_first_of_equal_answers_wins_and_one_without_a_score_loses(
    scores: list[Any], places: list[int]
) -> None:
    assert best_places(scores, 3) == places


def test_the_expected_maximum_of_known_scores() -> None:
    """Over all ways to draw three of six scores, as `expected_best_of_n` says."""
    scores = [0.1, 0.9, 0.4, 0.7, 0.2, 0.5]
    maxima = [
        max(best)
        for draws in itertools.combinations(scores, 3)
        for best in [[draws[p] for p in best_places(draws, 3)]]
    ]
    known = F.expected_best_of_n(torch.tensor([scores], dtype=torch.float64), 3)
    assert sum(maxima) / len(maxima) == pytest.approx(float(known))


def test_a_reward_judges_what_it_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict says that it is no independent rater; another measure is
    independent.
    """
    own = {"policy": "sft", "best_of": 4, "reward": _SPEC}
    metrics = {"long": {"reward": _SPEC}, "other": {"reward": RewardSpec("reward", "other")}}
    shares = lambda one, rater: True if one == rater else None  # noqa: E731
    monkeypatch.setattr("alignkit_plugins.evaluate.step.learned_by", lambda step: shares)
    found, _, _ = evaluate(tmp_path, [], policies=["sft", own], metrics=metrics)
    name = "sft, best of 4 by length"
    own = found["trained_on"][name]
    assert (own["long"], own["other"]) == (True, None)


def recipe(folder: Path, variant: dict[str, Any], **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_groups(folder / "demos.jsonl", [demo(*each) for each in DEMOS])
    write_groups(folder / "prompts.jsonl", [asked("four?"), asked("five?")])
    adapted = {"learning_rate": 0.02, "max_steps": 3, "batch_size": 1}
    stages = {
        "sft": {"algorithm": "sft", "data": "demos.jsonl", **adapted},
        "compare": {"step": "evaluate", "policies": ["base", "sft", variant], "rewards": ["length"]}
        | {
            "prompts": "prompts.jsonl",
            "sampling": {"max_new_tokens": 8, "temperature": 0.7},
            **options,
        },
    }
    model = {"base": "tiny", "dtype": "float32", "lora": {"r": 4, "lora_alpha": 8}}
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump({"model": model, "stages": stages}), encoding="utf-8"
    )
    return folder / "recipe.yaml"


@pytest.mark.parametrize(
    ("variant", "said", "line", "help"),
    [
        (
            {"policy": "sfd"},
            "'sfd' is neither a stage nor a folder",
            "policy: sfd",
            "did you mean 'sft'",
        ),
        ({"few_shots": 3}, "unknown key 'few_shots'", "few_shots: 3", "few_shot"),
        ({"best_of": "many"}, "must be a valid integer", "best_of: many", ""),
        ({"few_shot": "demo.jsonl"}, "demo.jsonl", "few_shot: demo.jsonl", "demos.jsonl"),
        ({"best_of": 4}, "best_of and reward belong together", "- best_of: 4", ""),
        (
            {"best_of": 4, "reward": "lenght"},
            "no reward 'lenght'",
            "reward: lenght",
            "did you mean 'length'",
        ),
    ],
)
def test_refusals_show_the_line(
    tmp_path: Path, variant: dict[str, Any], said: str, line: str, help: str
) -> None:
    path = recipe(tmp_path, {"policy": "sft", "few_shot": "demos.jsonl", **variant})
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    message = str(caught.value)
    shown = next(number for number, text in enumerate(message.splitlines()) if line in text)
    assert said in message and "^" in message.splitlines()[shown + 1] and help in message


# --- with real models


def test_the_kl_against_transformers(tmp_path: Path) -> None:
    """Sampled with examples; k3 of log p with the examples and without, both by transformers on the
    merged model.
    """
    shots = {"policy": "sft", "few_shot": "demos.jsonl"}
    judges = [{"local_judge": {"role": "base", "min_mass": 0}}]
    path = recipe(tmp_path, shots, judges=judges)
    assert main(["run", str(path), "--out", str(tmp_path / "run")]) == 0
    assert main(["export", str(tmp_path / "run" / "sft"), str(tmp_path / "whole"), "--merge"]) == 0
    out = tmp_path / "run" / "compare"
    found = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    found = by_policy(found)
    assert found["baseline"] == "sft" and list(found["judged"]) == ["base", "sft, few-shot"]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")

    def logprobs(messages: list[dict[str, str]], response: tuple[int, ...]) -> torch.Tensor:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(text, add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = (
                plain(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].double()
            )
        return (logits / 0.7).log_softmax(-1).gather(1, torch.tensor(response)[:, None])

    ratios = []
    for group in read_groups(out / "samples.jsonl"):
        question = {"role": USER, "content": group.prompt[0]["content"]}
        turns = [
            {"role": r, "content": t} for q, a in DEMOS for r, t in ((USER, q), (ASSISTANT, a))
        ]
        (response,) = [r for r in group.responses if r.source == "sft, few-shot"]
        assert response.tokens is not None and len(group.prompt) == 1
        gap = logprobs([*turns, question], response.tokens) - logprobs([question], response.tokens)
        ratios.append(float(((-gap).exp() - 1 + gap).sum()))
    assert len(ratios) == 2 and abs(ratios[0]) > 1e-3
    assert found["policies"]["sft, few-shot"]["kl"]["mean"] == pytest.approx(
        sum(ratios) / 2, abs=1e-5
    )


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    shots = {
        "policy": "base",
        "few_shot": "demos.jsonl",
        "best_of": 2,
        "reward": "length",
    }
    names = ("samples.jsonl", "evaluation.json", "report.txt")
    found = []
    for place in ("a", "b"):
        path = recipe(tmp_path / place, shots)
        assert main(["run", str(path), "--out", str(tmp_path / place / "run")]) == 0
        found.append([(tmp_path / place / "run" / "compare" / name).read_bytes() for name in names])
    assert found[0] == found[1]
