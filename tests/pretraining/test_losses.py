"""Losses against values computed by the papers' releases, and against their definitions."""

from __future__ import annotations

import doctest
import math
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_transformers.pretraining.losses import (
    CASA,
    CentredCrossEntropy,
    cosine_loss,
    cpa_loss,
    cta_loss,
    info_nce_loss,
    ita_loss,
    masked_reconstruction_loss,
    point_contrast,
    sinkhorn,
    token_weights,
)
from tests.released import DATA

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def mgca():
    return torch.load(DATA / "mgca_losses.pt", weights_only=True)


@pytest.fixture(scope="module")
def alice():
    return torch.load(DATA / "alice_losses.pt", weights_only=True)


EXAMPLES = (
    "losses.cross_dimension",
    "losses.cross_modal",
    "losses.masked_reconstruction",
    "losses.point_contrast",
    "losses.semantic_alignment",
    "patchify",
)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name):
    module = import_module(f"nnunet_transformers.pretraining.{name}")
    results = doctest.testmod(module, extraglobs={"torch": torch})
    assert results.attempted
    assert not results.failed


def test_point_contrast_takes_the_hardest_cells_of_all_volumes():
    rng = torch.Generator().manual_seed(0)
    points, matches, cells, others = (torch.randn(n, 4, generator=rng, dtype=torch.float64) for n in (3, 3, 5, 6))
    distances = torch.linspace(0, 14, 15, dtype=torch.float64).view(3, 5)
    cells[4] = 3 * points[0]  # the hardest of the first point, at the smallest distance of a negative
    loss = point_contrast(points, matches, cells, distances, 4.0, 2, 0.5, others)
    expected = []
    for i in range(3):
        far = [points[i] @ cells[j] for j in range(5) if distances[i, j] >= 4.0]
        hardest = sorted([*far, *(points[i] @ other for other in others)], reverse=True)[:2]
        logits = torch.stack([points[i] @ matches[i], *hardest]) / 0.5
        expected.append(logits.logsumexp(0) - logits[0])
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_token_weights_are_constants_in_single_precision():
    attention = torch.rand(2, 6, dtype=torch.float16, requires_grad=True)
    weights = token_weights(attention)
    assert weights.dtype == torch.float32
    assert not weights.requires_grad


class TestMGCA:
    @pytest.mark.parametrize("case", ["vit_pad", "resnet_pad"])
    def test_release(self, mgca, case):
        golden = mgca["mgca"][case]
        given = golden["inputs"]
        # the release normalises its prototypes in place: its gradient is with respect to normalised prototypes
        leaves = {k: given[k].clone() for k in golden["grads_wrt"]}
        leaves["prototypes"] = F.normalize(leaves["prototypes"], dim=-1)
        for leaf in leaves.values():
            leaf.requires_grad_()
        patch_weights = token_weights(given["vit_attention_map"][:, :, 0, 1:].mean(1)) if given["vit"] else None
        weights = (patch_weights, token_weights(given["word_attn"]), given["pad_mask"])
        losses = {
            "ita": ita_loss(leaves["img"], leaves["report"]),
            "cta": cta_loss(leaves["patch"], leaves["word"], *weights, reference_compat=True),
            "cpa": cpa_loss(leaves["img"], leaves["report"], leaves["prototypes"]),
        }
        for name, loss in losses.items():
            torch.testing.assert_close(loss, golden["outputs"][name], **CLOSE)
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for gradient, expected in zip(gradients, golden["grads"][name], strict=True):
                if expected is not None:
                    torch.testing.assert_close(gradient, expected, **CLOSE)
        scores = F.normalize(given["img"], dim=-1) @ golden["outputs"]["prototypes_normalised"].T
        torch.testing.assert_close(sinkhorn(scores), golden["outputs"]["img_code"], **CLOSE)

    def test_sinkhorn(self, mgca):
        golden = mgca["sinkhorn"]
        for iterations, codes in golden["codes"].items():
            torch.testing.assert_close(sinkhorn(golden["scores"], golden["eps"], int(iterations)), codes, **CLOSE)

    def test_padding_does_not_matter(self):
        torch.manual_seed(0)
        patches, words, weights = torch.randn(2, 6, 8), torch.randn(2, 5, 8), torch.rand(2, 5)
        weights[:, 3:] = 0
        weights = weights / weights.sum(1, keepdim=True)
        padding = torch.tensor([[False, False, False, True, True]] * 2)
        full = cta_loss(patches, words.requires_grad_(), None, weights, padding)
        short = cta_loss(patches, words[:, :3], None, weights[:, :3], padding[:, :3])
        torch.testing.assert_close(full, short)
        released = cta_loss(patches, words, None, weights, padding, reference_compat=True)
        assert not torch.isclose(full, released)
        (gradient,) = torch.autograd.grad(full, words)
        assert gradient.isfinite().all()
        assert (gradient[:, 3:] == 0).all()

    def test_weights_are_clipped(self):
        attention = torch.ones(1, 22)
        attention[0, 5], attention[0, 20:] = 100, 0
        weights = token_weights(attention)
        assert weights.sum() == pytest.approx(1)
        assert (weights[0, 20:] == 0).all()
        torch.testing.assert_close(weights[0, :20], torch.full((20,), 1 / 20))

    def test_chance(self):
        # with equal embeddings every report matches as well as the right one
        ones = torch.ones(16, 4)
        assert ita_loss(ones, ones) == pytest.approx(2 * math.log(16), rel=1e-5)


