"""Several base models in one recipe: each scores, samples and learns with its own tokenizer and chat template."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from alignkit.cli import main
from alignkit.data.group import Group, Response, read_groups
from alignkit.errors import OtherTokenizer, RecipeError, RunFailed
from alignkit.io.digest import digest
from alignkit.models.memory import Passes
from alignkit.models.models import LoadedBase, Models
from alignkit.models.shared_model import SharedModel
from alignkit.plugins import load_plugins
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import Run
from alignkit.settings import LoraSpec, ModelSpec
from alignkit.tokens.encoder import Encoder
from alignkit_apps.catalog.json_schema import recipe_schema
from tests.killed import forked

# No token covers both the end of a prompt and the start of its answer, so the whole text has the same tokens.
TEMPLATE = (
    "{% for message in messages %}{{ '[' + message['role'] + ']<|im_start|>' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant]<|im_start|>' }}{% endif %}"
)
ROOT = Path(__file__).parent.parent
TINY = {"base": "tiny", "dtype": "float32", "lora": {"r": 4, "lora_alpha": 8}}
PPO = {"algorithm": "ppo", "from": "sft", "reward": "helpful", "prompts": "prompts.jsonl", "iterations": 2}
PPO |= {"prompts_per_iteration": 3, "rollout": {"samples_per_prompt": 2, "max_new_tokens": 9}}


def make_tokenizer(offset: int, kept: int = 0) -> Any:
    """The byte-level tokenizer of `tiny` with shifted ids, but for the first `kept`, and another chat template."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from alignkit_plugins.models.tiny import END, PAD, START, _tokenizer

    content = json.loads(_tokenizer().backend_tokenizer.to_str())
    size = len(content["model"]["vocab"])
    shifted = {
        token: number if number < kept else kept + (number - kept + offset) % (size - kept)
        for token, number in content["model"]["vocab"].items()
    }
    content["model"]["vocab"] = dict(sorted(shifted.items(), key=lambda item: item[1]))
    for token in content["added_tokens"]:
        token["id"] = shifted[token["content"]]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model(folder: Path, offset: int = 7) -> Path:
    """A small model with a tokenizer and weights of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(offset)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(offset)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("shifted"))


def write(folder: Path, stages: dict[str, Any], small: dict[str, Any], **bases: Any) -> Path:
    rows = {
        "demos": [{"prompt": f"is it {n}?", "completion": "yes"} for n in range(4)],
        "pairs": [{"prompt": f"is it {n}?", "chosen": f"yes, {n}", "rejected": "no"} for n in range(6)],
        "prompts": [{"prompt": f"what is {n} and why?"} for n in range(4)],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    recipe = {"model": TINY, "bases": {"small": {"dtype": "float32"} | small} | bases, "stages": stages}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def sft(**more: Any) -> dict[str, Any]:
    return {"algorithm": "sft", "data": "demos.jsonl", "batch_size": 2, "learning_rate": 0.01} | more


def helpful(**more: Any) -> dict[str, Any]:
    return {"algorithm": "reward_model", "base": "small", "data": "pairs.jsonl", "learning_rate": 0.01} | more


REPORT = {"step": "evaluate", "policies": ["sft", "align"], "rewards": ["helpful"], "prompts": "prompts.jsonl"}
REPORT |= {"sampling": {"max_new_tokens": 7}, "limit": 3}
LABELS = {"step": "judge_pairs", "policy": "sft", "prompts": "prompts.jsonl", "sampling": {"max_new_tokens": 5}}
LABELS |= {"judge": {"reward_judge": {"reward_model": "helpful"}}, "samples_per_prompt": 3}


def direct(source: Path, adapter: Path) -> Callable[[str, str], float]:
    """What transformers and peft say of a prompt and a response, without alignkit."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    if (adapter / "adapter_config.json").exists():
        network = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype=torch.float32)
        network = PeftModel.from_pretrained(network, adapter)
    else:
        network = AutoModelForSequenceClassification.from_pretrained(adapter, dtype=torch.float32)
    network.eval()

    @torch.no_grad()
    def score(question: str, answer: str) -> float:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        return float(network(input_ids=ids).logits[0, 0])

    return score


