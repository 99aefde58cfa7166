"""Every config of `configs.yaml` becomes a recipe that passes `alignkit check`, or is refused."""

from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml
from alignkit_migrate import migrate

from alignkit.errors import RecipeError

CASES = yaml.safe_load(Path(__file__).with_name("configs.yaml").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in CASES["files"].items():
        Path(name).write_text(text, encoding="utf-8")


def migrated(case: Any) -> Any:
    config, trainer = case["config"], case.get("trainer", "")
    text = config if isinstance(config, str) else yaml.safe_dump(config)
    Path("old.yaml").write_text(text, encoding="utf-8")
    new = Path(case.get("to", "new.yaml"))
    migrate(Path("old.yaml"), new, trainer, case.get("partial", False))
    return yaml.safe_load(new.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", CASES["carried over"])
def test_a_config_is_carried_over(name: str, capsys: Any) -> None:
    case = CASES["carried over"][name]
    recipe, out = migrated(case), capsys.readouterr().out
    for keys, value in case["recipe"].items():
        assert reduce(lambda place, key: place.get(key), keys.split("."), recipe) == value, keys
    assert out.endswith("\nok: old: stages {}\n".format(*recipe["stages"]))
    for note in case.get("notes", ()):
        assert note in out and note in Path(case.get("to", "new.yaml")).read_text(encoding="utf-8")
    assert not [note for note in case.get("without", ()) if f"\n{note}" in f"\n{out}"]
    with pytest.raises(RecipeError, match="already exists"):
        migrated(case)


@pytest.mark.parametrize("name", CASES["refused"])
def test_a_config_is_refused_in_one_line(name: str) -> None:
    case = CASES["refused"][name]
    with pytest.raises(RecipeError) as caught:
        migrated(case)
    (problem,) = caught.value.problems
    assert case["message"] in problem.message and "\n" not in problem.message
    assert not Path("new.yaml").exists()
