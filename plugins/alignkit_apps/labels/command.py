"""The command `alignkit labels`: show, agree, merge, rate, export and import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit.outcome import Result
from alignkit_apps.catalog.printing import Judges, Rewards, files_written, reported
from alignkit_apps.labels.agree import agree

if TYPE_CHECKING:
    from alignkit_plugins.people.merging import Content
    from alignkit_plugins.people.store import Store

labels_app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Show, measure, merge, rate and export labels of people."
)

NO_MODEL = "tiny"  # is not even loaded: rewards that are no models need none
StoreFile = Annotated[Path, typer.Argument(metavar="STORE", help="A store of feedback, such as labels.feedback.")]


@labels_app.command()
def show(
    store: StoreFile,
) -> Result:
    """Show what a store holds: items, labels, people, and what waits for a decision.

    \b
    Example:
      alignkit labels show labels.feedback
    """
    from alignkit.report import Report
    from alignkit_apps.labels.overview import blocks, overview
    from alignkit_plugins.people.store import Store

    with Store.open(store, write=False) as opened:
        facts = overview(opened)
    return reported(Report(blocks(facts)), "labels", facts)


labels_app.command()(agree)


@labels_app.command()
def merge(
    sources: Annotated[list[Path], typer.Argument(metavar="STORE...", help="Stores, or folders of exports.")],
    into: Annotated[Path, typer.Option(metavar="STORE", help="The store to add them to; made if it does not exist.")],
) -> Result:
    """Add the items and labels of stores or exports to a store. Doing it twice changes nothing.

    \b
    Examples:
      alignkit labels merge ann.feedback bob.feedback --into all.feedback
      alignkit labels merge shared-labels --into all.feedback
    """
    from alignkit.errors import DataError
    from alignkit_apps.labels.consent import without_copies
    from alignkit_plugins.people.merging import merge as merged

    contents = [(source, _content(source)) for source in sources]
    if any(into.exists() and source.exists() and source.samefile(into) for source in sources):
        raise DataError(f"{into}: cannot be merged into itself; name another file with --into")
    lines = []
    with _opened(into) as target:
        for source, content in contents:
            done = merged(target, without_copies(content, target), str(source))
            kept = f"; {done.gold} gold labels differ, those of {into} stay" if done.gold else ""
            lines.append(f"{source}: {done.items} new items, {done.events} new events, {done.known} known ones{kept}")
    return files_written([into], lines, text="\n".join(lines))


@labels_app.command()
def rate(
    store: StoreFile,
    reward: Rewards = None,
    judge: Judges = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="What judges run on. Default: the model of the rewards.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run. Default: runs/rate-feedback.")
    ] = None,
) -> Result:
    """Ask rewards and judges about the items of a store; people then label first where they disagree.

    \b
    Examples:
      alignkit labels rate labels.feedback --reward runs/demo/helpful
      alignkit labels rate labels.feedback --reward RUN/STAGE --judge local_judge
    """
    from alignkit.io.printable import printable
    from alignkit.plugins import load_plugins
    from alignkit.recipe.load import made_recipe
    from alignkit.runs.startup import begin, result_of
    from alignkit_plugins.people.store import Store

    Store.open(store).close()  # which says what is wrong with it
    registry = load_plugins().registry
    data, notes = _rating(store, reward or (), judge or (), model)
    recipe = made_recipe(data, "alignkit labels rate", [], registry)
    folder, reporter = begin(recipe, out)
    for note in notes:
        reporter.say(printable(f"note: {note}"))
    from alignkit.runs.run import run_recipe  # imports torch

    run_recipe(recipe, folder, reporter)
    return result_of(recipe, folder)


@labels_app.command()
def export(
    store: StoreFile,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the export.")],
    layout: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Also parquet or label-studio; repeatable. Always: JSON lines."),
    ] = None,
) -> Result:
    """Write what may be shared: redacted, with pseudonyms, in the layouts of TRL, with a data card.

    An item needs a license, and everybody whose words are in a row must have agreed to share them. The rest is left out
    and counted.

    \b
    Example:
      alignkit labels export labels.feedback --out shared-labels
    """
    from alignkit.errors import Problem, RecipeError, did_you_mean
    from alignkit_apps.labels.folder import LAYOUTS
    from alignkit_apps.labels.folder import export as exported
    from alignkit_plugins.people.store import Store

    for name in layout or ():
        if name not in LAYOUTS:
            hint = did_you_mean(name, LAYOUTS) or f"layouts: {', '.join(LAYOUTS)}"
            raise RecipeError([Problem(f"--layout: unknown layout '{name}'", help=hint)])
    with Store.open(store, write=False) as opened:
        done = exported(opened, out, layout or ())
    notes = [f"people: {done.people}; texts in which something was redacted: {done.left_out.redacted}"]
    notes += done.left_out.lines()
    counts = ", ".join(f"{name} ({count})" for name, count in done.files.items())
    files = [out / name for name in (*done.files, "README.md")]
    return files_written(files, notes, text="\n".join([f"wrote {out}: {counts}, README.md", *notes]))


@labels_app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON of Label Studio.")],
    into: Annotated[Path, typer.Option(metavar="STORE", help="The store to add it to; made if it does not exist.")],
    license: Annotated[str, typer.Option(metavar="NAME", help="Of items that name none.")] = "",
    consent: Annotated[
        str, typer.Option(metavar="TERMS", help="To what everybody in the file agreed, so that it may be exported.")
    ] = "",
) -> Result:
    """Add the labels of a file of Label Studio to a store. Doing it twice changes nothing.

    \b
    Examples:
      alignkit labels import tasks.json --into labels.feedback
      alignkit labels import tasks.json --into labels.feedback --license CC0-1.0
    """
    from alignkit_apps.labels.consent import without_copies
    from alignkit_apps.labels.label_studio import content_of_file
    from alignkit_plugins.people.merging import merge as merged

    content_of_file(file, None, license=license, terms=consent)  # so that a file with mistakes makes no store
    with _opened(into) as target:
        content = content_of_file(file, target, license=license, terms=consent)
        done = merged(target, without_copies(content, target), str(file))
    said = f"{file}: {done.items} new items, {done.events} new events"
    return files_written([into], [said], text=said)


def _rating(
    store: Path, rewards: Sequence[str], judges: Sequence[str], model: str | None
) -> tuple[dict[str, Any], Sequence[str]]:
    """The recipe of `rate` as plain data, and notes; relative paths start at the current folder.

    One step, and the models that its rewards and judges need. model: that judges of this process use; None: that of the
    rewards. Raises RecipeError for a word that means no model or reward, and if judges may need a model and none is
    named.
    """
    from alignkit.errors import Problem, RecipeError
    from alignkit_apps.policies.recipe import models_of
    from alignkit_plugins.people.rows import store_digest

    if not rewards and not judges:
        raise RecipeError(
            [Problem("nobody is named whose opinion to ask", help="add --reward RUN/STAGE or --judge JUDGE")]
        )
    named = models_of([model] if model else [], rewards, judges)
    if not named.base and judges:
        help = "name it: --model RUN/STAGE, RUN/base or a folder; --model tiny if the judge is on a server"
        raise RecipeError([Problem("the judge may need a model, and none is named", help=help)])
    raters = {"rewards": list(named.rewards), "judges": list(named.judges)}
    step = {"step": "rate_feedback", "store": str(store.resolve()), "contents": store_digest(store), **raters}
    others = {"bases": dict(named.others)} if named.others else {}
    base = dict(named.base) or {"base": NO_MODEL}
    return {"name": "rate-feedback", "model": base, **others, "stages": {"rate": step}}, named.notes


def _content(source: Path) -> Content:
    """What a store or the folder of an export holds."""
    from alignkit_apps.labels.folder import content_of_folder
    from alignkit_plugins.people.merging import content_of
    from alignkit_plugins.people.store import Store

    if source.is_dir():
        return content_of_folder(source)
    with Store.open(source, write=False) as store:
        return content_of(store)


def _opened(path: Path) -> Store:
    """A store to add to, with its warnings on stderr; made if it does not exist."""
    from alignkit_plugins.people.store import Store

    store = Store.open(path, new=True)
    for warning in store.warnings:
        typer.echo(f"warning: {warning}", err=True)
    return store