def is_comparable(response: Response) -> bool:
    """Whether transformers tokenizes a text as alignkit does, which reads no control token in an answer."""
    return "<|" not in response.text


def with_policy_ids(run: Run, group: Group, response: Response) -> float:
    """The score that the reward model gives to the policy's ids: what this module must be able to tell apart."""
    (score,) = run.models.of("small")["helpful"].scores([Group(group.prompt, (Response(tokens=response.tokens),))])
    assert score is not None
    return score


@pytest.mark.parametrize("lora", [{"r": 2, "lora_alpha": 4}, "none"], ids=["adapter", "whole"])
def test_a_reward_model_on_another_base_scores_text(lora: Any, shifted: Path, tmp_path: Path) -> None:
    stages = {"sft": sft(), "helpful": helpful(), "align": PPO, "report": REPORT}
    recipe = load_recipe(write(tmp_path, stages, {"base": str(shifted), "lora": lora}))
    run = Run(recipe, tmp_path / "out")
    run.execute()
    out, score = tmp_path / "out", direct(shifted, tmp_path / "out" / "helpful" / "adapter")
    groups = [*read_groups(out / "align/rollouts/0001.jsonl"), *read_groups(out / "align/rollouts/0002.jsonl")]
    pairs = [(g, r) for g in groups for r in g.responses if is_comparable(r)]
    assert len(pairs) > 8 and all(response.tokens for _, response in pairs)
    evaluated = [(g, r) for g in read_groups(out / "report/samples.jsonl") for r in g.responses if is_comparable(r)]
    for group, response in [*pairs, *evaluated]:
        wanted = score(group.prompt[-1]["content"], response.text)
        assert response.scores["helpful"] == pytest.approx(wanted, abs=1e-5)
    assert len({round(response.scores["helpful"] or 0.0, 4) for _, response in pairs}) > 6
    run.models.enter("", (), ("small",))
    wrong = [abs(with_policy_ids(run, g, r) - (r.scores["helpful"] or 0.0)) for g, r in pairs]
    assert min(wrong) > 1e-3


def test_policies_on_several_bases_are_compared_by_their_text(shifted: Path, tmp_path: Path) -> None:
    """By rewards, but not by log-probabilities. Their answers are data for another base, too."""
    both = REPORT | {"policies": ["base", "small"], "rewards": ["length", "helpful"], "baseline": "base"}
    labels = LABELS | {"policy": "small", "judge": {"local_judge": {"role": "base", "min_mass": 0.0}}}
    small = {"base": str(shifted), "lora": {"r": 2, "lora_alpha": 4}}
    path = write(tmp_path, {"helpful": helpful(), "both": both, "labels": labels}, small)
    run = Run(load_recipe(path), tmp_path / "out")
    run.execute()
    kl = {name: found["kl"] for name, found in run.store.record("both")["summary"]["policies"].items()}
    assert kl["small"]["mean"] is None and kl["small"]["unmeasured"] == 3 and kl["base"]["mean"] == 0.0
    assert run.bases.needed(run.recipe.stages["labels"]) == ("base", "small")
    run.models.enter("", (), ("base", "small"))
    service = run.models.of("small")
    for group in read_groups(tmp_path / "out/both/samples.jsonl"):
        for response in group.responses:
            found = service.encoder.encode(Group(group.prompt, (response,)), 400)
            assert found is not None
            own = response.source == "small"
            assert (found.rows[0].tokens == response.tokens) == own
            assert service.encoder.decode(found.rows[0].tokens) == response.text


