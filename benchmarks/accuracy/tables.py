"""What is compared: datasets, rows and budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

# folds on which recipes are chosen, and the one that judges them
TUNED_FOLDS, JUDGED_FOLD = (1, 2), 0


@dataclass(frozen=True)
class Data:
    """A configuration of a dataset.

    Attributes:
        dataset: nnU-Net's name of it.
        configuration: ``2d`` or ``3d_fullres``.
        group: regular expression of what the cases of one patient have in common; by default a case is a patient.
        largest_batch: planned batches are cut to it, for all rows alike: those for 8 GB of a GPU would leave a
            processor few iterations, and exceed its memory.
    """

    dataset: str
    configuration: str
    group: str = r".*"
    largest_batch: int | None = None

    @property
    def number(self) -> int:
        return int(self.dataset[7:10])


@dataclass(frozen=True)
class Row:
    """A network as it is planned and trained.

    Attributes:
        title: name in the tables.
        planner, plans, trainer: nnU-Net's names of them.
        arguments: changes to the planned network's arguments.
        configuration: changes to the planned configuration, such as ``batch_size``.
        attributes: changes to the trainer's attributes, such as ``initial_lr``.
        patch_multiple: the planned patch is enlarged to multiples of it.
        dimensions: spatial dimensions that the network exists in.
        costs_as: row whose measured cost counts, for changes that cost nothing to speak of; by default its own.
    """

    title: str
    planner: str
    plans: str
    trainer: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    patch_multiple: int = 1
    dimensions: tuple[int, ...] = (2, 3)
    costs_as: str | None = None

    def suits(self, data: Data) -> bool:
        """Whether the network exists in the configuration's dimensions."""
        return int(data.configuration[0]) in self.dimensions


@dataclass(frozen=True)
class Budget:
    """The length of a training, either in units of processor time or in iterations."""

    units: float | None = None
    iterations: int | None = None


DATA = {
    "hippocampus": Data("Dataset004_Hippocampus", "3d_fullres", largest_batch=7),
    "em": Data("Dataset120_ISBI2012EM", "2d", largest_batch=2),
    "acdc_2d": Data("Dataset027_ACDC", "2d", group=r"patient\d+", largest_batch=8),
    "acdc_3d": Data("Dataset027_ACDC", "3d_fullres", group=r"patient\d+", largest_batch=2),
}

STOCK = Row("PlainConvUNet", "ExperimentPlanner", "nnUNetPlans", "nnUNetTrainer")
ROWS = {
    "stock": STOCK,
    "resenc_m": replace(STOCK, title="ResEnc-M", planner="nnUNetPlannerResEncM", plans="nnUNetResEncUNetMPlans"),
    # nnU-Net's documentation trains Primus with its CNN's plans; the trainer builds the network, of tokens of 8^3
    "primus_v3_s": replace(
        STOCK, title="PrimusV3-S", trainer="nnUNet_PrimusV3S_Trainer", patch_multiple=8, dimensions=(3,)
    ),
    "qt_unet": Row("QT-UNet T", "nnUNetPlannerQTUNetT", "nnUNetQTUNetTPlans", "nnUNetTrainerQTUNet"),
    "unet2022": Row("UNet-2022 T", "nnUNetPlannerUNet2022T", "nnUNetUNet2022TPlans", "nnUNetTrainerUNet2022"),
    "mit": Row("MiT-7", "nnUNetPlannerMiT7", "nnUNetMiT7Plans", "nnUNetTrainerMiT"),
}
OURS = ("qt_unet", "unet2022", "mit")
EMA = {"training": {"ema_decay": 0.99}}
ROWS |= {
    f"{name}_ema": replace(ROWS[name], title=f"{ROWS[name].title}, EMA", configuration=EMA, costs_as=name)
    for name in OURS
}

# the unit: stock's iterations on this dataset; all other rows and datasets get the same time
REFERENCE, UNIT_ITERATIONS = ("stock", "hippocampus"), 2000
BUDGETS = {
    "quarter": Budget(units=0.25),
    "whole": Budget(units=1.0),
    "2000_iterations": Budget(iterations=UNIT_ITERATIONS),
}
