"""The base models of a run: each is found, identified, loaded and described when a stage first needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.calls import blame
from alignkit.errors import PluginError, Problem, RecipeError, RunFailed
from alignkit.io.atomic import make_folder
from alignkit.io.console import Reporter
from alignkit.io.digest import cached_snapshot, commit_of, model_digest
from alignkit.io.results import read_record, stage_folder
from alignkit.io.text import cache_folder, is_dir, is_file, resolved
from alignkit.plugins import plugins, source_of
from alignkit.recipe.mistakes import path_text
from alignkit.recipe.rules import base_of
from alignkit.recipe.schema import BASE, Recipe, RewardSpec, Stage, base_keys, specs
from alignkit.recipe.yaml import Keys
from alignkit.registry import Registration
from alignkit.runs.fingerprint import template_of, template_parts
from alignkit.seeds import number
from alignkit.settings import ModelSpec

if TYPE_CHECKING:
    from alignkit.models.adapters import Base
    from alignkit.models.models import LoadedBase
    from alignkit.models.shared_model import SharedModel
    from alignkit.tokens.encoder import Encoder

LEAST_LENGTH = 1024  # tokens that rewards and judges may read, even if all stages have a smaller max_length


def base_source(base: str) -> str:
    """A local folder or a hub id for `model.base`. Calls a model plugin, which may download."""
    name, path = source_of(base)
    if is_dir(base) or not name:
        return base
    make_folder(cache := cache_folder())
    return made_model(plugins().registry.get("model", name), cache, *filter(None, [path]))


def made_model(registration: Registration, cache: Path, *path: str) -> str:
    """The folder that a model source makes. Raises PluginError, with the plugin, for its author's mistake.

    path: what a recipe writes after `NAME://`, if the source takes it.
    """
    with blame(registration.implementation, "", registration.label):
        source = registration.implementation(cache, *path)
        if not isinstance(source, str | Path):
            raise PluginError(f"return the model's folder, not {type(source).__name__}")
        folder, hub = Path(source), str(source).count("/") == 1
        if not is_file(folder / "config.json") and (is_dir(folder) or not hub or folder.is_absolute()):
            text = f"return a model's folder, which has a config.json, or a hub id, not {str(source)!r:.200}"
            raise PluginError(text)
    return str(source)


def resolved_spec(recipe: Recipe, name: str) -> ModelSpec:
    """A base model's settings with the path of a template file."""
    spec = recipe.base(name)
    template = recipe.folder / (spec.chat_template or "")
    if is_file(template):
        return spec.model_copy(update={"chat_template": str(template)})
    return spec


def _description(spec: ModelSpec, model: SharedModel) -> str:
    """`bfloat16 on cpu, packed rows of up to 8192 tokens`."""
    dtype = model.dtype_name
    if spec.quantization != "none":
        dtype = f"{spec.quantization}, computing in {dtype},"
    rows = f"packed rows of up to {model.token_budget} tokens"
    if model.unpacked_because:
        rows = f"one sequence at a time, because its attention does not support packing ({model.unpacked_because})"
    return f"{dtype} on {model.device.type}, {rows}"


