"""The command line in a forked process, which imports nothing again and may be killed."""

from __future__ import annotations

import os
from pathlib import Path

from alignkit.cli import main


def forked(*arguments: str | Path, **variables: str) -> int:
    """Run `alignkit ARGUMENTS`; gives its exit code, or the negative number of the signal that
    ended it.

    variables: of its environment. The test must use one thread: a fork has none of the others.
    """
    if (child := os.fork()) == 0:
        code = 99
        try:
            os.environ |= {"TOKENIZERS_PARALLELISM": "false", **variables}
            code = main(list(map(str, arguments)))
        finally:  # whatever happens, the child must not go on with the tests
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
