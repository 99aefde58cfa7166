"""A copied recipe is valid and has everything that it needs, and no file of the user is replaced."""

from pathlib import Path

import pytest

from alignkit.cli import main
from alignkit.errors import RecipeError
from alignkit.host.plugins import load_plugins
from alignkit.recipe.load import load_recipe
from alignkit.recipe.yaml import shipped, shipped_folder
from alignkit_plugins.recipe_tools.init import copied, summary, write_files
from alignkit_plugins.recipe_tools.options import SCHEMA
from tests.rows import Said


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_copy_is_valid_and_needs_nothing_of_the_original(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: Said
) -> None:
    load_plugins()  # without those of other tests
    stages = list(load_recipe(shipped()[name]).stages)
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--from", name]) == 0
    copies = printed().splitlines()
    assert copies[0] == f"{name}.yaml" and "data/LICENSES.md" in copies
    copy = Path(copies[0])
    line = copy.read_text(encoding="utf-8").partition("\n")[0]
    assert line == f"# yaml-language-server: $schema={(shipped_folder() / SCHEMA).as_uri()}"
    assert not list(tmp_path.rglob(SCHEMA))
    monkeypatch.setattr("alignkit.recipe.yaml.shipped", dict)  # none to fall back on
    assert str(shipped_folder()) not in str(load_recipe(copy).resolved)
    assert main(["check", str(copy), "model.base=tiny"]) == 0
    assert f"ok: {name}: stages {' -> '.join(stages)}\n" in printed()


def test_a_users_file_stays_and_a_copy_onto_itself_changes_nothing(tmp_path: Path) -> None:
    copies = copied(shipped()["smoke"], tmp_path)
    write_files(copies)
    before = {path: path.stat().st_ino for path in copies}
    write_files(copies)
    assert {path: path.stat().st_ino for path in copies} == before
    first = next(iter(copies))
    first.write_text("mine", encoding="utf-8")
    with pytest.raises(
        RecipeError,
        match=r"exists, with other contents: .*smoke\.yaml\n  help: name another folder",
    ):
        write_files(copies)
    assert first.read_text(encoding="utf-8") == "mine"


def test_every_recipe_says_in_one_line_what_it_is() -> None:
    texts = {name: summary(path) for name, path in shipped().items()}
    assert texts["rlaif"] == "AI feedback next to human feedback"
    assert all(20 < len(text) < 300 and "\n" not in text for text in texts.values())
