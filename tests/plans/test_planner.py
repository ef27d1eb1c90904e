"""Whole plans from random fingerprints: every one builds, tiles, fits, and its network runs."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from math import inf, prod
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_transformers._meta import without_data
from nnunet_transformers.architectures import create_network, get_network, list_networks
from nnunet_transformers.architectures.layers import WindowPartition
from nnunet_transformers.discovery import PLANNERS
from nnunet_transformers.plans.memory import _LiveBytes, batch_bytes, training_peak_bytes
from nnunet_transformers.plans.mit import nnUNetPlannerMiT7
from nnunet_transformers.plans.planner import TransformerPlanner
from nnunet_transformers.plans.primus import nnUNetPlannerPrimusV2S
from nnunet_transformers.plans.qt_unet import nnUNetPlannerQTUNetB, nnUNetPlannerQTUNetT
from nnunet_transformers.plans.resnet_unet import nnUNetPlannerResNet50UNet
from nnunet_transformers.plans.setr_pup import nnUNetPlannerSETRPUP
from nnunet_transformers.plans.tiling import TokenPlan, TokenRules
from nnunet_transformers.plans.unet2022 import nnUNetPlannerUNet2022T
from tests.architectures.test_networks import EACH_CLASS, INSTALLED, SMALLEST, is_compared

CLASSES = [getattr(import_module(module), name) for name, module in PLANNERS.items()]
# of networks whose library is installed
USABLE = [planner_class for planner_class in CLASSES if planner_class.network_name in INSTALLED]


def plan(folder, planner_class, spacing, shape, channels=1, labels=2, cases=20, **kwargs):
    """Run a planner on a dataset that has only a fingerprint."""
    name = "Dataset903_Fingerprint"
    raw, preprocessed = (Path(folder) / kind / name for kind in ("raw", "preprocessed"))
    for path in (raw / "imagesTr", raw / "labelsTr", preprocessed):
        path.mkdir(parents=True, exist_ok=True)
    for channel in range(channels):
        (raw / "imagesTr" / f"case_{channel:04d}.nii.gz").touch()
    (raw / "labelsTr" / "case.nii.gz").touch()
    dataset = {
        "channel_names": {str(c): "MRI" for c in range(channels)},
        "labels": {"background": 0, **{f"label{i}": i for i in range(1, labels)}},
        "numTraining": cases,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
    }
    fingerprint = {
        "spacings": [list(spacing)] * 3,
        "shapes_after_crop": [list(shape)] * 3,
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {},
    }
    (raw / "dataset.json").write_text(json.dumps(dataset))
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    for kind in ("raw", "preprocessed"):
        os.environ[f"nnUNet_{kind}"] = str(Path(folder) / kind)
    planner = planner_class(name, **kwargs)
    planner.plan_experiment()
    return json.loads((preprocessed / f"{planner.plans_identifier}.json").read_text())


@contextmanager
def temporary_folder():
    """For one ``plan``, which sets nnU-Net's folders."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        for kind in ("raw", "preprocessed"):
            monkeypatch.setenv(f"nnUNet_{kind}", "")
        yield folder


def of_the_network(planner_class):
    """Configurations of a plan with this network for any dataset of volumes."""
    names = {2: "2d", 3: "3d_fullres"}
    return [names[ndim] for ndim in get_network(planner_class.network_name).dimensions]


def build(configuration, channels, labels):
    """A configuration's network as a training has it."""
    architecture = configuration["architecture"]
    name, arguments = architecture["network_class_name"], architecture["arch_kwargs"]
    return get_network_from_plans(name, arguments, (), channels, labels, deep_supervision=True)


def check(configuration, channels, labels, gigabytes):
    """A configuration's network builds, is tiled by its windows, fits in memory and runs."""
    networks, shapes = [], []

    def build_watched():
        networks.append(build(configuration, channels, labels))
        networks[0].register_forward_hook(
            lambda _, __, outputs: shapes.extend(
                output.shape for output in ([outputs] if isinstance(outputs, torch.Tensor) else outputs)
            )
        )
        return networks[0]

    patch_size, batch_size = configuration["patch_size"], configuration["batch_size"]
    own, peak = training_peak_bytes(build_watched, channels, patch_size, batch_size)
    assert own + peak <= gigabytes * 1e9 * 1.02
    check_shapes(configuration, networks[0], shapes, labels)


