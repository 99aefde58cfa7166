"""The command `alignkit chat`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

import typer

from alignkit.commands import refuse

if TYPE_CHECKING:
    from alignkit_apps.policies.recipe import NamedModels
    from alignkit_plugins.people.collection import Collection

MOST_POLICIES = 2


def chat(
    policies: Annotated[
        list[str],
        typer.Argument(
            metavar="POLICY [POLICY]",
            help="RUN/STAGE, RUN/align@ppo, RUN/base, a folder with a model, or a model's id on the hub; "
            "then overrides, KEY=VALUE, such as engine.vllm.url=URL.",
        ),
    ],
    reward: Annotated[
        list[str] | None,
        typer.Option(metavar="REWARD", help="Show the score of each answer: RUN/STAGE of a reward model; repeatable."),
    ] = None,
    system: Annotated[str, typer.Option(metavar="TEXT", help="The system message.")] = "",
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Longest answer. Default: as the policy was trained.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(metavar="T", min=0, help="Sampling temperature; 0 takes the likeliest token. Default: 0.7."),
    ] = None,
    collect: Annotated[
        Path | None, typer.Option(metavar="FILE.feedback", help="Keep answers and thumbs; asks for consent.")
    ] = None,
    page: Annotated[
        bool, typer.Option("--page", help="Talk on the page of `alignkit serve`, which opens in a browser.")
    ] = False,
) -> None:
    """Talk to one policy, or to two side by side, with rewards.

    In the terminal, or with --page in your browser. /help lists what else can be entered in the terminal. Ctrl-C stops
    an answer, and Ctrl-D leaves.

    \b
    Examples:
      alignkit chat runs/demo/align
      alignkit chat runs/demo/sft runs/demo/align --reward runs/demo/helpful
      alignkit chat runs/demo/align --collect chats.feedback
      alignkit chat runs/demo/align --page
    """
    from alignkit_apps.policies.recipe import models_of, without_overrides

    words, overrides = without_overrides(policies)
    if len(words) > MOST_POLICIES:
        refuse(f"{len(words)} policies; at most {MOST_POLICIES} can be talked to", "alignkit evaluate compares more")
    if page and reward:
        refuse("the page shows no rewards", "leave out --page, or --reward")
    if page:
        from alignkit_apps.serve.command import start
        from alignkit_apps.web.address import Address

        given = {"system": system, "temperature": temperature, "max": max_new_tokens}
        shown = {key: value for key, value in given.items() if value not in ("", None)}
        start(policies, None, Address(), collect=collect, page=f"/#{urlencode(shown)}")
        return
    from alignkit.plugins import load_plugins

    load_plugins()
    given = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    sampling = {key: value for key, value in given.items() if value is not None}
    in_terminal(models_of(words, reward or ()), overrides, sampling, system, collect)


def in_terminal(
    named: NamedModels, overrides: Sequence[str], options: dict[str, Any], system: str, collect: Path | None
) -> None:
    """Talk in the terminal until the input ends. options: of sampling."""
    from alignkit.io.console import Reporter
    from alignkit.io.text import printable
    from alignkit.plugins import plugins
    from alignkit.sampling import SamplingOptions
    from alignkit_apps.policies.recipe import names_of, rollout_of
    from alignkit_apps.web.hosting import annotators_of

    reporter = Reporter()
    reporter.say("loading torch and transformers")
    from alignkit_apps.chat.loop import Kept, talk  # imports torch
    from alignkit_apps.chat.screen import Screen, interactive
    from alignkit_apps.chat.session import Session
    from alignkit_apps.policies.policy import opened, sampling_of

    with ExitStack() as stack:
        kept = Kept()
        if collect is not None:
            from alignkit_plugins.people.collection import Collection

            (annotator,) = annotators_of(())
            names = {word: name for name, word in names_of(named.policies).items()}
            collection = stack.enter_context(closing(Collection(collect, names=names)))
            if agreed(collection, annotator, input if interactive() else None, reporter.say):
                kept = Kept(annotator, collection)
        models = stack.enter_context(opened(named, overrides, plugins(), reporter, lambda: None, "alignkit chat"))
        # All sample alike, so that their answers can be compared: as the first did that was trained so.
        sampling = sampling_of({**rollout_of(named.policies.values()), **options})
        reporter.say(printable(f"{' and '.join(models.policies)}: {SamplingOptions(sampling=sampling).described()}"))
        talk(Session(models, sampling, system), Screen(list(models.policies)), kept)


def agreed(
    collection: Collection, annotator: str, read: Callable[[str], str] | None, say: Callable[[str], None]
) -> bool:
    """Whether the annotator agrees, now or earlier. read: asks; None: there is nobody to ask, which is an error."""
    from alignkit.io.text import printable
    from alignkit_plugins.people.labels import TERMS

    if collection.agreed(annotator):
        say(printable(f"{annotator} agreed that this is kept in {collection.path}; /consent no takes it back"))
        return True
    if read is None:
        help = "run it in a terminal, where it asks; it remembers a yes"
        refuse(f"--collect: {annotator} has not agreed that anything is kept", help)
    say(printable(f"{TERMS}\nFile: {collection.path}. License: {collection.license or 'none'}. Name: {annotator}."))
    try:
        answer = read("Keep it? Enter yes or no: ").strip().lower()
    except EOFError:
        answer = ""
    collection.agree(annotator, answer == "yes")
    say("it is kept" if answer == "yes" else "nothing is kept; only yes is a yes")
    return answer == "yes"
