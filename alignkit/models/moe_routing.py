"""Which experts the tokens of a forward pass go to: recorded in one pass, and repeated in another.

The number of tokens that an expert gets changes how its products are rounded, and a tie between two experts may be
broken differently. With the routes of an earlier pass, both passes run the same products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.models.lora_targets import is_router

Routes = dict[tuple[str, int], Any]  # what a router returned, by its name and the number of its call


@contextmanager
def recording(network: Any) -> Iterator[Routes]:
    """Yield what the routers return in the forward pass inside."""
    routes: Routes = {}
    with _hooked(network, lambda key, out: routes.__setitem__(key, out)):
        yield routes


@contextmanager
def repeating(network: Any, routes: Routes, which: Tensor, sources: Tensor) -> Iterator[None]:
    """Give tokens the routes of an earlier pass.

    which: [tokens] bool, the tokens of this pass that get them. sources: [tokens], each one's index in the earlier one.
    """
    with _hooked(network, lambda key, out: _repeated(out, routes.get(key), which, sources)):
        yield


@contextmanager
def _hooked(network: Any, change: Any) -> Iterator[None]:
    """Let `change(key, output)` replace what routers return, unless it returns None."""
    names = [name for name, module in network.named_modules() if is_router(name, module)]
    routers = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    deciding = [_deciding(network, name) for name in routers]
    calls = dict.fromkeys(deciding, 0)

    def hook(name: str) -> Any:
        def run(module: Any, inputs: Any, out: Any) -> Any:
            calls[name] += 1
            return change((name, calls[name]), out)

        return run

    hooks = [network.get_submodule(name).register_forward_hook(hook(name)) for name in deciding]
    try:
        yield
    finally:
        for registered in hooks:
            registered.remove()


def _deciding(network: Any, router: str) -> str:
    """The part of a router that returns one row per token: its linear layer, if it has one, or else itself."""
    module = network.get_submodule(router)
    layers = [name for name, part in module.named_modules() if name and isinstance(part, nn.Linear)]
    return f"{router}.{layers[0]}" if len(layers) == 1 else router


def _repeated(out: Any, earlier: Any, which: Tensor, sources: Tensor) -> Any:
    if isinstance(out, tuple | list) and isinstance(earlier, tuple | list):
        return type(out)([_repeated(*pair, which, sources) for pair in zip(out, earlier, strict=True)])
    if not (isinstance(out, Tensor) and isinstance(earlier, Tensor)):
        return out
    rows, source = _by_token(out, len(which)), _by_token(earlier, None)
    if rows is None or source is None or rows.shape[1:] != source.shape[1:] or int(sources.max()) >= len(source):
        return out  # the tokens are not its first dimension
    which = which.to(out.device).view(-1, *[1] * (rows.dim() - 1))
    return torch.where(which, source[sources.to(out.device)].to(out.dtype), rows).view(out.shape)


def _by_token(x: Tensor, count: int | None) -> Tensor | None:
    """[tokens, ...]; None if there is no such dimension. count: of tokens, if known."""
    if x.dim() > 2:
        x = x.flatten(0, 1)
    return x if x.dim() == 2 and count in (None, len(x)) else None
