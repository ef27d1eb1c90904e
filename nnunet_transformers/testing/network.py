"""Checks of the interface of registered networks, see ``SegmentationNetwork``, without a test framework."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import pydoc
import re
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import torch
from dynamic_network_architectures.architectures.abstract_arch import test_submodules_loadable as check_submodules
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from timm.models import group_parameters
from torch import Tensor, nn

from .._meta import without_data
from ..architectures import SegmentationNetwork, create_network, get_network
from ._require import require

# small patches that the total strides of all published networks divide, with an odd number of tokens on an axis
PATCHES = {2: (64, 96), 3: (32, 96, 32)}
ARGUMENTS = {"input_channels", "num_classes", "patch_size", "deep_supervision", "auxiliary_heads", "strides"}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# timm's names of tables and tokens, which its networks exclude from weight decay
TABLES = re.compile(r"(^|\.)(pos_embed|\w+_token|\w*position_bias_table)$")


def check_network(name: str, ndim: int | None = None, patch_size: Sequence[int] | None = None) -> None:
    """Check that a registered network has the interface of ``SegmentationNetwork``.

    This takes about ten seconds on CPU for a small network.

    Args:
        name: one of ``list_networks()``.
        ndim: check the 2D (2) or 3D (3) form only; by default all that the network has.
        patch_size: a patch that the network can take, in voxels, which also states the number of axes; by default
            the entries of ``PATCHES``.

    Raises:
        AssertionError: names the network, the form, the failed check and the reason.
    """
    if patch_size is not None:
        patches = [tuple(patch_size)]
    else:
        patches = [PATCHES[n] for n in get_network(name).dimensions if ndim in (None, n)]
    for patch in patches:
        for check in NETWORK_CHECKS:
            try:
                check(name, patch)
            except Exception as error:
                what = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
                raise AssertionError(
                    f"{name} in {len(patch)}D, {check.__name__.removeprefix('check_').replace('_', ' ')}: {what}"
                ) from error


def check_arguments(name: str, patch_size: Sequence[int]) -> None:
    """The class can be imported by its path and takes the arguments of nnU-Net's plans."""
    entry = get_network(name)
    require(
        issubclass(entry.network_class, SegmentationNetwork),
        f"{entry.network_class} is no subclass of SegmentationNetwork",
    )
    found = pydoc.locate(entry.class_path)
    require(found is entry.network_class, f"plans specify {entry.class_path}, which imports {found}")
    parameters = inspect.signature(entry.network_class).parameters
    missing = sorted(ARGUMENTS - parameters.keys())
    require(not missing, f"the constructor does not take {', '.join(missing)}")
    required = [n for n in entry.override_names if entry.all_arguments(2)[n] is inspect.Parameter.empty]
    require(not required, f"the constructor's {', '.join(required)} need a default")


def check_forward_and_backward(name: str, patch_size: Sequence[int]) -> None:
    """Logits have the image's size, and every parameter gets a finite gradient."""
    network = create_network(name, 2, 5, patch_size)
    output = network(torch.randn(1, 2, *patch_size))
    _require_shape(output, (1, 5, *patch_size), "the output")
    output.square().mean().backward()
    _require_gradients(network)


