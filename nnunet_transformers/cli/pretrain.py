"""Group ``pretrain``: preparation of images, pretraining of encoders, figures of matches and attention."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from ._options import (
    Configuration,
    OptionalDataset,
    OptionalPlans,
    PlanReference,
    PreparedFolder,
    Trust,
    parse_patch_size,
    parse_range,
    parse_spacing,
)
from ._output import echo
from ._recipes import RecipeName, describe_recipes

commands = typer.Typer(help="Encoder checkpoints from unlabelled images.", no_args_is_help=True)


@commands.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="Dataset in nnU-Net's raw layout, or a folder of images.")],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    spacing: Annotated[str, typer.Option(help="Voxel size in mm, such as 1,1,1; the images' median by default.")] = "",
    patch_size: Annotated[str, typer.Option(help="Approximate size of the crops to be read.")] = "96,96,96",
    processes: Annotated[int, typer.Option("--processes", "-np", min=1, help="Images processed at a time.")] = 2,
    fold: Annotated[int | None, typer.Option("--fold", "-f", help="Leave out this fold's validation cases.")] = None,
    dataset: OptionalDataset = None,
    plans: OptionalPlans = None,
    configuration: Configuration = "3d_fullres",
    normalization: Annotated[
        str | None,
        typer.Option(help="nnU-Net's name, such as rescale_to_0_1, for a folder of images; zscore by default."),
    ] = None,
    intensity_range: Annotated[
        str, typer.Option(help="Clip CT to LOW,HIGH, such as -175,250; by default to percentiles of the foreground.")
    ] = "",
    reorient: Annotated[bool, typer.Option("--reorient", help="Bring volumes to RAS.")] = False,
    include_test: Annotated[bool, typer.Option("--include-test", help="Take a dataset's test images too.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try skipped images again.")] = False,
    longest: Annotated[
        int | None, typer.Option(help="Shrink 2D images to this longest side, one channel, as radiographs of 256.")
    ] = None,
    executor: Annotated[
        str,
        typer.Option(help="local, dask, dask:ADDRESS, slurm or slurm:NAME=VALUE,... for several machines."),
    ] = "local",
    like: Annotated[
        Path | None, typer.Option(help="Prepare images as for the training of this classifier or detector.")
    ] = None,
    trust: Trust = False,
) -> None:
    """Resample, normalise and store images as nnU-Net does; labels are not needed.

    After an interruption, or when images were added, the same command goes on where it was.
    """
    from ..pretraining.data.executors import open_engine
    from ..pretraining.data.folds import validation_cases
    from ..pretraining.data.prepare import prepare_folder

    wanted = parse_spacing(spacing) if spacing else None
    planned = PlanReference(dataset, plans, configuration).load()
    chosen = None if planned is None else (planned.plans, planned.name)
    if like is not None:
        if planned is not None:
            raise ValueError("--like and --plans contradict each other: both specify the preparation; give one of them")
        from ..classification.checkpoint import preparation
        from ..detection.checkpoint import DetectorCheckpoint  # noqa: F401  # registers the kind

        chosen = preparation(like)
    if chosen is not None and wanted is not None:
        raise ValueError("--spacing contradicts --plans or --like, which specify the spacing; leave it out")
    left_out = () if fold is None else validation_cases(source, fold)
    with ExitStack() as held:
        engine = open_engine(executor, processes, output.absolute().with_name(f"{output.absolute().name}.jobs"), held)
        if engine is not None:  # whose workers have other working folders
            source, output = source.absolute(), output.absolute()
        summary = prepare_folder(
            source,
            output,
            spacing=wanted,
            patch_size=parse_patch_size(patch_size) if planned is None else planned.patch_size,
            processes=processes,
            left_out=left_out,
            planned=chosen,
            normalization=normalization,
            trust=trust,
            intensity_range=parse_range(intensity_range) if intensity_range else None,
            reorient=reorient,
            include_test=include_test,
            retry_failed=retry_failed,
            longest=longest,
            engine=engine,
        )
    for line in summary.lines():
        echo(line)


@commands.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def fit(
    context: typer.Context,
    config: Annotated[str, typer.Option(help="Recipe, by name or file; see `pretrain recipes`.")],
    dataset: OptionalDataset = None,
    plans: OptionalPlans = None,
    configuration: Configuration = "3d_fullres",
    trust: Trust = False,
) -> None:
    """Pretrain an encoder by a recipe; other options override it.

    With -d and -p the network, its arguments, patch size and channels are those of a plan.

    --folder PREPARED, --network, --epochs, --batch-size, --lr, --workers, --output FOLDER
    (nnUNet_results/pretraining/... by default) are short names; `pretrain recipes NAME` prints all settings of a
    recipe with their values, which are options as well, such as --model.init_args.warmup_epochs 5. --ckpt_path last
    resumes a run.
    """
    from ..pretraining.fit import PretrainingCLI
    from ..pretraining.fit import fit as fit_recipe

    trainer = fit_recipe(config, context.args, PlanReference(dataset, plans, configuration).load(), trust)
    if not trainer.is_global_zero:
        return
    for file in (Path(trainer.default_root_dir) / name for name in PretrainingCLI.written):
        if file.is_file():
            echo(f"written: {file}")
            if file.name.startswith("encoder"):
                plan = f"-d {dataset} -p {plans} -o {plans}_{Path(config).stem}" if plans else "-d ... -p ... -o ..."
                echo(f"next: nnunet-transformers attach {shlex.quote(str(file))} {plan}")


@commands.command()
def recipes(name: RecipeName = None) -> None:
    """Print the recipes with what they are for, or all settings of one."""
    echo(describe_recipes("nnunet_transformers.pretraining", name))


@commands.command("show-matches")
def show_matches(
    images: PreparedFolder,
    query: Annotated[str, typer.Argument(help="Name of an image in the folder.")],
    key: Annotated[str, typer.Argument(help="Name of another image.")],
    output: Annotated[Path, typer.Argument(help="Figure to write.")],
    matcher: Annotated[str, typer.Option(help="identity, affine, embedding, hybrid or precomputed.")] = "affine",
    weights: Annotated[Path | None, typer.Option(help="Checkpoint of the embedding, for embedding and hybrid.")] = None,
    landmarks: Annotated[Path | None, typer.Option(help="File of landmarks, for precomputed.")] = None,
    points: Annotated[int, typer.Option(min=1, help="Points to match, one per row of the figure.")] = 6,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of the matcher's features and maps; IMAGES.matching by default.")
    ] = None,
) -> None:
    """Draw the matches that a matcher finds in one image for random points of another."""
    from ..pretraining.data import CachedMatcher, PreparedImages
    from ..pretraining.figures.matches import draw_matches

    needed = {
        "embedding": ("weights", weights),
        "hybrid": ("weights", weights),
        "precomputed": ("landmarks", landmarks),
    }
    arguments = {}
    if matcher in needed:
        option, file = needed[matcher]
        if file is None:
            raise ValueError(f"the matcher {matcher} needs --{option}")
        arguments[option] = str(file)
    draw_matches(CachedMatcher(PreparedImages(images), matcher, arguments, cache), query, key, output, points)
    echo(f"written: {output}")


@commands.command("show-attention")
def show_attention(
    alignment: Annotated[Path, typer.Argument(help="alignment.pth, written by MGCA beside its encoder.")],
    image: Annotated[Path, typer.Argument(help="2D image.")],
    report: Annotated[str, typer.Argument(help="Radiology report of the image.")],
    output: Annotated[Path, typer.Argument(help="Figure to write.")],
    words: Annotated[int, typer.Option(min=1, help="Maps to draw, of the words with the largest weights.")] = 6,
    text_encoder: Annotated[
        str | None, typer.Option(help="Folder or hub name of the text encoder, if it has moved since training.")
    ] = None,
) -> None:
    """Draw the weights of patches and words and the attention maps of words; print the words of largest weight."""
    from ..pretraining.alignment import AlignmentCheckpoint
    from ..pretraining.figures.attention_maps import draw_attention
    from ..pretraining.methods.mgca import MGCA
    from ..pretraining.report_attention import attend

    checkpoint = AlignmentCheckpoint.load(alignment)
    attention = attend(checkpoint.build_method(MGCA, text_encoder), checkpoint.max_length, image, report)
    draw_attention(attention, output, words)
    order = (-attention.word_weights).argsort(kind="stable")[:words]
    echo(", ".join(f"{attention.words[i]} {attention.word_weights[i]:.3f}" for i in order))
    echo(f"written: {output}")
