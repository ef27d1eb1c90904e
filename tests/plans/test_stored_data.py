"""Preprocessed data that are not those of the plan, though their folder has its name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import move_plans_between_datasets
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_transformers.plans.planned import PlannedConfiguration
from nnunet_transformers.plans.stored_data import (
    INTENSITIES,
    StoredData,
    data_differences,
    find_conflict,
    is_of_other_images,
)
from tests.conftest import light_nnunet, set_nnunet_folders, write_dataset

NAME, PLANNER, PLANS = "Dataset900_Balls", "nnUNetPlannerQTUNetT", "nnUNetQTUNetTPlans"
SHARED = "nnUNetPlans_3d_fullres"


@pytest.fixture(scope="module")
def planned_folders(tmp_path_factory):
    """A CT dataset that stock nnU-Net has planned and preprocessed, and our plan of it."""
    folders = tmp_path_factory.mktemp("ct")
    with light_nnunet(), pytest.MonkeyPatch.context() as monkeypatch:
        set_nnunet_folders(folders, monkeypatch)
        write_dataset(folders / "raw", cases=3, channel_names={"0": "CT"})
        extract_fingerprints([900], num_processes=1)
        plan_experiments([900], gpu_memory_target_in_gb=2)
        preprocess([900], "nnUNetPlans", ("3d_fullres",), [1])
        plan_experiments([900], PLANNER, gpu_memory_target_in_gb=2)
    return folders


@pytest.fixture
def folder(planned_folders, tmp_path, monkeypatch):
    """The dataset's preprocessed folder, in a copy."""
    shutil.copytree(planned_folders, tmp_path, dirs_exist_ok=True)
    return set_nnunet_folders(tmp_path, monkeypatch) / "preprocessed" / NAME


def stored_data(folder, plans=PLANS, configuration="3d_fullres"):
    return StoredData(PlannedConfiguration.load("900", plans, configuration), folder)


def check(data):
    """Everything that the start of a training checks."""
    data.check_presence()
    data.check_plans()
    data.check_cases()
    data.check_content()


def change(folder, edit, name=PLANS):
    """Edit a plan file by a function."""
    path = folder / f"{name}.json"
    plans = json.loads(path.read_text())
    edit(plans)
    path.write_text(json.dumps(plans))


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def raw_folder(folder):
    return folder.parents[1] / "raw" / NAME


def add_case(folder, name, shift):
    raw = raw_folder(folder)
    image = sitk.ReadImage(str(raw / "imagesTr/ball_0_0000.nii.gz"))
    sitk.WriteImage(image + shift, str(raw / f"imagesTr/{name}_0000.nii.gz"))
    shutil.copy(raw / "labelsTr/ball_0.nii.gz", raw / f"labelsTr/{name}.nii.gz")


def test_data_of_stock_are_shared(folder):
    data = stored_data(folder)
    assert data.path.name == SHARED
    assert data.cases == ["ball_0", "ball_1", "ball_2"]
    check(data)
    assert find_conflict(data.planned.plans, folder, SHARED) is None


def test_cases_added_after_stock_was_preprocessed(folder):
    """The plan has other intensities than the shared data, which lack the new cases."""
    for number in range(3):
        add_case(folder, f"new_{number}", 240.0)
    with pytest.raises(ValueError, match=r"holds 3 cases and the dataset has 6; missing: new_0, new_1, new_2\. Run"):
        stored_data(folder).check_cases()
    extract_fingerprints([900], num_processes=1)
    plan_experiments([900], PLANNER, gpu_memory_target_in_gb=2)
    data = stored_data(folder)
    assert data.path.name == f"{PLANS}_3d_fullres"
    message = rf"{PLANS}_3d_fullres holds no .* Run `nnUNetv2_preprocess -d 900 -plans_name {PLANS} -c 3d_fullres`$"
    with pytest.raises(FileNotFoundError, match=message):
        check(data)
    preprocess([900], PLANS, ("3d_fullres",), [1])
    data = stored_data(folder)
    check(data)
    assert len(data.cases) == 6


