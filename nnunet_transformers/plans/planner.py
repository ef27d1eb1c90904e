"""nnU-Net's planner for transformers instead of its CNN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil, prod
from pathlib import Path
from typing import Any, ClassVar

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn

from .._atomic import write_json
from .._meta import without_data
from .._text import times
from ..architectures import create_network, get_network
from ..discovery import plans_name
from .memory import CUDA_OVERHEAD, batch_bytes, training_peak_bytes
from .plan_files import load_plans
from .planned import channel_names, check_labels
from .stored_data import find_conflict, is_of_other_images
from .tiling import TokenPlan, TokenRules, choose_patch_embed_stride, plan_tokens, shrink
from .training import ENTRY as TRAINING
from .training import UNORDERED

# nnU-Net's default plans, whose preprocessed folders other plans share
STOCK = "nnUNetPlans"
# the configurations that planning makes; any other is the user's
PLANNED = ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")
# what a subclass overrides to preprocess in its own way
DETERMINES_DATA = (
    "determine_reader_writer",
    "determine_resampling",
    "determine_fullres_target_spacing",
    "determine_normalization_scheme_and_whether_mask_is_used_for_norm",
    "determine_transpose",
)
# voxels of the smallest patch that a lack of memory may lead to: below, a larger batch of them teaches little
SMALLEST_PATCH = {2: 64**2, 3: 32**3}
# most by which the volume of the patch falls before memory is traced again
LARGEST_STEP = 4.0


class TransformerPlanner(ExperimentPlanner):
    """Plans a registered network; fingerprint, resampling and normalisation are nnU-Net's.

    A network without a 3D form gets no 3D configuration: its plan has ``2d`` alone, for volumes too. One without a 2D
    form gets no ``2d``.

    nnU-Net first plans its CNN, whose patch size is the target: ``plan_tokens`` picks the nearest patch whose token
    grids the windows tile. Where a step with two samples exceeds the memory target, activation checkpointing is
    switched on; where it still does, the network gets fewer stages if its weights take more than half of the target,
    and else the patch shrinks, as in nnU-Net. The remaining memory goes into a larger batch, up to the voxels of
    nnU-Net's and its limit of 5 % of the dataset.

    Attributes:
        network_name: the registered network, set by a subclass.
        network_overrides: network arguments that are the same for every dataset, beside those of the classes that it
            extends. If ``activation_checkpointing`` is among them, the planner does not change it.
        token_rules: the network's requirements on its token grids.
        max_batch_ratio: most voxels of a batch, relative to nnU-Net's, rounded up to samples; infinity for what fits.
        training: settings of the training (``TrainingSettings``) that a plan states; the rest is the trainer's.

    Raises:
        ValueError: if ``network_overrides`` has arguments that the network does not take or that the planner derives
            from the patch, the labels of the dataset are not consecutive, or its images are 2D and the network is not.
    """

    network_name: str
    network_overrides: ClassVar[dict[str, Any]] = {}
    token_rules: ClassVar[TokenRules] = TokenRules()
    max_batch_ratio: ClassVar[float] = 1.0
    training: ClassVar[dict[str, Any]] = {"mirror_axes": UNORDERED}

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name or self.default_plans_name(),
            overwrite_target_spacing,
            suppress_transpose,
        )
        entry = get_network(self.network_name)
        unknown = [name for name in self._overrides if name not in entry.override_names]
        if unknown:
            raise ValueError(
                f"{type(self).__name__}.network_overrides: {entry.network_class.__name__} has no {', '.join(unknown)}; "
                f"it takes {', '.join(entry.override_names)}"
            )
        if derived := [name for name in self._overrides if name in entry.network_class.token_arguments]:
            raise ValueError(
                f"{type(self).__name__}.network_overrides: the planner derives {', '.join(derived)} from the patch, by "
                "the rules in token_rules"
            )
        self._dimensions = entry.dimensions
        self._labels = LabelManager(self.dataset_json["labels"], self.dataset_json.get("regions_class_order"))
        check_labels(self._labels)
        self._known_arguments: dict[Any, dict[str, Any]] = {}
        self._parameters: dict[TokenPlan, int] = {}
        self._summaries: dict[str, str] = {}
        if 3 not in self._dimensions:
            self.lowres_creation_threshold = 0  # saves the search for a spacing of 3d_lowres
        self._shares_stock_data = (
            preprocessor_name == "DefaultPreprocessor"
            and overwrite_target_spacing is None
            and not suppress_transpose
            and all(getattr(type(self), name) is getattr(TransformerPlanner, name) for name in DETERMINES_DATA)
        )

    @property
    def _overrides(self) -> dict[str, Any]:
        """``network_overrides`` of the class and of those that it extends."""
        overrides: dict[str, Any] = {}
        for base in reversed(type(self).__mro__):
            overrides |= base.__dict__.get("network_overrides", {})
        return overrides

    @classmethod
    def default_plans_name(cls) -> str:
        """Name of the plans unless the user gives another: ``nnUNetPlannerX`` makes ``nnUNetXPlans``."""
        return plans_name(cls.__name__)

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Name of the preprocessed folder; stock nnU-Net's where the data are the same.

        They are in 2d and 3d_fullres, whose spacing depends on the fingerprint alone; that of 3d_lowres also depends on
        the patch. ``save_plans`` renames the folder if an existing plan makes other data under that name.
        """
        if self._shares_stock_data and configuration_name in ("2d", "3d_fullres"):
            return f"{STOCK}_{configuration_name}"
        identifier: str = super().generate_data_identifier(configuration_name)
        return identifier

    @staticmethod
    def static_estimate_VRAM_usage(
        patch_size: Sequence[int],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict[str, Any],
        arch_kwargs_req_import: Sequence[str],
    ) -> int:
        """nnU-Net's estimate for its CNN, computed on the meta device, which saves the initialisation of weights.

        nnU-Net's own also sets PyTorch's threads to nnUNet_n_proc_DA, which fails where that is 0.
        """
        with without_data():
            network = get_network_from_plans(
                arch_class_name, arch_kwargs, arch_kwargs_req_import, input_channels, output_channels, allow_init=False
            )
            estimate: int = network.compute_conv_feature_map_size(patch_size)
        return estimate

    def get_plans_for_configuration(
        self,
        spacing: Sequence[float],
        median_shape: Sequence[int],
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict[Any, Any],
    ) -> dict[str, Any]:
        """Plan a configuration as nnU-Net's ``ExperimentPlanner``, but for patch, batch and network."""
        plan: dict[str, Any] = super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )
        if len(spacing) not in self._dimensions:
            return plan  # save_plans drops it
        spacing = tuple(float(s) for s in spacing)
        # nnU-Net searches the spacing of 3d_lowres by planning one after another until the patch covers enough
        is_search = data_identifier == self.generate_data_identifier("3d_lowres")
        batch_voxels = self.max_batch_ratio * plan["batch_size"] * prod(map(int, plan["patch_size"]))
        tokens, options, batch_size, step_bytes = self._plan_to_fit(
            plan["patch_size"], spacing, median_shape, approximate_n_voxels_dataset, batch_voxels, is_search, _cache
        )
        self._summaries[data_identifier] = self._summary(tokens, batch_size, step_bytes)
        plan["patch_size"] = tokens.patch_size
        plan["batch_size"] = batch_size
        plan["architecture"] = {
            "network_class_name": get_network(self.network_name).class_path,
            "arch_kwargs": self._arguments(tokens, options),
            "_kw_requires_import": [],
        }
        plan[TRAINING] = dict(self.training)
        return plan

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Save the plans without configurations that the network does not support.

        A configuration whose data an existing plan would make differently gets a folder of its own. Prints this, where
        memory was short, and where the plans replace some that were moved here from another dataset; at the end a line
        for each configuration.
        """
        if 3 not in self._dimensions:
            plans["configurations"].pop("3d_fullres", None)
            print(f"{self.network_name} is a 2D network: the plan has no 3D configuration")
        if 2 not in self._dimensions:
            del plans["configurations"]["2d"]
            if not plans["configurations"]:
                raise ValueError(
                    f"{self.network_name} is a 3D network and {self.dataset_name} has 2D images; plan with another "
                    "planner"
                )
            print(f"{self.network_name} is a 3D network: the plan has no 2D configuration")
        recursive_fix_for_json_export(plans)  # super's, which the comparison needs as well
        summaries = {}
        for name, configuration in plans["configurations"].items():
            if summary := self._summaries.get(configuration.get("data_identifier", "")):
                summaries[name] = summary
            self._separate_data(plans, name, configuration)
            arguments = configuration.get("architecture", {}).get("arch_kwargs", {})
            if arguments.get("activation_checkpointing") and "activation_checkpointing" not in self._overrides:
                print(
                    f"{name}: activation checkpointing, as {self.network_name} does not fit {self.UNet_vram_target_GB} "
                    f"GB without; planned with it: patch {configuration['patch_size']}, batch "
                    f"{configuration['batch_size']}"
                )
        if (path := self._folder / f"{self.plans_identifier}.json").is_file():
            old = load_plans(self._folder, self.plans_identifier)
            self._warn_of_moved_plans(plans, old)
            self._remove_unplanned(plans, old, path)
        super().save_plans(plans)
        for name, summary in summaries.items():
            print(f"{name}: {summary}")

    @property
    def _folder(self) -> Path:
        return Path(nnUNet_preprocessed) / str(self.dataset_name)

    def _remove_unplanned(self, plans: dict[str, Any], old: dict[str, Any], path: Path) -> None:
        """Remove what was planned before and is not now; nnU-Net would keep it beside the new configurations."""
        before = old["configurations"]
        inherited = {entry.get("inherits_from") for name, entry in before.items() if name not in PLANNED}
        stale = [n for n in PLANNED if n in before and n not in plans["configurations"] and n not in inherited]
        if stale:
            kept = {name: entry for name, entry in before.items() if name not in stale}
            write_json({**old, "configurations": kept}, path)
            print(f"{path.name} had {', '.join(stale)}, which this plan does not have; removed")

    def _warn_of_moved_plans(self, plans: dict[str, Any], old: dict[str, Any]) -> None:
        """Warn if these plans replace some that were moved here, whose data are then in the folders that are shared."""
        if not is_of_other_images(old, self._folder):
            return
        folders = {c.get("data_identifier") for c in plans["configurations"].values()}
        shared = sorted(folders & {c.get("data_identifier") for c in old["configurations"].values()} - {None})
        print(
            f"warning: {self.plans_identifier}.json was planned for other images, as after "
            "nnUNetv2_move_plans_between_datasets without -tp, and is replaced. If it was preprocessed, "
            f"{', '.join(shared) or 'its folders'} hold its data: "
            "preprocess them again, and nnUNetPlans, whose folders they are"
        )

    def _separate_data(self, plans: dict[str, Any], name: str, configuration: dict[str, Any]) -> None:
        identifier = configuration.get("data_identifier", "")
        conflict = find_conflict(plans, self._folder, identifier) if identifier.startswith(f"{STOCK}_") else None
        if conflict is not None:
            other, entries = conflict
            configuration["data_identifier"] = identifier.replace(STOCK, self.plans_identifier)
            print(
                f"{name}: {other} makes other data in {identifier} ({', '.join(entries)}), so this plan has a folder "
                f"of its own, {configuration['data_identifier']}; preprocess it before training"
            )

    def network_arguments(self, tokens: TokenPlan, **options: Any) -> dict[str, Any]:
        """Complete arguments of the network for the plan's ``arch_kwargs``.

        Args:
            tokens: patch, strides and windows.
            options: further arguments of the network for this configuration.

        Raises:
            ValueError: if the network's class does not take an argument of the plan, or has other token grids than
                planned.
        """
        entry = get_network(self.network_name)
        network_class = entry.network_class
        if tokens.window_sizes is not None and "window_sizes" not in network_class.token_arguments:
            raise ValueError(
                f"{type(self).__name__} plans window_sizes, which {network_class.__name__} does not state among its "
                "token_arguments; give the planner token_rules with windows=no_windows"
            )
        given = {
            **self._overrides,
            **options,
            **{name: getattr(tokens, name) for name in network_class.token_arguments},
            # inference builds the network without deep supervision and loads strictly
            "auxiliary_heads": network_class.deeply_supervised,
        }
        given = {name: value for name, value in given.items() if value is not None}
        with without_data():
            network = create_network(self.network_name, 1, 2, tokens.patch_size, **given)
        if tuple(network.grid_sizes[-1]) != tokens.grid_sizes[-1]:
            raise ValueError(
                f"{type(self).__name__} plans a deepest grid of {tokens.grid_sizes[-1]} for a patch of "
                f"{tokens.patch_size}, but {network_class.__name__} has {tuple(network.grid_sizes[-1])}; its "
                f"token_arguments are {', '.join(network_class.token_arguments) or 'none'}. Add those that it takes, "
                "or give the planner token_rules with the network's strides and stages"
            )
        return entry.plan_arguments(network, **given)

    def _arguments(self, tokens: TokenPlan, options: dict[str, bool]) -> dict[str, Any]:
        """``network_arguments``, built once for the patch that several of the spacings of a search have."""
        key = (tokens, tuple(options.items()))
        if key not in self._known_arguments:
            self._known_arguments[key] = self.network_arguments(tokens, **options)
        return dict(self._known_arguments[key])

    def _summary(self, tokens: TokenPlan, batch_size: int, step_bytes: int) -> str:
        """Describe a configuration in a line."""
        grids = tokens.grid_sizes
        parts = [
            f"patch {times(tokens.patch_size)}, batch {batch_size}",
            f"{prod(grids[0])} tokens ({times(grids[0])}) in {tokens.num_stages} stage{'s' * (tokens.num_stages > 1)}",
        ]
        if tokens.window_sizes is not None:
            windows = list(dict.fromkeys(map(times, tokens.window_sizes)))
            parts.append(f"window{'s' * (len(windows) > 1)} {', '.join(windows)}")
        if tokens in self._parameters:
            parts.append(f"{self._parameters[tokens] / 1e6:.1f} M parameters")
        parts.append(f"a step takes about {step_bytes / 1e9:.1f} of {self.UNet_vram_target_GB:g} GB")
        return "; ".join(parts)

    def _covers_too_little(self, patch_size: Sequence[int], image_voxels: float) -> bool:
        """Whether the patch covers so little of an image that nnU-Net plans a lower resolution."""
        return len(patch_size) == 3 and prod(patch_size) / image_voxels < self.lowres_creation_threshold

    def _input_channels(self, patch_size: Sequence[int], image_voxels: float) -> int:
        """Channels of the largest input: in a cascade, one more for each foreground label."""
        channels = len(channel_names(self.dataset_json))
        cascade = self._covers_too_little(patch_size, image_voxels)
        return channels + (len(self._labels.foreground_labels) if cascade else 0)

    def _plan_to_fit(
        self,
        patch_size: Sequence[int],
        spacing: tuple[float, ...],
        median_shape: Sequence[int],
        dataset_voxels: float,
        batch_voxels: float,
        is_search: bool,
        cache: dict[Any, Any],
    ) -> tuple[TokenPlan, dict[str, bool], int, int]:
        """Find the largest patch that fits with the smallest batch, then the largest batch that fits with this patch.

        Args:
            patch_size, spacing: target patch in voxels, and mm per voxel.
            median_shape, dataset_voxels: of the images, in voxels, and their voxels together.
            batch_voxels: most voxels of a batch, but for the smallest.
            is_search: nnU-Net searches a spacing and drops a patch that covers too little: its batch is not computed.
            cache: peak bytes of traced networks.

        Returns:
            token plan, network arguments that make it fit, batch size, and the bytes of a training step, 0 for a patch
            that was not traced.

        Raises:
            RuntimeError: if not even a patch of ``SMALLEST_PATCH`` fits.
        """
        target = tuple(int(n) for n in patch_size)
        stem = choose_patch_embed_stride(target, spacing, self.token_rules)
        cases = self.dataset_json["numTraining"]
        image_voxels = dataset_voxels / cases if cases else float(prod(median_shape))
        channels = self._input_channels(target, image_voxels)
        budget, batch_size = self.UNet_vram_target_GB * 1e9, self.UNet_min_batch_size
        plan = partial(plan_tokens, spacing=spacing, rules=self.token_rules, patch_embed_stride=stem)

        options: dict[str, bool] = {}
        can_checkpoint = "activation_checkpointing" in get_network(self.network_name).override_names

        def peak_bytes(tokens: TokenPlan, batch_size: int) -> tuple[int, int]:
            key = (self.network_name, tokens, tuple(options), channels, batch_size)
            if key not in cache:
                cache[key] = self._peak_bytes(tokens, options, channels, batch_size)
            peaks: tuple[int, int] = cache[key]
            return peaks

        def largest_batch(tokens: TokenPlan) -> int:
            covers = round(dataset_voxels * self.max_dataset_covered / prod(tokens.patch_size))
            largest: int = max(self.UNet_min_batch_size, ceil(min(covers, batch_voxels / prod(tokens.patch_size))))
            return largest

        planned = plan(target)
        if is_search:
            # what memory allows is at most what is planned without a limit, so such a patch need not be traced
            most = (plan(target, max_stages=count).patch_size for count in range(1, planned.num_stages + 1))
            if all(self._covers_too_little(size, image_voxels) for size in most):
                return planned, options, batch_size, 0
        is_kept = not (is_search and self._covers_too_little(planned.patch_size, image_voxels))
        # nnU-Net's batch usually fits, as its CNN needs more, and then nothing smaller is traced
        if is_kept and self.max_batch_ratio <= 1:
            usual = largest_batch(planned)
            if (step_bytes := sum(peak_bytes(planned, usual))) <= budget:
                return planned, options, usual, step_bytes

        smallest = min(prod(target), SMALLEST_PATCH[len(target)])
        max_stages: int | None = None
        while True:
            tokens = plan(target, max_stages=max_stages)
            static, peak = peak_bytes(tokens, batch_size)
            if static + peak <= budget:
                if not (is_search and self._covers_too_little(tokens.patch_size, image_voxels)):
                    batch_size = self._fitting_batch(partial(peak_bytes, tokens), largest_batch(tokens))
                return tokens, options, batch_size, sum(peak_bytes(tokens, batch_size))
            if can_checkpoint and not options and "activation_checkpointing" not in self._overrides:
                options["activation_checkpointing"] = True
                continue
            fewer = plan(target, max_stages=tokens.num_stages - 1)
            if static - CUDA_OVERHEAD > (budget - CUDA_OVERHEAD) / 2 and fewer.num_stages < tokens.num_stages:
                # weights and their optimiser take most of the memory, and a smaller patch hardly changes them
                max_stages = fewer.num_stages
                options.clear()
                continue
            if static >= budget or prod(target) <= smallest:
                raise RuntimeError(
                    f"{self.network_name} does not fit {self.UNet_vram_target_GB} GB even at a patch of "
                    f"{tokens.patch_size} and {tokens.num_stages} stages: its weights and their optimiser need "
                    f"{static / 1e9:.2f} GB, a batch of {batch_size} {peak / 1e9:.2f} GB; plan with a larger "
                    "-gpu_memory_target or a smaller network"
                )
            # memory is about proportional to the volume: remove most of the excess before tracing the network again
            excess = peak / (budget - static)
            volume = prod(tokens.patch_size) / min(LARGEST_STEP, excess**0.9)
            target = shrink(target, median_shape[: len(target)])
            while prod(plan(target, max_stages=max_stages).patch_size) > volume and prod(target) > smallest:
                target = shrink(target, median_shape[: len(target)])

    def _peak_bytes(
        self, tokens: TokenPlan, options: dict[str, bool], input_channels: int, batch_size: int
    ) -> tuple[int, int]:
        """Static and peak bytes of a training step, see ``training_peak_bytes``, with the next batch beside it."""
        arguments = self._arguments(tokens, options)
        patch_size = arguments.pop("patch_size")
        num_classes = self._labels.num_segmentation_heads

        def build() -> nn.Module:
            network = create_network(
                self.network_name, input_channels, num_classes, patch_size, deep_supervision=True, **arguments
            )
            self._parameters[tokens] = sum(parameter.numel() for parameter in network.parameters())
            return network

        regions = num_classes if self._labels.has_regions else 0
        static, peak = training_peak_bytes(build, input_channels, patch_size, batch_size, has_regions=bool(regions))
        return static, peak + batch_bytes(input_channels, patch_size, batch_size, regions)

    def _fitting_batch(self, peak_bytes: Callable[[int], tuple[int, int]], limit: int) -> int:
        """Find the largest batch, up to ``limit``, that fits, while tracing few batch sizes.

        Args:
            peak_bytes: maps a batch size to static and peak bytes, as ``_peak_bytes``; the smallest batch fits.
        """
        budget: float = self.UNet_vram_target_GB * 1e9
        smallest: int = self.UNet_min_batch_size
        static, peak = peak_bytes(smallest)
        # four times the batch that a proportional peak suggests: not all of the peak grows with the batch
        largest = min(limit, int(4 * smallest * (budget - static) / peak))
        if largest <= smallest:
            return smallest
        batch_size = largest
        while batch_size > smallest and static + (more := peak_bytes(batch_size)[1]) > budget:
            # the peak, a maximum over parts of the step, is convex in the batch size: the line between two bounds it,
            # except for operations that split into chunks from some batch size on
            share = (budget - static - peak) / (more - peak)
            batch_size = min(batch_size - 1, smallest + int(share * (batch_size - smallest)))
        return batch_size
