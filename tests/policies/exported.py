"""A run to export from: a policy, a reward model and an evaluation; and what its own models
compute.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from alignkit import Group, Message, Response
from alignkit.cli import main
from alignkit.data.group import write_groups
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import Run

WORDS = ("bread is good", "my old friend", "the people in this house")
KEY = "hf_" + "Ab1" * 12


def train(
    folder: Path, model: dict[str, Any], stages: dict[str, Any] | None = None, **keys: Any
) -> Path:
    """A finished run in `folder`/run of some of the stages that tests export."""
    rows = [
        Group((Message(role="user", content=text),), (Response(text=text[::-1]),)) for text in WORDS
    ]
    write_groups(folder / "demos.jsonl", rows)
    both = (Response(text="good bread", rank=0), Response(text="no", rank=1))
    write_groups(folder / "pairs.jsonl", [Group(group.prompt, both) for group in rows])
    table = (
        "| file | source | license |\n"
        "|---|---|---|\n"
        "| `demos.jsonl` | a friend \\| of ours | MIT |\n"
    )
    (folder / "LICENSES.md").write_text(table, encoding="utf-8")
    if stages is None:
        stages = {
            "sft": {
                "algorithm": "sft",
                "data": "demos.jsonl",
                "max_steps": 3,
                "batch_size": 1,
                "keep_versions": True,
            },
            "liked": {
                "algorithm": "reward_model",
                "from": "sft",
                "data": "pairs.jsonl",
                "max_steps": 2,
            },
            "report": {
                "step": "evaluate",
                "policies": ["base", "sft"],
                "rewards": ["liked"],
                "prompts": "demos.jsonl",
            },
        }
        stages["sft"]["learning_rate"] = stages["liked"]["learning_rate"] = 0.02
        stages["report"] |= {"sampling": {"max_new_tokens": 8}}
    recipe = {"model": {"base": "tiny", "dtype": "float32", **model}, "stages": stages, **keys}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["run", str(folder / "recipe.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def groups() -> list[Group]:
    """Conversations to compare numbers on."""
    return [
        Group((Message(role="user", content=text),), (Response(text="good old bread"),))
        for text in WORDS
    ]


def models_of(run: Path) -> Any:
    """The models of a run."""
    return Run(load_recipe(run.parent / "recipe.yaml"), run).models


def export(*words: str) -> int:
    """The exit code of the command."""
    return main(["export", *map(str, words)])


def check_logprobs(
    model: Any, tokenizer: Any, run: Path, reference: str, most: float = 1e-5, base: str = "base"
) -> None:
    """A causal language model computes the log-probabilities of a role of the run."""
    models = models_of(run)
    ours, plain = models[reference].logprobs(groups()), models[base].logprobs(groups())
    assert (
        max(float((one - other).abs().max()) for one, other in zip(ours, plain, strict=True)) > 0.01
    )
    for group, wanted in zip(groups(), ours, strict=True):
        text = tokenizer.apply_chat_template(
            list(group.prompt), add_generation_prompt=True, tokenize=False
        )
        prompt = tokenizer(text, add_special_tokens=False).input_ids
        encoded = models.of(base).encoder.encode(group, 256)
        assert encoded is not None and tuple(prompt) == encoded.prompt
        response = encoded.rows[0].tokens
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(logprobs, wanted, atol=most, rtol=0)


def check_scores(model: Any, tokenizer: Any, run: Path) -> None:
    """A classifier gives the scores of the run's reward model, alone and in padded batches."""
    wanted = models_of(run)["liked"].scores(groups())
    assert len(set(wanted)) > 1
    rows = [
        [*group.prompt, Message(role="assistant", content=group.responses[0].text)]
        for group in groups()
    ]
    texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        together = model(**batch).logits
        alone = [
            model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits
            for text in texts
        ]
    assert together.shape == (len(texts), 1)
    assert together[:, 0].tolist() == pytest.approx(wanted, abs=1e-5)
    assert [float(score) for score in alone] == pytest.approx(wanted, abs=1e-5)
