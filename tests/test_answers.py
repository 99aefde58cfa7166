"""The answer in a response: what is right in any wrapper, and what stays wrong."""

from __future__ import annotations

import time
from typing import Any

import pytest
import yaml

from alignkit import Group, Response
from alignkit.evaluation.answers import bare, choice_of, mentions, same, words
from alignkit.host.plugins import plugins
from alignkit_plugins.ai_feedback.questions import why_another
from alignkit_plugins.ai_feedback.writer import Written
from alignkit_plugins.rewards.exact_match import ExactMatch
from alignkit_plugins.rewards.format import Form
from alignkit_plugins.rewards.honesty import HonestyAccuracy
from alignkit_plugins.rewards.language import Language
from alignkit_plugins.rewards.math_verify import MathVerify
from tests.rows import cells

ASK: Any = ({"role": "user", "content": "Ask?"},)
WRAPPERS = r"""
{} | **{}** | *{}* | __{}__ | _{}_ | ***{}*** | `{}` | ```\n{}\n``` | ${}$ | $${}$$ | \({}\) | \[{}\]
\boxed{{}} | $\boxed{{}}$ | \boxed{\text{{}}} | $\mathbf{{}}$ | "{}" | “{}” | '{}' | «{}» | 「{}」 | ({})
[{}] | <b>{}</b> | <answer>{}</answer> | # {} | {}! | {}. | {}。 | {} ✓ | {} ✅ | **{}.** | **({})**
"""
# A response and the known answer: it is right, right within the response, or wrong.
RIGHT = r"""
    The  Old-Bridge, a bridge in AN Area! | oldbridge bridge in area
    theory of a.m. | theory of am
    3.5. | 3.5
    1/2. | 1/2
    .5 | .5
    $5.00. | $5.00
    the | The
    + | +
    1,000 | 1000
    1000 | 1,000
    1{,}000 | 1000
    １０００ | 1000
    \frac{1}{2} | 0.5
    $-\dfrac{3}{4}$ | -0.75
    1\frac{1}{2} | 1.5
    −5 | -5
    5! | 5
    50\% | 50%
    (B) Oslo | B
    B. Oslo | B
    G. Oslo | G
    H) Oslo | H
    B) Oslo | Oslo
    B: Oslo | (B)
    Option B | B
    Answer: B | B
    b) | B
    B | B) Oslo
    Oslo | B) Oslo
    A, C | A, C
    the red car | a red car
    The Who | who
    a | A
    Clara’s | Clara's
    Claraʼs | Clara‘s
    U.S. | US
    x + 1 | x+1
    [1,2] | [1, 2]
    東京。 | 東京
    「東京」 | 東 京
    12 monkeys | 12 Monkeys
    B. A. Smith | (B) A. Smith
    A. Smith | A. Smith
    B. 1,000 | 1000
    A、C | A, C
    ａｂｃ | abc
    \tfrac{1}{2} | 0.5
    \text{\textbf{\mathrm{\fbox{42}}}} | 42
    \textit{x} | x
    \displaystyle x^2 | x^2
    #### Oslo | Oslo
    „$5“ | $5.00
    $5?; | $5.00
    5! | 5!
    a «b c» d | a "b c" d
    <b class="x">Oslo</b> | Oslo
    Choice B | B
    (B): Oslo | B
    90^\circ | 90°
    Straße | STRASSE
"""
WITHIN = r"""
    It is 3.5! | 3.5
    It is -5! | -5
    It is $5.00! | $5.00
    คำตอบคือกรุงเทพ | กรุงเทพ
    It is 42. | 42
    > 5 | 5
    It is B. | B
    I think that it is B | B
    It is (B), a city | B
    A is right | A
    A was right | A
    A seems right | A
    A could be it | A
    A because it rains | A
    A) was right | A
    A Oslo | A
    K. Oslo | K
    အဖြေမှာရန်ကုန်ဖြစ်သည် | ရန်ကုန်
    ចម្លើយគឺភ្នំពេញ | ភ្នំពេញ
    コーヒーカップです | コーヒー
    It is x. | x
    Paris, France | Paris
    Paris and Rome | Rome
    答えは東京です。 | 東京
    It was Smith. | B. Smith
"""
WRONG = r"""
    35 | 3.5
    12 | 1/2
    5 | .5
    500 | $5.00
    -5 | -.5
    B | The
    B | +
    yes | the
    1,00 | 100
    1.000 | 1000
    5 | -5
    35 | 3.5
    5 | 5!
    120 | 5!
    0.5 | 50%
    420 | 42
    4 2 | 42
    5 km | 5 miles
    10³ | 103
    (A) Oslo | B
    A. Oslo | B
    (A) | B
    A | B) Oslo
    Bergen | B) Oslo
    B) Bergen | B) Oslo
    A or B | B
    A, B | B
    AB | B
    A/B | B
    A) Oslo, but B fits | A
    A) Oslo [B] Rome | A
    It is neither B | B
    It is never B | B
    B is incorrect | B
    B is false | B
    20°F | 20℃
    costs $5 | costs 5
    i think so | i
    not A, but B | B
    (A) or (B) | A
    I have a dog | A
    A dog | A
    A) is wrong | A
    It isn’t A. | A
    Vitamin C | B
    C, not B | C
    C | A, C
    x | y
    the | A
    Parisian | Paris
    Rome | Paris
     | Paris
    . | Paris
     | ?
    x+1 | x-1
    x-y | xy
    C++ | C
    C# | C++
    (1, 2) | [1, 2]
    (1,2) | 12
    3:00 | 300
    答えは大阪です。 | 東京
    12 people | 12 Monkeys
    12 | 12 Monkeys
    B. A. Smith | B. A. Jones
"""
# What was asked for, the known answer, a response, and whether it is right as a whole ("whole"),
# as a part of the response ("within"), or not at all ("no").
ANY_SCRIPT = r"""
number | 42          | 答案是42。                    | within
number | 42          | 答えは42です                  | within
number | 42          | คำตอบคือ42                    | within
number | 42          | ຄຳຕອບແມ່ນ42                   | within
number | 42          | ចម្លើយគឺ42។                    | within
number | 42          | အဖြေမှာ42ဖြစ်သည်။              | within
number | 42          | 정답은42입니다                | within
number | 42          | 一共有42个苹果。              | within
number | 42          | 42                            | whole
number | 42          | 答案是420。                   | no
number | -5          | 答案是-5。                    | within
number | 5           | 答案是-5。                    | no
number | 3.5         | 答案是3.5。                   | within
number | 3           | 答案是3.5。                   | no
number | 1000        | 共1,000人                     | within
number | 3/4         | 答案是3/4。                   | within
number | 50%         | 占50%。                       | within
number | 42          | 答案是４２。                  | within
number | 42          | الجواب هو ٤٢.                 | within
number | 42          | उत्तर ४२ है।                     | within
number | 42          | ४२                            | whole
number | 3.5         | ٣٫٥                           | whole
number | 1234        | ١٬٢٣٤                         | whole
number | 50%         | ٥٠٪                           | whole
number | 42          | 42元                          | whole
number | 42          | 42个                          | whole
number | 42          | 42개                          | whole
number | 42          | 42명입니다                    | whole
number | 42          | 42円です。                    | whole
number | 42          | 42 m                          | whole
number | 42          | 42x                           | no
number | 42          | ₹42                           | whole
number | 42          | 42€                           | whole
number | 42美元      | 42元                          | no
number | 1000        | 1’000                         | whole
number | 1000        | 1 000                         | whole
number | 1000000     | 1.000.000                     | no
number | 1234567     | 12,34,567                     | no
number | 3.5         | 3,50 €                        | no
number | 3.5         | Es sind 3,5 Grad.             | no
number | 3           | Es sind 3,5 Grad.             | no
number | 1000.5      | 1.000,50                      | no
number | 0.5         | ½                             | whole
number | 1.5         | 1½                            | whole
number | 2024        | It was on 2024-05-01.         | no
number | 5           | It was on 2024-05-01.         | no
number | 5           | 会议在2024-05-01举行          | no
number | 12          | 12/05/2024                    | no
number | 5           | on 5.1.2024                   | no
number | 5           | on May 5, 2024                | no
number | 5           | 2024年5月1日                  | no
number | 10          | 10%-15%                       | no
number | 42          | 答案：42                      | within
number | 42          | Step 1: 42                    | within
number | 30          | It starts at 10:30.           | no
number | 10          | 10:30开始                     | no
word   | 10:30       | It starts at 10:30.           | within
number | 1234        | call 555-1234                 | no
number | 555         | Call +1 555 123 4567.         | no
number | 3.5         | version 3.5.2                 | no
number | 12          | Python 3.12.2                 | no
number | 15          | pages 10-15                   | no
number | -15         | pages 10-15                   | no
number | 3           | 3–5 days                      | no
number | 15          | 10～15分                      | no
word   | 2-3         | It is 2-3.                    | within
number | 19          | COVID-19                      | no
number | 3           | It is 3 or 4.                 | no
number | 3           | between 3 and 5               | no
number | 3           | from 3 to 5                   | no
number | 5           | It rose from $3 to $5.        | within
number | 5           | It is minus 5.                | no
number | -5          | negative 5                    | whole
number | 5           | 7 minus 5 is 2                | within
number | 300000000   | 人口约3亿。                   | within
number | 3           | 人口约 3 亿人。               | no
number | 5           | 全长5千米。                   | within
number | 5000000     | Es sind 5 Mio. Euro.          | within
number | 10000       | 1万2千人                      | no
number | 1500        | 1.5 * 10^3                    | whole
number | 1500        | 1.5 \times 10**3              | whole
number | 42          | It is not 42.                 | no
number | 42          | It isn't 42.                  | no
number | 43          | It is not 42 but 43.          | within
number | 42          | It is 42, not 43.             | within
number | 43          | It is 42. Wait, no, 43.       | within
number | 42          | It is 42. Wait, no, 43.       | no
number | 42          | 6*7=42                        | within
number | 42          | \boxed{\textbf{(E)}\ 42}      | whole
choice | E           | \boxed{\textbf{(E)}\ 42}      | whole
choice | D           | \boxed{\textbf{(E)}\ 42}      | no
choice | C           | \boxed{\text{C}}              | whole
choice | C           | It is $\boxed{\text{C}}$.     | within
choice | A           | [[A]]                         | whole
choice | B           | My verdict: [[B]]             | within
choice | C           | **C. Paris**                  | whole
choice | C           | C. Both A and B               | whole
choice | A           | C. Both A and B               | no
choice | C           | (C) Both A and B are correct  | whole
choice | D           | D. None of A, B and C         | whole
choice | D           | D. A and C only               | whole
choice | E           | E) Neither A nor B            | whole
choice | C           | C. Both A and B. They are so. | whole
choice | C           | C) Both (A) and (B)           | whole
choice | A           | A. Oslo and B. Rome           | no
choice | A           | A. Wait, no, B.               | no
choice | I           | The answer is I.              | within
choice | I           | I. Oslo                       | whole
choice | I           | I am sure that it is B.       | no
choice | B           | I am sure that it is B.       | within
choice | J           | The answer is (j).            | within
choice | G           | g)                            | whole
choice | C           | 答案是C。                     | within
choice | C           | 选C                           | within
choice | C           | C选项                         | within
choice | B           | 正解はBです                   | within
choice | C           | 정답은 C입니다.               | within
choice | C           | คำตอบคือC                     | within
choice | C           | 【答案】（C）                 | within
choice | A           | A和B                          | no
choice | D           | The correct answer is d.      | within
choice | B           | b is right                    | within
choice | A           | It is a                       | within
choice | E           | I think it's e                | within
choice | D           | It's d o e                    | within
choice | B           | b or d                        | no
choice | A           | It is a Ferrari               | no
choice | D           | D, because copper is not magnetic. | within
choice | D           | The answer is D. The other options are wrong. | within
choice | D           | The best choice is D: the battery isn't charged | within
choice | D           | D is correct, as no other planet has rings | within
choice | D           | No, it is D.                  | within
choice | D           | It is D: wrong                | no
choice | D           | I do not think that D is right. | no
choice | D           | A magnet attracts iron, so it cannot be D. | no
word   | Paris       | 答案是Paris。                 | within
word   | Paris       | 정답은 Paris입니다.           | within
word   | 서울        | 정답은 서울입니다.            | within
word   | Paris       | Answer => Paris               | within
word   | Paris       | Question -> Paris             | within
word   | Paris       | Capital = Paris               | within
word   | Paris       | capital=Paris;                | within
word   | Paris       | The capital: Paris            | within
word   | Paris       | France→Paris                  | within
word   | Paris       | the capital—Paris             | within
word   | known       | well-known                    | no
latex  | x^2         | So $\boxed{x^2}$.             | within
latex  | x^{2}+1     | The answer is $\boxed{x^{2}+1}$. | within
latex  | 4210_{5}    | So it is \boxed{4210_{5}}     | within
latex  | \sqrt{2}    | The answer is \boxed{\sqrt{2}}. | within
latex  | \sqrt{2}    | The answer is $\sqrt{2}$.     | within
latex  | \sqrt{2}    | The answer is $\sqrt{3}$.     | no
latex  | \pi         | Answer: $\pi$                 | within
latex  | \frac{1}{2} | \boxed{\dfrac12}              | whole
latex  | \frac12     | It is 1/2                     | within
latex  | \frac{\sqrt{3}}{2} | \boxed{\frac{\sqrt{3}}{2}} | whole
latex  | \frac{\sqrt{3}}{2} | So \fbox{\frac{\sqrt{3}}{2}}. | within
latex  | \frac{\sqrt{2}}{2} | So $\boxed{\frac{\sqrt{3}}{2}}$. | no
latex  | 90^\circ    | \boxed{90^{\circ}}            | whole
latex  | x^{\frac{1}{2}} | \boxed{x^{\frac{1}{2}}}   | whole
latex  | \sqrt{2}    | \boxed{\sqrt{3}}              | no
number | 6.02e23     | It is 6.02 × 10²³.            | within
number | 1.6e-19     | 1.6 × 10⁻¹⁹                   | whole
number | 6.02e23     | It is 6.02 × 10²².            | no
number | 500         | It costs HK$500.              | within
number | 500         | R$ 500                        | whole
number | HK$500      | HK$500                        | whole
number | HK$500      | It is 500.                    | within
number | HK$500      | US$500                        | no
number | $500        | It costs A$500.               | no
number | 500         | NT$500-NT$600                 | no
word   | H2O         | H₂O                           | whole
word   | CO2         | They take in CO₂.             | within
word   | CO2         | CO₃                           | no
word   | 42105       | 4210₅                         | no
word   | Paris       | It is not Paris.              | no
"""
# A response, the known answers that it gives, and those of which it has only a part or which it denies
PARTS = [
    "It is 9 500. | 9500 | 500; 9; 0",
    "It is 1 200 300. |  | 1; 200; 300",
    "In 2010 300 people came. |  | 2010300; 10300; 2010",
    "It is €5. | 5 | $5",
    "It is 5 cents. |  | $5",
    "It is 5 euros. |  | $5",
    "It is 5 EUR or so. |  | $5",
    "It is US$5. | $5 | £5",
    "It is 5 USD in total. | $5 | €5",
    "It is 5 in total. | $5; €5 | 5!",
    "It is 50°. | 50° | 50%",
    "It is 20 °C. |  | 20%",
    "It is 50 per cent. | 50% | 50°; $50",
    "答案是5元。 | 5元 | $5",
    "It is 10^3. |  | 3; 10",
    "It is $2^{10}$. |  | 2; 10",
    "It is 2**10. |  | 2; 10",
    "It is √2. |  | 2",
    r"It is \sqrt{2} or so. |  | 2",
    r"It is \frac{\sqrt{3}}{2} here. |  | 2; 3",
    r"It is 2\sqrt{3} here. |  | 2; 3",
    "It is sqrt(2). |  | 2",
    "It is log 2. |  | 2",
    "It is 2π. |  | 2",
    "5! = 120 | 120 | 5",
    "3 + 4 = 7 | 7 | 3; 4",
    "5 pears + 3 pears = 8 pears | 8 | 5; 3",
    "(3 + 4) × 2 = 14 | 14 | 2; 3; 4",
    "It is 3 × 4. |  | 3; 4",
    "It is 3 times 4. |  | 3; 4",
    "It is 12 - 5. |  | 12; 5",
    "It is 12 / 5. |  | 12; 5",
    "It is 2 + 3i. |  | 2; 3",
    "It is (3, 4). |  | 3; 4",
    "f(3) = 9 | 9 | 3",
    "It is 2 and 1/2. | 2.5 | 2; 1/2",
    "It is 2 and a half. |  | 2",
    "The area is 10 m^2. | 10 | 2",
    "It is (1,234). | 1234 | 234; 1",
    "It is 0,250 kg. |  | 250; 250 kg; 0",
    "It is 5 km/h. | 5 | 5 miles",
    "It is 42 - a nice number | 42 | -42",
    "It is <b>5</b>. | 5 | 6",
    "It is ≤ 5. |  | 5",
    "Here x>5. |  | 5",
    "It is 5 < x. |  | 5",
    "At least 5. |  | 5",
    "It is less than 5 km. |  | 5; 5 km",
    "It is 5 or more. |  | 5",
    "5 at most |  | 5",
    "It is 5+. |  | 5",
    "It is 5 ± 1. |  | 5; 1",
    "Step 1: add. Step 2: 7. | 7 | 1; 2",
    "1) 7 | 7 | 1",
    "1. Add.\n2. It is 7. | 7 | 1; 2",
    "42. That is it. | 42 | 2",
    "It's not Paris. |  | Paris",
    "Paris? No, Rome. | Rome | Paris",
    "It is not Paris but Rome. | Rome | Paris",
    "It is not only Paris. | Paris | Rome",
    "It is not true. |  | true",
    "I am not sure, but it is Paris. | Paris | Rome",
    "He is not guilty. | not guilty | guilty",
    "It isn't exactly 5. |  | 5",
    "It can't be 5, so 6. | 6 | 5",
    "It is neither 5 nor 6. |  | 5; 6",
    "It is 6 rather than 5. | 6 | 5",
    "5. Actually, 6. | 6 | 5",
    "The answer is B. Note that A is a common distractor. | B; B) Oslo | A",
    "ANSWER: A ... actually, ANSWER: B | B | A",
    "I do not think that the answer is B. |  | B",
    "答案是C。A是错误的。 | C | A",
]
TYPED = [("New\xa0York", "new york"), ("New\u2011York", "New-York"), ("Umea\u030a", "Ume\xe5")]
TYPED += [("Os\u00adl\u200do\u2060", "Oslo"), ("\ufeff$5", "$5.00")]
TABLE = [(*row, True, True) for row in [*cells(RIGHT), *TYPED]]
TABLE += [(*row, False, True) for row in cells(WITHIN)]
TABLE += [(*row, False, False) for row in cells(WRONG)]
TABLE += [
    (said, known, right == "whole", right != "no") for _, known, said, right in cells(ANY_SCRIPT)
]
TABLE += [
    (said, known, False, side is right)
    for said, right, wrong in (row.split(" | ") for row in PARTS)
    for side in (right, wrong)
    for known in filter(None, side.strip().split("; "))
]


