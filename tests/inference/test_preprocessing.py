"""Preprocessing for prediction: nnU-Net's values to the last bit, without copies of the whole image."""

from __future__ import annotations

import os
import pickle
import sys
import tracemalloc
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from nnunet_transformers.inference import BatchedPredictor, image_resampling
from nnunet_transformers.inference.cases import check_axes, list_cases
from nnunet_transformers.inference.image_resampling import coefficient_bytes, in_bounded_memory
from nnunet_transformers.inference.preprocessing import PredictionPreprocessor, for_prediction
from tests.trainers.conftest import CPU

KINDS = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}


def image(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 3).astype(np.float32)


def configuration(scheme: str, use_mask: bool, spacing=(1.5, 1.5, 1.5), **changes) -> ConfigurationManager:
    resampling = {f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")}
    return ConfigurationManager(
        {
            "architecture": {},
            "preprocessor_name": "DefaultPreprocessor",
            "spacing": list(spacing),
            "normalization_schemes": ["CTNormalization", scheme],
            "use_mask_for_norm": [False, use_mask],
            **resampling,
            "resampling_fn_data_kwargs": KINDS,
            "resampling_fn_seg_kwargs": {**KINDS, "is_seg": True, "order": 1},
            **changes,
        }
    )


def plans(read: np.ndarray | None = None, axes=(0, 1, 2)) -> SimpleNamespace:
    """A plan whose reader returns an array."""
    reader = SimpleNamespace(read_images=lambda _: (read, {"spacing": [1.0, 0.8, 0.9]}))
    intensities = {"mean": 0.1, "std": 2.0, "percentile_00_5": -5.0, "percentile_99_5": 5.0}
    return SimpleNamespace(
        transpose_forward=list(axes),
        foreground_intensity_properties_per_channel={"0": intensities, "1": intensities},
        image_reader_writer_class=lambda: reader,
    )


def peak(work) -> tuple[int, object]:
    """Return the most bytes of arrays that some work has at a time, and its result."""
    tracemalloc.start()
    try:
        result = work()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("at_once", [0, 2**28])
@pytest.mark.parametrize(
    ("shape", "new_shape", "spacing"),
    [
        ((19, 21, 23), (13, 31, 14), (1, 1, 1)),
        ((19, 21, 23), (19, 11, 14), (1, 1, 1)),  # as a 2D plan
        ((1, 21, 23), (1, 31, 14), (999, 1, 1)),
        ((3, 5, 4), (2, 9, 4), (1, 1, 1)),
        ((7, 21, 23), (7, 11, 31), (5, 1, 1)),  # slice by slice
        ((7, 21, 23), (17, 11, 31), (5, 1, 1)),
        ((21, 23, 9), (11, 31, 4), (1, 1, 5)),
        ((7, 21, 23), (7, 21, 23), (1, 1, 1)),
    ],
)
@pytest.mark.parametrize("order", [0, 1, 2, 3, 5])
def test_resampling_to_the_last_bit(monkeypatch, order, shape, new_shape, spacing, at_once):
    monkeypatch.setattr(image_resampling, "AT_ONCE", at_once)
    function = partial(resample_data_or_seg_to_shape, **{**KINDS, "order": order})
    data = image(2, *shape)
    turned = image(2, *shape[::-1]).transpose(0, 3, 2, 1)
    for one in (data, turned):
        before = one.copy()
        ours = in_bounded_memory(function)(one, np.array(new_shape), spacing, (1, 1, 1))
        theirs = function(one, np.array(new_shape), spacing, (1, 1, 1))
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)
        assert np.array_equal(one, before)


def test_what_is_left_to_nnunet():
    """Splines across slices, other types and functions."""
    function = partial(resample_data_or_seg_to_shape, **{**KINDS, "order_z": 1})
    for data in (image(1, 7, 9, 8), image(1, 7, 9, 8).astype(float)):
        ours = in_bounded_memory(function)(data, (5, 11, 6), (5, 1, 1), (1, 1, 1))
        theirs = function(data, (5, 11, 6), (5, 1, 1), (1, 1, 1))
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)
    for other in (partial(resample_data_or_seg_to_shape, is_seg=True), len, partial(len)):
        assert in_bounded_memory(other) is other


