"""From the command's arguments to a talk: consent is asked for, models are loaded, then people ask."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import Problem, RecipeError
from alignkit.extras import check_extra
from alignkit.io.printable import printable
from alignkit.io.progress import Reporter
from alignkit_apps.web.address import address_of
from alignkit_apps.web.hosting import (
    PACKAGES,
    addresses_of,
    annotators_of,
    announce,
    hosted,
    interruptible,
    listening,
)

if TYPE_CHECKING:
    from alignkit.registry import Registry
    from alignkit_apps.policies.policy import Opened
    from alignkit_apps.policies.recipe import NamedModels
    from alignkit_plugins.people.collection import Collection


@dataclass(frozen=True)
class Talk:
    """How policies answer, and what is kept of it. collect: the store; None: nothing is kept."""

    sampling: dict[str, Any] = field(default_factory=dict)
    system: str = ""
    seed: int | None = None
    collect: Path | None = None
    annotators: tuple[str, ...] = ()
    license: str = ""


@dataclass(frozen=True)
class Page:
    """How a page is shown. blind: without the names of the policies until somebody has chosen."""

    port: int | None = None
    host: str | None = None
    open: bool = False
    blind: bool = False


def in_terminal(named: NamedModels, registry: Registry, talk: Talk) -> None:
    """Talk in the terminal until the input ends."""
    reporter = Reporter()
    reporter.loading_torch()
    from alignkit_apps.chat.screen import interactive
    from alignkit_apps.chat.terminal_feedback import TerminalFeedback

    feedback = TerminalFeedback(edit=_edited if interactive() else lambda text: None)
    with ExitStack() as stack:
        if talk.collect is not None:
            feedback.annotator = annotators_of(talk.annotators)[0]
            collection = stack.enter_context(closing(_collection(talk, named)))
            if agreed(collection, feedback.annotator, input if interactive() else None, reporter.say):
                feedback.collection = collection
        from alignkit_apps.chat.loop import talk as run  # imports torch
        from alignkit_apps.chat.screen import screen
        from alignkit_apps.chat.session import Session
        from alignkit_apps.policies.policy import opened

        models = stack.enter_context(opened(named, registry, reporter, lambda: None, "alignkit chat"))
        models = _greeted(models, named, reporter)
        start = secrets.randbits(32) if talk.seed is None else talk.seed
        session = Session(models, talk.sampling, start, talk.system, feedback.exchanges.append)
        for name, used in session.sampling.items():
            reporter.say(printable(f"{name}: temperature {used.temperature}, max_new_tokens {used.max_new_tokens}"))
        run(session, screen(list(models.policies)), feedback=feedback)


def on_page(named: NamedModels, registry: Registry, talk: Talk, page: Page) -> None:
    """Talk on a page until Ctrl-C. Raises RunFailed if a package is missing."""
    check_extra("the page", "label", *PACKAGES)
    reporter = Reporter()
    reporter.loading_torch()
    from alignkit import stopping
    from alignkit_apps.chat.chat_api import ChatApi
    from alignkit_apps.chat.page import TaskQueue, make_page
    from alignkit_apps.policies.policy import opened
    from alignkit_apps.web.guard import Sessions

    tasks, address = TaskQueue(), address_of(page.host)
    sessions = Sessions(annotators_of(talk.annotators), address=address)
    with ExitStack() as stack:
        collection = stack.enter_context(closing(_collection(talk, named))) if talk.collect is not None else None
        socket = stack.enter_context(listening(page.port, address))
        try:
            stack.enter_context(interruptible())
            models = stack.enter_context(opened(named, registry, reporter, stopping.should_stop, "alignkit chat"))
            models = _greeted(models, named, reporter)
            known = (talk.sampling, talk.seed, page.blind, talk.system, collection)
            look = stack.enter_context(hosted(make_page(ChatApi(models, *known), tasks, sessions), socket))
            address.warn(socket)
            where = "" if page.host else " of this machine"
            announce(addresses_of(sessions, socket), f"Open it in a browser{where}.", page.open)

            def poll() -> None:
                stopping.should_stop()
                look()

            tasks.run(poll)
        except stopping.Stopped:
            reporter.say("stopped")


def agreed(
    collection: Collection, annotator: str, read: Callable[[str], str] | None, say: Callable[[str], None]
) -> bool:
    """Whether the annotator agrees, now or earlier. read: asks; None: there is nobody to ask, which is an error."""
    from alignkit_plugins.people.collection import TERMS

    if collection.agreed(annotator):
        say(printable(f"{annotator} agreed that this is kept in {collection.path}; /consent no takes it back"))
        return True
    if read is None:
        help = "run it in a terminal, where it asks; it remembers a yes"
        raise RecipeError([Problem(f"--collect: {annotator} has not agreed that anything is kept", help=help)])
    say(printable(f"{TERMS}\nFile: {collection.path}. License: {collection.license or 'none'}. Name: {annotator}."))
    try:
        answer = read("Keep it? Enter yes or no: ").strip().lower()
    except EOFError:
        answer = ""
    collection.agree(annotator, answer == "yes")
    say("it is kept" if answer == "yes" else "nothing is kept; only yes is a yes")
    return answer == "yes"


def _collection(talk: Talk, named: NamedModels) -> Collection:
    from alignkit_apps.policies.policy import names_of
    from alignkit_plugins.people.collection import Collection

    assert talk.collect is not None
    return Collection(talk.collect, talk.license, {word: name for name, word in names_of(named.policies).items()})


def _greeted(models: Opened, named: NamedModels, reporter: Reporter) -> Opened:
    """The policies, which sample alike so that their answers can be compared: as the first did that was trained so."""
    for note in named.notes:
        reporter.say(printable(f"note: {note}"))
    policies = models.policies
    first = next((name for name, policy in policies.items() if named.policies[policy.word].rollout), None)
    if first is None or len(policies) < 2:
        return models
    reporter.say(printable(f"{' and '.join(policies)} sample alike: as {first} in its training, unless options differ"))
    sampling = policies[first].sampling
    return replace(models, policies={name: replace(policy, sampling=sampling) for name, policy in policies.items()})


def _edited(text: str) -> str | None:
    """The text as a person changed it in an editor; None if it was not saved."""
    import click

    try:
        found = click.edit(text, extension=".txt")
    except click.ClickException as error:
        print(printable(f"{error}"), file=sys.stderr)
        return None
    return None if found is None else found.rstrip("\n")
