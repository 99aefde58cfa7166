"""Feedback and data by models: judges, labels (RLAIF), Constitutional AI, and steps that make data.

Judges: a local model, an OpenAI-compatible server or a panel of judges compares and rates
responses.

As in RLAIF (Lee et al. 2023, arXiv:2309.00267, sections 2.1 and 2.2), the log-probabilities of the
answers "1" and "2" are normalized over these two, and both orders are asked and averaged. With
`reasons`, a judge thinks first, and the last line of its reply counts. Differs from the paper:
chain of thought and answer are one reply. The judged texts are enclosed in markers with an
unguessable code, so that they cannot speak for the judge. There is no verdict if the judge would
rather say something else (`min_mass`).

Steps that make data: questions about texts, use cases of prompts, and attacks on policies.

- `questions` turns texts into questions whose answers a quotation shows.
- `categorize` gives each prompt a use case, and says which ones no demonstration shows (Ouyang et
  al. 2022, arXiv:2203.02155, table 1).
- `red_team` lets a model attack a policy over several turns (Perez et al. 2022, arXiv:2202.03286).
"""
