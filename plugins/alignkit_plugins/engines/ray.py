"""An executor on Ray Data: a step's rows in workers of this machine or of a cluster (Moritz et al. 2018).

Each worker is an actor, which loads the models once and takes a block at a time. Ray starts another one for a worker
that died, and gives it the same block. Without `address` Ray's processes are this run's own: they accept nobody without
the run's token, and end with it, however it ends.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any

from pydantic import field_validator

import alignkit
from alignkit import Executor, ExecutorContext, Field, Register, RunFailed, hookimpl
from alignkit.executor import Work
from alignkit.extras import check_extra

SECONDS = 5.0  # for an address to answer
STORE_BYTES = 2**28  # of Ray's own memory for blocks on their way
AUTO = "auto"
# Ray reports to its authors by default, and its processes write their warnings to this terminal.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
LOGGERS = ("ray", "ray.data")
# Of Ray's processes on this machine: they listen on the loopback interface only and want a token, and workers are as
# important as this process, instead of the least of all.
OWN = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0"}


class Ray(Executor):
    """Workers are actors of Ray Data."""

    class Options(alignkit.Executor.Options):
        workers: int = Field(2, ge=1, le=4096, description="workers, each with models of its own")
        address: str | None = Field(
            None,
            description="Ray cluster: `auto`, which is the one that this machine belongs to, or HOST:PORT; default: "
            "processes of this run on this machine",
        )
        cpus: float = Field(1.0, gt=0, description="processors that Ray reserves for a worker")
        gpus: float = Field(0.0, ge=0, description="GPUs that Ray reserves for a worker, which sees no others")

        @field_validator("address")
        @classmethod
        def _of_a_cluster(cls, address: str | None) -> str | None:
            host, _, port = (address or "").rpartition(":")
            if address not in (None, AUTO) and not (host and "/" not in host and port.isdecimal()):
                raise ValueError(f"address '{address}' must be `auto` or HOST:PORT, such as 10.0.0.5:6379")
            return address

    options: Options
    _folder = ""

    def check(self, folder: Path) -> None:
        check_extra("executor 'ray'", "ray", "ray", "pandas")
        address = self.options.address
        if address == AUTO:
            address = os.environ.get("RAY_ADDRESS") or _own_cluster()
            if not address:
                raise RunFailed(
                    "executor 'ray': this machine belongs to no Ray cluster, so `address: auto` finds none\n"
                    "help: start one with `ray start --head`, write its HOST:PORT, or leave 'address' out"
                )
        if address:
            _check_answers(address)

    def prepare(self, context: ExecutorContext) -> None:
        super().prepare(context)
        for name, value in (QUIET if self.options.address else {**QUIET, **OWN, "RAY_AUTH_TOKEN": token_hex()}).items():
            os.environ.setdefault(name, value)
        import ray
        import ray.data

        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            ray.init(configure_logging=False, log_to_driver=False, **self._place())
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            where = f" at {self.options.address}" if self.options.address else ""
            raise RunFailed(f"executor 'ray': Ray{where} does not start: {_line(error)}") from None
        self._check_room(ray.cluster_resources())
        data = ray.data.DataContext.get_current()
        data.enable_progress_bars = False
        data.print_on_execution_start = False

    def _place(self) -> dict[str, Any]:
        """Where Ray runs, as arguments of its `init`."""
        if self.options.address:
            return {"address": self.options.address}
        self._folder = tempfile.mkdtemp(prefix="alignkit-ray-")  # short: paths of sockets have at most 107 characters
        return {
            "address": "local",
            "num_cpus": max(1, round(self.options.workers * self.options.cpus)),
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            "_temp_dir": self._folder,
        }

    def _check_room(self, found: Mapping[str, float]) -> None:
        """Raise RunFailed if no worker will ever fit. found: the resources of Ray's machines together."""
        for what, name, needed in (("cpus", "CPU", self.options.cpus), ("gpus", "GPU", self.options.gpus)):
            if needed > (has := found.get(name, 0.0)):
                raise RunFailed(f"executor 'ray': a worker needs {what}: {needed:g}, and Ray's machines have {has:g}")

    def run(self, work: Work, blocks: Sequence[str]) -> Iterator[str]:
        import ray
        from ray.data import ActorPoolStrategy

        options = self.options
        # A block of Ray's holds one of ours, so that a worker that is done takes the next one.
        rows = ray.data.from_items([{"block": block} for block in blocks], override_num_blocks=len(blocks))
        replies = rows.map_batches(
            Worker,
            fn_constructor_args=(work,),
            batch_size=1,
            compute=ActorPoolStrategy(size=min(options.workers, len(blocks))),
            num_cpus=options.cpus,
            num_gpus=options.gpus or None,
        )
        try:
            for row in replies.iter_rows():
                yield str(row["reply"])
        except ray.exceptions.RayError as error:
            raise RunFailed(
                f"executor 'ray': {_line(error)}\nhelp: finished rows are kept, and the same command continues"
            ) from None

    def close(self) -> None:
        import ray

        ray.shutdown()  # of an existing cluster only the connection, with which its workers for this run end
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)


class Worker:
    """The actor: calls the work on the block of each batch."""

    def __init__(self, work: Work):
        self.work = work

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        return {"reply": [self.work(str(block)) for block in batch["block"]]}


def _own_cluster() -> str:
    """The address of the cluster that this machine belongs to; empty if it belongs to none."""
    from ray._private.utils import read_ray_address

    return read_ray_address() or ""


def _check_answers(address: str) -> None:
    """Raise RunFailed if nobody answers there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS).close()
    except OSError as error:
        raise RunFailed(
            f"executor 'ray': no Ray cluster answers at {address} ({error.strerror or error})\n"
            "help: `ray status` on the head shows its address; leave 'address' out to use this machine"
        ) from None


def _line(error: BaseException) -> str:
    """The first line of an error."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)


@hookimpl
def register_executors(register: Register) -> None:
    register("ray", Ray, summary="blocks of rows in workers of this machine or of a cluster, with Ray Data")
