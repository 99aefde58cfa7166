"""The step that compares policies: against scripted models, with numbers worked out apart from the
step.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from pydantic import ValidationError

import alignkit_plugins.evals.step as evaluate
from alignkit import Group, Response, RunFailed, Verdict
from alignkit.contract.settings import Sampling
from alignkit.contract.step import StepData
from alignkit.data.group import Origin, Pair, read_groups
from alignkit.errors import DataError, OtherTokenizer
from alignkit.recipe.schema import RewardSpec
from alignkit.recipe.sources import DataSource, DataSpec
from alignkit_plugins.compare.comparison import (
    UNIT,
    prompts_to_compare,
    short_names,
    together,
    units_of,
)
from alignkit_plugins.compare.rows import rows_in
from alignkit_plugins.compare.scores import Scale
from alignkit_plugins.evals import examples, measures
from alignkit_plugins.evals.judged import Preference
from alignkit_plugins.evals.metrics import raters_of
from tests.documented_keys import documented, paths
from tests.evals.scripted import (
    HELPFUL,
    SCORES,
    Scripted,
    context,
    figures,
    lines,
    number,
    prompts,
    said,
    step,
    summary,
    told,
)
from tests.rows import cells, user

PASSAGES = DataSpec((DataSource(path=Path("x"), group="passage"),))
LANGUAGES = ["de", "en", "de", "en", "en", None]
GROUPS = [
    replace(group, meta={"half": n // 3, "passage": n // 2, "language": LANGUAGES[n]})
    for n, group in enumerate(prompts())
]
# P(align is better) if shown first, and if shown second, at six prompts; None is an error.
ORDERS = [(0.9, 0.7), (0.6, 0.2), (0.5, 0.5), (0.1, 0.3), None, (1.0, 1.0)]


def decide(n: int, one: str, other: str) -> Verdict:
    orders = ORDERS[n % 6]
    if orders is None:
        return Verdict(None, reason="refused: I am sorry")
    return Verdict(sum(orders) / 2, orders)


JUDGE, _ = told(decide)
# What is different in a run: scores of policies, options of the step, and what models do
RUNS: dict[str, dict[str, Any]] = yaml.safe_load("""
plain: {}
base: {baseline: base}
wins: {align: [2.0, 4.0, 5.0, 7.0, 8.0, 12.0]}
gaps: {align: [null, 3.7, 5.2, 7.9, 8.9, 11.6], sft: [1.0, 3.0, 5.0, 7.0, 9.0, null]}
full: {full: [[base, 2]]}
cut: {cut: 2}
passages: {prompts: passages}
rates: &rates {base: &none [0, 0, 0, 0, 0, 0], sft: [1, 1, 1, 1, 1, 1], align: [1, 1, 1, 1, 1, 0],
  by: [half]}
signed: {<<: *rates, base: [-1, -1, -1, -1, -1, -1], align: [1, 1, 1, 1, 1, -1]}
samples: {samples_per_prompt: 4}
nothing: {align: [null, null, null, null, null, null]}
one: {limit: 1}
alone: {policies: [align]}
languages: {by: [language], policies: [sft, align]}
shares: {base: *none, sft: [1, 1, 0, 1, 0, 0], align: [1, 1, 1, 1, 1, 0], prompts: passages}
metrics: &metrics
  base: *none
  sft: [0, 0, 0, 1, 1, 1]
  align: [1, 1, 1, 0, 0, 0]
  rewards: []
  metrics:
    first: {where: {half: 0}}
    second: {where: {half: [1]}, better: lower}
of base: {<<: *metrics, baseline: base}
composite:
  <<: *metrics
  sft: [0, 1, 0, 0, 1, 1]
  align: [1, 1, 1, 0, 0, 1]
  composites: {sum: {first: 2, second: 1}}