class RunBase:
    """One base model: where it is, what identifies it, and its tokenizer, each found on first use."""

    def __init__(self, name: str, recipe: Recipe, reporter: Reporter, download: bool = True):
        """name: BASE, or one in `bases`. download: whether a model that is not here may be fetched or made."""
        self.name, self.spec = name, recipe.base(name)
        self._recipe, self._reporter, self._download = recipe, reporter, download

    @cached_property
    def source(self) -> str:
        """A folder or a hub id. Empty for what is not here, and may not be fetched."""
        if self._download:
            return base_source(self.spec.base)
        if is_dir(self.spec.base):
            return self.spec.base
        if source_of(self.spec.base)[0]:
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
        return model_digest(self.source) if Path(self.source).is_dir() else [self.source, self.commit]

    @cached_property
    def encoder(self) -> Encoder | None:
        """Tokenizes as the model will, before it is loaded; None if it is not here, and may not be fetched."""
        if not self.source:
            return None
        from alignkit.models.loading import load_text, locate
        from alignkit.tokens.encoder import Encoder

        spec = resolved_spec(self._recipe, self.name)
        revision = self.commit or spec.revision
        with self._loading(spec):
            encoder = Encoder(*load_text(spec, locate(self.source, revision), revision))
        encoder.several_bases = bool(self._recipe.bases)
        return encoder

    @cached_property
    def origin(self) -> Base:
        """Tells adapters for this model from others."""
        from alignkit.models.adapters import Base

        return Base(self.spec.base, self.source if self._download else self.spec.base, self.commit)

    def unfit(self, folder: Path, use: str) -> str:
        """Why weights cannot be used on this base model; empty if they can, or if that cannot be known yet.

        use: `start` of a stage, `policy`, or `reward`. The text may end with a line of help.
        """
        if not self.source and not is_file(folder / "adapter_config.json"):
            return ""
        from alignkit.models.adapters import base_name, is_adapter
        from alignkit.models.loading import has_score

        adapter = is_adapter(folder)
        if not self.source:  # names tell, if both are those of model plugins
            name, ours = base_name(folder), source_of(self.spec.base)[0]
            other = name != self.spec.base and source_of(name)[0] not in ("", ours)
            return f"{folder} is an adapter for the base model '{name}', not for '{self.spec.base}'" if other else ""
        if use == "reward" and not adapter:  # a whole model needs no base model
            inner = folder / "adapter"
            return f"{folder} holds no model\nhelp: the reward model is in {inner}" if inner.is_dir() else ""
        if self.spec.lora is not None and not adapter:
            return f"{folder} holds a whole model, but with model.lora every policy is an adapter on model.base"
        try:
            if text := self.origin.misfit(folder, self.spec.lora):
                return text
        except RunFailed as error:
            return str(error)
        if use == "policy" and has_score(folder):
            return f"{folder} holds a reward model, but a policy is needed"
        parts = read_record(stage_folder(folder)).get("depends_on") or {}
        if use == "reward" and parts.get("model"):
            theirs = template_of(parts)
            if theirs != template_parts(self._recipe, self.spec):
                template = theirs["chat_template"] or "that of its base model"
                return (
                    f"the reward model {folder} was trained on texts of another chat template: {template}\n"
                    "help: score with its own: give a base model of this recipe, or of 'bases', the same "
                    "'chat_template'"
                )
        return ""

    def load(self, artifact: Callable[[str], Path], should_stop: Callable[[], None]) -> LoadedBase:
        """Load it. Raises RunFailed with the reason if it cannot be loaded. artifact: the folder of a saved role."""
        from alignkit.kernels.capabilities import multiplies_bf16
        from alignkit.models.models import LoadedBase
        from alignkit.models.shared_model import SharedModel

        recipe, reporter = self._recipe, self._reporter
        spec = resolved_spec(recipe, self.name)
        reporter.activity(f"loading {spec.base}")
        with self._loading(spec):
            revision = self.commit or spec.revision
            model = SharedModel(spec, self.source, revision=revision, seed=number(recipe.seed, "init"))
        for fact in (_description(spec, model), *model.chat_facts):
            reporter.activity(f"base {spec.base}: {fact}")
        if model.dtype_name == "bfloat16" and model.device.type == "cpu" and not multiplies_bf16(model.device):
            text = "warning: this processor has no bfloat16 instructions; 'dtype: float32' is faster here"
            reporter.activity(text)
        model.should_stop = should_stop
        stages = recipe.stages.values()
        longest = max([LEAST_LENGTH, *(stage.settings.max_length for stage in stages if stage.settings is not None)])
        loaded = LoadedBase(model, artifact, longest, reporter.say, reporter.progress, self.name)
        loaded.encoder.several_bases = bool(recipe.bases)
        return loaded

    @contextmanager
    def _loading(self, spec: ModelSpec) -> Iterator[None]:
        """Report what keeps the base model from being loaded, with the line of the recipe that names it."""
        recipe, keys = self._recipe, base_keys(self.name)
        try:
            yield
        except RecipeError as error:
            texts = [(problem.message, problem.help) for problem in error.problems]
            raise RecipeError(recipe.problem(keys, text, at_key=True, help=help) for text, help in texts) from error
        except RunFailed as error:
            message, _, help = str(error).partition("\nhelp: ")
            raise RunFailed(str(recipe.problem(keys, message, at_key=True, help=help))) from error
        except (OSError, ValueError, AssertionError, ImportError, LookupError, TypeError, AttributeError) as error:
            # The last three are how transformers reports a configuration that it does not expect.
            reason = str(error).strip().split("\n")[0]
            if isinstance(error, LookupError | TypeError):
                reason = f"{type(error).__name__}: {reason}"
            place = (*keys, "base")
            message = f"{path_text(place)} '{spec.base}' cannot be loaded with these settings: {reason}"
            raise RunFailed(str(recipe.problem(place, message))) from error


