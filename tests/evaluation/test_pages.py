"""Pages of comparisons and runs: what they draw, and that names from files stay text."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.colors import to_hex
from PIL import Image
from typer.testing import CliRunner

from nnunet_transformers import cli
from nnunet_transformers.evaluation import Evaluation, compare, evaluate_folder
from nnunet_transformers.evaluation.report import page, slices, write_comparison
from nnunet_transformers.evaluation.report.comparison_page import slice_that_differs
from nnunet_transformers.evaluation.report.palette import FEW
from nnunet_transformers.evaluation.report.run_page import read_metrics
from nnunet_transformers.evaluation.report.training_log import read_curves

SCRIPT = "<script>alert(1)<'\"$x_{2}$"
LABELS = {"background": 0, f"{SCRIPT} 1": 1, f"{SCRIPT} 2": 2}


def run(*arguments):
    return CliRunner().invoke(cli.app, [*map(str, arguments)])


def write(folder, shift=0, labels=LABELS, image=False):
    """Two cases of 4x12x10 voxels, whose label 1 moves by ``shift`` in slice 2."""
    folder.mkdir()
    for case in (f"{SCRIPT[:8]} a", "b"):
        voxels = np.zeros((4, 12, 10), np.uint8)
        voxels[1:3, 2:8, 2:5] = 1
        voxels[1:3, 2:4, 6:8] = 2
        voxels[2] = np.roll(voxels[2], shift, axis=0)
        written = sitk.GetImageFromArray(voxels * 50.0 if image else voxels)
        written.SetSpacing((1, 2, 3))
        sitk.WriteImage(written, str(folder / f"{case}{'_0000' * image}.nii.gz"))
    dataset = {"labels": labels, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}
    if any(isinstance(v, list) for v in labels.values()):
        dataset["regions_class_order"] = [1, 2]
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


@pytest.fixture
def folders(tmp_path):
    return [write(tmp_path / name, shift) for name, shift in (("labels", 0), ("a", 1), ("b", 3))]


def colours_in(uri, alpha=None):
    """Colours of a layer by the number of their pixels, those of one opacity if given."""
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA")).reshape(-1, 4)
    pixels = pixels[pixels[:, 3] > 0]
    return {to_hex(p[:3] / 255): int((pixels == p).all(1).sum()) for p in np.unique(pixels, axis=0)}


class TestComparisonPage:
    def test_draws_the_slice_where_models_differ(self, folders, tmp_path):
        labels, a, b = folders
        write(tmp_path / "images", image=True)
        options = ("--labels", labels, "--images", tmp_path / "images", "--processes", 0, "-o", tmp_path / "out")
        result = run("compare", f"{SCRIPT}={a}", f"b={b}", *options)
        assert result.exit_code == 0, result.output
        page = (tmp_path / "out/comparison.html").read_text()
        assert page.count("slice 3 of 4") == 2
        # 12 rows of 2 mm by 10 columns of 1 mm
        assert "aspect-ratio:10/24" in page
        errors = re.findall(r"<img src='(data:[^']+)' alt='errors, b'", page)
        # label 1 of 6 rows and 3 columns, moved by three; label 2 of 2x2 voxels, moved by more than its size
        found = colours_in(errors[0])
        assert found == {slices.MISSED: 9 + 4, slices.SPURIOUS: 9 + 4, "#ffffff": 9}
        predictions = re.findall(r"<img src='(data:[^']+)' alt='labels, b'", page)
        assert colours_in(predictions[0]) == {FEW[0]: 18, FEW[1]: 4}
        images = re.findall(r"--image:url\((data:[^)]+)\)", page)
        assert len(images) == 2 and Image.open(io.BytesIO(base64.b64decode(images[0][22:]))).size == (10, 12)

    def test_names_stay_text_and_nothing_is_loaded(self, folders, tmp_path):
        labels, a, b = folders
        result = run("compare", f"{SCRIPT}={a}", f"b={b}", "--labels", labels, "--processes", 0, "-o", tmp_path / "out")
        assert result.exit_code == 0, result.output
        page = (tmp_path / "out/comparison.html").read_text()
        assert "<script" not in page and page.count("&lt;script&gt;alert(1)") > 10
        assert not re.search(r"(src|href|url\()=?['\"(]?(https?:|//|file:)", page)
        assert "default-src 'none'" in page and "width=device-width" in page

    def test_regions(self, tmp_path):
        regions = {"background": 0, "whole": [1, 2], "core": 2}
        labels, a, b = (write(tmp_path / n, s, regions) for n, s in (("labels", 0), ("a", 1), ("b", 3)))
        models = {name: evaluate_folder(path, labels, processes=0) for name, path in (("a", a), ("b", b))}
        page = write_comparison(compare(models), models, tmp_path / "page.html").read_text()
        assert "whole" in page and "core" in page
        predictions = re.findall(r"<img src='(data:[^']+)' alt='labels, b'", page)
        assert colours_in(predictions[0]) == {FEW[0]: 18, FEW[1]: 4}

    def test_evaluations_of_another_machine(self, folders, tmp_path):
        """Segmentations are found beside the evaluation; if they are nowhere, the page says so."""
        labels, a, b = folders
        for model in (a, b):
            assert run("evaluate", model, labels, "--processes", 0).exit_code == 0
            shutil.move(model, tmp_path / f"moved_{model.name}")
        models = [tmp_path / f"moved_{model.name}" for model in (a, b)]
        assert run("compare", *models, "-o", tmp_path / "one").exit_code == 0
        assert (tmp_path / "one/comparison.html").read_text().count("<section") == 2
        (models[1] / "b.nii.gz").unlink()
        evaluations = [Evaluation.load(model / "evaluation.json") for model in models]
        named = dict(zip(("ours", "theirs"), evaluations, strict=True))
        page = write_comparison(compare(named), named, tmp_path / "page.html", dict(zip(named, models, strict=True)))
        assert "The prediction of theirs is not on this machine." in page.read_text()

    def test_an_evaluation_beside_another_models_predictions(self, folders, tmp_path, monkeypatch):
        """Its pictures are of its own predictions, which it states by whole paths."""
        labels, a, b = folders
        monkeypatch.chdir(tmp_path)
        for model in ("a", "b"):
            assert run("evaluate", model, labels, "--processes", 0, "-o", a / f"{model}.json").exit_code == 0
        monkeypatch.chdir(b)
        assert run("compare", f"a={a / 'a.json'}", f"b={a / 'b.json'}", "-o", tmp_path / "out").exit_code == 0
        page = (tmp_path / "out/comparison.html").read_text()
        for model, shift in (("a", 1), ("b", 3)):
            errors = re.findall(rf"<img src='(data:[^']+)' alt='errors, {model}'", page)
            assert colours_in(errors[0])[slices.MISSED] == 3 * shift + min(4, 2 * shift)

    def test_errors(self, folders, tmp_path):
        labels, a, b = folders
        options = ("--labels", labels, "--processes", 0, "--images", labels, "-o", tmp_path / "out")
        result = run("compare", a, b, *options)
        assert result.exit_code == 1 and "no image of case" in str(result.exception)
        assert not (tmp_path / "out").exists()


class TestSlice:
    label = np.full((5, 2, 2), -1)

    def test_where_the_part_differs(self):
        first, second = self.label.copy(), self.label.copy()
        first[3], first[1, 0, 0] = 1, 0
        assert slice_that_differs(self.label, [first, second], [[1], [2]], [1]) == 1
        assert slice_that_differs(self.label, [first, second], [[1], [2]], [2]) == 3
        # a part that no model has: where any differs
        assert slice_that_differs(self.label, [first, second], [[1], [2], [3]], [3]) == 3

    def test_where_all_are_wrong_and_where_none_is(self):
        wrong = self.label.copy()
        wrong[4] = 0
        assert slice_that_differs(self.label, [wrong, wrong], [[1]], [1]) == 4
        assert slice_that_differs(wrong, [wrong, wrong], [[1]], [1]) == 4

    def test_a_region_has_what_lies_in_it(self):
        first, second = self.label.copy(), self.label.copy()
        first[0], second[0] = 1, 0  # both the whole
        second[2, 0] = 1
        assert slice_that_differs(self.label, [first, second], [[1, 2], [2]], [1, 2]) == 2


def test_error_layer():
    label, prediction = np.array([[-1, 0, 0, 1, 1]]), np.array([[0, -1, 0, 0, 1]])
    found = colours_in(slices.errors(label, prediction))
    assert found == {slices.SPURIOUS: 1, slices.MISSED: 1, slices.CONFUSED: 1, "#ffffff": 2}
    # a colour of an error is no label's
    assert not {*slices.ERRORS.values()} & set(FEW)


class TestRun:
    def test_a_resumed_run(self, tmp_path):
        """Steps that a resumed run repeats count once."""
        for version, rows in enumerate((["0,0,3,", "0,1,2,", "0,2,9,"], ["0,2,1,", "0,2,,5"])):
            folder = tmp_path / f"lightning_logs/version_{version}"
            folder.mkdir(parents=True)
            (folder / "metrics.csv").write_text("\n".join(["epoch,step,loss,val_loss", *rows]))
        assert read_metrics(tmp_path) == {"loss": ([1, 2, 3], [3, 2, 1]), "val_loss": ([3], [5])}
        result = run("report", tmp_path)
        assert result.exit_code == 0, result.output
        page = (tmp_path / "report.html").read_text()
        assert page.count("<img") == 1 and "loss, training from 3 to 1, validation from 5 to 5" in page

    def test_versions_count_by_their_numbers(self, tmp_path):
        """A copy of a run has other times of its files."""
        for version, value in ((10, 1), (9, 5), (0, 7)):
            folder = tmp_path / f"lightning_logs/version_{version}"
            folder.mkdir(parents=True)
            (folder / "metrics.csv").write_text(f"epoch,step,loss\n0,1,{value}")
        assert read_metrics(tmp_path) == {"loss": ([2], [1])}

    @pytest.mark.parametrize("content", ["", "epoch,step,loss\n"])
    def test_before_the_first_metrics(self, tmp_path, content):
        (tmp_path / "metrics.csv").write_text(content)
        assert "metrics.csv holds no metrics yet" in str(run("report", tmp_path).exception)

    def test_damage(self, tmp_path):
        (tmp_path / "metrics.csv").write_text("epoch,loss\n1,2")
        with pytest.raises(ValueError, match=r"metrics.csv is not a table of metrics by step"):
            read_metrics(tmp_path)


class TestRunningTraining:
    LOG = """2026-11-26 10:00:00.1: Versions: nnunet-transformers 0.2.0, nnU-Net 2.8.1
