"""Evaluation of folders, its file, and comparisons: against nnU-Net's own evaluation, and on toy predictions."""

from __future__ import annotations

import csv
import json
import math
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder, load_summary_json
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy import stats
from skimage import io
from typer.testing import CliRunner

from nnunet_transformers import cli
from nnunet_transformers.evaluation import Conventions, Evaluation, Table, Targets, compare, evaluate_folder
from tests.conftest import worker_processes

LABELS = {"background": 0, "large": 1, "small": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}


def write_cases(folder, shift=0, cases=4, file_ending=".nii.gz", labels=None, seed=0):
    """Boxes of two labels, moved by ``shift`` voxels more in every case; the small one is missing in the last."""
    folder.mkdir(parents=True)
    for case in range(cases):
        voxels = np.zeros((8, 20, 20), np.uint8)
        moved = 4 + shift * case
        voxels[2:6, moved : moved + 8, 4:12] = 1
        if case < cases - 1:
            voxels[3:5, 8:10, 5:8] = 2
        if file_ending == ".png":
            io.imsave(folder / f"case_{case}.png", voxels[3], check_contrast=False)
        else:
            image = sitk.GetImageFromArray(voxels)
            image.SetSpacing((1, 1, 2.5))
            sitk.WriteImage(image, str(folder / f"case_{case}{file_ending}"))
    dataset = {"labels": labels or LABELS, "file_ending": file_ending, "channel_names": {"0": "CT"}}
    if labels == REGIONS:
        dataset["regions_class_order"] = [1, 2]
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


@pytest.fixture
def folders(tmp_path):
    return [write_cases(tmp_path / name, shift) for name, shift in (("labels", 0), ("a", 1), ("b", 2))]


def run(*arguments):
    return CliRunner().invoke(cli.app, [*map(str, arguments)])


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
@pytest.mark.parametrize("file_ending", [".nii.gz", ".png"])
def test_nnunets_summary_is_a_subset(tmp_path, labels, file_ending):
    reference = write_cases(tmp_path / "labels", 0, 4, file_ending, labels)
    predicted = write_cases(tmp_path / "predicted", 1, 4, file_ending, labels)
    targets = [(1, 2), 2] if labels == REGIONS else [1, 2]
    reader = NaturalImage2DIO() if file_ending == ".png" else SimpleITKIO()
    theirs = tmp_path / "theirs.json"
    compute_metrics_on_folder(str(reference), str(predicted), str(theirs), reader, file_ending, targets, None, 1)
    evaluate_folder(predicted, reference, processes=0).save(tmp_path / "ours.json")
    ours, theirs = (load_summary_json(str(tmp_path / name)) for name in ("ours.json", "theirs.json"))

    def check_subset(part, whole):
        if isinstance(part, dict):
            for key, value in part.items():
                check_subset(value, whole[key])
        elif isinstance(part, list):
            assert len(part) == len(whole)
            for one, other in zip(part, whole, strict=True):
                check_subset(one, other)
        else:
            assert type(part) is type(whole)
            assert whole == (pytest.approx(part, nan_ok=True) if isinstance(part, float) else part)

    check_subset(theirs, ours)
    assert "HD95" in ours["mean"][2] and math.isfinite(ours["mean"][2]["HD95"])


def test_spacing_and_volumes(folders):
    labels, a, _ = folders
    evaluation = evaluate_folder(a, labels, Conventions(tolerances=(1, 2)), processes=0)
    assert evaluation.cases == ["case_0", "case_1", "case_2", "case_3"]
    assert evaluation.labels == {"1": "large", "2": "small"}
    # moved by 0 to 3 voxels of 1 mm; slices are 2.5 mm apart
    assert evaluation.of("HD95")[:, 0] == pytest.approx([0, 1, 2, 3])
    assert (evaluation.of("NSD 2 mm")[:3, 0] == 1).all() and evaluation.of("NSD 1 mm")[2, 0] < 1
    assert evaluation.of("RVD")[3, 1] != evaluation.of("RVD")[3, 1]  # undefined: in neither
    assert evaluation.of("VD")[0].tolist() == [0, 0]
    with pytest.raises(ValueError, match="there is no metric 'NSD'"):
        evaluation.of("NSD")


