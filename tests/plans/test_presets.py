"""Every preset: its network builds, its plan is complete, and nnU-Net reads it."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
import typer
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

import nnunet_transformers
from nnunet_transformers.architectures import create_network, get_network
from nnunet_transformers.cli import app
from nnunet_transformers.discovery import PLANNERS, TRAINERS
from nnunet_transformers.plans.memory import CUDA_OVERHEAD
from nnunet_transformers.plans.presets import apply_preset, get_preset, load_presets
from nnunet_transformers.plans.qt_unet import nnUNetPlannerQTUNetT
from tests.plans.test_planner import plan, quick_planning

PRESETS = load_presets()
DOCUMENT = Path(__file__).parents[2] / "docs" / "presets.md"
DATASET = "Dataset903_Fingerprint"
SOURCES = (
    "UNet-2022",
    "UniMiSS appendix",
    "MGCA supplement",
    "QT-UNet thesis",
    "MedNeXt's release",
    "SwinUNETR's release",
    "Alice",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for kind in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{kind}", str(tmp_path / kind))
    return tmp_path


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A dataset with a fingerprint and the plan of QT-UNet Tiny, 3 mm slices."""
    folder = tmp_path_factory.mktemp("planned")
    with pytest.MonkeyPatch.context() as monkeypatch, quick_planning():
        for kind in ("raw", "preprocessed"):
            monkeypatch.setenv(f"nnUNet_{kind}", "")
        plan(folder, nnUNetPlannerQTUNetT, (3.0, 0.8, 0.8), (60, 100, 100), labels=3)
    return folder


@pytest.fixture
def planned(original, folder):
    """A copy of it to work on."""
    shutil.copytree(original, folder, dirs_exist_ok=True)
    return folder / "preprocessed" / DATASET


