"""A reward from a text classifier in a folder, such as one for toxicity: a label's probability.

Any transformers model for sequence classification with safetensors does. Nothing is downloaded, and
no code of the folder runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import alignkit
from alignkit import Context, Field, Group, RunFailed
from alignkit.data.group import responses_of
from alignkit_plugins.rewards.text import Scaled
from alignkit_plugins.text.spoken import answer_of

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 32  # at a time
UNNAMED = {"0": "LABEL_0", "1": "LABEL_1"}  # transformers' names
LONGEST = 512  # tokens of a piece, if the model names no limit


class Classifier(Scaled):
    """The label's probability. If a text is longer than the model reads, its piece with the
    highest probability counts.
    """

    class Options(alignkit.Options):
        folder: Path = Field(
            description="folder with the model and its tokenizer, relative to the recipe's folder"
        )
        label: str = Field(description="the label whose probability is the score, such as `toxic`")
        scale: float = Field(1.0, "factor of the probability; -1 for a label that is bad")
        device: str = Field("cpu", "where the classifier runs, such as `cuda`")

        @property
        def grader(self) -> str:
            """Another classifier or label is another reward."""
            return f"classifier {self.folder} {self.label}"

    options: Options

    def check(self, folder: Path) -> None:
        """Find the label, and whether several labels may hold at once. Raises RunFailed."""
        self._folder = folder / self.options.folder.expanduser()
        file = self._folder / "config.json"
        try:
            config = json.loads(file.read_text("utf-8"))
            names = config.get("id2label", UNNAMED)
            labels = {str(name): int(place) for place, name in names.items()}
        except (OSError, ValueError, AttributeError) as error:
            raise RunFailed(f"reward 'classifier': cannot read {file}: {error}") from None
        if self.options.label not in labels:
            known = f"no label '{self.options.label}'; its labels are {', '.join(labels)}"
            raise RunFailed(f"reward 'classifier': {self._folder} has {known}")
        kind = config.get("problem_type")
        self._several = kind == "multi_label_classification" or len(labels) == 1
        self._column = labels[self.options.label]

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.check(context.folder)
        import transformers

        try:
            # Without a value, it would ask the user.
            loading = {"local_files_only": True, "trust_remote_code": False}
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(self._folder, **loading)
            model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
                self._folder, use_safetensors=True, output_loading_info=True, **loading
            )
            self._model = model.float().to(self.options.device).eval()
        except (OSError, ValueError, RuntimeError, AssertionError) as error:
            text = f"reward 'classifier': cannot load {self._folder}: {error}"
            raise RunFailed(text) from None
        if info["missing_keys"]:
            raise RunFailed(
                f"reward 'classifier': {self._folder} lacks the weights "
                f"{', '.join(sorted(info['missing_keys']))}, so its probabilities would be random\n"
                "help: name the folder of a trained classifier"
            )
        # The configuration says where a decoder's text ends: behind any other padding, it would
        # read the padding.
        own = model.config.pad_token_id
        self._padding = self._tokenizer.pad_token_id if own is None or own < 0 else own
        model.config.pad_token_id = self._padding

    def score(self, groups: Sequence[Group]) -> Sequence[float | None]:
        texts = [answer_of(response, calls=True) for response in responses_of(groups)]
        owners, pieces = list[int](), list[list[int]]()
        for number, text in enumerate(texts):
            own = self._pieces(text)
            owners += [number] * len(own)
            pieces += own
        highest = [0.0] * len(texts)
        rows = ROWS if self._padding is not None else 1
        for start in range(0, len(pieces), rows):
            probabilities = self._probabilities(pieces[start : start + rows]).tolist()
            for number, probability in zip(
                owners[start : start + rows], probabilities, strict=True
            ):
                highest[number] = max(highest[number], probability)
        return [self.options.scale * probability for probability in highest]

    def _pieces(self, text: str) -> list[list[int]]:
        """The text's tokens in pieces that the model can read, each with its special tokens."""
        positions = getattr(self._model.config, "max_position_embeddings", LONGEST + 2)
        longest = min(LONGEST, positions - 2)  # RoBERTa's begin at 2
        pieces = self._tokenizer(
            text, truncation=True, max_length=longest, return_overflowing_tokens=True
        )["input_ids"]
        return [pieces] if not pieces or isinstance(pieces[0], int) else list(pieces)

    def _probabilities(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """The label's probability in each piece, [rows]."""
        import torch

        width = max(map(len, rows))
        padded = [[*row, *[self._padding] * (width - len(row))] for row in rows]
        read = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        tokens, mask = torch.tensor([padded, read], device=self.options.device)
        with torch.inference_mode():
            logits = self._model(input_ids=tokens, attention_mask=mask).logits.double()
        shares = logits.sigmoid() if self._several else logits.softmax(dim=-1)
        return shares[:, self._column]
