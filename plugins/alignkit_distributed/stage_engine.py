"""The engine of a stage: publishes the stage's policies to it, asks it, and checks all that it returns."""

from __future__ import annotations

import hashlib
import math
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch

from alignkit.calls import CallError, blame, create, label_of, mistake
from alignkit.data.group import Group
from alignkit.engine import Completion, Engine, EngineContext
from alignkit.errors import PluginError, RunFailed
from alignkit.io.atomic import make_folder
from alignkit.kernels.memory import release_cached
from alignkit.models.generate import Continuation, Generation, has_stopped
from alignkit.models.packing import measure
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.sampling import KEYS, Sampling
from alignkit.tokens.encoder import Encoded, ResponseTokens
from alignkit_distributed.begun import Begun, Steps
from alignkit_distributed.engine_thread import EngineThread, NoProgress
from alignkit_distributed.engine_turns import play

ROUNDING = 1e-3  # nats by which rounding may lift a log-probability above 0
PROBE = "The café's owner bought 3 apples, 12 pears and a naïve robot; then she said: 'What is 12 + 34?' "


@dataclass(frozen=True)
class _Published:
    version: int
    folder: Path | None
    weights: Weights


class StageEngine:
    """The engine of one stage. It is prepared when it is first asked.

    Raises PluginError, with the engine's plugin, class and method, the stage and the prompt, for an author's mistake.
    """

    def __init__(self, component: Any, folder: Path, *, stage: str, seed: int, say: Callable[[str], None]):
        """component: the recipe's. folder: for published adapters and for files of the engine."""
        self.engine: Engine = create(component, stage)
        self.name, self.folder, self.stage, self.seed, self.say = component.name, folder, stage, seed, say
        # A chat and a server of answers have no stage, and nothing to continue.
        self._again = f"the same command {'continues the run' if stage else 'starts it again'}"
        self._thread = EngineThread(float(component.options.timeout), lambda: None)
        self._published: dict[str, _Published] = {}
        self._forgotten: dict[str, _Published] = {}
        self._idle = False
        self._begun: list[Begun] = []  # samples that may be under way
        self._earlier: dict[str, list[int]] = {}  # versions of a policy, oldest first
        self._folders = 0
        self._asked = ""  # the method that was called last
        self._vocabulary = 0

    # What a stage asks

    def request(self, request: Generation) -> Begun:
        """`generate` from the current weights, while the caller does something else, which may be to change them."""
        version, partner = self._publish(request.model, request.role), request.partner
        # Engines need no more of a stage's `rollout`.
        asked = Sampling(**{key: getattr(request.sampling, key) for key in KEYS})
        whole = replace(request, sampling=asked)

        def turns(contexts: Any, numbers: Sequence[int], most: Sequence[int], fewest: int) -> Steps:
            limits = asked.model_copy(update={"min_new_tokens": fewest, "max_new_tokens": max(most)})
            streams = [[number] for number in numbers]
            turn = replace(request, prompts=contexts, streams=streams, sampling=limits, labels=())
            return self._sample(turn, version, most)

        def steps(done: Callable[[int], None]) -> Steps:
            if partner is None:
                return self._sample(whole, version, [asked.max_new_tokens] * len(request.prompts))
            limits = (asked.min_new_tokens, asked.max_new_tokens)
            return play(turns, request.prompts, request.streams, limits, partner, done)

        begun = Begun(self.asking, self._thread, steps, partner is None, self._rest)
        self._begun = [*(one for one in self._begun if not one.over), begun]
        return begun

    def _rest(self) -> None:
        """Samples are complete. If no others are under way, the engine gives way to what computes next, anywhere."""
        if all(one.over for one in self._begun):
            self._call("idle", self.engine.idle)
            self._idle = True

    def _sample(self, request: Generation, version: int, most: Sequence[int]) -> Steps:
        """Samples of a call. most: tokens of each prompt's samples, which may be fewer than what is asked for."""
        role, labels, sampling = request.role, request.labels, request.sampling
        asked, seeds = [list(prompt) for prompt in request.prompts], [list(numbers) for numbers in request.streams]
        found = yield lambda: self.engine.sample(role, asked, seeds, sampling)
        self._check_count("sample", found, len(asked), "prompt", "a list of completions")
        written = []
        for index, (each, numbers) in enumerate(zip(found, seeds, strict=True)):
            where = f"for prompt {index} ({labels[index]})" if labels else f"for prompt {index}"
            self._check_count("sample", each, len(numbers), "seed", "a Completion", where)
            samples = []
            for k, one in enumerate(each):
                checked = self._checked("sample", one, role, version, f"{where}, sample {k}")
                samples.append(self._continuation(checked, request, version, most[index], where))
            written.append(samples)
        return written

    def forget(self, role: str) -> None:
        """A role is dropped. The engine hears of it before it is asked again."""
        if (published := self._published.pop(role, None)) is not None:
            self._forgotten[role] = published

    def close(self) -> None:
        """End the engine. What goes wrong is only reported: the stage is done, or its error is more important."""
        if not self._thread.started:
            return
        running = self._thread.busy
        wrong = self._thread.close(self.engine.close)
        shutil.rmtree(self.folder, ignore_errors=True)
        left = "; its thread ends with this process"
        if wrong is not None:
            words = (
                f"it did not end in time{left}" if isinstance(wrong, NoProgress) else f"{type(wrong).__name__}: {wrong}"
            )
            self.say(f"warning: {label_of(self.engine)}, in `{type(self.engine).__name__}.close`: {words}")
        if running and self._thread.runs:
            words = f"the call that was given up is still running{left}"
            self.say(f"warning: {label_of(self.engine)}, in `{type(self.engine).__name__}.{self._asked}`: {words}")

    # Weights

    def _publish(self, model: SharedModel, role: str) -> int:
        """Let the engine have a role's current weights; returns their version."""
        if not self._vocabulary:
            self._prepare(model)
        if model.spec.lora is None and role != BASE and not self.engine.whole_models:
            raise RunFailed(f"stage '{self.stage}': engine '{self.name}' takes adapters, and '{role}' is a whole model")
        self._wake(model)
        known, weights = self._published.get(role), Weights(model, role)
        if known is not None and known.weights == weights:
            return known.version
        version = version_of(model, role)
        if known is not None and known.version == version:
            self._published[role] = replace(known, weights=weights)
            return version
        folder = None
        if role != BASE:
            self._folders += 1
            folder = self.folder / "weights" / str(self._folders)
            model.save(role, folder)
        self._call("publish", lambda: self.engine.publish(role, folder, version))
        self._published[role] = _Published(version, folder, weights)
        self._earlier.setdefault(role, []).append(version)
        if known is not None and known.folder is not None:
            shutil.rmtree(known.folder, ignore_errors=True)
        return version

    def _wake(self, model: SharedModel) -> None:
        if self._idle:
            release_cached(model.device)  # which the engine may need
            self._call("wake", self.engine.wake)
            self._idle = False
        while self._forgotten:
            role, published = self._forgotten.popitem()
            self._call("forget", partial(self.engine.forget, role))
            if published.folder is not None:
                shutil.rmtree(published.folder, ignore_errors=True)

    def _prepare(self, model: SharedModel) -> None:
        make_folder(self.folder / "weights")
        make_folder(cache := self.folder / "files")
        self._thread.should_stop = model.should_stop
        config = model.model.config.get_text_config()
        context = EngineContext(
            base=str(model.source),
            revision=model.base.revision,
            model=model.spec,
            dtype=model.dtype_name,
            vocabulary=config.vocab_size,
            max_length=model.context,
            end_ids=frozenset(model.end_ids),
            cache=cache,
            stage=self.stage,
            seed=self.seed,
            progress=self._thread.progress,
            say=self.say,
            **_probe(model),
        )
        release_cached(model.device)
        self._call("prepare", lambda: self.engine.prepare(context))
        self._vocabulary = config.vocab_size

    # Calls

    def _call(self, method: str, function: Callable[[], Any]) -> Any:
        with self.asking(method):
            return self._thread.call(function)

    @contextmanager
    def asking(self, method: str) -> Iterator[None]:
        """Report what goes wrong inside as a mistake of one of the engine's methods, or of the user."""
        if self._thread.given_up:
            raise self._wrong(method, f"an earlier call is still running; {self._again}")
        self._asked = method
        try:
            with blame(self.engine, method):
                yield
        except PluginError as error:
            if isinstance(error.__cause__, NoProgress):
                raise self._hangs(method) from None
            raise
        except RunFailed as error:
            stage = f"stage '{self.stage}', " if self.stage else ""
            raise RunFailed(f"{stage}engine '{self.name}': {error}\nhelp: {self._again}") from error

    def _hangs(self, method: str) -> CallError:
        gave_up = f"it made no progress for {self._thread.timeout:g} seconds and was given up"
        return self._wrong(method, f"{gave_up}; {self._again}, and `timeout` is the engine's option")

    def _wrong(self, method: str, text: str) -> CallError:
        return mistake(self.engine, method, text)

    # What an engine returns

    def _check_count(self, method: str, found: Any, count: int, per: str, what: str, where: str = "altogether") -> None:
        if isinstance(found, str | bytes) or not isinstance(found, Sequence):
            raise self._wrong(method, f"return {what} for each {per}, not {type(found).__name__}")
        if len(found) != count:
            raise self._wrong(method, f"return {what} for each of {count} {per}s, not {len(found)}, {where}")

    def _checked(self, method: str, one: Any, role: str, version: int, where: str) -> Completion:
        """A completion with tokens of the vocabulary, a log-probability of each, and the versions of their weights."""
        if not isinstance(one, Completion):
            raise self._wrong(method, f"{where} return a Completion, not {type(one).__name__}")
        tokens = _plain(one.tokens)
        if tokens is None or not all(map(_is_integer, tokens)):
            raise self._wrong(method, f"{where} `tokens` must be a list of integers, not {one.tokens!r:.80}")
        if foreign := [token for token in tokens if not 0 <= token < self._vocabulary]:
            raise self._wrong(method, f"{where} token {foreign[0]} is not in the vocabulary of {self._vocabulary}")
        versions: list[Any] | None = [one.version] * len(tokens) if _is_integer(one.version) else _plain(one.version)
        if versions is None or len(versions) != len(tokens) or not all(map(_is_integer, versions)):
            raise self._wrong(method, f"{where} `version` must be an integer, or one for each token")
        for each in versions:
            if not self._age(role, each, version) <= getattr(self.engine.options, "max_lag", 0):
                raise self._wrong(method, f"{where} {self._stale(role, each, version)}")
        one = replace(one, version=tuple(versions))
        if one.logprobs is None:
            return replace(one, tokens=tuple(map(int, tokens)))
        logprobs = _plain(one.logprobs)
        if logprobs is None or not all(isinstance(value, Real) for value in logprobs):
            raise self._wrong(method, f"{where} `logprobs` must be a list of numbers, not {one.logprobs!r:.80}")
        if len(logprobs) != len(tokens):
            raise self._wrong(
                method, f"{where} it returned {len(tokens)} tokens, but {len(logprobs)} log-probabilities"
            )
        for place, value in enumerate(logprobs):
            if not (math.isfinite(value) and value <= ROUNDING):
                raise self._wrong(method, f"{where} the log-probability of token {place} is {float(value)}")
        return replace(one, tokens=tuple(map(int, tokens)), logprobs=tuple(map(float, logprobs)))

    def _age(self, role: str, found: Any, wanted: int) -> float:
        """How many versions were published after one until another; infinite if it was not published before."""
        if found == wanted:
            return 0
        published = self._earlier[role][::-1]
        age = published.index(found) - published.index(wanted) if found in published else 0
        return age if age > 0 else math.inf

    def _stale(self, role: str, found: Any, wanted: int) -> str:
        """`it used version 7 of the weights of 'align', but version 9 was published`."""
        age = self._age(role, found, wanted)
        how = "" if age == math.inf else f": these weights are {age} version{'s' if age > 1 else ''} old"
        return f"it used version {found!r:.40} of the weights of '{role}', but version {wanted} was published{how}"

    def _continuation(self, one: Completion, request: Generation, version: int, most: int, where: str) -> Continuation:
        """A sample that ends where it must, without what follows a stop text or exceeds `most` tokens."""
        encoder, sampling = request.encoder, request.sampling
        tokens, logprobs = tuple(one.tokens), one.logprobs
        if sampling.stop and any(stop in encoder.decode(tokens[:-1]) for stop in sampling.stop):
            ends = (k for k in range(1, len(tokens)) if has_stopped(encoder, tokens[:k], sampling.stop))
            count = next(ends, len(tokens))
            tokens, logprobs = tokens[:count], logprobs and logprobs[:count]
        if most < len(tokens) <= sampling.max_new_tokens:
            tokens, logprobs = tokens[:most], logprobs and logprobs[:most]
        if not 0 < len(tokens) <= sampling.max_new_tokens:
            raise self._wrong(
                "sample", f"{where} it returned {len(tokens)} tokens; max_new_tokens is {sampling.max_new_tokens}"
            )
        by_token, stopped = tokens[-1] in encoder.end_ids, has_stopped(encoder, tokens, sampling.stop)
        if not (by_token or stopped) and len(tokens) < most:
            raise self._wrong(
                "sample", f"{where} a response of {len(tokens)} tokens has neither an end token nor a stop text"
            )
        if set(tokens[:-1]) & encoder.end_ids:
            raise self._wrong("sample", f"{where} a response continues after its end token")
        if by_token and len(tokens) <= sampling.min_new_tokens:
            raise self._wrong("sample", f"{where} a response ends before min_new_tokens {sampling.min_new_tokens}")
        versions = one.version if isinstance(one.version, Sequence) else [one.version]
        stale = max(int(self._age(request.role, each, version)) for each in versions[: len(tokens)])
        return Continuation(tokens, None if logprobs is None else tuple(logprobs), by_token or stopped, staleness=stale)


