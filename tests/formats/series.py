"""DICOM series as a scanner writes them, of any image, by pydicom: MR or CT, any direction."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import SimpleITK as sitk

# storage classes
MR, CT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2"


def oblique(image: sitk.Image) -> sitk.Image:
    """Return an image with turned axes, an origin away from 0, and voxels that are no cubes."""
    turned = sitk.Image(image)
    turn = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 1.1)
    turned.SetDirection(turn.GetMatrix())
    turned.SetOrigin((-31.5, 12.25, 87.125))
    turned.SetSpacing((0.9, 0.9, 1.3))
    return turned


def write_series(folder: Path, image: sitk.Image, modality: str = "MR", **attributes: object) -> list[Path]:
    """Write an image of whole numbers as a DICOM series; the names of the files are in the opposite order.

    Args:
        folder: folder to make.
        image: 3D image.
        modality: MR, or CT with Hounsfield units.
        attributes: of every slice, such as SeriesInstanceUID.

    Returns:
        files in the order of the slices.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True)
    voxels = sitk.GetArrayFromImage(image)
    assert np.array_equal(voxels, voxels.round())
    shift = 1024 if modality == "CT" else 0
    series, frame, study = generate_uid(), generate_uid(), generate_uid()
    direction = np.array(image.GetDirection()).reshape(3, 3)
    now = datetime(2026, 3, 4, 5, 6, 7)
    files = []
    for number, plane in enumerate(voxels):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MR if modality == "MR" else CT
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        part = Dataset()
        part.file_meta = meta
        part.SOPClassUID, part.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        part.Modality, part.Manufacturer, part.SpecificCharacterSet = modality, "Scanner", "ISO_IR 100"
        part.PatientName, part.PatientID, part.PatientBirthDate, part.PatientSex = "Doe^Jane", "P1", "19700101", "F"
        part.StudyInstanceUID, part.StudyID, part.AccessionNumber = study, "1", "A1"
        part.ReferringPhysicianName = ""
        part.StudyDate = part.SeriesDate = part.ContentDate = now.strftime("%Y%m%d")
        part.StudyTime = part.SeriesTime = part.ContentTime = now.strftime("%H%M%S")
        part.SeriesInstanceUID, part.SeriesNumber, part.InstanceNumber = series, 3, len(voxels) - number
        part.FrameOfReferenceUID, part.PositionReferenceIndicator = frame, ""
        part.ImageType = ["ORIGINAL", "PRIMARY", "OTHER" if modality == "MR" else "AXIAL"]
        part.PatientPosition, part.Laterality = "HFS", "R"
        if modality == "MR":
            part.ScanningSequence, part.SequenceVariant, part.ScanOptions, part.MRAcquisitionType = (
                "GR",
                "NONE",
                "",
                "3D",
            )
            part.RepetitionTime, part.EchoTime, part.EchoTrainLength = 9.7, 4.0, 1
        position = image.TransformIndexToPhysicalPoint((0, 0, number))
        part.ImagePositionPatient = [f"{v:.10g}" for v in position]
        part.ImageOrientationPatient = [f"{v:.10g}" for v in (*direction[:, 0], *direction[:, 1])]
        part.PixelSpacing = [f"{v:.10g}" for v in image.GetSpacing()[1::-1]]
        part.SliceThickness = f"{image.GetSpacing()[2]:.10g}"
        part.Rows, part.Columns = plane.shape
        part.SamplesPerPixel, part.PhotometricInterpretation = 1, "MONOCHROME2"
        part.BitsAllocated, part.BitsStored, part.HighBit, part.PixelRepresentation = 16, 16, 15, 0
        if modality == "CT":
            part.KVP, part.AcquisitionNumber = 120, 1
            part.RescaleIntercept, part.RescaleSlope, part.RescaleType = -shift, 1, "HU"
        part.PixelData = (plane.astype(np.int64) + shift).astype("<u2").tobytes()
        for name, value in attributes.items():
            setattr(part, name, value)
        files.append(folder / f"IM{len(voxels) - number:04d}")
        part.save_as(files[-1], enforce_file_format=True)
    return files


def read_segmentation(path: Path, image: sitk.Image) -> tuple[np.ndarray, list[str]]:
    """Read a binary DICOM-SEG by its standard (PS3.3 A.51) with pydicom alone: each frame goes where it says.

    Args:
        path: DICOM-SEG.
        image: on whose grid it is.

    Returns:
        segment numbers, (slices, rows, columns), of segments that do not overlap, and their labels.
    """
    from pydicom import dcmread

    found = dcmread(path)
    segments = {int(s.SegmentNumber): s.SegmentLabel for s in found.SegmentSequence}
    assert list(segments) == list(range(1, len(segments) + 1))
    (shared,) = found.SharedFunctionalGroupsSequence
    measures, orientation = shared.PixelMeasuresSequence[0], shared.PlaneOrientationSequence[0]
    np.testing.assert_allclose(measures.PixelSpacing, image.GetSpacing()[1::-1], rtol=1e-6)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    np.testing.assert_allclose(orientation.ImageOrientationPatient, [*direction[:, 0], *direction[:, 1]], atol=1e-6)
    size = (found.NumberOfFrames, found.Rows, found.Columns)
    bits = np.unpackbits(np.frombuffer(found.PixelData, np.uint8), bitorder="little")[: np.prod(size)].reshape(size)
    result = np.zeros(image.GetSize()[::-1], np.uint8)
    for frame, groups in zip(bits, found.PerFrameFunctionalGroupsSequence, strict=True):
        index = image.TransformPhysicalPointToContinuousIndex(
            [float(v) for v in groups.PlanePositionSequence[0].ImagePositionPatient]
        )
        np.testing.assert_allclose(index, (0, 0, round(index[2])), atol=1e-3)
        assert not result[round(index[2])][frame > 0].any()
        result[round(index[2])][frame > 0] = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    return result, list(segments.values())
