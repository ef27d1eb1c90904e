"""Front matter of a model card: the lines of YAML by which the Hugging Face hub lists and compares models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from huggingface_hub import EvalResult, ModelCardData

LIBRARY, TASK = "nnunet-transformers", "image-segmentation"
TAGS = ("nnunet", "medical")
# identifiers of https://huggingface.co/docs/hub/repositories-licenses; the hub refuses a card with another
LICENCES = """
afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0
cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 gfdl gpl gpl-2.0 gpl-3.0 isc lgpl
lgpl-2.1 lgpl-3.0 mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail osl-3.0 pddl unlicense zlib
"""
UNKNOWN, OTHER = "unknown", "other"
# names of the hub's datasets; it refuses others
DATASET = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", flags=re.ASCII)
# what neither YAML nor a reader of Markdown that shows the front matter as text takes for more than letters
UNUSUAL = re.compile(r"[^\w .,:()/+-]+")


def card_data(
    licence: str, tags: Iterable[str], datasets: Iterable[str], name: str = "", results: Sequence[EvalResult] = ()
) -> ModelCardData:
    """Return the front matter of weights.

    Args:
        licence: licence of the weights in any spelling; empty if it is not stated.
        tags: words to find it by, besides ``TAGS``.
        datasets: names of the training data; those that cannot be names on the hub are left out.
        name: name of the model, which results need.
        results: scores.
    """
    identifier = licence_identifier(licence)
    return ModelCardData(
        license=identifier,
        license_name=plain(licence) if identifier == OTHER else None,
        library_name=LIBRARY,
        pipeline_tag=TASK,
        tags=[*dict.fromkeys([*TAGS, *filter(None, map(plain, tags))])],
        datasets=[name for name in datasets if DATASET.fullmatch(name)] or None,
        model_name=plain(name) if results else None,
        eval_results=list(results) or None,
    )


def licence_identifier(licence: str) -> str:
    """Return the hub's identifier of a licence, such as cc-by-4.0 of "CC BY 4.0", or that of others or none."""
    identifier = re.sub(r"[\s_-]+", "-", licence.strip().lower())
    return identifier if identifier in LICENCES.split() else OTHER if identifier else UNKNOWN


def dice_result(dataset: str, configuration: str, name: str, value: float) -> EvalResult:
    """Return a Dice of nnU-Net's validation as an entry of the front matter.

    Args:
        dataset: name of the dataset.
        configuration: configuration of the plan.
        name: what the value is of.
        value: mean over labels and cases.
    """
    return EvalResult(
        task_type=TASK,
        dataset_type=plain(dataset),
        dataset_name=plain(dataset),
        dataset_config=plain(configuration),
        dataset_split="validation",
        metric_type="dice",
        metric_name=plain(name),
        metric_value=round(value, 4),
    )


def plain(text: object) -> str:
    """Return a text from a file in one line, without signs that mean something in YAML or Markdown."""
    return UNUSUAL.sub("-", " ".join(str(text).split()))
