"""The commands that come with alignkit, next to `run`, by the groups of `alignkit --help`."""

from __future__ import annotations

from alignkit import hookimpl
from alignkit.contract.commands import RegisterCommand
from alignkit_plugins.authors.command import plugins_app
from alignkit_plugins.data_tools.command import data_app
from alignkit_plugins.evals.command import evaluate
from alignkit_plugins.people.command import label, labels_app
from alignkit_plugins.recipe_tools.check import check, verify
from alignkit_plugins.recipe_tools.init import init
from alignkit_plugins.report.show import show
from alignkit_plugins.serving.command import chat, export, serve


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    register(init)
    register(check)
    register(data_app, name="data")
    register(verify)
    register(show)
    register(evaluate)
    register(chat)
    register(label)
    register(labels_app, name="labels")
    register(serve)
    register(export)
    register(plugins_app, name="plugins")
