"""The engine of a stage: publishes the stage's policies to it, asks it, and checks all that it
returns.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import index as as_integer
from pathlib import Path
from queue import SimpleQueue
from time import monotonic as now
from typing import Any

import torch

from alignkit.contract.engine import Completion, Engine, EngineSetup
from alignkit.contract.settings import KEYS, Sampling
from alignkit.errors import PluginError, RunFailed
from alignkit.host import returns
from alignkit.host.calls import attributed_to, create, label_of, mistake
from alignkit.io.atomic import make_folder
from alignkit.io.text import Say
from alignkit.kernels.memory import release_cached
from alignkit.models.generate import (
    Completions,
    Done,
    EngineCall,
    SamplingRequest,
    StageEngine,
    has_ended,
    has_stopped,
)
from alignkit.models.packing import measure
from alignkit.models.shared_model import UNMODIFIED, SharedModel
from alignkit.tokens.encoder import Encoded

POLL = 0.05  # seconds between two looks at a call
CLOSING = 30.0  # seconds for an engine to close
ENDING = 1.0  # seconds for the thread to end after that
ROUNDING = 1e-3  # nats by which rounding may lift a log-probability above 0
PROBE = (
    "The café's owner bought 3 apples, 12 pears and a naïve robot; then she said: 'What is 12 + "
    "34?' "
)


class NoProgress(Exception):
    """A call has made no progress for too long."""


@dataclass(eq=False)
class EngineThread:
    """Runs one call of an engine after another. They share a thread, because libraries may require
    that.

    A call that hangs is given up, and its thread ends with the process. timeout: seconds without
    progress.
    """

    timeout: float
    should_stop: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._last: Future[Any] | None = None
        self._moved, self._count = 0.0, 0

    @property
    def busy(self) -> bool:
        return self._last is not None and not self._last.done()

    @property
    def runs(self) -> bool:
        """Whether the thread has begun and not ended."""
        return self._thread.is_alive()

    def progress(self, count: int) -> None:
        """Called by the engine: `count` parts of its call are done."""
        if count > self._count:
            self._moved, self._count = now(), count

    def begin(self, function: Callable[[], Any]) -> Future[Any]:
        """Let the thread run a function while the caller does something else; `wait` has its
        result. A call that is running is waited for first.
        """
        if self._last is None:
            self._thread.start()
        else:
            self._until_done(self._last, lambda count: None)
        self._moved, self._count, self._last = now(), 0, Future()
        self._calls.put((self._last, function))
        return self._last

    def wait(self, call: Future[Any], done: Callable[[int], None] = lambda count: None) -> Any:
        """A call's result; raises what the call does, NoProgress, and what `should_stop` raises."""
        self._until_done(call, done)
        return call.result()

    def _until_done(self, call: Future[Any], done: Callable[[int], None]) -> None:
        while not futures.wait([call], POLL).done:
            self.should_stop()
            done(self._count)
            if now() - self._moved > self.timeout:
                raise NoProgress

    def close(self, function: Callable[[], Any]) -> BaseException | None:
        """Run an engine's `close`, in another thread if a call is running; returns what went
        wrong.
        """
        closing = EngineThread(CLOSING) if self.busy else self
        call = closing.begin(function)
        try:
            error = call.exception(CLOSING)
        except futures.TimeoutError:
            error = NoProgress(f"not done after {CLOSING:g} seconds")
        for thread in (self, closing):
            thread._calls.put(None)
        self._thread.join(ENDING)  # a call that is running may end now that the engine is closed
        return error

    def _run(self) -> None:
        for call, function in iter(self._calls.get, None):
            try:
                call.set_result(function())
            except BaseException as error:  # `wait` raises it
                call.set_exception(error)


