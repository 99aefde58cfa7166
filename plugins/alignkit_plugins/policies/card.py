"""The model card of an export, from the records of the stages behind the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from alignkit.io.results import RECIPE, RESULTS, is_result_name, read_record
from alignkit.io.text import printable, redacted
from alignkit.report import Report, Table
from alignkit_plugins.models.find import Model

TEMPLATE = Path(__file__).with_name("card.md.j2")
# A path of at least two parts, or a whole text that is one; http://host/a is none.
_PATH = re.compile(r"(?<![\w:/.~<])~?/(?:[^\s'\"/]+/)+([^\s'\"/]*)")

Record = Mapping[str, Any]


def card(
    model: Model,
    name: str,
    base: str,
    base_on_hub: bool,
    is_adapter: bool,
    license: str | None,
    notes: Sequence[str],
) -> str:
    """Return the file README.md with the header that the hub reads.

    Args:
        model: What is exported.
        name: What others load it by: a folder or a repository.
        base: What others call its base model.
        base_on_hub: Whether that is an id on the hub.
        is_adapter: Whether it is exported as an adapter.
        license: An id of a license.
        notes: What its user must know.
    """
    from huggingface_hub import ModelCard, ModelCardData

    assert model.run is not None
    records = behind(model.run, model.name, model.record)
    methods, hubs = [], dict[str, None]()
    for record in records.values():
        parts = record["depends_on"]
        methods += [record["plugin"]] if parts["settings"] else []
        hubs |= dict.fromkeys(_hubs([parts["settings"], parts["component"]]))
    tags = ["alignkit", methods[-1].replace("_", "-")]
    data = ModelCardData(
        base_model=base if base_on_hub else None,
        license=license,
        datasets=list(hubs) or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-classification" if model.is_reward else "text-generation",
        tags=[*tags, "reward-model"] if model.is_reward else tags,
    )
    kwargs = model.keys.get("chat_template_kwargs", {})
    made = ModelCard.from_template(
        data,
        str(TEMPLATE),
        base=base,
        base_on_hub=base_on_hub,
        is_adapter=is_adapter,
        license=license,
        model=model,
        name=name,
        methods=methods,
        notes=notes,
        licenses=_licenses(records.values()),
        arguments=[f"{key}={value!r}" for key, value in kwargs.items()],
        stages=[_stage(*one) for one in records.items()],
        evaluations="\n\n".join(evaluations(model)),
    )
    return printable(str(made))


def behind(run: Path, name: str, record: Record) -> dict[str, Record]:
    """Return the records of all stages that a result comes from, also by its rewards and data, the
    first one first.
    """
    records: dict[str, Record] = {}

    def visit(name: str, record: Record) -> None:
        if not record or name in records:
            return
        for word in record["depends_on"].get("upstream", {}):
            stage = word.partition("@")[0]
            visit(stage, read_record(run / stage))
        records[name] = record

    visit(name.partition("@")[0], record)
    return records


def _licenses(records: Iterable[Record]) -> list[str]:
    """The licenses that rows state, by source."""
    lines = dict[str, None]()
    for record in records:
        for data in record.get("data", ()):
            licenses = (data.get("card") or {}).get("licenses", {})
            if licenses.keys() - {""}:
                texts = ", ".join(
                    f"{name or 'not stated'} ({count} rows)" for name, count in licenses.items()
                )
                lines[f"`{portable(data['name'])}`: {texts}"] = None
    return list(lines)


def _stage(name: str, record: Record) -> str:
    """How a stage was trained and what came of it, as YAML."""
    depends_on = record["depends_on"]
    settings = {
        key: value
        for key, value in (depends_on["settings"] or {}).items()
        if value not in (None, [], {})
    }
    facts = {
        "plugin": record["plugin"],
        "options": depends_on["component"]["options"],
        "settings": settings,
        "seed": depends_on.get("seed"),
        "results": {
            key: one
            for key, one in (record.get("summary") or {}).items()
            if isinstance(one, int | float)
        },
        "versions": record.get("versions"),
    }
    return yaml.safe_dump(
        portable({name: facts, "hash": record["hash"]}), sort_keys=False, allow_unicode=True
    )


def _hubs(settings: Any) -> Iterator[str]:
    """The data sets of the hub that settings name."""
    if isinstance(settings, Mapping):
        hub = settings.get("hub")
        if isinstance(hub, str) and not Path(hub).exists():
            yield hub
        settings = [*settings.values()]
    if isinstance(settings, list):
        for value in settings:
            yield from _hubs(value)


def evaluations(model: Model) -> list[str]:
    """Return the steps that evaluated this very result, each with the tables of its report as
    Markdown.
    """
    assert model.run is not None
    folders = (
        (model.run / RESULTS).glob("[!.]*") if is_result_name(model.name) else model.run.glob("*")
    )
    texts = []
    for folder in sorted(folders):
        record = read_record(folder)
        results = record.get("depends_on", {}).get("upstream", {}).values()
        if record.get("complete") and record.get("report") and model.record["hash"] in results:
            tables = [
                block
                for block in Report.restored(record["report"]).blocks
                if isinstance(block, Table | str)
            ]
            texts.append(f"### {record['name']}\n\n{Report(tables).markdown().strip()}")
    return texts


def portable(value: Any) -> Any:
    """Return plain data with only the last part of every absolute path, so that it tells nothing of
    this machine.
    """
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith(("/", "~/")) and "\n" not in value and len(value) < 4096:
        return Path(value).name
    return _PATH.sub(r"\1", value)


def recipe_text(run: Path) -> str:
    """Return the recipe of a run as a file that can be shared: files are named without their
    folders.
    """
    plain = portable(yaml.safe_load((run / RECIPE).read_text(encoding="utf-8")))
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=1000)
    head = "# The recipe of the run. Put its files, which have no folders here, next to it."
    return f"{head}\n{redacted(text)}"
