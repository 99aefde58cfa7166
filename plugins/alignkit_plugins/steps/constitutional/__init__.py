"""Constitutional AI: a model criticizes and rewrites answers by principles (Bai et al. 2022, arXiv:2212.08073).

The step `revise` is section 3 of the paper: a policy answers prompts, and in each round a critic names what is wrong
with the answer by one principle and rewrites it. `sft` learns the last revisions. Section 4, comparisons by principle,
is `judge_pairs` with its option `constitution`.
Differs from the paper: a conversation of chat turns instead of one text; each round shows the critic only the newest
revision; no principle comes twice for a prompt before each has come once; a revision that was cut off, is empty or
was refused is left out and counted.
"""
