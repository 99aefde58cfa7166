"""The reference cache: log-probabilities are reused for the same data and reference only, bit for bit."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import alignkit
from alignkit import Group, Response, cli
from alignkit.io.source_code import computing_code
from alignkit.kernels import capabilities
from alignkit.models import reference_cache
from alignkit.models.forward import measure
from alignkit.models.reference_cache import ReferenceCache
from alignkit.models.service import ModelService
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.settings import LoraSpec, ModelSpec
from alignkit.tokens.encoding import Encoded, Encoder


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., ModelService]:
    """A service on the tiny model, as a new process would have it; `sft` is an adapter drawn from `lora_seed`."""
    import alignkit_plugins.models.tiny

    base = alignkit_plugins.models.tiny.source(tmp_path / "models")

    def models(lora_seed: int = 1, dtype: str = "float32") -> ModelService:
        spec = ModelSpec(base="tiny", dtype=dtype, device="cpu", lora=LoraSpec(r=4, lora_alpha=8))  # type: ignore[arg-type]
        policy = SharedModel(spec, str(base), seed=lora_seed)
        folder = tmp_path / f"adapter{lora_seed}"
        role = policy.add_role("made", head="language")
        generator = torch.Generator().manual_seed(lora_seed)
        for parameter in policy.parameters_of(role.name).values():
            parameter.data.normal_(0, 0.1, generator=generator)
        policy.save("made", folder)
        policy.drop_role("made")
        store = ReferenceCache(tmp_path / "logprobs")
        return ModelService(policy, lambda reference: folder, reference_cache=store)

    return models


def pairs(models: ModelService, questions: int = 3) -> list[Encoded]:
    words = ("yes", "no, not at all", "perhaps, who knows?")
    groups = [
        Group(({"role": "user", "content": f"is it {n}?"},), tuple(Response(text=w) for w in words[: 2 + n % 2]))
        for n in range(questions)
    ]
    found = [Encoder(models.model.tokenizer).encode(group, 256) for group in groups]
    return [encoded for encoded in found if encoded is not None]


def test_a_later_run_reuses_the_same_bits(make: Callable[..., ModelService]) -> None:
    models = make()
    groups = pairs(models)
    first, known = models.reference_logprobs("sft", groups)
    assert not known
    direct = measure(models.model, models.role("sft"), groups, "logprobs")
    rows = [row for group in groups for row in group.rows]
    assert len(rows) == 7 and [len(x) for x in first] == [len(row.tokens) for row in rows]
    later = make()
    later.model.hidden = None  # type: ignore[assignment,method-assign]  # computes nothing
    second, known = later.reference_logprobs("sft", groups)
    assert known
    for found, again, wanted in zip(first, second, direct, strict=True):
        assert torch.equal(found, wanted) and torch.equal(again, wanted)


def swapped(groups: list[Encoded]) -> list[Encoded]:
    return [groups[1], groups[0], *groups[2:]]


def other_mask(groups: list[Encoded]) -> list[Encoded]:
    row = groups[0].rows[0]
    changed = dataclasses.replace(row, mask=(False, *row.mask[1:]))
    return [dataclasses.replace(groups[0], rows=(changed, *groups[0].rows[1:])), *groups[1:]]


def other_prompt(groups: list[Encoded]) -> list[Encoded]:
    changed = dataclasses.replace(groups[0], prompt=(*groups[0].prompt[:-1], groups[0].prompt[-1] - 1))
    return [changed, *groups[1:]]


@pytest.mark.parametrize("change", [swapped, other_mask, other_prompt])
def test_other_data_is_measured_again(
    make: Callable[..., ModelService], change: Callable[[list[Encoded]], list[Encoded]]
) -> None:
    models = make()
    groups = pairs(models)
    models.reference_logprobs("sft", groups)
    found, known = models.reference_logprobs("sft", change(groups))
    assert not known
    assert all(map(torch.equal, found, measure(models.model, "sft", change(groups), "logprobs")))


def test_other_circumstances_are_measured_again(
    make: Callable[..., ModelService], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = make()
    groups = pairs(models)
    models.reference_logprobs("sft", groups)
    assert models.reference_logprobs("sft", groups)[1]
    base, known = models.reference_logprobs(BASE, groups)
    assert not known and not torch.equal(base[0], models.reference_logprobs("sft", groups)[0][0])
    assert not make(lora_seed=2).reference_logprobs("sft", groups)[1]
    assert not make(dtype="bfloat16").reference_logprobs("sft", groups)[1]
    models.model.memory.halve()
    assert not models.reference_logprobs("sft", groups)[1]
    for fact in ("is_amd", "can_tile"):
        models = make()
        assert models.reference_logprobs("sft", groups)[1]
        with monkeypatch.context() as other:
            opposite = not getattr(capabilities, fact)()
            other.setattr(capabilities, fact, lambda opposite=opposite: opposite)
            assert not models.reference_logprobs("sft", groups)[1], fact
    with monkeypatch.context() as other:
        other.setattr(capabilities, "mode", lambda: "torch")
        assert not models.reference_logprobs("sft", groups)[1]
    models = make()
    bundled = [dataclasses.replace(e, group=dataclasses.replace(e.group, bundle="one")) for e in groups]
    assert not models.reference_logprobs("sft", bundled)[1]
    for changed in ("config.json", "tokenizer.json", "modeling_tiny.py"):
        file = Path(models.model.source) / changed
        file.write_text((file.read_text(encoding="utf-8") if file.exists() else "") + "\n", encoding="utf-8")
        assert not make().reference_logprobs("sft", groups)[1]


def test_only_a_change_in_code_that_computes_changes_the_key(
    make: Callable[..., ModelService], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = make()
    groups = pairs(models, 1)
    own = Path(alignkit.__file__).parent
    package = tmp_path / "alignkit"
    shutil.copytree(own, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(reference_cache, "computing_code", lambda: computing_code(package))
    models.reference_logprobs("sft", groups)

    def known_after_an_edit(module: str) -> bool:
        file = package / module
        file.write_text(file.read_text(encoding="utf-8") + "# edited\n", encoding="utf-8")
        return models.reference_logprobs("sft", groups)[1]

    for module in ("cli.py", "recipe/load.py", "runs/reuse.py", "evaluation/ranking.py", "testing/kit.py"):
        assert known_after_an_edit(module), module
    for module in ("batch.py", "functional/kl.py", "kernels/lm_head.py", "models/forward.py", "training/learner.py"):
        assert not known_after_an_edit(module), module


def test_nothing_is_written_if_memory_ran_out(make: Callable[..., ModelService]) -> None:
    models = make()
    groups, hidden = pairs(models), models.model.hidden
    failures = iter([MemoryError("out of memory")])

    def once(*arguments: Any) -> Any:
        for failure in failures:
            raise failure
        return hidden(*arguments)

    models.model.hidden = once  # type: ignore[method-assign]
    found, known = models.reference_logprobs("sft", groups)
    assert not known and models.model.memory.halvings == 1 and len(found) == 7
    assert models.reference_cache is not None and not models.reference_cache.folder.exists()


SHORT = save({"logprobs": torch.zeros(3)})


@pytest.mark.parametrize("damage", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", SHORT, None])
def test_a_damaged_file_is_replaced(make: Callable[..., ModelService], damage: bytes | None) -> None:
    models = make()
    groups = pairs(models)
    wanted, _ = models.reference_logprobs("sft", groups)
    assert models.reference_cache is not None
    (file,) = models.reference_cache.folder.iterdir()
    file.write_bytes(file.read_bytes()[:-4] if damage is None else damage)
    found, known = models.reference_logprobs("sft", groups)
    assert not known and all(map(torch.equal, found, wanted))
    assert models.reference_logprobs("sft", groups)[1]


def test_a_flipped_bit_is_found(make: Callable[..., ModelService]) -> None:
    models = make()
    groups = pairs(models)
    wanted, _ = models.reference_logprobs("sft", groups)
    assert models.reference_cache is not None
    (file,) = models.reference_cache.folder.iterdir()
    whole = file.read_bytes()
    for place in range(len(whole) - 4 * sum(map(len, wanted)), len(whole)):  # the numbers follow the header
        flipped = bytearray(whole)
        flipped[place] ^= 4
        file.write_bytes(flipped)
        assert reference_cache._read(file, sum(map(len, wanted))) is None, place
    found, known = models.reference_logprobs("sft", groups)
    assert not known and all(map(torch.equal, found, wanted))


def test_a_read_only_folder_only_costs_time(make: Callable[..., ModelService], tmp_path: Path) -> None:
    models = make()
    groups = pairs(models)
    wanted, _ = models.reference_logprobs("sft", groups)
    (tmp_path / "file").touch()
    assert models.reference_cache is not None
    models.reference_cache = dataclasses.replace(models.reference_cache, folder=tmp_path / "file" / "below")
    found, known = models.reference_logprobs("sft", groups)
    assert not known and all(map(torch.equal, found, wanted))


def test_the_least_recently_used_files_are_deleted(
    make: Callable[..., ModelService], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    models = make()
    assert models.reference_cache is not None
    folder = models.reference_cache.folder
    for count in (1, 2):
        models.reference_logprobs("sft", pairs(models, count))
        for file in folder.iterdir():
            os.utime(file, (count, count))
    assert models.reference_logprobs("sft", pairs(models, 1))[1]  # used, so now the newer one
    sizes = sum(file.stat().st_size for file in folder.iterdir())
    monkeypatch.setattr(reference_cache, "MOST_BYTES", sizes)
    models.reference_logprobs("sft", pairs(models, 3))
    assert sum(file.stat().st_size for file in folder.iterdir()) <= sizes
    assert models.reference_logprobs("sft", pairs(models, 3))[1]
    assert not models.reference_logprobs("sft", pairs(models, 2))[1]
    monkeypatch.setattr(reference_cache, "MOST_BYTES", 8)
    assert not any(models.reference_logprobs("sft", swapped(pairs(models)))[1] for _ in range(2))  # too large


def test_another_beta_reuses_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"is it {n}?", "chosen": "yes", "rejected": "no, never"} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: {base: tiny}\nstages:\n  align: {algorithm: dpo, from: base, data: pairs.jsonl, batch_size: 4}\n",
        encoding="utf-8",
    )

    def run(out: str, beta: float) -> tuple[str, bytes]:
        options: list[Any] = [
            "run",
            str(recipe),
            "--out",
            str(tmp_path / out),
            f"stages.align.algorithm.dpo.beta={beta}",
        ]
        with redirect_stderr(io.StringIO()) as err:
            assert cli.main(options) == 0, err.getvalue()
        return err.getvalue(), (tmp_path / out / "align/adapter/adapter_model.safetensors").read_bytes()

    message = "reference log-probabilities of 8 groups read from the cache"
    assert message not in run("first", 0.1)[0]
    said, second = run("second", 0.5)
    assert message in said
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "other"))
    said, fresh = run("third", 0.5)
    assert message not in said and fresh == second