def test_folders_of_other_runs_are_scored_on_their_base(shifted: Path, tmp_path: Path, capsys: Any) -> None:
    """An adapter for one of `bases` is a reward; a whole model needs no base; other adapters are refused at first."""
    small = {"base": str(shifted), "lora": {"r": 2, "lora_alpha": 4}}
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    assert main(["run", str(write(first, {"helpful": helpful()}, small)), "--out", str(first / "out")]) == 0
    adapter = first / "out" / "helpful" / "adapter"
    chosen = {
        "step": "select_best",
        "policies": ["base", "base2"],
        "prompts": "prompts.jsonl",
        "sampling": {"max_new_tokens": 9},
    }
    chosen |= {"reward": {"folder": str(adapter)}}
    path = write(second, {"best": chosen}, small, base2=TINY)
    run = Run(load_recipe(path), second / "out")
    assert run.bases.needed(run.recipe.stages["best"]) == ("base", "base2", "small")
    assert run.bases.base_of(str(adapter)) == "small" and run.bases.base_of(str(shifted)) is None
    run.execute()
    group = Group(({"role": "user", "content": "is it?"},), (Response("it is"),))
    wanted = direct(shifted, adapter)("is it?", "it is")
    assert run.models[str(adapter)].scores([group]) == pytest.approx([wanted], abs=1e-5)
    capsys.readouterr()
    assert main(["run", str(path), "~bases.small", "--out", str(second / "without")]) == 2
    err = capsys.readouterr().err
    assert f"is an adapter for the base model '{shifted}', not for 'tiny'" in err
    assert "add its base model to the recipe: 'bases: {NAME: {base: ...}}'" in err


def test_the_documented_recipe_is_valid(tmp_path: Path) -> None:
    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    text = next(part for part in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "name: two-bases" in part)
    (tmp_path / "recipe.yaml").write_text(text.replace("data/", f"{ROOT}/recipes/data/"), encoding="utf-8")
    run = Run(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "out")
    found = [run.bases.needed(stage) for stage in run.recipe.stages.values()]
    assert found == [("base",), ("small",), ("base", "small")]


class Counted:
    """Services of two base models that only count what they are asked."""

    def __init__(self) -> None:
        self.opened: list[str] = []

    def open(self, base: str) -> Any:
        self.opened.append(base)
        service = LoadedBase.__new__(LoadedBase)
        service.name, service.model = base, torch.nn.Module()  # type: ignore[assignment]
        service.model.device = torch.device("cpu")  # type: ignore[assignment]
        service.model.passes = Passes()  # type: ignore[assignment]
        service.encoder = None  # type: ignore[assignment]
        return service


def test_a_base_is_opened_once_and_closed_when_no_stage_needs_it() -> None:
    counted = Counted()
    router = Models({"sft": "base", "small": "small", "folder": None}.get, counted.open)
    router.enter("one", ["base"], ["base", "small"])
    assert counted.opened == [] and router["sft"].base.name == "base"
    assert router["folder"].base.name == "base" and counted.opened == ["base"]
    with pytest.raises(RunFailed, match="stage 'one' uses the base model 'small', which it does not name"):
        router["small"]
    router.enter("two", ["small", "base"], ["small"])
    assert router["folder"].base.name == "small"
    router.enter("three", ["small"], ["small"])
    assert list(router.bases) == ["small"]
    router.enter("four", ["base"], [])
    assert list(router.bases) == []


@pytest.fixture(scope="module")
def services(shifted: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedBase]:
    """`tiny`, a model with its tokenizer and other weights, and one with another tokenizer."""
    import alignkit_plugins.models.tiny

    tiny = str(alignkit_plugins.models.tiny.source(tmp_path_factory.mktemp("cache")))
    lora = LoraSpec(r=2, lora_alpha=4)
    made = {}
    for name, source in (("base", tiny), ("twin", tiny), ("small", str(shifted))):
        model = SharedModel(ModelSpec(base=name, dtype="float32", device="cpu", lora=lora), source)
        made[name] = LoadedBase(model, Path, name=name)
    with torch.no_grad():
        for weight in made["twin"].model.model.parameters():
            weight.mul_(1.1)
    return made


def asked(count: int) -> list[list[Any]]:
    return [[{"role": "user", "content": f"what is {n}?"}] for n in range(count)]


