"""Faster kernels and memory allocation for training and prediction on CPU.

>>> network = optimize(create_network("qt_unet_tiny", 1, 3, (64, 64, 64)))
"""

from .allocator import keep_freed_memory, release_freed_memory
from .kernels import optimize, plain_class, use_kernels

__all__ = ["keep_freed_memory", "optimize", "plain_class", "release_freed_memory", "use_kernels"]
