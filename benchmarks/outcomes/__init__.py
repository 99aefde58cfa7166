"""What alignment gains, by judges that nothing was trained on and nobody tuned on.

`outcomes.yaml` extends the quick start by two gold reward models and asks SFT and the aligned policy the prompts in
`data/`. `methods.yaml` names the methods, each a few overrides. `python -m benchmarks.outcomes` runs them for several
seeds and prints the tables. A row that is stored in the output folder is not computed again.
"""
