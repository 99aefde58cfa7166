"""TRL's configs: which fields they have, which of them the stage's own keys decide, and their
values.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

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


def arguments(stage: Any, folder: Path) -> dict[str, Any]:
    """The fields of the trainer's config that the stage's keys decide."""
    import torch

    settings, schedule = stage.settings, stage.settings.lr_scheduler_type
    fields = {
        "output_dir": str(folder),
        "per_device_train_batch_size": settings.batch_size,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": schedule,
        "max_length": settings.max_length,
        "seed": stage.seed,
        "bf16": stage.model.dtype == torch.bfloat16,
        "use_cpu": stage.model.device.type == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
    }
    if not isinstance(schedule, str):
        fields["lr_scheduler_type"] = schedule.name
        fields["lr_scheduler_kwargs"] = schedule.options.model_dump(exclude_unset=True)
    if settings.warmup_ratio:
        # TRL reads a number below 1 as a share.
        fields["warmup_steps"] = min(settings.warmup_ratio, 1 - 1e-9)
    return fields


@cache
def config_fields(trainer: str) -> frozenset[str]:
    """Names in a trainer's config. They are read from source files, because importing TRL takes
    seconds.
    """
    files = {"trl": [f"trainer/{trainer}_config.py", "trainer/base_config.py"]}
    files["transformers"] = ["training_args.py"]
    names = set[str]()
    for package, paths in files.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ValueError(f"{package} is not installed")
        for path in paths:
            text = (Path(spec.origin).parent / path).read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    names.add(node.target.id)
    return frozenset(names)
