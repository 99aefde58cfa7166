"""The command line in a forked process, which imports nothing again and may be killed."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from alignkit.cli import main


def as_new() -> None:
    """Call it first in a forked process, which is then as ready as one that was started."""
    # Renews torch's pool of threads: two threads that were the first to need it would end in its
    # "Invalid thread pool"
    torch.set_num_threads(torch.get_num_threads())


def forked(*arguments: str | Path, **variables: str) -> int:
    """Run `alignkit ARGUMENTS`; gives its exit code, or the negative number of the signal that
    ended it.

    variables: of its environment. The test must use one thread: a fork has none of the others.
    """
    if (child := os.fork()) == 0:
        code = 99
        try:
            as_new()
            os.environ |= {"TOKENIZERS_PARALLELISM": "false", **variables}
            code = main(list(map(str, arguments)))
        finally:  # whatever happens, the child must not go on with the tests
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
