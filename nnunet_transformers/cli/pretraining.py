"""``nnunet-transformers pretrain``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..plans.planned import PlannedConfiguration
from ..pretraining.data.cases import validation_cases
from ..pretraining.data.prepare import prepare
from .network_table import parse_patch_size


def prepare_images(
    source: Path,
    output: Path,
    spacing: str,
    patch_size: str,
    processes: int,
    fold: int | None,
    plan: tuple[str | None, str | None, str],
    normalization: str | None,
    like: Path | None,
) -> None:
    """Prepare and print what was stored and what was not."""
    try:
        wanted = [float(s) for s in spacing.split(",")] if spacing else None
    except ValueError as error:
        raise ValueError(f"--spacing {spacing!r} is not a list of numbers such as 1,1,1") from error
    planned, chosen = _planned(*plan), None
    if like is not None:
        if planned is not None:
            raise ValueError("--like and --plans contradict each other: each says how to prepare the images")
        from ..classification.checkpoint import preparation

        chosen = preparation(like)
    elif planned is not None:
        chosen = (planned.plans, planned.name)
    if chosen is not None and wanted is not None:
        raise ValueError("--spacing and --plans or --like contradict each other: the spacing is theirs")
    left_out = () if fold is None else validation_cases(source, fold)
    size = parse_patch_size(patch_size) if planned is None else planned.configuration.patch_size
    stored, skipped = prepare(source, output, wanted, size, processes, left_out, chosen, normalization)
    for case in skipped:
        print(f"skipped {case.name}: {case.reason}")
    print(f"{output}: {len(stored)} images, {len(skipped)} skipped, {len(left_out)} left out for validation")


def fit_recipe(config: str, plan: tuple[str | None, str | None, str], arguments: Sequence[str]) -> None:
    """Run a recipe with LightningCLI."""
    from ..pretraining.fit import fit

    fit(config, arguments, _planned(*plan))


def _planned(dataset: str | None, plans: str | None, configuration: str) -> PlannedConfiguration | None:
    if dataset is None and plans is None:
        return None
    if dataset is None or plans is None:
        raise ValueError("--dataset and --plans go together: they name the plan to follow")
    return PlannedConfiguration.load(dataset, plans, configuration)


def draw(
    images: Path,
    query: str,
    key: str,
    output: Path,
    matcher: str,
    weights: Path | None,
    landmarks: Path | None,
    points: int,
) -> None:
    """Write the picture of a matcher's matches."""
    from ..pretraining.data import CachedMatcher, PreparedImages
    from ..pretraining.figures.matches import draw_matches

    wanted = {"embedding": ("--weights", weights), "hybrid": ("--weights", weights)}
    wanted["precomputed"] = ("--landmarks", landmarks)
    option, file = wanted.get(matcher, ("", None))
    if option and file is None:
        raise ValueError(f"the matcher {matcher} needs {option}")
    arguments = {option.removeprefix("--"): str(file)} if option else {}
    draw_matches(CachedMatcher(PreparedImages(images), matcher, arguments), query, key, output, points)
    print(f"written: {output}")


def draw_attention_to(
    alignment: Path, image: Path, report: str, output: Path, words: int, text_encoder: str | None
) -> None:
    """Look at an image and its report, draw what MGCA attends to and print the weightiest words."""
    from ..pretraining.alignment import AlignmentCheckpoint
    from ..pretraining.figures.attention_maps import draw_attention
    from ..pretraining.methods.mgca import MGCA
    from ..pretraining.report_attention import attend

    checkpoint = AlignmentCheckpoint.load(alignment)
    attention = attend(MGCA.from_checkpoint(checkpoint, text_encoder), checkpoint.max_length, image, report)
    draw_attention(attention, output, words)
    order = (-attention.word_weights).argsort(kind="stable")[:words]
    print(", ".join(f"{attention.words[i]} {attention.word_weights[i]:.3f}" for i in order))
    print(f"written: {output}")
