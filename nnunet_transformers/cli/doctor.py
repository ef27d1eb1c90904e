"""Commands ``doctor`` and ``trainers-path``: checks of the installation."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from shlex import quote

import typer

from .. import __version__, discovery
from .._processes import available_cores
from ._findings import OK, PROBLEM, WARNING, Finding
from ._plugin_checks import check_hidden_classes, check_plugins

commands = typer.Typer()

# for installs where the hook is switched off
TRAINER_FOLDER = Path(__file__).parent.parent / "ext_trainers"
SHARED_MEMORY = Path("/dev/shm")
# bytes; of Docker's containers the shared memory has 64 MB
LITTLE_SPACE, LITTLE_SHARED_MEMORY = 5e9, 256e6
COLOURS = {OK: typer.colors.GREEN, WARNING: typer.colors.YELLOW, PROBLEM: typer.colors.RED}


def check_versions() -> Iterator[Finding]:
    yield Finding(OK, f"nnunet-transformers {__version__}, Python {platform.python_version()}")
    for package in ("nnunetv2", "torch", "torchvision", "timm", "dynamic-network-architectures"):
        try:
            yield Finding(OK, f"{package} {version(package)}")
        except PackageNotFoundError:
            yield Finding(PROBLEM, f"{package} is not installed", "pip install nnunet-transformers")
    try:
        release = tuple(int(part) for part in version("nnunetv2").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return
    if release != (2, 8):
        yield Finding(WARNING, "this version needs nnunetv2 2.8", "pip install 'nnunetv2>=2.8,<2.9'")


def check_imports() -> Iterator[Finding]:
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        yield Finding(
            PROBLEM,
            f"torchvision does not load ({error}), and nnU-Net finds no trainer without it",
            "install torch and torchvision from the same source, both with or both without CUDA",
        )


def check_discovery() -> Iterator[Finding]:
    if discovery.is_switched_off():
        yield Finding(
            WARNING,
            f"the hook is switched off by {discovery.SWITCH}={os.environ[discovery.SWITCH]}; planners are not found",
            "unset it; for trainers alone: export nnUNet_extTrainer=$(nnunet-transformers trainers-path)",
        )
        return
    if not discovery.is_installed():
        remedy = "pip install --force-reinstall --no-deps nnunet-transformers"
        if sys.flags.no_site:
            remedy = "start Python without -S"
        yield Finding(PROBLEM, "the hook did not run when Python started", remedy)
        return
    try:
        from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

        missing = [name for name in discovery.CLASSES if recursive_find_python_class("", name, None) is None]
    except Exception as error:
        yield Finding(PROBLEM, f"nnU-Net's look-up fails: {error}", "pip install --force-reinstall nnunet-transformers")
        return
    if missing:
        yield Finding(PROBLEM, f"not found by nnU-Net: {', '.join(missing)}", "reinstall nnunet-transformers")
    else:
        yield Finding(
            OK, f"nnU-Net finds our {len(discovery.PLANNERS)} planners and {len(discovery.TRAINERS)} trainers"
        )


def check_shadowing() -> Iterator[Finding]:
    """Find forks that install a package nnunetv2 of their own over nnU-Net's."""
    providers = sorted(set(packages_distributions().get("nnunetv2", ())))
    if len(providers) > 1:
        yield Finding(
            PROBLEM,
            f"the package nnunetv2 comes from {' and '.join(providers)}, of which only one can be imported",
            "keep one of them in this environment, nnunetv2 for this plugin",
        )


def check_trainer_folders() -> Iterator[Finding]:
    """Check nnUNet_extTrainer: nnU-Net imports every file in its folders, under names that cannot be pickled."""
    for entry in filter(None, os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)):
        folder = Path(entry)
        if not folder.is_dir():
            yield Finding(PROBLEM, f"nnUNet_extTrainer names {entry}, which is not a folder", "correct or unset it")
        elif folder.resolve() != TRAINER_FOLDER and (folder / "__init__.py").is_file():
            yield Finding(
                WARNING,
                f"nnUNet_extTrainer names the package folder {entry}; its modules cannot be pickled from there",
                "name a folder with a file that imports the trainers from the installed package",
            )
        elif (folder / "nnunet_transformers").is_dir():
            yield Finding(
                WARNING,
                f"nnUNet_extTrainer names {entry}, which holds whole packages; nnU-Net imports every file in it",
                "export nnUNet_extTrainer=$(nnunet-transformers trainers-path), or unset it",
            )