def score(reward: Any, said: str, meta: Any = None, **options: Any) -> float | None:
    [value] = reward(reward.Options(**options)).score(
        [Group(ASK, (Response(said),), meta=meta or {})]
    )
    return value  # type: ignore[no-any-return]


@pytest.mark.silent_bug(
    "rewards: answers",
    "A right answer in bold, in LaTeX, in quotation marks or in brackets counts as wrong.",
    "One definition of the answer in a response, for all rewards, graders and judges.",
    "UKGovernmentBEIS/inspect_ai#5055",
    "Azure/azureml-assets#5274",
)
@pytest.mark.parametrize(
    ("known", "wrong"), [("42", "41"), ("B", "A"), ("Oslo", "Bergen"), ("1000", "1001")]
)
def test_a_wrapper_makes_no_answer_wrong_and_none_right(known: str, wrong: str) -> None:
    wrappers = [wrapper.replace("\\n", "\n") for row in cells(WRAPPERS) for wrapper in row]
    for wrapper in [*wrappers, "\u200b{}", "\u00a0{}\u2009", "  {}\n"]:
        for said, right in ((known, True), (wrong, False)):
            text = wrapper.replace("{}", said)
            assert same(text, known) == mentions(text, known) == right
            if known.isdigit():
                assert score(MathVerify, text, {"answer": known}) == right


