"""MGCA's losses between images and reports (https://arxiv.org/abs/2210.06044, section 3).

Embeddings need not be normalised: every function does it itself, for all but prototypes. With several processes give
``ita_loss`` and ``cpa_loss`` the embeddings of all of them (``distributed.gather``); ``cta_loss`` contrasts within each
sample.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn
from torch import Tensor


def ita_loss(image: Tensor, report: Tensor, temperature: float = 0.07) -> Tensor:
    """Instance-wise alignment: tell the report of an image among those of the batch, and the other way round.

    Args:
        image, report: (batch, dim).
        temperature: of the similarities.

    Returns:
        the sum of both cross-entropies; 2 ln(batch) by chance.
    """
    similarities = F.normalize(image, dim=-1) @ F.normalize(report, dim=-1).T / temperature
    targets = torch.arange(len(image), device=image.device)
    return F.cross_entropy(similarities, targets) + F.cross_entropy(similarities.T, targets)


def token_weights(attention: Tensor) -> Tensor:
    """Weights of tokens that no single one dominates.

    Args:
        attention: (batch, tokens), what the [CLS] token of the last layer pays to each, averaged over the heads; 0 for
            padding.

    Returns:
        (batch, tokens): clipped to the 10 % and 90 % quantiles of what is not 0, and with a sum of 1 for each sample.
    """
    present = attention.detach().masked_fill(attention == 0, torch.nan)
    low, high = (present.nanquantile(q, dim=1, keepdim=True) for q in (0.1, 0.9))
    clipped = present.clamp(low, high).nan_to_num(0.0)
    return clipped / clipped.sum(dim=1, keepdim=True)


def cta_loss(
    patches: Tensor,
    words: Tensor,
    patch_weights: Tensor | None,
    word_weights: Tensor,
    padding: Tensor,
    temperature: float = 0.1,
    reference_compat: bool = False,
) -> Tensor:
    """Token-wise alignment: each word with what it attends to in its image, each patch with that in its report.

    Args:
        patches: (batch, patches, dim).
        words: (batch, words, dim).
        patch_weights: (batch, patches) with a sum of 1, of a ViT; the same for all if None.
        word_weights: (batch, words) with a sum of 1; 0 for padding.
        padding: (batch, words), true where there is no word.
        temperature: of attention and of similarities.
        reference_compat: as the release: padding stays among the words that a word is told from, and what a ViT's
            patch attends to is not normalised.

    Returns:
        the sum of both directions, each the mean of its two cross-entropies.
    """
    patches, words = F.normalize(patches, dim=-1), F.normalize(words, dim=-1)
    word_context = F.normalize(_attention(words, patches, None, temperature) @ patches, dim=-1)
    patch_context = _attention(patches, words, padding, temperature) @ words
    if not reference_compat or patch_weights is None:
        patch_context = F.normalize(patch_context, dim=-1)
    if patch_weights is None:
        patch_weights = torch.full_like(patches[..., 0], 1 / patches.shape[1])
    left_out = None if reference_compat else padding
    return _contrast(words, word_context, word_weights, left_out, temperature) + _contrast(
        patches, patch_context, patch_weights, None, temperature
    )


def word_attention(words: Tensor, patches: Tensor, temperature: float = 0.1) -> Tensor:
    """Where each word finds itself in the image.

    Args:
        words: (batch, words, dim).
        patches: (batch, patches, dim).
        temperature: as ``cta_loss`` has it.

    Returns:
        (batch, words, patches), each word's with a sum of 1.
    """
    return _attention(F.normalize(words, dim=-1), F.normalize(patches, dim=-1), None, temperature)


def _attention(queries: Tensor, keys: Tensor, padding: Tensor | None, temperature: float) -> Tensor:
    """What each query pays to each key, (batch, queries, keys)."""
    scores = queries @ keys.transpose(1, 2) / temperature
    if padding is not None:
        scores = scores.masked_fill(padding[:, None], -torch.inf)
    return scores.softmax(dim=-1)


def _contrast(tokens: Tensor, context: Tensor, weights: Tensor, left_out: Tensor | None, temperature: float) -> Tensor:
    """Weighted cross-entropies of telling a token's own context among those of its sample, and the other way round."""
    similarities = tokens @ context.transpose(1, 2) / temperature
    targets = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
    losses = []
    for logits in (similarities, similarities.transpose(1, 2)):
        if left_out is not None:
            # finite, so that a row of padding, whose weight is 0, has no gradient of NaN
            logits = logits.masked_fill(left_out[:, None], torch.finfo(logits.dtype).min)
        losses.append((F.cross_entropy(logits.transpose(1, 2), targets, reduction="none") * weights).sum(1).mean())
    return sum(losses) / 2


def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Soft assignment of samples to prototypes of equal use (SwAV, https://arxiv.org/abs/2006.09882; lightly's).

    Args:
        scores: (batch, prototypes), similarities.
        epsilon: softness.
        iterations: of normalising by turns.

    Returns:
        (batch, prototypes), rows with a sum of 1, without gradient.
    """
    return lightly_sinkhorn(scores, iterations, epsilon)


def cpa_loss(
    image: Tensor,
    report: Tensor,
    prototypes: Tensor,
    temperature: float = 0.2,
    epsilon: float = 0.05,
    iterations: int = 3,
) -> Tensor:
    """Disease-level alignment: predict the prototypes of a report from its image, and the other way round.

    Args:
        image, report: (batch, dim).
        prototypes: (prototypes, dim), normalised (lightly's ``SwaVPrototypes.normalize``), which is not done here.
        temperature: of the predictions.
        epsilon, iterations: of ``sinkhorn``.
    """
    scores = [F.normalize(x, dim=-1) @ prototypes.T for x in (image, report)]
    codes = [sinkhorn(s.detach(), epsilon, iterations) for s in scores]
    # F.cross_entropy with probabilities as targets is their mean over the batch
    return sum(F.cross_entropy(s / temperature, code) for s, code in zip(scores, reversed(codes), strict=True)) / 2
