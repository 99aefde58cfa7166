"""Files as their authors publish them or browsers save them, shortened."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from alignkit.cli import main
from alignkit.recipe.load import load_recipe
from alignkit.recipe.sources import load
from tests.formats.reading import FORMATS
from tests.rows import Said, cells, read_json, run, write_recipe

PAGE = """<html><head><meta charset="{}"></head><body><nav><a href="/">MENU</a></nav><article>
<p>my old friend said that the bread in this house is good, and that people are there.</p>
<p>the people in this house said that my old friend is good, and so on and on, as people do.</p>
<p>there is good bread in this house, as my old friend said to the people there, für uns.</p>
</article></body></html>"""
FILES = """\
== squad.json
{"version": "v2.0", "data": [{"title": "Bread", "paragraphs": [{"context": "my friend is old", "qas": [
{"id": "1", "question": "Who?", "answers": [{"text": "my friend", "answer_start": 0}]}]},
{"context": "no", "qas": []}]},
{"title": "House", "paragraphs": [{"context": "he is good", "qas": [
{"id": "2", "question": "Why?", "answers": [], "is_impossible": true},
{"id": "3", "question": "When?", "answers": [], "is_impossible": false}]}]}]}
== broken.json
{"data": [{"title": "Bread", "paragraphs": [{"qas": []}]}]}
== other.jsonl
{"context": "for the people", "data": 5}
== oasst.trees.jsonl
{"prompt": {"role": "prompter", "text": "is bread good", "lang": "en", "replies": [
 {"role": "assistant", "text": "no", "rank": 1}, {"role": "assistant", "text": "bread is good", "rank": 0}]}}
== web/page.html
PAGE
== web/page_files/ad.html
PAGE
== web/saved.mhtml
MIME-Version: 1.0
Content-Type: multipart/related; boundary=B

--B
Content-Type: text/html; charset=utf-8
Content-Transfer-Encoding: 8bit

PAGE
--B--
== web/notes.md
# my bread
== old.htm
PAGE
== empty.html
<html></html>
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for file in FILES.split("== ")[1:]:
        name, _, text = file.partition("\n")
        charset = "latin-1" if name == "old.htm" else "utf-8"
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = text.replace("\n {", "{").replace("PAGE", PAGE.format(charset))
        path.write_text(text, encoding=charset)
    return tmp_path


# An algorithm, what it reads, and words of each row that it learns from, or what is wrong.
READ = r"""
sft | {oasst_paths: oasst.trees.jsonl}     | bread is good
sft | {path: squad.json, on_bad_row: skip} | Who? If the text; Why? If the text
sft | {path: squad.json, limit: 1}         | Who? If the text
lm  | {text: squad.json}                   | friend is old; no; he is good
lm  | {text: {path: other.jsonl, columns: {text: context}}} | for the people
lm  | old.htm                              | für uns
lm  | {text: web}                          | my bread; für uns; für uns
sft | oasst.trees.jsonl | ! `oasst_paths` takes the best path of OpenAssistant's trees
sft | squad.json        | ! squad.json:3: is_impossible
sft | broken.json       | ! broken.json:1: not as in SQuAD's files .*'context'.*nothing after it is read
lm  | {text: {path: web, paragraphs: true}} | ! 'paragraphs' splits one .txt file
lm  | web               | ! or a format that reads folders
lm  | empty.html        | ! no text was found in empty.html
"""


@pytest.mark.parametrize(("algorithm", "data", "wanted"), cells(READ))
def test_a_published_file_is_checked_and_learned(
    algorithm: str, data: str, wanted: str, files: Path, said: Said
) -> None:
    if data in ("old.htm", "empty.html", "{text: web}"):
        pytest.importorskip("trafilatura")
    recipe = write_recipe(files, f"made: {{algorithm: {algorithm}, epochs: 1, data: {data}}}")
    is_read = not wanted.startswith("! ")
    assert main(["check", str(recipe)]) == (0 if is_read else 4)
    if not is_read:
        assert re.search(wanted[2:], said())
        return
    settings = load_recipe(recipe).stages["made"].settings
    assert settings and settings.data
    read = load(settings.data, formats=FORMATS, stage_data=Mock(), commit=Mock()).groups
    for group, words in zip(read, wanted.split("; "), strict=True):
        text = str([*group.prompt, *group.responses])
        assert words in text and "MENU" not in text
    assert read_json(run(recipe) / "made" / "stage.json")["complete"]


def test_pages_need_a_package(files: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    recipe = write_recipe(files, "made: {algorithm: lm, data: old.htm}")
    assert main(["check", str(recipe)]) == 1
    assert re.search(r"a web page needs the package trafilatura\n.*'alignkit\[web\]'", said())