def check_deep_supervision(name: str, patch_size: Sequence[int]) -> None:
    """Output i of deep supervision has 1 / cumprod(strides)[i] of the patch's resolution, as nnU-Net scales labels."""
    network = _create_shallow(name, 1, 3, patch_size, deep_supervision=True)
    outputs = network(torch.randn(2, 1, *patch_size))
    if not network.deeply_supervised:
        require(isinstance(outputs, Tensor), f"deeply_supervised is False, but {len(outputs)} outputs are returned")
        _require_shape(outputs, (2, 3, *patch_size), "the output")
        return
    require(isinstance(outputs, (list, tuple)), f"deep supervision returns a {type(outputs).__name__}, not a list")
    require(len(outputs) >= 2, "deep supervision has one output, whose weight in nnU-Net's loss is NaN")
    require(
        len(outputs) == len(network.strides) - 1,
        f"deep supervision has {len(outputs)} outputs, nnU-Net wants one less than the {len(network.strides)} strides",
    )
    total = [1] * len(patch_size)
    for index, (output, stride) in enumerate(zip(outputs, network.strides, strict=False)):
        total = [t * s for t, s in zip(total, stride, strict=True)]
        expected = (2, 3, *(p // t for p, t in zip(patch_size, total, strict=True)))
        _require_shape(output, expected, f"output {index} of deep supervision, by strides {network.strides},")
    loss = DeepSupervisionWrapper(nn.MSELoss(), [2.0**-i for i in range(len(outputs))])
    loss(outputs, [torch.zeros_like(o) for o in outputs]).backward()
    _require_gradients(network)


def check_deep_supervision_switch(name: str, patch_size: Sequence[int]) -> None:
    """With ``decoder.deep_supervision = False`` the network returns the full-resolution output only."""
    network = _create_shallow(name, 1, 3, patch_size, deep_supervision=True).eval()
    image = torch.randn(1, 1, *patch_size)
    with torch.no_grad():
        full = _full_resolution(network(image))
        vars(network.decoder)["deep_supervision"] = False
        output = network(image)
    require(isinstance(output, Tensor), "with decoder.deep_supervision = False the output is no tensor")
    _require_close(output, full, "the output differs with decoder.deep_supervision = False")


def check_loading_between_training_and_inference(name: str, patch_size: Sequence[int]) -> None:
    """Weights of training with deep supervision load strictly into the network of inference."""
    trained = _create_shallow(name, 1, 3, patch_size, deep_supervision=True).eval()
    image = torch.randn(1, 1, *patch_size)
    for heads in (None, True):
        network = _create_shallow(name, 1, 3, patch_size, auxiliary_heads=heads).eval()
        network.load_state_dict(trained.state_dict(), strict=True)
        with torch.no_grad():
            _require_close(
                network(image), _full_resolution(trained(image)), f"with auxiliary_heads={heads} the output differs"
            )


def check_pickle_and_copy(name: str, patch_size: Sequence[int]) -> None:
    """A pickled and a copied network compute the same."""
    network = _create_shallow(name, 1, 2, patch_size).eval()
    image = torch.randn(1, 1, *patch_size)
    with torch.no_grad():
        expected = network(image)
        _require_close(pickle.loads(pickle.dumps(network))(image), expected, "the pickled network's output differs")
        _require_close(copy.deepcopy(network)(image), expected, "the copied network's output differs")


def check_batch_independence(name: str, patch_size: Sequence[int]) -> None:
    """In eval mode an image's output does not depend on the rest of its batch."""
    # float64: instance norm over few elements magnifies the rounding of float32
    network = _create_shallow(name, 1, 2, patch_size).double().eval()
    images = torch.randn(2, 1, *patch_size, dtype=torch.float64)
    with torch.no_grad():
        together = network(images)
        alone = torch.cat([network(image[None]) for image in images])
    _require_close(together, alone, "an image's output depends on the rest of the batch", rtol=1e-8, atol=1e-8)


def check_encode(name: str, patch_size: Sequence[int]) -> None:
    """``encode`` returns the maps that grid_sizes and feature_channels state, and depends on stem and encoder only."""
    network = create_network(name, 1, 2, patch_size)
    features = network.encode(torch.randn(2, 1, *patch_size))
    stated = len(network.feature_strides), len(network.feature_channels)
    require(
        stated == (len(features),) * 2,
        f"encode returns {len(features)} maps, grid_sizes and feature_channels have {stated[0]} and {stated[1]}",
    )
    for index, (feature, grid, channels) in enumerate(
        zip(features, network.grid_sizes, network.feature_channels, strict=True)
    ):
        _require_shape(feature, (2, channels, *grid), f"map {index} of encode")
    for grid, stride in zip(network.grid_sizes, network.feature_strides, strict=True):
        covered = tuple(g * s for g, s in zip(grid, stride, strict=True))
        require(covered == tuple(patch_size), f"the grid {tuple(grid)} does not divide the patch {tuple(patch_size)}")
    torch.stack([f.square().mean() for f in features]).sum().backward()
    parts = _encoder_prefixes(network)
    for parameter_name, parameter in network.named_parameters():
        if parameter_name.startswith(parts):
            require(parameter.grad is not None, f"no map of encode depends on {parameter_name}")
        else:
            require(parameter.grad is None, f"encode depends on {parameter_name}, outside of stem and encoder")


def check_parts(name: str, patch_size: Sequence[int]) -> None:
    """Stem, encoder and decoder are disjoint and hold all weights, which the keys that the class states find."""
    network = create_network(name, 1, 2, patch_size)
    check_submodules(network)
    keys = list(network.state_dict())
    prefixes = (*_encoder_prefixes(network), "decoder.")
    stray = [key for key in keys if sum(key.startswith(prefix) for prefix in prefixes) != 1]
    require(not stray, f"{', '.join(stray[:4])} belong to none or to several of {', '.join(prefixes)}")
    require(any(key.startswith("decoder.seg_layers.") for key in keys), "decoder.seg_layers has no parameters")
    # buffers would have to match in nnU-Net's -pretrained_weights; a parameter may have two names
    parameters = {n for n, _ in network.named_parameters(remove_duplicate=False)}
    buffers = [key for key in keys if key not in parameters and not key.endswith(STATISTICS)]
    require(not buffers, f"the state dict has the buffers {', '.join(buffers)}; register them with persistent=False")
    require(not hasattr(network, "initialize"), "nnU-Net would call the method initialize after construction")


def check_buffers(name: str, patch_size: Sequence[int]) -> None:
    """Buffers are batch norm statistics only: DistributedDataParallel broadcasts all buffers in each step."""
    with without_data():
        network = create_network(name, 1, 2, patch_size)
    others = [key for key, _ in network.named_buffers() if not key.endswith(STATISTICS)]
    require(not others, f"{', '.join(others)} are no statistics; keep constants as attributes, see WindowPartition")


def check_device(name: str, patch_size: Sequence[int]) -> None:
    """The network computes on the device that it is moved to, constants included, with a patch of different edges."""
    patch_size = (*patch_size[:-1], patch_size[-1] * (1 + (patch_size[-1] in patch_size[:-1])))
    network = create_network(name, 1, 2, patch_size).eval().to("meta")
    try:
        with torch.no_grad():
            output = network(torch.empty(1, 1, *patch_size, device="meta"))
    except RuntimeError as error:
        raise AssertionError(
            f"moved to another device, with edges of different lengths, it fails: {error}; constants that are "
            "attributes are moved by _apply, see WindowPartition"
        ) from error
    _require_shape(output, (1, 2, *patch_size), "the output")


def check_logits(name: str, patch_size: Sequence[int]) -> None:
    """Outputs are logits, to which nnU-Net's loss applies softmax or sigmoid itself."""
    network = _create_shallow(name, 1, 3, patch_size).eval()
    with torch.no_grad():
        output = network(10 * torch.randn(1, 1, *patch_size))
    is_probability = bool(output.min() >= 0 and ((output.sum(1) - 1).abs() < 1e-3).all())
    require(not is_probability, "the outputs of all classes sum up to 1: return logits, without softmax")


def check_seed(name: str, patch_size: Sequence[int]) -> None:
    """The same seed gives the same weights."""
    states = []
    with torch.random.fork_rng(devices=[]):
        for _ in range(2):
            torch.manual_seed(7)
            states.append(create_network(name, 1, 2, patch_size).state_dict())
    differing = [key for key in states[0] if not torch.equal(states[0][key], states[1][key])]
    require(not differing, f"{', '.join(differing[:4])} differ under the same seed")


def check_patch_size_error(name: str, patch_size: Sequence[int]) -> None:
    """A patch that the total stride does not divide raises an error that names the axis and the nearest valid sizes."""
    step, size = create_network(name, 1, 2, patch_size).feature_strides[-1][-1], patch_size[-1] + 1
    if step == 1:
        return
    message = _error(lambda: create_network(name, 1, 2, (*patch_size[:-1], size)), f"width {size} of stride {step}")
    near = rf"axis \d \(width\) has size {size}.*nearest valid sizes: {size - 1} or {size - 1 + step}"
    require(
        re.search(near, message) is not None,
        f"the error for a width of {size} does not name the axis and the nearest sizes {size - 1} and "
        f"{size - 1 + step}, as token_grids does: {message}",
    )


def check_image_size_error(name: str, patch_size: Sequence[int]) -> None:
    """An image of another size than the patch raises an error that names the axis, as ``check_input`` does."""
    network = create_network(name, 1, 2, patch_size)
    image = torch.zeros(1, 1, patch_size[0], 7, *patch_size[2:])
    message = _error(lambda: network(image), f"an image of {tuple(image.shape[2:])}")
    require(
        re.search(r"axis 1 .* built for patch_size", message) is not None,
        f"the error for an image of another size does not name the axis; call check_input: {message}",
    )


def check_plan_arguments(name: str, patch_size: Sequence[int]) -> None:
    """The network can be rebuilt from the arguments that a plan states, through JSON."""
    network = create_network(name, 2, 3, patch_size, auxiliary_heads=True)
    entry = get_network(name)
    arguments = json.loads(json.dumps(entry.plan_arguments(network, auxiliary_heads=True)))
    missing = sorted(set(entry.override_names) - set(arguments))
    require(not missing, f"{', '.join(missing)} are None by default; state the values in use in resolved_arguments")
    twin = entry.build(2, 3, **arguments)
    twin.load_state_dict(network.state_dict(), strict=True)


def check_no_weight_decay(name: str, patch_size: Sequence[int]) -> None:
    """``no_weight_decay`` names parameters of the network, including its tables and tokens."""
    with without_data():
        network = create_network(name, 1, 2, patch_size)
    stated, parameters = network.no_weight_decay(), {n for n, _ in network.named_parameters()}
    unknown = sorted(stated - parameters)
    require(not unknown, f"no_weight_decay names {', '.join(unknown)}, which are no parameters")
    decayed = sorted(n for n in parameters - stated if TABLES.search(n))
    require(
        not decayed,
        f"{', '.join(decayed)} get weight decay; return them from no_weight_decay of their layer or the network",
    )


def check_group_matcher(name: str, patch_size: Sequence[int]) -> None:
    """Layer-wise rates rise from the stem through the encoder, and the decoder is one further layer."""
    with without_data():
        network = create_network(name, 1, 2, patch_size)
    layers = group_parameters(network, network.group_matcher(), reverse=True)
    stem, encoder = _encoder_prefixes(network)
    of_stem, of_encoder, of_decoder = (
        {layers[n] for n, _ in network.named_parameters() if n.startswith(prefix)}
        for prefix in (stem, encoder, "decoder.")
    )
    require(of_stem == {0}, f"group_matcher puts the stem in layers {sorted(of_stem)}, not in the first")
    require(len(of_decoder) == 1, f"group_matcher distributes the decoder over {len(of_decoder)} layers")
    require(
        max(of_stem | of_encoder) < min(of_decoder),
        "group_matcher puts parameters of the encoder in the decoder's layer, so that they cannot be frozen without it",
    )


def check_autocast(name: str, patch_size: Sequence[int]) -> None:
    """Outputs and gradients of large values are finite in float16 and bfloat16."""

    def step(dtype: torch.dtype) -> tuple[SegmentationNetwork, Tensor]:
        network = _create_shallow(name, 1, 2, patch_size)
        with torch.autocast("cpu", dtype):
            output = network(1e3 * torch.randn(1, 1, *patch_size))
        output.float().mean().backward()
        return network, output

    for dtype in (torch.float16, torch.bfloat16):
        network, output = step(dtype)
        if not all(p.grad is None or p.grad.isfinite().all() for p in network.parameters()):
            # oneDNN's weight gradient of a bfloat16 convolution over few voxels reads memory that is not set
            with torch.backends.mkldnn.flags(enabled=False):
                network, output = step(dtype)
        require(bool(output.isfinite().all()), f"the output in {dtype} is not finite")
        _require_gradients(network, f" in {dtype}")


def check_activation_checkpointing(name: str, patch_size: Sequence[int]) -> None:
    """Activation checkpointing changes no output, gradient or statistic, also with stochastic depth."""
    known = get_network(name).override_names
    if "activation_checkpointing" not in known:
        return
    images = torch.randn(2, 1, *patch_size, dtype=torch.float64)
    overrides = {**shallow(name, len(patch_size)), **({"drop_path_rate": 0.5} if "drop_path_rate" in known else {})}
    results = []
    for active in (False, True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            network = create_network(
                name, 1, 2, patch_size, deep_supervision=True, activation_checkpointing=active, **overrides
            ).double()
            outputs = network(images)
            sum(o.square().mean() for o in outputs).backward()
        results.append([*outputs, *(p.grad for p in network.parameters()), *network.buffers()])
    for plain, recomputed in zip(*results, strict=True):
        _require_close(recomputed, plain, "activation checkpointing changes the result", rtol=1e-9, atol=1e-11)


def check_anisotropic_strides(name: str, patch_size: Sequence[int]) -> None:
    """In 3D a class that takes strides works with those that a planner chooses for thick slices."""
    taken = get_network(name).network_class.token_arguments
    if len(patch_size) == 2 or not {"patch_embed_stride", "merge_strides"} <= set(taken):
        return
    with without_data():
        network = create_network(name, 1, 3, patch_size)
    finest, merges = max(network.feature_strides[0]), len(network.grid_sizes) - 1
    if not merges:
        return
    strides: dict[str, Any] = {
        "patch_embed_stride": (1, finest, finest),
        "merge_strides": [(1, 2, 2)] * (merges - 1) + [(2, 2, 2)],
    }
    edge = finest * 2**merges
    network = create_network(name, 1, 3, (10, 2 * edge, edge), deep_supervision=True, **strides)
    outputs = network(torch.randn(1, 1, *network.patch_size))
    total = torch.tensor(network.strides).cumprod(0)
    for index, (output, stride) in enumerate(zip(outputs, total, strict=False)):
        _require_shape(output, (1, 3, *(torch.tensor(network.patch_size) // stride).tolist()), f"output {index}")
    sum(o.square().mean() for o in outputs).backward()
    _require_gradients(network)


NETWORK_CHECKS: tuple[Callable[[str, Sequence[int]], None], ...] = (
    check_arguments,
    check_forward_and_backward,
    check_deep_supervision,
    check_deep_supervision_switch,
    check_loading_between_training_and_inference,
    check_pickle_and_copy,
    check_batch_independence,
    check_encode,
    check_parts,
    check_buffers,
    check_device,
    check_logits,
    check_seed,
    check_patch_size_error,
    check_image_size_error,
    check_plan_arguments,
    check_no_weight_decay,
    check_group_matcher,
    check_autocast,
    check_activation_checkpointing,
    check_anisotropic_strides,
)


def shallow(name: str, ndim: int) -> dict[str, Any]:
    """Arguments for the fewest layers that still include every kind of layer, and for few channels of convolutions."""
    fewest: dict[str, Any] = {"depths": (2, 1, 1, 1), "depth": 2, "widths": (8, 16, 32, 64)}
    own = get_network(name).all_arguments(ndim)
    # published depths can be fewer still; None is the network's own choice
    return {
        key: _smaller(few, own[key]) if isinstance(own[key], (list, tuple)) else few
        for key, few in fewest.items()
        if key in own
    }


def _smaller(few: Sequence[int], own: Sequence[int]) -> tuple[int, ...]:
    """The smaller number for each stage, of which there can be more or fewer."""
    return tuple(map(min, zip_longest(few[: len(own)], own, fillvalue=few[-1])))


def _create_shallow(
    name: str, input_channels: int, num_classes: int, patch_size: Sequence[int], **arguments: Any
) -> SegmentationNetwork:
    """``create_network`` with the fewest layers, for what does not depend on their number."""
    return create_network(name, input_channels, num_classes, patch_size, **shallow(name, len(patch_size)), **arguments)


def _full_resolution(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def _encoder_prefixes(network: SegmentationNetwork) -> tuple[str, str]:
    return f"{network.key_to_stem}.", f"{network.key_to_encoder}."


def _require_shape(tensor: Tensor, shape: Sequence[int], what: str) -> None:
    require(tuple(tensor.shape) == tuple(shape), f"{what} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")


def _require_close(
    actual: Tensor, expected: Tensor, message: str, rtol: float | None = None, atol: float | None = None
) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, msg=lambda detail: f"{message}: {detail}")


def _require_gradients(network: nn.Module, when: str = "") -> None:
    without = [n for n, p in network.named_parameters() if p.grad is None]
    require(not without, f"{', '.join(without[:4])} get no gradient{when}, which DistributedDataParallel requires")
    infinite = [n for n, p in network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    require(not infinite, f"gradients of {', '.join(infinite[:4])} are not finite{when}")


def _error(call: Callable[[], object], what: str) -> str:
    """Call and return the message of the ValueError that it raises."""
    try:
        call()
    except ValueError as error:
        return str(error)
    raise AssertionError(f"{what} raises no ValueError")
