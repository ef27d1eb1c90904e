"""The sliding window over a CT, and what CUDA graphs save."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from nnunet_transformers.benchmarking.machine import synchronise
from nnunet_transformers.benchmarking.measure import CT, PRECISIONS, time_actions
from nnunet_transformers.inference.predictor import BatchedPredictor

from .rows import NUM_CLASSES, Row, build, set_supervision
from .training import SECONDS, TrainingStep, release

TINY_CT = (40, 48, 48)


def _without_supervision(network: nn.Module) -> nn.Module:
    """The network with one output."""
    set_supervision(network, False)
    return network.eval()


def prediction(row: Row) -> dict[str, Any]:
    """Time the logits of a CT without mirroring, with nnU-Net's predictor or ours.

    Returns:
        ``seconds``, ``voxels_per_s``, ``peak_bytes``, and sums of the labels and logits, to compare the predictors.
    """
    device = torch.device(row.device)
    release(device)
    torch.backends.cudnn.benchmark = True
    if row.device == "cuda":
        torch.set_autocast_dtype("cuda", PRECISIONS[row.precision] or torch.float32)
    network, patch_size = build(row)
    arguments: dict[str, Any] = {"use_mirroring": False, "device": device, "allow_tqdm": False}
    if row.variant == "ours":
        predictor = BatchedPredictor(**arguments)
    else:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(**arguments)
    predictor.network = _without_supervision(network)
    predictor.configuration_manager = SimpleNamespace(patch_size=patch_size)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=NUM_CLASSES)
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(1, *(TINY_CT if row.tiny else CT), generator=generator)
    # the tiles of one layer, more than a batch, let cuDNN choose its kernels
    predictor.predict_sliding_window_return_logits(volume[:, : patch_size[0]])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    logits: Tensor = predictor.predict_sliding_window_return_logits(volume)
    synchronise(device)
    seconds = time.perf_counter() - start
    patch = volume.new_zeros(1, 1, *patch_size)
    return {
        "patch_size": patch_size,
        "seconds": seconds,
        "voxels_per_s": volume.numel() / seconds,
        "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        "batch_size": predictor.choose_batch_size(patch) if isinstance(predictor, BatchedPredictor) else 1,
        "logits_sum": logits.sum(dtype=torch.float64).item(),
        "labels_sum": logits.argmax(0).sum().item(),
    }


def graphs(row: Row) -> dict[str, Any]:
    """Time a forward pass of one sample and a training step, eager and as CUDA graphs.

    Capture raises where the host waits for the device inside, so a failure is of interest as well.
    """
    seconds = 0 if row.tiny else SECONDS / 2
    device, dtype = torch.device(row.device), PRECISIONS[row.precision]
    step = TrainingStep(row)
    image = step.image[:1].clone()
    step.plain.eval()

    def forward() -> Any:
        with torch.inference_mode(), torch.autocast(row.device, dtype=dtype, enabled=dtype is not None):
            return step.plain(image)

    (eager_s,) = time_actions([forward], device, seconds)
    figures: dict[str, Any] = {"patch_size": step.patch_size, "forward_s": eager_s}
    if row.device != "cuda":
        return figures
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            forward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward()
    (figures["forward_graph_s"],) = time_actions([graph.replay], device, seconds)
    del graph
    step.plain.train()
    for _ in range(2):
        step.run()
    figures["step_s"] = step.time(seconds)["step_s"]
    # the graph of the last step would bind the gradients to the stream that it ran in
    step.loss = step.outputs = None
    step.optimiser.zero_grad(set_to_none=True)
    try:
        with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None, cache_enabled=False):
            step.network = cast(nn.Module, torch.cuda.make_graphed_callables(step.plain, (step.image,)))
        for _ in range(2):
            step.run()
        figures["step_graph_s"] = step.time(seconds)["step_s"]
    except Exception as error:  # the figures above count all the same
        figures["step_graph_error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
    return figures
