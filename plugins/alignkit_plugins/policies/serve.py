"""The command `alignkit serve`."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkit.commands import refuse
from alignkit.errors import check_extra
from alignkit_plugins.printing import Policies

if TYPE_CHECKING:
    from alignkit_plugins.people.server import Address

PORT = 8000
LEAST_TOKEN = 16  # characters


def serve(
    policies: Policies,
    port: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=65535, help="Port to listen on; 0 takes any free one."
        ),
    ] = PORT,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address that other machines use, or https://NAME of a proxy. They need --token.",
        ),
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", envvar="ALIGNKIT_TOKEN", help="API key that clients must send."
        ),
    ] = None,
    collect: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.feedback", help="File that keeps answers and thumbs of users who agreed."
        ),
    ] = None,
    license: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="License of what --collect keeps, so that it can be shared."
        ),
    ] = "",
) -> None:
    """Answer OpenAI clients on this machine with your policies.

    It has /v1/models and /v1/chat/completions, with --collect /v1/consent and /v1/feedback, and a
    page to talk.

    \b
    Examples:
      alignkit serve runs/quickstart/align
      alignkit serve runs/quickstart/base runs/quickstart/align --port 8080
    """
    if token is not None and (
        len(token) < LEAST_TOKEN or not (token.isascii() and token.isprintable())
    ):
        refuse(
            f"--token must have at least {LEAST_TOKEN} ASCII characters",
            "`openssl rand -hex 16` writes one",
        )
    if collect is None and license:
        refuse("--license is about what is kept", "add --collect FILE.feedback")
    from alignkit_plugins.people.server import HOSTS, Address, address_of

    if token is None and host not in HOSTS:
        refuse(f"others could use the models at {host}", "name a --token, or leave --host out")
    # Whoever has the token may use any name for this machine.
    address = Address(host, None)
    if host in HOSTS or host.startswith("https://"):
        address = address_of(host)
    start(policies, port, address, token, collect, license)


def start(
    words: Sequence[str],
    port: int | None,
    address: Address,
    token: str | None = None,
    collect: Path | None = None,
    license: str = "",
    page: str = "",
) -> None:
    """Serve policies until Ctrl-C. words: policies and overrides. page: what follows the address
    that is opened.
    """
    from alignkit_plugins.people.server import PACKAGES, interruptible, listening, server_of

    check_extra("alignkit serve", "serve", *PACKAGES)
    from alignkit import errors
    from alignkit.io.console import Reporter
    from alignkit.io.text import printable
    from alignkit.sampling import SamplingOptions
    from alignkit_plugins.people.collection import Collection
    from alignkit_plugins.policies.words import read_words, split_overrides

    reporter = Reporter()
    policies, overrides = split_overrides(words)
    named = read_words(policies)
    with ExitStack() as stack:
        collection = None
        if collect is not None:
            collection = stack.enter_context(closing(Collection(collect, license, named.names)))
        listener = stack.enter_context(listening(port, address))
        reporter.say("loading torch and transformers")
        from alignkit_plugins.policies.policy import opened
        from alignkit_plugins.policies.serve_app import Endpoint

        stack.enter_context(suppress(errors.Stopped))
        stack.enter_context(interruptible())
        opening = opened(named, overrides, reporter, errors.should_stop, "alignkit serve")
        models = stack.enter_context(opening)
        for policy in models.policies.values():
            sampling = SamplingOptions(sampling=policy.sampling).described()
            reporter.say(printable(f"model {policy.name}: {sampling}"))
        endpoint = Endpoint(models.policies, collection)
        stack.enter_context(endpoint.model)
        server = server_of(endpoint.application(address, token))
        endpoint.stopping = lambda: server.should_exit
        where = address.url(listener)
        address.warn(listener)
        reporter.say(f"listening at {where}/v1, with a page at {where}; Ctrl-C ends it")
        if collect is not None:
            reporter.say(printable(f"answers to users who agreed are kept in {collect}"))
        if page:
            webbrowser.open(where + page)
        server.run(sockets=[listener])
    reporter.say("stopped")
