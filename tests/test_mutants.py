"""The list of mutants matches the tree: every module and every test file that it names exists."""

import mutants
import pytest


@pytest.mark.parametrize("name", mutants.TESTS)
def test_a_mutated_module_and_its_tests_exist(name: str) -> None:
    control = mutants.unchanged(name)
    assert control.file.endswith(f"{name}.py")
    assert len(mutants.tests_of(control)) == len(mutants.TESTS[name])


def test_functions_of_the_library_are_found_through_each_other() -> None:
    names = mutants.called("plugins/alignkit_ppo.py")
    assert {"ppo_policy_loss", "gae", "ratio", "log_ratio", "zero_masked"} <= names
    assert {mutants.library()[name][0] for name in ("gae", "ratio")} == {
        "alignkit/functional/advantages.py",
        "alignkit/functional/policy_gradient.py",
    }