def check_shapes(configuration, network, shapes, labels):
    """Patch, batch, outputs and windows go together."""
    arguments = configuration["architecture"]["arch_kwargs"]
    assert arguments["patch_size"] == configuration["patch_size"]
    assert configuration["batch_size"] >= 2
    outputs = len(arguments["strides"]) - 1 if network.deeply_supervised else 1
    assert [shape[1] for shape in shapes] == [labels] * outputs
    assert list(shapes[0][2:]) == configuration["patch_size"]
    for partition in (m for m in network.modules() if isinstance(m, WindowPartition)):
        assert not partition.has_padding
        assert partition.window_length <= 400


# most patches of 8 GB have so many voxels that this decides about them, and with checkpointing some do not need it
VOXEL_BYTES, CHECKPOINTED_VOXEL_BYTES = 1500, 400
_parameter_bytes = {}


def estimated_bytes(planner, tokens, options, input_channels, batch_size):
    """Stands in for ``_peak_bytes``, which traces a training step in seconds."""
    if planner.network_name not in _parameter_bytes:
        arguments = planner.network_arguments(tokens)
        patch_size = arguments.pop("patch_size")
        with without_data():
            network = create_network(planner.network_name, 1, 2, patch_size, **arguments)
        _parameter_bytes[planner.network_name] = 16 * sum(p.numel() for p in network.parameters())
    voxel_bytes = CHECKPOINTED_VOXEL_BYTES if options.get("activation_checkpointing") else VOXEL_BYTES
    return _parameter_bytes[planner.network_name], batch_size * prod(tokens.patch_size) * voxel_bytes


@contextmanager
def quick_planning():
    """Plan with estimates of memory, and build no network twice: nnU-Net tries many spacings for its low resolution."""
    network_arguments, known = TransformerPlanner.network_arguments, {}

    def remembered(planner, tokens, **options):
        key = (planner.network_name, tokens, tuple(options.items()))
        if key not in known:
            known[key] = network_arguments(planner, tokens, **options)
        return dict(known[key])

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(TransformerPlanner, "_peak_bytes", estimated_bytes)
        # of its CNN, by which nnU-Net chooses the patch to start from: about its values in 3D
        monkeypatch.setattr(
            TransformerPlanner,
            "static_estimate_VRAM_usage",
            staticmethod(lambda patch_size, *_: 250 * prod(patch_size)),
        )
        monkeypatch.setattr(TransformerPlanner, "network_arguments", remembered)
        yield


def check_with_estimate(configuration, channels, labels, gigabytes, network_name):
    """As ``check``, with ``estimated_bytes``."""
    patch_size = configuration["patch_size"]
    with without_data():
        network, image = build(configuration, channels, labels), torch.empty(2, channels, *patch_size)
    # which keeps shapes that torch is slow to compute
    with torch.no_grad(), _LiveBytes():
        outputs = network(image)
        shapes = [output.shape for output in ([outputs] if isinstance(outputs, torch.Tensor) else outputs)]
    check_shapes(configuration, network, shapes, labels)
    checkpoints = configuration["architecture"]["arch_kwargs"].get("activation_checkpointing")
    voxel_bytes = CHECKPOINTED_VOXEL_BYTES if checkpoints else VOXEL_BYTES
    used = configuration["batch_size"] * prod(patch_size) * voxel_bytes
    assert used + _parameter_bytes[network_name] <= gigabytes * 1e9


def fingerprints(planner_classes):
    """Draw fingerprints of datasets, and planners."""
    return given(
        spacing=st.tuples(*[st.floats(0.2, 10)] * 3),
        shape=st.tuples(*[st.integers(8, 800)] * 3),
        channels=st.integers(1, 8),
        labels=st.integers(2, 40),
        planner_class=st.sampled_from(planner_classes),
    )


