"""Surface distances of the final validation, whose whole cases nnU-Net evaluates by overlap alone."""

from __future__ import annotations

from pathlib import Path

from nnunetv2.configuration import default_num_processes
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from .._processes import available_cores

# what is logged, by how the names of metrics begin
LOGGED = ("HD95", "NSD")


class EvaluatesSurfaces(nnUNetTrainer):
    """Mixin for a trainer, listed before its class.

    Attributes:
        surface_metrics: whether the final validation is evaluated as by ``nnunet-transformers evaluate``, with its
            default conventions. The result is ``evaluation.json`` beside nnU-Net's ``summary.json``.
    """

    surface_metrics = False

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        super().perform_actual_validation(save_probabilities)
        if self.surface_metrics and self.local_rank == 0:
            self._evaluate_surfaces()

    def _evaluate_surfaces(self) -> None:
        # a package above this one, which only this option needs
        from ..evaluation import evaluate_folder, shown

        preprocessed, folder = Path(self.preprocessed_dataset_folder_base), Path(self.output_folder, "validation")
        evaluation = evaluate_folder(
            folder,
            preprocessed / "gt_segmentations",
            dataset_json=preprocessed / "dataset.json",
            # nnU-Net's number is 8 on any machine; more than its cores only take longer to start
            processes=min(default_num_processes, available_cores()),
        )
        evaluation.save(folder / "evaluation.json")
        for label, summaries in evaluation.summaries().items():
            values = [f"{name} {shown(s.mean)}" for name, s in summaries.items() if name.startswith(LOGGED)]
            self.print_to_log_file(f"validation, {label}: {', '.join(values)}", also_print_to_console=True)
