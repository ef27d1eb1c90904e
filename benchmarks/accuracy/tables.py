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
            processor few iterations, and exceed its memory. None: as planned.
        labelled: number of the fold's training patients that are trained on, drawn by the seed; by default all.
        costs_as: entry whose measured costs count; by default its own.
    """

    dataset: str
    configuration: str
    group: str = r".*"
    largest_batch: int | None = None
    labelled: int | None = None
    costs_as: str | None = None

    @property
    def number(self) -> int:
        return int(self.dataset[7:10])

    @property
    def has_groups(self) -> bool:
        """Whether a patient may have several cases."""
        return self.group != Data.group


@dataclass(frozen=True)
class Row:
    """A network as it is planned and trained.

    Attributes:
        title: name in the tables.
        planner, plans, trainer: nnU-Net's names of them.
        arguments: changes to the planned network's arguments.
        configuration: changes to the planned configuration, such as ``batch_size``.
        token_rules: changes to the planner's rules; ``plans`` is then a name of its own.
        attributes: changes to the trainer's attributes, such as ``initial_lr``.
        batch_divisor: the batch is divided by it, down to a sample.
        patch_multiple: the planned patch is enlarged to multiples of it.
        dimensions: spatial dimensions that the network exists in.
        costs_as: row whose measured cost counts, for changes that cost nothing to speak of; by default its own.
        varies: row that it is a change of; its cost is measured beside.
        pretraining: entry of ``PRETRAININGS`` that makes its plan.
    """

    title: str
    planner: str
    plans: str
    trainer: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    token_rules: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    batch_divisor: int = 1
    patch_multiple: int = 1
    dimensions: tuple[int, ...] = (2, 3)
    costs_as: str | None = None
    varies: str | None = None
    pretraining: str | None = None

    @property
    def base(self) -> str | None:
        """The row that it is a change of, or starts from."""
        return self.varies or self.costs_as

    def suits(self, data: Data) -> bool:
        """Whether the network exists in the configuration's dimensions, and its encoder was pretrained on the data."""
        if self.pretraining:
            pretrained = DATA[PRETRAININGS[self.pretraining].dataset]
            return (pretrained.dataset, pretrained.configuration) == (data.dataset, data.configuration)
        return int(data.configuration[0]) in self.dimensions


@dataclass(frozen=True)
class Change:
    """A change to some rows, each of which makes another row.

    Attributes:
        title: follows the row's.
        of: names of the rows.
        fields: the row's fields that are others; a mapping is added to that of the row.
        is_free: it costs nothing to speak of; otherwise its cost is measured.
    """

    title: str
    of: tuple[str, ...]
    fields: Mapping[str, Any]
    is_free: bool = True

    def apply(self, name: str, suffix: str, row: Row) -> Row:
        """Make the row of the change.

        Args:
            name: of the row.
            suffix: of the change, which other plans have in their name too.
            row: to change.
        """
        fields: dict[str, Any] = {
            key: {**getattr(row, key), **value} if isinstance(value, Mapping) else value
            for key, value in self.fields.items()
        }
        fields |= {"costs_as": name, "varies": None} if self.is_free else {"costs_as": None, "varies": name}
        if "token_rules" in fields:
            fields["plans"] = f"{row.plans}_{suffix}"
        return replace(row, title=f"{row.title}, {self.title}", **fields)


@dataclass(frozen=True)
class Pretraining:
    """An encoder that learns from the images of the judged fold's training cases, without labels.

    Attributes:
        title: name in the tables.
        recipe: of the package.
        row: the row whose network it is, and whose training starts from it.
        settings: what so few images and some minutes of a GPU need instead of the recipe's values.
        dataset: the images, and the configuration whose plan has the network.
        folder_argument: name of the recipe's argument for the images.
        encoder: file that the method writes.
        units: about what it is made to cost a processor; MAE's were measured.
    """

    title: str
    recipe: str
    row: str
    settings: Mapping[str, Any]
    dataset: str = "hippocampus"
    folder_argument: str = "folder"
    encoder: str = "encoder.pth"
    units: float = 0.2


@dataclass(frozen=True)
class Budget:
    """The length of a training, either in units of processor time or in iterations."""

    units: float | None = None
    iterations: int | None = None


HIPPOCAMPUS = Data("Dataset004_Hippocampus", "3d_fullres", largest_batch=7)
DATA = {
    "hippocampus": HIPPOCAMPUS,
    "em": Data("Dataset120_ISBI2012EM", "2d", largest_batch=2),
    "acdc_2d": Data("Dataset027_ACDC", "2d", group=r"patient\d+", largest_batch=8),
    "acdc_3d": Data("Dataset027_ACDC", "3d_fullres", group=r"patient\d+", largest_batch=2),
    "hippocampus_ten": replace(HIPPOCAMPUS, labelled=10, costs_as="hippocampus"),
    # of two phases each: ten cases
    "acdc_3d_ten": Data(
        "Dataset027_ACDC", "3d_fullres", group=r"patient\d+", largest_batch=2, labelled=5, costs_as="acdc_3d"
    ),
}
# for a GPU
DATA |= {f"{name}_planned": replace(data, largest_batch=None) for name, data in DATA.items() if data.labelled is None}