class PluginCall(EngineCall):
    """A request that a plugin's engine answers while the caller does something else."""

    def __init__(self, engine: PluginEngine, version: int, request: SamplingRequest):
        """version: of the policy's weights."""
        super().__init__(request)
        self.engine, self.version = engine, version
        self.rooms = list(map(request.room, range(len(request.prompts))))
        most = max(self.rooms, default=request.sampling.max_new_tokens)
        # Engines need no more of a stage's `rollout`.
        values = request.sampling.model_dump(include={*KEYS})
        least = min(request.sampling.min_new_tokens, most)
        self.limits = Sampling(**{**values, "max_new_tokens": most, "min_new_tokens": least})
        prompts, numbers = list(map(list, request.prompts)), list(map(list, request.streams))

        def sampled() -> Any:
            began = now()
            try:
                return engine.engine.sample(request.role, prompts, numbers, self.limits)
            finally:
                self.seconds += now() - began

        with engine.asking("sample"):
            self._call = engine.thread.begin(sampled)

    def result(self, done: Done = lambda responses: None) -> Completions:
        """Wait for the samples, and check them."""
        samples: Completions = []
        with self.engine.asking("sample"):
            returned = self.engine.thread.wait(self._call, done)
            returns.listing(
                returned,
                "a list of Completions",
                lambda each: isinstance(each, Sequence),
                len(self.rooms),
            )
            for index, completions in enumerate(returned):
                where = f"for prompt {index}"
                if self.request.labels:
                    where += f" ({self.request.labels[index]})"
                count = len(self.request.streams[index])
                returns.listing(
                    completions,
                    f"a Completion, {where}",
                    lambda each: isinstance(each, Completion),
                    count,
                )
                samples.append([])
                for k, completion in enumerate(completions):
                    try:
                        samples[-1].append(self._read(completion, self.rooms[index]))
                    except ValueError as error:
                        raise PluginError(f"{where}, sample {k} {error}") from None
        self.engine.rest()
        done(sum(map(len, samples)))
        return samples

    def follow(self, request: SamplingRequest) -> Completions:
        """See `EngineCall`."""
        return self.engine.request(request, self.version).result()

    def drop(self) -> None:
        """Wait for the call that is running, whose samples nobody wants any more. It may fail."""
        with suppress(Exception):
            self.engine.thread.wait(self._call)
        with suppress(Exception):
            self.engine.rest()

    def _read(self, one: Completion, room: int) -> Completion:
        """A completion, without what follows a stop text or exceeds the room. Raises ValueError if
        anything is wrong with it.
        """
        tokens, logprobs = list(map(as_integer, one.tokens)), one.logprobs
        for token in tokens:
            if not 0 <= token < self.engine.vocabulary:
                raise ValueError(
                    f"token {token} is not in the vocabulary of {self.engine.vocabulary}"
                )
        if one.version != self.version:
            used = f"it used version {one.version!r:.40} of the weights of '{self.request.role}'"
            raise ValueError(f"{used}, but version {self.version} was published")
        if logprobs is not None:
            logprobs = _logprobs(logprobs, len(tokens))
        tokens = self._ended(tokens, room)
        return Completion(tuple(tokens), logprobs and logprobs[: len(tokens)], self.version)

    def _ended(self, tokens: list[int], room: int) -> list[int]:
        """The tokens up to the end of the response. Raises ValueError if it ends in a wrong place."""
        encoder, limits = self.request.encoder, self.limits
        for k in range(1, len(tokens)):
            if has_stopped(encoder, tokens[:k], limits.stop):
                tokens = tokens[:k]
                break
        most = limits.max_new_tokens
        if not 0 < len(tokens) <= most:
            raise ValueError(f"it returned {len(tokens)} tokens; max_new_tokens is {most}")
        tokens = tokens[:room]
        if len(tokens) < room and not has_ended(encoder, tokens, limits.stop):
            raise ValueError(
                f"a response of {len(tokens)} tokens has neither an end token nor a stop text"
            )
        if not encoder.end_ids.isdisjoint(tokens[:-1]):
            raise ValueError("a response continues after its end token")
        if tokens[-1] in encoder.end_ids and len(tokens) <= limits.min_new_tokens:
            raise ValueError(f"a response ends before min_new_tokens {limits.min_new_tokens}")
        return tokens


def _logprobs(given: Sequence[float], tokens: int) -> tuple[float, ...]:
    """One log-probability for each token. Raises ValueError for anything else."""
    logprobs = tuple(map(float, given))
    if len(logprobs) != tokens:
        raise ValueError(f"it returned {tokens} tokens, but {len(logprobs)} log-probabilities")
    for value in logprobs:
        if not (math.isfinite(value) and value <= ROUNDING):
            raise ValueError(f"a log-probability is {value}")
    return logprobs


