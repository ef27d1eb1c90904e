"""An image encoder with the text encoder that it was aligned to: kept to look at what MGCA's parts attend to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..weights.sealed import SealedCheckpoint
from .data.report_pairs import centre_crop, read_radiograph
from .data.report_table import clean_report
from .encoders.text import load_tokenizer, tokenize
from .losses import token_weights, word_attention

if TYPE_CHECKING:
    from .methods.mgca import MGCA

# supplement, table 7: the ten words of most weight in red
RED_WORDS, WORDS_PER_LINE = 10, 12


@dataclass(frozen=True)
class AlignmentCheckpoint(SealedCheckpoint):
    """Everything that MGCA trained.

    Attributes:
        settings: arguments of ``MGCA``, plain types.
        max_length: tokens of a report.
    """

    kind: ClassVar[str] = "alignment"
    format: ClassVar[int] = 1
    remedy: ClassVar[str] = "`nnunet-transformers pretrain fit --config mgca` writes alignment.pth beside the encoder"
    settings: dict[str, Any]
    max_length: int

    def build_method(self, text_encoder: str | None = None) -> MGCA:
        """The method with its weights, as it is used.

        Args:
            text_encoder: folder or hub name, if it has moved since training.

        Raises:
            OSError: if there is no such text encoder.
        """
        from .methods.mgca import MGCA

        changes = {"pretrained": False} | ({"text_encoder": text_encoder} if text_encoder else {})
        method = MGCA(**{**self.settings, **changes})
        method.load_state_dict(self.weights)
        return method.eval()


@dataclass(frozen=True)
class Attention:
    """What the parts of an image and its report attend to.

    Attributes:
        image: (channels, height, width), as the encoder saw it.
        words: of the report.
        word_weights: (words,), with a sum of 1: CTA's, what [CLS] pays to each, clipped to their quantiles.
        patch_weights: (rows, columns), the same of the image; None for encoders without [CLS].
        maps: (words, rows, columns): for each word where in the image CTA finds it, each with a sum of 1.
    """

    image: NDArray
    words: list[str]
    word_weights: NDArray
    patch_weights: NDArray | None
    maps: NDArray


@torch.inference_mode()
def attend(method: MGCA, max_length: int, image: Path, report: str) -> Attention:
    """Look at an image and a report.

    Args:
        method: trained with CTA.
        max_length: tokens of a report.
        image: file.
        report: text; words beyond ``max_length`` tokens are left out.

    Raises:
        ValueError: if the method was trained without CTA, the image cannot be read, or the report has no words.
        OSError: if there is no such file.
    """
    if not method.loss_weights["cta"]:
        raise ValueError("the encoders were trained without CTA (cta_weight 0), which is what finds words in an image")
    words = clean_report(report).split()
    if not words:
        raise ValueError("the report has no words")
    settings = method.hparams
    try:
        picture = centre_crop(read_radiograph(image, settings.input_channels), settings.patch_size)
    except ValueError as error:
        raise ValueError(f"{image} {error}") from error
    seen = method.image_encoder(picture[None])
    tokens = tokenize(load_tokenizer(settings.text_encoder), [" ".join(words)], max_length)
    read = method.text_encoder(**tokens)
    patches, found = method.patch_head(seen.patches[0]), method.word_head(read.words[0])
    maps = word_attention(found[None], patches[None])[0]
    return Attention(
        image=picture.numpy(),
        words=words[: len(found)],
        word_weights=token_weights(read.attention)[0].numpy(),
        patch_weights=None if seen.attention is None else token_weights(seen.attention)[0].view(seen.grid).numpy(),
        maps=maps.view(-1, *seen.grid).numpy(),
    )


def draw_attention(attention: Attention, output: Path, words: int = 6) -> None:
    """Write a picture: the image, what of it has weight, where its weightiest words are found, and the report.

    The words of most weight are red, as in the supplement's table 7; its figure 1 has the weights of the patches.

    Args:
        attention: of ``attend``.
        output: picture to write, PNG or another of matplotlib's formats.
        words: maps to draw.
    """
    order = np.argsort(-attention.word_weights, kind="stable")
    shown = order[:words]
    panels: list[tuple[str, NDArray | None]] = [("image", None)]
    if attention.patch_weights is not None:
        panels.append(("weight of patches", attention.patch_weights))
    panels += [(attention.words[i], attention.maps[i]) for i in shown]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    lines = -(-len(attention.words) // WORDS_PER_LINE)
    text_height = 0.3 * lines + 0.2
    figure = Figure(figsize=(2.6 * columns, 2.8 * rows + text_height), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[2.8 * rows, text_height])
    axes = upper.subplots(rows, columns, squeeze=False).ravel()
    image = attention.image.mean(0)
    extent = (0, image.shape[1], image.shape[0], 0)
    for axis in axes:
        axis.set_axis_off()
    for axis, (title, weights) in zip(axes, panels, strict=False):
        axis.imshow(image, cmap="gray", extent=extent)
        if weights is not None:
            # where there is no weight the image stays as it is
            alpha = 0.8 * weights / weights.max()
            axis.imshow(weights, cmap="autumn_r", alpha=alpha, extent=extent, interpolation="bilinear")
        axis.set_title(title, fontsize=9)
    red = set(order[:RED_WORDS].tolist())
    axis = lower.subplots()
    axis.set_axis_off()
    for number, word in enumerate(attention.words):
        line, column = divmod(number, WORDS_PER_LINE)
        place = ((column + 0.5) / WORDS_PER_LINE, 1 - (line + 0.5) / lines)
        colour = "tab:red" if number in red else "black"
        axis.text(*place, word, color=colour, ha="center", va="center", fontsize=9, transform=axis.transAxes)
    figure.savefig(output, dpi=110)
