"""Kinds of image files, by their endings and first bytes."""

from __future__ import annotations

from ...formats import dicom_series

# pictures, whose pixels have no size in mm; nnU-Net excludes JPEG because it damages labels, which are not needed here
PICTURES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")
FILE_ENDINGS = (*VOLUMES, *PICTURES)


def ending_of(name: str) -> str:
    """Return the ending of an image file in lower case; empty for other files.

    >>> ending_of("patient.1.NII.GZ")
    '.nii.gz'
    """
    return next((ending for ending in (*FILE_ENDINGS, *dicom_series.ENDINGS) if name.lower().endswith(ending)), "")


def strip_ending(name: str) -> str:
    """Remove the ending of the file format from a name; other dots belong to the name.

    >>> strip_ending("patient.1.nii.gz")
    'patient.1'
    """
    return name[: len(name) - len(ending_of(name))]
