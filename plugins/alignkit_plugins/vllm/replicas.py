"""Servers behind one engine: the least loaded is asked, and one that fails ends the call.

All requests are sent from one event loop, in the thread of the engine's calls. None has a limit of
time: the stage gives up a call that makes no progress.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from alignkit import RunFailed

LEAVING = 20.0  # seconds for servers to be left as they were
ENDING = 5.0  # seconds for a call to end before that
POLL = 0.01  # seconds between two looks at whether it has ended
KEPT = 2.0  # seconds that a connection is kept unused; servers close theirs after 5
RETRIES = 2  # attempts for a connection that nobody takes

ADDRESS = "name the address only, such as http://10.0.0.5:8000"
ADAPTERS = (
    "start it with --enable-lora, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment"
)
ASLEEP = (
    "does not sleep: start it with VLLM_SERVER_DEV_MODE=1 in its environment, and with "
    "--enable-sleep-mode"
)


@dataclass(eq=False)
class Replica:
    """One server.

    explain: adds why a server ended. active: requests that it is answering. base: its name of the
    base. room: most tokens of a sequence. adapters: the names of those that it has.
    """

    url: str
    client: Any
    explain: Callable[[], str]
    active: int = 0
    base: str = ""
    room: int = 0
    adapters: set[str] = field(default_factory=set)

    def failed(self, text: str) -> RunFailed:
        return RunFailed(f"{self.url} cannot be used: {text}{self.explain()}")

    async def send(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """Status and text of its answer. Raises RunFailed if there is none, or it wants a key."""
        import httpx2

        try:
            answer = await self.client.request(method, self.url + path, json=body)
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            text = f"{type(error).__name__}: {error}".rstrip(": ")
            if "[SSL" in text:
                text += "; does it begin with http://?"
            raise self.failed(text) from None
        if answer.status_code in (401, 403):
            what = "wants a key: name its environment variable in api_key_env"
            if "Authorization" in self.client.headers:
                what = "takes another key than the variable in api_key_env holds"
            raise RunFailed(f"{self.url} {what} (HTTP {answer.status_code})")
        return answer.status_code, answer.text

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON of its answer. Raises RunFailed if it refuses the request."""
        status, text = await self.send("POST", path, body)
        if status != 200:
            raise self.failed(f"HTTP {status}: {start_of(text)}")
        try:
            return json.loads(text)
        except ValueError:
            raise self.failed(f"its answer to {path} is not JSON: {start_of(text)}") from None

    async def read_models(self) -> None:
        """Ask what it serves. Raises RunFailed if it is no server of vLLM, or wants a key."""
        _, text = await self.send("GET", "/v1/models")
        self.adapters, served = set(), None
        try:
            for model in json.loads(text)["data"]:
                if model.get("parent"):
                    self.adapters.add(str(model["id"]))
                else:
                    served = model
            assert served is not None
            self.base, self.room = str(served["id"]), int(served["max_model_len"])
        except (ValueError, KeyError, TypeError, AssertionError):
            raise RunFailed(
                f"{self.url} is no server of vLLM: as its list of models it sends "
                f"{start_of(text)!r}; {ADDRESS}"
            ) from None

    async def exchange(self, before: str, name: str, path: str) -> None:
        """Load an adapter under a name, after unloading the version before it. Either may be
        empty.
        """
        # It may have one of this name from a run that was killed.
        for old in {before, name} & self.adapters:
            await self.send("POST", "/v1/unload_lora_adapter", {"lora_name": old})
            self.adapters.discard(old)
        if not name:
            return
        body = {"lora_name": name, "lora_path": path}
        status, text = await self.send("POST", "/v1/load_lora_adapter", body)
        if status != 200:
            help = f"let it read {path}: it needs the file system of this machine"
            if "rank" in text:
                help = "start it with a larger --max-lora-rank"
            reason = f"HTTP {status}: {start_of(text)}"
            raise RunFailed(f"{self.url} does not load the adapter: {reason}; {help}")
        self.adapters.add(name)

    async def check_adapters(self) -> None:
        """Raise RunFailed if it takes no adapters while it runs. One that does says that it has
        none of this name.
        """
        body = {"lora_name": "alignkit-none"}
        status, text = await self.send("POST", "/v1/unload_lora_adapter", body)
        if status != 200 and "dapter" not in text:  # there is no such path
            raise RunFailed(f"{self.url} takes no adapters while it runs: {ADAPTERS}")

    async def rest(self, path: str) -> None:
        """Let it sleep or wake. Raises RunFailed if it cannot."""
        status, text = await self.send("POST", path, {})
        if status in (404, 405):
            raise RunFailed(f"{self.url} {ASLEEP}")
        if status != 200:
            raise self.failed(f"HTTP {status}: {start_of(text)}")


Work = Callable[[Replica], Coroutine[Any, Any, Any]]


class Replicas:
    """All servers of an engine."""

    def __init__(
        self,
        urls: Sequence[str],
        key: str,
        concurrency: int = 1,
        explain: Callable[[], str] = lambda: "; start one there, or change 'url'",
    ):
        """concurrency: requests to each at once. explain: adds why a server ended."""
        import httpx2

        # Proxies of the environment are for the internet, and servers here are this user's.
        limits = httpx2.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEPT
        )
        transport = httpx2.AsyncHTTPTransport(limits=limits, retries=RETRIES, trust_env=False)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.AsyncClient(headers=headers, timeout=None, transport=transport)
        self.all = [Replica(url, self._client, explain) for url in urls]
        self._runner, self._concurrency = asyncio.Runner(), concurrency

    def each(self, work: Work) -> None:
        """Do something with every server."""
        self._runner.run(_all_of(map(work, self.all)))

    def ask(
        self,
        bodies: Sequence[Mapping[str, Any]],
        read: Callable[[Mapping[str, Any], Any], Any],
        done: Callable[[int], None],
    ) -> list[Any]:
        """What `read` makes of requests and their answers, in order. A request without a model is
        for the base. done: is given the number of answers.
        """
        count = 0
        slots = asyncio.Semaphore(self._concurrency * len(self.all))

        async def answer(body: Mapping[str, Any]) -> Any:
            nonlocal count
            async with slots:
                replica = min(self.all, key=lambda one: one.active)
                request = {**body, "model": body["model"] or replica.base}
                replica.active += 1
                try:
                    result = read(request, await replica.post("/v1/completions", request))
                except (ValueError, KeyError, IndexError, TypeError) as error:
                    text = f"its answer cannot be read: {type(error).__name__}: {error}"
                    raise replica.failed(text) from None
                finally:
                    replica.active -= 1
            count += 1
            done(count)
            return result

        return self._runner.run(_all_of(map(answer, bodies)))

    def close(self, leave: Work | None = None) -> None:
        """Do what can be done with every server at last. A call in another thread is ended."""
        loop, until = self._runner.get_loop(), time.monotonic() + ENDING
        if loop.is_running():
            loop.call_soon_threadsafe(_cancel_all, loop)
        while loop.is_running() and time.monotonic() < until:
            time.sleep(POLL)
        if not loop.is_running():
            self._runner.run(self._left(leave))
            self._runner.close()

    async def _left(self, leave: Work | None) -> None:
        for replica in self.all:
            with suppress(RunFailed, TimeoutError):
                async with asyncio.timeout(LEAVING):
                    if leave is not None:
                        await leave(replica)
        await self._client.aclose()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()


async def _all_of(works: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results of all, which run at once. The first failure ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = list(map(group.create_task, works))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def start_of(text: str) -> str:
    """The beginning of what a server says, on one line."""
    with suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["error"]["message"]
    return " ".join(text.split())[:300]
