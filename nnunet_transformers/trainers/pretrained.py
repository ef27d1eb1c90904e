"""Stock nnU-Net from pretrained weights: ``nnUNetv2_train D 3d_fullres 0 -tr nnUNetTrainerPretrained -p PLANS``."""

from __future__ import annotations

from typing import Any

import torch

from .initial_weights import StartsFromPlan


class nnUNetTrainerPretrained(StartsFromPlan):
    """nnU-Net's own training of the plan's network, from the plan's initial weights and at a tenth of its rate.

    Everything is trained from the start. 1e-3 is the rate at which the OpenMind comparison fine-tunes its ResEnc-L
    (Wald et al. 2025).

    Raises:
        RuntimeError: if the plan specifies no initial weights.
    """

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  (nnU-Net's signature)
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = 1e-3
        if self._initialisation is None:
            name = self.plans_manager.plans_name
            raise RuntimeError(
                f"{name} specifies no initial weights for {configuration}. Write a plan that does with "
                f"`nnunet-transformers attach SOURCE -d {self.plans_manager.dataset_name} -p {name} -o "
                f"{name}_pretrained` and train with it."
            )
