"""The engine `vllm`: what it asks servers for, so that they mean what alignkit's own engine means.

Tokens go there and come back, never text. The base is loaded once by each server; every version of
a policy is an adapter of its own name, loaded when it is published, and the one before is unloaded.
With `lora: none` a server has the weights of one policy at a time, and reads those of another in
place. vLLM batches what arrives, and rounds by how it batches: the same call need not return the
same tokens.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator

from alignkit import Completion, Engine, EngineContext, RunFailed, Sampling
from alignkit.engine import EngineOptions
from alignkit_plugins.ai_feedback.remote import checked_address, key_of
from alignkit_plugins.vllm.importance import Importance
from alignkit_plugins.vllm.own_server import OwnServer
from alignkit_plugins.vllm.replicas import Fault, Replica, Replicas

NAME = "engine 'vllm'"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM reserves memory for
# No reports to vLLM's authors, and adapters while it runs.
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_API_KEY": "{key}",
}
NEUTRAL = {  # a server may take other defaults from the model's generation_config.json
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "add_special_tokens": False,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
}
TIED = (
    "samples on a CPU, where vLLM reads weights in place but not those of a head that shares "
    "them with the embeddings, as the base's does; write 'engine: local', or train an adapter"
)
MAX_GAP = 0.1  # nats: mean difference of a text's log-probabilities, server's against training's
ROUNDING = 1e-3  # nats by which rounding may lift a log-probability above 0
# Nats: after `top_k: 1` the chosen token has probability 1, if the server counts filters in
PROCESSED = 1e-6


class Vllm(Engine):
    """Samples with vLLM's completions, one request for each sample, and weights loaded while it
    runs.
    """

    whole_models: ClassVar[bool] = True
    repeats: ClassVar[bool] = False

    class Options(EngineOptions):
        url: str | list[str] | None = Field(
            None,
            description=(
                "addresses of running servers, such as http://10.0.0.5:8000, each with the "
                "recipe's base; default: the run starts one on this machine"
            ),
        )
        api_key_env: str = Field(
            "", description="environment variable that holds the servers' key (not the key)"
        )
        command: str = Field(
            "vllm serve",
            description="command that starts a server; the base and flags are appended",
        )
        flags: str = Field(
            "", description="more flags for it, such as '--gpu-memory-utilization 0.5'"
        )
        sleep: bool = Field(
            False,
            description=(
                "let servers leave the GPU's memory while alignkit computes: for one GPU that "
                "both use in turns; costs seconds per iteration"
            ),
        )
        importance: Importance | None = Field(
            None,
            description=(
                "weights that correct for samples whose probabilities differ from those of "
                "training, such as {cap: 2}; default: none"
            ),
        )
        concurrency: int = Field(
            256,
            ge=1,
            le=4096,
            description="number of samples that each server is asked for at once",
        )
        changes_no_result: ClassVar[frozenset[str]] = EngineOptions.changes_no_result | {
            *("url", "api_key_env", "command", "flags", "sleep", "concurrency")
        }

        @property
        def lacks_quantization(self) -> str:
            told = (
                self.url is not None or "--quantization" in f"{self.command} {self.flags}"
            )  # then, the gap is checked
            return "" if told else "for nf4, set flags: '--quantization bitsandbytes'"

        @property
        def samples_ahead(self) -> bool:
            return not self.sleep  # in turns, it never samples while alignkit computes

        @field_validator("command", "flags")
        @classmethod
        def _words(cls, text: str, info: ValidationInfo) -> str:
            try:
                if not shlex.split(text) and info.field_name == "command":
                    raise ValueError("names no program")
            except ValueError as error:
                raise ValueError(f"is no command line: {error}") from None
            return text

        @field_validator("url")
        @classmethod
        def _addresses(cls, url: str | list[str] | None) -> list[str] | None:
            if url is None:
                return None
            found = [
                checked_address(one).removesuffix("/v1")
                for one in ([url] if isinstance(url, str) else url)
            ]
            if not found or len(set(found)) < len(found):
                raise ValueError("name each server once, and at least one")
            return found

    options: Options
    _replicas: Replicas | None = None
    _server: OwnServer | None = None

    def check(self, folder: Path) -> None:
        if self.options.url is None:
            if shutil.which(shlex.split(self.options.command)[0]) is None:
                raise RunFailed(
                    f"{NAME}: there is no program '{self.options.command}'\n"
                    "help: install vLLM into its own environment, and write the path of its "
                    "program in 'command'"
                )
            return
        key = key_of(NAME, self.options)
        replicas = Replicas(list(self.options.url), key, min(30.0, self.options.timeout), 1)
        try:
            replicas.run(replicas.each(Replica.look))
        finally:
            replicas.close()

    def prepare(self, context: EngineContext) -> None:
        self.context, o = context, self.options
        # By policy: its name, empty for the base and whole models; its folder, empty for the base;
        # its version.
        self._policies: dict[str, tuple[str, str, int]] = {}
        # Runs may share a server, and one that was killed finds its own adapters again.
        self._prefix = (
            f"alignkit-{hashlib.blake2b(str(context.cache).encode(), digest_size=4).hexdigest()}-"
        )
        most = 0.9 * o.timeout  # so that the server is named before the call is given up
        if o.url is None:
            server = self._server = self._started()
            server.wait(most, context.say)
            self._replicas = Replicas([server.url], server.key, most, o.concurrency, server.explain)
        else:
            self._replicas = Replicas(list(o.url), key_of(NAME, o), most, o.concurrency)
        self._replicas.run(self._replicas.each(self._join))

    def publish(self, policy: str, adapter: Path | None, version: int) -> None:
        replicas, folder = self._asked, "" if adapter is None else str(adapter.resolve())
        before, *_ = self._policies.get(policy, ("",))
        name = f"{self._prefix}{policy}-{version}" if folder and not self._whole else ""
        self._policies[policy] = name, folder, version
        if name:
            replicas.run(replicas.each(lambda replica: replica.exchange(before, name, folder)))

    def idle(self) -> None:
        if self.options.sleep:
            self._asked.run(self._asked.each(lambda replica: replica.develop("/sleep?level=1")))

    def wake(self) -> None:
        if self.options.sleep:
            self._asked.run(self._asked.each(lambda replica: replica.develop("/wake_up")))

    def sample(
        self,
        policy: str,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
    ) -> list[list[Completion]]:
        replicas, (name, folder, version) = self._asked, self._policies[policy]
        if self._whole:
            replicas.run(replicas.each(lambda replica: replica.reload(folder)))
        longest = min(
            max(map(len, prompts), default=0) + sampling.max_new_tokens, self.context.max_length
        )
        room = min(replica.room for replica in replicas.all)
        if longest > room:
            raise RunFailed(
                f"a prompt with {sampling.max_new_tokens} new tokens has {longest} tokens, and "
                f"the server takes {room}; start it with --max-model-len {longest}, or lower "
                "max_new_tokens"
            )
        most, asked = sampling.max_new_tokens, self._terms(sampling)
        bodies = [
            {
                **asked,
                "prompt": list(prompt),
                "seed": seed,
                "max_tokens": min(most, room - len(prompt)),
            }
            for prompt, numbers in zip(prompts, seeds, strict=True)
            for seed in numbers
        ]
        read = self._reader(version, sampling)
        found = iter(replicas.run(replicas.ask(name, bodies, read, self.context.progress)))
        return [[next(found) for _ in numbers] for numbers in seeds]

    def close(self) -> None:
        if self._replicas is not None:
            self._replicas.close(self._leave)
        if self._server is not None:
            self._server.release()

    # What servers are asked for, and what they answer

    def _terms(self, sampling: Sampling) -> dict[str, Any]:
        """`sampling` in vLLM's terms."""
        return {
            **NEUTRAL,
            "min_tokens": sampling.min_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "stop": list(sampling.stop),
            "include_stop_str_in_output": True,
            # Only these, and not also those that the server finds in the model's files.
            "stop_token_ids": sorted(self.context.end_ids),
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
        }

    def _reader(self, version: int, sampling: Sampling) -> Any:
        """What turns a server's answer into a Completion; it raises Fault for one that cannot be
        right.
        """
        filters = sampling.top_p < 1 or sampling.top_k > 0 or sampling.min_new_tokens > 0

        def read(replica: Replica, body: dict[str, Any], answer: dict[str, Any]) -> Completion:
            choice = answer["choices"][0]
            tokens, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            if choice.get("prompt_token_ids", body["prompt"]) != body["prompt"]:
                raise Fault("it read another prompt than it was sent")
            if answer["model"] != body["model"]:
                raise Fault(f"it used the model {answer['model']!r} instead of {body['model']!r}")
            if not tokens or len(tokens) != len(logprobs):
                raise Fault(
                    f"it answered {len(tokens)} tokens with {len(logprobs)} log-probabilities"
                )
            if not all(0 <= token < self.context.vocabulary for token in tokens):
                raise Fault(
                    "it answered with tokens outside of the vocabulary of "
                    f"{self.context.vocabulary}"
                )
            for value in logprobs:
                if not value <= ROUNDING:  # nor is NaN
                    raise Fault(f"it answered with a log-probability of {value}")
            # Greedy, a server reports them at temperature 1. Otherwise one that counts the
            # temperature in counts the filters in, too, and one that does not knows temperature 1
            # only.
            tells = sampling.temperature == 0 or (
                not filters if replica.processed else sampling.temperature == 1
            )
            return Completion(tokens, logprobs if tells else None, version)

        return read

    # Servers

    @property
    def _whole(self) -> bool:
        return self.context.model.lora is None

    def _started(self) -> OwnServer:
        """A server of the base, started unless an earlier stage has done so."""
        context, o = self.context, self.options
        rank = context.model.lora.r if context.model.lora else 0
        words = (
            *shlex.split(o.command),
            context.base,
            *(("--revision", context.revision) if context.revision else ()),
            *("--dtype", context.dtype),
            *(
                (
                    "--enable-lora",
                    "--max-lora-rank",
                    str(next((r for r in RANKS if r >= rank), rank)),
                )
                if rank
                else ()
            ),
            *("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"),
            *(("--enable-sleep-mode",) if o.sleep else ()),
            *(*shlex.split(o.flags), "--host", "127.0.0.1", "--port", "{port}"),
        )
        # Without development mode nobody can let it sleep, or read weights.
        more = {"VLLM_SERVER_DEV_MODE": "1"} if o.sleep or self._whole else {}
        return OwnServer.of("vLLM", words, context.cache, {**ENVIRONMENT, **more})

    @property
    def _asked(self) -> Replicas:
        assert self._replicas is not None  # `prepare` was called
        return self._replicas

    @property
    def _serves(self) -> str:
        """What helps if a server has another base."""
        return (
            f"start it with {self.context.base}, or without 'url' the run starts a server for "
            "each base model"
        )

    async def _join(self, replica: Replica) -> None:
        """Let a server sample if it has the base, the tokenizer and the log-probabilities that
        training has.
        """
        context = self.context
        await replica.look()
        if context.model.lora is not None:
            await replica.check_adapters()
        if self.options.sleep:  # a run that was killed may have left it asleep
            await replica.develop("/wake_up")
        if self._whole:  # or with other weights
            await replica.reload("")
            if tied(context) and "device_config=cpu" in await replica.send("GET", "/server_info"):
                raise RunFailed(f"{replica.url} {TIED}")
        found = await replica.post(
            "/tokenize", {"prompt": context.probe_text, "add_special_tokens": False}
        )
        if list(found["tokens"]) != list(context.probe_tokens):
            raise RunFailed(
                f"{replica.url} has another tokenizer than {context.base}: it serves "
                f"{replica.base}; {self._serves}"
            )
        body = {
            "prompt": list(context.probe_tokens),
            "max_tokens": 1,
            "temperature": 1.0,
            "top_k": 1,
            **NEUTRAL,
        }
        body |= {
            "logprobs": 0,
            "prompt_logprobs": 0,
            "return_token_ids": True,
            "model": replica.base,
        }
        choice = (await replica.post("/v1/completions", body))["choices"][0]
        if choice.get("token_ids") is None:
            raise RunFailed(
                f"{replica.url} does not return token ids: it needs vLLM 0.10.2 or newer"
            )
        values = [
            row[str(token)]["logprob"]
            for token, row in zip(
                context.probe_tokens[1:], choice["prompt_logprobs"][1:], strict=True
            )
        ]
        gaps = [
            abs(ours - theirs) for ours, theirs in zip(context.probe_logprobs, values, strict=True)
        ]
        gap = sum(gaps) / len(gaps)
        if not gap <= MAX_GAP:
            raise RunFailed(
                f"{replica.url} has other weights than {context.base}: it serves {replica.base}, "
                f"and log-probabilities of a text differ by {gap:.3g} nats per token, more than "
                f"{MAX_GAP:g}; {self._serves}"
            )
        replica.processed = abs(choice["logprobs"]["token_logprobs"][0]) < PROCESSED
        apart = f"differs from training by {gap:.2g} nats per token"
        context.say(f"{NAME}: {replica.url} serves {replica.base}, and {apart}")
        await self._unload(replica)

    async def _leave(self, replica: Replica) -> None:
        """Let a server be as it was before; one of the run's own waits for the next stage as it
        is.
        """
        await replica.look()  # a call that failed may have left more than it knows of
        await self._unload(replica)
        if self._server is None and self.options.sleep:
            await replica.develop("/wake_up")
        if self._server is None and self._whole:
            await replica.reload("")

    async def _unload(self, replica: Replica) -> None:
        for name in [name for name in replica.adapters if name.startswith(self._prefix)]:
            await replica.exchange(name, "", "")


def tied(context: EngineContext) -> bool:
    """Whether the base's head shares its weights with the embeddings."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(context.base, revision=context.revision).get_text_config()
    return bool(config.tie_word_embeddings)
