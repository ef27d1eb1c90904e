"""Pictures do not depend on how a volume is stored: anterior is up, and the patient's right is at the left."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from PIL import Image

from nnunet_transformers.evaluation import Evaluation
from nnunet_transformers.evaluation.report.cards import section
from nnunet_transformers.evaluation.report.compared_case import Sources, read_case
from nnunet_transformers.evaluation.report.orientation import View

STORED = ("LPS", "RAS", "LAS", "PIR", "ASL", "IRA")
READERS = (SimpleITKIO, NibabelIO, NibabelIOWithReorient)


def volume(orientation="LPS", spacing=(1.0, 1.5, 2.0), degrees=0.0, shift=0):
    """A volume without symmetry, known in LPS and stored in another order; a shift moves its label to the left."""
    voxels = np.zeros((4, 6, 8), np.uint8)
    voxels[1, 1:5, 1 + shift] = 1  # from anterior to posterior, on the right
    voxels[1, 1, 1 + shift : 4 + shift] = 1  # anterior
    voxels[2, 1, 5] = 2
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    turn = np.deg2rad(degrees)
    c, s = np.cos(turn), np.sin(turn)
    image.SetDirection((c, -s, 0, s, c, 0, 0, 0, 1))
    return voxels, sitk.DICOMOrient(image, orientation)


@pytest.mark.parametrize("reader", READERS, ids=lambda r: r.__name__)
@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("degrees", [0, 30])
def test_axial(reader, orientation, degrees, tmp_path):
    voxels, image = volume(orientation, degrees=degrees)
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    read, properties = reader().read_images([str(tmp_path / "a.nii.gz")])
    view = View.of(properties, read[0].shape)
    assert np.array_equal(view.apply(read[0]), voxels)
    assert np.allclose(view.spacing, (2.0, 1.5, 1.0))
    assert view.edges == ("R", "L", "A", "P")
    assert view.place(2, 4) == "axial slice 3 of 4, from I to S"


@pytest.mark.parametrize(
    "spacing,plane,edges",
    [((4, 1, 1), "sagittal", ("A", "P", "S", "I")), ((1, 4, 1), "coronal", ("R", "L", "S", "I"))],
)
@pytest.mark.parametrize("orientation", STORED)
def test_thick_slices_are_those_of_the_acquisition(spacing, plane, edges, orientation, tmp_path):
    voxels, image = volume(orientation, spacing)
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    read, properties = SimpleITKIO().read_images([str(tmp_path / "a.nii.gz")])
    view = View.of(properties, read[0].shape)
    assert (view.plane, view.edges, view.spacing[0]) == (plane, edges, 4)
    # the voxels go up to the left, the back and the head; superior is up
    expected = {"sagittal": voxels.transpose(2, 0, 1), "coronal": voxels.transpose(1, 0, 2)}[plane][:, ::-1]
    assert np.array_equal(view.apply(read[0]), expected)


def test_a_picture_is_drawn_as_it_is(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read, properties = NaturalImage2DIO().read_images([str(tmp_path / "a.png")])
    view = View.of(properties, read[0].shape)
    assert np.array_equal(view.apply(read[0])[0], pixels) and view.edges is None and view.place(0, 1) == ""


def test_pages_are_equal(tmp_path):
    """A folder in each order of storage gives the same pictures."""
    pictures = set()
    for orientation in STORED:
        folders = {name: tmp_path / orientation / name for name in ("labels", "a", "b")}
        for shift, folder in enumerate(folders.values()):
            folder.mkdir(parents=True)
            sitk.WriteImage(volume(orientation, shift=shift)[1], str(folder / "case.nii.gz"))
        reference = folders.pop("labels") / "case.nii.gz"
        files = {name: {"case": (str(folder / "case.nii.gz"), str(reference))} for name, folder in folders.items()}
        evaluations = {name: Evaluation({"1": "one"}, ["Dice"], files[name], np.ones(1)) for name in folders}
        drawn = read_case("case", ["a", "b"], Sources(evaluations, folders, None, None), [[1], [2]])
        pictures.add(section("case", "", drawn, 1, ["a", "b"], 2, 0))
    assert len(pictures) == 1
    assert "<b class='left' aria-hidden='true'>R</b>" in pictures.pop()
