"""Let an unmodified nnU-Net find this package's trainers and planners by name.

nnU-Net looks classes up by scanning its own folders. A ``.pth`` file in the wheel calls ``install`` when Python
starts; that puts a finder on ``sys.meta_path`` which waits for nnU-Net's look-up module and, once it is imported,
wraps its one function: names in ``CLASSES`` are answered from here, every other name is passed on to nnU-Net, and what
nnU-Net does not have either is looked up in what installed packages declare (``_plugins``).
It uses the standard library only, and imports neither torch nor nnU-Net before nnU-Net itself is imported.

Set ``NNUNET_TRANSFORMERS_HOOK=0`` to switch it off.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as typing's, which is not imported at every start of Python
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

SWITCH = "NNUNET_TRANSFORMERS_HOOK"
TARGET = "nnunetv2.utilities.find_class_by_name"
FUNCTION = "recursive_find_python_class"

# the schedule lengths, in epochs, of nnU-Net's own trainer variants
SCHEDULES = (1, 5, 10, 20, 50, 100, 250, 500, 750, 2000, 4000, 8000)
TRAINERS = {
    "nnUNetTrainerQTUNet": "nnunet_transformers.trainers.qt_unet",
    "nnUNetTrainerQTUNetThesis": "nnunet_transformers.trainers.qt_unet",
    "nnUNetTrainerVTUNet": "nnunet_transformers.trainers.vt_unet",
    "nnUNetTrainerUNet2022": "nnunet_transformers.trainers.unet2022",
    "nnUNetTrainerUNet2022Paper": "nnunet_transformers.trainers.unet2022",
    "nnUNetTrainerMiT": "nnunet_transformers.trainers.mit",
    "nnUNetTrainerMiTPaper": "nnunet_transformers.trainers.mit",
    "nnUNetTrainerSETRPUP": "nnunet_transformers.trainers.setr_pup",
    "nnUNetTrainerSETRPUPPaper": "nnunet_transformers.trainers.setr_pup",
    "nnUNetTrainerResNet50UNet": "nnunet_transformers.trainers.resnet_unet",
    "nnUNetTrainerResNet50UNetPaper": "nnunet_transformers.trainers.resnet_unet",
    "nnUNetTrainerResUnet": "nnunet_transformers.trainers.resunet",
    "nnUNetTrainerMedNeXt": "nnunet_transformers.trainers.mednext",
    "nnUNetTrainerPrimus": "nnunet_transformers.trainers.primus",
    "nnUNetTrainerSwinUNETR": "nnunet_transformers.trainers.unetr",
    "nnUNetTrainerUNETR": "nnunet_transformers.trainers.unetr",
    "nnUNetTrainerLinearProbe": "nnunet_transformers.trainers.linear_probe",
}
# trainers of networks that are not ours
STOCK_TRAINERS = {"nnUNetTrainerPretrained": "nnunet_transformers.trainers.pretrained"}
# those of the three networks that this package is about, which also have a demo and nnU-Net's benchmarks
MAIN_TRAINERS = ("nnUNetTrainerQTUNet", "nnUNetTrainerUNet2022", "nnUNetTrainerMiT")
# suffixes of the benchmarks
BENCHMARKS = ("", "_noDataLoading")
BENCHMARK_MODULE = "nnunet_transformers.trainers.benchmark"
PLANNERS = {
    "nnUNetPlannerQTUNetT": "nnunet_transformers.plans.qt_unet",
    "nnUNetPlannerQTUNetS": "nnunet_transformers.plans.qt_unet",
    "nnUNetPlannerQTUNetB": "nnunet_transformers.plans.qt_unet",
    "nnUNetPlannerVTUNetT": "nnunet_transformers.plans.vt_unet",
    "nnUNetPlannerVTUNetS": "nnunet_transformers.plans.vt_unet",
    "nnUNetPlannerVTUNetB": "nnunet_transformers.plans.vt_unet",
    "nnUNetPlannerUNet2022T": "nnunet_transformers.plans.unet2022",
    "nnUNetPlannerUNet2022B": "nnunet_transformers.plans.unet2022",
    "nnUNetPlannerUNet2022L": "nnunet_transformers.plans.unet2022",
    "nnUNetPlannerMiT7": "nnunet_transformers.plans.mit",
    "nnUNetPlannerMiT22": "nnunet_transformers.plans.mit",
    "nnUNetPlannerSETRPUP": "nnunet_transformers.plans.setr_pup",
    "nnUNetPlannerSETRPUPDINOv3S": "nnunet_transformers.plans.setr_pup",
    "nnUNetPlannerSETRPUPDINOv3B": "nnunet_transformers.plans.setr_pup",
    "nnUNetPlannerResNet50UNet": "nnunet_transformers.plans.resnet_unet",
    "nnUNetPlannerResUnet": "nnunet_transformers.plans.resunet",
    "nnUNetPlannerMedNeXtS": "nnunet_transformers.plans.mednext",
    "nnUNetPlannerMedNeXtB": "nnunet_transformers.plans.mednext",
    "nnUNetPlannerMedNeXtM": "nnunet_transformers.plans.mednext",
    "nnUNetPlannerMedNeXtL": "nnunet_transformers.plans.mednext",
    "nnUNetPlannerMedNeXtSK5": "nnunet_transformers.plans.mednext",
    "nnUNetPlannerMedNeXtBK5": "nnunet_transformers.plans.mednext",
    "nnUNetPlannerMedNeXtMK5": "nnunet_transformers.plans.mednext",
    "nnUNetPlannerMedNeXtLK5": "nnunet_transformers.plans.mednext",
    "nnUNetPlannerPrimusV3S": "nnunet_transformers.plans.primus",
    "nnUNetPlannerPrimusV3M": "nnunet_transformers.plans.primus",
    "nnUNetPlannerPrimusV3L": "nnunet_transformers.plans.primus",
    "nnUNetPlannerPrimusV2S": "nnunet_transformers.plans.primus",
    "nnUNetPlannerPrimusV2M": "nnunet_transformers.plans.primus",
    "nnUNetPlannerPrimusV2L": "nnunet_transformers.plans.primus",
    "nnUNetPlannerSwinUNETR": "nnunet_transformers.plans.unetr",
    "nnUNetPlannerSwinUNETRV2": "nnunet_transformers.plans.unetr",
    "nnUNetPlannerUNETR": "nnunet_transformers.plans.unetr",
}


def plans_name(planner: str) -> str:
    """Name of a planner's plans: ``nnUNetPlannerX`` makes ``nnUNetXPlans``."""
    return f"nnUNet{planner.removeprefix('nnUNetPlanner')}Plans"


