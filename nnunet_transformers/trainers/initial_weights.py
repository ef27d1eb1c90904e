"""Training that starts from the initial weights that a plan specifies, for any trainer of nnU-Net's."""

from __future__ import annotations

from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from ..plans.planned import PlannedConfiguration
from ..weights import InitialWeights
from ..weights.kinds import label_names


class StartsFromPlan(nnUNetTrainer):
    """Mixin for a trainer, listed before its class: loads the plan's initial weights when training starts.

    ``--c`` and ``-pretrained_weights`` take precedence.
    """

    @property
    def plain_network(self) -> Any:
        """The network without the wrappers of DDP and torch.compile."""
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    @property
    def initialised_network(self) -> nn.Module:
        """The module that initial weights are loaded into."""
        module: nn.Module = self.plain_network
        return module

    @property
    def _initialisation(self) -> dict[str, Any] | None:
        """The plan's specification of initial weights, if any.

        Plans of nnU-Net's ``nnUNetv2_preprocess_like_nnssl`` have them in ``pretrain_info``, without a path for a
        training from scratch.
        """
        specification: dict[str, Any] | None = self.configuration_manager.configuration.get("initialisation")
        path = (self.plans_manager.plans.get("pretrain_info") or {}).get("checkpoint_path")
        return specification or ({"checkpoint": path} if path else None)

    def _planned(self) -> PlannedConfiguration:
        return PlannedConfiguration(self.plans_manager.plans, self.dataset_json, self.configuration_name)

    def initialize(self) -> None:
        super().initialize()
        self._changes_at_start = self._count_changes()

    def _count_changes(self) -> int:
        """Sum of PyTorch's counts of the changes that each parameter has had in place, as by loading."""
        return sum(parameter._version for parameter in self.network.parameters())

    def on_train_start(self) -> None:
        """Load the plan's initial weights, and log the load report and the references to cite.

        Raises:
            FileNotFoundError, ValueError: if the weights are not there, are others than the plan's, or do not fit.
        """
        # a checkpoint and -pretrained_weights are loaded before; a network may also be initialised without them
        is_fresh = not self.was_initialized or self._changes_at_start == self._count_changes()
        super().on_train_start()
        if self._initialisation is None:
            return
        if not is_fresh:
            if self.current_epoch == 0:
                self.print_to_log_file("The plan's initial weights stay out: others were loaded before.")
            return
        planned = self._planned()
        try:
            weights = InitialWeights(self._initialisation)
            report = weights.load_into(self.initialised_network, planned.patch_size, label_names(planned.dataset_json))
        except FileNotFoundError as error:
            name, dataset = (self.plans_manager.plans[key] for key in ("plans_name", "dataset_name"))
            raise FileNotFoundError(
                f"{error}; the plan {name} of {dataset} starts from it: put it there, or write the plan again with "
                f"`nnunet-transformers attach FILE -d {dataset} -p PLANS -o {name} --force`"
            ) from error
        self.print_to_log_file(report, add_timestamp=False)
        for citation in weights.citations:
            self.print_to_log_file(f"please cite: {citation}", add_timestamp=False)