def check_folders() -> Iterator[Finding]:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        value = os.environ.get(variable)
        if not value:
            yield Finding(PROBLEM, f"{variable} is not set", f"export {variable}=/path/to/folder")
        elif not Path(value).is_dir():
            # a folder at the root is a variable that was put together from an empty one
            place = Path(value).absolute()
            is_plausible = place.parent.is_dir() and len(place.parts) > 2 and not os.path.lexists(place)
            remedy = f"mkdir {quote(value)}" if is_plausible else f"export {variable}=/path/to/folder, one that exists"
            yield Finding(PROBLEM, f"{variable} is {value}, which is not a folder", remedy)
        elif variable != "nnUNet_raw" and not os.access(value, os.W_OK):
            yield Finding(PROBLEM, f"{variable} is {value}, which cannot be written", "choose another folder")
        else:
            yield Finding(OK, f"{variable} = {value}")


def check_space() -> Iterator[Finding]:
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        folder = os.environ.get(variable)
        if folder and Path(folder).is_dir() and (free := shutil.disk_usage(folder).free) < LITTLE_SPACE:
            yield Finding(WARNING, f"{free / 1e9:.1f} GB are free in {variable}", "free some, or choose another disk")
    if SHARED_MEMORY.is_dir() and (size := shutil.disk_usage(SHARED_MEMORY).total) < LITTLE_SHARED_MEMORY:
        yield Finding(
            WARNING,
            f"{SHARED_MEMORY} has {size / 1e6:.0f} MB, too few for the batches of several loaders",
            "start the container with --shm-size=8g or --ipc=host; otherwise set nnUNet_n_proc_DA=1 and --workers 0",
        )


def check_loaders() -> Iterator[Finding]:
    if os.environ.get("nnUNet_n_proc_DA") == "0":
        yield Finding(
            WARNING, "nnUNet_n_proc_DA is 0, with which nnU-Net's planning fails", "set it to 1 or more to plan"
        )


def check_device() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        yield Finding(OK, f"{torch.cuda.get_device_name(0)}, {memory:.0f} GB; plan with -gpu_memory_target to fit")
    elif torch.backends.mps.is_available():
        yield Finding(OK, "Apple GPU: pass -device mps")
    else:
        yield Finding(WARNING, f"no GPU: pass -device cpu ({available_cores()} cores); full training takes weeks")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_versions,
    check_imports,
    check_discovery,
    check_plugins,
    check_hidden_classes,
    check_shadowing,
    check_trainer_folders,
    check_folders,
    check_space,
    check_loaders,
    check_device,
)


@commands.command()
def doctor() -> None:
    """Check versions, discovery, folders and device; report problems and their remedies."""
    findings = [finding for check in CHECKS for finding in check()]
    for finding in findings:
        typer.secho(f"{finding.state:8}", fg=COLOURS[finding.state], nl=False)
        print(finding.text)
        if finding.remedy:
            print(f"{'':8}-> {finding.remedy}")
    problems, warnings = (sum(finding.state == state for finding in findings) for state in (PROBLEM, WARNING))
    counts = ((problems, "problem"), (warnings, "warning"))
    found, warned = (f"{number or 'no'} {what}{'s' * (number != 1)}" for number, what in counts)
    print(f"{found} found" + f", {warned}" * (warnings > 0))
    raise typer.Exit(int(problems > 0))


@commands.command("trainers-path")
def trainers_path() -> None:
    """Print the folder for nnUNet_extTrainer, for installs where the hook is switched off."""
    print(TRAINER_FOLDER)
