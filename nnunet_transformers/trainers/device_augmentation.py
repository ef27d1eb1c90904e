"""Training images are augmented on the GPU, where nnU-Net's processes do not keep up with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor
from torch.backends import cudnn
from torch.utils._pytree import tree_leaves

from .device_transforms import on_device


class AugmentsOnDevice(nnUNetTrainer):
    """Mixin for a trainer, listed before its class.

    nnU-Net's processes then only read and crop, with the margin that a rotation needs; the transforms, the same in the
    same order, run in this process. Validation's loader stays as it is.

    Attributes:
        augment_on_device: whether training images are augmented on the training's device.
    """

    dataloader_train: Any
    augment_on_device = False

    def get_dataloaders(self) -> tuple[Any, Any]:
        if not self.augment_on_device:
            loaders: tuple[Any, Any] = super().get_dataloaders()
            return loaders
        transforms: list[BasicTransform] = []
        create = self.get_training_transforms

        def keep(*arguments: Any, **options: Any) -> None:
            """What the loader gets: none."""
            transforms.append(create(*arguments, **options))

        with patch.object(self, "get_training_transforms", keep):
            training, validation = super().get_dataloaders()
        loader = DeviceLoader(training, transforms[0], self.device)
        # between the forward and the backward pass, while the device is busy and the host is not
        self.loss.register_forward_pre_hook(lambda *_: loader.prefetch())
        return loader, validation

    def on_train_end(self) -> None:
        if isinstance(self.dataloader_train, DeviceLoader):
            self.dataloader_train = self.dataloader_train.source  # whose processes nnU-Net ends
        super().on_train_end()


class DeviceLoader(Iterator[dict[str, Any]]):
    """Batches of crops, augmented on a device, one of them ahead.

    Args:
        source: yields "data" (batch, channels, *crop), "target" (batch, segmentations, *crop) and "keys".
        transforms: of a sample.
        device: on CUDA a stream of its own augments, beside the training's.
    """

    def __init__(self, source: Iterator[dict[str, Any]], transforms: BasicTransform, device: torch.device) -> None:
        self.source = source
        self.transforms = on_device(transforms, device)
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: dict[str, Any] | None = None

    def __next__(self) -> dict[str, Any]:
        self.prefetch()
        batch, self._next = self._next, None
        assert batch is not None
        if self.stream is not None:
            training = torch.cuda.current_stream(self.device)
            training.wait_stream(self.stream)
            for value in tree_leaves(batch):
                if isinstance(value, Tensor):
                    value.record_stream(training)
        return batch

    def prefetch(self) -> None:
        """Start to augment the next batch, unless that is done."""
        if self._next is None:
            with torch.cuda.stream(self.stream):
                self._next = augment(next(self.source), self.transforms, self.device)


@torch.no_grad()
def augment(batch: dict[str, Any], transforms: BasicTransform, device: torch.device) -> dict[str, Any]:
    """Augment the samples of a batch one by one.

    Args:
        batch: as ``DeviceLoader``'s; in page-locked memory the host does not wait for the copy.
        transforms: of ``on_device``.
        device: theirs.

    Returns:
        the batch as nnU-Net's loader yields it: "data" (batch, channels, *patch), "target" likewise, or a list of them
        from fine to coarse under deep supervision, and "keys".
    """
    images, labels = (batch[name].to(device, non_blocking=True) for name in ("data", "target"))
    with full_precision(device):
        samples = [transforms(image=i, segmentation=s) for i, s in zip(images, labels, strict=True)]
    targets = [sample["segmentation"] for sample in samples]
    if isinstance(targets[0], list):
        target: Any = [torch.stack(level) for level in zip(*targets, strict=True)]
    else:
        target = torch.stack(targets)
    return {**batch, "data": torch.stack([sample["image"] for sample in samples]), "target": target}


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """As on the CPU: no autocast, which a training step has, and convolutions in float32 rather than TF32."""
    # not "benchmark": a blur's kernel has another width in every sample, and cuDNN would try its algorithms each time
    kept = {name: getattr(cudnn, name) for name in ("enabled", "deterministic")}
    with torch.autocast(device.type, enabled=False), cudnn.flags(**kept, allow_tf32=False):
        yield
