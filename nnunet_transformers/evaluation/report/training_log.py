"""Read training curves from nnU-Net's text logs; its checkpoints hold them too, but have to be unpickled."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

# how the lines begin with which our trainers state them
VERSIONS, MEMORY = "Versions: ", "Peak GPU memory: "
_NUMBER = r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf)"
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d")


@dataclass
class Curves:
    """Values per completed epoch; their lists have the same length.

    Attributes:
        train_loss, val_loss, pseudo_dice, epoch_seconds: of each epoch; Dice per label.
        first, last: date and time of the first line and of the last epoch's end, as logged; empty if there is none.
        versions, memory: what our trainers log of the libraries and of the GPU's memory; empty for other trainers.
    """

    train_loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    pseudo_dice: list[list[float]] = field(default_factory=list)
    epoch_seconds: list[float] = field(default_factory=list)
    first: str = ""
    last: str = ""
    versions: str = ""
    memory: str = ""


def read_curves(fold_folder: Path) -> Curves:
    """Read the curves of a fold.

    A resumed training has several logs, and one that was begun anew leaves those of before: epochs of an earlier log
    count up to the one at which a later log begins.
    """
    curves = Curves()
    epochs: dict[int, dict] = {}
    for log in sorted(fold_folder.glob("training_log_*.txt"), key=_begun):
        epoch, begun = -1, ""
        for line in log.read_text(errors="replace").splitlines():
            time, _, message = line.partition(": ")
            at = match[0] if (match := _TIME.match(time)) else ""
            begun = begun or at
            curves.first = curves.first or at
            if match := re.fullmatch(r"Epoch (\d+)\s*", message):
                if epoch < 0:
                    epochs = {number: values for number, values in epochs.items() if number < int(match[1])}
                    curves = curves if epochs else Curves(first=begun, versions=curves.versions)
                epoch = int(match[1])
                epochs[epoch] = {}
            elif match := re.match(rf"(train_loss|val_loss|Epoch time:) ({_NUMBER})", message):
                epochs.get(epoch, {})[match[1]] = float(match[2])
                curves.last = at
            elif message.startswith("Pseudo dice"):
                text = message.replace("np.float32", "").replace("np.float64", "")
                epochs.get(epoch, {})["dice"] = [float(v) for v in re.findall(_NUMBER, text)]
            elif message.startswith(VERSIONS):
                curves.versions = message.removeprefix(VERSIONS).strip()
            elif message.startswith(MEMORY):
                curves.memory = message.removeprefix(MEMORY).strip()
    for _, values in sorted(epochs.items()):
        if {"train_loss", "val_loss", "dice", "Epoch time:"} <= values.keys():
            curves.train_loss.append(values["train_loss"])
            curves.val_loss.append(values["val_loss"])
            curves.pseudo_dice.append(values["dice"])
            curves.epoch_seconds.append(values["Epoch time:"])
    return curves


def _begun(log: Path) -> list[int]:
    """Return date and time in the name of a log: a copy has other times of its files."""
    return [int(number) for number in re.findall(r"\d+", log.name)]
