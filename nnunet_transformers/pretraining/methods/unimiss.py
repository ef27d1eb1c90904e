"""UniMiSS: one network for images and volumes, taught by its own slow copy across views, slices and volumes.

Xie et al., "UniMiSS: Universal Medical Self-Supervised Learning via Breaking Dimensionality Barrier", ECCV 2022,
and its appendix. Where they are silent the authors' release decides; its schedules, whose index counts wrongly, are by
optimiser step here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from lightly.loss import DINOLoss
from lightly.models.modules.heads import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from lightning import LightningModule
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from ...architectures import NetworkPair, create_pair, form_overrides
from ...architectures._arguments import in_plane
from ...runs.callbacks import feature_spread
from ...runs.schedules import cosine_with_warmup, total_steps
from ...weights import EncoderCheckpoint
from ..data.index import PreparedIndex
from ..encoders.encoder import rest_drop_path


class CrossDimensionLoss(DINOLoss):
    """DINO's loss over views, summed over every pair of a teacher's and a student's dimensionality.

    With slices and volumes these are UniMiSS's four terms: volume to volume, slices to volume, slices to slices, volume
    to slices. One centre serves all and moves once a step.
    """

    def forward(self, teacher: Sequence[Sequence[Tensor]], student: Sequence[Sequence[Tensor]]) -> Tensor:
        """Loss of a batch.

        Args:
            teacher, student: for each dimensionality its views, each (batch, output_dim).
        """
        loss = sum(super(CrossDimensionLoss, self).forward(list(t), list(s)) for t, s in product(teacher, student))
        super().update_center(torch.stack([view for views in teacher for view in views]))
        return loss

    def update_center(self, teacher_out: Tensor) -> None:
        """Not with each term: ``forward`` moves the centre once."""


class Branch(nn.Module):
    """Student or teacher: a network in 2D and 3D, and DINO's head."""

    def __init__(self, pair: NetworkPair, output_dim: int, batch_norm: bool) -> None:
        super().__init__()
        self.pair = pair
        self.head = DINOProjectionHead(pair.dim, output_dim=output_dim, freeze_last_layer=1, batch_norm=batch_norm)

    def forward(self, view: Tensor) -> Tensor:
        """(batch, channels, *size) to logits (batch, output_dim)."""
        return self.head(self.pair(view))

    def slices(self, volumes: Tensor) -> Tensor:
        """All slices of volumes through the 2D form, their logits averaged over each volume.

        The average is taken of the normalised features: the last layer is linear, so it is the same there and as many
        times cheaper as there are slices.

        Args:
            volumes: (batch, 1, depth, height, width).

        Returns:
            logits (batch, output_dim).
        """
        form = self.pair.form_2d
        images = volumes.transpose(1, 2).flatten(0, 1).expand(-1, form.input_channels, -1, -1)
        if images.shape[2:] != form.patch_size:
            images = F.interpolate(images, size=form.patch_size, mode="bilinear", align_corners=False)
        features = F.normalize(self.head.layers(self.pair(images)), dim=-1)
        return self.head.last_layer(features.unflatten(0, (len(volumes), -1)).mean(1))


