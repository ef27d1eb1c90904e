"""A case in one slice: image, label, and each model's prediction with its errors, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from numpy.typing import NDArray

from .document import escape, key_of
from .orientation import View, letters
from .slices import ERRORS, errors, grey, labels

STYLE = """
.cards { display: grid; gap: .6em; grid-template-columns: repeat(auto-fit, minmax(min(100%, 9.4em), 1fr)); }
.cards figure { margin: 0; min-width: 0; } figcaption { font-size: .9em; }
.slice { position: relative; width: 100%; margin-bottom: .3em; background: #333 var(--image) 0 0 / 100% 100%; }
.slice, .slice img { display: block; image-rendering: pixelated; print-color-adjust: exact; }
.slice img { width: 100%; height: 100%; }
.slice b { position: absolute; font: 600 .8em system-ui, sans-serif; color: #fff;
  text-shadow: 0 0 2px #000, 0 0 2px #000; }
.left, .right { top: 50%; transform: translateY(-50%); } .top, .bottom { left: 50%; transform: translateX(-50%); }
b.left { left: .25em; } b.right { right: .25em; } b.top { top: .1em; } b.bottom { bottom: .1em; }
.hide:checked ~ .cards .slice img { visibility: hidden; }
.large:checked ~ .cards { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26em), 1fr)); }
input + label { margin-right: 1.2em; }
"""


@dataclass(frozen=True)
class DrawnCase:
    """Case in its view, each map (slices, rows, columns).

    Attributes:
        label, predictions: index of each voxel's part, see ``index_of_part``.
        image: its first channel; None if no folder of images was named.
        view: the view that was applied.
    """

    label: NDArray
    predictions: list[NDArray]
    image: NDArray | None
    view: View


def keys(names: Sequence[str]) -> str:
    """Return the explanation of the colours and letters of all cards.

    Args:
        names: of the labels or regions.
    """
    return (
        f"{key_of(names, title='labels')}{key_of([*ERRORS], [*ERRORS.values()], 'errors')}"
        "<p class='note'>Letters at the edges, by the file's header: R right, L left, A anterior, P posterior, "
        "S superior, I inferior. Axial and coronal slices have the patient's right at the left, as radiologists do.</p>"
    )


def section(
    heading: str, note: str, drawn: DrawnCase, index: int, models: Sequence[str], parts: int, number: int
) -> str:
    """Return the section of a case.

    Args:
        heading: name of the case, plain text; the slice is added.
        note: its scores, plain text.
        drawn: the case.
        index: slice to draw.
        models: names of the predictions' models.
        parts: how many labels or regions there are.
        number: number of the section on its page.
    """
    (slices, height, width), (*_, row_mm, column_mm) = drawn.label.shape, drawn.view.spacing
    shape = f"aspect-ratio:{width * column_mm:g}/{height * row_mm:g}"
    edges = letters(drawn.view.edges)

    def layer(source: str, what: str) -> str:
        return f"<div class='slice' style='{shape}'><img src='{source}' alt='{escape(what)}'>{edges}</div>"

    truth = drawn.label[index]
    cards = []
    if drawn.image is not None:
        cards.append(("image", f"<div class='slice' style='{shape}' role='img' aria-label='image'>{edges}</div>"))
    cards.append(("label", layer(labels(truth, parts), "label")))
    for model, prediction in zip(models, drawn.predictions, strict=True):
        as_labels = layer(labels(prediction[index], parts), f"labels, {model}")
        as_errors = layer(errors(truth, prediction[index]), f"errors, {model}")
        # below each other where models are compared
        cards += [(model, as_labels + as_errors)] if len(models) > 1 else [(model, as_labels), ("errors", as_errors)]
    figures = "".join(f"<figure><figcaption>{escape(name)}</figcaption>{content}</figure>" for name, content in cards)
    image = "" if drawn.image is None else f" style='--image:url({grey(drawn.image[index])})'"
    switches = "".join(
        f"<input type='checkbox' class='{name}' id='{name}{number}'><label for='{name}{number}'>{text}</label>"
        for name, text in (("hide", "image only"), ("large", "large"))
    )
    title = ", ".join(filter(None, (heading, drawn.view.place(index, slices))))
    return (
        f"<section{image}><h3>{escape(title)}</h3><p class='note'>{escape(note)}</p>{switches}"
        f"<div class='cards'>{figures}</div></section>"
    )