def examples(number):
    return settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck))


@examples(int(os.environ.get("PLANNER_EXAMPLES", "12")))
@fingerprints(USABLE)
def test_any_fingerprint(spacing, shape, channels, labels, planner_class):
    """With an estimate of memory in place of a trace, which takes most of the time of a plan."""
    with temporary_folder() as folder, quick_planning():
        plans = plan(folder, planner_class, spacing, shape, channels, labels)
    assert set(of_the_network(planner_class)) <= plans["configurations"].keys()
    for configuration in plans["configurations"].values():
        if "architecture" not in configuration:
            continue
        check_with_estimate(configuration, channels, labels, 8, planner_class.network_name)


@examples(int(os.environ.get("PLANNER_TRACED_EXAMPLES", "1")))
@fingerprints([planner_class for planner_class in USABLE if planner_class.network_name in SMALLEST])
def test_any_fingerprint_traced(spacing, shape, channels, labels, planner_class):
    with temporary_folder() as folder:
        plans = plan(folder, planner_class, spacing, shape, channels, labels)
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            check(configuration, channels, labels, gigabytes=8)


@pytest.mark.parametrize(
    "planner_class", [c for c in USABLE if not is_compared(c.network_name) or c.network_name in EACH_CLASS]
)
def test_every_planner(folder, planner_class):
    """Traced for one of each network's class; others have another width, and the same planner."""
    network_name = planner_class.network_name
    is_traced = network_name in EACH_CLASS
    with nullcontext() if is_traced else quick_planning():
        plans = plan(folder, planner_class, (5, 0.8, 0.8), (24, 160, 140), labels=3)
    assert list(plans["configurations"]) == of_the_network(planner_class)
    for configuration in plans["configurations"].values():
        assert configuration["training"] == {"mirror_axes": "unordered"}
        if is_traced:
            check(configuration, 1, 3, gigabytes=8)
        else:
            check_with_estimate(configuration, 1, 3, 8, network_name)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for kind in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{kind}", "")
    return tmp_path


