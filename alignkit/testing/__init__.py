"""Checks the rules that every plugin must follow, in one line of its tests.

    from alignkit.testing import check_algorithm, check_reward

    def test_my_algorithm_conforms() -> None:
        check_algorithm(MyAlgorithm, {"beta": 0.2})

    def test_my_reward_conforms() -> None:
        check_reward(MyReward, {"word": "please"})

Every check takes the plugin's class and its options, and raises ConformanceError with all rules
that the plugin breaks. The plugin need not be installed.

`check_algorithm` runs alignkit's own code (encoding, packing, `signal`, `select`, the gradient of a
global batch) on the model `tiny` in float32 on the CPU, in about a second. In this order:

| check | what must hold |
|---|---|
| signal | tensors [responses, tokens] or [responses], finite for what counts |
| state | is JSON before and after, and survives saving and loading |
| finite | losses and gradients are finite, and something is learned |
| direction | better responses (by rewards, pairs or labels) do not become less likely: no wrong sign |
| determinism | the same batch has the same numbers; what the algorithm remembers is in `state` |
| micro-batches | one micro-batch or many: memory must not change what is learned |
| order | of groups has no effect |
| masks | garbage outside the mask, in the batch and in the outputs, has no effect |

The other checks call the plugin as a run does, with the same checks of what it returns:

| check | what must hold |
|---|---|
| `check_reward` | a finite number or None per response, in order; the same in any batch or order |
| `check_combination` | [responses], finite; a missing score spoils no other; the same from one `state` |
| `check_judge` | an answer per item; the same in every batch, and mirrored in the other order |
| `check_environment` | text and described tools; the same episode again, alone and among others |
| `check_format` | reads its `example`, as no other does; loses no column; else raises BadRow |
| `check_step` | an Artifact that can be saved, only from what options name; early checks pass |
| `check_filter` | true or false per group; the same in any order of the groups |
| `check_monitor` | the same observations of the same samples, also after a resume; changes none |
| `check_engine` | the tokens, order, ends and weights asked for; log-probabilities as in training |
| `check_reader` | rows numbered from 1 |
| `check_model_source` | a model that loads |

What a check calls twice must return the same both times.

A file of the recipe's folder that a reward, judge or step reads must be named in its options: these
are part of a stage's key, with the contents of the files.

Design: docs/architecture.md.
"""

from alignkit.testing.algorithm_kit import check_algorithm as check_algorithm
from alignkit.testing.data_kit import check_format as check_format
from alignkit.testing.data_kit import check_model_source as check_model_source
from alignkit.testing.data_kit import check_reader as check_reader
from alignkit.testing.engine_kit import check_engine as check_engine
from alignkit.testing.examples import example_groups as example_groups
from alignkit.testing.reward_kit import check_combination as check_combination
from alignkit.testing.reward_kit import check_filter as check_filter
from alignkit.testing.reward_kit import check_judge as check_judge
from alignkit.testing.reward_kit import check_reward as check_reward
from alignkit.testing.run_kit import check_environment as check_environment
from alignkit.testing.run_kit import check_monitor as check_monitor
from alignkit.testing.run_kit import check_step as check_step
from alignkit.testing.surroundings import ConformanceError as ConformanceError

__all__ = [
    "check_algorithm",
    "check_combination",
    "check_engine",
    "check_environment",
    "check_filter",
    "check_format",
    "check_judge",
    "check_model_source",
    "check_monitor",
    "check_reader",
    "check_reward",
    "check_step",
    "example_groups",
]
