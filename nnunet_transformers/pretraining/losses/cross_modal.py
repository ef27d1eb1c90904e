"""MGCA's losses between images and reports (https://arxiv.org/abs/2210.06044, section 3).

The functions normalise embeddings, but not prototypes. With several processes pass ``ita_loss`` and ``cpa_loss`` the
embeddings of all of them (``runs.distributed.gather``); ``cta_loss`` contrasts within each sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn
from torch import Tensor, nn


def ita_loss(image: Tensor, report: Tensor, temperature: float = 0.07) -> Tensor:
    """Compute instance-wise alignment (ITA): contrast image and report with the others of the batch, both ways.

    Args:
        image, report: (batch, dim).
        temperature: of the similarities.

    Returns:
        the sum of both cross-entropies; 2 ln(batch) by chance.

    Examples:
        >>> ita_loss(torch.ones(4, 8), torch.ones(4, 8))
        tensor(2.7726)
    """
    similarities = F.normalize(image, dim=-1) @ F.normalize(report, dim=-1).T / temperature
    targets = torch.arange(len(image), device=image.device)
    return F.cross_entropy(similarities, targets) + F.cross_entropy(similarities.T, targets)


def at_least_single(x: Tensor) -> Tensor:
    """Convert half precision to single precision: the exponential of similarities over a temperature overflows."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def token_weights(attention: Tensor) -> Tensor:
    """Compute CTA's token weights from attention, clipped so that no single token dominates.

    Args:
        attention: (batch, tokens), attention of the [CLS] token in the last layer, averaged over the heads; 0 for
            padding.

    Returns:
        (batch, tokens): attention clipped to the 10 % and 90 % quantiles of its non-zero entries, with sum 1 per
        sample.

    Examples:
        >>> token_weights(torch.tensor([[1.0, 1.0, 1.0, 0.0]]))
        tensor([[0.3333, 0.3333, 0.3333, 0.0000]])
    """
    attention = at_least_single(attention.detach())
    present = attention.masked_fill(attention == 0, torch.nan)
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
    attention: Sequence[nn.MultiheadAttention] = (),
) -> Tensor:
    """Compute token-wise alignment (CTA): contrast words with attended patches, and patches with attended words.

    Args:
        patches: (batch, patches, dim).
        words: (batch, words, dim).
        patch_weights: (batch, patches) with sum 1, of a ViT; uniform if None.
        word_weights: (batch, words) with sum 1; 0 for padding.
        padding: (batch, words), true for padding.
        temperature: of attention and of similarities.
        reference_compat: reproduce the release: padding counts among the negatives of a word, and the attended words
            of a ViT's patch are not normalised.
        attention: attention of words to patches and of patches to words, with learned projections (the paper's Q, K, V
            and its supplement's table 5), batch first; by default the tokens themselves are queries, keys and values,
            as in the release's default.

    Returns:
        the sum of both directions, each the mean of its two cross-entropies.

    Examples:
        >>> patches, words = torch.ones(2, 9, 8), torch.ones(2, 3, 8)
        >>> word_weights, padding = torch.full((2, 3), 1 / 3), torch.zeros(2, 3, dtype=torch.bool)
        >>> cta_loss(patches, words, None, word_weights, padding)  # ln(9) + ln(3)
        tensor(3.2958)
    """
    patches, words = F.normalize(patches, dim=-1), F.normalize(words, dim=-1)
    if attention:
        of_words, of_patches = attention
        word_context, _ = of_words(words, patches, patches, need_weights=False)
        patch_context, _ = of_patches(patches, words, words, key_padding_mask=padding, need_weights=False)
    else:
        word_context = _attention(words, patches, None, temperature) @ patches
        patch_context = _attention(patches, words, padding, temperature) @ words
    word_context = F.normalize(word_context, dim=-1)
    if not reference_compat or patch_weights is None:
        patch_context = F.normalize(patch_context, dim=-1)
    if patch_weights is None:
        patch_weights = torch.full_like(patches[..., 0], 1 / patches.shape[1])
    ignored = None if reference_compat else padding
    return _contrast(words, word_context, word_weights, ignored, temperature) + _contrast(
        patches, patch_context, patch_weights, None, temperature
    )


def word_attention(words: Tensor, patches: Tensor, temperature: float = 0.1) -> Tensor:
    """Compute CTA's attention of words to patches.

    Args:
        words: (batch, words, dim).
        patches: (batch, patches, dim).
        temperature: as in ``cta_loss``.

    Returns:
        (batch, words, patches), with sum 1 over the patches.
    """
    return _attention(F.normalize(words, dim=-1), F.normalize(patches, dim=-1), None, temperature)


def _attention(queries: Tensor, keys: Tensor, padding: Tensor | None, temperature: float) -> Tensor:
    """Compute the attention of each query to each key, (batch, queries, keys)."""
    scores = queries @ keys.transpose(1, 2) / temperature
    if padding is not None:
        scores = scores.masked_fill(padding[:, None], -torch.inf)
    return scores.softmax(dim=-1)


def _contrast(tokens: Tensor, context: Tensor, weights: Tensor, padding: Tensor | None, temperature: float) -> Tensor:
    """Contrast each token with its own context among the contexts of its sample, and vice versa, weighted."""
    similarities = tokens @ context.transpose(1, 2) / temperature
    targets = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
    losses = []
    for logits in (similarities, similarities.transpose(1, 2)):
        if padding is not None:
            # a finite value: -inf would give rows of padding, whose weight is 0, a NaN gradient
            logits = logits.masked_fill(padding[:, None], torch.finfo(logits.dtype).min)
        losses.append((F.cross_entropy(logits.transpose(1, 2), targets, reduction="none") * weights).sum(1).mean())
    return torch.stack(losses).mean()


def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Assign samples softly to equally used prototypes (SwAV, https://arxiv.org/abs/2006.09882) by lightly's function.

    Args:
        scores: (batch, prototypes), similarities.
        epsilon: entropy regularisation.
        iterations: of alternating normalisation.

    Returns:
        (batch, prototypes), rows with sum 1, without gradient.

    Examples:
        >>> sinkhorn(torch.zeros(2, 4))
        tensor([[0.2500, 0.2500, 0.2500, 0.2500],
                [0.2500, 0.2500, 0.2500, 0.2500]])
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
    """Compute prototype alignment (CPA): predict the prototypes of a report from its image, and vice versa.

    Args:
        image, report: (batch, dim).
        prototypes: (prototypes, dim), normalised by the caller.
        temperature: of the predictions.
        epsilon, iterations: of ``sinkhorn``.

    Examples:
        >>> cpa_loss(torch.ones(2, 8), torch.ones(2, 8), torch.zeros(4, 8))  # ln(4)
        tensor(1.3863)
    """
    scores = [F.normalize(x, dim=-1) @ prototypes.T for x in (image, report)]
    codes = [sinkhorn(s.detach(), epsilon, iterations) for s in scores]
    # F.cross_entropy with probabilities as targets is their mean over the batch
    losses = [F.cross_entropy(s / temperature, code) for s, code in zip(scores, reversed(codes), strict=True)]
    return torch.stack(losses).mean()
