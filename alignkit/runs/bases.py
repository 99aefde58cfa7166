"""The base models of a run: each is found, identified, loaded and described when a stage first needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from alignkit.calls import blame
from alignkit.errors import PluginError, Problem, RecipeError, RunFailed
from alignkit.io.atomic import make_folder
from alignkit.io.cache import cache_folder
from alignkit.io.commits import cached_snapshot, commit_of
from alignkit.io.console import Reporter
from alignkit.io.digest import model_digest
from alignkit.io.lookup import is_dir, is_file
from alignkit.kernels import memory
from alignkit.kernels.capabilities import multiplies_bf16
from alignkit.models.adapters import Base, is_adapter
from alignkit.models.loading import device_of, load_text, locate, weight_bytes
from alignkit.models.models import LoadedBase
from alignkit.models.shared_model import SharedModel
from alignkit.plugins import plugins, source_of
from alignkit.recipe.mistakes import path_text
from alignkit.recipe.rules import bases_of, sampled_by
from alignkit.recipe.schema import BASE, Recipe, Stage, base_keys
from alignkit.registry import Registration
from alignkit.seeds import number
from alignkit.settings import ModelSpec
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
    with blame(registration.implementation, "", registration=registration):
        source = registration.implementation(cache, *path)
        if not isinstance(source, str | Path):
            raise PluginError(f"return the model's folder, not {type(source).__name__}")
        folder, hub = Path(source), str(source).count("/") == 1
        if not is_file(folder / "config.json") and (is_dir(folder) or not hub or folder.is_absolute()):
            text = f"return a model's folder, which has a config.json, or a hub id, not {str(source)!r:.200}"
            raise PluginError(text)
    return str(source)


def load_base_model(
    recipe: Recipe,
    source: str,
    say: Callable[[str], None],
    *,
    name: str = BASE,
    commit: str | None = None,
) -> SharedModel:
    """Load a base model of the recipe. Raises RunFailed with the reason if it cannot be loaded.

    name: the recipe's name for it. commit: of a hub model; None: what the recipe's revision means.
    """
    spec = resolved_spec(recipe, name)
    say(f"loading {spec.base}")
    with _loading(recipe, spec, name):
        model = SharedModel(spec, source, revision=commit or spec.revision, seed=number(recipe.seed, "init"))
    say(f"base {spec.base}: {_description(spec, model)}")
    for fact in model.chat_facts:
        say(f"base {spec.base}: {fact}")
    if model.dtype_name == "bfloat16" and model.device.type == "cpu" and not multiplies_bf16(model.device):
        say("warning: this processor has no bfloat16 instructions; 'dtype: float32' is faster here")
    return model


def resolved_spec(recipe: Recipe, name: str) -> ModelSpec:
    """A base model's settings with the path of a template file."""
    spec = recipe.base(name)
    template = recipe.folder / (spec.chat_template or "")
    return spec.model_copy(update={"chat_template": str(template)}) if is_file(template) else spec


def base_encoder(recipe: Recipe, source: str, *, name: str = BASE, commit: str | None = None) -> Encoder:
    """Return what turns text into tokens as a base model of the recipe will, without its weights.

    Arguments: as those of `load_base_model`.
    """
    spec = resolved_spec(recipe, name)
    revision = commit or spec.revision
    with _loading(recipe, spec, name):
        encoder = Encoder(*load_text(spec, locate(source, revision), revision))
    encoder.several_bases = bool(recipe.bases)
    return encoder


@contextmanager
def _loading(recipe: Recipe, spec: ModelSpec, name: str) -> Iterator[None]:
    """Report what keeps the base model from being loaded, with the line of the recipe that names it."""
    try:
        yield
    except RecipeError as error:
        texts = [(problem.message, problem.help) for problem in error.problems]
        raise RecipeError(
            recipe.problem(base_keys(name), text, at_key=True, help=help) for text, help in texts
        ) from error
    except RunFailed as error:
        message, _, help = str(error).partition("\nhelp: ")
        raise RunFailed(str(recipe.problem(base_keys(name), message, at_key=True, help=help))) from error
    except (OSError, ValueError, AssertionError, ImportError, LookupError, TypeError, AttributeError) as error:
        # The last three are how transformers reports a configuration that it does not expect.
        reason = str(error).strip().split("\n")[0]
        reason = f"{type(error).__name__}: {reason}" if isinstance(error, LookupError | TypeError) else reason
        keys = (*base_keys(name), "base")
        message = f"{path_text(keys)} '{spec.base}' cannot be loaded with these settings: {reason}"
        raise RunFailed(str(recipe.problem(keys, message))) from error


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

    def __init__(self, name: str, recipe: Recipe, reporter: Reporter):
        """name: BASE, or one in `bases`."""
        self.name, self.spec = name, recipe.base(name)
        self._recipe, self._reporter = recipe, reporter

    def misfit(self, folder: Path) -> str:
        """Why the weights in a folder cannot be used on this base model; empty if they can."""
        try:
            return self.origin.misfit(folder, self.spec.lora)
        except RunFailed as error:
            return str(error)

    @cached_property
    def source(self) -> str:
        """A folder or a hub id."""
        return base_source(self.spec.base)

    @cached_property
    def commit(self) -> str | None:
        """The commit of a model on the hub, which hashes name and which is loaded."""
        return None if Path(self.source).is_dir() else commit_of("model", self.source, self.spec.revision)

    @cached_property
    def digest(self) -> Any:
        """Identifies the weights, the tokenizer and the template."""
        return model_digest(self.source) if Path(self.source).is_dir() else [self.source, self.commit]

    @cached_property
    def encoder(self) -> Encoder:
        """Tokenizes as the model will, before it is loaded."""
        return base_encoder(self._recipe, self.source, name=self.name, commit=self.commit)

    @cached_property
    def origin(self) -> Base:
        """Tells adapters for this model from others."""
        return Base(self.spec.base, self.source, self.commit)

    @cached_property
    def bytes(self) -> float | None:
        """What its weights take in memory; None if they are not on this machine yet."""
        local = Path(self.source).is_dir()
        folder = Path(self.source) if local else cached_snapshot(self.source, self.commit)
        return None if folder is None else weight_bytes(self.spec, folder)

    def load(self, artifact: Callable[[str], Path], should_stop: Callable[[], None]) -> LoadedBase:
        """Load it. artifact: the folder of a saved role."""
        reporter = self._reporter
        model = load_base_model(self._recipe, self.source, reporter.activity, name=self.name, commit=self.commit)
        model.should_stop = should_stop
        stages = self._recipe.stages.values()
        longest = max([LEAST_LENGTH, *(stage.settings.max_length for stage in stages if stage.settings is not None)])
        loaded = LoadedBase(model, artifact, longest, reporter.say, reporter.progress, self.name)
        loaded.encoder.several_bases = bool(self._recipe.bases)
        return loaded


