"""The command `alignkit serve`."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkit.arguments import refuse
from alignkit.extras import check_extra

if TYPE_CHECKING:
    from alignkit.registry import Registry
    from alignkit_apps.policies.recipe import NamedModels
    from alignkit_plugins.people.collection import Collection

PORT = 8000
LEAST_TOKEN = 16  # characters
PACKAGES = ("starlette", "uvicorn")


def serve(
    policies: Annotated[
        list[str],
        typer.Argument(
            metavar="POLICY...",
            help="RUN/STAGE, RUN/align@ppo, RUN/base, a folder with a model, or a model's id on the hub; "
            "then overrides, KEY=VALUE, such as engine.vllm.url=URL.",
        ),
    ],
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0: any that is free.")] = PORT,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="For others, who need --token: its address, or https://NAME of a proxy."),
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(metavar="TEXT", envvar="ALIGNKIT_TOKEN", help="What clients must send as their API key."),
    ] = None,
    collect: Annotated[
        Path | None, typer.Option(metavar="FILE.feedback", help="Keep answers and thumbs of users who agreed.")
    ] = None,
    license: Annotated[str, typer.Option(metavar="NAME", help="Of what is kept, so that it can be shared.")] = "",
) -> None:
    """Answer OpenAI clients on this machine with your policies.

    It has /v1/models and /v1/chat/completions, and with --collect /v1/consent and /v1/feedback.

    \b
    Examples:
      alignkit serve runs/quickstart/align
      alignkit serve runs/quickstart/base runs/quickstart/align --port 8080
    """
    check_extra("alignkit serve", "serve", *PACKAGES)
    if token is not None and (len(token) < LEAST_TOKEN or not (token.isascii() and token.isprintable())):
        refuse(f"--token must have at least {LEAST_TOKEN} ASCII characters", "`openssl rand -hex 16` writes one")
    from alignkit.plugins import load_plugins
    from alignkit_apps.policies.recipe import models_of, without_overrides

    registry = load_plugins().registry
    policies, overrides = without_overrides(policies)
    _refuse_rewards(policies)
    if collect is None and license:
        refuse("--license is about what is kept", "add --collect FILE.feedback")
    named = models_of(policies, overrides=overrides)
    with ExitStack() as stack:
        collection = None
        if collect is not None:
            from alignkit_apps.policies.policy import names_of
            from alignkit_plugins.people.collection import Collection

            names = {word: name for name, word in names_of(named.policies).items()}
            collection = stack.enter_context(closing(Collection(collect, license, names)))
        _serve(named, registry, host, port, token, collection)


def _refuse_rewards(words: list[str]) -> None:
    from alignkit_apps.policies.named_models import named_model
    from alignkit_apps.policies.recipe import plain_word

    for word in words:
        if named_model(plain_word(word)).reward:
            refuse(f"{word} is a reward model, which answers no questions", f"alignkit chat POLICY --reward {word}")


def _serve(
    named: NamedModels, registry: Registry, host: str, port: int, token: str | None, collection: Collection | None
) -> None:
    from alignkit import stopping
    from alignkit.io.printable import printable
    from alignkit.io.progress import Reporter
    from alignkit_apps.web.address import Address, address_of, is_loopback, url
    from alignkit_apps.web.hosting import bound, interruptible

    reporter, address = Reporter(), address_of(host) if host.startswith("https://") else Address(host, ())
    if token is None and not is_loopback(host):
        refuse(f"others could use the models at {host}", "name a --token, or leave --host out")
    if not is_loopback(address.host):
        reporter.say(
            f"warning: everybody who reaches {host} and has the token can use these models, without encryption"
        )
    with bound(address.host, port) as listening:
        reporter.loading_torch()
        from alignkit_apps.policies.policy import opened  # imports torch
        from alignkit_apps.policies.work import Work
        from alignkit_apps.serve.app import serve as run
        from alignkit_apps.serve.collecting import Collecting

        work, collecting = Work(), None if collection is None else Collecting(collection)
        try:
            with interruptible(), opened(named, registry, reporter, stopping.should_stop, "alignkit serve") as models:
                for note in named.notes:
                    reporter.say(printable(f"note: {note}"))
                for policy in models.policies.values():
                    reporter.say(printable(f"model {policy.name}: {policy.described()}"))
                where = f"listening at {url(listening)}/v1{address.public and f' for {address.public}'}; Ctrl-C ends it"
                if collection is not None:
                    kept = f"answers to users who agreed at /v1/consent are kept in {collection.path}"
                    reporter.say(printable(kept))
                say, stop = lambda: reporter.say(where), stopping.should_stop
                run(models, work, listening, token, say, stop, collecting, address.names)
        except stopping.Stopped:
            reporter.say("stopped")
