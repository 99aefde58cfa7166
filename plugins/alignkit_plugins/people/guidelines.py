"""Guidelines for labelers: a Markdown file, which may change while people label; each label names
its version.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from alignkit.errors import DataError
from alignkit_plugins.people.asking import guidelines_of
from alignkit_plugins.people.store import Store

DEFAULT, REVIEW = (Path(__file__).with_name(name) for name in ("guidelines.md", "review.md"))


@dataclass
class Guidelines:
    """The guidelines that labelers see now. path: None: the last ones of the store, else those of
    the package.
    """

    store: Store
    path: Path | None = None

    def __post_init__(self) -> None:
        self._known = ("", "", (0, 0))
        self.current()

    def current(self) -> tuple[str, str]:
        """The hash of the current version, and its text. Raises `DataError` if the first reading of
        the file fails.
        """
        packaged = {file.read_text(encoding="utf-8") for file in (DEFAULT, REVIEW)}
        # Those of the package were perhaps shown for items of another task.
        earlier = [version for version in self.store.guidelines() if version[1] not in packaged]
        if self.path is None and earlier:
            return earlier[-1]
        reviews = self.store.rows(
            "SELECT 1 FROM items WHERE task = 'review' AND retired = 0 LIMIT 1"
        )
        path = self.path or (REVIEW if reviews else DEFAULT)
        try:
            facts = path.stat()
            state = (facts.st_mtime_ns, facts.st_size)
            if state != self._known[2]:
                text = guidelines_of(path)
                self._known = (self.store.add_guidelines(text), text, state)
        except (OSError, DataError) as error:
            if not self._known[0]:
                reason = error.strerror if isinstance(error, OSError) else error
                raise DataError(f"guidelines: {path}: {reason}") from error
        return self._known[:2]


def rendered(text: str) -> str:
    """Guidelines as HTML. HTML in them is shown as text, and images by their names."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    return str(markdown.render(text))