# the argument of a convolutional branch at full resolution, which is published for neither network and planned for
# QT-UNet
FULL_RESOLUTION = "full_resolution_channels"
# networks are compared with the same augmentation; planned for ours is "ordered", below
MIRRORED: dict[str, Any] = {"mirror_axes": None}
STOCK = Row("PlainConvUNet", "ExperimentPlanner", "nnUNetPlans", "nnUNetTrainer")
ROWS = {
    "stock": STOCK,
    "resenc_m": replace(STOCK, title="ResEnc-M", planner="nnUNetPlannerResEncM", plans="nnUNetResEncUNetMPlans"),
    "resenc_l": replace(STOCK, title="ResEnc-L", planner="nnUNetPlannerResEncL", plans="nnUNetResEncUNetLPlans"),
    # nnU-Net's documentation trains Primus with its CNN's plans; the trainer builds the network, of tokens of 8^3
    "primus_v3_s": replace(
        STOCK, title="PrimusV3-S", trainer="nnUNet_PrimusV3S_Trainer", patch_multiple=8, dimensions=(3,)
    ),
    "qt_unet": Row(
        "QT-UNet T (published head and drop path)",
        "nnUNetPlannerQTUNetT",
        "nnUNetQTUNetTPlans",
        "nnUNetTrainerQTUNet",
        arguments={FULL_RESOLUTION: 0, "drop_path_rate": 0.1},
        attributes=MIRRORED,
    ),
    "unet2022": Row(
        "UNet-2022 T",
        "nnUNetPlannerUNet2022T",
        "nnUNetUNet2022TPlans",
        "nnUNetTrainerUNet2022",
        arguments={FULL_RESOLUTION: 0},
        attributes=MIRRORED,
    ),
    "mit": Row("MiT-7", "nnUNetPlannerMiT7", "nnUNetMiT7Plans", "nnUNetTrainerMiT", attributes=MIRRORED),
}
OURS = ("qt_unet", "unet2022", "mit")
BRANCHED = {
    f"{name}_branch": replace(ROWS[name], title=title, arguments={FULL_RESOLUTION: 16}, varies=name)
    for name, title in (("qt_unet", "QT-UNet T"), ("unet2022", "UNet-2022 T (with branch)"))
}
ROWS |= BRANCHED
# what is tried on the folds for tuning
CHANGES = {
    # as published, and as planned until these were tried; MiT-7's is 0
    "drop_path_01": Change("drop path 0.1", ("qt_unet_branch",), {"arguments": {"drop_path_rate": 0.1}}),
    "drop_path_02": Change("drop path 0.2", ("unet2022", "unet2022_branch"), {"arguments": {"drop_path_rate": 0.2}}),
    # in 2D as planned until 8 were tried, where each stage's tokens are multiples of them
    "windows_16": Change(
        "windows of 16",
        ("qt_unet_branch_drop_path_01",),
        {"arguments": {"window_sizes": 16}, "dimensions": (2,)},
        is_free=False,
    ),
    "windows_8": Change(
        "windows of 8",
        ("qt_unet_branch_drop_path_01",),
        {"arguments": {"window_sizes": 8}, "dimensions": (2,)},
        is_free=False,
    ),
    "double_rate": Change("rate 2e-3", (*OURS, *BRANCHED), {"attributes": {"initial_lr": 2e-3}}),
    "half_rate": Change("rate 5e-4", (*OURS, *BRANCHED), {"attributes": {"initial_lr": 5e-4}}),
    "no_warm_up": Change("no warm-up", (*OURS, *BRANCHED), {"attributes": {"warmup_fraction": 0.0}}),
    "light_decay": Change("weight decay 3e-5", (*OURS, *BRANCHED), {"attributes": {"weight_decay": 3e-5}}),
    "ema": Change("EMA", (*OURS, *BRANCHED), {"configuration": {"training": {"ema_decay": 0.99}}}),
    # which is nnU-Net's default in 2D
    "batch_dice": Change(
        "Dice loss of the batch",
        ("stock", *OURS, *BRANCHED),
        {"configuration": {"batch_dice": True}, "dimensions": (3,)},
    ),
    "no_mirroring": Change(
        "no mirrored predictions", (*OURS, *BRANCHED), {"configuration": {"training": {"mirroring": False}}}
    ),
    "unmirrored": Change("never mirrored", ("stock", *OURS, *BRANCHED), {"attributes": {"mirror_axes": ()}}),
    "ordered": Change(
        "not mirrored along axes in which labels have an order",
        ("stock", *OURS, *BRANCHED),
        {"attributes": {"mirror_axes": "unordered"}},
    ),
    "mirroring_alone": Change(
        "mirroring alone", (*OURS, *BRANCHED), {"configuration": {"training": {"augmentation": "mirroring"}}}
    ),
    "no_augmentation": Change("no augmentation", ("stock", *OURS, *BRANCHED), {"attributes": {"augmentation": "none"}}),
    "half_batch": Change("half the batch", ("stock", *OURS), {"batch_divisor": 2}, is_free=False),
    # where they are no more than 128^2; the planner's limit is 64^2 since these were tried
    "fine": Change(
        "tokens of 2 pixels",
        ("mit", "qt_unet_branch_drop_path_01_windows_16"),
        {"token_rules": {"finest_tokens_2d": 128**2}, "dimensions": (2,)},
        is_free=False,
    ),
}
for suffix, change in CHANGES.items():
    ROWS |= {f"{name}_{suffix}": change.apply(name, suffix, ROWS[name]) for name in change.of}

