"""A reference that reads the responses behind another prompt than the policy's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from watched import STILL, Ran, Watched, online

from alignkit import Group, Message, Needs
from alignkit.errors import DataError, PluginError
from tests.by_transformers import logprobs

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


def measured(folder: Path, watched: FewShot) -> Ran:
    return online(
        folder, watched, plugin="online_dpo", rollout=ROLLOUT, learning_rate=STILL, iterations=1
    )


@pytest.mark.parametrize("made_by_select", [False, True])
def test_the_same_response_tokens_are_measured_behind_the_references_prompt(
    tmp_path: Path, made_by_select: bool
) -> None:
    """Policy and reference are the same model here: the self-check that their KL is 0 does not
    apply.
    """

    def shorter(groups: Sequence[Group]) -> list[Group]:
        return [Group(group.prompt, group.responses[:1]) for group in groups]

    needs = Needs(reference_logprobs=True, old_logprobs=True)
    watched = FewShot(needs, shorter) if made_by_select else FewShot(needs)
    found = measured(tmp_path, watched)
    batch = watched.seen[0].learned[0] if made_by_select else watched.measured
    models = found.run.models.of("base")
    assert batch is not None and found.metrics[0]["kl"] != pytest.approx(0, abs=1e-2)
    responses = [(group, response) for group in batch.groups for response in group.responses]
    for (group, response), reference, old in zip(
        responses, batch.reference_logprobs, batch.old_logprobs, strict=True
    ):
        assert response.tokens is not None
        for values, shots in ((reference, SHOTS), (old, ())):
            prompt = models.encoder.prompt((*shots, *group.prompt))
            wanted = logprobs(models.model.source, prompt, response.tokens, TEMPERATURE)
            torch.testing.assert_close(values[: len(wanted)], wanted, atol=1e-4, rtol=0)


def test_the_self_check_still_applies_if_no_prompt_differs(tmp_path: Path) -> None:
    class Same(FewShot):
        shots = ()

    found = measured(tmp_path, Same(Needs(reference_logprobs=True)))
    assert found.metrics[0]["kl"] == pytest.approx(0, abs=1e-4)


LONG = (Message(role="user", content="bread " * 5000), Message(role="assistant", content="good"))


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ("Be brief.", "Input should be a valid dictionary"),
        ([{"role": "user"}], "ValidationError"),
        (None, "return the messages of a prompt, not None"),
        ((), "return the messages of a prompt, not"),
        (LONG, "stage 'align': the reference's prompt of .* leaves no room"),
    ],
    ids=["text", "no content", "none", "empty", "too long"],
)
def test_what_is_no_prompt_is_refused_before_sampling(
    tmp_path: Path, prompt: Any, problem: str
) -> None:
    class Wrong(FewShot):
        def reference_prompt(self, group: Group) -> Sequence[Message]:
            return prompt  # type: ignore[no-any-return]

    with pytest.raises((PluginError, DataError), match=problem):
        measured(tmp_path, Wrong(Needs(reference_logprobs=True)))
    assert not list((tmp_path / "run" / "align").glob("rollouts/*"))