judged: {judges: 2, rewards: []}
judged often: {judges: 1, rewards: [], samples_per_prompt: 3}
""")


def evaluated(
    folder: Path, full: Any = (), cut: int = 0, judges: int = 0, metrics: Any = None, **changed: Any
) -> Any:
    models = Scripted({name: changed.pop(name, own) for name, own in SCORES.items()})
    models.full, models.cut = set(map(tuple, full)), cut
    groups = GROUPS
    if changed.pop("prompts", None):
        groups = [replace(group, origin=Origin("x", 1, group="passage")) for group in GROUPS]
    changed["metrics"] = {name: {"reward": HELPFUL, **one} for name, one in (metrics or {}).items()}
    return summary(folder, models, groups, judges=[JUDGE] * judges, **changed)


# Worked out in numpy and scipy, without the code: scipy's t tests and t intervals, paired, for rates
# Agresti and Coull's, and Bonett and Price's, and the lower root of Wilson's quadratic. The KL is k3
# of half a nat per token, (exp(0.5) - 1.5) * 5 = 0.74 at -0.5 each, where k1 is -2.5. Three passages
# with two prompts each count as three values, whose mean is that of six, or as three shares of two.
# A judge's values have a prompt won and one lost in addition: t tests of few are wrong if skewed.
# Samples 2 and 3 are 10 below and above. A composite of the means a and b of three prompts each, a -
# b / 2, has the variance (s_a^2 + s_b^2 / 4) / 3 and 5 degrees of freedom; its ends are at least as far
# as the root of the squares of those of a and b / 2, and its p follows from them. See `lines`.
NUMBERS = """
plain: base helpful | sft | 5 1.073 8.927 6 | -1 - - 6 0.03125 | 0 | 0/6/0 0
plain: sft helpful |  | 6 2.073 9.927 6 |  |  | 0
plain: align helpful | sft | 6.467 2.589 10.34 6 | 0.4667 0.08732 0.846 6 0.02503 | 0.4365 | 5/1/0 0
plain: base length, tokens |  | 5 - - 6 |  |  | 0
plain: base truncated |  | 0.1667 |  |  | 0
plain: sft length, tokens |  | 5 4.061 5.939 6 |  |  | 0
plain: sft truncated |  | 0.1667 |  |  | 0
plain: align length, tokens |  | 6 3.517 8.483 6 |  |  | 0
plain: align truncated |  | 0.1667 |  |  | 0
plain: base KL, nats | sft | 0.7436 - - 6 |  |  | 0
plain: sft KL, nats | sft | 0 0 0 6 |  |  | 0
plain: align KL, nats | sft | 0.6392 0.3746 0.9037 6 |  |  | 0
base: align helpful | base | 6.467 2.589 10.34 6 | 1.467 1.087 1.846 6 0.0001761 | 0.6097 | 6/0/0 0
wins: align helpful | sft | 6.333 2.658 10.01 6 | 0.3333 -0.5235 1.19 6 0.3632 | 0.3006 | 3/1/2 0
gaps: sft helpful |  | 5 1.074 8.926 5 |  |  | 1
gaps: align helpful | sft | 7.46 3.6 11.32 5 | 0.425 -0.3027 1.153 4 0.1601 | 0.3006 | 3/1/0 1
full: align helpful | sft | 6.72 1.664 11.78 5 | 0.52 0.05211 0.9879 5 0.03673 | 0.3755 | 4/1/0 0
cut: align KL, nats | sft | 0.6605 0.3181 1.003 5 |  |  | 1
passages: align helpful | sft | 6.467 -3.037 15.97 3 | 0.4667 -0.003573 0.9369 3 0.25 | 0.1487 | 5/1/0 0
passages: align length, tokens |  | 6 3.849 8.151 3 |  |  | 0
passages: align KL, nats | sft | 0.6392 0.41 0.8684 3 |  |  | 0
rates: sft helpful |  | 1 0.5572 1 6 |  |  | 0
rates: align helpful | sft | 0.8333 0.4178 0.9886 6 | -0.1667 -0.5404 0.2904 6 1 | 0 | 0/1/5 0
rates: sft helpful 0 |  | 1 0.3825 1 3 |  |  | 0
rates: align helpful 0 | sft | 1 0.3825 1 3 | 0 -0.5544 0.5544 3 1 |  | 0/0/3 0
rates: sft helpful 1 |  | 1 0.3825 1 3 |  |  | 0
rates: align helpful 1 | sft | 0.6667 0.2024 0.9437 3 | -0.3333 -0.8559 0.4559 3 1 | 0 | 0/1/2 0
signed: align helpful | sft | 0.6667 -0.1644 0.9773 6 | -0.3333 -1.081 0.5808 6 1 | 0 | 0/1/5 0
signed: align helpful 0 | sft | 1 -0.2349 1 3 | 0 -1.109 1.109 3 1 |  | 0/0/3 0
signed: align helpful 1 | sft | 0.3333 -0.5951 0.8875 3 | -0.6667 -1.712 0.9119 3 1 | 0 | 0/1/2 0
samples: align helpful | sft | 6.467 2.589 10.34 6 | 0.4667 0.08732 0.846 6 0.02503 | 0.4365 | 5/1/0 0
samples: align distinct-2 of a prompt's answers | sft | 0.25 - - 6 | 0 0 0 6 1 |  | 0/0/6 0
samples: align self-BLEU of them | sft | 1 - - 6 | 0 0 0 6 1 |  | 0/0/6 0
samples: align length, tokens |  | 6 3.517 8.483 6 |  |  | 0
samples: align truncated |  | 0.1667 |  |  | 0
samples: align KL, nats | sft | 0.6392 0.3746 0.9037 6 |  |  | 0
nothing: align helpful | sft | - - - 0 | - - - 0 1 |  | 0/0/0 6
one: align helpful | sft | 1.5 - - 1 | 0.5 - - 1 1 | 0.2065 | 1/0/0 0
alone: base helpful |  | 5 1.073 8.927 6 |  |  | 0
alone: align helpful |  | 6.467 2.589 10.34 6 |  |  | 0
languages: base helpful |  | 5 1.073 8.927 6 |  |  | 0
languages: sft helpful |  | 6 2.073 9.927 6 |  |  | 0
languages: align helpful (none) | sft | 11.6 - - 1 | 0.6 - - 1 1 | 0.2065 | 1/0/0 0
languages: align helpful en | sft | 6.833 -0.02097 13.69 3 | 0.5 -0.8145 1.814 3 0.25 | 0.2077 | 2/1/0 0
shares: sft helpful |  | 0.5 0.03617 0.9638 3 |  |  | 0
shares: align helpful | sft | 0.8333 0.1317 1 3 | 0.3333 -0.3132 0.7132 3 0.5 | 0.3424 | 2/0/4 0
metrics: align first | sft | 1 0.3825 1 3 | 1 -0.1012 1 3 0.25 | 0.4385 | 3/0/0 0
metrics: align first | the base model | 1 0.3825 1 3 | 1 -0.1012 1 3 0.25 |  | 0
metrics: align second | sft | 0 0 0.6175 3 | -1 -1 0.1012 3 0.25 | 0.4385 | 3/0/0 0
metrics: align second | the base model | 0 0 0.6175 3 | 0 -0.5544 0.5544 3 1 |  | 0
composite: align sum | sft | 0.8333 0.1737 1 6 | 0.8333 -0.2119 1.791 6 0.1181 | 0.4385 | 3/0/3 0
composite: align second | sft | 0.3333 0.05627 0.7976 3 | -0.3333 -0.8559 0.4559 3 1 | 0.2065 | 1/0/2 0
of base: align first | base | 1 0.3825 1 3 | 1 -0.1012 1 3 0.25 | 0.4385 | 3/0/0 0
judged: base judge | sft | 0.58 0.1956 0.9187 5 0.7123 | 0.08 -0.3044 0.4187 0.7123 | 0.15 | 2/2/1 1
judged: base judge-2 | sft | 0.58 0.1956 0.9187 5 0.7123 | 0.08 -0.3044 0.4187 0.7123 | 0.15 | 2/2/1 1
judged: align judge | sft | 0.58 0.1956 0.9187 5 0.7123 | 0.08 -0.3044 0.4187 0.7123 | 0.15 | 2/2/1 1
judged: align judge-2 | sft | 0.58 0.1956 0.9187 5 0.7123 | 0.08 -0.3044 0.4187 0.7123 | 0.15 | 2/2/1 1
judged: align judge, Bradley-Terry points |  | 56.07 -245.7 421.3 5 |  |  | 0
judged often: align judge | sft | 0.58 0.1956 0.9187 5 0.7123 | 0.08 -0.3044 0.4187 0.7123 | 0.15 | 2/2/1 1
"""


@pytest.mark.silent_bug(
    "statistics: KL",
    "The KL of an evaluation is the mean log ratio, which may be negative.",
    "It is k3, which is not.",
)
@pytest.mark.silent_bug(
    "evaluation: intervals",
    "Samples of the same prompt count as independent, and intervals are too narrow.",
    "They are averaged first.",
    "UKGovernmentBEIS/inspect_ai#1113",
    "UKGovernmentBEIS/inspect_ai#1251",
)
@pytest.mark.parametrize("name", RUNS)
def test_numbers_are_those_of_the_textbook(name: str, tmp_path: Path) -> None:
    found = [f"{name}: {line}" for line in lines(evaluated(tmp_path, **RUNS[name]))]
    expected = [line for line in NUMBERS.splitlines() if line.startswith(f"{name}: ")]
    assert [line for line in found if line in expected] == expected != []
    assert name != "plain" or found == expected
    assert ("the base model" in str(found)) == (name in ("metrics", "composite"))


HOSTILE = "\x1b[31mred[/red] [bold]x\r{i} from {policy} " + "long " * 60
SAMPLED = {"max_new_tokens": 9, "min_new_tokens": 2, "stop": ["\n"], "temperature": 0.5}
SAMPLED |= {"top_p": 0.9, "top_k": 3}


def whole(folder: Path) -> tuple[Scripted, Any]:
    """All options at once. Answers score a tenth per token, and half more if they are the aligned
    policy's; its last one that counts has no score.
    """
    lengths = {"base": [5] * 40, "sft": [20 + i % 7 for i in range(40)]}
    lengths["align"] = [22 + (3 * i) % 8 for i in range(40)]
    scores: dict[str, Any] = {policy: [0.1 * n for n in own] for policy, own in lengths.items()}
    scores["align"] = [n + 0.5 + 0.2 * math.sin(7 * i) for i, n in enumerate(scores["align"])]
    scores["align"][-2] = None
    models = Scripted(scores, lengths, HOSTILE)
    groups = [
        replace(
            group, meta={"passage": n, "language": "en"}, origin=Origin("x", n, group="passage")
        )
        for n, group in enumerate(prompts(40))
    ]
    around = context(models, folder, [replace(groups[0], meta={"passage": 0}), *groups, groups[0]])
    options = {
        "metrics": {"metric": {"reward": HELPFUL, "better": "lower", "where": {"language": "en"}}},
        "judges": [JUDGE],
    }
    made = step(
        sampling=SAMPLED,
        samples_per_prompt=2,
        limit=40,
        by=["language"],
        next="alignkit chat runs/x",
        **options,
    )
    return models, made.run(around)


# The means and intervals are those of scipy on the 39 passages, and a judge's of 34 with a verdict
TEXT = """\
1 of 42 prompts repeat the words and columns of others and do not count again
only the first 40 of 41 prompts (limit: 40)
intervals are over 39 units: of 40 rows, those with the same words or `group` are one
sampled with max_new_tokens 9, temperature 0.5, min_new_tokens 2, top_p 0.9, top_k 3, stop ['\\n']
the KL is biased: it is of all tokens, and samples leave some out (min_new_tokens, top_k, top_p)

