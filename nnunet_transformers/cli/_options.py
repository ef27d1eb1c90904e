"""Options that several commands share, and their parsing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._output import echo

if TYPE_CHECKING:
    from ..plans.planned import PlannedConfiguration

Dataset = Annotated[str, typer.Option("--dataset", "-d", help="nnU-Net's number or name of the dataset.")]
NewPlans = Annotated[str, typer.Option("--output", "-o", help="Name of the new plan.")]
Configurations = Annotated[
    list[str] | None, typer.Option("--configuration", "-c", help="Configurations; by default those that fit.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a plan of that name that the same command wrote.")]
OptionalDataset = Annotated[
    str | None, typer.Option("--dataset", "-d", help="Dataset of the plan to follow: nnU-Net's number or name.")
]
OptionalPlans = Annotated[str | None, typer.Option("--plans", "-p", help="Plan to follow.")]
Configuration = Annotated[str, typer.Option("--configuration", "-c", help="Configuration of the plan.")]
EncoderFile = Annotated[Path, typer.Argument(help="Encoder checkpoint written by pretraining.")]
WeightSource = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Weights: a file or folder of any kind (docs/weights.md), such as an encoder, a fold or a release; "
        "hf://owner/name, with /file and @revision if wanted; or timm:NAME.TAG.",
    ),
]
PreparedFolder = Annotated[Path, typer.Argument(help="Folder written by `pretrain prepare`.")]
TorchDevice = Annotated[
    str, typer.Option("--device", "-device", help="cuda, cuda:1 ..., cpu or mps; auto is the GPU if there is one.")
]
DatasetJson = Annotated[
    Path | None, typer.Option(help="File that names the labels; by default the one beside the predictions.")
]
Processes = Annotated[
    int | None, typer.Option(min=0, help="Cases at a time; by default one per CPU core, at most 8. 0: no worker.")
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Take files that hold or name other code, which may run that code."),
]

# our extra that installs a module, by the module's name
EXTRAS = {
    "jsonargparse": "pretraining",
    "lightly": "pretraining",
    "lightning": "pretraining",
    "pytorch_lightning": "pretraining",
}


def missing_extra(error: BaseException) -> str | None:
    """Return one line on how to install the extra that an import error is due to; None for other errors."""
    name = (getattr(error, "name", None) or "").split(".")[0]
    if not isinstance(error, ModuleNotFoundError) or name not in EXTRAS:
        return None
    return f"this command needs {name}: pip install 'nnunet-transformers[{EXTRAS[name]}]'"


@dataclass(frozen=True)
class PlanReference:
    """Reference to a planned configuration by the options -d, -p and -c.

    Attributes:
        dataset: nnU-Net's number or name of the dataset.
        plans: name of the plan.
        configuration: name of its configuration.
    """

    dataset: str | None
    plans: str | None
    configuration: str

    def load(self) -> PlannedConfiguration | None:
        """Load the planned configuration; None if neither dataset nor plan is given.

        Raises:
            ValueError: if only one of them is given, or there is no such dataset or configuration.
            FileNotFoundError: if there is no such plan.
        """
        if self.dataset is None and self.plans is None:
            return None
        if self.dataset is None or self.plans is None:
            raise ValueError("--dataset and --plans must be given together: they name the plan to follow")
        from ..plans.planned import PlannedConfiguration

        return PlannedConfiguration.load(self.dataset, self.plans, self.configuration)


def chosen_device(name: str) -> str:
    """Return the device for a command, before anything is read or written; a line says where auto found no GPU.

    Raises:
        ValueError: for a device that this machine does not have.
    """
    from .._device import find_device, no_gpu

    device = find_device(name)
    if line := no_gpu(name, device):
        echo(line)
    return str(device)


def parse_patch_size(text: str) -> tuple[int, ...]:
    """Parse a patch size such as "96,96,96" or "96x96x96".

    Raises:
        ValueError: if it is not a list of two or three positive integers.
    """
    try:
        size = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError as error:
        raise ValueError(f"--patch-size {text!r} is not a list of integers such as 96,96,96") from error
    if len(size) not in (2, 3) or min(size) < 1:
        raise ValueError(f"--patch-size {text!r} is not two or three positive integers such as 96,96,96")
    return size


def parse_spacing(text: str) -> list[float]:
    """Parse a spacing such as "1,1,1".

    Raises:
        ValueError: if it is not a list of positive numbers.
    """
    try:
        spacing = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--spacing {text!r} is not a list of numbers such as 1,1,1") from error
    if not all(0 < size < float("inf") for size in spacing):
        raise ValueError(f"--spacing {text!r} is not a list of positive numbers such as 1,1,1")
    return spacing


def parse_range(text: str) -> tuple[float, float]:
    """Parse a range of intensities such as "-175,250".

    Raises:
        ValueError: if it is not two numbers.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--intensity-range {text!r} is not two numbers such as -175,250") from error
    return low, high
