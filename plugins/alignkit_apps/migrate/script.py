"""Reads a Python script that trains with TRL, without running it: the keyword arguments of its calls."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from alignkit.arguments import refuse
from alignkit_apps.migrate.config import TRAINERS, Config, Given, put_data, tables

_CLASSES = {f"{'Reward' if one == 'reward' else one.upper()}Trainer": one for one in TRAINERS}
_DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


def read_script(path: Path, trainer: str | None) -> Config:
    """Raises RecipeError if the script has no trainer of TRL, or several."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except (SyntaxError, ValueError) as error:
        refuse(f"{path}:{getattr(error, 'lineno', 1)} is not Python: {getattr(error, 'msg', error)}")
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _called(node) in _CLASSES]
    calls = [call for call in calls if trainer in (None, _CLASSES[_called(call)])]
    if len(calls) != 1:
        which = ", ".join(f"{_called(call)} in line {call.lineno}" for call in calls)
        help = "choose one: --trainer NAME" if calls else f"there are {', '.join(_CLASSES)}"
        refuse(f"{path} has {f'several trainers: {which}' if calls else 'no trainer that can be migrated'}", help)
    config = Config(path, trainer=_CLASSES[_called(calls[0])])
    _Script(tree, config).trainer(calls[0])
    return config


def _called(call: ast.AST) -> str:
    """The last name of what a call calls: `from_pretrained` of `AutoModel.from_pretrained(...)`."""
    function = call.func if isinstance(call, ast.Call) else None
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


class _Script:
    """What the names of a script stand for, and what its calls say."""

    def __init__(self, tree: ast.Module, config: Config) -> None:
        self.tree, self.config, self.python = tree, config, tables()["trl"]["python"]
        self.names: dict[str, list[ast.expr]] = {}
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Assign)):
            for target in node.targets:
                self.names.setdefault(ast.unparse(target), []).append(node.value)

    def trainer(self, call: ast.Call) -> None:
        positions = self.python["positions"].get(self.config.trainer, ["model", "args"])
        given = dict(zip(positions, call.args, strict=False)) | {str(one.arg): one.value for one in call.keywords}
        for name, node in given.items():
            value = self.resolved(node)
            if name == "peft_config":
                self.config.given["use_peft"] = Given(name, not _is_none(value), node.lineno)
            if name in ("args", "peft_config"):
                self.fields(value, self.python["LoraConfig"] if name == "peft_config" else {})
            elif name in ("model", "quantization_config"):
                self.model(value, node)
            elif name in ("train_dataset", "eval_dataset"):
                self.data("data" if name == "train_dataset" else "validation", node)
            elif name == "reward_funcs":
                self.rewards(value)
            elif name not in self.python["unread"] and not _is_none(value):
                self.note(node, f"{name}: {ast.unparse(node)} has no counterpart")

    def model(self, value: ast.expr, node: ast.expr) -> None:
        if isinstance(value, ast.Call) and _called(value) == "BitsAndBytesConfig":
            return self.fields(value, tables()["trl"]["common"]["old"])
        if isinstance(value, ast.Call) and _called(value) == "from_pretrained" and value.args:
            self.fields(value, self.python["from_pretrained"])
            value = value.args[0]
        return self.set("model_name_or_path", "model", value, node)

    def fields(self, call: ast.expr, names: dict[str, str]) -> None:
        """The keyword arguments of a call as fields, by TRL's names."""
        if not isinstance(call, ast.Call):
            return (
                None if _is_none(call) else self.note(call, f"{ast.unparse(call)} is not a call: its fields are unread")
            )
        for one in call.keywords:
            value, name = self.resolved(one.value), str(one.arg)
            if name == "quantization_config":
                self.model(value, one.value)
            elif name == "model_init_kwargs" and isinstance(value, ast.Dict):
                keys = [
                    ast.keyword(ast.literal_eval(key), item)
                    for key, item in zip(value.keys, value.values, strict=True)
                    if key
                ]
                self.fields(ast.Call(call.func, [], keys), self.python["from_pretrained"])
            else:
                self.set(names.get(name, name), name, value, one.value)
        return None

    def set(self, name: str, original: str, value: ast.expr, node: ast.expr) -> None:
        try:
            self.config.given[name] = Given(original, self.constant(value), node.lineno)
        except ValueError:
            self.note(node, f"{original}: {ast.unparse(node)} is not a constant; write the value yourself")

    def constant(self, node: ast.expr) -> Any:
        """The value of a literal, with names of constants; torch.bfloat16 is 'bfloat16'. Else raises ValueError."""
        node = self.resolved(node)
        if isinstance(node, ast.List | ast.Tuple):
            return [self.constant(one) for one in node.elts]
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch":
            return node.attr
        return ast.literal_eval(node)

    def resolved(self, node: ast.expr) -> ast.expr:
        """What a name stands for, if the script assigns it once."""
        for _ in range(9):  # names of names
            values = self.names.get(ast.unparse(node), [])
            node = values[0] if len(values) == 1 else node
        return node

    def data(self, key: str, node: ast.expr) -> None:
        """`load_dataset(...)`, a split of it, and what is done with it, which is said."""
        more: dict[str, Any] = {}
        value = node
        while _called(value) != "load_dataset":
            if earlier := [one for one in self.names.get(ast.unparse(value), []) if one.lineno < value.lineno]:
                value = earlier[-1]  # `data = data.map(...)`: a name is what the last line above made it
            elif isinstance(value, ast.Subscript) and isinstance(value.slice, ast.Constant):
                more, value = {"split": value.slice.value, **more}, value.value
            elif isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
                tested = next((one.value for one in value.keywords if one.arg == "test_size"), None)
                if _called(value) == "train_test_split" and tested is not None:
                    more.pop("split", None)
                    self.set("test_split_size", "test_size", tested, tested)
                    if key == "validation":
                        return None
                else:
                    self.note(value, f".{_called(value)}(...) on the data is not migrated")
                value = value.func.value
            else:
                return None if _is_none(value) else self.note(node, f"the data {ast.unparse(node)} are not migrated")
        assert isinstance(value, ast.Call)
        keys = dict(zip(("path", "name"), value.args, strict=False)) | {
            str(one.arg): one.value for one in value.keywords
        }
        try:
            named = {name: self.constant(one) for name, one in keys.items()} | more
        except ValueError:
            return self.note(value, f"{ast.unparse(value)}: an argument is not a constant; write the data yourself")
        return put_data(self.config, key, node.lineno, [named])

    def rewards(self, value: ast.expr) -> None:
        """Functions of the script are copied into a file of their own, with its imports and constants."""
        rewards: list[Any] = []
        defined = {node.name for node in self.tree.body if isinstance(node, ast.FunctionDef)}
        for one in value.elts if isinstance(value, ast.List | ast.Tuple) else [value]:
            if (name := ast.unparse(one)) in defined:
                constant = [isinstance(getattr(node, "value", None), ast.Constant) for node in self.tree.body]
                kept = [
                    node
                    for node, is_one in zip(self.tree.body, constant, strict=True)
                    if is_one or isinstance(node, _DEFINITIONS)
                ]
                self.config.code = "\n\n".join(map(ast.unparse, kept)) + "\n"
                rewards.append({"function": name, "conversational": "['content']" in self.config.code})
            else:
                rewards.append(one.value if isinstance(one, ast.Constant) else name)
        self.config.given["reward_funcs"] = Given("reward_funcs", rewards, value.lineno)

    def note(self, node: ast.expr, text: str) -> None:
        self.config.notes.append((node.lineno, text))


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
