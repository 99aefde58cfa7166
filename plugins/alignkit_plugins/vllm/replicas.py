"""Servers behind one engine: the least loaded is asked, and one that fails ends the call.

All requests are sent from one event loop, in the thread of the engine's calls.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from alignkit import RunFailed

LEAVING = 20.0  # seconds for servers to be left as they were
ENDING = 5.0  # seconds for a call to end before that
POLL = 0.01  # seconds between two looks at whether it has ended
# Seconds after an attempt whose connection broke; the last one is not followed by another
PAUSES = (0.2, 1.0, 0.0)
KEPT = 2.0  # seconds that a connection is kept unused; servers close theirs after 5

ADDRESS = "name the address only, such as http://10.0.0.5:8000"
WANTS_KEY = "wants a key: name its environment variable in api_key_env"
ADAPTERS = (
    "start it with --enable-lora, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment"
)


DEVELOPMENT = (
    "neither sleeps nor reads whole models: start it with VLLM_SERVER_DEV_MODE=1 in its "
    "environment, and with --enable-sleep-mode for 'sleep'"
)


class Fault(Exception):
    """What is wrong with a server, or with the request that it refused."""

    def __init__(self, text: str, status: int = 0):
        super().__init__(text)
        self.status = status

    @property
    def refused(self) -> bool:
        return 400 <= self.status < 500 and self.status not in (404, 408, 429)


class Replica:
    """One server.

    active: requests that it is answering. base: its name of the base. room: most tokens of a
    sequence. processed: its log-probabilities are those after temperature and filters. adapters:
    the names of those that it has. root: where it has the base from. weights: the folder of the
    whole model that it has instead; empty for the base, None if it is not known.
    """

    def __init__(self, url: str, client: Any, timeout: float):
        """timeout: seconds without any answer, as requests wait for each other."""
        self.url, self._client, self._timeout = url, client, timeout
        self._limits: set[asyncio.Timeout] = set()  # of the requests that it is answering
        self.active, self.base, self.room, self.processed = 0, "", 0, False
        self.adapters: set[str] = set()
        self.root, self.weights = "", None  # type: str, str | None

    async def look(self) -> None:
        """Ask what it serves. Raises RunFailed if it is no server of vLLM, or wants a key."""
        text = await self.send("GET", "/v1/models")
        try:
            models = json.loads(text)["data"]
            base = next(model for model in models if not model.get("parent"))
            self.base, self.room = str(base["id"]), int(base["max_model_len"])
            self.root, self.weights = str(base.get("root") or base["id"]), None
        except (ValueError, KeyError, TypeError, StopIteration):
            raise RunFailed(
                f"{self.url} is no server of vLLM: as its list of models it sends "
                f"{_start(text)!r}; {ADDRESS}"
            ) from None
        self.adapters = {str(model["id"]) for model in models if model.get("parent")}

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON of its answer. Raises Fault."""
        text = await self.send("POST", path, body)
        try:
            return json.loads(text)
        except ValueError:
            raise Fault(f"its answer to {path} is not JSON: {_start(text)}") from None

    async def exchange(self, before: str, name: str, path: str) -> None:
        """Load an adapter under a name, after unloading the version before it. Either may be
        empty.
        """
        # It may have one of this name from a run that was killed
        for old in {before, name} & self.adapters:
            await self.send("POST", "/v1/unload_lora_adapter", {"lora_name": old})
            self.adapters.discard(old)
        if not name:
            return
        try:
            await self.send("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        except Fault as fault:
            if fault.status:
                reads = (
                    f"let it read {path}: it needs the file system of this machine, under the "
                    "same path"
                )
                needs = "start it with a larger --max-lora-rank" if "rank" in str(fault) else reads
                raise RunFailed(f"{self.url} does not load the adapter: {fault}; {needs}") from None
            raise
        self.adapters.add(name)

    async def check_adapters(self) -> None:
        """Raise RunFailed if it takes no adapters while it runs. One that does says that it has
        none of this name.
        """
        try:
            await self.send("POST", "/v1/unload_lora_adapter", {"lora_name": "alignkit-none"})
        except Fault as fault:
            if fault.status and "dapter" not in str(fault):  # there is no such path
                raise RunFailed(f"{self.url} takes no adapters while it runs: {ADAPTERS}") from None
            if not fault.status:
                raise

    async def develop(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask for what vLLM offers in development mode only. Raises RunFailed if the server is in
        none.
        """
        try:
            return await self.post(path, body or {})
        except Fault as fault:
            if fault.status in (404, 405):
                raise RunFailed(f"{self.url} {DEVELOPMENT}") from None
            raise

    async def reload(self, folder: str) -> None:
        """Read the weights of a whole model in place; folder: empty for the base."""
        if folder == self.weights:
            return
        self.weights = None
        asked = {"method": "reload_weights", "kwargs": {"weights_path": folder or self.root}}
        await self.develop("/collective_rpc", asked)
        # What it has computed of prompts before is of the other weights.
        if not (await self.develop("/reset_prefix_cache"))["success"]:
            raise Fault("it did not forget what it had computed with other weights")
        self.weights = folder

    async def send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> str:
        """The text of its answer. Raises Fault, and RunFailed if it wants a key."""
        import httpx2

        content = None if body is None else json.dumps(body).encode()
        for pause in PAUSES:
            try:
                answer = await self._answered(method, path, content)
                break
            except TimeoutError:
                raise Fault(
                    f"no answer within {self._timeout:g} seconds; if it is only slow, raise "
                    "'timeout'"
                ) from None
            except (httpx2.TransportError, httpx2.InvalidURL) as error:
                if not pause:
                    said = f"{type(error).__name__}: {error}".rstrip(": ")
                    raise Fault(
                        f"{said}; does it begin with http://?" if "[SSL" in said else said
                    ) from None
                await asyncio.sleep(pause)
        status, text = answer.status_code, answer.text
        if status in (401, 403):
            given = "Authorization" in self._client.headers
            what = (
                "takes another key than the variable in api_key_env holds" if given else WANTS_KEY
            )
            raise RunFailed(f"{self.url} {what} (HTTP {status})")
        if status != 200:
            raise Fault(
                f"HTTP {status}: {_start(text)}{'; its log says more' if status >= 500 else ''}",
                status,
            )
        return str(text)

    async def _answered(self, method: str, path: str, content: bytes | None) -> Any:
        """Its answer. Raises TimeoutError if it answers this request too late, and no other one
        meanwhile.
        """
        async with asyncio.timeout(self._timeout) as limit:
            self._limits.add(limit)
            try:
                answer = await self._client.request(method, self.url + path, content=content)
            finally:
                self._limits.discard(limit)
        for each in self._limits:
            each.reschedule(asyncio.get_running_loop().time() + self._timeout)
        return answer


# (server, request, answer) -> what is made of the answer. Raises Fault for one that cannot be
# right.
Read = Callable[[Replica, dict[str, Any], Any], Any]
Work = Callable[[Replica], Coroutine[Any, Any, None]]


class Replicas:
    """All servers of an engine."""

    def __init__(
        self,
        urls: Sequence[str],
        key: str,
        timeout: float,
        concurrency: int,
        explain: Callable[[], str] = lambda: "; start one there, or change 'url'",
    ):
        """timeout: seconds for an answer. concurrency: requests to each at once. explain: adds why
        a server ended.
        """
        import httpx2

        headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {key}"} if key else {}),
        }
        # Proxies of the environment are for the internet, and servers here are this user's.
        limits = httpx2.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEPT
        )
        self._client = httpx2.AsyncClient(
            headers=headers, timeout=None, limits=limits, trust_env=False
        )
        self.all = [Replica(url, self._client, timeout) for url in urls]
        self._runner = asyncio.Runner()
        self._concurrency, self._explain = concurrency, explain

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)

    async def each(self, work: Work) -> None:
        """Do something with every server. Raises RunFailed if one cannot."""

        async def guarded(replica: Replica) -> None:
            try:
                await work(replica)
            except Fault as fault:
                if fault.refused or fault.status == 404:
                    raise RunFailed(
                        f"{replica.url} is no server of vLLM that fits: {fault}; {ADDRESS}"
                    ) from None
                raise self._failed(replica, fault) from None

        await _all_of(guarded(replica) for replica in self.all)

    async def ask(
        self,
        adapter: str,
        bodies: Sequence[Mapping[str, Any]],
        read: Read,
        done: Callable[[int], None],
    ) -> list[Any]:
        """What `read` makes of the answers, in order. adapter: empty for the base. done: is given
        their number.
        """
        found: list[Any] = [None] * len(bodies)
        waiting, count = deque(range(len(bodies))), 0

        async def worker() -> None:
            nonlocal count
            while waiting:
                index = waiting.popleft()
                found[index] = await self._answer(adapter, bodies[index], read)
                done(count := count + 1)

        workers = min(len(bodies), self._concurrency * len(self.all))
        await _all_of(worker() for _ in range(workers))
        return found

    async def _answer(self, adapter: str, body: Mapping[str, Any], read: Read) -> Any:
        """The answer of the least loaded server."""
        replica = min(self.all, key=lambda one: one.active)
        asked = {**body, "model": adapter or replica.base}
        replica.active += 1
        try:
            return read(replica, asked, await replica.post("/v1/completions", asked))
        except (KeyError, IndexError, TypeError) as error:
            fault = Fault(f"its answer cannot be read: {type(error).__name__}: {error}")
            raise self._failed(replica, fault) from None
        except Fault as fault:
            if fault.refused:
                raise RunFailed(f"{replica.url} refuses the request: {fault}") from None
            raise self._failed(replica, fault) from None
        finally:
            replica.active -= 1

    def _failed(self, replica: Replica, fault: Fault) -> RunFailed:
        return RunFailed(f"{replica.url} cannot be used: {fault}{self._explain()}")

    def close(self, leave: Work | None = None) -> None:
        """Do what can be done with every server at last. A call in another thread is ended."""
        loop, until = self._runner.get_loop(), time.monotonic() + ENDING
        if loop.is_running():
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        while loop.is_running() and time.monotonic() < until:
            time.sleep(POLL)
        if not loop.is_running():
            self._runner.run(self._left(leave))
            self._runner.close()

    async def _left(self, leave: Work | None) -> None:
        await _all_of(_tried(leave, replica) for replica in self.all if leave)
        await self._client.aclose()


async def _tried(work: Work, replica: Replica) -> None:
    """Do what may fail."""
    with suppress(Fault, RunFailed, TimeoutError):
        async with asyncio.timeout(LEAVING):
            await work(replica)


async def _all_of(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all at once. The first failure ends the others."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _start(text: str) -> str:
    """The beginning of what a server says, on one line."""
    with suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["error"]["message"]
    return " ".join(text.split())[:300]
