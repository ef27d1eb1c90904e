"""One line for a user's mistake in nnU-Net's own commands, which show a traceback for every error.

It is put in place when one of nnU-Net's commands asks for a planner or trainer of this package, and tells what this
package raises on purpose, and a few of nnU-Net's errors that have a remedy here. Every other error keeps its traceback.
Standard library only, as ``discovery``, which installs it.
"""

from __future__ import annotations

import json
import linecache
import os
import re
import sys
from pathlib import Path

TYPE_CHECKING = False  # as typing's, which is not imported at every start of Python
if TYPE_CHECKING:
    from types import TracebackType

PROGRAMS = "nnUNetv2_"
PACKAGE = str(Path(__file__).parent) + os.sep
# what nnU-Net says where a planner or trainer was not found, whose closest names have been printed
NOT_FOUND = re.compile(r"Could not find requested nnunet trainer|'NoneType' object is not callable")
OTHER_WEIGHTS = re.compile(r"pretrained (model|weights) do(es)? not seem to be\s+compatible|^'network_weights'$", re.I)
SHOWN = re.compile(r"Requested configuration .* not found in plans|dataset_name_or_id must either")
_suggested: set[str] = set()


def install() -> None:
    """Tell mistakes in one line, if this process is one of nnU-Net's commands and nobody else shows its errors."""
    if _program().startswith(PROGRAMS) and sys.excepthook is sys.__excepthook__:
        sys.excepthook = show


def suggested(name: str) -> None:
    """Remember that the closest names to one that is not found were printed, which is all that there is to say."""
    _suggested.add(name)
    install()


def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a mistake in one line, and any other error with its traceback: a function for ``sys.excepthook``."""
    line = told(error, trace)
    if line is None:
        sys.__excepthook__(kind, error, trace)
    elif line:
        print(f"error: {line}", file=sys.stderr)


def told(error: BaseException, trace: TracebackType | None) -> str | None:
    """Return the line for a mistake; empty if it was printed already, None for any other error."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted" + (
            "; --c goes on from the last checkpoint, if there is one" if _program() == "nnUNetv2_train" else ""
        )
    text = " ".join(str(error).split())
    if isinstance(error, (ValueError, OSError, RuntimeError, ImportError)) and _is_raised_here(trace):
        return text
    if _suggested and NOT_FOUND.search(text):
        return ""
    if SHOWN.search(text):
        return text
    if OTHER_WEIGHTS.search(text):
        return (
            "the file of -pretrained_weights is not of the whole network: `nnunet-transformers attach FILE -d DATASET "
            "-p PLANS -o NAME` writes a plan that starts from what fits"
        )
    if "must inherit from 'nnUNetTrainer'" in text:
        return "-tr takes a trainer, and this is a planner: its name begins with nnUNetTrainer"
    if "unexpected keyword argument 'preprocessor_name'" in text:
        return "-pl takes a planner, and this is a trainer: its name begins with nnUNetPlanner"
    if isinstance(error, TypeError) and _passes(trace, "get_network_from_plans"):
        return f"the plan's arch_kwargs describe no network that can be built: {text}; correct them, or plan again"
    return _missing(error, text, trace)


def _missing(error: BaseException, text: str, trace: TracebackType | None) -> str | None:
    """The line for a dataset or plan that is missing or damaged, with those that are there, or the command for it."""
    from .plans.plan_files import dataset_name, load_plans

    try:
        if found := re.match(r"Could not find a dataset with the ID (\d+)", text):
            dataset_name(found[1])
        elif (file := _local(trace, "plans_file")) and (
            isinstance(error, json.JSONDecodeError) or getattr(error, "filename", None) == file
        ):
            load_plans(Path(file).parent, Path(file).stem)
    except (ValueError, OSError) as known:
        return str(known)
    return None


def _local(trace: TracebackType | None, name: str) -> str | None:
    """A text that a function on the way to the error has in a variable."""
    found = None
    while trace is not None:
        found = trace.tb_frame.f_locals.get(name, found)
        trace = trace.tb_next
    return found if isinstance(found, str) else None


def _passes(trace: TracebackType | None, function: str) -> bool:
    """Whether a function is on the way to the error."""
    while trace is not None and trace.tb_frame.f_code.co_name != function:
        trace = trace.tb_next
    return trace is not None


def _is_raised_here(trace: TracebackType | None) -> bool:
    """Whether this package raised an error on purpose, and no function that it called."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not trace.tb_frame.f_code.co_filename.startswith(PACKAGE):
        return False
    return linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno).lstrip().startswith("raise ")


def _program() -> str:
    return Path(sys.argv[0]).name if sys.argv else ""