@pytest.mark.silent_bug(
    "rewards: answers",
    "An answer that names another choice, or several, is right; an article is the choice A.",
    "A letter counts as a choice only if the answer names no other one.",
)
@pytest.mark.parametrize(("said", "known", "whole", "within"), TABLE)
def test_what_is_the_known_answer_and_what_is_not(
    said: str, known: str, whole: bool, within: bool
) -> None:
    assert (same(said, known), mentions(said, known)) == (whole, within)
    meta: Any = {"answer": known, "answers": [known]}
    assert score(ExactMatch, said, meta) == score(HonestyAccuracy, said, meta) == whole
    assert (
        score(ExactMatch, said, meta, within=True)
        == score(HonestyAccuracy, said, meta, match="contains")
        == within
    )


LONG = ["(" * 20_000, "*a " * 20_000, "$" * 20_000, "\\text{" * 5_000, "\"'" * 5_000]
LONG += ["a " * 20_000 + "*", "`" * 8000, "(_a " * 4000, "a. " * 1200, "1" * 20_000]
LONG += ["{" * 30_000, "\\boxed{" * 5_000, "\\boxed{{a}" * 3_000]


@pytest.mark.parametrize("said", LONG, ids=[text[:4] for text in LONG])
def test_a_repeated_mark_is_read_quickly_and_without_recursion(said: str) -> None:
    start = time.process_time()
    bare(said), words(said), choice_of(said)
    for one, other in ((said, "42"), ("42", said)):
        assert not same(one, other) and not mentions(one, other)
    assert not same(said, said + "42") and time.process_time() - start < 2  # it is 0.1


