"""Judges: a local model, an OpenAI-compatible server or a panel of judges compares and rates responses.

As in RLAIF (Lee et al. 2023, arXiv:2309.00267, sections 2.1 and 2.2), the log-probabilities of the answers "1" and "2"
are normalized over these two, and both orders are asked and averaged. With `reasons`, a judge thinks first, and the
last line of its reply counts.
Differs from the paper: chain of thought and answer are one reply, and few-shot examples are left to the template. The
judged texts are enclosed in markers with an unguessable code, so that they cannot speak for the judge. There is no
verdict if the judge would rather say something else (`min_mass`), or if a server leaves out an answer that could
decide.
"""