def test_large_images_get_low_resolution_and_cascade(folder):
    traced = []

    class Planner(nnUNetPlannerMiT7):
        def _peak_bytes(self, tokens, options, input_channels, batch_size):
            traced.append((len(tokens.patch_size), batch_size))
            return super()._peak_bytes(tokens, options, input_channels, batch_size)

    plans = plan(folder, Planner, (0.8, 0.8, 0.8), (400, 500, 500), labels=4, plans_name="nnUNetMiT7Plans")
    # nnU-Net tries 28 spacings for the low resolution, of which only the last is traced, and its batch fits at once
    assert traced == [(3, 2), (3, 2), (2, 12)]
    configurations = plans["configurations"]
    assert set(configurations) == {"2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"}
    assert configurations["3d_cascade_fullres"] == {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    for name in ("2d", "3d_fullres", "3d_lowres"):
        check(configurations[name], 1, 4, gigabytes=8)
    # the cascade adds the low resolution's foreground as channels
    architecture = configurations["3d_fullres"]["architecture"]
    with without_data():
        get_network_from_plans(architecture["network_class_name"], architecture["arch_kwargs"], (), 1 + 3, 4)
    assert configurations["3d_fullres"]["data_identifier"] == "nnUNetPlans_3d_fullres"
    assert configurations["3d_lowres"]["data_identifier"] == "nnUNetMiT7Plans_3d_lowres"


@pytest.fixture
def quick():
    """``quick_planning``, for what does not depend on memory."""
    with quick_planning():
        yield


@pytest.mark.usefixtures("quick")
def test_networks_in_3d_have_no_2d_configuration(folder):
    configurations = plan(folder, nnUNetPlannerPrimusV2S, (3, 0.8, 0.8), (60, 300, 300))["configurations"]
    assert set(configurations) == {"3d_fullres"}
    assert configurations["3d_fullres"]["architecture"]["arch_kwargs"]["auxiliary_heads"] is False
    with pytest.raises(ValueError, match="primus_v2_s is a 3D network and Dataset903_Fingerprint has 2D images"):
        plan(folder, nnUNetPlannerPrimusV2S, (999, 1, 1), (1, 300, 300))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("planner_class", [nnUNetPlannerSETRPUP, nnUNetPlannerResNet50UNet])
def test_networks_in_2d_have_no_3d_configuration(folder, planner_class):
    plans = plan(folder, planner_class, (0.8, 0.8, 0.8), (400, 500, 500), labels=4)
    assert list(plans["configurations"]) == ["2d"]
    assert plans["configurations"]["2d"]["data_identifier"] == "nnUNetPlans_2d"
    # anisotropic pixels and small images do not change the strides of pretrained weights
    for spacing, shape in (((1, 0.5, 2), (1, 300, 200)), ((1, 1, 1), (1, 20, 24))):
        arguments = plan(folder, planner_class, spacing, shape)["configurations"]["2d"]["architecture"]["arch_kwargs"]
        assert arguments["strides"] == [[1, 1], *[[2, 2]] * (len(arguments["strides"]) - 1)]


def test_memory_target_sets_patch_and_batch(folder):
    patches = {}
    for gigabytes in (3, 24):
        plans = plan(
            folder / str(gigabytes), nnUNetPlannerMiT7, (1, 1, 1), (300, 300, 300), gpu_memory_target_in_gb=gigabytes
        )
        configuration = plans["configurations"]["3d_fullres"]
        check(configuration, 1, 2, gigabytes)
        patches[gigabytes] = prod(configuration["patch_size"]) * configuration["batch_size"]
    assert patches[3] < patches[24]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "voxel_bytes,told,active,shrinks",
    [
        (1000, None, False, False),
        (3000, None, True, False),
        (30000, None, True, True),
        (3000, False, False, True),
        (1000, True, True, False),
    ],
)
def test_checkpointing_comes_before_a_smaller_patch(folder, capsys, voxel_bytes, told, active, shrinks):
    """A network of so many bytes a voxel, an eighth of them with activation checkpointing, in 8 GB."""

    class Planner(nnUNetPlannerQTUNetT):
        network_overrides = {} if told is None else {"activation_checkpointing": told}

        def _peak_bytes(self, tokens, options, input_channels, batch_size):
            checkpoints = self.network_arguments(tokens, **options)["activation_checkpointing"]
            return 0, batch_size * prod(tokens.patch_size) * voxel_bytes // (8 if checkpoints else 1)

    configuration = plan(folder, Planner, (1, 1, 1), (160, 160, 160))["configurations"]["3d_fullres"]
    assert configuration["architecture"]["arch_kwargs"]["activation_checkpointing"] is active
    assert (configuration["patch_size"] != [128, 128, 128]) == shrinks
    said = "3d_fullres: activation checkpointing, as qt_unet_tiny does not fit 8 GB without" in capsys.readouterr().out
    assert said == (active and told is None)


def test_batch_where_memory_falls_from_some_batch_on(folder):
    """A batch size between two traced ones can need more memory than a line through them predicts."""
    traced = []

    class Planner(nnUNetPlannerQTUNetT):
        max_batch_ratio = inf

        def _peak_bytes(self, tokens, options, input_channels, batch_size):
            traced.append((len(tokens.patch_size), batch_size))
            return 0, int(batch_size * 1.8e9 / (1 if batch_size < 8 else 2))

    configurations = plan(folder, Planner, (1, 1, 1), (160, 160, 160), cases=1000)["configurations"]
    assert configurations["3d_fullres"]["batch_size"] == 4
    # and not one batch after another
    assert [batch_size for dimensions, batch_size in traced if dimensions == 3] == [2, 17, 7, 4]


