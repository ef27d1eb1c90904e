"""Synthetic radiographs with reports that describe them, and a tiny BERT that can read these: for tests and mgca.py."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

SIZES = {"small": 0.05, "large": 0.1}  # radius, in image edges
SHAPES = {"nodule": 1, "opacity": 2, "cavity": 3}
SIDES = ("left", "right")
# "nodules" and the like are written in two pieces
WORDS = """
[PAD] [UNK] [CLS] [SEP] a . , ##s the is there no and of with in lung left right small large nodul ##e opacit ##y cavit
finding clear seen impression cm 2 5 1 0 normal chest side both other
"""
VOCABULARY = WORDS.split()


@dataclass(frozen=True)
class Finding:
    """A shape in one lung."""

    side: str
    size: str
    shape: str

    def sentence(self) -> str:
        return f"There is a {self.size} {self.shape} in the {self.side} lung."


def draw_findings(rng: np.random.Generator) -> list[Finding]:
    """For each lung a finding, or none in a quarter of them."""
    findings = []
    for side in SIDES:
        if rng.random() < 0.75:
            findings.append(Finding(side, str(rng.choice(list(SIZES))), str(rng.choice(list(SHAPES)))))
    return findings


def draw_radiograph(findings: list[Finding], size: int, rng: np.random.Generator) -> NDArray:
    """Two dark lungs in bright tissue, the patient's left on the image's right as in a clinic.

    Returns:
        (size, size), uint8.
    """
    return draw_with_boxes(findings, size, rng)[0]


def draw_with_boxes(
    findings: list[Finding], size: int, rng: np.random.Generator
) -> tuple[NDArray, list[tuple[float, float, float, float]]]:
    """``draw_radiograph``, and the box around each finding: left, top, width and height in pixels."""
    boxes = []
    y, x = np.meshgrid(*[np.linspace(0, 1, size)] * 2, indexing="ij")
    image = np.full((size, size), 0.6)
    for centre in (0.28, 0.72):
        image[((x - centre) / 0.19) ** 2 + ((y - 0.5) / 0.38) ** 2 < 1] = 0.25
    for finding in findings:
        centre_x = (0.72 if finding.side == "left" else 0.28) + rng.uniform(-0.05, 0.05)
        centre_y, radius = rng.uniform(0.3, 0.7), SIZES[finding.size]
        distance = np.hypot(x - centre_x, y - centre_y) / radius
        square = np.maximum(abs(x - centre_x), abs(y - centre_y)) / radius
        inside = {"nodule": distance < 1, "opacity": square < 0.9, "cavity": (distance < 1) & (distance > 0.55)}
        image[inside[finding.shape]] = 0.9
        half = radius * (0.9 if finding.shape == "opacity" else 1.0)
        # the grid's last line is at 1, the middle of the last pixel
        left, top = ((centre - half) * (size - 1) + 0.5 for centre in (centre_x, centre_y))
        boxes.append((left, top, 2 * half * (size - 1), 2 * half * (size - 1)))
    image += rng.normal(0, 0.05, image.shape)
    return (image.clip(0, 1) * 255).astype(np.uint8), boxes


def write_reports(findings: list[Finding], rng: np.random.Generator) -> tuple[str, str]:
    """Impression and findings."""
    if not findings:
        return "Normal chest.", "Both lungs clear, no finding is seen."
    sentences = [finding.sentence() for finding in findings]
    if len(findings) == 1:
        sentences.append("The other side is clear.")
    if rng.random() < 0.5:
        sentences.reverse()
    return " and ".join(f"{f.size} {f.side} {f.shape}" for f in findings) + ".", " ".join(sentences)


def write_dataset(folder: Path, images: int, size: int = 64, seed: int = 0) -> Path:
    """Write images (PNG) and ``reports.csv``, with a column for each shape that says whether it is there.

    Returns:
        the table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "reports.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "impression", "findings", "patient_id", "study_id", *SHAPES])
        for number in range(images):
            rng = np.random.default_rng((seed, number))
            findings = draw_findings(rng)
            radiograph = sitk.GetImageFromArray(draw_radiograph(findings, size, rng))
            sitk.WriteImage(radiograph, str(folder / f"image_{number:04d}.png"))
            labels = [int(any(f.shape == shape for f in findings)) for shape in SHAPES]
            reports = write_reports(findings, rng)
            writer.writerow([f"image_{number:04d}.png", *reports, f"patient_{number}", f"study_{number}", *labels])
    return table


def write_boxed(folder: Path, images: int, size: int = 64, seed: int = 0) -> Path:
    """Write images (PNG) and ``boxes.csv``, the box of each finding with its shape, as `detect` reads them.

    Three fifths are to train on, a fifth each to validate and to test.

    Returns:
        the table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "boxes.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "x", "y", "width", "height", "image_width", "image_height", "label", "split"])
        for number in range(images):
            rng = np.random.default_rng((seed, number))
            findings = draw_findings(rng)
            pixels, boxes = draw_with_boxes(findings, size, rng)
            name, split = f"image_{number:04d}.png", ("train", "train", "train", "val", "test")[number % 5]
            sitk.WriteImage(sitk.GetImageFromArray(pixels), str(folder / name))
            for finding, box in zip(findings, boxes, strict=True):
                writer.writerow([name, *(f"{v:.2f}" for v in box), size, size, finding.shape, split])
            if not boxes:
                writer.writerow([name, "", "", "", "", size, size, "", split])
    return table


def write_text_encoder(folder: Path, layers: int = 2, dim: int = 64, length: int = 64, seed: int = 0) -> Path:
    """Write a BERT with random weights and its tokenizer, whose vocabulary is fixed.

    Returns:
        the folder.
    """
    numbers = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [("[CLS]", numbers["[CLS]"]), ("[SEP]", numbers["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=dim,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * dim,
        max_position_embeddings=length,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder
