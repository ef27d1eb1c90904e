"""Command ``ablate``: a trained network without its attention, its convolution, its blocks or its skips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._options import Force, TorchDevice, Trust, chosen_device
from ._output import echo, echo_table

commands = typer.Typer()


@commands.command()
def ablate(
    folder: Annotated[Path, typer.Argument(help="Folder of a trained and validated fold (.../fold_0).")],
    part: Annotated[
        list[str] | None,
        typer.Option(help="attention, convolution, blocks or skips; may be given again. By default all that there is."),
    ] = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Validate nothing; write a plan for each --part to train without it.")
    ] = False,
    checkpoint: Annotated[str, typer.Option(help="File name of the checkpoint.")] = "checkpoint_final.pth",
    device: TorchDevice = "auto",
    force: Force = False,
    trust: Trust = False,
) -> None:
    """Validate a trained fold with a part of its network replaced by the identity: Dice before and after."""
    if retrain:
        from ..evaluation.ablation import write_plan_without

        if not part:
            raise ValueError("--retrain needs a --part, such as --part attention")
        for name in part:
            echo(f"  {write_plan_without(folder, name, force)}")
        return
    import torch

    from ..evaluation import shown
    from ..evaluation.ablation import ablate as run

    device = chosen_device(device)
    for ablation in run(folder, part or (), torch.device(device), checkpoint, trust):
        rows = [
            [label, shown(before), shown(after), shown(after - before)]
            for label, before, after in zip(ablation.labels, ablation.whole, ablation.without, strict=True)
        ]
        echo_table(f"Dice without {ablation.part}", ["label", "whole", f"without {ablation.part}", "difference"], rows)
        echo(f"written: {ablation.folder}")
