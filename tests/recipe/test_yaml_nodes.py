"""YAML text becomes plain data that knows where it was written, or problems with exact places."""

from pathlib import Path

import pytest
from documents import data, place, problems, write

from alignkit.errors import Problem
from alignkit.recipe.yaml import load_document
from tests.rows import cells

SCALARS = """\
1e-5       1e-05
1E3        1000.0
.5         0.5
5.         5.0
017        17
-3         -3
+3         3
1_000      '1_000'
12:30:45   '12:30:45'
2024-01-02 '2024-01-02'
yes        'yes'
on         'on'
No         'No'
true       True
False      False
TRUE       True
True       True
FALSE      False
~          None
null       None
'1'        '1'
0b1        '0b1'
1.2.3      '1.2.3'
=          '='
"""


def test_scalars_follow_yaml_1_2(tmp_path: Path) -> None:
    for row in [*SCALARS.splitlines(), " None"]:
        text, _, value = row.partition(" ")
        assert repr(data(tmp_path, f"a: {text}\n")["a"]) == value.strip(), text
    assert data(tmp_path, "'<<': 1\n") == {"<<": 1}


def test_places_of_keys_and_values(tmp_path: Path) -> None:
    document = load_document(write(tmp_path, "model:\n  base: tiny  # small\nlist: [1, two]\n"))
    key, value = document.places["model", "base"]
    assert (key.line, key.column, key.length, key.source) == (2, 3, 4, "  base: tiny  # small")
    assert (value.column, value.length) == (9, 4)
    assert document.problem(("list", 1), "").column == 11


def test_crlf_and_bom_and_wide_characters_keep_lines_right(tmp_path: Path) -> None:
    document = load_document(write(tmp_path, "\ufeffa: 'ü'\r\nb: 2\r\n"))
    mark = document.problem(("b",), "")
    assert document.data == {"a": "ü", "b": 2} and (mark.line, mark.source) == (2, "b: 2")


# The text, what is wrong, and its line, column and length
UNUSABLE = r"""
a: 1\nb:\n  c: 2\n  c: 3\n      | duplicate key 'c' | 4 3 1
a: 1\n2: b\n                    | a key must be text | 2 1 1
a: 1\ntrue: b\n                 | a key must be text | 2 1 4
a: {[1]: 2}\n                   | a key must be text | 1 5 3
? {a: 1}\n: 2\n                 | a key must be text | 1 3 6
a: !!python/object:os.system x  | the tag '!!python/object:os.system' is not allowed | 1 4 27
a: !mine {b: 1}                 | the tag '!mine' is not allowed | 1 4 12
a: !!int x                      | cannot be read as '!!int' | 1 4 7
b: &x {c: 1}\na: {<<: *x}\n     | merge keys are not supported | 2 5 2
a: "\\ud800"                    | cannot be read as '!!str' | 1 4 8
a: b: c                         | mapping values are not allowed | 1 5 1
a:\n\t- b\n                     | found character '\t' | 2 1 1
a: [1, 2\n\n\n                  | expected ',' or ']' | 1 9 1
a: 'open\n                      | found unexpected end of stream | 1 9 1
a: \x1b[31m\n                   | special characters are not allowed | 1 4 1
a: *nowhere\n                   | found undefined alias | 1 4 1
a: &a [*a]\n                    | inside its own anchor | 1 4 7
a: 1\n---\nb: 2\n               | but found another document | 2 1 1
a: 1\nb: \xff\n                 | not valid YAML | 2 4 1
"""


@pytest.mark.parametrize(("text", "message", "where"), cells(UNUSABLE))
def test_unusable_yaml(tmp_path: Path, text: str, message: str, where: str) -> None:
    raw = text.encode().decode("unicode_escape").encode("latin-1")
    (problem,) = problems(tmp_path, raw)
    assert message in problem.message and problem.file == str(tmp_path / "r.yaml")
    assert " ".join(map(str, place(problem))) == where


def test_every_problem_of_a_file_is_reported(tmp_path: Path) -> None:
    found = problems(tmp_path, "a: 1\na: 2\n3: 4\nb: !x 1\n", "nothing", "~zz")
    assert len(found) == 5 and str(found[0]).splitlines()[2:4] == ["2 | a: 2", "    ^"]
    (long,) = problems(tmp_path, f"a: !x {'1' * 400}\n")
    assert long.column == 4 and not long.source
    problem = Problem("bad", "r.yaml", 12, 3, 2, "  ab: c", "good")
    lines = ["error: bad", "  --> r.yaml:12:3", "12 |   ab: c", "       ^^", "  help: good"]
    assert str(problem).splitlines() == lines


@pytest.mark.parametrize("nested", ["[" * 65 + "]" * 65, "- " * 3000])
def test_deep_nesting(tmp_path: Path, nested: str) -> None:
    (problem,) = problems(tmp_path, f"a:\n  {nested}\n")
    assert "nested deeper than 64 levels" in problem.message
    assert data(tmp_path, "a: " + "[" * 62 + "]" * 62)


def test_alias_bomb(tmp_path: Path) -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (problem,) = problems(tmp_path, "\n".join(rows))
    assert "more than 20000 values" in problem.message


def test_aliases_are_copies(tmp_path: Path) -> None:
    assert data(tmp_path, "a: &x {b: 1}\nc: *x\n", "c.b=2") == {"a": {"b": 1}, "c": {"b": 2}}
