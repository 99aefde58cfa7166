"""Steps that make data: new tasks, questions about texts, use cases of prompts, and attacks on policies.

- `self_instruct` writes tasks like those of people (Wang et al. 2022, arXiv:2212.10560). `sample` writes responses.
- `questions` turns texts and web pages into questions whose answers a quotation shows.
- `categorize` gives each prompt a use case, and says which ones no demonstration shows (Ouyang et al. 2022,
  arXiv:2203.02155, table 1).
- `red_team` lets a model attack policies over several turns (Perez et al. 2022, arXiv:2202.03286).
"""
