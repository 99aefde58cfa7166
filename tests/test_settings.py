"""The keys of models and stages: their descriptions are printed as help and in the
documentation.
"""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from alignkit.contract.settings import Rollout


def test_a_response_has_room_for_its_minimum() -> None:
    with pytest.raises(ValidationError, match="min_new_tokens 8 is above max_new_tokens 4"):
        Rollout(min_new_tokens=8, max_new_tokens=4)
