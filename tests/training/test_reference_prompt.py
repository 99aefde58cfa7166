"""A reference that reads the responses behind another prompt than the policy's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM
from watched import STILL, Watched, online

from alignkit import Group, Message, Needs
from alignkit.cli import main
from alignkit.errors import PluginError

TEMPERATURE = 0.6
ROLLOUT = {"samples_per_prompt": 2, "max_new_tokens": 5, "temperature": TEMPERATURE}
SHOTS = (
    Message(role="user", content="the house of bread"),
    Message(role="assistant", content="my old friend"),
)

pytestmark = pytest.mark.usefixtures("one_thread")


class FewShot(Watched):
    """Watched, with a reference that is shown an example first. shots: put in front of a prompt."""

    shots: Sequence[Message] = SHOTS

    def reference_prompt(self, group: Group) -> Sequence[Message]:
        return (*self.shots, *group.prompt)


def by_hand(
    source: str, prompt: Sequence[int], response: Sequence[int], temperature: float
) -> torch.Tensor:
    """Log-probabilities of a response's tokens after a prompt, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    return logprobs.gather(1, torch.tensor(response)[:, None])[:, 0]


def test_the_same_response_tokens_are_measured_behind_the_references_prompt(tmp_path: Path) -> None:
    """Policy and reference are the same model here: the self-check that their KL is 0 does not
    apply.
    """
    watched = FewShot(Needs(reference_logprobs=True, old_logprobs=True))
    found = online(
        tmp_path, watched, rollout=ROLLOUT, learning_rate=STILL, iterations=1, plugin="online_dpo"
    )
    batch, models = watched.measured, found.run.models.of("base")
    assert batch is not None and found.metrics[0]["kl"] != pytest.approx(0, abs=1e-2)
    responses = [(group, response) for group in batch.groups for response in group.responses]
    for (group, response), reference, old in zip(
        responses, batch.reference_logprobs, batch.old_logprobs, strict=True
    ):
        assert response.tokens is not None
        count = len(response.tokens)
        behind = models.encoder.prompt((*SHOTS, *group.prompt))
        own = models.encoder.prompt(group.prompt)
        source = found.run.models.of("base").model.source
        torch.testing.assert_close(
            reference[:count],
            by_hand(source, behind, response.tokens, TEMPERATURE),
            atol=1e-4,
            rtol=0,
        )
        torch.testing.assert_close(
            old[:count], by_hand(source, own, response.tokens, TEMPERATURE), atol=1e-4, rtol=0
        )


def test_the_self_check_still_applies_if_no_prompt_differs(tmp_path: Path) -> None:
    class Same(FewShot):
        shots = ()

    found = online(
        tmp_path,
        Same(Needs(reference_logprobs=True)),
        rollout=ROLLOUT,
        plugin="online_dpo",
        iterations=1,
    )
    assert found.metrics[0]["kl"] == pytest.approx(0, abs=1e-4)


def test_groups_that_select_makes_are_read_behind_it_too(tmp_path: Path) -> None:
    def shorter(groups: Sequence[Group]) -> list[Group]:
        return [Group(group.prompt, group.responses[:1]) for group in groups]

    watched = FewShot(Needs(reference_logprobs=True, old_logprobs=True), shorter)
    found = online(
        tmp_path, watched, rollout=ROLLOUT, learning_rate=STILL, iterations=1, plugin="online_dpo"
    )
    batch = watched.seen[0].learned[0]
    for group, reference in zip(batch.groups, batch.reference_logprobs, strict=True):
        (response,) = group.responses
        assert response.tokens is not None
        behind = found.run.models.of("base").encoder.prompt((*SHOTS, *group.prompt))
        wanted = by_hand(
            found.run.models.of("base").model.source, behind, response.tokens, TEMPERATURE
        )
        torch.testing.assert_close(reference[: len(response.tokens)], wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("shots", "problem"),
    [
        ("Be brief.", "Input should be a valid dictionary"),
        ([{"role": "user"}], "ValidationError"),
        (None, "return the messages of a prompt, not None"),
    ],
)
def test_messages_that_are_none_are_the_plugins_mistake(
    tmp_path: Path, shots: object, problem: str
) -> None:
    class Wrong(FewShot):
        def reference_prompt(self, group: Group) -> Sequence[Message]:
            return shots  # type: ignore[return-value]

    with pytest.raises(PluginError, match=problem):
        online(
            tmp_path,
            Wrong(Needs(reference_logprobs=True)),
            rollout=ROLLOUT,
            plugin="online_dpo",
            iterations=1,
        )


def test_no_prompt_is_the_plugins_mistake(tmp_path: Path) -> None:
    class Without(FewShot):
        def reference_prompt(self, group: Group) -> Sequence[Message]:
            return ()

    with pytest.raises(PluginError, match="return the messages of a prompt, not"):
        online(
            tmp_path,
            Without(Needs(reference_logprobs=True)),
            rollout=ROLLOUT,
            plugin="online_dpo",
            iterations=1,
        )


def test_a_prompt_that_fills_the_context_is_refused_before_sampling(tmp_path: Path) -> None:
    class Long(FewShot):
        shots = (
            Message(role="user", content="bread " * 5000),
            Message(role="assistant", content="good"),
        )

    with pytest.raises(
        Exception, match=r"stage 'align': the reference's prompt of .* leaves no room"
    ) as error:
        online(
            tmp_path,
            Long(Needs(reference_logprobs=True)),
            rollout=ROLLOUT,
            plugin="online_dpo",
            iterations=1,
        )
    assert "5 response tokens in the model's context" in str(error.value)
    assert not list((tmp_path / "run" / "align").glob("rollouts/*"))


# A data set

PLUGIN = """
from alignkit import *

class Distant(Algorithm):
    class Options(Options):
        shot: str = Field("", description="x")

    needs = Needs(reference_logprobs=True)

    def reference_prompt(self, group):
        shot = (Message(role="user", content=self.options.shot), Message(role="assistant", content="yes"))
        return (*shot, *group.prompt) if self.options.shot else group.prompt

    def loss(self, batch, out):
        return Loss(nll=per_token(-out.logprobs), reference=per_token(batch.reference_logprobs + 0 * out.logprobs))

@hookimpl
def register(add):
    add("algorithm", "distant", Distant)
"""


def offline(folder: Path, shot: str) -> float:
    """The mean log-probability of the demonstrations under the reference, measured at the first
    step.
    """
    align = {
        "algorithm": {"distant": {"shot": shot}},
        "data": "demos.jsonl",
        "batch_size": 8,
        "max_steps": 1,
    }
    recipe = {"model": {"base": "tiny", "dtype": "float32"}, "stages": {"align": align}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (folder / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    run = folder / f"run-{len(list(folder.glob('run-*')))}"
    assert (
        main(
            [
                "run",
                str(folder / "recipe.yaml"),
                "--plugin",
                str(folder / "plugin.py"),
                "--out",
                str(run),
            ]
        )
        == 0
    )
    (line,) = (run / "align" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return float(json.loads(line)["reference"])