def test_plans_made_from_the_owner_of_a_folder_have_to_agree_with_it(folder):
    """Else a plan that ``attach`` wrote from an earlier state would stop the trainings of the plan itself."""
    change(folder, lambda p: p["configurations"]["3d_fullres"].update(data_identifier=f"{PLANS}_3d_fullres"))
    derived = f"{PLANS}_pretrained"
    shutil.copy(folder / f"{PLANS}.json", folder / f"{derived}.json")
    change(folder, lambda plans: plans.update(plans_name=derived, attached={}), derived)
    stored_data(folder, derived).check_plans()
    change(folder, lambda plans: plans[INTENSITIES]["0"].update(mean=300.0))
    stored_data(folder).check_plans()
    with pytest.raises(ValueError, match=f"^{derived} shares the data in .* with {PLANS}, which was planned with"):
        stored_data(folder, derived).check_plans()


def test_planner_says_what_differs(folder, capsys):
    change(folder, lambda plans: plans[INTENSITIES]["0"].update(mean=300.0), "nnUNetPlans")
    plan_experiments([900], PLANNER, gpu_memory_target_in_gb=2)
    assert f"3d_fullres: nnUNetPlans makes other data in {SHARED} ({INTENSITIES}), so" in capsys.readouterr().out


@pytest.mark.parametrize(
    "entry,value",
    [
        ("spacing", [0.5, 0.5, 0.5]),
        ("normalization_schemes", ["ZScoreNormalization"]),
        ("use_mask_for_norm", [True]),
        ("preprocessor_name", "OtherPreprocessor"),
        ("resampling_fn_data", "resample_torch_fornnunet"),
        ("resampling_fn_data_kwargs", {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}),
        ("resampling_fn_seg", "resample_torch_fornnunet"),
        ("resampling_fn_seg_kwargs", {"is_seg": True, "order": 0, "order_z": 0, "force_separate_z": None}),
        ("transpose_forward", [1, 0, 2]),
        ("image_reader_writer", "NibabelIO"),
    ],
)
def test_plans_that_differ(folder, entry, value):
    def edit(plans):
        (plans if entry in plans else plans["configurations"]["3d_fullres"])[entry] = value

    change(folder, edit, "nnUNetPlans")
    message = (
        rf"{PLANS} shares the data in .*{SHARED} with nnUNetPlans, which was planned with other .*{entry}.*Plan again, "
        rf"for a folder of its own: `nnUNetv2_plan_experiment -d 900 -pl {PLANNER}`, then `nnUNetv2_preprocess -d 900"
    )
    with pytest.raises(ValueError, match=message):
        stored_data(folder).check_plans()


def test_what_does_not_change_the_data_is_not_compared(folder):
    plans = json.loads((folder / f"{PLANS}.json").read_text())
    other = json.loads(json.dumps(plans))
    other["configurations"]["3d_fullres"] |= {"patch_size": [8, 8, 8], "batch_size": 7}
    other[INTENSITIES]["0"]["mean"] += 1e-4 * other[INTENSITIES]["0"]["std"]
    assert data_differences(plans, other, SHARED) == []
    # each image is normalised by itself
    for content in (plans, other):
        content["configurations"]["3d_fullres"]["normalization_schemes"] = ["ZScoreNormalization"]
    other[INTENSITIES]["0"]["mean"] += 100
    assert data_differences(plans, other, SHARED) == []


def test_inherited_entries_are_compared(folder):
    plans = json.loads((folder / f"{PLANS}.json").read_text())
    other = json.loads(json.dumps(plans))
    finer = {"inherits_from": "3d_fullres", "spacing": [0.5, 0.5, 0.5]}
    other["configurations"] = {"3d_fullres": {**plans["configurations"]["3d_fullres"]}, "finer": finer}
    assert data_differences(plans, other, SHARED) == ["spacing"]
    assert data_differences(plans, other, "nnUNetPlans_2d") == []