def test_resampling_needs_a_share_of_the_coefficients(monkeypatch):
    """nnU-Net's needs the image, its padded copy and the coefficients in float64."""
    monkeypatch.setattr(image_resampling, "AT_ONCE", 0)
    data, new_shape = image(1, 96, 64, 64), (64, 40, 40)
    function = partial(resample_data_or_seg_to_shape, **KINDS)
    ours, result = peak(lambda: in_bounded_memory(function)(data, new_shape, (1, 1, 1), (1, 1, 1)))
    theirs, _ = peak(lambda: function(data, new_shape, (1, 1, 1), (1, 1, 1)))
    assert coefficient_bytes(data.shape[1:]) < 0.3 * 8 * 120 * 88 * 88
    assert ours < 1.3 * coefficient_bytes(data.shape[1:]) + result.nbytes
    assert ours < 0.25 * theirs


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (1.1, 1.3)])
@pytest.mark.parametrize(("scheme", "use_mask"), [("ZScoreNormalization", False), ("ZScoreNormalization", True)])
def test_images_and_properties_are_nnunets(axes, spacing, scheme, use_mask):
    data = image(2, 14, 20, 17)
    data[:, :2] = data[:, :, -3:] = 0
    data[:, 5:8, 6:9, 7:10] = 0  # a hole
    before = data.copy()
    theirs_config = configuration(scheme, use_mask, spacing)
    ours_config = for_prediction(theirs_config)
    noted: list[dict] = [{"spacing": [1.0, 0.8, 0.9]} for _ in range(2)]
    theirs, _, _ = DefaultPreprocessor(verbose=False).run_case_npy(
        data, None, noted[0], plans(axes=axes), theirs_config, {}
    )
    preprocessor = PredictionPreprocessor(verbose=False)
    ours, labels, _ = preprocessor.run_case_npy(data, None, noted[1], plans(axes=axes), ours_config, {})
    assert labels is None
    assert np.array_equal(data, before)
    read, _, of_file = preprocessor.run_case(["a.nii.gz"], None, plans(data, axes), ours_config, {})
    assert np.array_equal(ours, theirs)
    assert np.array_equal(read, theirs)
    assert noted[0] == noted[1] == of_file


def test_segmentation_of_the_previous_stage():
    """It is preprocessed as by nnU-Net."""
    data, stage = image(2, 9, 12, 10), (image(1, 9, 12, 10) > 0).astype(np.float32)
    plan = plans(data)
    plan.get_label_manager = lambda _: SimpleNamespace(
        has_regions=False, has_ignore_label=False, foreground_labels=[1], all_labels=[0, 1]
    )
    reader = plan.image_reader_writer_class()
    reader.read_seg = lambda _: (stage, {})
    theirs_config = configuration("ZScoreNormalization", False)
    for method, given in (("run_case", (["a"], "b")), ("run_case_npy", (data, stage, {"spacing": [1.0, 0.8, 0.9]}))):
        (ours, labels, _), (theirs, their_labels, _) = (
            getattr(kind(verbose=False), method)(*given, plan, config, {})
            for kind, config in (
                (PredictionPreprocessor, for_prediction(theirs_config)),
                (DefaultPreprocessor, theirs_config),
            )
        )
        assert np.array_equal(ours, theirs)
        assert np.array_equal(labels, their_labels)


@pytest.mark.parametrize("stage", [None, "b"])
def test_channels_that_the_model_lacks(stage):
    """They are named before anything is computed with them."""
    names = {"channel_names": {"0": "T1", "1": "T2", "2": "FLAIR"}}
    preprocessor, config = PredictionPreprocessor(verbose=False), configuration("ZScoreNormalization", False)
    message = r"case_0000\.nii\.gz: the image has 2 channels, the model takes 3 \(T1, T2, FLAIR\)"
    with pytest.raises(ValueError, match=message):
        preprocessor.run_case(["in/case_0000.nii.gz"], stage, plans(image(2, 9, 12, 10)), config, names)


