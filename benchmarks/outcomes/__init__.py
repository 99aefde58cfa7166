"""What alignment gains on the quick start's data, by measures that nothing was trained on.

`outcomes.yaml` is the quick start with longer answers and a gold reward model among its measures.
`methods.yaml` names the methods, each a few overrides. `python -m benchmarks.outcomes` runs them
for several seeds and prints the table. It computes no row again that is stored in the output folder
or in `rows/`. `judges/` holds the gold reward models, and `papers/` the papers' recipes, judged by
them.
"""