def test_volume_in_ml(tmp_path):
    labels = write_cases(tmp_path / "labels", cases=2)
    predictions = tmp_path / "predictions"
    shutil.copytree(labels, predictions)
    image = sitk.ReadImage(str(labels / "case_0.nii.gz"))
    image[0, 0, 0] = 1
    sitk.WriteImage(image, str(predictions / "case_0.nii.gz"))
    evaluation = evaluate_folder(predictions, labels, processes=0)
    assert evaluation.of("VD")[0, 0] == pytest.approx(2.5 / 1000)


def test_targets_of_ones_own_need_no_labels_of_nnunets(tmp_path):
    """Only the number of the ignored label is read beside them."""
    labels = write_cases(tmp_path / "labels", cases=2)
    described = {"labels": {"0": "background", "1": "small"}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    found = evaluate_folder(
        labels,
        labels,
        dataset_json=tmp_path / "dataset.json",
        targets=Targets.from_regions({"small": [1]}),
        processes=0,
    )
    assert (found.of("Dice") == 1).all()


def test_ignored_label_that_is_no_number(tmp_path):
    labels = write_cases(tmp_path / "labels", cases=2)
    described = {"labels": {"background": 0, "small": 1, "ignore": "3"}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="the label ignore must be a number, got '3'"):
        evaluate_folder(
            labels, labels, dataset_json=tmp_path / "dataset.json", targets=Targets.from_regions({"a": [1]})
        )


def test_2d_images_have_no_volume_and_no_third_axis(tmp_path):
    labels = write_cases(tmp_path / "labels", 0, 3, ".png")
    evaluation = evaluate_folder(write_cases(tmp_path / "a", 1, 3, ".png"), labels, processes=0)
    assert np.isnan(evaluation.of("VD")).all()
    assert evaluation.of("HD95")[:, 0] == pytest.approx([0, 1, 2])


def test_file_round_trip(folders, tmp_path):
    labels, a, _ = folders
    evaluation = evaluate_folder(a, labels, Conventions(lesions=("small",)), processes=0)
    evaluation.save(tmp_path / "e.json")
    loaded = Evaluation.load(tmp_path / "e.json")
    np.testing.assert_array_equal(loaded.values, evaluation.values)
    for name in ("labels", "metrics", "files", "conventions", "without_prediction", "cases"):
        assert getattr(loaded, name) == getattr(evaluation, name), name
    content = json.loads((tmp_path / "e.json").read_text())
    content["nnunet_transformers"]["format"] = 2
    (tmp_path / "e.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="format 2, and this version reads 1"):
        Evaluation.load(tmp_path / "e.json")
    (tmp_path / "e.json").write_text("{}")
    with pytest.raises(ValueError, match="not an evaluation"):
        Evaluation.load(tmp_path / "e.json")


def test_summaries(folders):
    labels, a, _ = folders
    evaluation = evaluate_folder(a, labels, processes=0)
    summaries = evaluation.summaries()
    assert [*summaries] == ["large", "small", "mean"]
    dice = evaluation.of("Dice")
    assert summaries["small"]["Dice"].cases == 3
    assert summaries["mean"]["Dice"].mean == pytest.approx(np.nanmean(dice, 0).mean())
    assert summaries["mean"]["Dice"].low <= summaries["mean"]["Dice"].mean <= summaries["mean"]["Dice"].high


def test_several_processes_and_folds(folders, tmp_path):
    labels, a, _ = folders
    model = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    for fold in (0, 1):
        (model / f"fold_{fold}/validation").mkdir(parents=True)
    for path in a.glob("case_*"):
        shutil.copy(path, model / f"fold_{int(path.name[5]) % 2}/validation")
    shutil.copy(a / "dataset.json", model)
    with worker_processes():
        together = evaluate_folder(model, labels, processes=2)
    expected = evaluate_folder(a, labels, processes=0)
    rows = [together.cases.index(case) for case in expected.cases]
    np.testing.assert_array_equal(together.values[rows], expected.values)
    shutil.copy(a / "case_0.nii.gz", model / "fold_1/validation")
    with pytest.raises(ValueError, match="evaluate one of them"):
        evaluate_folder(model, labels, processes=0)


def break_label(folders):
    (folders[0] / "case_1.nii.gz").unlink()


def break_spacing(folders):
    image = sitk.ReadImage(str(folders[1] / "case_1.nii.gz"))
    image.SetSpacing((1, 1, 1))
    sitk.WriteImage(image, str(folders[1] / "case_1.nii.gz"))


def break_value(folders):
    image = sitk.ReadImage(str(folders[1] / "case_1.nii.gz"))
    image[0, 0, 0] = 7
    sitk.WriteImage(image, str(folders[1] / "case_1.nii.gz"))


def break_integers(folders):
    image = sitk.Cast(sitk.ReadImage(str(folders[1] / "case_1.nii.gz")), sitk.sitkFloat32) + 0.5
    sitk.WriteImage(image, str(folders[1] / "case_1.nii.gz"))


def break_range(folders):
    image = sitk.Cast(sitk.ReadImage(str(folders[1] / "case_1.nii.gz")), sitk.sitkInt16) - 1
    sitk.WriteImage(image, str(folders[1] / "case_1.nii.gz"))


def break_dataset(folders):
    (folders[1] / "dataset.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_label, "label file .*case_1.nii.gz of the prediction"),
        (break_spacing, "case_1.nii.gz: the prediction's spacing is"),
        (break_value, "holds the value 7, which is not a label"),
        (break_integers, "holds values that are no integers"),
        (break_range, "holds values from -1 to 1"),
        (break_dataset, "names the labels; give it by --dataset-json, or labels by --label"),
    ],
)
def test_errors_leave_nothing_behind(folders, damage, message):
    damage(folders)
    result = run("evaluate", folders[1], folders[0], "--processes", 0)
    assert result.exit_code == 1
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        raise result.exception
    assert not (folders[1] / "evaluation.json").exists() and not [*folders[1].glob("*.partial*")]


class TestEvaluateCommand:
    def test_writes_and_prints(self, folders, tmp_path):
        labels, a, _ = folders
        (labels / "case_9.nii.gz").write_bytes(b"")
        result = run("evaluate", a, labels, "--processes", 0, "--table", tmp_path / "t.csv", "--tolerance", "small=1")
        assert result.exit_code == 0, result.output
        assert "1 label files have no prediction, case_9 first" in result.output
        evaluation = Evaluation.load(a / "evaluation.json")
        assert {"NSD", "NSD 2 mm"} < {*evaluation.metrics} and evaluation.conventions["label_tolerances"] == {
            "small": 1
        }
        rows = [*csv.DictReader((tmp_path / "t.csv").open())]
        of_large = {row["metric"]: row for row in rows if row["label"] == "large"}
        assert float(of_large["HD95"]["mean"]) == pytest.approx(1.5)

    def test_brats(self, tmp_path):
        labels, predicted = (write_cases(tmp_path / name, s, labels=LABELS) for name, s in (("labels", 0), ("p", 1)))
        # 2 is oedema, which is no part of the core
        result = run("evaluate", predicted, labels, "--processes", 0, "--brats", "2021")
        assert result.exit_code == 0, result.output
        evaluation = Evaluation.load(predicted / "evaluation.json")
        assert [*evaluation.labels.values()] == ["WT", "TC", "ET"]
        assert evaluation.of("Dice")[:, 2].tolist() == [1] * 4 and evaluation.of("HD95")[:, 2].tolist() == [0] * 4
        assert evaluation.conventions["empty_in_one"] == pytest.approx(373.12866)
        assert (evaluation.of("TP")[:, 0] > evaluation.of("TP")[:, 1])[:3].all()

    def test_brats_of_another_year(self, tmp_path):
        """The enhancing tumour is 3 since 2023; as background in both it would be predicted perfectly."""
        labels, predicted = (write_cases(tmp_path / name) for name in ("labels", "p"))
        image = sitk.ReadImage(str(labels / "case_0.nii.gz"))
        image[0, 0, 0] = 3
        sitk.WriteImage(image, str(labels / "case_0.nii.gz"))
        wrong = run("evaluate", predicted, labels, "--processes", 0, "--brats", "2021")
        assert "the value 3, which is not a label of BraTS 2021 (see --brats): (0, 1, 2, 4)" in str(wrong.exception)
        assert run("evaluate", predicted, labels, "--processes", 0, "--brats", "2023").exit_code == 0
        assert Evaluation.load(predicted / "evaluation.json").of("Dice")[:, 2].tolist() == [0, 1, 1, 1]

    def test_images_that_lie_elsewhere(self, folders):
        """nnU-Net compares voxels wherever they are, and so does this, which says so."""
        labels, a, _ = folders
        assert "lie elsewhere than" not in run("evaluate", a, labels, "--processes", 0).output
        before = Evaluation.load(a / "evaluation.json")
        image = sitk.ReadImage(str(a / "case_1.nii.gz"))
        image.SetOrigin((50, 0, 0))
        sitk.WriteImage(image, str(a / "case_1.nii.gz"))
        result = run("evaluate", a, labels, "--processes", 2)
        assert "1 predictions lie elsewhere than their labels by the headers, case_1 by up to 50 mm" in " ".join(
            result.output.split()
        )
        after = Evaluation.load(a / "evaluation.json")
        assert after.elsewhere == {"case_1": pytest.approx(50)} and before.elsewhere == {}
        np.testing.assert_array_equal(before.values, after.values)

    @pytest.mark.parametrize("option", ["--output", "--table"])
    @pytest.mark.parametrize(("place", "message"), [("new/x.md", "there is no folder"), ("folder.md", "is a folder")])
    def test_a_place_that_cannot_be_written_is_refused_at_once(self, folders, tmp_path, option, place, message):
        labels, a, _ = folders
        (tmp_path / "folder.md").mkdir()
        (a / "case_0.nii.gz").write_bytes(b"would end the evaluation")
        result = run("evaluate", a, labels, "--processes", 0, option, tmp_path / place)
        assert result.exit_code == 1 and message in str(result.exception)

    def test_so_is_the_place_of_the_file_that_is_not_named(self, folders):
        labels, a, _ = folders
        (a / "evaluation.json").mkdir()
        (a / "case_0.nii.gz").write_bytes(b"would end the evaluation")
        message = str(run("evaluate", a, labels, "--processes", 0).exception)
        assert "evaluation.json is a folder; name a file in it" in message
        missing = str(run("evaluate", a / "none", labels, "--processes", 0).exception)
        assert missing == f"there is no folder {a / 'none'}"

    def test_labels_without_dataset_json(self, folders, tmp_path):
        labels, a, _ = folders
        (a / "dataset.json").unlink()
        (labels / "dataset.json").unlink()
        output = tmp_path / "e.json"
        options = ("--label", "all=1,2", "--label", "2", "--empty-in-one", "NaN", "--processes", 0, "-o", output)
        assert run("evaluate", a, labels, *options).exit_code == 0
        assert Evaluation.load(output).labels == {"(1, 2)": "all", "2": "2"}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--brats", "2022"), "'2022' is not one of 2021, 2023"),
            (("--tolerance", "x"), "--tolerance 'x' is no number"),
            (("--tolerance", "liver=2"), "no label 'liver'; there are large, small"),
            (("--lesions", "liver"), "no label 'liver'"),
            (("--table", "t.txt"), "does not end in .md, .csv, .tex"),
            (("--label", "a=1", "--label", "b=0"), "--label 'b=0' is not NAME=VALUE"),
            (("--label", "a=1,1"), "--label 'a=1,1' is not NAME=VALUE"),
            (("--label", "a=1", "--label", "b=1"), "the label 'b' has the values of another, 1"),
            (("--label", "a=1", "--label", "a=2"), "--label: two have the name 'a'"),
            (("--tolerance", "large=1", "--tolerance", "large=3"), "the label 'large' has two, 1 and 3"),
            (("--label", "a=1", "--brats", "2021"), "--brats names the labels"),
        ],
    )
    def test_errors(self, folders, options, message):
        result = run("evaluate", folders[1], folders[0], "--processes", 0, *options)
        assert result.exit_code == 1 and message in str(result.exception)


