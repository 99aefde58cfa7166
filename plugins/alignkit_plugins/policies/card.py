"""The model card of an export, from the records of the stages that trained the model, and how
programs load it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from alignkit.io.results import RECIPE, RESULTS, read_record
from alignkit.io.text import printable, redacted
from alignkit.models.loading import QUANTIZED, read_json
from alignkit.plugins import source_of
from alignkit.report import Report, Table
from alignkit_plugins.policies.source import Source

# That vLLM reserves memory for; the second is its default
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
MADE = "# alignkit makes the base model, which other programs do not have: export this with --merge"
CONVERTER = "python convert_hf_to_gguf.py"  # of llama.cpp
SCORED = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi."}]
# A path of at least two parts, or a whole text that is one; an address such as http://host/a is
# none.
_PATH = re.compile(r"(?<![\w:/.~<])~?/(?:[^\s'\"/]+/)+([^\s'\"/]*)")


@dataclass(frozen=True)
class Use:
    """How programs load an export. folder: where it is being written. base: what others call its
    base.
    """

    source: Source
    is_adapter: bool
    folder: Path
    base: str
    base_on_hub: bool

    def text(self, place: str, base: str) -> str:
        """Commands and lines of Python. place: the export's folder or repository. base: the
        base's.
        """
        return f"{self.python(place, base)}\n\n{self.vllm(place, base)}\n{self.llama_cpp(place)}"

    def python(self, place: str, base: str) -> str:
        """Lines that load it with transformers and peft, and for a reward model score an answer."""
        spec, reward = self.source.spec, self.source.is_reward
        kind = "AutoModelForSequenceClassification" if reward else "AutoModelForCausalLM"
        imports, more = (
            [kind, "AutoTokenizer"],
            ", trust_remote_code=True" if spec.trust_remote_code else "",
        )
        lines = [f'model = {kind}.from_pretrained("{place}"{more})']
        if self.is_adapter:
            # An adapter corrects the rounding of its own base: on unquantized weights it computes
            # something else.
            if quantization := dict(QUANTIZED[spec.quantization]):
                imports.append("BitsAndBytesConfig")
                quantization |= {"llm_int8_skip_modules": ["score"]} if reward else {}
                more += f", quantization_config=BitsAndBytesConfig(**{quantization})"
            more += ", num_labels=1" if reward else ""
            lines = [f'base = {kind}.from_pretrained("{base}"{more})']
            lines += [f'model = PeftModel.from_pretrained(base, "{place}")']
        peft = ["from peft import PeftModel"] if self.is_adapter else []
        lines = [*peft, f"from transformers import {', '.join(imports)}", "", *lines]
        lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{place}")')
        if reward:
            lines += [
                f"messages = {json.dumps(SCORED)}",
                (
                    'inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", '
                    "return_dict=True)"
                ),
                "print(model(**inputs).logits[0, 0])  # the score",
            ]
        return "\n".join(lines)

    def vllm(self, place: str, base: str) -> str:
        """The command that serves it as the run computed it, or what vLLM cannot load."""
        spec, reward = self.source.spec, self.source.is_reward
        if self.is_adapter and (reward or spec.quantization != "none"):
            what = "adapter of a reward model" if reward else f"{spec.quantization} base"
            return f"# vLLM loads no {what}: export it with --merge"
        words = ["vllm", "serve", base if self.is_adapter else place]
        config = (
            read_json(self.folder / "config.json") if not self.is_adapter else {"dtype": spec.dtype}
        )
        dtype = str(config.get("dtype") or config.get("torch_dtype"))
        if self.is_adapter:
            # vLLM would take template and ends of responses from the base.
            words += [
                "--enable-lora",
                "--lora-modules",
                f"{self.source.label}={place}",
                "--generation-config",
                place,
            ]
            has_template = (self.folder / "chat_template.jinja").is_file()
            words += ["--chat-template", f"{place}/chat_template.jinja"] if has_template else []
            rank = spec.lora.r if spec.lora is not None else 0
            largest = next((size for size in RANKS if size >= rank), rank)
            words += ["--max-lora-rank", str(largest)] if rank > RANKS[1] else []
            words += ["--dtype", dtype] if dtype != "auto" else []
        elif dtype == "float32":  # vLLM would round it
            words += ["--dtype", dtype]
        words += ["--runner", "pooling"] if reward else []
        if spec.chat_template_kwargs and not reward:
            words += ["--default-chat-template-kwargs", json.dumps(spec.chat_template_kwargs)]
        return shlex.join(words + (["--trust-remote-code"] if spec.trust_remote_code else []))

    def llama_cpp(self, place: str) -> str:
        """The command of llama.cpp's converter, or what to do first."""
        if self.source.is_reward:
            return "# llama.cpp reads no reward model"
        if self.is_adapter:
            return f"# for llama.cpp: export it with --merge, then {CONVERTER} FOLDER"
        return shlex.join([*CONVERTER.split(), place, "--outfile", f"{self.source.label}.gguf"])


