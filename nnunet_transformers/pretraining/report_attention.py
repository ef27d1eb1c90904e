"""Attention between a radiograph and its radiology report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .data.radiographs import read_radiograph
from .data.report_pairs import canvas_of, centre_crop
from .data.report_table import clean_report
from .encoders.text import load_tokenizer, tokenize
from .losses import token_weights, word_attention
from .methods.mgca import MGCA


@dataclass(frozen=True)
class ReportAttention:
    """Attention of an image and its radiology report.

    Attributes:
        image: input of the image encoder, (channels, height, width).
        words: words of the report.
        word_weights: CTA's weights of the words, the clipped attention of [CLS] to each, (words,) with sum 1.
        patch_weights: CTA's weights of the patches, (rows, columns) with sum 1; None for encoders without [CLS].
        maps: CTA's attention of each word to the patches, (words, rows, columns), each map with sum 1.
    """

    image: NDArray
    words: list[str]
    word_weights: NDArray
    patch_weights: NDArray | None
    maps: NDArray


@torch.inference_mode()
def attend(method: MGCA, max_length: int, image: Path, report: str) -> ReportAttention:
    """Compute the attention of an image and its report (MGCA, section 3).

    Args:
        method: trained with CTA.
        max_length: tokens of a report.
        image: image file.
        report: text; words beyond ``max_length`` tokens are left out.

    Raises:
        ValueError: if the method was trained without CTA, the image cannot be read, or the report has no words.
        OSError: if there is no such file.

    Examples:
        >>> checkpoint = AlignmentCheckpoint.load("alignment.pth")
        >>> method = checkpoint.build_method(MGCA)
        >>> attention = attend(method, checkpoint.max_length, Path("chest.png"), "Large nodule in the left lung.")
        >>> attention.words
        ['Large', 'nodule', 'in', 'the', 'left', 'lung']
    """
    if not method.loss_weights["cta"]:
        raise ValueError("the encoders were trained without CTA (cta_weight 0), which locates words in an image")
    words = clean_report(report).split()
    if not words:
        raise ValueError("the report has no words")
    settings = method.hparams
    try:
        radiograph = read_radiograph(image, settings.input_channels, max(canvas_of(settings.patch_size)))
        picture = centre_crop(radiograph, settings.patch_size)
    except ValueError as error:
        raise ValueError(f"{image} {error}") from error
    seen = method.image_encoder(picture[None])
    tokens = tokenize(load_tokenizer(settings.text_encoder), [" ".join(words)], max_length)
    read = method.text_encoder(**tokens)
    patches, embedded = method.patch_head(seen.patches[0]), method.word_head(read.words[0])
    maps = _maps(method, embedded[None], patches[None])[0]
    return ReportAttention(
        image=picture.numpy(),
        words=words[: len(embedded)],
        word_weights=token_weights(read.attention)[0].numpy(),
        patch_weights=None if seen.attention is None else token_weights(seen.attention)[0].view(seen.grid).numpy(),
        maps=maps.view(-1, *seen.grid).numpy(),
    )


def _maps(method: MGCA, words: Tensor, patches: Tensor) -> Tensor:
    """Attention of each word to each patch, (1, words, patches), the mean over the heads if it is learned."""
    if not len(method.cta_attention):
        return word_attention(words, patches)
    words, patches = F.normalize(words, dim=-1), F.normalize(patches, dim=-1)
    maps: Tensor = method.cta_attention[0](words, patches, patches)[1]
    return maps