def toy(dice, name="liver", metrics=("Dice",), cases=None):
    """Evaluation of one label from stored values, (cases,) or (cases, metrics)."""
    values = np.array(dice, float).reshape(len(dice), 1, -1)
    cases = cases or [f"case_{i}" for i in range(len(dice))]
    return Evaluation({"1": name}, metrics, {case: (case, case) for case in cases}, values)


class TestCompare:
    def test_paired_differences(self):
        rng = np.random.default_rng(0)
        a = rng.uniform(0.7, 0.9, 12)
        b = a - rng.uniform(0.01, 0.03, 12)
        c = rng.uniform(0.7, 0.9, 12)
        found = compare({"A": toy(a), "B": toy(b), "C": toy(c)})
        assert [(d.first, d.second) for d in found.differences] == [("A", "B"), ("A", "C"), ("B", "C")]
        assert found.differences[0].mean == pytest.approx((a - b).mean())
        assert 0.01 < found.differences[0].low < found.differences[0].high < 0.03
        p = [stats.wilcoxon(x - y).pvalue for x, y in ((a, b), (a, c), (b, c))]
        assert [d.p for d in found.differences] == pytest.approx(p)
        assert found.differences[0].p_holm == pytest.approx(3 * p[0])
        ranking = found.rankings["Dice", "liver"]
        assert ranking.ranks[0] < ranking.ranks[1]

    def test_only_common_cases(self):
        a, b = toy([0.9, 0.8, 0.7], cases=["x", "y", "z"]), toy([0.5, 0.6], cases=["z", "x"])
        found = compare({"A": a, "B": b})
        assert (found.cases, found.left_out) == (["x", "z"], ["y"])
        assert found.values[:, :, 0, 0].tolist() == [[0.9, 0.7], [0.6, 0.5]]

    def test_undefined_in_one(self):
        found = compare({"A": toy([0.9, math.nan, math.nan, 0.5]), "B": toy([0.8, 0.1, math.nan, 0.5])})
        (difference,) = found.differences
        assert (difference.cases, difference.undefined) == (2, 1)
        assert difference.mean == pytest.approx(0.05)
        assert "Up to 1 cases (liver) have a value in only one model" in found.remarks[0]
        assert not compare({"A": toy([0.9, math.nan]), "B": toy([0.8, math.nan])}).remarks

    def test_of_labels_with_as_many_undefined_cases_the_first_is_named(self):
        names = [f"label {i}" for i in range(8)]
        models = {
            model: Evaluation({n: n for n in names}, ("Dice",), {"a": ("a", "a")}, np.full((1, 8, 1), value))
            for model, value in (("A", 0.5), ("B", math.nan))
        }
        found = compare(models, ["Dice", "Dice"])
        assert "Up to 1 cases (label 0) have a value" in found.remarks[0]
        assert found.metrics == ["Dice"]

    def test_ranks_are_over_cases_where_all_are_defined(self):
        # B has no value for the case that is hard for A
        found = compare({"A": toy([0.9, 0.9, 0.1]), "B": toy([0.8, 0.8, math.nan])})
        ranking = found.rankings["Dice", "liver"]
        assert ranking.ranks.tolist() == [1, 2] and ranking.first.tolist() == [1, 0]

    def test_less_is_better_for_distances(self):
        metrics = ("Dice", "HD95")
        a, b = (toy([[0.9, 1.0]] * 3, metrics=metrics), toy([[0.8, 5.0]] * 3, metrics=metrics))
        found = compare({"A": a, "B": b})
        for metric in metrics:
            assert found.rankings[metric, "liver"].ranks.tolist() == [1, 2]
        with pytest.raises(ValueError, match="neither more nor less of VD is better"):
            compare({"A": toy([1.0], metrics=("VD",)), "B": toy([2.0], metrics=("VD",))}, ["VD"])

    def test_cases_that_differ_most(self):
        found = compare({"A": toy([0.9, 0.8, 0.7]), "B": toy([0.8, 0.1, 0.7])})
        assert [(case, label) for _, case, label, _ in found.most_different()] == [
            ("case_1", "liver"),
            ("case_0", "liver"),
        ]
        assert found.most_different(1)[0][3] == pytest.approx(0.7)
        assert not compare({"A": toy([0.1 + 0.2]), "B": toy([0.3])}).most_different()

    def test_errors(self):
        one = toy([0.5])
        with pytest.raises(ValueError, match="needs two models, there is A"):
            compare({"A": one})
        other = Evaluation({"2": "spleen"}, one.metrics, one.files, one.values)
        with pytest.raises(ValueError, match=r"A has the labels \{1\} and B has \{2\}"):
            compare({"A": one, "B": other})
        with pytest.raises(ValueError, match="no case in common"):
            compare({"A": one, "B": toy([0.5], cases=["other"])})
        conventions = [Evaluation(**{**vars(one), "conventions": {"hd95": kind}}) for kind in ("max", "pooled")]
        with pytest.raises(ValueError, match="different conventions, hd95"):
            compare(dict(zip("AB", conventions, strict=True)))
        # nnU-Net's summary.json states no convention, and has one
        of_nnunet, perfect = (Evaluation(**{**vars(one), "conventions": c}) for c in ({}, {"empty_in_both": "perfect"}))
        with pytest.raises(ValueError, match="different conventions, empty_in_both"):
            compare({"A": of_nnunet, "B": perfect})
        compare({"A": of_nnunet, "B": Evaluation(**{**vars(one), "conventions": {"empty_in_both": "nan"}})})

    def test_command(self, folders, tmp_path):
        labels, a, b = folders
        assert run("evaluate", a, labels, "--processes", 0).exit_code == 0
        output = tmp_path / "comparison"
        options = ("--labels", labels, "--processes", 0, "-o", output)
        result = run("compare", f"ours={a / 'evaluation.json'}", f"theirs={b}", *options)
        assert result.exit_code == 0, result.output
        names = ("means", "differences", "ranks", "cases")
        expected = {f"{n}.{e}" for n in names for e in ("csv", "tex")}
        expected |= {f"comparison.{e}" for e in ("html", "json", "md")}
        assert {path.name for path in output.iterdir()} == expected
        rows = [*csv.DictReader((output / "differences.csv").open())]
        of_large = next(row for row in rows if (row["metric"], row["label"]) == ("HD95", "large"))
        # moved by one and by two voxels of 1 mm per case
        assert float(of_large["mean"]) == pytest.approx(-1.5) and of_large["models"] == "ours - theirs"
        json.loads((output / "comparison.json").read_text(), parse_constant=lambda name: pytest.fail(name))
        again = run("compare", a, b, *options)
        assert again.exit_code == 1 and "exists; remove it" in str(again.exception)
        for labelled in ((), options[:-2]):
            nowhere = run("compare", a, tmp_path / "none.json", *labelled)
            assert str(nowhere.exception) == f"there is no file or folder {tmp_path / 'none.json'}"
        missing = run("compare", a, b)
        assert missing.exit_code == 1 and "holds no evaluation.json: run `nnunet-transformers evaluate`" in str(
            missing.exception
        )

    def test_labels_of_nnunets_summaries_have_their_names(self, folders, tmp_path):
        labels, *predicted = folders
        folds = []
        for number, source in enumerate(predicted):
            validation = tmp_path / f"model_{number}" / "fold_0" / "validation"
            shutil.copytree(source, validation, ignore=shutil.ignore_patterns("evaluation.json", "dataset.json"))
            shutil.copy(source / "dataset.json", validation.parents[1])
            summary = str(validation / "summary.json")
            compute_metrics_on_folder(
                str(labels), str(validation), summary, SimpleITKIO(), ".nii.gz", [1, 2], num_processes=1
            )
            folds.append(validation.parent)
        result = run("compare", *folds)
        assert result.exit_code == 0, result.output
        assert "large" in result.output and "small" in result.output
        # an evaluation beside it is taken as long as it is of the same predictions
        validation = folds[0] / "validation"
        assert run("evaluate", validation, labels, "--processes", 0).exit_code == 0
        same = run("compare", *folds)
        assert same.exit_code == 0 and same.output == result.output
        shutil.copy(folds[1] / "validation" / "summary.json", validation)
        stale = run("compare", *folds)
        assert stale.exit_code == 1 and "have other Dice of the same cases" in str(stale.exception)


