"""What a demonstration of a data set says is right by the data set's own reward, however its number
is written.
"""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
import yaml

from alignkit import Format, Group, Response
from alignkit.contract.formats import checked_groups
from alignkit.evaluation.numbers import number_of, numbers_in
from alignkit.host.plugins import load_plugins
from alignkit_plugins.environments.calculator import Calculator
from alignkit_plugins.rewards.exact_match import ExactMatch
from alignkit_plugins.rewards.honesty import HonestyAccuracy, matches
from alignkit_plugins.rewards.math_verify import MathVerify
from tests.rows import cells

FORMATS: dict[str, type[Format]] = {
    registration.name: registration.implementation
    for registration in load_plugins().registrations("format")
}
WRITTEN = r"""
1,234 | 1234
$1,234 | 1234
1234.00 | 1234
1.5e3 | 1500
1.5 × 10^3 | 1500
1.5 x 10^3 | 1500
–5 | -5
-5 | -5
−5 | -5
-$5 | -5
$-5 | -5
50% | 50
50 % | 50
\$18 | 18
18€ | 18
3/4 | 0.75
¾ | 0.75
1 1/2 | 1.5
1½ | 1.5
18 dollars | 18
7 days | 7
2 million | 2000000
3 hundred | 300
2 dozen | 24
4 thousand | 4000
5 billion | 5000000000
1.5 trillion | 1500000000000
3千万 | 30000000
1.5万亿元 | 1500000000000
5천만 명 | 50000000
5 crore | 50000000
5 करोड़ | 50000000
2 lakh | 200000
5 Millionen Euro | 5000000
5 Mrd. | 5000000000
$5bn | 5000000000
5 млн | 5000000
7 mil millones | 7000000000
2조각 | 2
5千米 | 5
12 millionaires | 12
0.10 | 0.1
1,234,567.5 | 1234567.5
1<thin>234 | 1234
007 | 7
.5 | 0.5
12 square feet | 12
18. | 18
18 dollars. | 18
1'234 | 1234
1’234.5 | 1234.5
٣٫٥ | 3.5
١٬٢٣٤ | 1234
"""
NO_NUMBERS = """
3万5千
-
$
1,23
1.234,5
5k
5 x
5 or 6
5 or six
5 pi
5 Sqrt two
5 squared
2 thirds
3:00
1/0
3 then 4
10³
x5
4th
"""


def score(reward: Any, group: Group, said: str, **options: Any) -> float | None:
    answered = Group(group.prompt, (Response(said),), meta=group.meta)
    [value] = reward(reward.Options(**options)).score([answered])
    return value  # type: ignore[no-any-return]


def gsm8k(number: str) -> Group:
    [group] = checked_groups(
        FORMATS["gsm8k"](), {"question": "How many?", "answer": f"So it is.\n#### {number}"}
    )
    return group


@pytest.mark.silent_bug(
    "rewards: numbers",
    "A right answer counts as wrong because of a comma, a sign, a unit or a trailing zero.",
    "One function reads numbers in rewards, formats and demonstrations.",
    "allenai/open-instruct#1530",
    "open-compass/opencompass#2343",
)
@pytest.mark.parametrize(("written", "value"), cells(WRITTEN.replace("<thin>", "\u202f")))
def test_a_number_has_one_value_however_it_is_written(written: str, value: str) -> None:
    number = number_of(written)
    assert number is not None and number.value == Fraction(value)
    assert [one.value for one in numbers_in(f"So ({written}) it is.")] == [number.value]
    group = gsm8k(written)
    for reward, options in ((ExactMatch, {"extract": r"#### (.*)"}), (MathVerify, {})):
        assert score(reward, group, group.responses[0].text, **options) == 1.0
        assert score(reward, group, "So it is.\n#### 3", **options) == 0.0
    asked: Any = ({"role": "user", "content": "How many?"},)
    for known, said in ((float(value), written), (written, written), (str(number), written)):
        assert score(ExactMatch, Group(asked, meta={"answer": known}), said) == 1.0
        assert score(MathVerify, Group(asked, meta={"answer": known}), f"So\n#### {said}") == 1.0
        calculator = Calculator(Calculator.Options())
        calculator.reset({"answer": known})
        calculator.turns = ({"role": "assistant", "content": f"It is {said}"},)
        assert calculator.get_reward() == 1.0