base is better than sft in metric (lower is better), -1.78 [-1.85, -1.72]: 0.50 against 2.28. It is
  not known whether it was trained on this, so this may be no independent proof. Worse: the reward
  helpful, -1.78 [-1.85, -1.71]. No clear difference in judge.
align is worse than sft in metric (lower is better), +0.77 [0.66, 0.89]: 3.06 against 2.28. Worse
  than the base model: metric (lower is better), +2.56 [2.46, 2.66]. Better: the reward helpful,
  +0.77 [0.66, 0.89]. No clear difference in judge.
judge compared 160 pairs, and how far people agree with it is not known; the order of the answers
  decides 21% [10, 39]; no verdict on 24 (refused).

mean and 95% interval over 40 prompts (39 independent)
                                           base                sft              align
─────────────────────────────────────────────────────────────────────────────────────
metric*                             0.50 [?, ?]  2.28 [2.22, 2.35]  3.06 [2.96, 3.16]
helpful                             0.50 [?, ?]  2.28 [2.21, 2.35]  3.05 [2.95, 3.15]
judge                              59% [48, 68]                  -       59% [48, 68]
judge, Bradley-Terry points       60 [-15, 133]                  -      60 [-15, 133]
distinct-2 of a prompt's answers           0.10               0.10               0.10
self-BLEU of them                          1.00               1.00               1.00
length, tokens                             5.00  22.8 [22.1, 23.5]  25.4 [24.6, 26.2]
truncated                                    5%                 5%                 5%
KL, nats                                   0.74  0.00 [0.00, 0.00]  2.70 [2.62, 2.79]
* lower is better

