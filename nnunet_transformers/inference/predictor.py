"""nnU-Net's predictor with batches of patches.

nnU-Net's loop visits the tiles of the sliding window, requests the logits of one tile at a time and sums them up. The
loop is unchanged: when it requests a tile that is not computed yet, one forward pass computes that tile together with
as many of the following tiles and flips as fit. Order, weights and types of all sums are therefore nnU-Net's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import wraps
from inspect import signature
from itertools import combinations, islice
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.helpers import empty_cache
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from tqdm import tqdm

from .._image_size import check_size
from .._reading import read_json
from ..cpu import keep_freed_memory, release_freed_memory, use_kernels
from ..plans.builder import finding_builders
from ..plans.gate import check_plan
from ..plans.planned import channel_names
from ..weights.file import check_file
from ..weights.limits import check_finite
from ..weights.nnunet_checkpoint import FINAL, read_checkpoint, reading_plain_types
from .accumulator import FINISHED_BYTES, Accumulator, Slicer, pad, planes_of, stages
from .batch_size import bytes_of_pass, cpu_batch_size, fitting_batch_size, free_bytes
from .cases import check_axes, check_present, check_whole, list_cases
from .images import Item, predict_images, preprocess
from .preprocessing import for_prediction
from .uncertainty import StatesUncertainty, map_files
from .whole_files import WholeFilePlans, record, whole_json_files

# patches per pass of a compiled network; all its passes have this size, the last one padded. Eight flips in 3D or two
# tiles with four flips each in 2D fill a pass.
COMPILED_BATCH_SIZE = 8


class BatchedPredictor(StatesUncertainty, nnUNetPredictor):
    """nnU-Net's predictor whose forward passes take patches of several tiles and flips.

    Args:
        batch_size: patches per pass; by default as many as fit into a GPU's memory or are fast on a CPU.
        use_compile: compile the network, with passes of one size only; otherwise ``nnUNet_compile`` decides.
        trust: unpickle checkpoints and build what the plan names, which runs any code in them; otherwise only tensors
            and plain types are read, and the plan may name only parts of segmentation.
        arguments: keyword arguments of nnU-Net's predictor.

    Raises:
        ValueError: if the device is not available.
    """

    network: nn.Module
    plans_manager: PlansManager
    configuration_manager: ConfigurationManager

    def __init__(
        self, batch_size: int | None = None, use_compile: bool = False, trust: bool = False, **arguments: Any
    ) -> None:
        device = arguments.get("device", torch.device("cuda"))
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError("-device cuda is not available on this machine; use -device cpu")
        if device.type == "cpu":
            keep_freed_memory()
        super().__init__(**arguments)
        self.batch_size = batch_size
        self.use_compile = use_compile
        self.trust = trust
        self._bytes_of_pass: int | None = None
        self._limit: int | None = None
        self._tiles: Iterator[Tensor] = iter(())

    # ---- the model ----

    def initialize_from_trained_model_folder(
        self,
        model_training_output_dir: str,
        use_folds: tuple[int | str, ...] | None,
        checkpoint_name: str = FINAL,
    ) -> None:
        """Load a model as nnU-Net does, but without unpickling, and with a plan that passed the gate.

        Raises:
            ValueError: if a checkpoint is truncated or damaged, its weights hold NaN or infinity, or it would have to
                be unpickled and is not trusted, or the plan names other code.
        """
        plans = Path(model_training_output_dir) / "plans.json"
        if plans.is_file() and not self.trust:  # nnU-Net says what is missing
            check_plan(read_json(plans), str(plans))
        folds = self._folds(model_training_output_dir, use_folds, checkpoint_name)
        files = [Path(model_training_output_dir) / f"fold_{fold}" / checkpoint_name for fold in folds]
        check_present(Path(model_training_output_dir), files)
        for path in files:
            check_file(path)
        try:
            with finding_builders(), nullcontext() if self.trust else reading_plain_types():
                super().initialize_from_trained_model_folder(model_training_output_dir, use_folds, checkpoint_name)
        except Exception:  # a damaged file can make the unpickler, or the code that uses its content, raise anything
            # raises an error that names the file, if a file is the cause
            for path in files:
                read_checkpoint(path, self.trust)
            raise
        self.plans_manager = WholeFilePlans(self.plans_manager.plans)
        self.configuration_manager = for_prediction(self.configuration_manager)
        for path, weights in zip(files, self.list_of_parameters, strict=True):
            check_finite(weights, path)
        self._prepare()

    def manual_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Set up the predictor as nnU-Net does, and prepare the network."""
        super().manual_initialization(*args, **kwargs)
        self.configuration_manager = for_prediction(self.configuration_manager)
        self._prepare()

    def _folds(self, folder: str, use_folds: Sequence[int | str] | str | None, checkpoint_name: str) -> Sequence:
        """Return the folds that ``initialize_from_trained_model_folder`` loads."""
        if use_folds is None:
            return self.auto_detect_available_folds(folder, checkpoint_name)
        return [use_folds] if isinstance(use_folds, str) else use_folds

    def _prepare(self) -> None:
        self._bytes_of_pass = self._limit = None  # were those of another network
        if self.device.type == "cpu" and self.batch_size != 1:
            # with a batch size of 1 the results equal nnU-Net's to the last bit, which these kernels do not keep
            use_kernels(self.network)
        if self.use_compile and not isinstance(self.network, OptimizedModule):
            self.network = cast(nn.Module, torch.compile(self.network, dynamic=False))

    @property
    def _is_compiled(self) -> bool:
        return isinstance(self.network, OptimizedModule)

    def is_predicted(self, segmentation: Path, output: Path, save_probabilities: bool) -> bool:
        """Whether a segmentation is there, and all that would be written beside it.

        Args:
            segmentation: its file.
            output: path of the segmentation without its ending.
            save_probabilities: whether probabilities are written.
        """
        wanted = [segmentation]
        if save_probabilities:
            wanted.append(output.with_name(f"{output.name}.npz"))
        if self.save_uncertainty:
            wanted += map_files(output, self.dataset_json["file_ending"], len(self.list_of_parameters or ()) > 1)
        return all(path.is_file() for path in wanted)

    def _manage_input_and_output_lists(
        self,
        images: str | list[list[str]],
        outputs: str | list[str] | None,
        previous: str | None = None,
        overwrite: bool = True,
        part_id: int = 0,
        num_parts: int = 1,
        save_probabilities: bool = False,
    ) -> tuple:
        if isinstance(images, str):
            # nnU-Net starts twelve processes to list the files, and takes the end of any name for a channel's number
            images = list_cases(Path(images), self.dataset_json)
        # nnU-Net's own choice of what is left to predict does not know of the maps
        cases, truncated, stages = super()._manage_input_and_output_lists(
            images, outputs, previous, True, part_id, num_parts, save_probabilities
        )
        if not overwrite and truncated is not None:
            ending = self.dataset_json["file_ending"]
            left = [
                number
                for number, output in enumerate(truncated)
                if not self.is_predicted(Path(f"{output}{ending}"), Path(output), save_probabilities)
            ]
            cases, truncated, stages = ([values[number] for number in left] for values in (cases, truncated, stages))
            print(f"{len(left)} cases are left to predict")
        for files in cases:
            check_size(files)
            check_axes(files)
        check_whole([Path(path) for files in cases for path in files])
        return cases, truncated, stages

    @wraps(nnUNetPredictor.predict_from_files)  # nnU-Net inspects the names of this method's arguments
    def predict_from_files(self, *args: Any, **kwargs: Any) -> Any:
        """Predict as nnU-Net does, without worker processes if both numbers are 0, as in nnUNetv2_predict with -d.

        Raises:
            ValueError: if only one number of processes is 0, or the images are divided into parts without processes.
        """
        bound = signature(super().predict_from_files).bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        processes = [given[f"num_processes_{step}"] for step in ("preprocessing", "segmentation_export")]
        if 0 not in processes:
            with whole_json_files():
                return super().predict_from_files(*args, **kwargs)
        if any(processes) or given["num_parts"] > 1:
            raise ValueError(f"-npp {processes[0]} -nps {processes[1]}: both are 0, without -num_parts, or neither is")
        known = signature(self.predict_from_files_sequential).parameters
        return self.predict_from_files_sequential(**{name: value for name, value in given.items() if name in known})

    def predict_from_files_sequential(
        self,
        list_of_lists_or_source_folder: str | list[list[str]],
        output_folder_or_list_of_truncated_output_files: str | list[str] | None,
        save_probabilities: bool = False,
        overwrite: bool = True,
        folder_with_segs_from_prev_stage: str | None = None,
    ) -> list[Any]:
        """Predict as nnU-Net's method does, without worker processes.

        Raises:
            RuntimeError: if a cascade has no segmentations of its previous stage.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        output = output_folder_or_list_of_truncated_output_files
        if output is not None:
            record(self, given, Path(output) if isinstance(output, str) else Path(output[0]).parent)
        stage = self.configuration_manager.previous_stage_name
        if stage is not None and folder_with_segs_from_prev_stage is None:
            raise RuntimeError(
                f"the second model of a cascade requires the segmentations of the previous stage ({stage}); give their "
                "folder with -prev_stage_predictions"
            )
        cases, outputs, previous = self._manage_input_and_output_lists(
            list_of_lists_or_source_folder,
            output,
            folder_with_segs_from_prev_stage,
            overwrite,
            0,
            1,
            save_probabilities,
        )
        return self.predict_from_data_iterator(preprocess(self, cases, previous, outputs), save_probabilities, 0)

    def _internal_get_data_iterator_from_lists_of_filenames(
        self,
        cases: list[list[str]],
        previous: list[str | None] | None,
        outputs: list[str] | None,
        num_processes: int,
    ) -> Iterator[Item]:
        if len(cases) == 1:  # to start a process takes longer than to preprocess a small image
            return preprocess(self, cases, previous, outputs)
        return super()._internal_get_data_iterator_from_lists_of_filenames(cases, previous, outputs, num_processes)

    def predict_from_data_iterator(
        self,
        data_iterator: Iterator[Item],
        save_probabilities: bool = False,
        num_processes_segmentation_export: int = 0,
    ) -> list[Any]:
        """Predict preprocessed images as nnU-Net does, and export them slab by slab in this process.

        Returns:
            for each image None if its files are written, otherwise its labels, or labels and probabilities.
        """
        results = predict_images(self, data_iterator, save_probabilities)
        compute_gaussian.cache_clear()
        empty_cache(self.device)
        return results

    def predict_logits_from_preprocessed_data(self, data: Tensor) -> Tensor:
        """Predict an image as nnU-Net does; on a CPU, memory that it leaves is given back before the next one."""
        try:
            logits: Tensor = super().predict_logits_from_preprocessed_data(data)
            return logits
        finally:
            if self.device.type == "cpu":
                release_freed_memory()

    @torch.inference_mode()
    def predict_slabs(self, data: Tensor, take: Callable[[int, list[Tensor]], None]) -> None:
        """Predict a preprocessed image and hand on the logits slab by slab, in memory that its length does not change.

        All together, they are those of ``predict_logits_from_preprocessed_data`` for each fold alone.

        Args:
            data: (channels, *spatial).
            take: called with the index of a slab's first plane, along the first spatial axis, and the logits of each
                fold, (classes, planes, rows, columns), where they were summed up. After 0 all begin again: a GPU whose
                memory did not suffice.

        Raises:
            ValueError: if the image has other channels than the model, or the logits exceed float16.
        """
        self._check_channels(len(data))
        threads = torch.get_num_threads()
        torch.set_num_threads(min(default_num_processes, threads))
        try:
            self._predict_slabs(data, take)
        finally:
            torch.set_num_threads(threads)
            if self.device.type == "cpu":
                release_freed_memory()

    def _check_channels(self, count: int) -> None:
        """Raise ValueError unless a preprocessed image has as many channels as dataset.json says, if it does."""
        if not {"channel_names", "modality"} & set(self.dataset_json or ()):
            return
        expected = determine_num_input_channels(self.plans_manager, self.configuration_manager, self.dataset_json)
        if count != expected:
            images = channel_names(self.dataset_json)
            count -= expected - len(images)  # the others are of the stage before
            raise ValueError(f"the image has {count} channels, the model takes {len(images)} ({', '.join(images)})")

    def _predict_slabs(self, data: Tensor, take: Callable[[int, list[Tensor]], None]) -> None:
        self.network = self.network.to(self.device).eval()
        padded, inside = pad(data, self.configuration_manager.patch_size)
        slicers = self._internal_get_sliding_window_slicers(padded.shape[1:])
        with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():
            if self.perform_everything_on_device:
                try:
                    self._accumulate(padded.to(self.device), slicers, inside, self.device, take)
                    return
                except RuntimeError as error:
                    print(f"the sums do not fit on the device, so they are kept in main memory: {error}")
                empty_cache(self.device)  # outside of the handler, whose traceback holds tensors
            self._accumulate(padded, slicers, inside, torch.device("cpu"), take)

    def _accumulate(
        self,
        data: Tensor,
        slicers: Sequence[Slicer],
        inside: Sequence[slice],
        device: torch.device,
        take: Callable[[int, list[Tensor]], None],
    ) -> None:
        """Sum up tiles, stage by stage and in each fold by fold; ``inside`` is the part that is no padding."""
        folds = self.list_of_parameters or [None]
        heads, plane = self.label_manager.num_segmentation_heads, data.shape[2:]
        plane_bytes = 2 * heads * len(folds) * prod(plane)
        grouped, at_a_time = stages(slicers, plane_bytes), max(1, FINISHED_BYTES // plane_bytes)
        kept = max(planes_of(stage[-1])[1] - planes_of(stage[0])[0] for stage in grouped)
        sums = Accumulator(len(folds), heads, kept, plane, device)
        patch_size = tuple(self.configuration_manager.patch_size)
        gaussian = compute_gaussian(patch_size, value_scaling_factor=10, device=device) if self.use_gaussian else 1
        if len(folds) == 1:
            self._load(folds[0])
            everything = self._predict_tiles(data, slicers)  # passes cross the stages
        begun = 0
        with tqdm(total=len(slicers) * len(folds), disable=not self.allow_tqdm) as bar:
            for number, stage in enumerate(grouped):
                for fold, weights in enumerate(folds):
                    if len(folds) > 1:
                        self._load(weights)
                        everything = self._predict_tiles(data, stage)
                    for slicer, tile in zip(stage, everything, strict=False):
                        logits = tile[0].to(device)
                        sums.add(fold, slicer, logits.mul_(gaussian) if self.use_gaussian else logits, gaussian)
                        bar.update()
                until = planes_of(grouped[number + 1][0])[0] if number + 1 < len(grouped) else data.shape[1]
                while begun < until:
                    end = min(begun + at_a_time, until)
                    first, last = max(begun, inside[0].start), min(end, inside[0].stop)
                    finished = sums.finish(end)
                    if first < last:
                        cut = (slice(None), slice(first - begun, last - begun), *inside[1:])
                        take(first - inside[0].start, [logits[cut] for logits in finished])
                    begun = end

    def _load(self, weights: Mapping[str, Tensor] | None) -> None:
        if weights is not None:
            network = self.network._orig_mod if isinstance(self.network, OptimizedModule) else self.network
            network.load_state_dict(weights)
            # all folds run in one autocast, which caches the half precision weights of the fold before: it does not
            # notice that they change (PyTorch 2.8 caches in inference mode too)
            torch.clear_autocast_cache()

    # ---- passes ----

    def _internal_predict_sliding_window_return_logits(
        self, data: Tensor, slicers: Sequence[tuple], do_on_device: bool = True
    ) -> Tensor:
        data = data.to(self.device if do_on_device else "cpu")
        self._tiles = self._predict_tiles(data, slicers)
        try:
            return super()._internal_predict_sliding_window_return_logits(data, slicers, do_on_device)
        finally:
            self._tiles = iter(())

    def _internal_maybe_mirror_and_predict(self, x: Tensor) -> Tensor:
        return next(self._tiles)

    def _predict_tiles(self, data: Tensor, slicers: Sequence[tuple]) -> Iterator[Tensor]:
        """Compute the logits of each tile, the mean over flips.

        Args:
            data: (channels, *spatial).
            slicers: slices of ``data`` that are the tiles, in the order of the results.

        Yields:
            (1, classes, *patch_size) for each tile.
        """
        axes = [axis + 1 for axis in (self.allowed_mirroring_axes or () if self.use_mirroring else ())]
        flips = [flip for n in range(len(axes) + 1) for flip in combinations(axes, n)]
        tiles = (data[slicer].to(self.device) for slicer in slicers)
        patches = ((flip, torch.flip(tile, flip)) for tile in tiles for flip in flips)
        batch_size = self.choose_batch_size(data[slicers[0]][None])
        chosen: list[tuple[tuple[int, ...], Tensor]] = []
        mean: Tensor | None = None
        while chosen := chosen or list(islice(patches, batch_size)):
            logits = self._pass([patch for _, patch in chosen[:batch_size]], batch_size)
            if logits is None:
                self._limit = batch_size = batch_size // 2
                continue
            for (flip, _), one in zip(chosen, logits, strict=False):
                mean = one if mean is None else mean.add_(torch.flip(one, flip))
                if flip == flips[-1]:
                    yield (mean.div_(len(flips)) if axes else mean)[None]
                    mean = None
            chosen = chosen[batch_size:]

    def _pass(self, patches: list[Tensor], batch_size: int) -> Tensor | None:
        """Compute the logits of patches, (patches, classes, *patch_size); None if a batch exceeds the memory."""
        try:
            batch = torch.stack(patches)
            if self._is_compiled and len(batch) < batch_size:
                # another size would be compiled again
                batch = torch.cat([batch, batch.new_zeros(batch_size - len(batch), *batch.shape[1:])])
            return self.network(batch)
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
        # outside of the handler, whose traceback holds the tensors of the pass
        empty_cache(self.device)
        return None

    def choose_batch_size(self, patch: Tensor) -> int:
        """Choose the number of patches per pass of the loaded network.

        Args:
            patch: (1, channels, *patch_size).
        """
        patch_size = patch.shape[2:]
        if self.batch_size is not None:
            chosen = self.batch_size
        elif self.device.type != "cuda":
            chosen = cpu_batch_size(patch_size)
        else:
            if self._bytes_of_pass is None:
                network = self.network._orig_mod if isinstance(self.network, OptimizedModule) else self.network
                self._bytes_of_pass = bytes_of_pass(network, patch.to(self.device))
            chosen = fitting_batch_size(patch_size, self._bytes_of_pass, free_bytes(self.device))
        chosen = chosen if self._limit is None else min(chosen, self._limit)
        if self._is_compiled:
            # one size for all images
            self._limit = chosen if self.batch_size is not None else min(chosen, COMPILED_BATCH_SIZE)
            return self._limit
        return chosen