def card(source: Source, use: Use, place: str, license: str | None, notes: Sequence[str]) -> str:
    """The file README.md with the header that the hub reads. place: a folder or a repository."""
    from huggingface_hub import ModelCardData

    stages = lineage(source)
    methods = [str(record.get("plugin")) for _, record in stages]
    reward = source.is_reward
    behind = _behind(source)
    hubs = [
        hub
        for record in behind
        for hub in _hubs([record["depends_on"][part] for part in ("settings", "component")])
    ]
    data = ModelCardData(
        base_model=use.base if use.base_on_hub else None,
        license=license,
        datasets=list(dict.fromkeys(hubs)) or None,
        library_name="peft" if use.is_adapter else "transformers",
        pipeline_tag="text-classification" if reward else "text-generation",
        tags=["alignkit", methods[-1].replace("_", "-"), *(["reward-model"] if reward else [])],
    )
    form = "LoRA adapter" if use.is_adapter else "whole model"
    kind = "reward model: it scores answers, higher is better" if reward else "language model"
    made = use.is_adapter and not use.base_on_hub and source_of(source.spec.base)[0]
    loading = MADE if made else use.text(place, use.base)
    digest = f", SHA-256 of its weights `{source.base_digest}`" if source.base_digest else ""
    parts = [
        f"# {source.label}",
        f"A {kind}. This is a {form}, trained with alignkit ({', then '.join(methods)}).",
        "\n".join(
            [
                (
                    "- Base model: "
                    f"`{use.base}`{'' if use.base_on_hub else ', which is not on the hub'}{digest}"
                ),
                (
                    "- License: "
                    f"{license or 'not stated; that of the base model and of the data apply'}"
                ),
                *(f"- License of rows: {line}" for line in _licenses(behind)),
                *(f"- Note: {note}." for note in [*notes, *_conventions(source)]),
            ]
        ),
        f"## Use\n\n```\n{loading}\n```",
        (
            "## Training\n"
            "\n"
            "The stage's records, the first stage first; `recipe.yaml` is the recipe of the "
            "whole run."
        ),
        *(f"```yaml\n{_stage(name, record)}```" for name, record in stages),
        "## Evaluation",
        *(evaluations(source) or ["The run has no evaluation of this model."]),
        (
            "## Limitations\n"
            "\n"
            "Those of the base model and of the data apply. A reward is not what people want, "
            "only close to it. Nobody has tested it for safety."
        ),
    ]
    return printable(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts)) + "\n"


def _conventions(source: Source) -> list[str]:
    """How texts must be rendered for the model to see them as in training."""
    spec = source.spec
    found = ["conversations are rendered by the chat template in this folder, as in training"]
    if spec.chat_template_kwargs:
        given = ", ".join(f"{key}={value!r}" for key, value in spec.chat_template_kwargs.items())
        found.append(f"the run rendered them with `apply_chat_template(..., {given})`")
    if source.is_reward:
        found.append(
            "scores are logits without a sigmoid; only differences between answers to a prompt "
            "mean something"
        )
    return found


