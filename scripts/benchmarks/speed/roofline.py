"""Bytes and operations of training, against this machine's ceilings.

Usage:

    python scripts/bench.py speed/roofline
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from rlcore.backends.accelerate import accelerate
from rlcore.backends.cuda_graphs import WARM_UP_CALLS
from rlcore.runs.plots import text_table
from scripts.benchmarks.common.display import show
from scripts.benchmarks.common.timing import cpu_seconds, ppo_stages, time_in_turns


class Count(TorchDispatchMode):
    """Counts kernels, bytes and operations of the code in its context.

    A kernel reads its inputs and writes its outputs once; views are free. Operations are those of matrix products; all
    other kernels count by the numbers that they put out. `products` has the number of products and their operands, by
    shapes.
    """

    def __init__(self):
        super().__init__()
        self.kernels, self.bytes, self.operations, self.elements, self.products = 0, 0, 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        written = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        known = {x.untyped_storage().data_ptr() for x in read}
        if not func._schema.is_mutable:
            written = [x for x in written if x.untyped_storage().data_ptr() not in known]
            if not written:
                return out
        self.kernels += 1
        self.bytes += sum(size(x) for x in read) + sum(size(x) for x in written or read[:1])
        if func.overloadpacket in flop_registry:
            self.operations += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
            shapes = (func, *((x.size(), x.stride()) for x in read))
            many, like = self.products.get(shapes, (0, None))
            self.products[shapes] = (
                many + 1,
                like
                or [
                    torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=x.device)
                    if isinstance(x, Tensor)
                    else x
                    for x in args
                ],
            )
        else:
            self.elements += sum(x.numel() for x in written or read[:1])
        return out


def size(x: Tensor) -> int:
    """Bytes of a tensor; expanded dimensions count once."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def ceilings(device: torch.device, *, triad: int, matmul: int, repeats: int) -> dict:
    """Measure bytes a second of a ← b + s·c, operations a second of a square product, seconds of a smallest kernel."""
    a, b, c = (torch.ones(triad, device=device) for _ in range(3))
    x, y = (torch.randn(matmul, matmul, device=device) for _ in range(2))
    tiny, calls = torch.ones(1, device=device), 1000

    def smallest():
        for _ in range(calls):
            tiny.add(tiny)

    def best(function):
        return min(cpu_seconds(function) for _ in range(repeats))

    return {
        "bytes_per_second": 3 * 4 * triad / best(lambda: torch.add(b, c, alpha=2.0, out=a)),
        "operations_per_second": 2 * matmul**3 / best(lambda: x @ y),
        "kernel_seconds": best(smallest) / calls,
    }


def launched(part: Callable[[], object], device: torch.device) -> int | None:
    """Count the kernels that a GPU runs, including a compiler's."""
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        part()
        torch.cuda.synchronize()
    return sum(event.count for event in found.key_averages() if event.device_type == DeviceType.CUDA)


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    env: Callable,
    algo: Callable,
    execution: str,
    ceiling: dict,
    repeats: int,
    last: str,
) -> dict:
    """Count and time the stages to the `last`, an agent-step; print and return the table.

    Kernels, bytes and operations are counted as they run eagerly.
    """

    def parts_of(mode: str) -> tuple[int, dict[str, Callable]]:
        ppo = accelerate(algo(env(device, seed), seed), mode)
        parts = ppo_stages(ppo)
        if last not in parts:
            raise ValueError(f"benchmark.last: expected one of {', '.join(parts)}, got '{last}'")
        return ppo.steps_per_iteration, dict(list(parts.items())[: list(parts).index(last) + 1])

    steps, parts = parts_of("eager")
    counts, top, rows = {}, ceilings(device, **ceiling), {}
    for name, part in parts.items():
        with Count() as counts[name]:
            part()
    steps, parts = parts_of(execution)
    for _ in range(WARM_UP_CALLS + 1):  # until compilation and recording are done
        for part in parts.values():
            part()
    taken = time_in_turns(parts, repeats)
    for name, count in counts.items():

        def products(count=count):
            for (func, *_), (many, operands) in count.products.items():
                for _ in range(many):
                    func(*operands)

        spent = median(taken[name])
        floors = {
            "bytes": count.bytes / top["bytes_per_second"],
            "operations": count.operations / top["operations_per_second"],
        }
        rows[name] = {
            "kernels": count.kernels,
            "launched": launched(parts[name], device),
            "bytes": count.bytes / steps,
            "operations": count.operations / steps,
            "elements": count.elements / steps,
            "seconds": spent / steps,
            "floor": max(floors, key=lambda name: floors[name]),
            "floor_seconds": max(floors.values()) / steps,
            "share_of_ceiling": max(floors.values()) / spent,
            "products": min(cpu_seconds(products) for _ in range(repeats)) / spent if count.products else 0.0,
            "dispatch": count.kernels * top["kernel_seconds"] / spent,
        }
    show(roofline_table(rows, top, steps))
    rates = {name: 1 / row["seconds"] for name, row in rows.items()}
    if "update" in rows:  # collecting also steps the environment
        rates["end to end"] = 1 / sum(row["seconds"] for name, row in rows.items() if name != "environment")
    print("agent-steps a second: " + ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items()))
    return {"ceilings": top, "steps": steps, "stages": rows, "steps_per_second": rates}


def roofline_table(rows: dict, top: dict, steps: int):
    """The roofline of all stages."""
    out = text_table(f"an agent-step, of {steps:,} an iteration", ["", *rows])

    def line(name, tell):
        out.add_row(name, *(tell(row) for row in rows.values()))

    line("kernels an iteration", lambda row: f"{row['kernels']:,}")
    on_gpu = all(row["launched"] for row in rows.values())
    if on_gpu:
        line("… as it was timed", lambda row: f"{row['launched']:,}")
    line("bytes", lambda row: f"{row['bytes']:,.0f}")
    line("operations of matrix products", lambda row: f"{row['operations']:,.0f}")
    line("numbers put out by other kernels", lambda row: f"{row['elements']:,.0f}")
    line("floor, ns", lambda row: of_ns(row["floor_seconds"]))
    line("… set by", lambda row: row["floor"])
    line("measured, ns", lambda row: of_ns(row["seconds"]))
    line("share of the ceiling", lambda row: f"{row['share_of_ceiling']:.0%}")
    line("time: the matrix products alone", lambda row: f"{row['products']:.0%}")
    if not on_gpu:  # a GPU runs other kernels, and is called while it runs
        line("time: calling the kernels", lambda row: f"{row['dispatch']:.0%}")
        line("time: the rest", lambda row: f"{1 - row['products'] - row['dispatch']:.0%}")
    out.caption = (
        f"ceilings: {top['bytes_per_second'] / 1e9:.1f} GB/s (triad), {top['operations_per_second'] / 1e9:.0f} GFLOP/s "
        f"(product), {1e6 * top['kernel_seconds']:.2f} µs to call a kernel"
    )
    return out


def of_ns(seconds: float) -> str:
    """Write a time in ns."""
    return f"{1e9 * seconds:,.0f}" if seconds >= 1e-7 else f"{1e9 * seconds:.3g}"
