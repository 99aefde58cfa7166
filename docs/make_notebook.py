"""Run the notebook and store its outputs: `python docs/make_notebook.py`.

This needs `pip install nbclient ipykernel ipywidgets`. The notebook runs in `alignkit-notebook` in
the folder for temporary files, because outputs name the folder of a run. The cells are those of
`docs/notebooks/first_run.ipynb`: edit them there. `tests/test_first_run.py` runs them without
Jupyter.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

NOTEBOOK = Path(__file__).resolve().parent / "notebooks" / "first_run.ipynb"
WORK = Path(tempfile.gettempdir()) / "alignkit-notebook"


def main() -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(WORK)}}, coalesce_streams=True
    ).execute()
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.execution_count = None
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = None
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