prompt: question 0
base:
  [31mred[/red] [bold]x 0 from base long long long long long long long long long long long long long
  long long long long long long long long long long long long long long long long long long long
  long long long long long long long long long long long long long long long long long long long
  long lon...
sft:
  [31mred[/red] [bold]x 0 from sft long long long long long long long long long long long long long
  long long long long long long long long long long long long long long long long long long long
  long long long long long long long long long long long long long long long long long long long
  long long...
align:
  [31mred[/red] [bold]x 0 from align long long long long long long long long long long long long
  long long long long long long long long long long long long long long long long long long long
  long long long long long long long long long long long long long long long long long long long
  long long lo...
"""


def test_the_whole_report_and_its_files(tmp_path: Path) -> None:
    """Answers cannot act on the terminal or as markup, and are cut."""
    models, artifact = whole(tmp_path)
    text, found = said(artifact, 100), artifact.summary
    assert text.startswith(TEXT)
    assert text.count("prompt: ") == 3 and text.endswith("\n\nnext: alignkit chat runs/x")
    common = {"seed": 7, "samples_per_prompt": 2, **SAMPLED}
    assert models.sampled == [{"role": role, **common} for role in SCORES]
    assert found["sampling"] == common and found["headline"] == "metric"
    written = (tmp_path / "out" / "evaluation.json").read_text()
    assert json.loads(written) == found and "NaN" not in written
    samples = read_groups(tmp_path / "out" / "samples.jsonl")
    assert [number(group.prompt) for group in samples] == [0, *range(39)]
    last = samples[2].responses[-1]
    assert (last.source, last.scores) == (
        "align",
        pytest.approx({"metric": 3.131, "helpful": 3.131}, abs=1e-3),
    )
    mine = [one for one in rows_in(found) if one.policy == "align" and not one.column]
    reward, judge = (one for one in mine if one.kind in ("reward", "judge"))
    assert not any(one.equal_length for one in mine if one.kind == "metric")  # no length fools it
    equal = reward.equal_length
    assert equal["mean"] == pytest.approx(0.5, abs=0.15) and 0 < equal["low"] < equal["high"] < 0.7
    # As in test_statistics.py, by numpy's least squares
    assert figures(judge.equal_length) == "0.5773 0.4219 0.7327"
    keys, known = paths(json.loads(written), {}), documented("evaluation.json")
    fields = {key for key in known if known[key].strip().startswith("of an estimate")}
    estimates = [key for key in known if "estimate of" in known[key]]
    nested = {f"{key}.{field}" for key in estimates for field in fields}
    # Nothing says here what a policy learned from; for cards of judges see test_judge_card.py.
    undocumented = {key for key in keys - known.keys() - nested if "judge_cards" not in key}
    assert undocumented == set()
    assert known.keys() - keys - fields == {"results.trained_on"}


TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


def test_the_kl_is_at_the_temperature_of_samples_and_of_what_was_read(tmp_path: Path) -> None:
    """The temperature of evaluations is their own, not that of training. Without a KL or with
    another tokenizer nothing is measured.
    """
    models, followed = Scripted(), step(sampling={"max_new_tokens": 9})
    followed.options.follow(Sampling(temperature=0.9, max_new_tokens=4))
    tools = [replace(group, tools=(TOOL,)) for group in prompts()]
    found: Any = followed.run(context(models, tmp_path, tools)).summary
    assert models.measured == [(role, 0.7) for role in ("base", "sft", "align", "sft")]
    assert models.tools == [(TOOL,)] * len(models.tools)
    sampling = {"samples_per_prompt": 1, "max_new_tokens": 9, "temperature": 0.7, "seed": 7}
    assert found["sampling"] == sampling
    models.measured.clear()
    found = summary(tmp_path, models, kl=False, sampling={"temperature": 0, "top_k": 3})
    assert "biased" not in str(found["notes"])
    assert not models.measured and "KL" not in "".join(lines(found))


def test_policies_without_a_kl_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    def logprobs(self: Any, *given: Any, **more: Any) -> Any:
        raise OtherTokenizer("'base' has another tokenizer")

    monkeypatch.setattr(Scripted, "logprobs", logprobs)
    around = context(Scripted(), tmp_path, say=heard.append)
    found: Any = step(policies=["base", "sft"]).run(around).summary
    assert "out: no KL of sft: 'base' has another tokenizer" in heard
    assert "sft KL, nats | base | - - - 0 |  |  | 6" in lines(found)


def test_groups_are_those_of_the_prompts_that_are_asked_and_of_their_own_column() -> None:
    rows = []
    for at, group in enumerate(prompts()):
        source = at // 3
        origin = Origin("xy"[source], at + 1, source=source, group="ab"[source])
        rows.append(replace(group, meta={"ab"[source]: at // 2}, origin=origin))
    assert [row.meta[UNIT] for row in together(rows)] == ["a 0", "a 0", "a 1", "b 1", "b 2", "b 2"]
    assert units_of(rows) == units_of(together(rows)) == [0, 0, 2, 3, 4, 4]
    (note,) = prompts_to_compare(rows)[1]
    assert note.startswith("intervals are over 4 units: of 6 rows, those with the same words or")
    raw = Group((), (Response("text"),))
    assert prompts_to_compare([*prompts(2), raw])[1] == []
    with pytest.raises(DataError, match="without a prompt") as error:
        prompts_to_compare([raw])
    assert error.value.option == ("prompts",)
    with pytest.raises(DataError, match="x:1: the row has no 'passsage'"):
        prompts_to_compare([replace(rows[0], origin=Origin("x", 1, group="passsage"))])


UNITS = """
    a- b- c-         | 0 1 2
    a- b- A- a-      | 0 1 0 0
    a1 b1 c2 d-      | 0 0 2 3
    a1 b2 c2 b3 d3   | 0 1 1 1 1
    a1 b2 a2 c3      | 0 0 0 3
"""


@pytest.mark.parametrize(("rows", "expected"), cells(UNITS))
def test_equal_words_and_a_group_are_one_unit(rows: str, expected: str) -> None:
    """A letter is the prompt, and a digit what its source's `group` names."""
    made = []
    for place, (words, value) in enumerate(rows.split()):
        origin = Origin("x", place, group=None if value == "-" else "g")
        meta = {"id": place, "g": value}
        made.append(Group((user(words),), meta=meta, origin=origin))
    assert units_of(made) == [int(unit) for unit in expected.split()]
    # Tools tell prompts apart, and system turns do not
    told = replace(made[0], prompt=({"role": "system", "content": "s"}, *made[0].prompt))
    tools = replace(made[0], tools=(TOOL,), origin=None)
    assert len({*units_of([replace(told, origin=None), tools, replace(made[0], origin=None)])}) == 2


def test_rows_with_the_same_words_are_one_unit_of_all_numbers(tmp_path: Path) -> None:
    rows = [replace(prompts()[n // 2], id=str(n), meta={"id": n}) for n in range(6)]
    found = summary(tmp_path, Scripted(), rows, judges=[JUDGE])
    assert (found["prompts"], found["units"]) == (6, 3)
    assert found["notes"][0].startswith("intervals are over 3 units: of 6 rows")
    every = [row.estimate for row in rows_in(found) if "n" in row.estimate]
    assert len(every) > 8 and {one["n"] for one in every} == {3}


# --- who is compared with whom

BASELINES = """
    base sft       |       | base
    base sft align |       | sft
    sft best align |       | sft
    base /r/a/sft/adapter align | | a/sft
    base sft align | align | align
    align          |       |
"""


@pytest.mark.parametrize(("policies", "asked", "expected"), cells(BASELINES))
def test_the_baseline_is_where_training_began(policies: str, asked: str, expected: str) -> None:
    made = step(policies=policies.split(), baseline=asked or None)
    assert made.baseline == (expected or None)


@pytest.mark.parametrize(
    ("asked", "answers", "base_of"),
    [
        (True, "sft align", lambda policy: policy),
        (True, "base sft align", lambda policy: "base"),
        (False, "sft align", lambda policy: "base"),
    ],
)
def test_the_base_answers_if_there_is_one_and_it_is_asked(
    asked: bool, answers: str, base_of: Any, tmp_path: Path
) -> None:
    around = context(Scripted(), tmp_path, base_of=base_of)
    found: Any = step(policies=["sft", "align"], base=asked).run(around).summary
    assert found["policies"] == answers.split()


@pytest.mark.parametrize("of_base", [False, None, True])
def test_known_answers_that_the_base_may_have_learned_are_no_proof(
    of_base: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = {"base": of_base, "align": True, "/other": True}
    monkeypatch.setattr(evaluate, "learned_from", lambda model, *_: learned[model])
    monkeypatch.setattr(evaluate, "trained_prompts", lambda *_: {})
    monkeypatch.setattr(evaluate.metrics, "verifies", lambda rater: True)
    around = context(Scripted(), tmp_path, recipe=object())
    policies = {"align": "align", "other": "/other"}
    (found,) = step()._trained_on(policies, prompts(), around).values()
    assert found == {"align": of_base is not False, "other": True}


def test_a_reward_decides_only_without_metrics() -> None:
    length = [RewardSpec("reward", "length")]
    assert list(raters_of(step(rewards=length).options)) == ["length"]
    assert list(raters_of(step(rewards=length, metrics={"m": {"reward": HELPFUL}}).options)) == [
        "m"
    ]


def test_names_are_as_short_as_they_can_be_and_stay_different() -> None:
    here = "/r/one/sft/adapter", "/r/one/sft/kept/2", "base"
    assert list(short_names(here).values()) == ["one/sft", "one/sft@2", "base"]
    same = ["/r/a/x/sft/adapter", "/r/b/x/sft/adapter"]
    assert list(short_names(same).values()) == same  # or a table would lose a policy
    specs = RewardSpec("folder", "/r/one/helpful/adapter"), RewardSpec("folder", "models/mine")
    assert [*map(evaluate.label, specs)] == ["one/helpful", "mine"]


# --- what is missing, and what is refused


def test_a_prompt_without_room_is_left_out_for_all(tmp_path: Path) -> None:
    found = evaluated(tmp_path, full={("base", 2)})
    assert (found["prompts"], found["left_out"]) == (5, 1)
    with pytest.raises(RunFailed, match="none of 6 prompts"):
        evaluated(tmp_path, full={("base", i) for i in range(6)})


def test_examples_that_compare_nothing_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Mock(return_value={"sft": {0}})
    monkeypatch.setattr(evaluate, "trained_prompts", trained)
    both = tuple(Response(text, tokens=(1, 2)) for text in "ab")
    pair = replace(prompts()[0], responses=both, pairs=(Pair(0, 1),))
    rows = [pair, replace(pair, responses=(), pairs=None)]
    rows = [replace(row, meta={"passage": 1}) for row in rows]

    def load(spec: Any) -> list[Group]:
        return rows if spec == PASSAGES else prompts()

    own = RewardSpec("stage", "own")
    made = step(examples=PASSAGES, metrics={"m": {"reward": own}}, judges=[JUDGE])
    monkeypatch.setattr(evaluate, "learned_from", lambda *_: True)
    found: Any = made.run(context(Scripted(), tmp_path, load=load, recipe=object())).summary
    assert {row.trained_on for row in rows_in(found) if row.metric == "judge"} == {True}
    asked = [call.args[1] for call in trained.call_args_list[:5]]
    assert asked == ["base", "sft", "align", HELPFUL, own]
    assert found["examples"] == 1 and found["headline"] == "pairs right"
    assert "1 of 2 examples compare nothing and are left out" in found["notes"]
    assert "warning: 1 of 1 examples are training data (1 by sft)" in found["notes"]


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"policies": ["sft", "sft"]}, "policies has duplicates: sft"),
    ({"metrics": {"helpful": {"reward": HELPFUL}}}, "duplicates: helpful"),
    ({"metrics": {"m": {"reward": HELPFUL}}, "composites": {"sum": {"n": 1}}}, "'n' is no metric"),
    ({"metrics": {"m": {"reward": HELPFUL}}, "composites": {"sum": {}}}, "'' is no metric"),
    ({"policies": ["sft", {"policy": "sft", "best_of": 2}]}, "'best_of' above 1 and 'reward'"),
    ({"policies": ["sft", {"policy": "sft"}]}, "or write only its name"),
    ({"policies": [{"policy": "sft", "examples": "few"}]}, "name one policy by itself"),
    ({"policies": ["sft", {"policy": "a", "examples": "b", "name": "sft"}]}, "duplicates: sft"),
    ({"rewards": []}, "at least one metric, reward or judge"),
    ({"judges": [JUDGE], "policies": ["sft"]}, "at least two"),
    ({"baseline": "best"}, "baseline 'best'"),
    ({"sampling": {"temperature": 0}}, "kl: false"),
]


@pytest.mark.parametrize(("options", "word"), MISTAKES)
def test_options_that_cannot_be(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        step(**options)


WHERE = """
    {"hafl": 0}             | the column hafl\\nhelp: did you mean 'half'
    {"language": "end"}     | language: end\\nhelp: did you mean 'en'
    {"half": [1, "x"]}      | half: x\\nhelp: there are 0, 1
    {"half": 0, "year": 3}  | the column year
    {"half": 0, "passage": 2} | no prompt matches all
"""


@pytest.mark.parametrize(("where", "said"), cells(WHERE))
def test_a_metric_without_prompts_is_refused_before_any_work(where: str, said: str) -> None:
    checked: list[tuple[str, int]] = []
    data = StepData(
        lambda spec: spec and GROUPS,
        lambda reward, groups: checked.append((reward.name, len(groups))),
    )
    made = step(metrics={"refused": {"reward": HELPFUL, "where": json.loads(where)}}, rewards=[])
    with pytest.raises(DataError, match=said) as raised:
        made.check_data(data)
    assert raised.value.option[:2] == ("metrics", "refused")
    limited = step(metrics={"a": {"reward": HELPFUL, "where": {"half": 1}}}, limit=3)
    with pytest.raises(DataError, match=r"among the first 3 \(limit: 3\) has half: 1"):
        limited.check_data(data)
    with pytest.raises(DataError, match="the column safety\nhelp: there are half") as raised:
        step(by=["half", "safety"]).check_data(data)
    assert raised.value.option == ("by", 1)
    with pytest.raises(DataError, match="examples are demonstrations, pairs or rankings"):
        step(examples=PASSAGES).check_data(data)
    checked.clear()
    step(metrics={"first": {"reward": HELPFUL, "where": {"half": 0}}}).check_data(data)
    assert checked == [("helpful", 6), ("helpful", 3)]  # a metric's own prompts


# --- judges


@pytest.mark.silent_bug(
    "judges: missing verdicts",
    "A judge that fails counts as a wrong answer or as half a win.",
    "The case is left out and counted by reason.",
    "open-compass/opencompass#2598",
    "NVIDIA-NeMo/Gym#2103",
)
def test_every_answer_meets_the_baselines_and_what_has_no_verdict_is_counted(
    tmp_path: Path,
) -> None:
    judge, asked = told(decide)
    options = {"judges": [judge], "samples_per_prompt": 3, "policies": ["sft", "align"]}
    found, every = summary(tmp_path, **options), [i for i in range(6) for _ in range(3)]
    assert [item[1:] for item in asked] == [(f"align says {i}", f"sft says {i}") for i in every]
    asked.clear()
    summary(tmp_path, Scripted(texts="{policy} {k}"), **options)  # sample k meets sample k
    assert [item[1:] for item in asked] == [(f"align {k}", f"sft {k}") for k in range(3)] * 6
    card = found["judge_cards"]["judge"]
    assert (card["comparisons"], card["unjudged"]) == (18, {"refused": 3})
    asked.clear()
    tied = summary(tmp_path, Scripted(texts="the same {i}"), **options)
    same, card = lines(tied), tied["judge_cards"]["judge"]
    assert card["comparisons"] == 0
    assert asked == [] and any("| 0.5 - - 6 1 |" in line and "0/0/6" in line for line in same)


def test_each_sample_may_be_truncated() -> None:
    long = Response("b", tokens=(1, 2, 3), source="sft", truncated=True)
    answers = (Response("a", tokens=(1,), source="sft"), long)
    size, row = measures.of_answers([replace(prompts()[0], responses=answers)], ["sft"])
    assert (row.metric, row.estimate, row.percent) == ("truncated", {"mean": 0.5}, True)
    assert size.estimate["mean"] == 2.0


def test_no_length_and_no_kl_is_below_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their t intervals would be, because one of four answers is much longer, and the only one with
    a KL.
    """
    many = [1, 1, 1, 41]
    groups = [
        replace(group, responses=(Response("a", tokens=(1,) * count, source="sft"),))
        for group, count in zip(prompts(), many, strict=False)
    ]
    monkeypatch.setattr(measures, "_kl", lambda *given: [[count - 1.0] for count in many])
    size, _ = measures.of_answers(groups, ["sft"])
    _, kl = measures.kl_of(groups, {"base": "base", "sft": "sft"}, "base", 1.0, Mock())
    for row, mean in ((size, 11.0), (kl, 10.0)):
        assert (row.estimate["mean"], row.estimate["low"], row.estimate["n"]) == (mean, 0.0, 4)
        assert row.estimate["high"] == pytest.approx(mean + 31.824463)  # t of three times 10


def test_probabilities_have_no_interval_beyond_0_and_1() -> None:
    found = Preference(None).mean([0.25, 1.0], [None, None])
    assert (found["mean"], found["low"], found["high"]) == (0.625, 0.0, 1.0)
    # With scipy, of a prompt won and a prompt lost in addition
    sure = Preference(None).mean([0.9] * 6, range(6))
    assert (sure["low"], sure["high"], sure["p"]) == pytest.approx(
        (0.528178, 1, 0.034926), abs=1e-6
    )
    # Of wins alone the interval is Agresti and Coull's, see test_statistics.py
    assert Preference(None).mean([1.0] * 5, [None] * 5)["low"] == pytest.approx(0.510945, abs=1e-6)


def test_an_interval_of_a_loss_ends_at_0() -> None:
    values = [*[0.01] * 19, 4.0]
    scale = examples.scale_of(examples.LOSS)
    assert scale is not None and scale.mean(values, range(20))["low"] == 0.0
    assert Scale(None).mean(values, range(20))["low"] < 0.0