def test_commands_for_a_derived_plan(folder):
    """Planning under its name would drop what the command put into it."""
    attached = f"{PLANS}_pretrained"
    shutil.copy(folder / f"{PLANS}.json", folder / f"{attached}.json")
    change(folder, lambda plans: plans.update(plans_name=attached), attached)
    change(folder, lambda plans: plans.update(transpose_forward=[1, 0, 2]), "nnUNetPlans")
    with pytest.raises(ValueError, match=f"-pl {PLANNER} -overwrite_plans_name {attached}`, then"):
        stored_data(folder, attached).check_plans()
    change(folder, lambda plans: plans.update(attached={}), attached)
    with pytest.raises(ValueError, match=f"-pl {PLANNER}`, `nnunet-transformers attach` again, then"):
        stored_data(folder, attached).check_plans()


class TestContent:
    def test_of_another_spacing(self, folder):
        """As after ``-overwrite_target_spacing``, or preprocessing with a moved plan."""
        change(folder, lambda p: p["configurations"]["3d_fullres"].update(spacing=[0.5, 0.5, 0.5]), "nnUNetPlans")
        preprocess([900], "nnUNetPlans", ("3d_fullres",), [1])
        (folder / "nnUNetPlans.json").unlink()
        data = stored_data(folder)
        data.check_plans()
        message = (
            r"case ball_0 has channels and voxels \(1, 40, 48, 40\) where the plan makes \(1, 20, 24, 20\)\. .* Run `"
        )
        with pytest.raises(ValueError, match=message):
            data.check_content()

    def test_of_other_intensities(self, folder):
        (folder / "nnUNetPlans.json").unlink()
        wider = {"mean": 300.0, "std": 240.0, "percentile_00_5": 59.0, "percentile_99_5": 541.0}
        change(folder, lambda plans: plans[INTENSITIES]["0"].update(wider))
        with pytest.raises(ValueError, match=r"intensities from .* in channel 0 where the plan's normalisation gives"):
            stored_data(folder).check_content()

    def test_of_other_channels(self, folder):
        data = stored_data(folder)
        channels = {**data.planned.dataset_json, "channel_names": {"0": "CT", "1": "CT"}}
        data = StoredData(replace(data.planned, dataset_json=channels), folder)
        with pytest.raises(ValueError, match=r"\(1, 20, 24, 20\) where the plan makes \(2, 20, 24, 20\)"):
            data.check_content()

    def test_2d_keeps_the_slices(self, folder):
        change(folder, lambda p: p["configurations"]["2d"].update(spacing=[2.0, 2.0]))
        change(folder, lambda p: p["configurations"]["2d"].update(data_identifier=f"{PLANS}_2d"))
        preprocess([900], PLANS, ("2d",), [1])
        check(stored_data(folder, configuration="2d"))

    def test_without_resampling(self, folder):
        def edit(plans):
            functions = ("resampling_fn_data", "resampling_fn_seg")
            entries = {function: "no_resampling_hack" for function in functions}
            entries |= {f"{function}_kwargs": {} for function in functions}
            entries |= {"spacing": [0.5, 0.5, 0.5], "data_identifier": f"{PLANS}_3d_fullres"}
            plans["configurations"]["3d_fullres"] |= entries

        change(folder, edit)
        preprocess([900], PLANS, ("3d_fullres",), [1])
        check(stored_data(folder))

    def test_of_another_preprocessor_is_its_own_affair(self, folder):
        change(folder, lambda p: p["configurations"]["3d_fullres"].update(spacing=[0.5] * 3, preprocessor_name="Mine"))
        stored_data(folder).check_content()