@pytest.mark.parametrize("place", ["fold_0", "fold_0/ablation/attention"])
def test_a_validation_has_the_labels_of_its_model(folders, tmp_path, monkeypatch, place):
    """Whatever the working folder is."""
    labels, a, _ = folders
    model = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    shutil.copytree(a, model / place / "validation", ignore=shutil.ignore_patterns("dataset.json"))
    shutil.copy(a / "dataset.json", model)
    for working, validation in ((tmp_path, model / place / "validation"), (model / place, "validation")):
        monkeypatch.chdir(working)
        result = run("evaluate", validation, labels, "--processes", 0, "-o", tmp_path / "e.json")
        assert result.exit_code == 0, result.exception
    monkeypatch.chdir(model / place / "validation")
    assert run("evaluate", ".", labels, "--processes", 0).exit_code == 0
    assert Evaluation.load("evaluation.json").labels == {"1": "large", "2": "small"}


class TestTables:
    table = Table("A & B", ["model_1", "Dice"], [["<script>|x", 0.12345], ["=1+1", math.nan], ["100 %", 1e-5]])

    def test_markdown(self):
        lines = self.table.as_markdown().splitlines()
        assert lines[2:5] == ["| model_1 | Dice |", "| --- | --- |", r"| \<script\>\|x | 0.123 |"]
        assert lines[5].endswith("| - |") and lines[6].endswith("| 1.0e-05 |")

    def test_csv(self):
        rows = [*csv.reader(self.table.as_csv().splitlines())]
        assert rows == [["model_1", "Dice"], ["<script>|x", "0.12345"], ["'=1+1", ""], ["100 %", "1e-05"]]

    def test_latex(self):
        text = self.table.as_latex()
        assert r"model\_1 & Dice \\" in text and r"\textless{}script\textgreater{}|x & 0.123 \\" in text
        assert r"100 \% & 1.0e-05 \\" in text and r"\begin{tabular}{lr}" in text


