"""Check of a pretraining recipe with its method and data, as an installed package declares them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import SimpleITK as sitk

from ..pretraining.data.prepare import prepare
from ..pretraining.encoder_pretraining import EncoderPretraining
from ..pretraining.fit import fit
from ..weights import SealedCheckpoint, load
from ._require import require
from .method import check_method

# a network and a patch for which a step takes a second
SMALL = (
    "--model.init_args.network=qt_unet_tiny",
    "--model.init_args.patch_size=[16,16,16]",
    '--model.init_args.network_overrides={"patch_embed_stride": 2, "num_stages": 2, "window_sizes": 4}',
)
ONE_STEP = (
    "--data.init_args.batch_size=2",
    "--data.init_args.samples_per_epoch=2",
    "--data.init_args.num_workers=0",
    "--trainer.max_epochs=1",
    "--trainer.accumulate_grad_batches=1",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--trainer.enable_progress_bar=false",
    "--trainer.logger=false",
)


def check_pretraining_method(recipe: str, options: Sequence[str] = SMALL, edge: int = 24) -> None:
    """Train a recipe for one step as ``pretrain fit`` does, on random volumes, and check the contract of its method.

    - The recipe runs on CPU, its loss is finite, and each file that it writes loads.
    - Its method keeps the contract that ``check_method`` states, for batches of the recipe's own data.

    Args:
        recipe: name of a recipe, such as one that an installed package declares, or a file.
        options: options of ``pretrain fit`` that make the network and the patch small.
        edge: voxels per axis of the four volumes.

    Raises:
        AssertionError: if the method breaks the contract; states where.
        ValueError, RuntimeError: as ``pretrain fit``.

    Examples:
        >>> check_pretraining_method("qt_ssl_in_task")
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "raw").mkdir()
        rng = np.random.default_rng(0)
        for number in range(4):
            volume = sitk.GetImageFromArray(rng.normal(size=(edge,) * 3).astype(np.float32))
            sitk.WriteImage(volume, str(folder / "raw" / f"volume_{number}.nii.gz"))
        prepare(folder / "raw", folder / "prepared", patch_size=(edge,) * 3)
        folders = [f"--data.init_args.folder={folder / 'prepared'}", f"--trainer.default_root_dir={folder / 'run'}"]
        # the author's own recipe
        trainer = fit(recipe, [*ONE_STEP, *options, *folders], trust=True)
        loss = trainer.callback_metrics["loss"]
        require(bool(loss.isfinite()), f"the loss of {recipe} is {loss}")
        method, data = cast(EncoderPretraining, trainer.lightning_module), cast(Any, trainer).datamodule
        files = method.checkpoints(data.index, {"epochs": 1})
        for written in files:
            require(
                isinstance(load(folder / "run" / written), SealedCheckpoint), f"{written} is no checkpoint with a hash"
            )
        batches = list(data.train_dataloader())
        # Lightning's command line adds entries of its own
        arguments = {key: value for key, value in method.hparams.items() if not key.startswith("_")}
        check_method(type(method), batches, arguments, data.batch_size, data.index)