def test_log_probabilities_need_the_same_tokenizer(services: dict[str, LoadedBase]) -> None:
    router = Models(lambda reference: reference, services.__getitem__)
    groups = router["base"].sample([Group(tuple(one)) for one in asked(3)], seed=0, max_new_tokens=6)
    ours, theirs = router["base"].logprobs(groups), router["twin"].logprobs(groups)
    for group, row, other in zip(groups, ours, theirs, strict=True):
        (response,) = group.responses
        assert response.tokens is not None and len(row) == len(other) == len(response.tokens)
        wanted = plain_logprobs(services["twin"], group, response.tokens)
        torch.testing.assert_close(other, wanted, atol=1e-5, rtol=1e-5)
        assert float((row - other).abs().max()) > 1e-3
    with pytest.raises(OtherTokenizer, match=r"'small' has another tokenizer.*'what is 0\?'"):
        router["small"].logprobs(groups)
    digests = {Encoder(make_tokenizer(offset, kept=3)).digest for offset in (0, 0, 5)}
    assert len(digests) == 2  # their ends of turn are the same token
    texts = [Group(group.prompt, (Response(text="it is"),)) for group in groups]
    assert [len(row) for row in router["small"].logprobs(texts)] == [
        len(row) for row in router["small"].logprobs(texts)
    ]


def test_tokens_whose_tokenizer_nobody_named_are_read_as_text_if_there_are_several(
    services: dict[str, LoadedBase],
) -> None:
    small, group = services["small"], Group(asked(1)[0], (Response(text="it is", tokens=(5, 6, 7)),))
    whole = Group(group.prompt, (Response(text="it is"),))
    assert len(small["small"].logprobs([group])[0]) == 3
    small.encoder.several_bases = True
    torch.testing.assert_close(small["small"].logprobs([group]), small["small"].logprobs([whole]))
    small.encoder.several_bases = False


@torch.no_grad()
def plain_logprobs(service: LoadedBase, group: Group, tokens: Sequence[int]) -> Tensor:
    prompt = service.encoder.prompt(group.prompt)
    layout_free = torch.tensor([[*prompt, *tokens]])
    service.model.model.set_attn_implementation("eager")
    try:
        logits = service.model.model(input_ids=layout_free).logits[0].float()
    finally:
        service.model.model.set_attn_implementation("alignkit")
    rows = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    return rows.gather(1, torch.tensor(tokens)[:, None])[:, 0]


