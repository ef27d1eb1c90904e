"""Training steps compiled for GPUs that are not there: which kernels compile, and what they use.

    python -m benchmarks.gpu.ahead                                        # results/gpu/ahead.json and .md
    python -m benchmarks.gpu.ahead --networks mit_7 --architectures 90    # adds or replaces these rows

A training step, forward and backward under bfloat16 autocast, is traced on the fake tensors that the tests use as a
GPU. Inductor writes its kernels, Triton and ptxas compile each in the first of the configurations that inductor would
try on a device (`--every`: in all), and cuobjdump tells their registers, spills and shared memory. Nothing runs, so no
time is measured. Matrix products, convolutions and, on a device, attention are kernels of libraries; attention is
traced in its plain form.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from torch._dynamo import device_interface
from torch._inductor import config
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import PyCodeCache
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.runtime import triton_helpers, triton_heuristics
from torch._inductor.runtime.hints import DeviceProperties
from torch.fx import CodeGen, GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._triton import has_triton
from triton.backends.compiler import GPUTarget

from nnunet_transformers.architectures import create_network, get_network
from tests.fake_cuda import backward, fake_cuda

RESULTS = Path(__file__).parents[1] / "results" / "gpu" / "ahead.json"
NETWORKS = ("mit_7", "qt_unet_tiny", "unet2022_tiny")
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Architecture:
    """What a compiler asks of a GPU.

    Attributes:
        name: name.
        multiprocessors: number of multiprocessors.
        shared_memory: most bytes of a block.
        second_level: bytes of the L2 cache.
    """

    name: str
    multiprocessors: int
    shared_memory: int
    second_level: int


# by compute capability; CUDA's programming guide, technical specifications, and the GPUs' data sheets
ARCHITECTURES = {
    80: Architecture("A100", 108, 166_912, 40 * 2**20),
    90: Architecture("H100", 132, 232_448, 50 * 2**20),
}


def traced_step(network: str, patch_size: tuple[int, ...]) -> tuple[GraphModule, list[Tensor]]:
    """The operations of a training step as a graph with a tuple of the loss and the gradients, and its inputs.

    Args:
        network: registered name.
        patch_size: voxels per axis; the batch has two patches.
    """
    model = create_network(network, input_channels=1, num_classes=3, patch_size=patch_size, deep_supervision=True)
    with fake_cuda() as device:
        model = device.move(model)
        names = [name for name, _ in model.named_parameters()]

        def step(*inputs: Tensor) -> list[Tensor | None]:
            *parameters, image = inputs
            with torch.autocast("cuda", torch.bfloat16):
                named = dict(zip(names, parameters, strict=True))
                outputs = torch.func.functional_call(model, named, (image,))
                loss = sum((output.float().square().mean() for output in outputs), torch.zeros((), device="cuda"))
            backward(loss)
            return [loss, *(parameter.grad for parameter in parameters)]

        leaves = [parameter.detach().requires_grad_() for _, parameter in model.named_parameters()]
        inputs = [*leaves, torch.randn(2, 1, *patch_size, device="cuda")]
        trace = make_fx(step, decomposition_table=select_decomp_table(), _allow_non_fake_inputs=True)
        graph = trace(*inputs)
    # the windows' indices and masks: inductor would read the values of small ones
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(node.name)
        inputs.append(getattr(graph, str(node.target)))
        last.meta = {**node.meta, "val": inputs[-1]}
        node.replace_all_uses_with(last)
        graph.graph.erase_node(node)
    graph.graph.set_codegen(CodeGen())
    output = graph.graph.output_node()
    output.args = (tuple(output.args[0]),)  # type: ignore[arg-type]
    graph.recompile()
    return graph, inputs


@contextmanager
def pretended_device(capability: int) -> Iterator[None]:
    """PyTorch and Triton find one GPU of a compute capability, and are told its properties."""
    architecture, index = ARCHITECTURES[capability], torch.device("cuda", 0)
    properties = SimpleNamespace(
        type="cuda",
        index=0,
        name=architecture.name,
        major=capability // 10,
        minor=capability % 10,
        multi_processor_count=architecture.multiprocessors,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        regs_per_multiprocessor=65536,
        warp_size=32,
        total_memory=80 * 2**30,
        L2_cache_size=architecture.second_level,
        shared_memory_per_block=49_152,
        shared_memory_per_block_optin=architecture.shared_memory,
    )
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: 0,
        get_active_torch_device=lambda: index,
    )
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": properties,
        "_get_device_properties": properties,
        "get_device_capability": divmod(capability, 10),
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
        "set_device": None,
        "synchronize": None,
        "_lazy_init": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
    }
    interface = device_interface.CudaInterface
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch(f"torch.cuda.{name}", lambda *_, answer=answer, **__: answer, create=True))
        for holder in (interface, interface.Worker):
            stack.enter_context(patch.object(holder, "get_device_properties", lambda *_: properties))
            stack.enter_context(patch.object(holder, "current_device", lambda *_: 0))
        stack.enter_context(patch.object(interface, "is_available", lambda *_: True))
        stack.enter_context(patch.object(interface, "get_compute_capability", lambda *_: capability))
        stack.enter_context(patch.dict(device_interface.caching_worker_device_properties, {"cuda": [properties]}))
        for kept in (DeviceProperties.create, has_triton):  # what was found before, and what is found here
            kept.cache_clear()
            stack.callback(kept.cache_clear)
        # each kernel's module sets the driver of a GPU
        stack.enter_context(patch.object(triton_helpers, "set_driver_to_gpu", lambda: None))
        stack.enter_context(patch.object(triton.runtime.driver, "_active", driver))
        yield


def written_kernels(graph: GraphModule, inputs: list[Tensor]) -> dict[str, str]:
    """The Triton kernels that inductor writes for a graph: sources by name."""
    sources: dict[str, str] = {}

    def keep(self: AsyncCompile, name: str, source: str, device_str: str = "cuda") -> Any:
        sources[name] = source
        return SimpleNamespace(run=None)

    # random numbers by PyTorch's kernel, as inductor's needs a seed from the device
    settings = {"fx_graph_cache": False, "compile_threads": 1, "triton.cudagraphs": False, "fallback_random": True}
    with config.patch(settings), patch.object(AsyncCompile, "triton", keep):
        compile_fx_inner(graph, inputs)
    return sources


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel uses.

    Attributes:
        registers: of a thread.
        local: bytes of a thread in memory, which spilled registers take.
        shared: bytes of a block.
    """

    registers: int
    local: int
    shared: int