@pytest.mark.silent_bug(
    "rewards: numbers",
    "Commas are removed from lists, so that two numbers become another one.",
    "Only a comma that separates thousands is part of a number.",
    "databricks/officeqa#23",
)
def test_what_is_no_number_is_a_text() -> None:
    assert {number_of(text) for text in NO_NUMBERS.split("\n")} == {None}
    # A number ends with its line.
    found = [one.value for one in numbers_in("Step 1\n3/4, not 1 3/4")]
    assert found == [1, Fraction(3, 4), Fraction(7, 4)]
    [only] = numbers_in("1,23 or 1.2.3 on the 4th, 2 Million")
    assert only.value == 2_000_000
    words = "and to times minus plus divided over root cubed factorial mod choose point half halves"
    assert {number_of(f"5 {word} six") for word in words.split()} == {None}
    assert str(number_of("1/3")) == "1/3"


UNITS = yaml.safe_load("""
- [$18, ["18", 18 dollars], [18%]]
- [18, [$18], []]
- [50%, [50 percent], ["0.5"]]
- [12 Monkeys, [12 monkeys], ["12", 12 people]]
- [5 km, ["5", 5km], [5 miles, 5 km/h]]
- [150 minutes, ["150", 150 Minutes], [150 hours, "2.5"]]
- [4000 m, ["4000", 4000m, 4000 m], [4000 km, 4000km, 4000 g, 4000g, 4000 m^2, 4000m²]]
- [60 km/h, ["60", 60km/h], [60 km, 60 m/s]]
- [16 GB, ["16"], [16 TB, 16G]]
- [20℃, ["20"], [20°F, 20°]]
- [1980s, [], ["1980", 1980 s]]
- ["5", [5 m, 5 m/s], [5m, 5k]]
""")


@pytest.mark.parametrize(("known", "right", "wrong"), UNITS)
def test_a_unit_may_be_left_out_but_not_be_another(known: Any, right: Any, wrong: Any) -> None:
    group = Group((), meta={"answer": known})
    for said in (*right, *wrong):
        assert score(ExactMatch, group, said) == float(said in right), said
        found = score(ExactMatch, group, f"Well, it is {said}.", within=True)
        assert found == float(said in right), said


@pytest.mark.silent_bug(
    "rewards: numbers",
    "A data set's own demonstration scores 0 by its own reward.",
    "Every shipped format with a verifiable answer gives its demonstrations 1.",
    "EleutherAI/lm-evaluation-harness#1204",
)
def test_every_format_with_a_verifiable_answer_rewards_what_it_demonstrates() -> None:
    seen = set()
    for name, cls in FORMATS.items():
        # Which has options to be filled
        row = json.loads(cls.example) if cls.example and name != "template" else {}
        for group in checked_groups(cls(), row) if row else []:
            if "answer" in group.meta and all(one.label is not False for one in group.responses):
                said = group.responses[0].text if group.responses else str(row["Answer"])
                assert score(MathVerify, group, said) == 1.0, name
                assert score(ExactMatch, group, said, extract=r"(\S+)\Z") == 1.0, name
                seen.add(name)
    assert {"gsm8k", "svamp"} <= seen
    assert matches("−5", ["-5"], "exact") and not matches("5", ["-5"], "exact")
    row = {"context": "x 7", "question": "q", "answers": {"text": ["7"], "answer_start": [2]}}
    [group] = checked_groups(FORMATS["squad"](), row)
    assert score(HonestyAccuracy, group, group.responses[0].text) == 1.0
    row = {"Body": "b", "Question": "q", "Answer": "1,234.50"}
    [group] = checked_groups(FORMATS["svamp"](), row)
    assert group.meta["answer"] == "1234.5"
