"""nnU-Net's trainer for transformers: AdamW, warm-up, tighter gradient clipping, and errors that state the remedy."""

from __future__ import annotations

import pydoc
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Adam, AdamW, Optimizer

from .._atomic import replacing
from .._lease import lease
from .._processes import forks_exit_with_parent
from .._reading import first_line
from ..architectures import SegmentationNetwork, class_path
from ..cpu import optimize
from ..discovery import plans_name
from ..plans.plan_files import dataset_number
from ..plans.planned import check_labels
from ..plans.stored_data import StoredData
from ..plans.training import TrainingSettings
from ..weights.file import check_file
from .augmentation import Augments
from .averaging import AveragesWeights
from .device_augmentation import AugmentsOnDevice
from .focal import focal_in_place_of
from .initial_weights import StartsFromPlan
from .loaded_encoder import LoadedEncoder
from .precision import default_autocast_dtype, in_float32, planned_autocast_dtype
from .progress import ShowsProgress
from .settings import FollowsSettings
from .surface_metrics import EvaluatesSurfaces
from .validation import bounded_export

# non-finite losses in a row that end a training whose ``GradScaler`` skips such steps; halved each time, its scale of
# 65,536 is 1 after 16 of them
MAX_OVERFLOWS = 40


class TransformerTrainer(
    FollowsSettings,
    EvaluatesSurfaces,
    AveragesWeights,
    Augments,
    AugmentsOnDevice,
    ShowsProgress,
    StartsFromPlan,
):
    """nnU-Net's training with a recipe for transformers.

    AdamW without weight decay of norms, biases and position tables; linear warm-up and nnU-Net's polynomial decay,
    updated in every iteration; gradients clipped to norm 1. A plan's configuration with
    ``"autocast_dtype": "bfloat16"``, or "float32", is trained in that type, and its entry ``training``
    (``TrainingSettings``) precedes the attributes below.

    Attributes:
        network_class: class of the network that a plan must specify, or a common base class.
        default_epochs, default_iterations: length of the schedule and of an epoch.
        default_lr, default_weight_decay, default_deep_supervision: initial values of nnU-Net's attributes.
        dice_weight, ce_weight: weights of the two terms of nnU-Net's loss.
        focal_weight: weight of a focal loss in the place of cross-entropy; None keeps cross-entropy.
        use_all_outputs: include the coarsest output of deep supervision in the loss; nnU-Net, with more outputs,
            excludes it.
        warmup_fraction: fraction of the schedule with a rising learning rate.
        lr_power: exponent of the polynomial decay; 0 for a fixed rate.
        clip_grad_norm: norm to which gradients are clipped.
        layer_decay: factor of the learning rate from one stage of a pretrained encoder to the one before it, where the
            plan specifies initial weights; decoder and whatever the weights leave out have the full rate.
        frozen_fraction: fraction of the schedule in which what was loaded of stem and encoder is frozen, including
            batch norm statistics, while the rest adapts to it; 1 freezes it throughout and requires a plan with
            initial weights.
        planners: planners to suggest where a plan does not fit.

    Raises:
        RuntimeError: if the plan specifies another network, no initial weights where ``frozen_fraction`` is 1, an
            unsupported ``autocast_dtype`` or impossible settings.
        ValueError: if the labels in dataset.json are not consecutive.
    """

    network_class: type[SegmentationNetwork]
    planners: tuple[str, ...] = ()
    default_epochs = 1000
    default_iterations = 250
    default_lr = 1e-3
    default_weight_decay = 0.05
    default_deep_supervision = True
    dice_weight = 1.0
    ce_weight = 1.0
    focal_weight: float | None = None
    use_all_outputs = False
    warmup_fraction = 0.05
    clip_grad_norm = 1.0
    layer_decay = 0.75
    frozen_fraction = 0.05

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  (nnU-Net's signature)
    ) -> None:
        planned = PlansManager(plans).get_configuration(configuration).configuration
        settings = self.followed(self._settings(planned, f"{plans['plans_name']}, {configuration}"))
        self._check_plan(PlansManager(plans), configuration, settings)
        self.autocast_dtype = planned_autocast_dtype(planned, device)
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.autocast_dtype is not torch.float16:
            self.grad_scaler = None  # bfloat16 has float32's range
        self.num_epochs = self.default_epochs
        self.num_iterations_per_epoch = self.default_iterations
        self.num_val_iterations_per_epoch = max(1, self.default_iterations // 5)
        self.initial_lr = self.default_lr
        self.weight_decay = self.default_weight_decay
        # deep supervision needs the auxiliary heads of the plan's network
        has_heads = self.configuration_manager.network_arch_init_kwargs.get("auxiliary_heads", True)
        self.enable_deep_supervision = self.default_deep_supervision and has_heads
        self.follow(settings)
        self._iteration = self._overflows = 0
        check_labels(self.label_manager)

    @staticmethod
    def _settings(configuration: dict[str, Any], where: str) -> TrainingSettings:
        try:
            return TrainingSettings.from_configuration(configuration)
        except ValueError as error:
            raise RuntimeError(f"{where}, training: {error}. Correct the plan's file") from error

    def _check_plan(self, plans: PlansManager, configuration: str, settings: TrainingSettings) -> None:
        planned_configuration = plans.get_configuration(configuration)
        planned = planned_configuration.network_arch_class_name
        planned_class = pydoc.locate(planned)
        if not (isinstance(planned_class, type) and issubclass(planned_class, self.network_class)):
            raise RuntimeError(
                f"{type(self).__name__} trains {class_path(self.network_class)}, but {plans.plans_name} plans "
                f"{planned}.{self._how_to_plan(plans.dataset_name)}"
            )
        frozen_fraction = self.frozen_fraction if settings.frozen_fraction is None else settings.frozen_fraction
        if frozen_fraction >= 1 and "initialisation" not in planned_configuration.configuration:
            raise RuntimeError(
                f"{type(self).__name__} keeps a pretrained encoder as it is, but {plans.plans_name} specifies no "
                f"initial weights for {configuration}. Write a plan that does with `nnunet-transformers attach "
                f"encoder.pth -d {plans.dataset_name} -p {plans.plans_name} -o {plans.plans_name}_pretrained` and "
                "train with it."
            )

    def _how_to_plan(self, dataset: str) -> str:
        """Advise on the planners of the trainer's networks; empty if it names none."""
        if not self.planners:
            return ""
        planner, *others = self.planners
        alternatives = f" (or {', '.join(others)})" if others else ""
        return (
            f" Plan with `nnUNetv2_plan_and_preprocess -d {dataset_number(dataset)} -pl {planner}`{alternatives} and "
            f"train with `-p {plans_name(planner)}`."
        )

    def _check_device(self) -> None:
        """Raise RuntimeError if the device is a GPU that PyTorch does not find."""
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise RuntimeError(
                "PyTorch finds no CUDA device. Train on the processor with `-device cpu`, or check the driver with "
                "`nvidia-smi` and that this PyTorch is built for CUDA."
            )

    def initialize(self) -> None:
        """Build the network for the configuration's patch, with auxiliary heads only under deep supervision.

        Raises:
            FileNotFoundError: if the dataset was not preprocessed for this plan.
            RuntimeError: if the device is a GPU that PyTorch does not find.
            ValueError: if ``patch_size`` was changed to one that the network cannot take.
        """
        self._check_device()
        self._stored_data().check_presence()
        self._adapt_architecture()
        super().initialize()
        if self.device.type == "cpu":
            # nnU-Net has no hook between network and optimiser; the optimiser's parameters stay the same objects
            optimize(self.plain_network)
        if self.autocast_dtype is torch.float32:
            in_float32(self.plain_network, self.device)

    def run_training(self) -> None:
        """Train as nnU-Net does, as the only run that writes to this fold.

        Raises:
            FolderInUse: if another run trains this fold.
            RuntimeError: if the device is a GPU that PyTorch does not find.
        """
        self._check_device()  # before the fold is taken
        forks_exit_with_parent()
        fold = Path(self.output_folder)
        with lease(fold, fold / "training.lease") if self.local_rank == 0 else nullcontext():
            super().run_training()

    def _adapt_architecture(self) -> None:
        planned = self._planned()
        before = self.configuration_manager.configuration["architecture"]
        architecture = planned.configuration.configuration["architecture"]
        if architecture != before:
            windows = architecture["arch_kwargs"].get("window_sizes")
            self.print_to_log_file(
                f"patch_size was changed to {list(planned.patch_size)}: the network is built for it"
                + (f", with windows {windows}" if windows else "")
            )
        if not self.enable_deep_supervision and architecture["arch_kwargs"].get("auxiliary_heads"):
            # DDP requires a gradient for every parameter, and these heads get none without deep supervision
            architecture = {**architecture, "arch_kwargs": {**architecture["arch_kwargs"], "auxiliary_heads": False}}
        if architecture != before:
            # nnU-Net builds the network from one and stores the other beside the model, for prediction
            self.configuration_manager.configuration["architecture"] = architecture
            self.plans_manager.plans["configurations"][self.configuration_name]["architecture"] = architecture

    def _stored_data(self) -> StoredData:
        return StoredData(self._planned(), Path(self.preprocessed_dataset_folder_base))

    # ---- recipe ----

    def _build_loss(self) -> nn.Module:
        with np.errstate(invalid="ignore"):  # nnU-Net divides 0 by 0 for a single output
            loss = super()._build_loss()
        parts = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
        parts.weight_dice, parts.weight_ce = self.dice_weight, self.ce_weight
        if self.focal_weight is not None:
            parts.ce, parts.weight_ce = focal_in_place_of(parts.ce), self.focal_weight
        if isinstance(loss, DeepSupervisionWrapper) and (self.use_all_outputs or len(loss.weight_factors) == 1):
            weights = 0.5 ** np.arange(len(loss.weight_factors))
            loss.weight_factors = tuple(weights / weights.sum())
        return loss

    def configure_optimizers(self) -> tuple[Optimizer, Scheduler]:
        if self.frozen_fraction >= 1:
            self._loaded_encoder().freeze()
        optimizer_class = {"adamw": AdamW, "adam": Adam}[self.optimiser]
        # fused takes a third of the time on CPU; on other devices None leaves the choice to PyTorch
        fused = True if self.device.type == "cpu" else None
        optimizer = optimizer_class(
            self._parameter_groups(), lr=self.initial_lr, weight_decay=self.weight_decay, fused=fused
        )
        polynomial = partial(PolyLRScheduler, power=self.lr_power)
        scheduler = (CosineLRScheduler if self.schedule == "cosine" else polynomial)(
            optimizer,
            t_initial=self.num_epochs,
            warmup_t=self.warmup_fraction * self.num_epochs,
            warmup_lr_init=0.01 * self.initial_lr,
        )
        # nnU-Net's train step clips at 12; at the optimiser's step gradients are unscaled, under AMP as well
        optimizer.register_step_pre_hook(self._clip_gradients)
        return optimizer, scheduler

    def _parameter_groups(self) -> list[dict[str, Any]]:
        if self._initialisation is None:
            network = self.plain_network
            return param_groups_weight_decay(network, self.weight_decay, network.no_weight_decay())
        return self._loaded_encoder().parameter_groups(self.weight_decay, self.layer_decay)

    def _clip_gradients(self, *_: object) -> None:
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_grad_norm)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._iteration = 0
        if self._encoder_is_frozen(self.current_epoch):
            self._loaded_encoder().freeze_statistics()
            rate = max(group["lr"] for group in self.optimizer.param_groups)
            until = self.frozen_fraction * self.num_epochs
            self.print_to_log_file(
                f"The encoder is frozen until epoch {until:g}; learning rate of the rest: {rate:.5g}"
            )

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._check_labels(batch)
        progress = self.current_epoch + self._iteration / self.num_iterations_per_epoch
        self.lr_scheduler.step(progress)
        self._freeze_encoder(progress)
        self._iteration += 1
        statistics = self._batch_norm_statistics()
        before = [tensor.clone() for tensor in statistics]
        with default_autocast_dtype(self.autocast_dtype):
            result = super().train_step(batch)
        if np.isfinite(result["loss"]):
            self._overflows = 0
            return result
        self._overflows += 1
        self._stop_on_overflow(batch)
        # the scaler skipped the weights' step; infinite statistics would stay so
        for tensor, value in zip(statistics, before, strict=True):
            tensor.copy_(value)
        return result

    def _batch_norm_statistics(self) -> list[torch.Tensor]:
        """The statistics to restore after a step that the scaler skips."""
        if self.grad_scaler is None:
            return []
        norms = [m for m in self.network.modules() if isinstance(m, _BatchNorm)]
        return [t for m in norms for t in (m.running_mean, m.running_var) if t is not None]

    def _loaded_encoder(self) -> LoadedEncoder:
        # not a property: nnU-Net reads all properties for debug.json, and a linear probe has no such parts
        return LoadedEncoder(self.plain_network, (self._initialisation or {}).get("fresh", ()))

    def _encoder_is_frozen(self, progress: float) -> bool:
        """Whether the encoder is frozen at ``progress``, in epochs."""
        return self._initialisation is not None and progress < self.frozen_fraction * self.num_epochs

    def _freeze_encoder(self, progress: float) -> None:
        if not self._encoder_is_frozen(progress):
            return
        try:
            self._loaded_encoder().set_rates_to_zero(self.optimizer)
        except ValueError as error:
            raise RuntimeError(
                f"{type(self).__name__} cannot freeze the encoder for the first {self.frozen_fraction:.0%} of the "
                f"schedule: {error}. Separate them in configure_optimizers or the network's group_matcher, or set "
                "frozen_fraction to 0."
            ) from error

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._check_labels(batch)
        with default_autocast_dtype(self.autocast_dtype):
            return super().validation_step(batch)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        stored = self._stored_data()
        stored.check_presence()
        stored.check_content()
        with default_autocast_dtype(self.autocast_dtype), bounded_export():
            super().perform_actual_validation(save_probabilities)

    def on_train_start(self) -> None:
        """Check the stored data, then start as ``StartsFromPlan``.

        Raises:
            FileNotFoundError, ValueError: if the stored data are not those of the plan and the dataset.
        """
        stored = self._stored_data()
        stored.check_presence()
        if self.current_epoch == 0:
            stored.check_plans()
            stored.check_cases()
        if note := stored.check_split(self.fold):
            self.print_to_log_file(note)
        stored.check_content()
        super().on_train_start()

    # ---- invalid data ----

    def _check_labels(self, batch: dict[str, Any]) -> None:
        if self.label_manager.has_regions:
            return
        target = batch["target"][0] if isinstance(batch["target"], list) else batch["target"]
        # mostly still on the CPU, where a pass over them takes some of a GPU's time; on the GPU it is waited for once
        low, high = map(int, torch.stack(torch.aminmax(target)).tolist())
        # the ignore label follows the last one
        largest = self.label_manager.num_segmentation_heads - (not self.label_manager.has_ignore_label)
        if low < 0 or high > largest:
            bad = low if low < 0 else high
            cases = [key for key, t in zip(batch["keys"], target, strict=True) if bool((t == bad).any())]
            raise RuntimeError(
                f"label {bad} in case {', '.join(cases)} is not in dataset.json (labels 0 to {largest}). Correct the "
                "segmentation or dataset.json, then run nnUNetv2_plan_and_preprocess with --verify_dataset_integrity."
            )

    def _stop_on_overflow(self, batch: dict[str, Any]) -> None:
        """Stop on a loss that is not finite; where gradients are scaled, on ``MAX_OVERFLOWS`` of them in a row.

        ``GradScaler`` skips the step of an overflow and lowers its scale, so one of them does no harm.
        """
        where = f"epoch {self.current_epoch}, iteration {self._iteration}: the loss is not finite"
        finite = torch.isfinite(batch["data"]).flatten(1).all(1)
        if not finite.all():
            cases = [key for key, ok in zip(batch["keys"], finite, strict=True) if not ok]
            raise RuntimeError(
                f"{where}. The image of case {', '.join(cases)} holds NaN or infinity. Mend or remove it, then run "
                "nnUNetv2_plan_and_preprocess with --verify_dataset_integrity."
            )
        if self.grad_scaler is not None and self._overflows < MAX_OVERFLOWS:
            return
        times = f" for {self._overflows} iterations in a row" if self._overflows > 1 else ""
        raise RuntimeError(
            f"{where}{times}. The images are finite, so training diverged. The last checkpoint in "
            f"{self.output_folder} is intact: continue from it with --c, or start again with a lower rate than "
            f"{self.initial_lr:g}: learning_rate in the entry training of the plan's configuration."
        )

    # ---- checkpoints ----

    def save_checkpoint(self, filename: str) -> None:
        """Save a checkpoint as nnU-Net, but atomically: an existing file is replaced once the new one is complete.

        Raises:
            RuntimeError: if it cannot be written, for instance to a full disk.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)  # writes nothing
            return
        try:
            with replacing(filename) as partial:
                super().save_checkpoint(str(partial))
        except (OSError, RuntimeError) as error:
            raise RuntimeError(
                f"could not write {filename}: {error}. Checkpoints written before it are intact. Free some space on "
                "that disk and continue with nnUNetv2_train ... --c"
            ) from error

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Load a checkpoint as nnU-Net does.

        Raises:
            RuntimeError: if the file is missing, truncated, damaged, not a checkpoint, or one of another network.
        """
        if not self.was_initialized:
            self.initialize()
        try:
            if isinstance(filename_or_checkpoint, str):
                check_file(filename_or_checkpoint)
            super().load_checkpoint(filename_or_checkpoint)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # the unpickler raises anything on damaged files
            name = filename_or_checkpoint if isinstance(filename_or_checkpoint, str) else "the checkpoint"
            if "loading state_dict" in str(error):
                reason = f"it belongs to another network or plan: {error}"
            elif "loaded state dict" in str(error):  # PyTorch's words for an optimiser's
                reason = (
                    "the plan's training settings have changed since, so that other weights are trained or in other "
                    f"groups: {error}"
                )
            elif isinstance(error, FileNotFoundError):
                reason = "there is no such file"
            else:
                reason = f"it is truncated or not a checkpoint: {first_line(error)}"
            raise RuntimeError(f"cannot load {name}: {reason}") from error
