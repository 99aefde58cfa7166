"""What an evaluation says: columns of scores, cards of judges, verdicts, and their tables.

The steps that compare policies, the report of a run and the apps read and write the same summary,
evaluation.json.
"""
