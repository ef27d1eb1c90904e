"""Exchange of layers for subclasses with CPU kernels."""

from __future__ import annotations

from torch import nn

from ..architectures.layers import SpatialReductionAttention, WindowAttention
from ..architectures.layers.channels_last import Conv2d, Conv3d
from ..architectures.layers.patch_transpose import PatchTranspose2d, PatchTranspose3d
from .allocator import keep_freed_memory
from .attention import CPUSpatialReductionAttention, CPUWindowAttention
from .depthwise import CPUConv2d, CPUConv3d, is_depthwise
from .linear import CPULinear, CPUPatchTranspose2d, CPUPatchTranspose3d

# a layer's class to the subclass that computes the same with a CPU kernel
CPU_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: CPULinear,
    Conv2d: CPUConv2d,
    Conv3d: CPUConv3d,
    PatchTranspose2d: CPUPatchTranspose2d,
    PatchTranspose3d: CPUPatchTranspose3d,
    SpatialReductionAttention: CPUSpatialReductionAttention,
    WindowAttention: CPUWindowAttention,
}
PLAIN_CLASSES = {cpu_class: plain_class for plain_class, cpu_class in CPU_CLASSES.items()}


def use_kernels(network: nn.Module) -> nn.Module:
    """Give the layers of a network their CPU kernels, in place.

    Each layer's class becomes a subclass with the same parameters under the same names. It computes as before on other
    devices, under autocast, and where a compiler or exporter traces it. Layers of other classes, including a user's
    subclass of a known one, are left unchanged. A second call changes nothing.

    Args:
        network: any.

    Returns:
        the same network.
    """
    for module in network.modules():
        cpu_class = CPU_CLASSES.get(type(module))
        if cpu_class is None or (isinstance(module, (Conv2d, Conv3d)) and not is_depthwise(module)):
            continue
        module.__class__ = cpu_class
    return network


def optimize(network: nn.Module) -> nn.Module:
    """Prepare a network for training or prediction on CPU, in place: ``use_kernels`` and ``keep_freed_memory``.

    Args:
        network: any.

    Returns:
        the same network.
    """
    keep_freed_memory()
    return use_kernels(network)


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module had before ``use_kernels``."""
    return PLAIN_CLASSES.get(type(module), type(module))