2026-11-26 10:00:01.1: Epoch 0
2026-11-26 10:20:01.1: Epoch 0: 125 of 250 iterations in 20 min
2026-11-26 10:40:01.1: train_loss -0.1
2026-11-26 10:40:01.1: val_loss -0.2
2026-11-26 10:40:01.1: Pseudo dice [np.float32(0.5), np.float32(0.25)]
2026-11-26 10:40:01.1: Epoch time: 2400.0 s
2026-11-26 10:41:01.1: Epoch 1
"""

    @pytest.fixture
    def fold(self, tmp_path):
        stored = Path(__file__).parents[1] / "data" / "format_1" / "model"
        (model,) = stored.iterdir()
        fold = tmp_path / model.name / "fold_0"
        fold.mkdir(parents=True)
        for name in ("plans.json", "dataset.json"):
            shutil.copy(model / name, fold.parent)
        (fold / "training_log_1.txt").write_text(self.LOG)
        (fold / "debug.json").write_text(json.dumps({"num_epochs": "4", "device": "cpu"}))
        return fold

    def test_curves_so_far(self, fold):
        result = run("report", fold)
        assert result.exit_code == 0, result.output
        page = (fold / "report.html").read_text()
        for text in ("1 of 4 epochs so far", "Not validated yet; about 2.0 h", "40.0 min per epoch", "nnU-Net 2.8.1"):
            assert text in page
        assert page.count("<img") == 2
        (fold / "checkpoint_final.pth").touch()
        assert run("report", fold).exit_code == 0
        assert "nnUNetv2_train ... --val" in (fold / "report.html").read_text()

    @pytest.mark.parametrize(("first", "epochs"), [(0, [0.3]), (2, [0.5, 0.5, 0.3])])
    def test_a_later_log_counts_from_its_first_epoch_on(self, fold, first, epochs):
        """Begun anew or resumed, it leaves the logs of before, which a copy may have written in any order."""
        (fold / "training_log_1.txt").unlink()
        epoch = self.LOG[self.LOG.index("2026-11-26 10:00:01.1") : self.LOG.index("2026-11-26 10:41")]
        logs = {
            "2026_10_2_09_00_00": epoch.replace("Epoch 0\n", f"Epoch {first}\n").replace("11-26", "10-02"),
            "2026_9_30_09_00_00": "".join(epoch.replace("Epoch 0\n", f"Epoch {i}\n") for i in range(4)),
        }
        logs["2026_10_2_09_00_00"] = logs["2026_10_2_09_00_00"].replace("(0.5)", "(0.3)")
        logs["2026_9_30_09_00_00"] = logs["2026_9_30_09_00_00"].replace("11-26", "09-30")
        for name, text in logs.items():
            (fold / f"training_log_{name}.txt").write_text(text)
        curves = read_curves(fold)
        assert [dice for dice, _ in curves.pseudo_dice] == epochs and len(curves.train_loss) == len(epochs)
        begun = "2026-09-30" if first else "2026-10-02"
        assert (curves.first, curves.last) == (f"{begun} 10:00", "2026-10-02 10:40")

    def test_names_of_the_curves(self, fold, monkeypatch):
        """nnU-Net logs the Dice by the labels' values, in whatever order dataset.json names them."""
        described = json.loads((fold.parent / "dataset.json").read_text())
        described["labels"] = {"background": 0, "second": 2, "first": 1}
        (fold.parent / "dataset.json").write_text(json.dumps(described))
        drawn = {}
        monkeypatch.setattr(page, "draw_series", lambda series, name, *_: drawn.update({name: series}) or "")
        assert run("report", fold).exit_code == 0
        curves = {name: values for name, (_, values) in drawn["Dice on validation patches"].items()}
        assert curves == {"first": (0.5,), "second": (0.25,)}

    def evaluated(self, folder, *voxels):
        """Write a case's image, label and prediction, and return the options that name their folders."""
        options = []
        for (name, file), of_file in zip(
            {"images": "a_0000", "labels": "a", "predictions": "a"}.items(), voxels, strict=True
        ):
            (folder / name).mkdir()
            sitk.WriteImage(sitk.GetImageFromArray(of_file), str(folder / name / f"{file}.nii.gz"))
            options += [f"--{name}", folder / name]
        case = {"prediction_file": "a.nii.gz", "reference_file": "a.nii.gz", "metrics": {"1": {"Dice": 0.0}}}
        summary = {"metric_per_case": [case], "mean": {"1": {"Dice": 0.0}}, "foreground_mean": {"Dice": 0.0}}
        (folder / "predictions" / "summary.json").write_text(json.dumps(summary))
        return options

    @pytest.mark.parametrize("larger", ["images", "predictions"])
    def test_images_of_another_case(self, fold, tmp_path, larger):
        sizes = [(4 + (name == larger), 12, 10) for name in ("images", "labels", "predictions")]
        result = run("report", fold, *self.evaluated(tmp_path, *(np.ones(size, np.uint8) for size in sizes)))
        assert result.exit_code == 1
        assert re.search(
            rf"{larger}/a\S* has 5x12x10 voxels, its reference \S*labels/a\S* 4x12x10", str(result.exception)
        )
        assert not (fold / "report.html").exists()

    def test_a_summary_of_something_else(self, fold, tmp_path):
        """Such as that of evaluate-iou, which its documentation writes to this name."""
        options = self.evaluated(tmp_path, *[np.ones((4, 12, 10), np.uint8)] * 3)
        (tmp_path / "predictions" / "summary.json").write_text('{"label": 1, "mean_iou": 0.5}')
        message = str(run("report", fold, *options).exception)
        assert "summary.json is truncated or not an evaluation: KeyError" in message

    def test_raw_data_of_another_machine(self, fold, tmp_path, monkeypatch):
        monkeypatch.setenv("nnUNet_raw", str(tmp_path))
        options = self.evaluated(tmp_path, *[np.ones((4, 12, 10), np.uint8)] * 3)[2:]
        message = str(run("report", fold, *options).exception)
        assert "no image of case a in the dataset's imagesTr" in message and "name the folder with --images" in message

    def test_ignored_voxels_are_no_errors(self, fold, tmp_path, monkeypatch):
        described = json.loads((fold.parent / "dataset.json").read_text())
        described["labels"] |= {"ignore": 1 + max(described["labels"].values())}
        (fold.parent / "dataset.json").write_text(json.dumps(described))
        truth = np.full((4, 12, 10), described["labels"]["ignore"], np.uint8)
        truth[1] = 0
        drawn = []
        monkeypatch.setattr(page, "section", lambda *arguments: drawn.append(arguments[2]) or "")
        result = run("report", fold, *self.evaluated(tmp_path, truth, truth, np.ones_like(truth)))
        assert result.exit_code == 0, result.output
        (prediction,) = drawn[0].predictions
        assert np.count_nonzero(prediction == 0) == truth[1].size == np.count_nonzero(prediction != -1)

    def test_a_renamed_model(self, fold):
        """Its plan is not known, and left out."""
        renamed = fold.parent.rename(fold.parents[1] / "my_model") / "fold_0"
        assert run("report", renamed).exit_code == 0
        assert "my_model, fold_0" in (renamed / "report.html").read_text()

    def test_without_a_log_nothing_is_drawn(self, fold):
        (fold / "training_log_1.txt").unlink()
        assert "finish training" in str(run("report", fold).exception)
