"""Checks the rules that every algorithm must follow, in one line of a plugin's tests.

    from alignkit.testing import check_algorithm

    def test_my_algorithm_conforms() -> None:
        check_algorithm(MyAlgorithm, {"beta": 0.2})

The checks run alignkit's own code (encoding, packing, `signal`, `select`, the gradient of a global batch) on the model
`tiny` in float32 on the CPU, in about a second. In this order:

| check | what must hold |
|---|---|
| options | every option has a description, a range, or choices that explain it |
| signal | tensors [responses, tokens] or [responses], finite for what counts |
| state | is JSON before and after, and survives saving and loading |
| finite | losses and gradients are finite, and something is learned |
| determinism | the same batch has the same numbers; what the algorithm remembers is in `state` |
| micro-batches | one micro-batch or many: memory must not change what is learned |
| order | of groups, and of responses within them, has no effect |
| masks | garbage outside the mask, in the batch and in the outputs, has no effect |
| shared prompts | responses in one group, or each in its own: the prompt that they share has no effect |

Design: docs/architecture.md.
"""

from alignkit.testing.examples import example_groups as example_groups
from alignkit.testing.kit import ConformanceError as ConformanceError
from alignkit.testing.kit import check_algorithm as check_algorithm