class UniMiSS(LightningModule):
    """Pretrain a network on images and volumes: MiT with its token and decoder, of any other the encoder.

    Args:
        network: registered name.
        patch_size_2d, patch_size_3d: sizes of the views.
        input_channels_2d: a grey image is repeated to so many.
        network_overrides: arguments of the network's 3D form, such as a plan's; the 2D form has the same, without
            the first axis where they have an entry per axis.
        output_dim: of the head.
        batch_norm: in the head, which the paper has without; keeps outputs of small batches from becoming alike.
        lr: AdamW's rate for a batch of 256; that of the run is in proportion to its batch.
        warmup_epochs: with a linearly rising rate, before the cosine decay to ``min_lr``.
        min_lr: rate at the end.
        weight_decay: at the start and at the end, along a cosine; none on norms and biases.
        tau: momentum of the teacher at the start; rises to 1 along a cosine.
        student_temperature, teacher_temperature, center_momentum: of DINO's loss.
        clip_grad_norm: largest norm of the gradient of each parameter by itself.
    """

    strategy = "ddp_find_unused_parameters_true"  # a batch trains one form of the network

    def __init__(
        self,
        network: str = "mit_7",
        patch_size_2d: Sequence[int] = (224, 224),
        patch_size_3d: Sequence[int] = (16, 96, 96),
        input_channels_2d: int = 3,
        network_overrides: dict[str, Any] | None = None,
        output_dim: int = 65536,
        batch_norm: bool = False,
        lr: float = 8e-4,
        warmup_epochs: int = 10,
        min_lr: float = 1e-6,
        weight_decay: tuple[float, float] = (0.04, 0.4),
        tau: float = 0.996,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        center_momentum: float = 0.9,
        clip_grad_norm: float = 0.3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        sizes = (patch_size_2d, patch_size_3d, input_channels_2d, 1)
        self.student, self.teacher = (
            Branch(create_pair(network, *sizes, network_overrides), output_dim, batch_norm) for _ in range(2)
        )
        self.teacher.load_state_dict(self.student.state_dict())
        deactivate_requires_grad(self.teacher)
        rest_drop_path(self.teacher)
        self.loss = CrossDimensionLoss(
            output_dim,
            warmup_teacher_temp=teacher_temperature,
            teacher_temp=teacher_temperature,
            student_temp=student_temperature,
            center_momentum=center_momentum,
        )

    def training_step(self, views: Sequence[Tensor], batch_index: int) -> Tensor:
        """Loss of two views of a batch, of images or of volumes."""
        is_3d = views[0].dim() == 5
        with torch.no_grad():
            teacher = self._outputs(self.teacher, views, is_3d)
        student = self._outputs(self.student, views, is_3d)
        loss = self.loss(teacher, student)
        logged = {"loss_3d" if is_3d else "loss_2d": loss, "feature_spread": feature_spread(student[0][0])}
        self.log_dict(logged, prog_bar=True, sync_dist=True, batch_size=len(views[0]))
        return loss

    @staticmethod
    def _outputs(branch: Branch, views: Sequence[Tensor], is_3d: bool) -> list[list[Tensor]]:
        outputs = [[branch(view) for view in views]]
        return [*outputs, [branch.slices(view) for view in views]] if is_3d else outputs

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                torch.nn.utils.clip_grad_norm_(parameter, self.hparams.clip_grad_norm)
        self.student.head.cancel_last_layer_gradients(self.current_epoch)

    def optimizer_step(self, epoch: int, batch_index: int, optimizer: Any, closure: Any = None) -> None:
        """Lightning calls this once an optimiser step, however many batches were accumulated."""
        total = max(total_steps(self.trainer), self.global_step + 1)
        decay = cosine_schedule(self.global_step, total, *self.hparams.weight_decay)
        for group in optimizer.param_groups:
            group["weight_decay"] = decay if group["decays"] else 0.0
        super().optimizer_step(epoch, batch_index, optimizer, closure)
        update_momentum(self.student, self.teacher, cosine_schedule(self.global_step, total, self.hparams.tau, 1.0))

    def configure_optimizers(self) -> dict[str, Any]:
        batch = self.trainer.datamodule.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
        lr = self.hparams.lr * batch / 256
        groups = param_groups_weight_decay(self.student, self.hparams.weight_decay[0])
        for group in groups:
            group["decays"] = group["weight_decay"] > 0
        optimizer = torch.optim.AdamW(groups, lr=lr)
        return cosine_with_warmup(optimizer, self.trainer, self.hparams.warmup_epochs, self.hparams.min_lr / lr)

    def checkpoints(self, index: PreparedIndex, recipe: dict[str, Any]) -> dict[str, EncoderCheckpoint]:
        """The student's 2D and 3D form."""
        sizes = {2: self.hparams.patch_size_2d, 3: self.hparams.patch_size_3d}
        indices = {2: index.images or index, 3: index}
        overrides = form_overrides(self.hparams.network, self.hparams.network_overrides)
        pair = self.student.pair
        return {
            f"encoder_{ndim}d.pth": EncoderCheckpoint(
                weights={
                    name: value.detach().cpu()
                    for name, value in {**pair.form_weights(ndim), **pair.token_weights(ndim)}.items()
                },
                name=self.hparams.network,
                patch_size=tuple(size),
                input_channels=pair.form(ndim).input_channels,
                overrides=overrides if ndim == 3 else in_plane(overrides),
                spacing=indices[ndim].spacing_of(ndim),
                normalization=indices[ndim].normalization[:1] * pair.form(ndim).input_channels,
                method=type(self).__name__,
                recipe=recipe,
                num_cases=len(indices[ndim].cases),
            )
            for ndim, size in sizes.items()
        }