def compiled_kernel(name: str, source: str, every: bool = False) -> list[Usage]:
    """Compile a kernel in the first configuration that inductor would try, or in every one; what each uses."""
    binaries: list[Any] = []
    compile_one = triton.compile

    def spy(*args: Any, **kwargs: Any) -> Any:
        binaries.append(compile_one(*args, **kwargs))
        return binaries[-1]

    with patch.object(triton_heuristics.triton, "compile", spy):
        kernel = getattr(PyCodeCache.load(source), name)
        if not every:
            kernel.configs = kernel.configs[:1]
        kernel.precompile(warm_cache_only=True)
    return [usage(binary.asm["cubin"], binary.metadata.shared) for binary in binaries]


def usage(cubin: bytes, shared: int) -> Usage:
    """What a binary uses by cuobjdump, and by Triton the shared memory, which it asks for at launch."""
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack, local = (int(n) for n in re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", text).groups())  # type: ignore[union-attr]
    return Usage(registers, max(stack, local), shared)


def row(network: str, patch_size: tuple[int, ...], capability: int, every: bool) -> dict[str, Any]:
    """Compile a step's kernels for an architecture; figures of all of them."""
    start = time.perf_counter()
    failed: dict[str, str] = {}
    used: dict[str, list[Usage]] = {}
    with pretended_device(capability):
        sources = written_kernels(*traced_step(network, patch_size))
        for name, source in sources.items():
            try:
                used[name] = compiled_kernel(name, source, every)
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    # of several configurations inductor leaves out those that spill
    best = {name: min(usages, key=lambda u: (u.local, u.registers)) for name, usages in used.items() if usages}
    return {
        "network": network,
        "patch_size": list(patch_size),
        "capability": capability,
        "kernels": len(sources),
        "configurations": sum(map(len, used.values())),
        "failed": failed,
        "registers": max((u.registers for u in best.values()), default=0),
        "spilling": {name: u.local for name, u in best.items() if u.local},
        "shared_bytes": max((u.shared for u in best.values()), default=0),
        "too_much_shared": [n for n, u in best.items() if u.shared > ARCHITECTURES[capability].shared_memory],
        "largest": {name: asdict(best[name]) for name in sorted(best, key=lambda n: -best[n].registers)[:3]},
        "seconds": round(time.perf_counter() - start, 1),
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
    }


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a page."""
    lines = [
        "# Kernels compiled ahead",
        "",
        "`python -m benchmarks.gpu.ahead` writes this page. A training step's kernels, forward and backward, batch 2,",
        "bfloat16 autocast, as inductor writes them, compiled by Triton and ptxas without a GPU. Nothing was run.",
        "Registers, spills and shared memory are the largest of any kernel; of several configurations of a kernel, the",
        "one that spills least counts.",
        "",
        "| network | patch | GPU | kernels | configurations | failed | registers | that spill | shared memory, KB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(rows, key=lambda r: (r["network"], r["capability"])):
        patch_size = "x".join(map(str, r["patch_size"]))
        gpu = f"{ARCHITECTURES[r['capability']].name}, sm_{r['capability']}"
        spilling = f"{len(r['spilling'])}, of at most {max(r['spilling'].values())} B" if r["spilling"] else "0"
        lines.append(
            f"| {r['network']} | {patch_size} | {gpu} | {r['kernels']} | {r['configurations']} | {len(r['failed'])} | "
            f"{r['registers']} | {spilling} | {r['shared_bytes'] / 1024:.1f} |"
        )
    failures = [f"- {r['network']}, sm_{r['capability']}, {n}: {e}" for r in rows for n, e in r["failed"].items()]
    lines += ["", "Failed:", "", *failures] if failures else []
    versions = {f"torch {r['versions']['torch']}, triton {r['versions']['triton']}" for r in rows}
    return "\n".join([*lines, "", "; ".join(sorted(versions)) + ".", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--architectures", nargs="+", type=int, choices=ARCHITECTURES, default=[*ARCHITECTURES])
    parser.add_argument("--patch", type=int, help="voxels along each axis, by default 128 or 512")
    parser.add_argument("--every", action="store_true", help="compile every configuration of a kernel")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    for network in options.networks:
        patch_size: tuple[int, ...] = (128, 128, 128) if 3 in get_network(network).dimensions else (512, 512)
        if options.patch is not None:
            patch_size = (options.patch,) * len(patch_size)
        for capability in options.architectures:
            # in a process of its own, as inductor keeps the first device's properties
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                found = process.submit(row, network, patch_size, capability, options.every).result()
            print(json.dumps({k: v for k, v in found.items() if k not in ("largest", "versions")}), flush=True)
            rows = json.loads(options.output.read_text()) if options.output.exists() else []
            rows = [r for r in rows if (r["network"], r["capability"]) != (network, capability)]
            rows.append(found)
            options.output.write_text(json.dumps(rows, indent=1) + "\n")
            options.output.with_suffix(".md").write_text(as_markdown(rows))


if __name__ == "__main__":
    main()