class Weights:
    """The state of a role's weights, which costs nothing to take: two are equal only if no weight changed between."""

    def __init__(self, model: SharedModel, role: str):
        parameters = model.parameters_of(role).values() if role != BASE else ()
        self._parameters = [weakref.ref(parameter) for parameter in parameters]  # an address may be used again
        self._state = model.updates, [(parameter._version, parameter.data_ptr()) for parameter in parameters]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Weights) or len(self._parameters) != len(other._parameters):
            return False
        pairs = zip(self._parameters, other._parameters, strict=True)
        return self._state == other._state and all(a() is not None and a() is b() for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]


def version_of(model: SharedModel, role: str) -> int:
    """A number that changes with a role's weights: at least 0, below 2**31; 0 is the base.

    It depends on nothing else, so a service that outlives a run cannot take old weights for new ones.
    """
    if role == BASE:
        return 0
    found = hashlib.blake2b(digest_size=4)
    for name, parameter in model.parameters_of(role).items():
        found.update(name.encode())
        found.update(parameter.detach().to("cpu").contiguous().view(torch.uint8).numpy().tobytes())
    return 1 + int.from_bytes(found.digest(), "little") % (2**31 - 1)


def _probe(model: SharedModel) -> dict[str, Any]:
    """A text for `EngineContext`, with its tokens and the base's log-probabilities of them."""
    tokens = tuple(model.tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    rest = ResponseTokens(tokens[1:], (True,) * (len(tokens) - 1))
    (measured,) = measure(model, BASE, [Encoded(Group(()), tokens[:1], (rest,))], "logprobs")
    return {"probe_text": PROBE, "probe_tokens": tokens, "probe_logprobs": measured.tolist()}


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _plain(values: Any) -> list[Any] | None:
    """A list, tuple, array or tensor of one dimension as a list."""
    if isinstance(values, str | bytes | bytearray):
        return None
    values = values.tolist() if hasattr(values, "tolist") else values
    return list(values) if isinstance(values, Sequence) else None
