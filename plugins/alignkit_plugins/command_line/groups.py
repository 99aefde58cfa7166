"""Groups of commands."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class DefaultGroup(TyperGroup):
    """A group of commands that is a command itself: `alignkit plugins ppo` next to `alignkit
    plugins new`.

    Words that do not begin with the name of a command are arguments of the group's callback, which
    is registered with `invoke_without_command=True`. It is called before a command of the group,
    too, and returns if its `context.invoked_subcommand` is one.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        below = ctx.meta[self._below] = bool(args) and args[0] in self.commands
        ctx.allow_interspersed_args = not below
        return super().parse_args(ctx, args)

    @property
    def _below(self) -> str:
        """In `meta`, which all groups of a command line share: whether the words name a command."""
        return f"{__name__}.below.{id(self)}"

    def get_params(self, ctx: Any) -> list[Any]:
        params = super().get_params(ctx)
        if ctx.meta.get(self._below):
            return [param for param in params if param.param_type_name == "option"]
        return params
