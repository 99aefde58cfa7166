"""The list of mutants matches the tree: everything that it names exists."""

import ast
from dataclasses import replace

import mutants
import pytest
from planted import GROUP, PLANTED


def test_every_mutated_module_and_its_tests_exist() -> None:
    for name, tests in mutants.TESTS.items():
        control = mutants.unchanged(name)
        assert control.file.endswith(f"{name}.py")
        assert len(mutants.tests_of(control)) == len(tests)


def test_functions_of_the_library_are_found_through_each_other() -> None:
    names = mutants.called("plugins/alignkit_plugins/algorithms/ppo.py")
    assert {"ppo_policy_loss", "gae", "ratio", "log_ratio", "zero_masked"} <= names
    assert mutants.library()["gae"][0] == "alignkit/functional/advantages.py"


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_change_is_in_the_tree_and_has_a_test_or_a_reason(name: str) -> None:
    """The old text occurs once in its module, and the test that must fail exists."""
    change, mutant = PLANTED[name], mutants.planted(name)
    source = (mutants.ROOT / change.file).read_text(encoding="utf-8")
    assert ast.dump(ast.parse(mutant.text)) != ast.dump(ast.parse(source))
    assert bool(change.test) != bool(change.equivalent)
    if change.test:
        (place,) = mutants.tests_of(mutant)
        file, _, function = place.partition("::")
        tree = ast.parse((mutants.ROOT / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_all_planted_changes_have_one_name() -> None:
    killed = [name for name, change in PLANTED.items() if not change.equivalent]
    assert [mutant.algorithm for mutant in mutants.mutants(GROUP)] == killed
    assert set(mutants.tests_of(mutants.unchanged(GROUP))) == {
        place for mutant in mutants.mutants(GROUP) for place in mutants.tests_of(mutant)
    }


def test_a_planted_change_whose_text_is_gone_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLANTED, "gone", replace(PLANTED["same_prompts"], old="no such text"))
    with pytest.raises(ValueError, match="gone: the old text occurs 0 times"):
        mutants.planted("gone")
