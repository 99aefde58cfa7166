"""The base model of a run: find it, load it and describe it to the user."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alignkit.errors import RunFailed
from alignkit.io.atomic import make_folder
from alignkit.io.cache import cache_folder
from alignkit.io.lookup import is_dir, is_file
from alignkit.kernels.capabilities import multiplies_bf16
from alignkit.models.hub import locate
from alignkit.models.loading import load_text
from alignkit.models.shared_model import SharedModel
from alignkit.plugin_errors import author_of, calling
from alignkit.plugins import plugins
from alignkit.recipe.bases import base_keys
from alignkit.recipe.problems import path_text
from alignkit.recipe.schema import BASE, Recipe
from alignkit.registry import Registration
from alignkit.seeds import number
from alignkit.settings import ModelSpec
from alignkit.tokens.encoding import Encoder


def base_source(base: str) -> str:
    """A local folder or a hub id for `model.base`. Calls a model plugin, which may download."""
    if is_dir(base) or base not in plugins().registry.names("model"):
        return base
    make_folder(cache := cache_folder())
    return made_model(plugins().registry.get("model", base), cache)


def made_model(registration: Registration, cache: Path) -> str:
    """The folder that a model source makes. Raises PluginError, with the plugin, for its author's mistake."""
    with calling(author_of(registration), "", registration.implementation):
        source = registration.implementation(cache)
    if not isinstance(source, str | Path):
        text = f"return the model's folder, not {type(source).__name__}"
        raise author_of(registration).error(registration.implementation.__name__, text)
    folder = Path(source)
    if not is_file(folder / "config.json") and (is_dir(folder) or str(source).count("/") != 1 or folder.is_absolute()):
        text = f"return a model's folder, which has a config.json, or a hub id, not {str(source)!r:.200}"
        raise author_of(registration).error(registration.implementation.__name__, text)
    return str(source)


def load_base_model(
    recipe: Recipe,
    source: str,
    say: Callable[[str], None],
    *,
    name: str = BASE,
    commit: str | None = None,
    date: str | None = None,
) -> SharedModel:
    """Load a base model of the recipe. Raises RunFailed with the reason if it cannot be loaded.

    name: the recipe's name for it. commit: of a hub model; None: what the recipe's revision means. date: the day that a
    chat template writes, unless the recipe sets one.
    """
    spec = resolved_spec(recipe, name, date)
    say(f"loading {spec.base}")
    with _loading(recipe, spec, name):
        model = SharedModel(spec, source, revision=commit or spec.revision, seed=number(recipe.seed, "init"))
    say(f"base {spec.base}: {_description(spec, model)}")
    for fact in model.chat_facts:
        say(f"base {spec.base}: {fact}")
    if model.dtype_name == "bfloat16" and model.device.type == "cpu" and not multiplies_bf16(model.device):
        say("this processor has no bfloat16 instructions; 'dtype: float32' is faster here")
    return model


def resolved_spec(recipe: Recipe, name: str, date: str | None) -> ModelSpec:
    """A base model's settings with the day that its template writes and the path of a template file."""
    spec = recipe.base(name)
    spec = spec.model_copy(update={"date": spec.date or date})
    template = recipe.folder / (spec.chat_template or "")
    return spec.model_copy(update={"chat_template": str(template)}) if is_file(template) else spec


def base_encoder(
    recipe: Recipe, source: str, *, name: str = BASE, commit: str | None = None, date: str | None = None
) -> Encoder:
    """Return what turns text into tokens as a base model of the recipe will, without its weights.

    Arguments: as those of `load_base_model`.
    """
    spec = resolved_spec(recipe, name, date)
    revision = commit or spec.revision
    with _loading(recipe, spec, name):
        return Encoder(*load_text(spec, locate(source, revision), revision))


@contextmanager
def _loading(recipe: Recipe, spec: ModelSpec, name: str) -> Iterator[None]:
    """Report what keeps the base model from being loaded, with the line of the recipe that names it."""
    try:
        yield
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