def test_batch_has_the_voxels_of_nnunets(folder, monkeypatch):
    """Rounded up to whole samples, whatever memory is left; a planner can take more, to 5 % of the dataset."""

    def batches(**attributes):
        planner = type("Planner", (nnUNetPlannerMiT7,), attributes)
        configurations = plan(folder, planner, (1, 1, 1), (48, 68, 68), cases=300)["configurations"]
        return {
            name: (configurations[name]["patch_size"], configurations[name]["batch_size"])
            for name in ("2d", "3d_fullres")
        }

    monkeypatch.setattr(TransformerPlanner, "_peak_bytes", lambda *_: (0, 1))
    stock_plans = {2: ((80, 80), 30), 3: ((48, 80, 80), 7)}

    def stock(self, spacing, median_shape, *_):
        patch_size, batch_size = stock_plans[len(spacing)]
        return {"patch_size": patch_size, "batch_size": batch_size, "data_identifier": "any", "spacing": spacing}

    monkeypatch.setattr(ExperimentPlanner, "get_plans_for_configuration", stock)
    # 30 and 4.9 of the patches have as many voxels
    assert batches() == {"2d": ([80, 80], 30), "3d_fullres": ([48, 96, 96], 5)}
    assert batches(max_batch_ratio=0.5) == {"2d": ([80, 80], 15), "3d_fullres": ([48, 96, 96], 3)}
    everything = 0.05 * 300 * 48 * 68 * 68
    for patch_size, batch_size in batches(max_batch_ratio=inf).values():
        assert batch_size == round(everything / prod(patch_size))


def test_the_next_batch_is_counted(folder, monkeypatch):
    """Of float32 images with the channels of the input, and labels."""
    monkeypatch.setattr("nnunet_transformers.plans.planner.training_peak_bytes", lambda *_, **__: (5, 7))
    peaks = []

    class Planner(nnUNetPlannerMiT7):
        def _peak_bytes(self, *arguments):
            peaks.append((super()._peak_bytes(*arguments), arguments))
            return peaks[-1][0]

    plan(folder, Planner, (999, 1, 1), (1, 100, 100), channels=3)
    (static, peak), (tokens, _, channels, batch_size) = peaks[0]
    assert (static, channels) == (5, 3)
    assert peak == 7 + 4 * batch_size * prod(tokens.patch_size) * 4
    # float32 images, and a byte for each region at less than twice the voxels
    assert batch_bytes(3, (4, 5, 6), 2, regions=7) == 2 * 4 * 5 * 6 * (4 * 3 + 2 * 7)


def test_too_little_memory_is_an_error(folder):
    with pytest.raises(RuntimeError, match=r"does not fit 0\.5 GB .* larger -gpu_memory_target"):
        plan(folder, nnUNetPlannerQTUNetB, (1, 1, 1), (100, 100, 100), gpu_memory_target_in_gb=0.5)


def test_weights_that_leave_too_little_memory_get_fewer_stages(folder):
    """Of five stages the weights alone take 2 GB, and a patch of 8x8 left in the rest; four fit at the whole image."""
    configurations = plan(
        folder, nnUNetPlannerQTUNetB, (999, 1, 1), (1, 512, 512), cases=100, gpu_memory_target_in_gb=2
    )["configurations"]
    assert set(configurations) == {"2d"}
    check(configurations["2d"], 1, 2, gigabytes=2)
    assert configurations["2d"]["patch_size"] == [512, 512]
    assert configurations["2d"]["architecture"]["arch_kwargs"]["num_stages"] == 4


@pytest.mark.parametrize("static,voxel_bytes", [(7_990_000_000, 3000), (8_100_000_000, 0)])
def test_tiny_patches_are_refused(folder, static, voxel_bytes):
    """They would be trained in batches of thousands."""
    patches = []

    class Planner(nnUNetPlannerMiT7):  # its stages are fixed
        def _peak_bytes(self, tokens, options, input_channels, batch_size):
            patches.append(prod(tokens.patch_size))
            return static, batch_size * prod(tokens.patch_size) * voxel_bytes

    message = (
        r"does not fit 8 GB even at a patch of \(.*\) and 4 stages: its weights .* need .* GB, a batch of 2 .* GB;"
    )
    with pytest.raises(RuntimeError, match=message):
        plan(folder, Planner, (1, 1, 1), (160, 160, 160))
    # in steps: the patch after a small one may fit
    assert all(after >= before / 8 for before, after in pairwise(patches))
    assert patches[-1] >= 32**3 / 2


