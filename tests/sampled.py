"""Responses of a role to the prompts of groups, which replace the groups' own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from alignkit.data.group import Group
from alignkit.models.generate import attach, build_request, generate
from alignkit.models.shared_model import SharedModel
from alignkit.sampling import Sampling
from alignkit.tokens.encoder import Encoder


def sample(
    model: SharedModel,
    role: str,
    encoder: Encoder,
    groups: Sequence[Group],
    sampling: Sampling,
    *,
    done: Callable[[int], None] = lambda responses: None,
    **named: Any,
) -> list[Group]:
    """done: is given the number of finished responses. named: see `build_request`."""
    named = {"path": (), "numbers": range(len(groups)), "samples_per_prompt": 1, **named}
    request = build_request(model, role, encoder, groups, sampling, **named)
    return attach(request, groups, generate(request, done=done))
