"""``nnunet-transformers pretrain fit``: LightningCLI with this package's recipes."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from lightning import LightningModule, Trainer

from .._text import printable
from ..plans.planned import PlannedConfiguration
from ..plans.preparation import ct_ranges, differences
from ..runs import recipe as recipes
from ..runs.callbacks import CollapseMonitor
from ..runs.command_line import RecipeCLI, run_recipe
from .from_plan import model_arguments


def list_recipes() -> list[str]:
    """Return the names of the pretraining recipes."""
    return recipes.list_recipes(__package__)


def mask_grid(method: LightningModule) -> tuple[int, ...]:
    """Return the grid of cells that a method's encoder masks, cells per axis.

    Raises:
        ValueError: if the method has no masked encoder.
    """
    grid = getattr(getattr(method, "encoder", None), "grid", None)
    if grid is None:
        raise ValueError(f"the data module draws masks for an encoder with a grid; {type(method).__name__} has none")
    return tuple(grid)


class PretrainingCLI(RecipeCLI):
    """LightningCLI of the pretraining recipes, which checks that images, network and plan fit together.

    Attributes:
        planned: planned configuration that specifies the network, if any.
    """

    from_method = {"grid": mask_grid}  # noqa: RUF012
    written = ("encoder.pth", "encoder_2d.pth", "encoder_3d.pth", "matcher.pth", "alignment.pth")
    kind = "pretraining"
    planned: PlannedConfiguration | None = None

    def before_fit(self) -> None:
        super().before_fit()
        if getattr(self.datamodule, "held_out", None) is not None:
            self.trainer.limit_val_batches = self.trainer.limit_val_batches or 1.0

    def check(self) -> None:
        index, model = self.datamodule.index, self.model
        wanted, name = model.hparams.get("input_channels"), type(model).__name__
        if len(index.channels) != (wanted or 1) and not getattr(model, "averages_channels", False):
            remedy = "take the network from a plan (-d, -p) or set --model.init_args.input_channels"
            raise ValueError(
                f"the prepared images have {len(index.channels)} channels, the network takes {wanted or 1}; "
                + (remedy if wanted else f"{name} has no other: prepare images of one channel")
            )
        patch_size = model.hparams.get("patch_size_3d") or model.hparams.get("patch_size") or ()
        if len(patch_size) == 3 and index.is_flat:
            raise ValueError(
                f"the prepared images are 2D, the patch {[*patch_size]} has three axes: take the network from a 2D "
                "plan (-d, -p, -c 2d), or set --model.init_args.patch_size to height and width"
            )
        if self.trainer.gradient_clip_val and "clip_grad_norm" in model.hparams:
            raise ValueError(
                f"{name} clips each gradient by itself: set --model.init_args.clip_grad_norm instead of "
                "--trainer.gradient_clip_val"
            )
        if self.planned is not None:
            ranges = ct_ranges(index.plans, index.normalization)
            for difference in differences(self.planned, index.spacing, index.normalization, ranges):
                print(printable(f"note: {difference}; `pretrain prepare -d ... -p ...` prepares them as for training"))


def fit(
    recipe: str, arguments: Sequence[str], planned: PlannedConfiguration | None = None, trust: bool = False
) -> Trainer:
    """Run a pretraining recipe.

    A run saves its state and its encoder after every epoch. ``--ckpt_path last`` resumes it; the resumed run draws the
    same crops and random numbers as an uninterrupted one.

    Args:
        recipe: name or file.
        arguments: LightningCLI's arguments, such as ``--data.init_args.folder``, ``--trainer.max_epochs`` or
            ``--ckpt_path``; they override recipe and plan.
        planned: planned configuration that specifies the network, its arguments, patch size and channels.
        trust: take a recipe that names any code, see ``read_recipe``.

    Returns:
        the trainer, with metrics, callbacks and profiler.

    Raises:
        ValueError: if the recipe is unknown, or its settings are invalid or contradict the images or the plan.
        FileNotFoundError: if the data were not prepared.
        FileExistsError: if the folder holds another run.
        RuntimeError: if training diverges or collapses.

    Examples:
        >>> fit("qt_ssl_in_task", ["--data.init_args.folder=prepared", "--trainer.max_epochs=50"])
    """
    content = recipes.read_recipe(recipe, __package__, trust)
    from_plan = {} if planned is None else model_arguments(planned, content.parameters("model"))
    network = [f"--model.init_args.{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in from_plan.items()]
    defaults = {"callbacks": [CollapseMonitor()], "limit_val_batches": 0, "strategy": _strategy(content)}
    return run_recipe(content, PretrainingCLI, [*network, *arguments], defaults, planned=planned)


def _strategy(recipe: recipes.Recipe) -> str:
    """Return the method's ``strategy`` if there are several devices."""
    several = torch.cuda.device_count() > 1
    return getattr(recipe.part("model"), "strategy", "auto") if several else "auto"
