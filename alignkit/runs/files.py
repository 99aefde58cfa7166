"""Names of the files in a run's folder that more than one room reads or writes."""

from __future__ import annotations

RECIPE = "recipe.resolved.yaml"
STARTS = "starts.jsonl"
PAGE, MARKDOWN, FACTS = "report.html", "report.md", "report.json"
AGREEMENT = "agreement.json"  # of a step that asked people
