"""nnU-Net's own prediction commands, argument parser included, with a predictor of ours in the place of nnU-Net's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from nnunetv2.inference import predict_from_raw_data

from .predictor import BatchedPredictor

PROGRAM = "nnunet-transformers predict"


def predict(
    arguments: Sequence[str], batch_size: int | None = None, use_compile: bool = False, trust: bool = False
) -> None:
    """Run nnUNetv2_predict, or with -m nnUNetv2_predict_from_modelfolder.

    Args:
        arguments: of that command; -h prints its help.
        batch_size, use_compile, trust: of ``BatchedPredictor``.

    Raises:
        ValueError: if nnU-Net does not know an argument, or the device is not there.
        RuntimeError: if it does not accept what the arguments say.
    """

    class ConfiguredPredictor(BatchedPredictor):
        """What nnU-Net's command makes without knowing of these options."""

        def __init__(self, **options: Any) -> None:
            super().__init__(batch_size=batch_size, use_compile=use_compile, trust=trust, **options)

    with (
        _replaced(predict_from_raw_data, "nnUNetPredictor", ConfiguredPredictor),
        _replaced(argparse.ArgumentParser, "error", _refuse),
        _replaced(sys, "argv", [PROGRAM, *arguments]),
    ):
        entry_point = "predict_entry_point_modelfolder" if _names_folder(arguments) else "predict_entry_point"
        try:
            getattr(predict_from_raw_data, entry_point)()
        except (AssertionError, RuntimeError) as error:  # how nnU-Net says, in several lines, what is wrong
            if not str(error):
                raise
            raise RuntimeError(" ".join(str(error).split())) from error


def _names_folder(arguments: Sequence[str]) -> bool:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-m")
    return parser.parse_known_args(arguments)[0].m is not None


def _refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    raise ValueError(f"{message}; see `{PROGRAM} --help`")


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute that is another in here."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
