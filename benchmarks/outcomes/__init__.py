"""What alignment gains on the quick start's data, by metrics that nothing was trained on.

`alignkit run benchmarks/outcomes/outcomes.yaml --each seed=3..12 --each
methods=benchmarks/outcomes/methods.yaml` runs the quick start with each method and seed; `alignkit show
benchmarks/outcomes` prints what `cells/` has of them. `judges/` holds gold reward models, and `papers/` the
papers' recipes, judged by them.
"""