class RunBases(dict[str, RunBase]):
    """All base models of a run, by the recipe's names for them."""

    def __init__(self, recipe: Recipe, reporter: Reporter):
        self._recipe, names = recipe, (BASE, *recipe.bases)
        super().__init__({name: RunBase(name, recipe, reporter) for name in names})
        self._of_folder: dict[str, str | None] = {}

    def base_of(self, reference: str) -> str | None:
        """The base model that a reference is on; None for a folder that holds no adapter for one of them."""
        if len(self) == 1:
            return BASE
        name = reference.partition("@")[0]
        stage = self._recipe.stages.get(name)
        if stage is None and name not in self:
            return self._base_of_folder(reference)
        if stage is not None and stage.kind != "algorithm":  # a step that chooses among policies
            return next(map(self.base_of, sampled_by(stage)), BASE)
        (base,) = bases_of(reference, self._recipe.stages, self)
        return base

    def _base_of_folder(self, reference: str) -> str | None:
        if reference not in self._of_folder:
            folder = self._recipe.folder / reference
            fitting = [base for base in self.values() if is_adapter(folder) and base.origin.fits(folder)]
            fitting.sort(key=lambda base: base.spec.lora is None or base.misfit(folder) != "")
            self._of_folder[reference] = fitting[0].name if fitting else None
        return self._of_folder[reference]

    def needed(self, stage: Stage) -> tuple[str, ...]:
        """The base models that a stage uses: a training stage's own first, and BASE if it names none."""
        own = [stage.base] if stage.kind == "algorithm" else []
        named = dict.fromkeys(filter(None, [*own, *map(self.base_of, stage.roles)]))
        if not own and BASE in named:
            return (BASE, *(name for name in named if name != BASE))
        return tuple(named) or (BASE,)

    def check_devices(self, stages: Iterable[Stage]) -> None:
        """Raise RecipeError for stages whose base models are to be on devices that this machine lacks."""
        problems: dict[str, Problem] = {}
        for stage in stages:
            for name in self.needed(stage):
                try:
                    device_of(self[name].spec.device)
                except RunFailed as error:
                    keys = (*base_keys(name), "device")
                    problems[name] = self._recipe.problem(keys, f"stage '{stage.name}': {error}")
        if problems:
            raise RecipeError(problems.values())

    # Memory

    def fit(self, names: Iterable[str]) -> bool:
        """Whether the weights of some base models fit in memory together."""
        return not self._too_large(names)

    def check_memory(self, stages: Iterable[Stage]) -> None:
        """Raise RecipeError for stages whose base models do not fit in memory together."""
        problems = {
            text: self._recipe.problem(
                ("stages", stage.name),
                text,
                at_key=True,
                help="use a smaller base model, or 'quantization: nf4' or another 'device' for one of them",
            )
            for stage in stages
            if len(needed := self.needed(stage)) > 1
            for text in self._too_large(needed, f"stage '{stage.name}' needs several base models at a time: ")
        }
        if problems:
            raise RecipeError(problems.values())

    def _too_large(self, names: Iterable[str], why: str = "") -> list[str]:
        """For each device that the weights exceed, their sizes and the device's."""
        on: dict[Any, list[RunBase]] = {}
        for base in map(self.__getitem__, names):
            on.setdefault(device_of(base.spec.device), []).append(base)
        found = []
        for device, bases in on.items():
            if len(bases) == 1:  # of which nothing may be known yet
                continue
            sizes, room = {base.name: base.bytes or 0.0 for base in bases}, memory.total(device)
            if sum(sizes.values()) > room:
                each = ", ".join(f"'{'model' if name == BASE else name}' {_gib(size)}" for name, size in sizes.items())
                where = "this machine" if device.type == "cpu" else str(device)
                whole = _gib(sum(sizes.values()))
                found.append(f"{why}their weights take {whole} ({each}), but {where} has {_gib(room)} of memory")
        return found


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
