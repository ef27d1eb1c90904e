"""Real images as DICOM series, as runs of grand-challenge.org and as ONNX, beside the ordinary segmentation.

    PYTHONPATH=. python benchmarks/formats.py MODEL IMAGES --cases 20 --dciodvfy dciodvfy --dcmqi segimage2itkimage

MODEL is nnU-Net's folder of a model with a finished fold 0, IMAGES a folder of its images (.nii.gz, one channel). Each
image is rounded to whole numbers of 16 bits, which DICOM stores, and gets oblique axes and an anisotropic spacing; then
it is written as .nii.gz, as an MR series and as .mha. DICOM-SEG are read back with pydicom alone, and checked by
dciodvfy of dicom3tools and converted by dcmqi's segimage2itkimage, if their paths are given. ONNX takes the image as it
is.
Writes results/formats.json and results/formats.md.
"""

from __future__ import annotations

import argparse
import json
import runpy
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunet_transformers.sharing import (
    Options,
    export_onnx,
    load_model,
    load_package,
    make_package,
    package_interfaces,
    predict_folder,
    select_device,
)
from nnunet_transformers.weights.nnunet_checkpoint import FINAL, read_checkpoint
from tests.formats.series import oblique, read_segmentation, write_series

LARGEST = 30000.0
RESULTS = Path(__file__).parent / "results" / "formats"


def labels_of(path: Path, grid: sitk.Image | None = None) -> NDArray[Any]:
    """Labels of a file, on a grid if one is given."""
    image = sitk.ReadImage(str(path))
    if grid is not None:
        image = sitk.Resample(image, grid, sitk.Transform(), sitk.sitkNearestNeighbor)
    return sitk.GetArrayFromImage(image)


def conformance(dciodvfy: str, path: Path) -> dict[str, int]:
    """Errors and warnings of dicom3tools' check."""
    result = subprocess.run([dciodvfy, "-new", str(path)], capture_output=True, text=True, check=False)
    lines = (result.stdout + result.stderr).splitlines()
    return {kind: sum(line.startswith(kind.title()) for line in lines) for kind in ("error", "warning")}


def by_dcmqi(dcmqi: str, path: Path, grid: sitk.Image, folder: Path) -> NDArray[Any]:
    """Labels as dcmqi reads them."""
    folder.mkdir()
    command = [dcmqi, "--inputDICOM", path, "--outputDirectory", folder, "--outputType", "nifti", "--mergeSegments"]
    subprocess.run([str(word) for word in command], capture_output=True, check=True)
    return labels_of(next(folder.glob("*.nii.gz")), grid)


def whole_numbers(image: sitk.Image) -> sitk.Image:
    """Round to whole numbers that DICOM's 16 bits hold, on a smaller scale where they do not."""
    image = sitk.Cast(image, sitk.sitkFloat32)
    largest = float(sitk.GetArrayViewFromImage(image).max())
    return sitk.Cast(sitk.Round(image * min(1.0, LARGEST / largest)), sitk.sitkInt16)


def write_run(folder: Path, image: sitk.Image) -> Path:
    """Write the input of a run with one image."""
    (folder / "images" / "image").mkdir(parents=True)
    sitk.WriteImage(image, str(folder / "images" / "image" / "0001.mha"))
    socket = {"slug": "image", "relative_path": "images/image", "kind": "Image"}
    (folder / "inputs.json").write_text(json.dumps([{"socket": socket, "value": None}]))
    return folder