SABOTEUR = """
import os, signal
from alignkit import hookimpl

@hookimpl
def rollouts_scored(run, stage, iteration, groups):
    if iteration == 2 and os.environ.get("KILL"):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_with_two_bases_ends_in_the_same_bytes(shifted: Path, tmp_path: Path) -> None:
    small = {"base": str(shifted), "lora": {"r": 2, "lora_alpha": 4}}
    path = write(tmp_path, {"sft": sft(), "helpful": helpful(), "align": PPO}, small)
    (tmp_path / "saboteur.py").write_text(SABOTEUR, encoding="utf-8")
    command = ["run", str(path), "--plugin", str(tmp_path / "saboteur.py"), "--out"]
    assert forked(*command, tmp_path / "killed", KILL="yes") == -signal.SIGKILL
    for name in ("killed", "whole"):
        assert main([*command, str(tmp_path / name)]) == 0
    files = ["sft/adapter/adapter_model.safetensors", "helpful/adapter/adapter_model.safetensors"]
    files += ["align/adapter/adapter_model.safetensors", "align/rollouts/0002.jsonl"]
    for file in files:
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


# --- hashes


def test_a_hash_covers_the_bases_that_a_stage_uses(shifted: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", 11)
    stages = {"sft": sft(), "helpful": helpful(), "align": PPO, "own": sft(base="small"), "report": REPORT}
    stages["compare"] = REPORT | {"policies": ["small", "own"]}
    stages["direct"] = REPORT | {"policies": ["base", "small"], "rewards": ["length"]}
    path = write(tmp_path, stages, {"base": str(shifted)}, unused={"base": "tiny"})

    def hashes(*overrides: str) -> dict[str, str]:
        run = Run(load_recipe(path, list(overrides)), tmp_path / "out")
        for stage in run.recipe.stages.values():
            run.hashes[stage.name] = digest(run.stages[stage.name].key())
        return run.hashes

    def changed(*overrides: str) -> set[str]:
        return {name for name, value in hashes(*overrides).items() if value != before[name]}

    before = hashes()
    assert changed("bases.unused.chat_template=plain", "~bases.unused.base", "bases.unused.base=other") == set()
    on_small = {"helpful", "own", "align", "report", "compare", "direct"}  # what uses `helpful` depends on it
    assert changed("bases.small.chat_template=chatml") == on_small
    assert changed(f"bases.small.base={other}") == on_small
    assert changed("model.chat_template=plain") == {"sft", "align", "report", "direct"}
    alone = load_recipe(write(tmp_path, {"sft": sft()}, {"base": "tiny"}), ["~bases"])
    assert digest(Run(alone, tmp_path / "out").stages["sft"].key()) == before["sft"]


# --- refusals


def refused(folder: Path, stages: dict[str, Any], *overrides: str, **bases: Any) -> str:
    path = write(folder, {"sft": sft(), "helpful": helpful()} | stages, {"base": "tiny"}, **bases)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, list(overrides))
    return str(caught.value)


MIXED = {
    "from": (
        {"own": sft(base="small", **{"from": "sft"})},
        "'sft' is on another base model than the stage, 'base' instead of 'small'",
    ),
    "value_from": ({"align": PPO | {"value_from": "helpful"}}, "leave 'value_from' out: the values then start from"),
    "replay_from": (
        {"own": sft(base="small"), "a": PPO | {"from": "own", "base": "small"}, "align": PPO | {"replay_from": ["a"]}},
        "replay only rollouts of stages on the same base",
    ),
    "misspelled": ({"own": sft(base="smal")}, "did you mean 'small'?"),
    "the default": ({"own": sft(base="base")}, "without 'base' it is the recipe's 'model'"),
    "a stage": ({"own": sft(base="sft")}, "no base model 'sft' in 'bases'"),
    "a version": (
        {"own": sft(base="small", **{"from": "small@2"})},
        "'small' is the unmodified model and has no versions",
    ),
    "no score": ({"align": PPO | {"reward": "small"}}, "no reward 'small'"),
    "two meanings": ({"small": sft()}, "help: rename the base model, for instance to 'small-base', in 'bases'"),
}


@pytest.mark.parametrize("case", MIXED)
def test_a_mixture_is_refused_while_validating(case: str, tmp_path: Path) -> None:
    stages, message = MIXED[case]
    assert message in refused(tmp_path, stages)


def test_settings_of_a_base_are_checked_where_they_are_written(tmp_path: Path) -> None:
    assert "bases.other.quantization: nf4 weights cannot be trained" in refused(
        tmp_path, {}, other={"base": "tiny", "quantization": "nf4", "lora": "none"}
    )
    assert "did you mean 'dtype'?" in refused(tmp_path, {}, other={"base": "tiny", "dtpe": "float32"})
    assert "bases.other: expected a mapping" in refused(tmp_path, {}, other="tiny")
    assert "'none' cannot be the name of a stage or a base model" in refused(tmp_path, {}, none={"base": "tiny"})
    assert "bases.small.dtype" in refused(tmp_path, {}, "bases.small.dtype=float31")


def test_the_schema_knows_bases() -> None:
    definitions = recipe_schema(load_plugins().registry)["$defs"]
    assert definitions["TopKeys"]["properties"]["bases"]["type"] == "object"
    named = [each["properties"]["base"] for each in definitions.values() if "base" in each.get("properties", {})]
    assert any({"$ref": "#/$defs/alignkit.base"} in each.get("anyOf", [each]) for each in named)
