"""The commands that come with alignkit, next to `run`, by the groups of `alignkit --help`."""

from __future__ import annotations

from alignkit import hookimpl
from alignkit.commands import RegisterCommand
from alignkit_apps.catalog.app import plugins_app
from alignkit_apps.chat.command import chat
from alignkit_apps.check.command import check
from alignkit_apps.data.command import data_app
from alignkit_apps.evaluate.command import evaluate
from alignkit_apps.export.command import export
from alignkit_apps.init.command import init
from alignkit_apps.label.command import label
from alignkit_apps.labels.command import labels_app
from alignkit_apps.report.command import show
from alignkit_apps.serve.command import serve
from alignkit_apps.verify.command import verify


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
