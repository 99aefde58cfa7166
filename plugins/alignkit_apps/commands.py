"""The commands that come with alignkit, next to those of its core: `run`, `validate`, `plugins`, `recipes` ..."""

from __future__ import annotations

from alignkit import hookimpl
from alignkit.commands import RegisterCommand
from alignkit_apps.agreement.command import agreement
from alignkit_apps.catalog.command import plugins, recipes_app, results, schema
from alignkit_apps.chat.command import chat
from alignkit_apps.evaluate.command import evaluate
from alignkit_apps.export.command import export
from alignkit_apps.feedback_export.command import feedback_app
from alignkit_apps.init.command import init
from alignkit_apps.inspect.command import inspect
from alignkit_apps.label.command import label
from alignkit_apps.plan.command import plan
from alignkit_apps.report.commands import compare, report
from alignkit_apps.serve.command import serve
from alignkit_apps.verify.command import verify


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    register(recipes_app, name="recipes")
    register(feedback_app, name="feedback")
    for command in (
        *(plugins, results, init, label, plan, report, compare, verify),
        *(evaluate, chat, serve, inspect, export, agreement, schema),
    ):
        register(command)