@dataclass(eq=False)
class PluginEngine(StageEngine):
    """A plugin's engine in one stage. It is prepared when it is first asked.

    component: the recipe's. folder: for published adapters and for files of the engine.

    Raises PluginError, with the engine's plugin, class and method, the stage and the prompt, for an
    author's mistake.
    """

    component: Any
    folder: Path
    stage: str
    seed: int
    say: Say

    samples_for_all = True

    def __post_init__(self) -> None:
        self.engine: Engine = create(self.component, self.stage)
        self.thread = EngineThread(float(self.component.options.timeout))
        self.vocabulary = 0  # 0: not prepared yet
        # Version and folder of each policy
        self._published: dict[str, tuple[int, Path | None]] = {}
        self._under_way, self._idle, self._folders = 0, False, 0

    # What a stage asks

    def request(self, request: SamplingRequest, version: int | None = None) -> PluginCall:
        """Samples from the current weights, which the caller may change while the engine writes.

        version: of the weights that were published last, to sample from these instead.
        """
        self._wake(request.model)
        if version is None:
            version = self._publish(request.model, request.role)
        self._under_way += 1
        return PluginCall(self, version, request)

    def rest(self) -> None:
        """Samples are complete. If no others are under way, the engine gives way to what computes
        next, anywhere.
        """
        self._under_way -= 1
        if not self._under_way:
            self._call("idle", self.engine.idle)
            self._idle = True

    def close(self) -> None:
        """End the engine. What goes wrong is only reported: the stage is done, or its error is more
        important.
        """
        if not self.thread.runs:
            return
        wrong = self.thread.close(self.engine.close)
        shutil.rmtree(self.folder, ignore_errors=True)
        where = f"warning: {label_of(self.engine)}, in `{type(self.engine).__name__}.close`"
        if wrong is not None:
            self.say(f"{where}: {type(wrong).__name__}: {wrong}")
        if self.thread.runs:
            self.say(f"{where}: a call is still running; its thread ends with this process")

    # Weights

    def _wake(self, model: SharedModel) -> None:
        if not self.vocabulary:
            self._prepare(model)
        if self._idle:
            release_cached(model.device)  # the engine may need this memory
            self._call("wake", self.engine.wake)
            self._idle = False

    def _publish(self, model: SharedModel, role: str) -> int:
        """Let the engine have a role's current weights; returns their version."""
        version, folder = version_of(model, role), None
        last, before = self._published.get(role, (None, None))
        if version == last:
            return version
        if role != UNMODIFIED:
            self._folders += 1
            folder = self.folder / "weights" / str(self._folders)
            model.save(role, folder)
        self._call("publish", lambda: self.engine.publish(role, folder, version))
        self._published[role] = version, folder
        if before is not None:
            shutil.rmtree(before, ignore_errors=True)
        return version

    def _prepare(self, model: SharedModel) -> None:
        make_folder(self.folder / "weights")
        cache = self.folder / "files"
        make_folder(cache)
        self.thread.should_stop = model.should_stop
        vocabulary = model.model.config.get_text_config().vocab_size
        setup = EngineSetup(
            base=str(model.source),
            revision=model.origin.revision,
            model=model.spec,
            dtype=model.dtype_name,
            vocabulary=vocabulary,
            max_length=model.context_length,
            end_ids=frozenset(model.end_ids),
            cache=cache,
            stage=self.stage,
            seed=self.seed,
            progress=self.thread.progress,
            say=self.say,
            **_probe(model),
        )
        release_cached(model.device)
        self._call("prepare", lambda: self.engine.prepare(setup))
        self.vocabulary = vocabulary

    # Calls

    def _call(self, method: str, function: Callable[[], Any]) -> Any:
        with self.asking(method):
            return self.thread.wait(self.thread.begin(function))

    @contextmanager
    def asking(self, method: str) -> Iterator[None]:
        """Report what goes wrong inside as a mistake of one of the engine's methods, or of the
        user.
        """
        # A chat and a server of answers have no stage, and nothing to continue.
        again = f"the same command {'continues the run' if self.stage else 'starts it again'}"
        try:
            with attributed_to(self.engine, method):
                yield
        except PluginError as error:
            if isinstance(error.__cause__, NoProgress):
                hangs = f"it made no progress for {self.thread.timeout:g} seconds and was given up"
                text = f"{hangs}; {again}, and `timeout` is the engine's option"
                raise mistake(self.engine, method, text) from None
            raise
        except RunFailed as error:
            stage = f"stage '{self.stage}', " if self.stage else ""
            raise RunFailed(
                f"{stage}engine '{self.component.name}': {error}\nhelp: {again}"
            ) from error


def version_of(model: SharedModel, role: str) -> int:
    """A number that changes with a role's weights: at least 0, below 2**31; 0 is the base.

    It depends on nothing else, so a service that outlives a run cannot take old weights for new
    ones.
    """
    if role == UNMODIFIED:
        return 0
    sums = []
    for name, parameter in model.parameters_of(role).items():
        # Summed where they are, at their speed
        bits = parameter.detach().contiguous().flatten().view(torch.int16)
        sums.append((name, int(bits.sum(dtype=torch.int64)), int(bits[::3].sum(dtype=torch.int64))))
    content = hashlib.blake2b(repr(sums).encode(), digest_size=4).digest()
    return 1 + int.from_bytes(content, "little") % (2**31 - 1)


def _probe(model: SharedModel) -> dict[str, Any]:
    """A text for `EngineSetup`, with its tokens and the base's log-probabilities of them."""
    tokens = tuple(model.tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    (measured,) = measure(model, UNMODIFIED, [Encoded.of(tokens[:1], tokens[1:])])["logprobs"]
    return {"probe_text": PROBE, "probe_tokens": tokens, "probe_logprobs": measured.tolist()}