class TestCases:
    @pytest.mark.parametrize("count", [5, 6])
    def test_five_are_named(self, folder, count):
        data = stored_data(folder)
        names = [f"new_{number}" for number in range(count)]
        path = raw_folder(folder) / "dataset.json"
        listed = {name: {"images": [], "label": ""} for name in (*data.cases, *names)}
        path.write_text(json.dumps({**json.loads(path.read_text()), "dataset": listed}))
        rest = r", \.\.\." if count > 5 else ""
        with pytest.raises(ValueError, match=rf"missing: new_0, new_1, new_2, new_3, new_4{rest}\. Run"):
            data.check_cases()

    def test_half_written(self, folder):
        (folder / SHARED / "ball_1.pkl").unlink()
        with pytest.raises(ValueError, match="holds 2 cases and the dataset has 3; missing: ball_1"):
            stored_data(folder).check_cases()

    def test_removed_from_the_dataset(self, folder):
        (raw_folder(folder) / "imagesTr/ball_1_0000.nii.gz").unlink()
        with pytest.raises(ValueError, match="holds 3 cases and the dataset has 2; not of the dataset: ball_1"):
            stored_data(folder).check_cases()

    def test_listed_in_dataset_json(self, folder):
        path = raw_folder(folder) / "dataset.json"
        listed = {name: {"images": [], "label": ""} for name in ("ball_0", "ball_1", "ball_2")}
        path.write_text(json.dumps({**json.loads(path.read_text()), "dataset": listed}))
        stored_data(folder).check_cases()
        path.write_text(json.dumps({**json.loads(path.read_text()), "dataset": {**listed, "other": {}}}))
        with pytest.raises(ValueError, match="missing: other"):
            stored_data(folder).check_cases()

    @pytest.mark.parametrize("left", ["nothing", "no images"])
    def test_without_raw_data_as_many_as_at_planning(self, folder, left):
        shutil.rmtree(raw_folder(folder) / ("" if left == "nothing" else "imagesTr"))
        data = stored_data(folder)
        data.check_cases()
        path = folder / "dataset_fingerprint.json"
        fingerprint = json.loads(path.read_text())
        path.write_text(json.dumps({**fingerprint, "spacings": fingerprint["spacings"] * 2}))
        with pytest.raises(ValueError, match=r"holds 3 cases and the dataset has 6\. Run"):
            data.check_cases()

    def test_of_a_split(self, folder):
        data = stored_data(folder)
        assert data.check_split(0) is None
        path = folder / "splits_final.json"
        path.write_text(json.dumps([{"train": ["ball_0"], "val": ["ball_1"]}, {"train": ["ball_0"], "val": ["gone"]}]))
        assert "1 of 3 cases are not in fold 0 of" in data.check_split(0)
        assert data.check_split("all") is data.check_split(2) is None
        with pytest.raises(ValueError, match=r"has cases in fold 1 that .* lacks: gone\. Correct the file, or remove"):
            data.check_split(1)


def test_a_few_cases_are_read(folder, monkeypatch):
    read, load_case = [], nnUNetDatasetBlosc2.load_case

    def counting(dataset, case):
        read.append(case)
        return load_case(dataset, "ball_0")

    monkeypatch.setattr(nnUNetDatasetBlosc2, "load_case", counting)
    for count in range(1, 12):
        data = stored_data(folder)
        data.__dict__["cases"] = [f"case_{number}" for number in range(count)]  # the cached property
        data.check_content()
        assert 1 <= len(read) <= 3
        read.clear()


