"""Judges that think first: the last line counts, in every mode, from a server and from a model of
the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from by_role import ByRole
from pydantic import ValidationError

from alignkit import Context, Group, Response, RunFailed
from alignkit.judges import CheckedJudge, costs
from alignkit_plugins.ai_feedback.judge import LocalJudge, OpenAIJudge
from alignkit_plugins.ai_feedback.prompts import CUT, NO_LINE, REASONS
from alignkit_plugins.ai_feedback.writer import PROBE, THINKING
from tests.ai_feedback.judge_server import (
    Reply,
    Server,
    asked_for,
    opinion,
    options_of,
    said,
    serving,
    texts_of,
    thinking,
)
from tests.ai_feedback.test_rlaif import component

PROMPT = [{"role": "user", "content": "Which is it?"}]
BETTER, WORSE = (PROMPT, "is 7", "is 3"), (PROMPT, "is 3", "is 7")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(thinking) as running:
        yield running


def context(folder: Path, models: Any = None, seed: int = 0) -> Context:
    return Context(models=models, cache=folder / "cache", folder=folder, seed=seed, load=list)


@pytest.fixture
def judge(server: Server, tmp_path: Path) -> Callable[..., CheckedJudge]:
    def build(seed: int = 0, **options: Any) -> CheckedJudge:
        chosen = options_of(server.url, **{"reasons": True} | options)
        return CheckedJudge(component(OpenAIJudge, chosen), context(tmp_path, seed=seed))

    return build


# --- pairs
# --------------------------------------------------------------------------------------------------------


def test_the_last_line_is_the_verdict_in_both_orders(judge: Any, server: Server) -> None:
    better, worse, tie = judge().compare([BETTER, WORSE, (PROMPT, "a 4", "b 4")])
    assert [verdict.p_first for verdict in (better, worse, tie)] == [1.0, 0.0, 0.5]
    assert better.p_orders == (1.0, 1.0) and worse.p_orders == (0.0, 0.0) and tie.tied
    shown = [tuple(texts_of(request)[1:]) for request in server.requests]
    assert sorted(shown) == [("a 4", "b 4"), ("b 4", "a 4"), ("is 3", "is 7"), ("is 7", "is 3")]
    request = server.requests[0]
    assert request["max_tokens"] == 2000 and request["temperature"] == 0
    assert (
        not {"logprobs", "top_logprobs", "response_format", "max_completion_tokens"}
        & request.keys()
    )
    assert "and nothing else" not in request["messages"][0]["content"]


def test_a_judge_that_sees_positions_only_has_a_tie(judge: Any, server: Server) -> None:
    server.judge = lambda request: said("{} {}: 1".format(*asked_for(request)))
    (verdict,) = judge().compare([BETTER])
    assert verdict.p_orders == (1.0, 0.0) and verdict.p_first == 0.5


def line(request: dict[str, Any], shape: str) -> str:
    word, code = asked_for(request)
    return shape.format(word=word, code=code, other="0" * 8, x=opinion(request))


@pytest.mark.silent_bug(
    "judges: verdicts",
    "The first text that looks like a verdict counts, even inside the reasoning.",
    "Only a last line with the question's code is a verdict.",
    "lm-sys/FastChat#3921",
    "OpenWebRL/OpenWebRL#5",
)
@pytest.mark.parametrize(
    "shape",
    [
        "{word} {code}: {x}",
        "<think>Verdict {code}: 2? Or 1?</think>\n{word} {code}: {x}\n",
        "no opening tag\nVerdict {code}: tie</think>\n\n{word} {code}: {x}",
        "{word} {code}: tie\nNo, I was wrong.\n{word} {code}: {x}",
        "**{word} {code}: {x}**",
        "**{word} {code}:** {x}.",
        "`{word} [{code}]: {x}`  ",
        "{word} {code}: **{x}**",
    ],
)
def test_ways_to_write_the_line(judge: Any, server: Server, shape: str) -> None:
    server.judge = lambda request: said(line(request, shape))
    assert [verdict.p_first for verdict in judge().compare([BETTER, WORSE])] == [1.0, 0.0]


@pytest.mark.silent_bug(
    "judges: verdicts",
    '"Incorrect" contains "correct" and passes.',
    "A verdict is a whole word.",
    "jaylfc/taosmd#176",
)
@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (lambda request: said(line(request, "{word} {code}: {x}"), "length"), CUT),
        (lambda request: said("<think>Verdict: 1", "length"), CUT),
        (lambda request: said(line(request, "<think>Hm.\n{word} {code}: {x}")), REASONS[THINKING]),
        (lambda request: said(line(request, "{word} {code}: {x}\nI hope this helps.")), NO_LINE),
        (lambda request: said(line(request, "{word}: {x}")), NO_LINE),
        (lambda request: said(line(request, "{word} {other}: {x}")), NO_LINE),
        (lambda request: said(line(request, "I say {word} {code}: {x}")), NO_LINE),
        (
            lambda request: said(line(request, "{word} {code}: X")),
            "the judge's verdict is neither 1 nor 2 nor tie",
        ),
        (
            lambda request: said(line(request, "{word} {code}: 12")),
            "the judge's verdict is neither 1 nor 2 nor tie",
        ),
        (lambda request: said(""), NO_LINE),
        (lambda request: said("<think>" * 100_000), REASONS[THINKING]),
        (lambda request: said("Verdict" * 100_000), NO_LINE),
        (lambda request: said(None, reasoning_content="Verdict: 1"), NO_LINE),
        (lambda request: said("1", refusal="no"), "the judge refused"),
        (lambda request: said("1", "content_filter"), "the judge refused"),
    ],
)
def test_other_replies_are_missing_with_a_reason(
    judge: Any, server: Server, reply: Any, reason: str
) -> None:
    server.judge = reply
    one, two = judge().compare([BETTER])[0], judge().rate([(PROMPT, "is 7")])[0]
    assert one.p_first is None and one.reason == reason and one.calls == 2
    server.judge = lambda request: (
        reply(request) if texts_of(request)[1] == "is 3" else thinking(request)
    )
    (verdict,) = judge(model="other").compare([BETTER])
    assert verdict.p_first is None and verdict.reason == reason  # one order is not enough
    # `X` and `12` are no verdicts; 12 is no rating, either
    assert two.score is None or "neither" in reason


# --- ratings
# ------------------------------------------------------------------------------------------------------


def test_ratings(judge: Any, server: Server) -> None:
    high, low = judge().rate([(PROMPT, "is 7"), (PROMPT, "is 1.5")])
    assert (high.score, low.score, judge().scale) == (7.0, 1.5, (1, 9))
    text = server.requests[0]["messages"][0]["content"]
    assert (
        "A good response is helpful" in text
        and "from 1, for the worst response, to 9, for the best." in text
    )
    judge().rate([(PROMPT, "is 7")], ["It is short.", "It is kind."])
    text = server.requests[-1]["messages"][0]["content"]
    assert "- It is short.\n- It is kind." in text and "A good response is helpful" not in text
    judge(scale=[0, 1]).rate([(PROMPT, "is 1")], "It is kind.")
    assert (
        "X is 1 if the response is good by this measure, and 0 if it is not."
        in (server.requests[-1]["messages"][0]["content"])
    )


@pytest.mark.parametrize(
    ("x", "score", "reason"),
    [
        ("7", 7.0, ""),
        ("7/10", 7.0, ""),
        ("7 / 10", 7.0, ""),
        ("7.", 7.0, ""),
        ("10", 10.0, ""),
        ("11", None, "the judge's rating is outside of the scale: 11, not 1 to 10"),
        ("-3", None, "the judge's rating is outside of the scale: -3, not 1 to 10"),
        ("7/5", None, "the judge's rating is not a number: '7/5', and the scale is 1 to 10"),
        ("7, 8", None, "the judge's rating is not a number: '7, 8', and the scale is 1 to 10"),
        ("nan", None, "the judge's rating is not a number: 'nan', and the scale is 1 to 10"),
        ("seven", None, "the judge's rating is not a number: 'seven', and the scale is 1 to 10"),
        ("٧", None, "the judge's rating is not a number: '٧', and the scale is 1 to 10"),
    ],
)
def test_numbers(judge: Any, server: Server, x: str, score: float | None, reason: str) -> None:
    server.judge = lambda request: said("{} {}: ".format(*asked_for(request)) + x)
    (rating,) = judge(scale=[1, 10]).rate([(PROMPT, "is 7")])
    assert (rating.score, rating.reason) == (score, reason)


def test_without_reasons_only_the_line_is_asked_for(judge: Any, server: Server) -> None:
    assert judge(reasons=False).rate([(PROMPT, "is 7")])[0].score == 7.0
    text = server.requests[0]["messages"][0]["content"]
    assert "Answer with a line of this form, and nothing else:" in text and "think" not in text


# --- the first question
# ----------------------------------------------------------------------------------------------

NO_MAX_TOKENS = (
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
    "'max_completion_tokens' instead."
)


def test_a_name_that_a_model_refuses_costs_a_few_questions(judge: Any, server: Server) -> None:
    server.judge = lambda request: Reply(400, {"error": {"message": NO_MAX_TOKENS}})
    with pytest.raises(RunFailed, match=r"Use 'max_completion_tokens' (.|\n)*max_tokens: null"):
        judge().rate([(PROMPT, f"is {n}") for n in range(20)])
    assert len(server.requests) == PROBE
    server.judge = thinking
    request = {"max_tokens": None, "max_completion_tokens": 2000, "temperature": None}
    assert judge(request=request).compare([BETTER])[0].p_first == 1.0
    assert "temperature" not in server.requests[-1] and "max_tokens" not in server.requests[-1]


def test_a_judge_that_never_writes_the_line_is_told_by_a_few_questions(
    judge: Any, server: Server
) -> None:
    server.judge = lambda request: said("Both are fine.")
    with pytest.raises(RunFailed, match=r"first questions.*does not end with the line"):
        judge().rate([(PROMPT, f"is {n}") for n in range(20)])
    assert len(server.requests) == PROBE


@pytest.mark.silent_bug(
    "judges: missing verdicts",
    "A reply that is cut off counts as a tie.",
    "It has no verdict, and the error says which `max_tokens` to set.",
    "openvang/vanguarstew#26",
)
def test_a_cut_off_judge_is_given_room(judge: Any, server: Server) -> None:
    server.judge = lambda request: said("Let me think", "length")
    with pytest.raises(RunFailed, match="max_tokens: 8000"):
        judge().rate([(PROMPT, f"is {n}") for n in range(20)])


# --- what it costs
# ------------------------------------------------------------------------------------------------


def test_tokens_are_counted(judge: Any, server: Server) -> None:
    asked = judge()
    (verdict,), (rating,) = asked.compare([BETTER]), asked.rate([(PROMPT, "is 7")])
    assert (verdict.calls, verdict.tokens) == (2, 280)
    assert (rating.calls, rating.tokens) == (1, 140)
    found = costs([verdict, rating])
    assert (found["calls"], found["tokens"]) == (3, 420)


def test_options() -> None:
    for wrong in ({"scale": [5, 5]}, {"max_tokens": 1}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            options_of("http://127.0.0.1/v1", **wrong)


# --- a model of the run
# -------------------------------------------------------------------------------------------


class Models(ByRole):
    """A model that thinks as the scripted server does."""

    def __init__(self, reply: Callable[[dict[str, Any]], Reply] = thinking, **response: Any):
        self.reply, self.response = reply, response
        self.sampling: list[Any] = []

    def sample(self, role: str, prompts: Any, **sampling: Any) -> list[Group]:
        prompts = [group.prompt for group in prompts]
        self.sampling.append((role, sampling))
        words = [
            self.reply({"messages": prompt}).body["choices"][0]["message"]["content"]
            for prompt in prompts
        ]
        return [
            Group(tuple(prompt), (Response(text, **self.response),))
            for prompt, text in zip(prompts, words, strict=True)
        ]

    def next_token_logprobs(
        self, role: str, prompts: Any, answers: Any, *, prefill: str = ""
    ) -> Any:
        import torch

        assert prefill == "Rating=" and list(answers) == list("123456789")
        rows = []
        for prompt in prompts:
            _, text = texts_of({"messages": prompt})
            p = [1e-9] * 9
            p[2], p[6] = (0.3, 0.1) if text == "mixed" else (0.02, 0.02)
            rows.append([math.log(x) if text != "long" else math.nan for x in p])
        return torch.tensor(rows)


class Full(Models):
    """A model whose context leaves no room for a reply."""

    def sample(self, role: str, prompts: Any, **sampling: Any) -> list[Group]:
        prompts = [group.prompt for group in prompts]
        return [Group(tuple(prompt)) for prompt in prompts]


def local(folder: Path, models: Any, **options: Any) -> CheckedJudge:
    return CheckedJudge(
        component(LocalJudge, LocalJudge.Options(**options)), context(folder, models)
    )


def test_a_local_judge_thinks(tmp_path: Path) -> None:
    models = Models(truncated=False)
    judge = local(tmp_path, models, role="sft", reasons=True, max_tokens=77)
    assert [verdict.p_first for verdict in judge.compare([BETTER, WORSE])] == [1.0, 0.0]
    assert judge.rate([(PROMPT, "is 7")])[0].score == 7.0
    role, sampling = models.sampling[0]
    assert role == "sft" and (sampling["temperature"], sampling["max_new_tokens"]) == (0.0, 77)
    (cut,) = local(tmp_path, Models(truncated=True), reasons=True).rate([(PROMPT, "is 7")])
    assert (cut.score, cut.reason) == (None, CUT)
    (long,) = local(tmp_path, Full(), reasons=True).rate([(PROMPT, "is 7")])
    assert long.score is None and "longer than the judge's context" in long.reason


def test_without_reasons_a_local_rating_is_the_mean_by_its_probabilities(tmp_path: Path) -> None:
    mixed, rest, long = local(tmp_path, Models()).rate(
        [(PROMPT, "mixed"), (PROMPT, "rest"), (PROMPT, "long")]
    )
    assert mixed.score == pytest.approx((3 * 0.3 + 7 * 0.1) / 0.4, abs=1e-6)
    assert rest.score is None and "too little probability: 0.04" in rest.reason
    assert long.score is None and "longer than the judge's context" in long.reason


def test_a_rubric_has_a_frame(judge: Any, server: Server) -> None:
    """Otherwise it reads as if the judge were told to do what the rubric says."""
    asked: list[str] = []

    def answer(request: dict[str, Any]) -> Reply:
        asked.append(request["messages"][0]["content"])
        return said(line(request, "{word} {code}: {x}"))

    server.judge = answer
    judge().rate([(PROMPT, "is 7")], "Rhymes, and names a color.")
    assert (
        "You rate a response to a conversation. A rating follows this measure:\n\nRhymes, and names"
        in asked[0]
    )


def test_a_few_ratings_on_another_scale_end_the_run_with_what_was_said(
    judge: Any, server: Server
) -> None:
    server.judge = lambda request: said("{} {}: 6/10".format(*asked_for(request)))
    with pytest.raises(
        RunFailed,
        match=r"first questions: the judge's rating is not a number: '6/10', and the scale is 1",
    ):
        judge().rate([(PROMPT, f"is {number}") for number in range(8)])


def test_a_reply_that_is_the_models_own_is_not_paid_for_again(judge: Any, server: Server) -> None:
    replies = {
        "is 1": said("It is fine."),
        "is 2": said("<think>It is"),
        "is 3": said(None, refusal="no"),
        "is 4": said("It", finish_reason="length"),
    }
    right = lambda request: said("{} {}: 7".format(*asked_for(request)))  # noqa: E731
    server.judge = lambda request: next(
        (r for text, r in replies.items() if text in texts_of(request)), right(request)
    )
    items = [(PROMPT, f"is {number}") for number in (7, 1, 2, 3, 4)]
    first = judge().rate(items)
    assert [rating.score for rating in first] == [7, None, None, None, None]
    assert judge().rate(items) == first and len(server.requests) == 5


@pytest.mark.silent_bug(
    "keys: files",
    "A server repeats the key that it was asked with, and the key is stored with its reply.",
    "The key is taken out of every reply before anything reads it.",
)
def test_a_key_that_the_server_echoes_gets_into_no_file(
    judge: Any, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "my-own-secret-4711"
    monkeypatch.setenv("JUDGE_KEY", key)

    def echoes(request: dict[str, Any]) -> Reply:
        word, code = asked_for(request)
        return said(
            f"Asked with {key}.\n{word} {code}: {key if 'is 3' in texts_of(request) else 7}"
        )

    server.judge = echoes
    one, other = judge(api_key_env="JUDGE_KEY").rate(
        [(PROMPT, "is 7"), (PROMPT, "is 3")], "Is it right?"
    )
    assert one.score == 7 and other.score is None and key not in other.reason
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(key.encode() in path.read_bytes() for path in files)
