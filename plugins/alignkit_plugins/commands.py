"""The commands that come with alignkit, next to `run`, by the groups of `alignkit --help`."""

from __future__ import annotations

from alignkit import hookimpl
from alignkit.commands import RegisterCommand
from alignkit_plugins.authors.command import plugins_app
from alignkit_plugins.data.command import data_app
from alignkit_plugins.evaluate.command import evaluate
from alignkit_plugins.people.command import label, labels_app
from alignkit_plugins.policies.command import chat, export, serve
from alignkit_plugins.recipes.check import check, verify
from alignkit_plugins.recipes.init import init
from alignkit_plugins.report.show import show


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
