"""Words of the command line for a short run of a recipe on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SMALL_QT_UNET = {
    "model.init_args.patch_size": "[16,16,16]",
    "model.init_args.network_overrides": '{"patch_embed_stride": 2, "num_stages": 2, "window_sizes": 4}',
}


def short_run(prepared: Path, folder: Path, settings: Mapping[str, Any]) -> list[str]:
    """An epoch of batches of two without accumulation, unless the settings say otherwise."""
    return [
        f"--{name}={value}"
        for name, value in {
            "data.init_args.folder": prepared,
            "data.init_args.batch_size": 2,
            "data.init_args.num_workers": 0,
            "trainer.accumulate_grad_batches": 1,
            "trainer.max_epochs": 1,
            "trainer.accelerator": "cpu",
            "trainer.default_root_dir": folder,
            "trainer.enable_progress_bar": "false",
            "trainer.logger": "false",
            **settings,
        }.items()
    ]