class TestTable:
    def test_all_experiments(self):
        assert len(PRESETS) == 5 + 3 + 4 + 4 + 3 * (3 + 10 + 4) + 3 * (3 + 10) + 6 + 3 + 2

    @pytest.mark.parametrize("name", PRESETS)
    def test_entry(self, name):
        preset = PRESETS[name]
        assert preset.configuration in ("2d", "3d_fullres")
        assert preset.ndim == (2 if preset.configuration == "2d" else 3)
        assert preset.spacing is None or len(preset.spacing) == preset.ndim
        assert preset.batch_size >= 1
        assert 0 < preset.step_size <= 1
        assert set(preset.published) <= {"pretrained", "scratch"}
        assert all(0 <= value <= 100 for metrics in preset.published.values() for value in metrics.values())
        assert set(preset.data) == {"channels", "classes"}
        assert preset.source.startswith(SOURCES)
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")

    @pytest.mark.parametrize("name", PRESETS)
    def test_is_in_the_documentation(self, name):
        preset = PRESETS[name]
        row = next(line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| `{name}` |"))
        values = [f"{value:g}" for metrics in preset.published.values() for value in metrics.values()]
        for text in (preset.network, "x".join(map(str, preset.patch_size)), preset.source, *values):
            assert text in row

    @pytest.mark.parametrize("name", [n for n in PRESETS if PRESETS[n].published])
    def test_published_metrics_can_be_computed(self, name):
        """The command exists with these options, and stands in the documentation."""
        name, *arguments = PRESETS[name].evaluation.split()
        typer.main.get_command(app).commands[name].make_context(name, [*arguments])
        assert f"`nnunet-transformers {' '.join([name, *arguments])}`" in DOCUMENT.read_text()

    def test_is_shipped(self):
        assert (Path(nnunet_transformers.__file__).parent / "plans" / "presets.yaml").is_file()

    @pytest.mark.parametrize("name,hint", [("synapse-322", "did you mean synapse-32"), ("xyz", "preset --list")])
    def test_unknown(self, name, hint):
        with pytest.raises(ValueError, match=f"unknown preset '{name}'; .*{hint}"):
            get_preset(name)


def networks():
    """The first preset of each network with its arguments: what only the data change is the same network."""
    found = {}
    for name, preset in PRESETS.items():
        if get_network(preset.network).missing_extra:
            continue
        found.setdefault((preset.network, *preset.patch_size, str(preset.overrides), preset.deep_supervision), name)
    return found.values()


class TestNetwork:
    @pytest.mark.parametrize("name", networks())
    def test_builds_and_states_everything(self, name):
        preset = PRESETS[name]
        channels, classes = preset.data["channels"] or 1, preset.data["classes"] or 2
        arguments = preset.network_arguments(channels, classes)
        # a plan outlives a change of defaults, so it states every argument that has a value
        known = get_network(preset.network).all_arguments(preset.ndim)
        assert {n for n, value in known.items() if value is not None} | {"strides", "patch_size"} <= set(arguments)
        assert None not in arguments.values()
        assert preset.overrides.items() <= arguments.items()
        with torch.device("meta"):
            network = get_network_from_plans(
                get_network(preset.network).class_path,
                arguments,
                [],
                channels,
                classes,
                deep_supervision=preset.deep_supervision,
            )
        assert list(network.patch_size) == list(preset.patch_size)
        assert [list(s) for s in network.strides] == arguments["strides"]
        # two outputs at least, or nnU-Net's weights of deep supervision are NaN
        assert len(arguments["strides"]) >= (3 if preset.deep_supervision else 2)

    @pytest.mark.parametrize("name", networks())
    def test_output(self, name):
        preset = PRESETS[name]
        channels, classes = preset.data["channels"] or 1, preset.data["classes"] or 2
        with torch.device("meta"), torch.no_grad():
            arguments = {"deep_supervision": preset.deep_supervision, **preset.overrides}
            network = create_network(preset.network, channels, classes, preset.patch_size, **arguments)
            output = network(torch.zeros(1, channels, *preset.patch_size))
        full = output[0] if preset.deep_supervision else output
        assert list(full.shape) == [1, classes, *preset.patch_size]

    @pytest.mark.parametrize("name", PRESETS)
    def test_planner_and_trainer_are_ours(self, name):
        preset = PRESETS[name]
        assert preset.planner in PLANNERS
        assert preset.trainer in TRAINERS
        assert (
            find_network_class(preset) is getattr(import_module(TRAINERS[preset.trainer]), preset.trainer).network_class
        )


def find_network_class(preset):
    return get_network(preset.network).network_class


@pytest.mark.parametrize(
    "name,iterations,rate",
    [
        # iterations and rates of the releases, or of the papers' tables
        ("synapse-224", 375_000, 1e-4),
        ("synapse-320", 360_000, 1e-4),
        ("acdc-224", 81_000, 1e-4),
        ("isic-512", 4_300, 1.3e-4),
        ("em-512", 6_000, 7e-4),
        ("unimiss-bcv", 25_000, 1e-4),
        ("unimiss-chaos", 50_000, 1e-4),
        ("unimiss-jsrt", 10_000, 1e-4),
        ("unimiss-isic", 37_500, 1e-4),
    ],
)
def test_length_and_rate(name, iterations, rate):
    settings = PRESETS[name].settings
    assert settings.epochs * settings.iterations_per_epoch == iterations
    assert settings.learning_rate == rate


@pytest.mark.parametrize(
    "trainer", ["nnUNetTrainerUNet2022Paper", "nnUNetTrainerMiTPaper", "nnUNetTrainerQTUNetThesis"]
)
def test_trainers_of_the_papers_have_the_same_recipe(trainer):
    recipe = getattr(import_module(TRAINERS[trainer]), trainer)
    preset = {"UN": "acdc-224", "Mi": "unimiss-bcv", "QT": "brats2021-tiny"}[trainer.removeprefix("nnUNetTrainer")[:2]]
    settings = PRESETS[preset].settings
    assert settings.learning_rate == recipe.default_lr
    assert settings.weight_decay == recipe.default_weight_decay
    for name in ("dice_weight", "ce_weight", "layer_decay", "frozen_fraction"):
        assert getattr(settings, name) == getattr(recipe, name)
    if trainer != "nnUNetTrainerQTUNetThesis":  # which has an optimiser and a schedule of its own
        assert (settings.warmup_fraction, settings.clip_grad_norm) == (recipe.warmup_fraction, recipe.clip_grad_norm)
        assert (settings.schedule == "constant") == (recipe.lr_power == 0.0)


def test_sampling_of_the_thesis():
    """Ratios of crops with and without foreground, section 3.2.1; one crop a step, so by probability."""
    two, one = pytest.approx(2 / 3, abs=1e-3), 0.5
    shares = {"btcv": 0, "msd02-heart": two, "msd03-liver": one, "msd06-lung": two}
    shares |= {"msd07-pancreas": one, "msd08-vessel": one, "msd10-colon": one}
    assert {name: PRESETS[f"{name}-tiny"].settings.oversample_foreground for name in shares} == shares
    assert all(PRESETS[f"{name}-tiny"].settings.oversampling == "probability" for name in shares)


# all as the releases count; UNet-2022's has its three heads with and without deep supervision
PARAMETERS = {
    "synapse-224": 72_929_187,
    "synapse-320": 41_329_665,
    "acdc-224": 163_080_024,
    "isic-512": 42_026_628,
    "em-512": 42_065_940,
    "unimiss-bcv": 43_644_582,
    "brats2021-tiny": 6_647_118,
    "brats2021-small": 14_509_518,
    "brats2021-base": 25_507_662,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_parameters(name):
    preset = PRESETS[name]
    heads = preset.deep_supervision or preset.network.startswith("unet2022")
    with torch.device("meta"):
        network = create_network(preset.network, *preset.data.values(), preset.patch_size, heads, **preset.overrides)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


class TestApply:
    def test_plan(self, planned):
        before = (planned / "nnUNetQTUNetTPlans.json").read_text()
        applied = apply_preset(get_preset("btcv-tiny"), "903")
        assert applied.path == planned / "nnUNetQTUNetTPlans_btcv-tiny.json"
        assert (planned / "nnUNetQTUNetTPlans.json").read_text() == before
        assert not list(planned.glob("*.partial*"))
        manager = PlansManager(str(applied.path))
        assert manager.plans_name == applied.path.stem
        assert manager.available_configurations == ["3d_fullres"]
        configuration = manager.get_configuration("3d_fullres")
        assert configuration.patch_size == [96, 96, 96]
        assert configuration.batch_size == 1
        assert configuration.spacing == [2.0, 1.5, 1.5]
        assert configuration.median_image_size_in_voxels == pytest.approx([90, 53.33, 53.33], rel=1e-3)
        # data of another spacing do not mix with the planner's
        assert configuration.data_identifier == "nnUNetQTUNetTPlans_btcv-tiny_3d_fullres"
        network = get_network_from_plans(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            applied.written.input_channels,
            applied.written.num_classes,
        )
        assert sum(p.numel() for p in network.parameters()) == applied.parameters
        assert network.encoder.stages[-1].blocks[-1].drop_path.drop_prob == pytest.approx(0.2)

    def test_trainer_takes_it(self, planned):
        apply_preset(get_preset("msd07-pancreas-tiny"), DATASET)
        name = "nnUNetQTUNetTPlans_msd07-pancreas-tiny"
        for trainer_name in ("nnUNetTrainerQTUNetThesis", "nnUNetTrainerQTUNet"):
            arguments = (DATASET, "3d_fullres", 0, trainer_name, name)
            trainer = get_trainer_from_args(*arguments, device=torch.device("cpu"))
            # the plan's network has one head
            assert not trainer.enable_deep_supervision
            assert not hasattr(trainer, "deep_supervision")
            assert (trainer.num_epochs, trainer.initial_lr, trainer.ce_weight) == (350, 4e-5, 0.0)
            assert trainer.autocast_dtype == torch.float32
            assert (trainer.oversample_foreground_percent, trainer.probabilistic_oversampling) == (0.5, True)
            assert name in trainer.output_folder

    def test_planned_spacing_shares_the_data(self, planned):
        applied = apply_preset(get_preset("msd07-pancreas-tiny"), DATASET)
        assert applied.configuration["spacing"] == applied.planned["spacing"]
        assert applied.configuration["data_identifier"] == applied.planned["data_identifier"]

    def test_2d(self, planned):
        applied = apply_preset(get_preset("cityscapes-tiny"), "903", "Mine")
        assert json.loads((planned / "Mine.json").read_text())["plans_name"] == "Mine"
        assert list(applied.written.plans["configurations"]) == ["2d"]
        assert applied.configuration["batch_size"] == 4
        assert len(applied.configuration["spacing"]) == 2

    def test_commands(self, planned):
        preprocess, train, predict, evaluate = apply_preset(get_preset("btcv-tiny"), "903").commands()
        assert evaluate == "nnunet-transformers evaluate OUTPUT LABELS"
        plans = "nnUNetQTUNetTPlans_btcv-tiny"
        assert preprocess == f"nnUNetv2_preprocess -d 903 -c 3d_fullres -plans_name {plans}"
        assert train == f"nnUNetv2_train 903 3d_fullres 0 -p {plans} -tr nnUNetTrainerQTUNet"
        assert predict.endswith(f"-c 3d_fullres -p {plans} -tr nnUNetTrainerQTUNet -f 0 -step_size 0.5 --disable_tta")

    def test_memory_counts_the_batch(self, planned):
        applied = apply_preset(get_preset("msd07-pancreas-tiny"), "903")
        # the thesis trains in float32; the published network at 96^3 takes 0.75 GB a sample on CPU (docs/planner.md)
        assert 0.75e9 < applied.training_bytes() - CUDA_OVERHEAD - 16 * applied.parameters < 1.0e9


class TestMistakes:
    def test_existing_plan(self, planned):
        path = apply_preset(get_preset("btcv-tiny"), "903").path
        written = path.read_text()
        path.write_text(json.dumps({"preset": "kept"}))
        with pytest.raises(FileExistsError, match="replace it with --force or choose another name with -o"):
            apply_preset(get_preset("btcv-tiny"), "903")
        assert json.loads(path.read_text()) == {"preset": "kept"}
        apply_preset(get_preset("btcv-tiny"), "903", force=True)
        assert path.read_text() == written

    @pytest.mark.parametrize("content", ['{"plans_name": "nnUNetPlans"}', "no json"])
    def test_plan_of_someone_else(self, planned, content):
        path = planned / "nnUNetPlans.json"
        path.write_text(content)
        with pytest.raises(FileExistsError, match="was not written by this command"):
            apply_preset(get_preset("btcv-tiny"), "903", "nnUNetPlans", force=True)
        assert path.read_text() == content

    def test_missing_plan(self, planned):
        with pytest.raises(FileNotFoundError, match="Run `nnUNetv2_plan_experiment -d 903 -pl nnUNetPlannerQTUNetB`"):
            apply_preset(get_preset("btcv-base"), "903")
        (planned / "dataset_fingerprint.json").unlink()
        with pytest.raises(
            FileNotFoundError, match="nnUNetv2_plan_and_preprocess --no_pp -d 903 -pl nnUNetPlannerQTUNetB"
        ):
            apply_preset(get_preset("btcv-base"), "903")

    @pytest.mark.parametrize("content", ["", "{}", "[]", '{"configurations": {}}', '{"configurations": {"2d": 1}}'])
    def test_broken_plan(self, planned, content):
        (planned / "nnUNetQTUNetTPlans.json").write_text(content)
        with pytest.raises(
            ValueError, match=r"is truncated or not a plan of nnU-Net's: .*Run `nnUNetv2_plan_experiment"
        ):
            apply_preset(get_preset("btcv-tiny"), "903")

    def test_no_3d_configuration(self, planned):
        path = planned / "nnUNetQTUNetTPlans.json"
        plans = json.loads(path.read_text())
        plans["configurations"] = {"2d": plans["configurations"]["2d"]}
        path.write_text(json.dumps(plans))
        with pytest.raises(ValueError, match=r"btcv-tiny is 3d_fullres, and nnUNetQTUNetTPlans of .* has only 2d"):
            apply_preset(get_preset("btcv-tiny"), "903")

    @pytest.mark.parametrize("dataset", ["904", "hippocampus", "Datasetfoo", ""])
    def test_unknown_dataset(self, planned, dataset):
        with pytest.raises(ValueError, match=f"no dataset '{dataset}'"):
            apply_preset(get_preset("btcv-tiny"), dataset)

    @pytest.mark.parametrize("name", ["a__b", "a_", "../a", "a/b", "..", "a\n", "a.json", "nnUNetQTUNetTPlans"])
    def test_name_that_no_plan_can_have(self, planned, name):
        before = sorted(planned.iterdir())
        with pytest.raises(ValueError, match=r"choose another name|cannot be a plan's name"):
            apply_preset(get_preset("btcv-tiny"), "903", name, force=True)
        assert sorted(planned.iterdir()) == before

    def test_folders_not_set(self, planned, monkeypatch):
        monkeypatch.delenv("nnUNet_preprocessed")
        with pytest.raises(ValueError, match="nnUNet_preprocessed is not set"):
            apply_preset(get_preset("btcv-tiny"), "903")
        # as of an `export nnUNet_preprocessed=$FOLDER` without FOLDER; the working folder has the dataset
        monkeypatch.setenv("nnUNet_preprocessed", "")
        monkeypatch.chdir(planned.parent)
        with pytest.raises(ValueError, match="nnUNet_preprocessed is not set"):
            apply_preset(get_preset("btcv-tiny"), "903")

    def test_nothing_half_written(self, planned, monkeypatch):
        def full(*_):
            raise OSError("no space left on device")

        before = sorted(planned.iterdir())
        monkeypatch.setattr("nnunet_transformers._atomic.os.replace", full)
        with pytest.raises(OSError, match="no space left"):
            apply_preset(get_preset("btcv-tiny"), "903")
        assert sorted(planned.iterdir()) == before
