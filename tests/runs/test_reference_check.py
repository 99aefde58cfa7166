"""A whole model as reference: a teacher that reads the policy's tokens, or is refused before
anything trains.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from test_bases import TEMPLATE, TINY, make_model

from alignkit import Message
from alignkit.cli import main
from alignkit.contract.batch import Batch
from alignkit.data.group import Group
from alignkit.errors import DataError
from alignkit.io.digest import digest
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import Run
from alignkit.runs.stage import TrainingStage
from alignkit.tokens.encoder import Encoded
from alignkit.training.encoding import ReferencePrompts
from alignkit.training.trainer import Trainer
from alignkit_plugins.algorithms.distillation import Distillation
from alignkit_plugins.algorithms.dpo import DPO
from tests.by_hand import new
from tests.by_transformers import logprobs, prompt_ids
from tests.rows import Said, run, user, write_recipe

TEMPERATURE = 0.7
STUDENT = yaml.safe_load("""
algorithm: {distillation: {context: [{role: user, content: Be brief.}]}}
prompts: prompts.jsonl
iterations: 2
prompts_per_iteration: 3
rollout: {samples_per_prompt: 2, max_new_tokens: 8, temperature: 0.7}
""")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the tokenizer of `tiny`, another chat template, and weights of its own."""
    return make_model(tmp_path_factory.mktemp("big"), 0)


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("shifted"), 7)


def student(folder: Path, reference: Path, **model: Any) -> Path:
    """A recipe that distills a reference."""
    stages = {"student": {**STUDENT, "reference": str(reference)}}
    return write_recipe(folder, stages, TINY | model)


def assert_read_by(source: Path, batch: Batch, temperature: float, *context: Message) -> None:
    """The reference's log-probabilities are what transformers says of the same tokens, behind the
    context and the prompt in its own chat template.
    """
    owners = [batch.groups[owner].prompt for owner in batch.group_index]
    columns = (owners, batch.tokens, batch.mask, batch.reference_logprobs)
    for messages, tokens, mask, found in zip(*columns, strict=True):
        prompt = prompt_ids(source, (*context, *messages))
        wanted = logprobs(source, prompt, tokens[mask].tolist(), temperature)
        torch.testing.assert_close(found[mask], wanted, atol=1e-5, rtol=1e-5)


def test_a_whole_teacher_reads_the_policys_tokens(
    big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Batch] = []
    signal = Distillation.signal
    monkeypatch.setattr(
        Distillation, "signal", lambda self, batch: (seen.append(batch), signal(self, batch))[1]
    )
    made = Run(load_recipe(student(tmp_path, big)), tmp_path / "out")
    made.execute()
    assert len(seen) == 2 and made.recipe.stages["student"].whole_models == (str(big),)
    for batch in seen:
        assert_read_by(big, batch, TEMPERATURE, user("Be brief."))
        assert float((batch.reference_logprobs - batch.old_logprobs).abs().max()) > 1e-3


SHORT: Any = SimpleNamespace(context_length=10)


def asked_by(prompt: Any) -> Any:
    """An encoder of prompts only."""
    return SimpleNamespace(prompt=prompt)


def test_a_prompt_of_the_reference_leaves_room_for_a_response() -> None:
    """Ten tokens, of which its prompt takes seven."""
    encoder, policy = asked_by(lambda messages, tools: [1] * 7), asked_by(None)
    reads = ReferencePrompts(new(DPO), encoder, SHORT, policy)
    reads.check([Group((user("q"),))], 3)
    with pytest.raises(DataError, match="has 7 tokens, which leaves no room for 4 response tokens"):
        reads.check([Group((user("q"),))], 4)


def test_a_reference_with_the_policys_template_reads_the_context_too() -> None:
    encoder = asked_by(lambda messages, tools: [len(messages)])
    distillation = new(Distillation, context=[user("Be brief.")])
    reads = ReferencePrompts(distillation, encoder, SHORT, encoder)
    (found,) = reads.encoded([Encoded(Group((user("q"),)), [1], ())])
    assert found.prompt == [2] and found.group.prompt == (user("Be brief."), user("q"))
    responses = Encoded.of((1,), (5,) * 10, (5,) * 2).responses
    with pytest.raises(DataError, match="no room for 10 response tokens"):
        reads.encoded([Encoded(Group((user("q"),)), [1], responses)])


def test_an_offline_reference_is_read_by_the_whole_model(
    big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Batch] = []
    loss = DPO.loss
    monkeypatch.setattr(
        DPO, "loss", lambda self, batch, out: (seen.append(batch), loss(self, batch, out))[1]
    )
    align = {"algorithm": "dpo", "data": "pairs.jsonl", "reference": str(big)}
    Run(load_recipe(write_recipe(tmp_path, {"align": align})), tmp_path / "out").execute()
    assert seen
    for batch in seen:
        assert_read_by(big, batch, 1.0)


def test_another_tokenizer_is_refused_first(
    big: Path, shifted: Path, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While validating, if both tokenizers are on this machine: `tiny` is made when a run needs
    it.
    """
    with monkeypatch.context() as patch:
        patch.setenv("ALIGNKIT_CACHE", str(tmp_path / "empty"))
        assert main(["check", str(student(tmp_path, shifted))]) == 0
    assert main(["check", str(student(tmp_path, shifted, base=str(big)))]) == 2
    assert f"stage 'student': its reference {shifted} has another tokenizer" in said()


def test_another_end_of_turn_is_refused(big: Path, tmp_path: Path, said: Said) -> None:
    """A template that writes `</>` in front of the token that ends both."""
    template = TEMPLATE.replace("'<|im_end|>'", "'</><|im_end|>'")
    (tmp_path / "other.jinja").write_text(template, encoding="utf-8")
    run(student(tmp_path, big), f"model.chat_template={tmp_path / 'other.jinja'}", code=2)
    assert "ends its turns with another token" in said()


def test_a_hash_covers_the_teacher(tmp_path: Path) -> None:
    big = make_model(tmp_path / "big", 0)
    stage = Run(load_recipe(student(tmp_path, big)), tmp_path / "out").stages["student"]
    before = digest(stage.key())
    assert digest(stage.key()) == before
    (big / "chat_template.jinja").write_text(TEMPLATE + " ", encoding="utf-8")
    assert digest(stage.key()) != before


def test_a_checkpoint_keeps_how_the_reference_is_packed(big: Path, tmp_path: Path) -> None:
    """Another packing would change the last bits of a resumed run. Responses are cut where the
    teacher's context ends, 512 tokens; a prompt may leave no room in its template.
    """
    made = Run(load_recipe(student(tmp_path, big)), tmp_path / "out")
    stage = made.stages["student"]
    assert isinstance(stage, TrainingStage)
    stage.folder.mkdir(parents=True)

    def start() -> Trainer:
        made.models.enter(())
        made.models.enter(stage.spec.whole_models)
        return Trainer(stage, Distillation(Distillation.Options()), TEMPERATURE)

    first = start()
    assert first.model is not first.reference_models.model
    assert first.model.context_length > 512 and first.encoder.max_length == 512
    long = Group((user("0123456789 " * 60),))
    with pytest.raises(DataError, match=r"the reference's prompt of .* leaves no room"):
        first.reference_prompts.check([long], 8)
    first.reference_models.model.memory.halve()
    first.checkpoint(1, "iteration 1 of 2")
    first.close()
    again = start()
    assert again.reference_models.model.memory.halvings == 1 and again.model.memory.halvings == 0
    again.close()
