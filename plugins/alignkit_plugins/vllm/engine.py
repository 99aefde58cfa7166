"""The engine `vllm`: its requests to servers, with the meaning of alignkit's own engine.

It sends and receives tokens, never text. The base is loaded once by each server; every version of
a policy is an adapter of its own name, loaded when it is published, and the one before is unloaded.
vLLM batches what arrives, and rounds by how it batches: the same call need not return the same
tokens.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator

from alignkit import Completion, Engine, EngineSetup, Options, RunFailed, Sampling
from alignkit.contract.algorithm import ADVANTAGES
from alignkit.contract.engine import EngineOptions
from alignkit.contract.options import Field
from alignkit.data.group import responses_of
from alignkit_plugins.servers.remote import checked_address, key_of
from alignkit_plugins.vllm.own_server import OwnServer
from alignkit_plugins.vllm.replicas import Replica, Replicas

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit import Batch

NAME = "engine 'vllm'"
CONCURRENCY = 256  # requests to each server at once; it queues them
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
MAX_GAP = 0.1  # nats: mean difference of a text's log-probabilities, server's against training's
# Nats: after `top_k: 1` the chosen token has probability 1, since filters count
PROCESSED = 1e-6


class Importance(Options):
    """Weights of the samples, learner / engine, for an engine whose probabilities differ from
    those of training.

    An engine's option `importance` may be anything with this method `weighted`.
    """

    cap: float = Field(ge=1, description="largest weight (truncated importance sampling)")

    def weighted(
        self, advantages: Mapping[str, Tensor], rollouts: Batch, old: Sequence[Tensor], finest: str
    ) -> tuple[Mapping[str, Tensor], dict[str, float]]:
        """The advantages of an iteration times the weights of their samples, and what else `signal`
        returned; and the share of tokens, or of responses, whose weight was capped.

        A loss that is linear in the advantages is then weighted, and its KL, entropy and values are
        not. old: the learner's log-probabilities of each response, [tokens]. finest:
        `Needs.advantages`.
        """
        import torch  # not with the module: `alignkit check` reads these options
        from torch.nn.utils.rnn import pad_sequence

        from alignkit import functional as F

        engine = []
        for response in responses_of(rollouts.groups):
            if response.logprobs is None:
                raise RunFailed(
                    "the engine returns no log-probabilities of its samples, but 'importance' needs "
                    "them\nhelp: leave 'importance' out, or top_k, top_p and min_new_tokens, with "
                    "which a server returns none"
                )
            engine.append(torch.tensor(response.logprobs))
        learners = pad_sequence([*old], batch_first=True)
        engines = pad_sequence(engine, batch_first=True)
        mask, by_response = rollouts.mask, finest == "sequence"
        weights, ratios = F.importance_weights(
            learners, engines, mask, self.cap, sequence=by_response
        )
        counted = ratios[mask.any(dim=1) if by_response else mask]
        share = float((counted > self.cap).float().mean())
        values = advantages[ADVANTAGES]
        if weights.dim() > values.dim():
            values = values[:, None]
        elif weights.dim() < values.dim():
            weights = weights[:, None]
        return {**advantages, ADVANTAGES: values * weights}, {"importance_capped": share}


class Vllm(Engine):
    """Samples with vLLM's completions, one request for each sample, and weights loaded while it
    runs.
    """

    repeats = False

    class Options(EngineOptions):
        url: str | list[str] | None = Field(
            None,
            (
                "addresses of running servers, such as http://10.0.0.5:8000, each with the "
                "recipe's base; default: the run starts one on this machine"
            ),
        )
        api_key_env: str = Field(
            "", "environment variable that holds the servers' key (not the key)"
        )
        command: str = Field(
            "vllm serve",
            (
                "command that starts a server, with flags of your own such as "
                "--gpu-memory-utilization 0.5"
            ),
        )
        sleep: bool = Field(
            False,
            (
                "let servers leave the GPU's memory while alignkit computes: for one GPU that "
                "both use in turns; costs seconds per iteration"
            ),
        )
        importance: Importance | None = Field(
            None,
            (
                "weights that correct for samples whose probabilities differ from those of "
                "training, such as {cap: 2}; default: none"
            ),
        )
        changes_no_result: ClassVar[frozenset[str]] = EngineOptions.changes_no_result | {
            *("url", "api_key_env", "command", "sleep")
        }

        @property
        def lacks_quantization(self) -> str:
            # A server that is running is compared with training.
            if "--quantization" in self.command or self.url is not None:
                return ""
            return "for nf4, add '--quantization bitsandbytes' to the command"

        @property
        def samples_ahead(self) -> bool:
            return not self.sleep  # in turns, it never samples while alignkit computes

        @field_validator("command")
        @classmethod
        def _names_a_program(cls, command: str) -> str:
            if not shlex.split(command):
                raise ValueError("names no program")
            return command

        @field_validator("url")
        @classmethod
        def _addresses(cls, url: str | list[str] | None) -> list[str] | None:
            urls = [url] if isinstance(url, str) else url
            return urls and [checked_address(one).removesuffix("/v1") for one in urls]

    options: Options
    _replicas: Replicas | None = None
    _server: OwnServer | None = None

    def check(self, folder: Path) -> None:
        o = self.options
        if o.url is not None:
            replicas = Replicas(list(o.url), key_of(NAME, o))
            try:
                replicas.each(Replica.read_models)
            finally:
                replicas.close()
        elif shutil.which(shlex.split(o.command)[0]) is None:
            raise RunFailed(
                f"{NAME}: there is no program '{o.command}'\n"
                "help: install vLLM into its own environment, and write the path of its program in "
                "'command'"
            )

    def prepare(self, setup: EngineSetup) -> None:
        self.setup, o = setup, self.options
        # By policy: the name of its adapter, empty for the base, and its version.
        self._policies: dict[str, tuple[str, int]] = {}
        # Runs may share a server, and one that was killed finds its own adapters again.
        folder = hashlib.blake2b(str(setup.cache).encode(), digest_size=4)
        self._prefix = f"alignkit-{folder.hexdigest()}-"
        if o.url is None:
            server = self._server = self._started()
            server.wait(0.9 * o.timeout, setup.say)
            self._replicas = Replicas([server.url], server.key, CONCURRENCY, server.explain)
        else:
            self._replicas = Replicas(list(o.url), key_of(NAME, o), CONCURRENCY)
        self._replicas.each(self._join)

    def publish(self, policy: str, adapter: Path | None, version: int) -> None:
        before, name = self._policies.get(policy, ("", 0))[0], ""
        if adapter is not None:
            folder, name = str(adapter.resolve()), f"{self._prefix}{policy}-{version}"
            self._servers.each(lambda replica: replica.exchange(before, name, folder))
        self._policies[policy] = name, version

    def idle(self) -> None:
        if self.options.sleep:
            self._servers.each(lambda replica: replica.rest("/sleep?level=1"))

    def wake(self) -> None:
        if self.options.sleep:
            self._servers.each(lambda replica: replica.rest("/wake_up"))

    def sample(
        self,
        policy: str,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
    ) -> list[list[Completion]]:
        replicas, (name, version) = self._servers, self._policies[policy]
        room, most = min(replica.room for replica in replicas.all), sampling.max_new_tokens
        longest = min(max(map(len, prompts), default=0) + most, self.setup.max_length)
        if longest > room:
            raise RunFailed(
                f"a prompt with {most} new tokens has {longest} tokens, and the server takes "
                f"{room}; start it with --max-model-len {longest}, or lower max_new_tokens"
            )
        terms, bodies = {"model": name, **self._terms(sampling)}, []
        for prompt, numbers in zip(prompts, seeds, strict=True):
            body = {**terms, "prompt": list(prompt), "max_tokens": min(most, room - len(prompt))}
            bodies += [{**body, "seed": seed} for seed in numbers]
        # Greedy, a server reports log-probabilities at temperature 1; otherwise after filters.
        filters = sampling.top_p < 1 or sampling.top_k > 0 or sampling.min_new_tokens > 0
        is_exact = sampling.temperature == 0 or not filters

        def read(body: Mapping[str, Any], answer: Any) -> Completion:
            choice = answer["choices"][0]
            if choice.get("prompt_token_ids", body["prompt"]) != body["prompt"]:
                raise ValueError("it read another prompt than it was sent")
            if answer["model"] != body["model"]:
                raise ValueError(f"it used the model {answer['model']!r}")
            tokens, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            if len(tokens) != len(logprobs):
                raise ValueError(f"{len(tokens)} tokens have {len(logprobs)} log-probabilities")
            return Completion(tokens, logprobs if is_exact else None, version)

        completions = iter(replicas.ask(bodies, read, self.setup.progress))
        return [list(islice(completions, len(numbers))) for numbers in seeds]

    def close(self) -> None:
        if self._replicas is not None:
            self._replicas.close(self._leave)
        if self._server is not None:
            self._server.release()

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
            "stop_token_ids": sorted(self.setup.end_ids),
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
        }

    # Servers

    def _started(self) -> OwnServer:
        """A server of the base, started unless an earlier stage has done so."""
        setup, o = self.setup, self.options
        assert setup.model.lora is not None  # a recipe without adapters cannot name this engine
        r = setup.model.lora.r
        rank = next((rank for rank in RANKS if rank >= r), r)
        words = [*shlex.split(o.command), setup.base, "--dtype", setup.dtype]
        words += ["--enable-lora", "--max-lora-rank", str(rank)]
        words += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
        words += ["--host", "127.0.0.1", "--port", "{port}"]
        if setup.revision:
            words += ["--revision", setup.revision]
        environment = ENVIRONMENT
        if o.sleep:
            words.append("--enable-sleep-mode")
            environment = {**environment, "VLLM_SERVER_DEV_MODE": "1"}
        return OwnServer.of("vLLM", words, setup.cache, environment)

    @property
    def _servers(self) -> Replicas:
        assert self._replicas is not None  # `prepare` was called
        return self._replicas

    async def _join(self, replica: Replica) -> None:
        """Let a server sample if it has the base, the tokenizer and the log-probabilities that
        training has.
        """
        setup = self.setup
        await replica.read_models()
        await replica.check_adapters()
        if self.options.sleep:  # a run that was killed may have left it asleep
            await replica.rest("/wake_up")
        gap = await self._gap(replica)
        setup.say(
            f"{NAME}: {replica.url} serves {replica.base}, and differs from training by {gap:.2g} "
            "nats per token"
        )
        await self._unload(replica)

    async def _gap(self, replica: Replica) -> float:
        """How far a text's log-probabilities are from those of training: nats per token. Raises
        RunFailed if they, or its tokens, are those of another model.
        """
        setup = self.setup
        help = f"it serves {replica.base}; start it with {setup.base}, or leave 'url' out"
        text = {"prompt": setup.probe_text, "add_special_tokens": False}
        tokens = (await replica.post("/tokenize", text))["tokens"]
        if list(tokens) != list(setup.probe_tokens):
            raise RunFailed(f"{replica.url} has another tokenizer than {setup.base}: {help}")
        body = {"model": replica.base, "prompt": tokens, "max_tokens": 1, "temperature": 1.0}
        body |= {
            **NEUTRAL,
            "top_k": 1,
            "logprobs": 0,
            "prompt_logprobs": 0,
            "return_token_ids": True,
        }
        choice = (await replica.post("/v1/completions", body))["choices"][0]
        if choice.get("token_ids") is None:
            raise RunFailed(
                f"{replica.url} does not return token ids: it needs vLLM 0.10.2 or newer"
            )
        if not abs(choice["logprobs"]["token_logprobs"][0]) < PROCESSED:
            raise RunFailed(f"{replica.url}: start it with --logprobs-mode processed_logprobs")
        gaps = []
        theirs = zip(tokens[1:], choice["prompt_logprobs"][1:], strict=True)
        for (token, likeliest), ours in zip(theirs, setup.probe_logprobs, strict=True):
            gaps.append(abs(likeliest[str(token)]["logprob"] - ours))
        gap = sum(gaps) / len(gaps)
        if not gap <= MAX_GAP:
            raise RunFailed(
                f"{replica.url} has other weights than {setup.base}: log-probabilities of a text "
                f"differ by {gap:.3g} nats per token, more than {MAX_GAP:g}; {help}"
            )
        return gap

    async def _leave(self, replica: Replica) -> None:
        """Let a server be as it was before; one of the run's own waits for the next stage as it
        is.
        """
        await replica.read_models()  # a call that failed may have left more than it knows of
        await self._unload(replica)
        if self._server is None and self.options.sleep:
            await replica.rest("/wake_up")

    async def _unload(self, replica: Replica) -> None:
        for name in sorted(replica.adapters):
            if name.startswith(self._prefix):
                await replica.exchange(name, "", "")