def schedule_name(trainer: str, epochs: int) -> str:
    """Name of a trainer's shorter or longer schedule, as nnU-Net spells it."""
    return f"{trainer}_{epochs}epoch{'s' if epochs > 1 else ''}"


def demo_name(trainer: str) -> str:
    """Name of a trainer's short training for a first look."""
    return f"{trainer}Demo"


def benchmark_name(trainer: str, kind: str) -> str:
    """Name of a trainer's benchmark, one of ``BENCHMARKS``, as nnU-Net spells it."""
    return f"{trainer}Benchmark_5epochs{kind}"


CLASSES = {
    **TRAINERS,
    **{schedule_name(name, epochs): module for name, module in TRAINERS.items() for epochs in SCHEDULES},
    **{demo_name(name): TRAINERS[name] for name in MAIN_TRAINERS},
    **STOCK_TRAINERS,
    **{benchmark_name(name, kind): BENCHMARK_MODULE for name in MAIN_TRAINERS for kind in BENCHMARKS},
    **PLANNERS,
}

# trainers that build a network of their own
OWN_NETWORKS = ("nnUNetTrainerQTUNetThesis", "nnUNetTrainerLinearProbe")
# trainers, ours and nnU-Net's default, that build the network of the plan
PLANNED_NETWORKS = (
    "nnUNetTrainer",
    *(schedule_name("nnUNetTrainer", epochs) for epochs in SCHEDULES),
    *(name for name in CLASSES if name not in PLANNERS and not name.startswith(OWN_NETWORKS)),
)


def find(name: str) -> Any:
    """Import the planner or trainer of a name: this package's, or else one that an installed package declares.

    Returns:
        the class; None if there is none.
    """
    import warnings

    with warnings.catch_warnings():
        # said by a network of timm's, which timm imports with all of them
        warnings.filterwarnings("ignore", "`torch.jit.interface` is deprecated", FutureWarning)
        if name in CLASSES:
            from importlib import import_module

            return getattr(import_module(CLASSES[name]), name)
        from ._plugins import find_class

        return find_class(name)


def planner_names() -> list[str]:
    """Names of this package's planners and of those that installed packages declare."""
    from ._plugins import declared

    return list(dict.fromkeys((*PLANNERS, *declared("planners"))))


class _Finder:
    """Finds ``TARGET`` through the other finders and wraps its function once the module is executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TARGET:
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None
            if find_spec and not isinstance(finder, _Finder):
                spec = find_spec(fullname, path, target)
            if spec is not None:
                _wrap_on_execution(spec.loader)
                return spec
        return None


def _wrap_on_execution(loader: Any) -> None:
    try:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _wrap(module)

        loader.exec_module = exec_module
    except Exception:  # nnU-Net must work even if this hook does not
        pass


def _tell_mistakes_in_one_line() -> None:
    try:
        from . import _one_line

        _one_line.install()
    except Exception:  # nnU-Net must work even if this does not
        pass


def _wrap(module: ModuleType) -> None:
    try:
        original = getattr(module, FUNCTION)
        if getattr(original, "nnunet_transformers", False):
            return

        def recursive_find_python_class(folder: str, class_name: str, *args: Any, **kwargs: Any) -> Any:
            if class_name in CLASSES:
                _tell_mistakes_in_one_line()
                return find(class_name)
            found = original(folder, class_name, *args, **kwargs)
            if found is not None:
                return found
            try:
                found = find(class_name)
                if found is not None:  # of an installed package, which builds on this one
                    _tell_mistakes_in_one_line()
                elif not os.environ.get("nnUNet_extTrainer"):
                    from ._plugins import suggest

                    suggest(class_name)
                return found
            except Exception:  # nnU-Net goes on to the folders of nnUNet_extTrainer
                return None

        wrapper: Any = recursive_find_python_class
        wrapper.__doc__ = original.__doc__
        wrapper.__wrapped__ = original
        wrapper.nnunet_transformers = True
        setattr(module, FUNCTION, wrapper)
    except Exception:  # as above
        pass


def is_switched_off() -> bool:
    """Whether the user switched the hook off."""
    return os.environ.get(SWITCH, "").strip().lower() in ("0", "off", "false", "no")


def is_installed() -> bool:
    """Whether the hook is in place in this process."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def install() -> None:
    """Put the hook in place, unless it is there already or switched off. Never raises."""
    try:
        if is_switched_off() or is_installed():
            return
        sys.meta_path.insert(0, _Finder())
        if TARGET in sys.modules:
            _wrap(sys.modules[TARGET])
    except Exception:  # Python must start even if this hook does not
        pass
