"""The command `alignkit chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

import typer

from alignkit.commands import Result, refuse
from alignkit_plugins.printing import Policies, Rewards


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
            metavar="FILE.feedback",
            help="With --page: file that keeps answers and thumbs, once you agree.",
        ),
    ] = None,
    page: Annotated[
        bool,
        typer.Option(
            "--page", help="Talk on the page of `alignkit serve`, which opens in your browser."
        ),
    ] = False,
) -> Result | None:
    """Talk to policies, or let them answer a file of prompts.

    In the terminal, or with --page in your browser. /help lists what else can be entered in the
    terminal. Ctrl-C stops an answer, and Ctrl-D leaves. Answers to a file are rows that `alignkit
    evaluate FILE` and recipes read.

    \b
    Examples:
      alignkit chat runs/demo/align
      alignkit chat runs/demo/sft runs/demo/align --reward runs/demo/helpful
      alignkit chat runs/demo/align --page --collect chats.feedback
      alignkit chat runs/demo/align --prompts prompts.jsonl --out answers.jsonl
    """
    from alignkit_plugins.policies.words import read_words, split_overrides

    words, overrides = split_overrides(policies)
    if page and reward:
        refuse("the page shows no rewards", "leave out --page, or --reward")
    if collect and not page:
        refuse("a talk in the terminal keeps nothing", "add --page, or leave --collect out")
    if (prompts is None) != (out is None) or (prompts and (page or system)):
        help = "--prompts FILE --out ANSWERS.jsonl"
        refuse("--prompts and --out answer a file, without a talk", help)
    if page:
        from alignkit_plugins.people.address import Address
        from alignkit_plugins.policies.serve import start

        where = f"/#{urlencode({'system': system})}" if system else "/"
        start(policies, None, Address(), collect=collect, page=where)
        return None
    named = read_words(words, reward or (), data=prompts)
    print("loading torch and transformers", file=sys.stderr)
    if out is not None:
        from alignkit_plugins.policies.files import answer_and_score

        return answer_and_score(named, overrides, out)
    from alignkit_plugins.policies.talk import in_terminal

    in_terminal(named, overrides, system)
    return None