@pytest.mark.usefixtures("quick")
def test_tiny_patches_are_refused_where_strides_would_allow_them(folder):
    patches = []

    class Planner(nnUNetPlannerQTUNetT):
        network_overrides: ClassVar = {"activation_checkpointing": True}

        def _peak_bytes(self, tokens, options, input_channels, batch_size):
            patches.append(prod(tokens.patch_size))
            return 0, batch_size * prod(tokens.patch_size) * 10**6

    with pytest.raises(RuntimeError, match="does not fit 8 GB even at a patch of"):
        plan(folder, Planner, (1, 1, 1), (160, 160, 160))
    assert 32**3 / 2 <= patches[-1] <= 2 * 32**3


@pytest.mark.usefixtures("quick")
def test_dataset_without_cases_is_planned_as_by_nnunet(folder):
    configuration = plan(folder, nnUNetPlannerQTUNetT, (1, 1, 1), (40, 40, 40), cases=0)["configurations"]["3d_fullres"]
    assert (configuration["patch_size"], configuration["batch_size"]) == ([40, 40, 40], 2)


@pytest.mark.usefixtures("quick")
def test_plans_without_workers_for_augmentation(folder, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    assert plan(folder, nnUNetPlannerQTUNetT, (1, 1, 1), (40, 40, 40))["configurations"].keys() == {"2d", "3d_fullres"}


@pytest.mark.usefixtures("quick")
def test_labels_have_to_be_consecutive(folder):
    raw = folder / "raw/Dataset903_Fingerprint/dataset.json"
    plan(folder, nnUNetPlannerQTUNetT, (1, 1, 1), (40, 40, 40))
    dataset = json.loads(raw.read_text())

    def planner(labels, **entries):
        raw.write_text(json.dumps({**dataset, "labels": {"background": 0, **labels}, **entries}))
        return nnUNetPlannerQTUNetT(raw.parent.name)

    with pytest.raises(ValueError, match=r"labels in dataset.json are 0, 1, 3, but .* from 0 to 2\. Renumber"):
        planner({"a": 1, "b": 3})
    planner({"a": 1, "b": 2, "ignore": 3})
    planner({"all": [1, 3], "b": 3}, regions_class_order=[1, 3])


@pytest.mark.usefixtures("quick")
def test_own_data_where_spacing_is_overridden(folder):
    plans = plan(folder, nnUNetPlannerQTUNetT, (1, 1, 1), (40, 40, 40), overwrite_target_spacing=[2.0, 2.0, 2.0])
    assert plans["configurations"]["3d_fullres"]["data_identifier"] == "nnUNetQTUNetTPlans_3d_fullres"


@pytest.mark.usefixtures("quick")
def test_own_data_where_a_method_is_overridden(folder):
    """nnU-Net's own way to plan another spacing."""
    spacing = {"determine_fullres_target_spacing": lambda self: np.array([2.0, 2.0, 2.0])}
    own = type("nnUNetPlannerOwn", (nnUNetPlannerQTUNetT,), spacing)
    configurations = plan(folder, own, (1, 1, 1), (40, 40, 40))["configurations"]
    assert configurations["3d_fullres"]["spacing"] == [2, 2, 2]
    assert {c["data_identifier"] for c in configurations.values()} == {
        "nnUNetOwnPlans_2d",
        "nnUNetOwnPlans_3d_fullres",
    }


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "planner_class, expected", [(nnUNetPlannerQTUNetT, 0), (nnUNetPlannerQTUNetB, 0.1), (nnUNetPlannerUNet2022T, 0)]
)
def test_drop_path_of_large_networks_alone(folder, planner_class, expected):
    planned = plan(folder, planner_class, (1, 1, 1), (40, 40, 40))["configurations"]
    rates = [planned[name]["architecture"]["arch_kwargs"]["drop_path_rate"] for name in ("2d", "3d_fullres")]
    assert rates == [expected, expected]