class TestAlice:
    def test_released_block(self, alice):
        for golden in alice["casa"]:
            cfg = golden["cfg"]
            block = CASA(cfg["d"], True, cfg["heads"], cfg["dk"], cfg["inner"]).eval()
            names = {"w_qs": "q", "w_ks": "k", "w_vs": "v", "fc": "proj", "MH_attn.layer_norm": "norm1"}
            names |= {"w_1": "mlp.0", "w_2": "mlp.2", "pos_ffn.layer_norm": "norm2"}
            own = {}
            for name, value in golden["state_dict"].items():
                for theirs, ours in names.items():
                    if name.startswith("Cross_Att.") and f".{theirs}." in name:
                        own[f"{ours}.{name.rpartition('.')[2]}"] = value
            block.load_state_dict(own)
            queries, tokens = golden["q"].clone().requires_grad_(), golden["kv_student"].clone().requires_grad_()
            student = block(queries, tokens)
            torch.testing.assert_close(student, golden["student"], **CLOSE)
            torch.testing.assert_close(block(queries, golden["kv_teacher"]), golden["teacher"], **CLOSE)

    def test_released_losses(self, alice):
        for golden in alice["loss"]:
            cfg = golden["cfg"]
            dim = golden["student_cls"].shape[-1]
            cls_loss, token_loss = (
                CentredCrossEntropy(dim, cfg["student_temp"], cfg["teacher_temp"], cfg["center_momentum"])
                for _ in range(2)
            )
            image = torch.cat(golden["images"])
            everywhere = torch.ones(len(image), 1, 1, 1, dtype=torch.bool)
            for call in golden["calls"]:
                cls, tokens, recon = (
                    golden[k].clone().requires_grad_() for k in ("student_cls", "student_patch", "recon")
                )
                # class tokens are compared across the two volumes, other tokens within each volume
                losses = {
                    "cls": cls_loss(cls, golden["teacher_cls"].roll(cfg["bs"], 0)),
                    "patch": token_loss(tokens, golden["teacher_patch"]),
                    "recon": 5 * masked_reconstruction_loss(recon, image, everywhere, normalise=False),
                }
                for name, loss in losses.items():
                    torch.testing.assert_close(loss, call[name], **CLOSE)
                total = sum(losses.values())
                torch.testing.assert_close(total, call["loss"], **CLOSE)
                gradients = torch.autograd.grad(total, (cls, tokens, recon))
                for gradient, name in zip(gradients, ("g_cls", "g_patch", "g_rec"), strict=True):
                    torch.testing.assert_close(gradient, call[name], **CLOSE)
                torch.testing.assert_close(cls_loss.center.value, call["center"], **CLOSE)
                torch.testing.assert_close(token_loss.center.value, call["center2"][0], **CLOSE)

    def test_paper_block_is_attention_of_normed_tokens(self):
        torch.manual_seed(0)
        block, queries, tokens = CASA(8), torch.randn(2, 3, 8), torch.randn(2, 5, 8)
        q = F.layer_norm(queries, (8,)) @ block.q.weight.T
        normed = F.layer_norm(tokens, (8,))
        attention = (q @ (normed @ block.k.weight.T).transpose(1, 2) / 8**0.5).softmax(-1)
        expected = attention @ (normed @ block.v.weight.T) @ block.proj.weight.T + block.proj.bias
        torch.testing.assert_close(block(queries, tokens), expected)

    def test_cosine_and_contrast(self):
        x = torch.randn(4, 6, 8, requires_grad=True)
        assert cosine_loss(x, 3 * x).item() == pytest.approx(0, abs=1e-5)
        assert cosine_loss(x, -x).item() == pytest.approx(4, rel=1e-5)
        assert info_nce_loss(x, x) < info_nce_loss(x, x.roll(1, 1))
        assert info_nce_loss(torch.ones(5, 3), torch.ones(5, 3)) == pytest.approx(math.log(5), rel=1e-5)
        target = torch.randn(4, 8, requires_grad=True)
        (cosine_loss(x[:, 0], target) + info_nce_loss(x[:, 0], target)).backward()
        assert target.grad is None

    def test_contrast_of_tokens_within_each_sample(self):
        online, target = torch.randn(2, 2, 3, 4, dtype=torch.float64)
        expected = []
        for own, others in zip(F.normalize(online, dim=2), F.normalize(target, dim=2), strict=True):
            for i in range(3):
                logits = torch.stack([own[i] @ other for other in others]) / 0.5
                expected.append(logits.logsumexp(0) - logits[i])
        torch.testing.assert_close(info_nce_loss(online, target, 0.5), torch.stack(expected).mean())

    def test_reconstruction_of_masked_cells(self):
        image = torch.randn(2, 1, 4, 8, 8)
        mask = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
        mask[0, 1, 0, 1] = True
        cell = image[0, :, 2:, :4, 4:]
        wanted = image.clone()
        wanted[0, :, 2:, :4, 4:] = (cell - cell.mean()) / cell.std()
        assert masked_reconstruction_loss(wanted, image, mask) == pytest.approx(0, abs=1e-8)
        wanted[1] += 1  # not masked
        assert masked_reconstruction_loss(wanted, image, mask) == pytest.approx(0, abs=1e-8)
        wanted[0, :, 2:, :4, 4:] += 2
        assert masked_reconstruction_loss(wanted, image, mask) == pytest.approx(4, rel=1e-4)

    @pytest.mark.parametrize("heads", [1, 4])
    def test_learned_attention(self, heads):
        """Contexts by the formula of multi-head attention, one sample, one head and token at a time."""
        torch.manual_seed(0)
        dim, padding = 8, torch.tensor([[False, False, False, True]])
        patches, words = (F.normalize(torch.randn(1, n, dim, dtype=torch.float64), dim=-1) for n in (5, 4))
        layers = [nn.MultiheadAttention(dim, heads, batch_first=True, dtype=torch.float64) for _ in range(2)]
        for layer in layers:
            nn.init.normal_(layer.in_proj_bias)
        weights = [F.normalize(torch.rand(1, n, dtype=torch.float64), p=1) for n in (5, 4)]
        weights[1] = F.normalize(weights[1] * ~padding, p=1)

        def context(layer, queries, keys):
            q, k, v = (
                x @ w.T + b
                for x, w, b in zip(
                    (queries, keys, keys), layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), strict=True
                )
            )
            mixed = [
                (a @ b.T / math.sqrt(dim / heads)).softmax(1) @ c
                for a, b, c in zip(*(x.chunk(heads, 1) for x in (q, k, v)), strict=True)
            ]
            return F.normalize(layer.out_proj(torch.cat(mixed, 1)), dim=-1)

        def contrast(tokens, attended, weight, number):
            logits = tokens @ attended.T / 0.1
            terms = [
                -weight[i] * (m[i, i] - m[i, :number].logsumexp(0)) / 2
                for m in (logits, logits.T)
                for i in range(number)
            ]
            return sum(terms)

        p, w, number = patches[0], words[0], 3
        expected = contrast(w, context(layers[0], w, p), weights[1][0], number)
        expected += contrast(p, context(layers[1], p, w[:number]), weights[0][0], len(p))
        found = cta_loss(patches, words, *weights, padding, attention=layers)
        torch.testing.assert_close(found, expected)
