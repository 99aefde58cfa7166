"""One vocabulary: an option of one name is the same idea in every algorithm, so that a swap is one
line.
"""

from __future__ import annotations

import re
from collections import defaultdict
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from alignkit.host.plugins import plugins

# Options whose values differ although the idea is the same.
SAME_IDEA = {"loss"}


def options() -> dict[str, dict[str, FieldInfo]]:
    """Fields by option and algorithm."""
    found: dict[str, dict[str, FieldInfo]] = defaultdict(dict)
    for registration in plugins().registrations("algorithm"):
        for name, field in registration.implementation.Options.model_fields.items():
            found[name][registration.name] = field
    return found


def kind(annotation: Any) -> Any:
    """The type; choices count as one type, because an algorithm may support some of them only.

    Without null: some algorithms have a default that depends on the samples.
    """
    if get_origin(annotation) is UnionType:
        annotation = Union[tuple(part for part in get_args(annotation) if part is not NoneType)]  # noqa: UP007
    return Literal if get_origin(annotation) is Literal else annotation


def idea(field: FieldInfo) -> str:
    """The part of a description that does not depend on the algorithm."""
    return re.split(r"[:,;(]", field.description or "")[0].strip()


def test_every_option_has_a_description_of_one_line() -> None:
    for name, fields in options().items():
        for algorithm, field in fields.items():
            assert field.description and "\n" not in field.description, f"{algorithm}.{name}"
            assert not field.description.endswith("."), f"{algorithm}.{name}"


def test_options_of_one_name_are_one_idea() -> None:
    for name, fields in options().items():
        if name not in SAME_IDEA:
            assert len({str(kind(field.annotation)) for field in fields.values()}) == 1, name
            assert len({idea(field) for field in fields.values()}) == 1, name


def test_averages_have_the_same_values_everywhere() -> None:
    known = {"token_mean", "sequence_mean", "sequence_sum", "constant_length"}
    for algorithm, field in options()["aggregation"].items():
        assert set(get_args(field.annotation)) <= known, algorithm