@pytest.mark.usefixtures("quick")
def test_overrides_are_beside_those_of_the_class_that_is_extended(folder):
    own = type("nnUNetPlannerOwn", (nnUNetPlannerQTUNetT,), {"network_overrides": {"activation_checkpointing": False}})
    arguments = plan(folder, own, (1, 1, 1), (40, 40, 40))["configurations"]["3d_fullres"]["architecture"][
        "arch_kwargs"
    ]
    assert (arguments["norm_placement"], arguments["activation_checkpointing"]) == ("pre", False)


@pytest.mark.usefixtures("quick")
def test_settings_of_the_training(folder):
    own = type("nnUNetPlannerOwn", (nnUNetPlannerQTUNetT,), {"training": {"epochs": 5}})
    planned = plan(folder, own, (1, 1, 1), (40, 40, 40))["configurations"]
    assert [planned[name]["training"] for name in ("2d", "3d_fullres")] == [{"epochs": 5}] * 2


@pytest.mark.usefixtures("quick")
def test_what_is_not_planned_again_is_removed(folder, capsys):
    """nnU-Net would keep it beside the configurations of another network; the user's own stay."""
    path = Path(folder) / "preprocessed" / "Dataset903_Fingerprint" / "my.json"
    plans = plan(folder, nnUNetPlannerQTUNetT, (1, 1, 1), (40, 40, 40), plans_name="my")
    plans["configurations"]["mine"] = {"inherits_from": "2d", "batch_size": 3}
    path.write_text(json.dumps(plans))
    again = plan(folder, nnUNetPlannerResNet50UNet, (1, 1, 1), (40, 40, 40), plans_name="my")
    assert set(again["configurations"]) == {"2d", "mine"}
    assert "my.json had 3d_fullres, which this plan does not have; removed" in capsys.readouterr().out
    plans["configurations"]["mine"] = {"inherits_from": "3d_fullres", "batch_size": 3}
    path.write_text(json.dumps(plans))
    again = plan(folder, nnUNetPlannerResNet50UNet, (1, 1, 1), (40, 40, 40), plans_name="my")
    assert set(again["configurations"]) == {"2d", "3d_fullres", "mine"}


@pytest.mark.usefixtures("quick")
def test_a_slip_in_another_plan_does_not_matter(folder):
    other = plan(folder, ExperimentPlanner, (1, 1, 1), (40, 40, 40))
    other["configurations"]["3d_x"] = {"inherits_from": "3d_fulres", "batch_size": 4}
    path = Path(folder) / "preprocessed" / "Dataset903_Fingerprint" / "nnUNetPlans.json"
    path.write_text(json.dumps(other))
    planned = plan(folder, nnUNetPlannerQTUNetT, (1, 1, 1), (40, 40, 40))
    assert planned["configurations"]["3d_fullres"]["data_identifier"] == "nnUNetPlans_3d_fullres"


@pytest.mark.usefixtures("quick")
def test_own_data_where_stock_planned_other_data(folder):
    plan(folder, ExperimentPlanner, (1, 1, 1), (40, 40, 40))
    same = plan(folder, nnUNetPlannerQTUNetT, (1, 1, 1), (40, 40, 40))
    assert same["configurations"]["3d_fullres"]["data_identifier"] == "nnUNetPlans_3d_fullres"
    plan(folder, ExperimentPlanner, (1, 1, 1), (40, 40, 40), overwrite_target_spacing=[2.0, 2.0, 2.0])
    other = plan(folder, nnUNetPlannerQTUNetT, (1, 1, 1), (40, 40, 40))
    assert other["configurations"]["3d_fullres"]["data_identifier"] == "nnUNetQTUNetTPlans_3d_fullres"


