"""TRL's configs: which fields they have, which of them the stage's own keys decide, and their
values.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignkit_plugins.trl.stage import TRLStage

TRAINERS = {"sft": "SFT", "dpo": "DPO", "reward": "Reward"}
# Field of TRL's configs that cannot be set, because the stage decides it -> what to do instead.
STAGE_KEYS = {
    "output_dir": "set --out",
    "per_device_train_batch_size": "set the stage's batch_size",
    "num_train_epochs": "set the stage's epochs",
    "learning_rate": "set the stage's learning_rate",
    "warmup_steps": "set the stage's warmup_ratio",
    "warmup_ratio": "set the stage's warmup_ratio",
    "lr_scheduler_type": "set the stage's lr_scheduler_type",
    "max_steps": "set the stage's max_steps",
    "max_length": "set the stage's max_length",
    "seed": "set the recipe's seed",
    "bf16": "set model: {dtype: ...}",
    "fp16": "set model: {dtype: ...}",
    "report_to": "alignkit writes metrics.jsonl",
    "save_strategy": "alignkit saves the adapter",
    "logging_steps": "every step is logged",
}


def arguments(context: TRLStage, folder: Path) -> dict[str, Any]:
    """The fields of the trainer's config that the stage's keys decide."""
    import torch

    settings = context.settings
    schedule = settings.lr_scheduler_type
    named = isinstance(schedule, str)
    fields = {
        "output_dir": str(folder),
        "per_device_train_batch_size": settings.batch_size,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": schedule if named else schedule.name,
        "lr_scheduler_kwargs": None if named else schedule.options.model_dump(exclude_unset=True),
        "max_length": settings.max_length,
        "seed": context.seed,
        "bf16": context.dtype == torch.bfloat16,
        "use_cpu": context.device.type == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
    }
    if settings.warmup_ratio:
        # TRL reads a number below 1 as a share
        fields["warmup_steps"] = min(settings.warmup_ratio, 1 - 1e-9)
    return fields


def one_device(args: Any) -> Any:
    """A config whose trainer uses one GPU, as alignkit does.

    With several in the machine, the trainer would wrap the model in `nn.DataParallel` and multiply
    batch_size.
    """
    args._n_gpu = min(args.n_gpu, 1)  # counted when the config is made
    return args


@cache
def config_fields(trainer: str) -> frozenset[str]:
    """Names of a trainer's config fields. They are read from source files, because importing TRL
    takes seconds.
    """
    trl, transformers = (Path(_folder(name)) for name in ("trl", "transformers"))
    files = (
        trl / "trainer" / f"{trainer}_config.py",
        trl / "trainer" / "base_config.py",
        transformers / "training_args.py",
    )
    return frozenset(name for file in files for name in _fields(file))


def _folder(package: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{package} is not installed")
    return spec.submodule_search_locations[0]


def _fields(file: Path) -> list[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return [
        item.target.id
        for node in classes
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    ]
