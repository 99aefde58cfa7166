"""The models of a run that have weights of their own: the recipe's `model`, and whole models in
folders, which are not trained.

Each is found, identified, loaded and described when a stage first needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from os.path import getmtime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.contract.settings import ModelSpec
from alignkit.errors import RunFailed, path_text
from alignkit.host.calls import attributed_to
from alignkit.host.plugins import plugins
from alignkit.io.atomic import make_folder
from alignkit.io.console import Reporter
from alignkit.io.digest import cached_snapshot, commit_of, model_digest
from alignkit.io.results import read_record, stage_folder
from alignkit.io.text import cache_folder, is_dir, is_file, redacted
from alignkit.recipe.schema import BASE, Recipe, walk
from alignkit.recipe.yaml import Keys
from alignkit.seeds import number

if TYPE_CHECKING:
    from alignkit.models.adapters import ModelOrigin
    from alignkit.models.models import LoadedModel
    from alignkit.models.shared_model import SharedModel
    from alignkit.tokens.encoder import Encoder

# The last three are how transformers reports a configuration that it does not expect.
_UNLOADABLE = (
    RunFailed,
    OSError,
    ValueError,
    AssertionError,
    ImportError,
    LookupError,
    TypeError,
    AttributeError,
)
TEMPLATE = "chat template"
# Tokens that rewards and judges may read, even if all stages have a smaller max_length
LEAST_LENGTH = 1024


def locate_model(base: str) -> str:
    """A local folder or a hub id for `model.base`. Calls a model plugin, which may download."""
    name, path = plugins().source_of(base)
    if is_dir(base) or not name:
        return base
    make_folder(cache := cache_folder())
    registration = plugins().get("model", name)
    with attributed_to(registration.implementation, "", registration.label):
        return str(registration.implementation(cache, *filter(None, [path])))


def made_before(base: str) -> Path | None:
    """The newest folder that a model plugin has made for `model.base`; the plugin is not called."""
    name, path = plugins().source_of(base)
    made = cache_folder().glob(f"{Path(path).name or name}-*")
    return max(made, key=getmtime, default=None) if name else None


def _description(spec: ModelSpec, model: SharedModel) -> str:
    """`bfloat16 on cpu, packs of up to 8192 tokens`."""
    dtype, passes = model.dtype_name, f"packs of up to {model.token_budget} tokens"
    if spec.quantization != "none":
        dtype = f"{spec.quantization}, computing in {dtype},"
    if model.unpacked_because:
        passes = (
            "one sequence at a time, because its attention does not support packing "
            f"({model.unpacked_because})"
        )
    return f"{dtype} on {model.device.type}, {passes}"


class ModelSource:
    """A model with its own weights: where it is, what identifies it, and its tokenizer, each found
    on first use.
    """

    def __init__(self, name: str, recipe: Recipe, reporter: Reporter, download: bool):
        """name: BASE, or the folder of a whole model. download: whether a model may be fetched or
        made.
        """
        self.name, self._recipe, self._reporter, self._download = name, recipe, reporter, download
        self.spec = recipe.model
        template = recipe.folder / (self.spec.chat_template or "")
        if name != BASE:  # its chat template is its own, and nothing of it is trained
            own = {
                "base": name,
                "revision": None,
                "chat_template": None,
                "activation_checkpointing": False,
            }
            self.spec = self.spec.model_copy(update=own)
        elif is_file(template):
            self.spec = self.spec.model_copy(update={"chat_template": str(template)})

    @cached_property
    def source(self) -> str:
        """A folder or a hub id. Empty for what is not here, and may not be fetched."""
        if self._download:
            with self._loading():
                return locate_model(self.spec.base)
        if is_dir(self.spec.base):
            return self.spec.base
        if plugins().source_of(self.spec.base)[0]:
            return ""
        return str(cached_snapshot(self.spec.base, self.spec.revision) or "")

    @cached_property
    def commit(self) -> str | None:
        """The commit of a model on the hub, which hashes name and which is loaded."""
        if Path(self.source).is_dir():
            return None
        return commit_of("model", self.source, self.spec.revision)

    @cached_property
    def digest(self) -> Any:
        """Identifies the weights, the tokenizer and the template."""
        if Path(self.source).is_dir():
            return model_digest(self.source)
        return [self.source, self.commit]

    @cached_property
    def _here(self) -> str:
        """The source, if it is here or may be fetched, or was; or an empty text."""
        return self.source or str(made_before(self.spec.base) or "")

    @cached_property
    def encoder(self) -> Encoder | None:
        """Tokenizes as the model will, before it is loaded; None if it is not here."""
        if not self._here:
            return None
        from alignkit.models.loading import load_text, locate
        from alignkit.tokens.encoder import Encoder

        revision = self.commit or self.spec.revision
        with self._loading():
            return Encoder(*load_text(self.spec, locate(self._here, revision), revision))

    @cached_property
    def context_length(self) -> int | None:
        """Tokens that the model reads; None if it is not here."""
        if not self._here:
            return None
        from alignkit.models.loading import context_length_of, load_config, locate

        revision, trust = self.commit or self.spec.revision, self.spec.trust_remote_code
        with self._loading():
            config = load_config(locate(self._here, revision), revision, trust)
        return context_length_of(config)

    @cached_property
    def origin(self) -> ModelOrigin:
        """Tells adapters for this model from others."""
        from alignkit.models.adapters import ModelOrigin

        return ModelOrigin(
            self.spec.base, self.source if self._download else self.spec.base, self.commit
        )

    def check(self, folder: Path, use: str) -> None:
        """Raise RunFailed if weights cannot be used on this base model, as far as that can be known
        yet.

        use: `start` of a stage, `policy`, or `reward`.
        """
        from alignkit.models.adapters import is_adapter
        from alignkit.models.saved import has_score

        lora, is_whole = self.spec.lora, not is_adapter(folder)
        if use == "policy" and has_score(folder):
            raise RunFailed(f"{folder} holds a reward model, but a policy is needed")
        if not self.source or (is_whole and use != "start"):  # a whole model needs no base model
            return
        if is_whole and lora is not None:
            raise RunFailed(
                f"{folder} holds a whole model, but with model.lora every stage starts from an "
                "adapter\n"
                "help: name the folder in 'model.base', or train all weights with 'model.lora: "
                "none'"
            )
        self.origin.check(folder, lora if use == "start" else None)
        if other := self._reads_otherwise(folder):
            text = f"{folder} was trained with another {other}"
            if other == "special token" or (use == "start" and other == TEMPLATE):  # may be meant
                self._reporter.say(f"warning: {text} than that of 'model'")
                return
            raise RunFailed(
                f"{text}\nhelp: give 'model' the same one (that folder has it), or export it with "
                "--merge: a whole model has its own"
            )

    def _reads_otherwise(self, folder: Path) -> str:
        """Why a conversation is other tokens here than where a saved role was trained; empty if it
        is not, or if its folder does not tell.
        """
        if self.encoder is None or not is_file(folder / "tokenizer_config.json"):
            return ""
        from alignkit.models.loading import load_tokenizer
        from alignkit.tokens.encoder import Encoder

        ours, arguments = self.encoder.tokenizer, self.spec.chat_template_kwargs
        trust = self.spec.trust_remote_code
        theirs = load_tokenizer(folder, str(folder), trust_remote_code=trust)
        made = read_record(stage_folder(folder)).get("depends_on") or {}
        given = (made.get("template") or {}).get("kwargs", redacted(arguments))
        code = theirs.chat_template or ours.chat_template
        if (code, given) != (ours.chat_template, redacted(arguments)):
            return TEMPLATE
        theirs.chat_template = code
        if Encoder(theirs, arguments, self.encoder.end_ids).digest != self.encoder.digest:
            return "tokenizer"
        one, other = ([each.bos_token, each.eos_token] for each in (ours, theirs))
        return "special token" if one != other else ""

    def load(self, artifact: Callable[[str], Path], should_stop: Callable[[], None]) -> LoadedModel:
        """Load it. Raises RunFailed with the reason if it cannot be loaded. artifact: the folder of
        a saved role.
        """
        from alignkit.models.models import LoadedModel
        from alignkit.models.shared_model import SharedModel

        recipe, reporter, spec = self._recipe, self._reporter, self.spec
        reporter.say(f"loading {spec.base}")
        with self._loading():
            revision = self.commit or spec.revision
            model = SharedModel(
                spec, self.source, revision=revision, seed=number(recipe.seed, "init")
            )
        for fact in (_description(spec, model), *model.chat_facts):
            reporter.say(f"base {spec.base}: {fact}")
        model.should_stop = should_stop
        stages = recipe.stages.values()
        longest = max(
            [
                LEAST_LENGTH,
                *(stage.settings.max_length for stage in stages if stage.settings is not None),
            ]
        )
        return LoadedModel(model, artifact, longest, reporter.say, reporter.progress, self.name)

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """Report what keeps the model from being loaded, with the line of the recipe that names
        it.
        """
        place: Keys = ("model", "base")
        if self.name != BASE:
            place = place_of(self._recipe, self.name)
        try:
            yield
        except _UNLOADABLE as error:
            text = str(error)
            if not isinstance(error, RunFailed):
                reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
                text = (
                    f"{path_text(place)} '{self.spec.base}' cannot be loaded with these settings: "
                    f"{reason}"
                )
            message, _, help = text.partition("\nhelp: ")
            raise RunFailed(
                str(self._recipe.document.problem(place, message, help=help))
            ) from error


def place_of(recipe: Recipe, folder: str, start: Keys = ("stages",)) -> Keys:
    """Where a recipe names a folder below some keys; these themselves if that is not written
    there.
    """
    for keys, value in walk(recipe.resolved):
        if value == folder and keys[: len(start)] == start:
            return keys
    return start