def measure(model: Path, images: list[Path], dciodvfy: str | None, dcmqi: str | None, folder: Path) -> dict[str, Any]:
    """Differing voxels of every way, the sum over the images."""
    channel = next(iter(json.loads((model / "dataset.json").read_text())["channel_names"].values()))
    (folder / "sockets.json").write_text(json.dumps({"inputs": {"image": channel}, "output": "labels"}))
    make_package([model], folder / "package", Options(folds=("0",), sockets=folder / "sockets.json"))
    loaded = load_package(folder / "package", select_device("cpu"), use_mirroring=False)
    segmenter = load_model(folder / "package", "cpu", use_mirroring=False)
    for name, half in (("float32", False), ("float16", True)):
        export_onnx(loaded, folder / name, half)
    runner = runpy.run_path(str(folder / "float32" / "run.py"))["segment"]
    sessions = {n: onnxruntime.InferenceSession(str(folder / n / "fold_0.onnx")) for n in ("float32", "float16")}
    description = json.loads((folder / "float32" / "model.json").read_text())
    window = np.load(folder / "float32" / "window.npy")
    found: dict[str, Any] = {"images": len(images), "voxels": 0, "foreground": 0}
    different = dict.fromkeys(("pydicom", "dcmqi", "grand-challenge.org", "ONNX", "ONNX float16"), 0)
    checked = {"error": 0, "warning": 0}
    for path in images:
        original = sitk.ReadImage(str(path))
        case = folder / path.name.removesuffix("_0000.nii.gz")
        case.mkdir()
        image = oblique(whole_numbers(original))
        sitk.WriteImage(image, str(case / "image.nii.gz"))
        segmenter.predict_file(case / "image.nii.gz", case / "labels.nii.gz")
        expected = labels_of(case / "labels.nii.gz")
        found["voxels"] += expected.size
        found["foreground"] += int((expected > 0).sum())

        write_series(case / "series", image)
        segmenter.predict_file(case / "series", case / "labels.dcm")
        different["pydicom"] += int((read_segmentation(case / "labels.dcm", image)[0] != expected).sum())
        if dciodvfy:
            for kind, count in conformance(dciodvfy, case / "labels.dcm").items():
                checked[kind] += count
        if dcmqi:
            different["dcmqi"] += int((by_dcmqi(dcmqi, case / "labels.dcm", image, case / "dcmqi") != expected).sum())

        run = write_run(case / "input", image)
        predict_folder(loaded, run, case / "output", interfaces=package_interfaces(folder / "package", loaded))
        output = labels_of(case / "output" / "images" / "labels" / "0001.mha")
        different["grand-challenge.org"] += int((output != expected).sum())

        voxels = sitk.GetArrayFromImage(original)[None].astype(np.float32)
        here = segmenter.predict(voxels, description["spacing"])
        full, half = (runner(voxels, description, [sessions[n]], window) for n in ("float32", "float16"))
        different["ONNX"] += int((full != here).sum())
        different["ONNX float16"] += int((half != full).sum())
        print(path.name, different, flush=True)
    if not dcmqi:
        del different["dcmqi"]
    sizes = {n: (folder / n / "fold_0.onnx").stat().st_size for n in ("float32", "float16")}
    return {**found, "different": different, "dciodvfy": checked if dciodvfy else None, "onnx_bytes": sizes}


def write(content: dict[str, Any]) -> None:
    """Write JSON and table."""
    RESULTS.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    lines = [
        "# Formats",
        "",
        f"`benchmarks/formats.py` with {content['model']}, fold 0 after {content['epochs']} epochs, on the first\n"
        f"{content['images']} images of {content['dataset']}, {content['voxels']} voxels, {content['foreground']} of\n"
        "them segmented. Each way beside the ordinary segmentation of the NIfTI file:",
        "",
        "| way | voxels that differ | equal |",
        "|---|---|---|",
    ]
    names = {
        "pydicom": "DICOM series to DICOM-SEG, read by pydicom alone",
        "dcmqi": "the same, read by dcmqi",
        "grand-challenge.org": ".mha of a socket to .mha of a socket",
        "ONNX": "ONNX, beside the package on the same array",
        "ONNX float16": "ONNX with `--fp16`, beside ONNX without",
    }
    for way, count in content["different"].items():
        lines.append(f"| {names[way]} | {count} | {1 - count / content['voxels']:.6%} |")
    if checked := content["dciodvfy"]:
        counts = f"{checked['error']} errors, {checked['warning']} warnings"
        lines += [
            "",
            f"dciodvfy on the {content['images']} DICOM-SEG: {counts}, all on private codes of labels.",
        ]
    sizes = content["onnx_bytes"]
    lines += ["", f"ONNX file: {sizes['float32'] / 1e6:.1f} MB, with `--fp16` {sizes['float16'] / 1e6:.1f} MB.", ""]
    RESULTS.with_suffix(".md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder TRAINER__PLANS__CONFIGURATION")
    parser.add_argument("images", type=Path, help="folder of images, CASE_0000.nii.gz")
    parser.add_argument("--cases", type=int, default=20, help="number of images, default 20")
    parser.add_argument("--dciodvfy", help="program of dicom3tools")
    parser.add_argument("--dcmqi", help="program segimage2itkimage of dcmqi")
    options = parser.parse_args()
    images = sorted(options.images.glob("*_0000.nii.gz"))[: options.cases]
    epochs = read_checkpoint(options.model / "fold_0" / FINAL)[0]["current_epoch"]
    dataset = options.images.resolve().parent.name
    with TemporaryDirectory() as folder:
        found = measure(options.model, images, options.dciodvfy, options.dcmqi, Path(folder))
    write({"model": options.model.name, "epochs": epochs, "dataset": dataset, **found})


if __name__ == "__main__":
    main()