def lineage(source: Source) -> list[tuple[str, Mapping[str, Any]]]:
    """The names and records of the stages that trained a model, the first one first."""
    found: dict[str, Mapping[str, Any]] = {}
    name, record = source.stage, source.record
    while record and name not in found:
        if not record.get("policy"):  # a step that selected a policy trained nothing
            found[name] = record
        start = str(
            record.get("policy") or (record["depends_on"]["settings"] or {}).get("from_") or ""
        )
        name = start.partition("@")[0]
        record = read_record(source.run / name) if name and not Path(start).is_absolute() else {}
    return list(found.items())[::-1]


def _behind(source: Source) -> list[Mapping[str, Any]]:
    """The records of all stages that a model comes from: also of its reward models, and of the data
    that they made.
    """
    found: dict[str, Mapping[str, Any]] = {}
    waiting = [(source.stage, source.record)]
    while waiting:
        name, record = waiting.pop(0)
        if record and name not in found:
            found[name] = record
            names = [word.partition("@")[0] for word in record["depends_on"].get("upstream", {})]
            waiting += [(before, read_record(source.run / before)) for before in names]
    return list(found.values())


def _licenses(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The licenses that rows state, by source."""
    lines = dict[str, None]()
    for data in chain.from_iterable(record.get("data", ()) for record in records):
        licenses = (data.get("card") or {}).get("licenses", {})
        if licenses.keys() - {""}:
            texts = ", ".join(
                f"{name or 'not stated'} ({count} rows)" for name, count in licenses.items()
            )
            lines[f"`{portable(data['name'])}`: {texts}"] = None
    return list(lines)


def _stage(name: str, record: Mapping[str, Any]) -> str:
    """What a stage's record says of how it was trained and what came of it, as YAML."""
    depends_on = record["depends_on"]
    settings = {
        key: value
        for key, value in (depends_on["settings"] or {}).items()
        if value not in (None, [], {})
    }
    summary = {
        key: value
        for key, value in (record.get("summary") or {}).items()
        if isinstance(value, int | float)
    }
    facts = {
        "plugin": record.get("plugin"),
        "options": depends_on["component"].get("options"),
        "settings": settings,
    }
    facts |= {
        "seed": depends_on.get("seed"),
        "results": summary,
        "versions": record.get("versions"),
    }
    return yaml.safe_dump(
        portable({name: facts, "hash": record.get("hash")}), sort_keys=False, allow_unicode=True
    )


def _hubs(settings: Any) -> list[str]:
    """The data sets of the hub that settings name."""
    if isinstance(settings, Mapping):
        hub = settings.get("hub")
        own = [hub] if isinstance(hub, str) and not Path(hub).exists() else []
        return own + [name for value in settings.values() for name in _hubs(value)]
    return (
        [name for value in settings for name in _hubs(value)] if isinstance(settings, list) else []
    )


def evaluations(source: Source) -> list[str]:
    """The steps that evaluated this very result, each with the tables of its report as Markdown."""
    found = []
    earlier = (source.run / RESULTS).glob("[!.]*") if RESULTS in source.folder.parts else ()
    for folder in (*sorted(source.run.glob("*")), *sorted(earlier)):
        record = read_record(folder)
        if not record.get("complete") or not record.get("report"):
            continue
        if source.record.get("hash") in record["depends_on"].get("upstream", {}).values():
            tables = [
                block
                for block in Report.restored(record["report"]).blocks
                if isinstance(block, Table | str)
            ]
            found.append(f"### {record['name']}\n\n{Report(tables).markdown().strip()}")
    return found


def portable(value: Any) -> Any:
    """Plain data with the last part of every absolute path in its place, so that they tell nothing
    of this machine.
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


def recipe_text(source: Source) -> str:
    """The recipe of the run as a file that can be shared: files are named without their folders."""
    plain = portable(yaml.safe_load((source.run / RECIPE).read_text(encoding="utf-8")))
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=1000)
    head = (
        "# The recipe of the run. Files are named without their folders: put them next to this "
        "file."
    )
    return f"{head}\n{redacted(text)}"