@pytest.mark.parametrize("stage", [None, "b"])
def test_channels_on_different_grids(stage, tmp_path):
    """The reader's own error says nothing."""
    for number in range(2):
        path = tmp_path / f"case_{number:04d}.nii.gz"
        sitk.WriteImage(sitk.Image((5, 6, 7 + number), sitk.sitkFloat32), str(path))
    plan = SimpleNamespace(image_reader_writer_class=SimpleITKIO)
    with pytest.raises(ValueError, match=r"^case_0000\.nii\.gz, case_0001\.nii\.gz: the channels differ in size or"):
        PredictionPreprocessor(verbose=False).run_case(sorted(map(str, tmp_path.iterdir())), stage, plan, None, {})


@pytest.mark.parametrize(("size", "components", "has"), [((5, 6, 7, 2), 1, "4 axes"), ((5, 6, 7), 2, "2 values per")])
def test_files_of_several_channels(size, components, has, tmp_path):
    """Readers take the slices of a vector image for channels, and fail to write a segmentation of a 4D one."""
    path = tmp_path / "case_0000.nii.gz"
    kind = sitk.sitkVectorFloat32 if components > 1 else sitk.sitkFloat32
    sitk.WriteImage(sitk.Image(size, kind, components if components > 1 else 0), str(path))
    with pytest.raises(ValueError, match=rf"^case_0000\.nii\.gz has {has}.*; write each channel to a file of its own"):
        check_axes([path])
    picture = tmp_path / "case_0000.png"
    sitk.WriteImage(sitk.Image((5, 6), sitk.sitkVectorUInt8, 3), str(picture))
    check_axes([picture])


def test_files_that_the_model_lacks(tmp_path):
    """More files than channels; fewer may hold several each."""
    for number in range(3):
        (tmp_path / f"case_{number:04d}.png").touch()
    content = {"channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".png"}
    with pytest.raises(ValueError, match=r"case: 3 files, the model takes 2 channels \(T1, T2\)"):
        list_cases(tmp_path, content)
    (tmp_path / "case_0002.png").unlink()
    assert len(list_cases(tmp_path, content)[0]) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have names in Unicode alone")
def test_names_that_are_not_utf8(tmp_path):
    """SimpleITK would end the process."""
    with open(os.fsencode(tmp_path) + b"/M\xfcller_0000.png", "wb"):
        pass
    with pytest.raises(ValueError, match=r"Müller_0000\.png: its name is not UTF-8; rename it"):
        list_cases(tmp_path, {"channel_names": {"0": "T1"}, "file_ending": ".png"})


def test_links_to_nothing(tmp_path):
    """As of images under version control whose content was not fetched: the case is not left out in silence."""
    (tmp_path / "a_0000.png").touch()
    (tmp_path / "b_0000.png").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"b_0000\.png: a link to nothing, or no regular file; get the file"):
        list_cases(tmp_path, {"channel_names": {"0": "T1"}, "file_ending": ".png"})


def test_no_copy_of_an_image_that_was_read():
    """Cropped, normalised and, where nothing is resampled, handed on in the reader's memory."""
    data = image(2, 40, 50, 60)
    data[:, :3] = 0
    size, config = data.nbytes, for_prediction(configuration("NoNormalization", False, (1.0, 0.8, 0.9)))

    def preprocess():
        return PredictionPreprocessor(verbose=False).run_case(["a.nii.gz"], None, plans(data), config, {})[0]

    preprocess()  # nnU-Net imports what it normalises with
    most, result = peak(preprocess)
    assert np.shares_memory(result, data)
    assert result.shape == (2, 37, 50, 60)
    assert most < 0.4 * size


def test_predictors_have_it():
    """Those of a folder are covered by their segmentations; nnU-Net's workers get the configuration by pickle."""
    labels = SimpleNamespace(get_label_manager=lambda _: None)
    config = configuration("NoNormalization", False)
    predictor = BatchedPredictor(device=CPU, allow_tqdm=False)
    predictor.manual_initialization(nn.Identity(), labels, config, [{}], {}, "", None)
    sent = pickle.loads(pickle.dumps(predictor.configuration_manager))
    assert sent.preprocessor_class is PredictionPreprocessor
    assert config.preprocessor_class is DefaultPreprocessor
    assert for_prediction(sent) is sent
    of_another = configuration("NoNormalization", False, preprocessor_name="nothing")
    assert for_prediction(of_another).preprocessor_class is None