THOUGHTS = (
    '<think>They want {"city": 1}, and the weather today is cold and grey. I am sorry.</think>\n'
)


# A reward, what follows the thoughts, the reward's options, and the score
READ = r"""
format       | <answer>5</answer> | {tags: [answer]}             | 1
format       | <answer>5</answer> | {tags: [think, answer]}      | 1
length       | one two            | {unit: words}                | 2
length       | one                | {unit: characters}           | 3
length       | 今日は雨           | {unit: words}                | 4
regex        | Fine.              | {pattern: sorry}             | 0
regex        | Fine.              | {pattern: ^<think>.*</think>} | 1
regex        | Fine.              | {pattern: '(?:\[THINK\])?.*sorry'} | 1
exact_match  | 5                  | {}                           | 1
math_verify  | 5                  | {}                           | 1
"""


@pytest.mark.silent_bug(
    "rewards: thoughts",
    "Thoughts before an answer count as the answer: right JSON is refused, and their language "
    "and length are judged.",
    "Rewards and judges read what follows the thoughts, and the thoughts only where a tag or a "
    "pattern names them.",
    "garrytan/gbrain#4640",
)
def test_thoughts_are_no_part_of_the_answer() -> None:
    pytest.importorskip("jsonschema_rs")
    schema = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
    right = '{"city": "Oslo"}'
    for form in ("{}", "```json\n{}\n```", "```JSON\n{}```", "Here it is:\n```json\n{}\n```\nBye."):
        said = form.replace("{}", right)
        assert score(Form, said, json_schema=schema) == 1.0
        assert score(Form, THOUGHTS + said, json_schema=schema) == 1.0
    two = f"```\n{right}\n```\n```\n{{}}\n```"
    for said in ("It is cold.", "<think>" + right, two, THOUGHTS, f"Here: {right}"):
        assert score(Form, said, json_schema=schema) == 0.0
    for name, said, options, expected in cells(READ):
        reward = plugins().get("reward", name).implementation
        found = score(reward, THOUGHTS + said, {"answer": "5"}, **yaml.safe_load(options))
        assert found == float(expected)


def test_the_language_of_thoughts_is_not_judged() -> None:
    pytest.importorskip("py3langid")
    german = "Heute ist es kalt und grau, und am Nachmittag regnet es."
    english = "It is cold and grey, and it rains in the afternoon."
    found = [score(Language, THOUGHTS + said, language="de") for said in (german, english)]
    assert found == [1.0, 0.0]


@pytest.mark.silent_bug(
    "made data: checked answers",
    "Right questions are dropped because the second answer is typed otherwise: 1,000 and 1000.",
    "Both answers are compared as rewards compare an answer with the known one.",
)
def test_answers_to_a_question_agree_if_they_are_the_same() -> None:
    pairs = (
        ("1000", "1,000"),
        ("**Oslo**", "oslo"),
        ("5", "5.5"),
        ("Ann did die", "Ann did not die"),
    )
    found = [why_another(first, Written(second)) == "" for first, second in pairs]
    assert found == [True, True, False, False]