class TestArgumentsThatTheNetworkDoesNotTake:
    """They raise errors that name class and argument, and are never dropped silently."""

    def assert_error(self, folder, base, message, **attributes):
        planner = type("nnUNetPlannerWrong", (base,), attributes)
        with pytest.raises(ValueError, match=message):
            plan(folder, planner, (1, 1, 1), (100, 100, 100))

    def test_override(self, folder):
        message = r"nnUNetPlannerWrong.network_overrides: QTUNet has no window_size; it takes .*window_sizes"
        self.assert_error(folder, nnUNetPlannerQTUNetT, message, network_overrides={"window_size": 7})

    def test_derived_override(self, folder):
        message = "network_overrides: the planner derives window_sizes from the patch, by the rules in token_rules"
        self.assert_error(folder, nnUNetPlannerQTUNetT, message, network_overrides={"window_sizes": 7})

    def test_windows(self, folder):
        message = "plans window_sizes, which MiT does not state .* windows=no_windows"
        self.assert_error(folder, nnUNetPlannerMiT7, message, token_rules=TokenRules(num_stages=4))

    def test_stages(self, folder):
        rules = replace(nnUNetPlannerSETRPUP.token_rules, num_stages=2)
        message = "plans a deepest grid of .* but SETRPUP has .*; its token_arguments are patch_embed_stride"
        self.assert_error(folder, nnUNetPlannerSETRPUP, message, token_rules=rules)


@pytest.mark.usefixtures("quick")
def test_plans_state_what_is_left_to_the_network(folder):
    """None is the network's own choice, which the plan holds."""
    own = type("nnUNetPlannerOwn", (nnUNetPlannerQTUNetT,), {"network_overrides": {"depths": None}})
    stated = [
        plan(folder, planner, (1, 1, 1), (40, 40, 40))["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
        for planner in (own, nnUNetPlannerQTUNetT)
    ]
    assert stated[0] == stated[1]
    assert stated[0]["depths"]


@pytest.mark.usefixtures("quick")
def test_plans_hold_the_paths_of_before(folder):
    """Plans do not depend on the module of a class inside its package."""
    modules = {"mit": "MiT", "qt_unet": "QTUNet", "resnet_unet": "ResNetUNet", "setr_pup": "SETRPUP"}
    modules |= {"unet2022": "UNet2022", "setr_pup_dinov3": "SETRPUPDINOv3", "vt_unet": "VTUNet", "resunet": "ResUnet"}
    modules |= {"primus": "Primus", "mednext": "MedNeXt", "unetr": "UNETR", "swin_unetr": "SwinUNETR"}
    paths = {f"nnunet_transformers.architectures.{module}.{name}" for module, name in modules.items()}
    assert {get_network(name).class_path for name in list_networks()} == paths
    plans = plan(folder, nnUNetPlannerMiT7, (1, 1, 1), (100, 100, 100))
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    assert architecture["network_class_name"] == "nnunet_transformers.architectures.mit.MiT"


def test_names():
    for name, planner_class in zip(PLANNERS, CLASSES, strict=True):
        assert planner_class.__name__ == name
        assert planner_class.default_plans_name() == f"{name.replace('Planner', '')}Plans"


def test_ends_with_a_line_for_each_configuration(folder, capsys):
    with quick_planning():
        plans = plan(folder, nnUNetPlannerQTUNetT, (1.0, 1.0, 1.0), (40, 60, 40))
    *_, two, three = capsys.readouterr().out.splitlines()
    for line, name in ((two, "2d"), (three, "3d_fullres")):
        planned = plans["configurations"][name]
        patch, stages = "x".join(map(str, planned["patch_size"])), planned["architecture"]["arch_kwargs"]["num_stages"]
        assert line.startswith(f"{name}: patch {patch}, batch {planned['batch_size']}; ")
        assert f" in {stages} stages; window" in line and line.endswith(" of 8 GB")


def test_the_line_counts():
    planner = nnUNetPlannerMiT7.__new__(nnUNetPlannerMiT7)
    tokens = TokenPlan((32, 32, 16), (4, 4, 2), ((2, 2, 2),), None)
    planner._parameters, planner.UNet_vram_target_GB = {tokens: 17_940_000}, 11.5
    assert planner._summary(tokens, 3, 2_960_000_000) == (
        "patch 32x32x16, batch 3; 512 tokens (8x8x8) in 2 stages; 17.9 M parameters; a step takes about 3.0 of 11.5 GB"
    )
