"""Lightning module that trains a classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..pretraining.data.index import PreparedIndex
from .checkpoint import ClassifierCheckpoint, identity
from .classifier import ImageClassifier, mean_probabilities
from .data import ClassificationData
from .scores import accuracy, auc
from .training import EncoderTraining


class Classification(EncoderTraining):
    """Train an encoder with a linear layer, or the layer alone, and keep the weights with the best validation score.

    Args:
        encoder: checkpoint to start from; random weights by default.
        network: registered network or timm network with random weights; ignored with ``encoder``.
        patch_size: voxels per axis; with ``encoder`` the checkpoint's by default.
        input_channels: input channels of a network with random weights.
        network_overrides: arguments of a registered network with random weights.
        frozen: freeze the encoder and train the linear layer alone.
        lr: AdamW's learning rate.
        weight_decay: AdamW's weight decay.
        warmup_steps: steps of linear warm-up.
        final_lr_share: share of the learning rate that remains at the end of the cosine decay; 1 disables the decay.
        class_weights: weight classes in the loss inversely to their frequency.
        select_by: validation score that selects the best weights: ``auc``, of equal ones that of the lower loss, which
            also decides if validation has no class to compute an AUC of; or ``loss``.

    Attributes:
        multi_label: whether an image can have several labels at once; known once a trainer is attached.

    Raises:
        ValueError: if neither ``encoder`` nor ``patch_size`` is given, or the network cannot be built.
        FileNotFoundError: if there is no such checkpoint.
    """

    multi_label: bool
    loss_weights: Tensor | None
    best: Tensor

    def __init__(
        self,
        encoder: str | None = None,
        network: str = "qt_unet_tiny",
        patch_size: Sequence[int] | None = None,
        input_channels: int = 1,
        network_overrides: dict[str, Any] | None = None,
        frozen: bool = False,
        lr: float = 1e-4,
        weight_decay: float = 1e-5,
        warmup_steps: int = 0,
        final_lr_share: float = 1.0,
        class_weights: bool = False,
        select_by: Literal["auc", "loss"] = "auc",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        backbone = self.build_backbone(encoder, network, patch_size, input_channels, network_overrides)
        self.network = ImageClassifier(backbone, 1, frozen)
        # best AUC and loss so far
        self.register_buffer("best", torch.tensor([-math.inf, math.inf]))

    @property
    def data(self) -> ClassificationData:
        """The data of the run."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def configure_model(self) -> None:
        """Create as many outputs as the data have classes."""
        data = self.data
        with torch.random.fork_rng(devices=[]):
            # the same initial layer, however many random numbers the processes have drawn before
            torch.manual_seed(data.seed)
            self.network.reset_head(len(data.classes))
        self.multi_label = data.multi_label
        weights = balanced_weights(data.train_targets, self.multi_label)
        self.loss_weights = torch.from_numpy(weights) if self.hparams["class_weights"] else None

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the cross-entropy, or, with several labels per image, the mean binary cross-entropy of known labels.

        Args:
            logits, targets: (batch, classes); targets 0 or 1, NaN where unknown.
        """
        weights = None if self.loss_weights is None else self.loss_weights.to(logits)
        if not self.multi_label:
            return F.cross_entropy(logits.float(), targets.argmax(1), weights)
        known = ~targets.isnan()
        wrong = F.binary_cross_entropy_with_logits(
            logits.float(), targets.nan_to_num(), reduction="none", pos_weight=weights
        )
        return (wrong * known).sum() / known.sum().clamp_min(1)

    def training_step(self, batch: Sequence[Tensor], batch_index: int) -> Tensor:
        """Compute the loss of a batch of ``LabelledCrops``."""
        image, targets = batch
        loss = self.loss(self.network(image), targets)
        self.check_finite(loss)
        # mean over the epoch: small data sets have few steps per epoch
        self.log("loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=len(image))
        return loss

    def on_validation_epoch_start(self) -> None:
        shape = self.data.val_targets.shape
        # the last column counts occurrences: with several processes an image can occur twice
        self.collected = torch.zeros(shape[0], shape[1] + 1, device=self.device)

    def validation_step(self, batch: tuple[int, Tensor], batch_index: int) -> None:
        """Collect the probabilities of an image, the mean over its crops."""
        number, crops = batch
        mean = mean_probabilities(self.network, crops, self.multi_label, self.data.batch_size)
        if not mean.isfinite().all():
            name = self.data.names[self.data.val_numbers[int(number)]]
            raise RuntimeError(
                f"diverged: the probabilities of the validation image {name} are not finite (epoch "
                f"{self.current_epoch}). Lower the learning rate or train in float32; the classifier of the best epoch "
                "before is kept"
            )
        self.collected[int(number), :-1] += mean
        self.collected[int(number), -1] += 1

    def on_validation_epoch_end(self) -> None:
        collected = self.trainer.strategy.reduce(self.collected, reduce_op="sum").cpu()
        if self.trainer.sanity_checking:
            return
        # all images, or those of --trainer.limit_val_batches and fast_dev_run
        seen = collected[:, -1] > 0
        probabilities, targets = collected[seen, :-1] / collected[seen, -1:], self.data.val_targets[seen.numpy()]
        area = auc(probabilities.numpy(), targets)
        loss = self._loss_of_probabilities(probabilities, torch.from_numpy(targets))
        scores = {"val_auc": area, "val_accuracy": accuracy(probabilities.numpy(), targets, self.multi_label)}
        self.scores = {name: float(s) for name, s in {**scores, "val_loss": loss}.items() if not math.isnan(s)}
        self.log_dict(self.scores, prog_bar=True)
        area = area if self.hparams["select_by"] == "auc" and not math.isnan(area) else -math.inf
        # equal AUC: the lower loss decides. Rounded as `best` is, to which no AUC of more digits would be equal
        area, loss = torch.tensor([area, loss]).tolist()
        self.is_best = (-area, loss) < (-float(self.best[0]), float(self.best[1]))
        if self.is_best:
            self.best.copy_(torch.tensor([area, loss]))

    def _loss_of_probabilities(self, probabilities: Tensor, targets: Tensor) -> float:
        if not self.multi_label:
            smallest = torch.finfo(probabilities.dtype).tiny
            return float(F.nll_loss(probabilities.clamp_min(smallest).log(), targets.argmax(1)))
        known = ~targets.isnan()
        return float(F.binary_cross_entropy(probabilities[known], targets[known]))

    def checkpoints(self, index: PreparedIndex, recipe: dict[str, Any]) -> dict[str, ClassifierCheckpoint]:
        """Return the classifier by file name, if its validation score is the best so far.

        Args:
            index: index of the prepared images.
            recipe: settings of the run, plain types.
        """
        if not self.is_best:
            return {}
        data = self.data
        checkpoint = ClassifierCheckpoint(
            weights={name: v.detach().cpu().contiguous() for name, v in self.network.state_dict().items()},
            backbone=self.description,
            columns=data.columns,
            classes=tuple(data.classes),
            multi_label=data.multi_label,
            views=data.crops,
            spacing=index.spacing_of(3),
            normalization=index.normalization,
            channels=index.channels,
            plans=index.plans,
            configuration=index.configuration,
            scores=self.scores,
            encoder=self.source,
            recipe=recipe,
            num_cases=len(data.train_numbers),
            uncertain=data.uncertain,
            trained_on=tuple(identity(name) for name in data.names[data.train_numbers]),
            validated_on=tuple(identity(name) for name in data.names[data.val_numbers]),
        )
        return {"classifier.pth": checkpoint}


def balanced_weights(targets: NDArray, multi_label: bool) -> NDArray:
    """Return weights that balance the classes: images / (classes * images of the class).

    With several labels per image the weight of a label is images without it / images with it.

    Args:
        targets: (images, classes); each class has images with and without it.
        multi_label: whether an image can have several labels at once.

    Returns:
        (classes,), float32.
    """
    positive = (targets == 1).sum(0)
    weights = (targets == 0).sum(0) / positive if multi_label else len(targets) / (len(positive) * positive)
    return weights.astype(np.float32)