# 60 epochs of 20 steps
UNIMISS = {
    # the images are hardly larger, and the planned patch is larger than they are
    "model.init_args.patch_size_2d": [32, 32],
    "model.init_args.patch_size_3d": [16, 32, 32],
    "model.init_args.output_dim": 1024,
    "model.init_args.warmup_epochs": 5,
    "data.init_args.batch_size": 64,
    "data.init_args.samples_per_epoch": 1280,
    "trainer.accumulate_grad_batches": 1,
    "trainer.max_epochs": 60,
}
# 75 epochs of 20 steps: about 0.2 units of a processor with MiT-7. Half of a planned patch is padding around these
# images, and only nine of their cells of 16 voxels would stay visible
MAE = {
    "model.init_args.patch_size": [32, 48, 32],
    "model.init_args.mask_size": 8,
    "model.init_args.lr": 1e-3,
    "model.init_args.warmup_epochs": 5,
    "data.init_args.batch_size": 8,
    "data.init_args.samples_per_epoch": 160,
    "trainer.max_epochs": 75,
}
# the planned patch
MAE_ACDC = {
    "model.init_args.lr": 1e-3,
    "model.init_args.warmup_epochs": 5,
    "data.init_args.batch_size": 2,
    "data.init_args.samples_per_epoch": 40,
    "trainer.max_epochs": 50,
}
MAE_ACDC_LONG = {**MAE_ACDC, "trainer.max_epochs": 150}
VOLUME_FUSION = {key: value for key, value in MAE.items() if key != "model.init_args.mask_size"}
QT_SSL = {
    "model.init_args.lr": 1e-3,
    "model.init_args.warmup_epochs": 5,
    "data.init_args.batch_size": 32,
    "data.init_args.samples_per_epoch": 640,
    "trainer.accumulate_grad_batches": 1,
    "trainer.max_epochs": 40,
}
BATCH_NORM = "model.init_args.batch_norm"
PRETRAININGS = {
    "mit_unimiss": Pretraining(
        "UniMiSS", "unimiss_small", "mit", UNIMISS, "hippocampus", "folder_3d", "encoder_3d.pth"
    ),
    "mit_unimiss_release": Pretraining(
        "UniMiSS without batch norm",
        "unimiss_small",
        "mit",
        {**UNIMISS, BATCH_NORM: False},
        "hippocampus",
        "folder_3d",
        "encoder_3d.pth",
    ),
    "mit_mae": Pretraining("MAE", "mae", "mit", MAE),
    "mit_mae_acdc": Pretraining("MAE", "mae", "mit", MAE_ACDC, "acdc_3d"),
    "mit_mae_acdc_long": Pretraining(
        "MAE of three times the length", "mae", "mit", MAE_ACDC_LONG, "acdc_3d", units=0.6
    ),
    "mit_volume_fusion": Pretraining("VolumeFusion", "volume_fusion", "mit", VOLUME_FUSION),
    "qt_unet_mae": Pretraining("MAE", "mae", "qt_unet_branch", MAE),
    "qt_unet_ssl": Pretraining("QT-UNet's SSL", "qt_ssl_in_task", "qt_unet_branch", QT_SSL),
}
ROWS |= {
    name: replace(
        ROWS[given.row],
        title=f"{ROWS[given.row].title} after {given.title}",
        plans=f"{ROWS[given.row].plans}_{name}",
        costs_as=given.row,
        pretraining=name,
    )
    for name, given in PRETRAININGS.items()
}
# as UniMiSS, UNet-2022 and nnssl train an encoder that is loaded
ONE_RATE = {"layer_decay": 1.0, "frozen_fraction": 0.0}
ROWS |= {
    f"{name}_one_rate": replace(ROWS[name], title=f"{ROWS[name].title}, one rate", attributes=MIRRORED | ONE_RATE)
    for name in ("mit_mae", "mit_mae_acdc")
}

# the unit: stock's iterations on this dataset; all other rows and datasets get the same time
REFERENCE, UNIT_ITERATIONS = ("stock", "hippocampus"), 2000
BUDGETS = {
    "tenth": Budget(units=0.1),
    "quarter": Budget(units=0.25),
    "three_tenths": Budget(units=0.3),
    "half": Budget(units=0.5),
    "whole": Budget(units=1.0),
    "2000_iterations": Budget(iterations=UNIT_ITERATIONS),
    # of nnU-Net's 250 iterations
    "100_epochs": Budget(iterations=25_000),
}