class TestSpacing:
    def test_under_another_name(self, folder):
        """-overwrite_target_spacing 2 1 1 -overwrite_plans_name ..._thick: a folder, a network and data of its own."""
        before = (folder / f"{PLANS}.json").read_text()
        name = f"{PLANS}_thick"
        options = {"overwrite_target_spacing": (2, 1, 1), "overwrite_plans_name": name}
        assert plan_experiments([900], PLANNER, gpu_memory_target_in_gb=2, **options) == name
        assert (folder / f"{PLANS}.json").read_text() == before
        plans = read(folder, name)
        planned = plans["configurations"]["3d_fullres"]
        assert (plans["plans_name"], planned["spacing"]) == (name, [2.0, 1.0, 1.0])
        assert planned["data_identifier"] == f"{name}_3d_fullres"
        assert planned["patch_size"][0] < read(folder, PLANS)["configurations"]["3d_fullres"]["patch_size"][0]
        assert planned["architecture"]["arch_kwargs"]["patch_size"] == planned["patch_size"]
        configuration = PlansManager(plans).get_configuration("3d_fullres")
        get_network_from_plans(configuration.network_arch_class_name, configuration.network_arch_init_kwargs, [], 1, 3)
        preprocess([900], name, ("3d_fullres",), [1])
        data = stored_data(folder, name)
        check(data)
        assert not is_of_other_images(plans, folder)

    def test_under_the_usual_name(self, folder, capsys):
        """Without a name the planner's own plan is replaced, and stock's data are not shared."""
        plan_experiments([900], PLANNER, gpu_memory_target_in_gb=2, overwrite_target_spacing=(2, 1, 1))
        planned = read(folder, PLANS)["configurations"]["3d_fullres"]
        assert (planned["spacing"], planned["data_identifier"]) == ([2.0, 1.0, 1.0], f"{PLANS}_3d_fullres")
        assert "planned for other images" not in capsys.readouterr().out


def test_name_alone(folder):
    """-overwrite_plans_name: the same plan under another name, with the data of stock nnU-Net."""
    plan_experiments([900], PLANNER, gpu_memory_target_in_gb=2, overwrite_plans_name="mine")
    plans, usual = read(folder, "mine"), read(folder, PLANS)
    assert plans["configurations"] == usual["configurations"]
    assert plans["plans_name"] == "mine"
    assert plans["configurations"]["3d_fullres"]["data_identifier"] == SHARED
    stored_data(folder, "mine").check_plans()


class TestMovedPlans:
    @pytest.fixture(autouse=True)
    def other_dataset(self, folder):
        """A dataset 901 with a plan for smaller voxels and larger images."""
        other = folder.with_name("Dataset901_Other")
        other.mkdir()
        plans = {**read(folder, PLANS), "original_median_shape_after_transp": [40, 48, 40]}
        plans["configurations"]["3d_fullres"]["spacing"] = [0.5, 0.5, 0.5]
        (other / f"{PLANS}.json").write_text(json.dumps(plans))

    def test_without_a_name_stock_data_are_replaced(self, folder, capsys):
        """What nnU-Net does, and what we say of it: when training starts, and when the dataset is planned again."""
        case = next((folder / SHARED).glob("*.b2nd"))
        before = case.read_bytes()
        own = read(folder, PLANS)
        move_plans_between_datasets(901, 900, PLANS)
        moved = read(folder, PLANS)
        assert moved != own
        assert moved["configurations"]["3d_fullres"]["data_identifier"] == SHARED
        assert case.read_bytes() == before
        preprocess([900], PLANS, ("3d_fullres",), [1])
        assert case.read_bytes() != before
        message = (
            rf"shares the data in .*{SHARED} with nnUNetPlans, .* other spacing; .*It was planned for other images: if "
            rf"it was moved here, `nnUNetv2_move_plans_between_datasets -s SOURCE -t 900 -sp {PLANS} -tp {PLANS}_moved`"
        )
        with pytest.raises(ValueError, match=message):
            stored_data(folder, PLANS).check_plans()
        capsys.readouterr()
        plan_experiments([900], PLANNER, gpu_memory_target_in_gb=2)
        said = capsys.readouterr().out
        assert f"warning: {PLANS}.json was planned for other images" in said
        assert f"{SHARED} hold its data: preprocess them again" in said
        assert read(folder, PLANS) == own
        data = stored_data(folder, PLANS)
        data.check_plans()
        with pytest.raises(ValueError, match="is not of this plan: case ball_0"):
            data.check_content()

    def test_with_a_name_they_have_a_folder_of_their_own(self, folder):
        move_plans_between_datasets(901, 900, PLANS, f"{PLANS}_moved")
        moved = read(folder, f"{PLANS}_moved")
        assert moved["configurations"]["3d_fullres"]["data_identifier"] == f"{PLANS}_moved_{SHARED}"
        assert is_of_other_images(moved, folder)
        stored_data(folder, f"{PLANS}_moved").check_plans()
