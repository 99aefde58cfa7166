"""A text classifier in a folder scores answers: a label's probability, with its sign, of every part
of a long text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from alignkit import Context, Group, Response, RunFailed
from alignkit_plugins.rewards.classifier import Classifier
from tests.rows import assistant, user

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "so"]
BERT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def write(folder: Path, *labels: str, **config: Any) -> None:
    """A classifier that reads 14 tokens."""
    BertTokenizer(vocab={word: place for place, word in enumerate(WORDS)}).save_pretrained(folder)
    torch.manual_seed(0)
    names = dict(enumerate(labels or ("fine", "toxic")))
    sizes = {**BERT, "vocab_size": len(WORDS), "max_position_embeddings": 16}
    model = BertForSequenceClassification(BertConfig(**sizes, id2label=names, **config))
    model.classifier.weight.data *= 100  # so that texts differ
    model.save_pretrained(folder)


def logits(folder: Path, *texts: str) -> torch.Tensor:
    """As transformers computes them, one text at a time."""
    words = BertTokenizer.from_pretrained(folder)
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        found = [model(**words(text, return_tensors="pt")).logits for text in texts]
    return torch.cat(found).double()


def scores(folder: Path, *answers: Response | str, **options: Any) -> list[float | None]:
    reward = Classifier(Classifier.Options(**{"folder": folder.name, "label": "toxic", **options}))
    reward.prepare(Context(models=None, cache=folder, folder=folder.parent, seed=0, load=list))  # type: ignore[arg-type]
    responses = tuple(each if isinstance(each, Response) else Response(each) for each in answers)
    return list(reward.score([Group((), responses)]))


TEXTS = ("good so good", "bad bad", "", "so")
# Labels, of which several may hold, the one that counts, and the scale.
LABELS = yaml.safe_load("""
- [[fine, toxic], toxic, -2.0]
- [[fine, toxic], fine, 1.0]
- [[obscene, threat, toxic], toxic, 1.0]
- [[toxic], toxic, 1.0]
""")


@pytest.mark.parametrize(("labels", "label", "scale"), LABELS)
def test_the_score_is_the_labels_probability(
    tmp_path: Path, labels: list[str], label: str, scale: float
) -> None:
    several = "multi_label_classification" if len(labels) == 3 else None
    write(tmp_path / "c", *labels, problem_type=several)
    found = logits(tmp_path / "c", *TEXTS)
    p = found.softmax(dim=-1) if len(labels) == 2 else found.sigmoid()
    told = scores(tmp_path / "c", *TEXTS, label=label, scale=scale)
    assert told == pytest.approx((scale * p[:, labels.index(label)]).tolist(), abs=1e-6)
    assert len(set(told)) == 4


def test_the_worst_part_of_a_long_answer_counts(tmp_path: Path) -> None:
    write(tmp_path / "c")
    good, bad, so = pieces = ["good " * 12, "bad " * 12, "so so"]  # with two special tokens, 14
    found = scores(tmp_path / "c", good + bad + so, bad + good + so, bad + "good", good + "bad")
    p = logits(tmp_path / "c", *pieces, "good", "bad").softmax(dim=-1)[:, 1].tolist()
    highest = [max(p[:3])] * 2 + [max(p[1], p[3]), max(p[0], p[4])]
    assert found == pytest.approx(highest, abs=5e-5) and len({round(each, 5) for each in p}) == 5


def test_the_last_turn_of_the_assistant_is_read(tmp_path: Path) -> None:
    write(tmp_path / "c")
    called: Any = {"role": "assistant", "content": None}
    talks = [(assistant("good"), user("so"), assistant("bad")), (called,)]
    found = scores(tmp_path / "c", *(Response(messages=talk) for talk in talks))
    assert found == scores(tmp_path / "c", "bad", "")


MISTAKES = yaml.safe_load(r"""
- [~/c, Toxic, {}, "has no label 'Toxic'; its labels are fine, toxic"]
- [d, toxic, {}, "cannot read .*config\\.json"]
- [c, toxic, {model_type: bert}, "its labels are LABEL_0, LABEL_1"]
""")


@pytest.mark.parametrize(("folder", "label", "config", "words"), MISTAKES)
def test_mistakes_are_told_before_the_run(
    folder: str,
    label: str,
    config: dict[str, Any],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "c")
    if config:
        (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunFailed, match=words):
        Classifier(Classifier.Options(folder=Path(folder), label=label)).check(tmp_path)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")


def without_head(folder: Path) -> None:
    file = folder / "model.safetensors"
    kept = {name: weight for name, weight in load_file(file).items() if "classifier" not in name}
    save_file(kept, file, metadata={"format": "pt"})


def with_code(folder: Path) -> None:
    kind = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": kind}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


UNTRUSTED: list[tuple[Any, str, str]] = [
    (pickled, "cpu", "cannot load"),
    (with_code, "cpu", "cannot load"),
    (without_head, "cpu", r"lacks the weights classifier\.bias, classifier\.weight"),
    (Path.exists, "cuda:97", r"cannot load .*CUDA"),
]


@pytest.mark.parametrize(("damage", "device", "words"), UNTRUSTED)
def test_a_folder_that_cannot_be_trusted_is_not_loaded(
    damage: Any, device: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *words: "y")
    write(tmp_path / "c")
    damage(tmp_path / "c")
    with pytest.raises(RunFailed, match=words):
        scores(tmp_path / "c", "so", device=device)
    assert not (tmp_path / "c" / "ran").exists()


@pytest.mark.silent_bug(
    "rewards: place of the score",
    "The score is read at another token if the padding differs, and depends on the other texts "
    "of the batch.",
    "A text has the same score alone and in a batch.",
    "pytorch/rl#3887",
    "allenai/reward-bench#137",
)
@pytest.mark.parametrize("padding", [None, WORDS.index("[PAD]"), WORDS.index("so"), -1])
def test_a_decoder_reads_in_batches_what_it_reads_alone(
    tmp_path: Path, padding: int | None
) -> None:
    """The configuration may name no padding, or another one than the tokenizer."""
    write(tmp_path / "c")
    sizes: dict[str, Any] = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": padding}
    names = {0: "fine", 1: "toxic"}
    config = GPT2Config(vocab_size=len(WORDS), id2label=names, **sizes, **special)
    model = GPT2ForSequenceClassification(config)
    model.score.weight.data *= 100  # so that texts differ
    model.save_pretrained(tmp_path / "c")
    alone = [scores(tmp_path / "c", text)[0] for text in ("good", "bad so bad")]
    assert scores(tmp_path / "c", "good", "bad so bad") == pytest.approx(alone, abs=1e-6)