def test_targets_named_twice(folders):
    targets = Targets.from_regions({"a": (1,)})
    assert evaluate_folder(folders[1], folders[0], targets=targets, processes=0).labels == {"1": "a"}


def test_ignore_label_of_given_labels(tmp_path):
    labels, predicted = (write_cases(tmp_path / name, cases=1, labels={**LABELS, "ignore": 3}) for name in "ab")
    reference = sitk.ReadImage(str(labels / "case_0.nii.gz"))
    reference[:, 0, :] = 3
    sitk.WriteImage(reference, str(labels / "case_0.nii.gz"))
    prediction = sitk.ReadImage(str(predicted / "case_0.nii.gz"))
    prediction[:, 0, :] = 1
    sitk.WriteImage(prediction, str(predicted / "case_0.nii.gz"))
    for options in ((), ("--label", "large=1")):
        result = run("evaluate", predicted, labels, "--processes", 0, "-o", tmp_path / "e.json", *options)
        assert result.exit_code == 0, result.output
        assert Evaluation.load(tmp_path / "e.json").of("Dice")[0, 0] == 1
        (tmp_path / "e.json").unlink()


@pytest.mark.parametrize("pixel", [0.5, 1.0, 3.0])
def test_pixels_of_any_size_have_no_volume(tmp_path, pixel):
    labels = write_cases(tmp_path / "labels", cases=1)
    for file in labels.glob("*.nii.gz"):
        flat = sitk.ReadImage(str(file))[:, :, 3]
        flat.SetSpacing((pixel, pixel))
        sitk.WriteImage(flat, str(file))
    evaluation = evaluate_folder(shutil.copytree(labels, tmp_path / "p"), labels, processes=0)
    assert np.isnan(evaluation.of("VD")).all()


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_names_with_dots(tmp_path, ending):
    """nnU-Net's summary.json names files, whose names may be UIDs."""
    labels = write_cases(tmp_path / "labels", cases=2, file_ending=ending)
    for case in range(2):
        (labels / f"case_{case}{ending}").rename(labels / f"1.2.{case}{ending}")
    predictions = shutil.copytree(labels, tmp_path / "predictions")
    compute_metrics_on_folder(
        str(labels), str(predictions), str(tmp_path / "summary.json"), SimpleITKIO(), ending, [1, 2], num_processes=1
    )
    ours = evaluate_folder(predictions, labels, processes=0)
    assert Evaluation.load(tmp_path / "summary.json").cases == ours.cases == ["1.2.0", "1.2.1"]
