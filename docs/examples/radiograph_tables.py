"""Tables of radiographs from public datasets as they are downloaded; docs/radiographs.md has the commands.

python docs/examples/radiograph_tables.py chexpert CheXpert-v1.0-small chexpert.csv
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.model_selection import train_test_split

FINDINGS = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"]
FRONTAL = ["PA", "AP"]
BOXES = ["image", "x", "y", "width", "height", "image_width", "image_height", "split"]


def mimic_cxr(folder: Path) -> pd.DataFrame:
    """MIMIC-CXR-JPG's frontal images with the sections of their reports.

    ``folder`` holds ``mimic-cxr-2.0.0-metadata.csv`` and ``mimic-cxr-2.0.0-split.csv`` (or ``.csv.gz``), and
    ``mimic_cxr_sectioned.csv``, which MIMIC-CXR's own ``create_section_files.py`` writes. Images are named relative to
    its folder ``files``.
    """

    def read(name: str) -> pd.DataFrame:
        plain = folder / name
        return pd.read_csv(plain if plain.is_file() else f"{plain}.gz", dtype=str)

    images = read("mimic-cxr-2.0.0-metadata.csv")[["dicom_id", "subject_id", "study_id", "ViewPosition"]]
    images = images[images["ViewPosition"].isin(FRONTAL)]
    images = images.merge(read("mimic-cxr-2.0.0-split.csv")[["dicom_id", "split"]], on="dicom_id")
    sections = read("mimic_cxr_sectioned.csv")[["study", "impression", "findings"]]
    sections["study_id"] = sections["study"].str.removeprefix("s")
    images = images.merge(sections, on="study_id")
    patient = "p" + images["subject_id"]
    images["image"] = patient.str[:3] + "/" + patient + "/s" + images["study_id"] + "/" + images["dicom_id"] + ".jpg"
    images = images[images["split"] != "test"].rename(columns={"subject_id": "patient_id"})
    return images[["image", "impression", "findings", "split", "patient_id", "study_id"]]


def chexpert(folder: Path, validation: int = 5000) -> pd.DataFrame:
    """CheXpert's frontal images with the five findings of its competition; ``valid.csv`` is the test set.

    Findings that a report does not mention count as absent; -1, uncertain, is left to ``--uncertain``. About
    ``validation`` images, of whole patients, are for validation.
    """
    training, test = (pd.read_csv(folder / name) for name in ("train.csv", "valid.csv"))
    training, test = (table[table["Frontal/Lateral"] == "Frontal"] for table in (training, test))
    patients = training["Path"].str.extract(r"(patient\d+)")[0]
    _, drawn = train_test_split(patients.unique(), test_size=validation / len(training), random_state=0)
    training = training.assign(split=patients.isin(set(drawn)).map({True: "val", False: "train"}).to_numpy())
    table = pd.concat([training, test.assign(split="test")])
    # paths begin with the name of the folder
    table["image"] = table["Path"].str.split("/", n=1).str[1]
    table[FINDINGS] = table[FINDINGS].fillna(0).astype(int)
    return table[["image", *FINDINGS, "split"]]


def rsna(folder: Path) -> pd.DataFrame:
    """RSNA's pneumonia challenge, stage 2: an opacity or none; 70, 15 and 15 % of the patients."""
    boxes = pd.read_csv(folder / "stage_2_train_labels.csv", dtype={"patientId": str})
    table = boxes.groupby("patientId", as_index=False)["Target"].max()
    training, rest = train_test_split(table, test_size=0.3, random_state=0, stratify=table["Target"])
    validation, test = train_test_split(rest, test_size=0.5, random_state=0, stratify=rest["Target"])
    parts = {"train": training, "val": validation, "test": test}
    table = pd.concat([part.assign(split=split) for split, part in parts.items()])
    return table.assign(image=table["patientId"] + ".dcm", label=table["Target"])[["image", "label", "split"]]


def covidx(folder: Path) -> pd.DataFrame:
    """COVIDx: the classes of its lists ``train*.txt`` and ``test*.txt``; a tenth of the patients to validate on."""

    def read(pattern: str) -> pd.DataFrame:
        (file,) = folder.glob(pattern)
        return pd.read_csv(file, sep=" ", header=None, names=["patient", "image", "label", "source"], dtype=str)

    training, test = read("train*.txt"), read("test*.txt")
    _, drawn = train_test_split(training["patient"].unique(), test_size=0.1, random_state=0)
    training["split"] = training["patient"].isin(set(drawn)).map({True: "val", False: "train"})
    training["image"], test["image"] = "train/" + training["image"], "test/" + test["image"]
    return pd.concat([training, test.assign(split="test")])[["image", "label", "split"]]


def rsna_boxes(folder: Path, held_out: int = 5337) -> pd.DataFrame:
    """RSNA's opacities as boxes; as many patients to validate on as to test on, as in MGCA's release."""
    table = pd.read_csv(folder / "stage_2_train_labels.csv", dtype={"patientId": str})
    table = table.assign(image=table["patientId"] + ".dcm", image_width=1024, image_height=1024)
    training, rest = train_test_split(table["patientId"].unique(), test_size=2 * held_out, random_state=0)
    table["split"] = np.where(table["patientId"].isin(set(training)), "train", "val")
    table.loc[table["patientId"].isin(set(rest[:held_out])), "split"] = "test"
    return table[BOXES]


def object_cxr(folder: Path) -> pd.DataFrame:
    """Object-CXR's foreign objects as boxes: ``dev`` is the test set, a tenth of ``train`` is for validation.

    An object is an ellipse or rectangle, given by two corners, or a polygon; its box is that around it.
    """
    parts = []
    for part in ("train", "dev"):
        table = pd.read_csv(folder / f"{part}.csv", dtype=str, keep_default_na=False)
        held = (
            set(table["image_name"].sample(frac=0.1, random_state=0)) if part == "train" else set(table["image_name"])
        )
        for name, annotation in zip(table["image_name"], table["annotation"], strict=True):
            with Image.open(folder / part / name) as image:
                width, height = image.size
            split = ("val" if part == "train" else "test") if name in held else "train"
            for shape in annotation.split(";"):
                x, y = (np.array(shape.split()[first::2], float) for first in (1, 2))
                box = (x.min(), y.min(), np.ptp(x), np.ptp(y)) if len(x) else ("",) * 4
                parts.append([f"{part}/{name}", *box, width, height, split])
    return pd.DataFrame(parts, columns=BOXES)


DATASETS = {"mimic-cxr": mimic_cxr, "chexpert": chexpert, "rsna": rsna, "covidx": covidx}
DATASETS |= {"rsna-boxes": rsna_boxes, "object-cxr": object_cxr}

if __name__ == "__main__":
    name, source, output = sys.argv[1:]
    found = DATASETS[name](Path(source))
    found.to_csv(output, index=False)
    print(f"{output}: {len(found)} rows, {found['split'].value_counts().to_dict()}")