class RunBases(dict[str, RunBase]):
    """All base models of a run, by the recipe's names for them."""

    def __init__(self, recipe: Recipe, reporter: Reporter, download: bool = True):
        """download: see `RunBase`."""
        self._recipe, names = recipe, (BASE, *recipe.bases)
        super().__init__({name: RunBase(name, recipe, reporter, download) for name in names})
        self._of_folder: dict[str, str | None] = {}
        self._without_device: set[str] = set()

    def base_of(self, reference: str) -> str | None:
        """The base model that a reference is on; None for a folder that holds no adapter for one of them."""
        if len(self) == 1:
            return BASE
        if reference.partition("@")[0] in {*self, *self._recipe.stages}:
            return base_of(reference, self._recipe.stages, self) or BASE
        return self._base_of_folder(reference)

    def _base_of_folder(self, reference: str) -> str | None:
        if reference not in self._of_folder:
            from alignkit.models.adapters import is_adapter

            folder = self._recipe.folder / reference
            fitting = [
                base for base in self.values() if base.source and is_adapter(folder) and base.origin.fits(folder)
            ]
            fitting.sort(key=lambda base: base.spec.lora is None or base.unfit(folder, "start") != "")
            self._of_folder[reference] = fitting[0].name if fitting else None
        return self._of_folder[reference]

    def needed(self, stage: Stage) -> tuple[str, ...]:
        """The base models that a stage uses: a training stage's own first, and BASE if it names none."""
        own = [stage.base] if stage.kind == "algorithm" else []
        named = dict.fromkeys(filter(None, [*own, *map(self.base_of, stage.roles)]))
        if not own and BASE in named:
            return (BASE, *(name for name in named if name != BASE))
        return tuple(named) or (BASE,)

    # Mistakes of a stage

    def misfits(self, stage: Stage) -> Iterator[Problem]:
        """Weights of other runs that do not fit their base models."""
        for folder in stage.folders:
            starts = stage.settings is not None and stage.settings.from_ == folder
            home, fitting = self.needed(stage)[0], self.base_of(folder)
            text = self[home if starts else fitting or home].unfit(Path(folder), "start" if starts else "policy")
            if text and fitting not in (None, home, BASE):
                text += f"\nhelp: it is for '{fitting}': set 'base: {fitting}' in the stage"
            if text:
                yield self._at_folder(stage, folder, text)
        for spec in specs([stage.settings, stage.component.options], RewardSpec):
            if spec.kind == "folder":
                reasons = [base.unfit(Path(spec.name), "reward") for base in self.values()]
                if all(reasons):
                    helped = [text for text in reasons if "\nhelp: " in text]
                    add = f"{reasons[0]}\nhelp: add its base model to the recipe: 'bases: {{NAME: {{base: ...}}}}'"
                    yield self._at_folder(stage, spec.name, next(iter(helped), add))

    def _at_folder(self, stage: Stage, folder: str, text: str) -> Problem:
        """A problem where a stage names a folder."""
        recipe, keys = self._recipe, ("stages", stage.name)
        place: Keys = keys
        if recipe.document is not None:
            for inner, node in recipe.document.find(keys)[1].walk(keys):
                if isinstance(node.value, str) and resolved(recipe.folder / node.value) == resolved(Path(folder)):
                    place = inner
        message, _, help = f"stage '{stage.name}': {text}".partition("\nhelp: ")
        return recipe.problem(place, message, at_key=place == keys, help=help)

    def missing_device(self, stage: Stage) -> Iterator[Problem]:
        """Devices of a stage's base models that this machine lacks, each base model once."""
        from alignkit.models.loading import device_of

        for name in self.needed(stage):
            try:
                device_of(self[name].spec.device)
            except RunFailed as error:
                if name in self._without_device:
                    continue
                self._without_device.add(name)
                yield self._recipe.problem((*base_keys(name), "device"), f"stage '{stage.name}': {error}")

    def other_tokenizer(self, stage: Stage) -> Iterator[Problem]:
        """A reference on another base model that would read other tokens than the policy writes."""
        reference = (stage.settings.reference if stage.settings is not None else None) or stage.base
        base = base_of(reference, self._recipe.stages, self)
        if base not in (None, stage.base):
            ours, theirs = self[stage.base].encoder, self[base].encoder
            if ours is None or theirs is None or ours.digest == theirs.digest:
                return
            what, help = (
                "has another tokenizer",
                "name a reference whose base model has the same tokenizer, or let the policy learn its answers as "
                f"text: a step 'sample' with 'policy: {reference}', then a stage with 'algorithm: sft'",
            )
            if ours.tokenizer.get_vocab() == theirs.tokenizer.get_vocab():
                what, help = "ends its turns with other tokens", "give both base models the same 'chat_template'"
            message = (
                f"stage '{stage.name}': its reference '{reference}' is on {self._named(base)}, which {what} than "
                f"{self._named(stage.base)}: its log-probabilities of the policy's tokens would mean nothing"
            )
            yield self._recipe.problem(("stages", stage.name, "reference"), message, help=help)

    def _named(self, base: str) -> str:
        """`base 'small' (tiny)`."""
        name = "'model'" if base == BASE else f"base '{base}'"
        return f"{name} ({self._recipe.base(base).base})"
