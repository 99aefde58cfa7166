"""The commands `alignkit chat`, `alignkit serve` and `alignkit export`."""

from __future__ import annotations

import shlex
import sys
import webbrowser
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlencode

import typer

from alignkit.contract.commands import Result, argument, option
from alignkit.errors import refuse
from alignkit_plugins.command_line.printing import Policies, Rewards, files_written
from alignkit_plugins.extras import check_extra

if TYPE_CHECKING:
    from alignkit_plugins.servers.server import Address

PORT = 8000
LEAST_TOKEN = 16  # characters
CONVERTER = ("python", "convert_hf_to_gguf.py")  # a script of llama.cpp
Collect = Annotated[
    Path | None,
    option("FILE.feedback", "File that keeps answers and thumbs of users who agreed."),
]


def chat(
    policies: Policies,
    reward: Rewards = None,
    system: Annotated[str, option("TEXT", "System message before the first question.")] = "",
    prompts: Annotated[
        str | None,
        option(
            "FILE", "File of prompts, in any format, to answer instead of chatting. Needs --out."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        option("FILE", "File that the answers to --prompts are written to, as .jsonl."),
    ] = None,
    collect: Collect = None,
    page: Annotated[
        bool,
        typer.Option(
            "--page", help="Chat on the page of `alignkit serve`, which opens in your browser."
        ),
    ] = False,
) -> Result | None:
    """Talk to policies, or let them answer a file of prompts.

    In the terminal, or with --page in your browser. /reset begins a new conversation, Ctrl-C stops
    an answer, and Ctrl-D leaves. Answers to a file are rows that `alignkit evaluate FILE` and
    recipes read.

    \b
    Examples:
      alignkit chat runs/demo/align
      alignkit chat runs/demo/sft runs/demo/align --reward runs/demo/helpful
      alignkit chat runs/demo/align --page --collect chats.feedback
      alignkit chat runs/demo/align --prompts prompts.jsonl --out answers.jsonl
    """
    if (prompts is None) != (out is None) or (prompts and (page or system)):
        help = "--prompts FILE --out ANSWERS.jsonl"
        refuse("--prompts and --out answer a file, without a chat", help)
    if page and reward:
        refuse("the page shows no rewards", "leave out --page, or --reward")
    if collect and not page:
        refuse("a chat in the terminal is not collected", "add --page, or leave --collect out")
    if page:
        from alignkit_plugins.servers.server import Address

        where = f"/#{urlencode({'system': system})}" if system else "/"
        start(policies, None, Address(), collect=collect, page=where)
        return None
    from alignkit_plugins.command_line.words import read_words, split_overrides

    words, overrides = split_overrides(policies)
    named = read_words(words, reward or (), data=prompts)
    print("loading torch and transformers", file=sys.stderr)
    if out is not None:
        from alignkit_plugins.serving.files import answer_and_score

        return answer_and_score(named, overrides, out)
    from alignkit_plugins.serving.talk import in_terminal

    in_terminal(named, overrides, system)
    return None


def serve(
    policies: Policies,
    port: Annotated[
        int,
        option("N", "Port to listen on; 0 takes any free one.", min=0, max=65535),
    ] = PORT,
    host: Annotated[
        str,
        option(
            "ADDRESS",
            "Address that other machines use, or https://NAME of a proxy. They need --token.",
        ),
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        option("TEXT", "API key that clients must send.", envvar="ALIGNKIT_TOKEN"),
    ] = None,
    collect: Collect = None,
    license: Annotated[
        str,
        option("NAME", "License of what --collect keeps, so that it can be shared."),
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
    from alignkit_plugins.servers.server import HOSTS, Address, address_of

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
    from alignkit_plugins.servers.server import PACKAGES, interruptible, listening, server_of

    check_extra("alignkit serve", "serve", *PACKAGES)
    from alignkit.contract.settings import SamplingOptions
    from alignkit.errors import Stopped
    from alignkit.io.console import Reporter
    from alignkit.io.text import printable
    from alignkit.runs.signals import should_stop
    from alignkit_plugins.command_line.words import read_words, split_overrides
    from alignkit_plugins.people.collection import Collection

    reporter = Reporter()
    policies, overrides = split_overrides(words)
    named = read_words(policies)
    with ExitStack() as stack:
        collection = None
        if collect is not None:
            collection = stack.enter_context(closing(Collection(collect, license, named.names)))
        listener = stack.enter_context(listening(port, address))
        reporter.say("loading torch and transformers")
        from alignkit_plugins.serving.policy import opened
        from alignkit_plugins.serving.serve_app import Endpoint

        stack.enter_context(suppress(Stopped))
        stack.enter_context(interruptible())
        opening = opened(named, overrides, reporter, should_stop, "alignkit serve")
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


def export(
    stage: Annotated[
        str,
        argument(
            "RUN/STAGE",
            "Stage of a run to export; RUN/STAGE@K is a kept version, RUN/align@ppo a result.",
        ),
    ],
    out: Annotated[
        Path | None,
        argument("FOLDER", "New folder for the export. Default: exports/RUN-STAGE."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Write a whole model instead of an adapter.")
    ] = False,
    license: Annotated[
        str | None, option("ID", "License of the export, for its model card.")
    ] = None,
) -> Result:
    """Write a trained model, with a model card, for other programs.

    transformers, peft, TRL and vLLM load the folder; llama.cpp's converter reads a merged one, and
    `hf upload OWNER/NAME FOLDER` shares it.

    \b
    Examples:
      alignkit export runs/quickstart/align my-model
      alignkit export runs/quickstart/align my-model --merge
      alignkit export runs/quickstart/helpful rm --merge
    """
    from alignkit_plugins.command_line.find import find
    from alignkit_plugins.command_line.words import split_overrides

    model = find(stage)
    if model.run is None or not model.name:
        refuse(f"{stage} is no stage of a run", "write RUN/STAGE: a run trained what is exported")
    out = out or Path("exports") / model.label
    if split_overrides([str(out)])[1]:
        refuse(f"export takes no overrides such as {out}", f"./{out} is a folder of this name")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        refuse(f"{out} exists already", "choose another folder, or delete it")
    from alignkit_plugins.serving.export_folder import write  # imports torch

    notes = write(model, out, merge, license)
    files = sorted(out.iterdir())
    lines = [f"wrote {out}: {', '.join(path.name for path in files)}"]
    lines += [f"note: {note}" for note in notes]
    convert = ""
    if not model.is_reward and (merge or not model.is_adapter):
        convert = shlex.join([*CONVERTER, str(out), "--outfile", f"{model.label}.gguf"])
        lines.append(f"for llama.cpp: {convert}")
    return files_written(files, notes, convert, "\n".join(lines))
