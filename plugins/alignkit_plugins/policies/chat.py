"""The command `alignkit chat`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlencode

import typer

from alignkit.commands import Result, refuse
from alignkit_plugins.printing import Policies, Rewards

if TYPE_CHECKING:
    from alignkit_plugins.people.collection import Collection
    from alignkit_plugins.policies.recipe import NamedModels

MOST_POLICIES = 2


def chat(
    policies: Policies,
    reward: Rewards = None,
    system: Annotated[
        str, typer.Option(metavar="TEXT", help="System message before the first question.")
    ] = "",
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="File of prompts, in any format, to answer instead of a talk. Needs --out.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File that the answers to --prompts are written to, as .jsonl."
        ),
    ] = None,
    collect: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.feedback", help="File that keeps answers and thumbs, once you agree."
        ),
    ] = None,
    page: Annotated[
        bool,
        typer.Option(
            "--page", help="Talk on the page of `alignkit serve`, which opens in your browser."
        ),
    ] = False,
) -> Result | None:
    """Talk to one policy or two, or let them answer a file of prompts.

    In the terminal, or with --page in your browser. /help lists what else can be entered in the
    terminal. Ctrl-C stops an answer, and Ctrl-D leaves. Answers to a file are rows that `alignkit
    evaluate FILE` and recipes read.

    \b
    Examples:
      alignkit chat runs/demo/align
      alignkit chat runs/demo/sft runs/demo/align --reward runs/demo/helpful
      alignkit chat runs/demo/align --collect chats.feedback
      alignkit chat runs/demo/align --page
      alignkit chat runs/demo/align --prompts prompts.jsonl --out answers.jsonl
    """
    from alignkit_plugins.policies.recipe import models_of, without_overrides

    words, overrides = without_overrides(policies)
    if len(words) > MOST_POLICIES:
        refuse(
            f"{len(words)} policies; at most {MOST_POLICIES} can be talked to",
            "alignkit evaluate compares more",
        )
    if page and reward:
        refuse("the page shows no rewards", "leave out --page, or --reward")
    if (prompts is None) != (out is None) or (prompts is not None and (page or collect or system)):
        refuse(
            "--prompts and --out answer a file, without a talk",
            "--prompts FILE --out ANSWERS.jsonl",
        )
    if page:
        from alignkit_plugins.people.server import Address
        from alignkit_plugins.policies.serve import start

        start(
            policies,
            None,
            Address(),
            collect=collect,
            page=f"/#{urlencode({'system': system})}" if system else "/",
        )
        return None
    from alignkit.plugins import load_plugins

    load_plugins()
    named = models_of(words, reward or (), data=prompts)
    if out is not None:
        print("loading torch and transformers", file=sys.stderr)
        from alignkit_plugins.policies.files import answer_and_score

        return answer_and_score(named, overrides, out)
    in_terminal(named, overrides, system, collect)
    return None


def in_terminal(
    named: NamedModels, overrides: Sequence[str], system: str, collect: Path | None
) -> None:
    """Talk in the terminal until the input ends."""
    from alignkit.io.console import Reporter
    from alignkit.io.text import printable
    from alignkit.plugins import plugins
    from alignkit.sampling import SamplingOptions
    from alignkit_plugins.people.server import annotators_of
    from alignkit_plugins.policies.recipe import names_of

    reporter = Reporter()
    reporter.say("loading torch and transformers")
    from alignkit_plugins.policies.chat_loop import Kept, talk  # imports torch
    from alignkit_plugins.policies.chat_screen import Screen, interactive
    from alignkit_plugins.policies.chat_session import Session
    from alignkit_plugins.policies.policy import opened

    with ExitStack() as stack:
        kept = Kept()
        if collect is not None:
            from alignkit_plugins.people.collection import Collection

            (annotator,) = annotators_of(())
            names = {word: name for name, word in names_of(named.policies).items()}
            collection = stack.enter_context(closing(Collection(collect, names=names)))
            if agreed(collection, annotator, input if interactive() else None, reporter.say):
                kept = Kept(annotator, collection)
        models = stack.enter_context(
            opened(named, overrides, plugins(), reporter, lambda: None, "alignkit chat")
        )
        sampling = SamplingOptions(sampling=models.sampling)
        reporter.say(printable(f"{' and '.join(models.policies)}: {sampling.described()}"))
        talk(Session(models, models.sampling, system), Screen(list(models.policies)), kept)


def agreed(
    collection: Collection,
    annotator: str,
    read: Callable[[str], str] | None,
    say: Callable[[str], None],
) -> bool:
    """Whether the annotator agrees, now or earlier. read: asks; None: there is nobody to ask, which
    is an error.
    """
    from alignkit.io.text import printable
    from alignkit_plugins.people.labels import TERMS

    if collection.agreed(annotator):
        say(
            printable(
                f"{annotator} agreed that this is kept in {collection.path}; /consent no takes it "
                "back"
            )
        )
        return True
    if read is None:
        help = "run it in a terminal, where it asks; it remembers a yes"
        refuse(f"--collect: {annotator} has not agreed that anything is kept", help)
    say(
        printable(
            f"{TERMS}\n"
            f"File: {collection.path}. License: {collection.license or 'none'}. Name: {annotator}."
        )
    )
    try:
        answer = read("Keep it? Enter yes or no: ").strip().lower()
    except EOFError:
        answer = ""
    collection.agree(annotator, answer == "yes")
    say("it is kept" if answer == "yes" else "nothing is kept; only yes is a yes")
    return answer == "yes"
