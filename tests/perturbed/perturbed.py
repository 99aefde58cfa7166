"""Matrix products rounded as on another processor: `make test-perturbed`.

Processors add up the terms of a product in different orders, which also depend on the shapes. Here
every number of a product changes in its last bit, or does not, by its place, the operands' shapes
and a seed: the same call always gives the same numbers, and another batch gives others. In half
precision the sum changes before it is rounded. A product that is exactly 0 stays 0.

This file is also the pytest plugin that proves that every kind of product was reached.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

SEED = "ALIGNKIT_TEST_ROUNDING"
TABLE = 2**20  # numbers of the pattern, of which a product takes a part
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
PACKED = ("_mkl_linear", "_linear_pointwise")
# Modules that compute in tiles; their products also count for them
TILED = tuple(f"alignkit_plugins.backends.{name}" for name in ("tiled_attention", "frozen_head"))
KINDS = ("mm", "addmm", "bmm", "baddbmm", *PACKED, ATTENTION, f"{ATTENTION}_backward", *TILED)
COUNTS: Counter[str] = Counter()  # products of each kind that were perturbed
# Tests that cannot pass, and why; at most ten
SKIPPED: dict[str, str] = {}


# The products


@cache
def _pattern(dtype: Any) -> Any:
    """[TABLE], 1 or a neighbor of it."""
    import torch

    draw = torch.Generator().manual_seed(int(os.environ[SEED]))
    signs = torch.randint(-1, 2, (TABLE,), generator=draw)
    return (1 + signs.double() * torch.finfo(dtype).eps).to(dtype)


def _perturb(out: Any, kind: str, *operands: Any) -> Any:
    """Change the last bits of a result in place; operands: what its place in the pattern follows
    from.
    """
    _count(kind)
    shapes = [tuple(operand.shape) for operand in operands]
    start = zlib.crc32(f"{os.environ[SEED]} {kind} {shapes}".encode()) % (TABLE // 2)
    pattern = _pattern(out.dtype)[start : start + TABLE // 2]
    flat = out.reshape(-1)
    for part in flat.split(len(pattern)):
        part.mul_(pattern[: len(part)])
    return out if flat.data_ptr() == out.data_ptr() else out.copy_(flat.view(out.shape))


def _count(kind: str) -> None:
    COUNTS[kind] += 1
    frame: Any = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module in TILED:
            COUNTS[module] += 1
        elif module.startswith((__name__, "alignkit_plugins.backends.")):
            frame = frame.f_back
            continue
        return


def install() -> None:
    """Replace the products of this process's CPU, if the variable names a seed."""
    if not os.environ.get(SEED):
        return
    import torch
    from torch._C import DispatchKey, _AutoDispatchBelowAutograd

    # Every call passes here after autograd and before the device's kernel, which can be called from
    # here. A replaced kernel could not.
    here = DispatchKey.BackendSelect

    def replace(library: Any, name: str, value: Callable[..., Any], *sites: int) -> None:
        """Let `value` compute an operator of CPUs where the arguments at `sites` are dense floats.

        It is given the operator's own function, and then its arguments.
        """
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops, library.ns), packet)
        op = getattr(op, overload or "default")

        def called(keys: Any, *args: Any, **named: Any) -> Any:
            def own(*args: Any, of: Any = op, **named: Any) -> Any:
                return of.redispatch(keys.remove(here), *args, **named)

            if not keys.has(DispatchKey.CPU) or not all(_dense(args[site]) for site in sites):
                return own(*args, **named)
            with _AutoDispatchBelowAutograd():
                return value(own, *args, **named)

        library.impl(name, called, here.name, with_keyset=True)

    def _dense(x: Any) -> bool:
        return x.layout is torch.strided and x.is_floating_point()

    def wide(x: Any) -> Any:
        return x.float() if x is not None and x.dtype in (torch.bfloat16, torch.float16) else x

    aten = torch.ops.aten

    def product(kind: str, own: Any, a: Any, b: Any) -> Any:
        """In fp32 or wider."""
        of = aten.mm.default if a.dim() == 2 else aten.bmm.default
        return _perturb(own(wide(a), wide(b), of=of), kind, a, b)

    def added(kind: str, own: Any, x: Any, a: Any, b: Any, beta: Any = 1, alpha: Any = 1) -> Any:
        out = product(kind, own, a, b).mul_(alpha)
        return (out if beta == 0 else out + beta * wide(x)).to(a.dtype)

    def attention(own: Any, q: Any, k: Any, v: Any, *args: Any, **named: Any) -> Any:
        if named.get("attn_mask") is not None and _dense(named["attn_mask"]):
            named["attn_mask"] = wide(named["attn_mask"])
        out, normalizer = own(wide(q), wide(k), wide(v), *args, **named)
        return _perturb(out, ATTENTION, q, k, v).to(q.dtype), normalizer

    def attention_backward(own: Any, *args: Any, **named: Any) -> Any:
        if named.get("attn_mask") is not None and _dense(named["attn_mask"]):
            named["attn_mask"] = wide(named["attn_mask"])
        found = own(*map(wide, args[:6]), *args[6:], **named)
        return tuple(
            _perturb(out, f"{ATTENTION}_backward", *args[1:4]).to(args[1].dtype) for out in found
        )

    def mkl(own: Any, x: Any, packed: Any, weight: Any, bias: Any, rows: int) -> Any:
        out = _perturb(own(x, packed, weight, None, rows), PACKED[0], x, weight)
        return out if bias is None else out.add_(bias)

    def onednn(own: Any, x: Any, weight: Any, bias: Any, attr: str, *rest: Any) -> Any:
        if attr != "none" or x.dtype != torch.float32:
            return own(x, weight, bias, attr, *rest)
        out = _perturb(own(x, weight, None, attr, *rest), PACKED[1], x, weight)
        return out if bias is None else out.add_(bias)

    library = torch.library.Library("aten", "IMPL")
    for kind in ("mm", "bmm"):

        def multiply(own: Any, a: Any, b: Any, kind: str = kind) -> Any:
            return product(kind, own, a, b).to(a.dtype)

        def multiply_out(own: Any, a: Any, b: Any, kind: str = kind, *, out: Any) -> Any:
            return out.copy_(product(kind, own, a, b))

        replace(library, kind, multiply, 0, 1)
        replace(library, f"{kind}.out", multiply_out, 0, 1)
    for kind in ("addmm", "baddbmm"):

        def add(own: Any, *args: Any, kind: str = kind, **named: Any) -> Any:
            return added(kind, own, *args, **named)

        def add_in_place(own: Any, x: Any, *args: Any, kind: str = kind, **named: Any) -> Any:
            return x.copy_(added(kind, own, x, *args, **named))

        def add_out(own: Any, *args: Any, out: Any, kind: str = kind, **named: Any) -> Any:
            return out.copy_(added(kind, own, *args, **named))

        replace(library, kind, add, 0, 1, 2)
        replace(library, f"{kind}_", add_in_place, 0, 1, 2)
        replace(library, f"{kind}.out", add_out, 0, 1, 2)
    replace(library, ATTENTION, attention, 0)
    replace(library, f"{ATTENTION}_backward", attention_backward, 0)
    libraries = [library]
    for name, kind, value in (("mkl", PACKED[0], mkl), ("mkldnn", PACKED[1], onednn)):
        if hasattr(getattr(torch.ops, name), kind):
            libraries.append(torch.library.Library(name, "IMPL"))
            replace(libraries[-1], kind, value, 0)
    _pattern.libraries = libraries  # type: ignore[attr-defined]  # they end with their object


# The proof


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot pass, with its reason."""
    assert len(SKIPPED) <= 10
    for item in items:
        if reason := SKIPPED.get(item.nodeid.partition("[")[0]):
            item.add_marker(pytest.mark.skip(reason=f"rounded otherwise: {reason}"))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add the counts of a worker."""
    COUNTS.update(getattr(node, "workeroutput", {}).get("products", {}))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail if the whole suite has not reached every kind of product."""
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["products"] = dict(COUNTS)
        return
    missing = [kind for kind in KINDS if not COUNTS[kind]]
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if missing and whole and not config.option.keyword:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how often each kind of product was perturbed."""
    terminalreporter.section(f"products rounded otherwise, seed {os.environ[SEED]}")
    for kind in KINDS:
        terminalreporter.line(f"{COUNTS[kind]:>12,} {kind}")
