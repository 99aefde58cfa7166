"""A text classifier in a folder scores answers: a label's probability, with its sign, of every part
of a long text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

from alignkit import Context, Group, Response, RunFailed
from alignkit_plugins.rewards.classifier import Classifier

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "so"]


def write(folder: Path, labels: tuple[str, ...] = ("fine", "toxic"), **config: Any) -> None:
    """A classifier that reads 14 tokens. Its last label is as likely as `bad` is frequent."""
    words = Tokenizer(
        WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(WORDS),
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=16,
            id2label=dict(enumerate(labels)),
            label2id={label: place for place, label in enumerate(labels)},
            **config,
        )
    )
    with torch.no_grad():
        model.classifier.weight *= 100  # so that texts differ
    model.save_pretrained(folder)


def logits(folder: Path, *texts: str) -> torch.Tensor:
    """As transformers computes them, one text at a time."""
    words = PreTrainedTokenizerFast.from_pretrained(folder)
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return torch.cat(
            [model(**words(text, return_tensors="pt")).logits for text in texts]
        ).double()


def scores(folder: Path, *answers: Response | str, **options: Any) -> list[float | None]:
    reward = Classifier(Classifier.Options(folder=Path(folder.name), **options))
    reward.prepare(Context(models=None, cache=folder, folder=folder.parent, seed=0, load=list))  # type: ignore[arg-type]
    responses = tuple(each if isinstance(each, Response) else Response(each) for each in answers)
    return list(reward.score([Group((), responses)])[""])


TEXTS = ("good so good", "bad bad", "", "so")


LABELS: list[tuple[tuple[str, ...], str, float]] = [  # labels, the one that counts, scale
    (("fine", "toxic"), "toxic", 1.0),
    (("fine", "toxic"), "fine", 1.0),
    (("fine", "toxic"), "toxic", -2.0),
    (("obscene", "threat", "toxic"), "toxic", 1.0),  # of which several may hold
    (("toxic",), "toxic", 1.0),
]


@pytest.mark.parametrize(("labels", "label", "scale"), LABELS)
def test_the_score_is_the_labels_probability(
    tmp_path: Path, labels: tuple[str, ...], label: str, scale: float
) -> None:
    exclusive = len(labels) == 2
    several = "multi_label_classification" if len(labels) == 3 else None
    write(tmp_path / "c", labels, problem_type=several)
    found = logits(tmp_path / "c", *TEXTS)
    p = (found.softmax(dim=-1) if exclusive else found.sigmoid())[:, labels.index(label)]
    told = scores(tmp_path / "c", *TEXTS, label=label, scale=scale)
    assert told == pytest.approx((scale * p).tolist(), abs=1e-6) and len(set(told)) == 4


def test_the_worst_part_of_a_long_answer_counts(tmp_path: Path) -> None:
    write(tmp_path / "c")
    pieces = ["good " * 12, "bad " * 12, "so so"]  # 12 words and two special tokens are 14
    found = scores(
        tmp_path / "c", "".join(pieces), "".join([pieces[1], pieces[0], pieces[2]]), label="toxic"
    )
    found += scores(tmp_path / "c", "bad " * 12 + "good", "good " * 12 + "bad", label="toxic")
    p = logits(tmp_path / "c", *pieces, "good", "bad").softmax(dim=-1)[:, 1].tolist()
    highest = [max(p[:3])] * 2 + [max(p[1], p[3]), max(p[0], p[4])]
    assert found == pytest.approx(highest, abs=1e-6) and len({round(each, 5) for each in p}) == 5


def test_the_last_turn_of_the_assistant_is_read(tmp_path: Path) -> None:
    write(tmp_path / "c")
    turns: Any = ({"role": "assistant", "content": "good"}, {"role": "user", "content": "so"})
    called: Any = {"role": "assistant", "content": None}
    talks = [
        Response(messages=(*turns, {"role": "assistant", "content": "bad"})),
        Response(messages=(called,)),
    ]
    assert scores(tmp_path / "c", *talks, label="toxic") == scores(
        tmp_path / "c", "bad", "", label="toxic"
    )


@pytest.mark.parametrize(
    ("folder", "label", "config", "words"),
    [
        ("c", "Toxic", {}, "has no label 'Toxic'; its labels are fine, toxic"),
        ("d", "toxic", {}, r"cannot read .*config\.json"),
        ("c", "toxic", {"model_type": "bert"}, "its labels are LABEL_0, LABEL_1"),
    ],
)
def test_mistakes_are_told_before_the_run(
    folder: str, label: str, config: dict[str, Any], words: str, tmp_path: Path
) -> None:
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


@pytest.mark.parametrize(
    ("damage", "device", "words"),
    [
        (pickled, "cpu", "cannot load"),
        (with_code, "cpu", "cannot load"),
        (without_head, "cpu", r"lacks the weights classifier\.bias, classifier\.weight"),
        (lambda folder: None, "cuda:97", r"cannot load .*CUDA"),
    ],
)
def test_a_folder_that_cannot_be_trusted_is_not_loaded(
    damage: Any, device: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *words: "y")
    write(tmp_path / "c")
    damage(tmp_path / "c")
    with pytest.raises(RunFailed, match=words):
        scores(tmp_path / "c", "so", label="toxic", device=device)
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
    sizes |= {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": padding}
    names = {0: "fine", 1: "toxic"}
    model = GPT2ForSequenceClassification(
        GPT2Config(vocab_size=len(WORDS), id2label=names, **sizes)
    )
    model.score.weight.data *= 100  # so that texts differ
    model.save_pretrained(tmp_path / "c")
    texts = ("good", "bad so bad")
    alone = [scores(tmp_path / "c", text, label="toxic")[0] for text in texts]
    assert scores(tmp_path / "c", *texts, label="toxic") == pytest.approx(alone, abs=1e-6)
