"""Second pass: preprocess an image by a plan with nnU-Net, and store it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from ..._atomic import replacing
from ..._paths import inside
from .cases import ImageCase
from .image_store import compress, encode
from .index import PARTS, PreparedCase, Skipped
from .inspection import reason_of
from .intensities import may_be_labels
from .own_plan import LONGEST
from .reading import read_image

FLAT, VOLUME = PARTS
# factor by which nnU-Net's readers state the distance of the slices of a 2D image
FAR = 99


@dataclass(frozen=True)
class Preparation:
    """How images of one kind are prepared.

    Attributes:
        plans, configuration: plan, and name of its configuration.
        channels: channel names.
        takes: kinds of images, of ``PARTS``.
        part: subfolder of the prepared folder; empty for the folder itself.
    """

    plans: dict[str, Any]
    configuration: str
    channels: tuple[str, ...]
    takes: tuple[str, ...]
    part: str = ""

    @classmethod
    def planned(cls, plans: Mapping[str, Any], configuration: str, channels: list[str] | None) -> Preparation:
        """Return the preparation by a plan: volumes for 3D, all images for 2D, where volumes give slices."""
        found = _configuration(dict(plans), configuration)
        names = channels or ["image"] * len(found.normalization_schemes)
        spacing = list(found.spacing)
        is_2d = len(found.patch_size) == 2 or len(spacing) == 2 or spacing[0] >= FAR * max(spacing[1:])
        return cls({**plans}, configuration, tuple(names), PARTS if is_2d else (VOLUME,))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Preparation:
        """Restore what ``vars`` gives as JSON."""
        channels, takes = tuple(content["channels"]), tuple(content["takes"])
        return cls(content["plans"], content["configuration"], channels, takes, content["part"])

    @property
    def manager(self) -> ConfigurationManager:
        """The configuration as nnU-Net reads it."""
        return _configuration(self.plans, self.configuration)

    @property
    def longest(self) -> int | None:
        """Pixels of the longest side that 2D images are shrunk to; None for images of any size."""
        found: int | None = self.manager.configuration.get(LONGEST)
        return found

    def head(self) -> dict[str, Any]:
        """Return the entries of the index that describe the preparation."""
        return {
            "channels": self.channels,
            "spacing": list(self.manager.spacing),
            "normalization": list(self.manager.normalization_schemes),
            "plans": self.plans,
            "configuration": self.configuration,
        }


def _configuration(plans: dict[str, Any], name: str) -> ConfigurationManager:
    found: ConfigurationManager = PlansManager(plans).get_configuration(name)
    return found


@dataclass(frozen=True)
class Storing:
    """Settings of the second pass.

    Attributes:
        output: prepared folder.
        preparations: one, or one for 2D images and one for volumes.
        reader: name of nnU-Net's reader to try first.
        reorient: bring volumes to one orientation.
    """

    output: Path
    preparations: tuple[Preparation, ...]
    reader: str | None = None
    reorient: bool = False


@dataclass(frozen=True)
class Stored:
    """A preprocessed image.

    Attributes:
        case: its entry; the writer of the shards completes that of a 2D image.
        part: subfolder.
        content: compressed 2D image; empty for volumes, which have a file already.
        remarks: further entries of its line in the manifest.
    """

    case: PreparedCase
    part: str
    content: bytes
    remarks: dict[str, Any]


def store_case(settings: Storing, case: ImageCase) -> Stored | Skipped:
    """Preprocess an image; write a volume, return a 2D image. Or return why it cannot be used."""
    only = settings.preparations[0] if len(settings.preparations) == 1 else None
    try:
        channels = len(only.channels) if only else None
        image = read_image(case, settings.reader, settings.reorient, channels, only.longest if only else None)
    except Exception as error:  # each reader raises its own errors for broken files
        return Skipped(case.name, reason_of(error, "cannot be read"))
    kind = FLAT if image.is_flat else VOLUME
    preparation = next((p for p in settings.preparations if kind in p.takes), None)
    if preparation is None:
        found, wanted = ("a 2D image", "volumes") if image.is_flat else ("a volume", "2D images")
        return Skipped(case.name, f"is {found}, the folder's plan is for {wanted}; prepare it into another folder")
    if len(image.voxels) != len(preparation.channels):
        return Skipped(case.name, f"has {len(image.voxels)} channels, others {len(preparation.channels)}")
    remarks: dict[str, Any] = {"orientation": image.orientation} if image.orientation else {}
    if all(may_be_labels(channel) for channel in image.voxels):
        remarks["few_values"] = True
    plans, configuration = PlansManager(preparation.plans), preparation.manager
    # what nnU-Net resamples beside the image is the mask of its zeros, which nothing reads afterwards
    configuration.configuration.update(resampling_fn_seg="no_resampling_hack", resampling_fn_seg_kwargs={})
    box: tuple[slice, ...] = ()
    try:
        if preparation.longest is None:
            data, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
                image.voxels, None, image.properties, plans, configuration, {"labels": {}}
            )
            box = (slice(None), *(slice(*bounds) for bounds in properties["bbox_used_for_cropping"]))
        else:
            # neither cropped nor resampled, so that images of the same size keep their places in it
            data = DefaultPreprocessor(verbose=False)._normalize(
                image.voxels.copy(),
                np.zeros_like(image.voxels),
                configuration,
                plans.foreground_intensity_properties_per_channel,
            )
    except Exception as error:  # as above
        return Skipped(case.name, reason_of(error, "cannot be preprocessed"))
    data = data.astype(np.float32, copy=False)
    if not np.isfinite(data).all():
        return Skipped(case.name, "holds NaN or infinity after resampling and normalisation")
    original = None
    if data.shape[1] == 1:
        original = image.voxels.transpose([0, *(i + 1 for i in plans.transpose_forward)])[box]
    encoded = encode(data, original)
    entry = PreparedCase(case.name, tuple(data.shape), case.key, scale=encoded.scale, shift=encoded.shift)
    if original is not None:
        content = compress(encoded.voxels, tuple(configuration.patch_size)[-2:])
        return Stored(entry, preparation.part, content, remarks)
    path = inside(settings.output / preparation.part, f"{case.name}.b2nd")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = compress(encoded.voxels, configuration.patch_size)
    # bytes rather than blosc2's own file: it would replace the file that is locked as not being an orphan
    with replacing(path) as partial:
        partial.write_bytes(content)
    return Stored(entry, preparation.part, b"", remarks)


def with_place(stored: Stored, place: Mapping[str, Any]) -> Stored:
    """Return an image with its place in a shard."""
    return replace(stored, case=replace(stored.case, **place), content=b"")
