"""Steps that make data: new tasks, questions about texts, use cases of prompts, and attacks on policies.

- `self_instruct` writes tasks like those of people (Wang et al. 2022, arXiv:2212.10560). `sample` writes responses.
- `questions` turns texts and web pages into questions whose answers a quotation shows.
- `categorize` gives each prompt a use case, and says which ones no demonstration shows (Ouyang et al. 2022,
  arXiv:2203.02155, table 1).
- `red_team` lets a model attack policies over several turns (Perez et al. 2022, arXiv:2202.03286).
"""

from __future__ import annotations

from alignkit import Register, hookimpl
from alignkit_plugins.steps.make_data.categorize import Categorize
from alignkit_plugins.steps.make_data.questions import Questions
from alignkit_plugins.steps.make_data.red_team import RedTeam
from alignkit_plugins.steps.make_data.self_instruct import SelfInstruct


@hookimpl
def register_steps(register: Register) -> None:
    register("self_instruct", SelfInstruct, summary="new tasks like those of people, written by a model")
    register("questions", Questions, summary="questions about texts and web pages, with answers that a quotation shows")
    register("categorize", Categorize, summary="a use case for each prompt, and which ones no demonstration shows")
    register("red_team", RedTeam, summary="attacks on policies over several turns, and how many succeed")
