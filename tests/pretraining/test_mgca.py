"""MGCA: image encoders, losses, optimiser steps, runs of the recipe."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import timm
import torch

from benchmarks.synthetic_reports import write_dataset
from nnunet_transformers.architectures import create_network
from nnunet_transformers.pretraining.alignment import AlignmentCheckpoint
from nnunet_transformers.pretraining.data import PreparedCase, PreparedIndex
from nnunet_transformers.pretraining.encoders.image import create_image_encoder
from nnunet_transformers.pretraining.encoders.text import load_tokenizer, tokenize
from nnunet_transformers.pretraining.fit import fit
from nnunet_transformers.pretraining.heads import AlignmentHead, apply_to_tokens
from nnunet_transformers.pretraining.methods.mgca import MGCA
from nnunet_transformers.weights import (
    TimmCheckpoint,
    load_checkpoint,
    load_encoder,
    load_encoder_weights,
)
from tests.architectures.test_networks import SMALLEST

from .steps import cross_entropy, train, warmup_cosine

VIT = "vit_tiny_patch16_224"
# half of resnet18: whole runs write it at every epoch
SMALL_RESNET = "resnet10t"
REPORTS = (
    "small left nodule",
    "there is a large cavity in the right lung",
    "normal chest both lungs clear",
    "large right opacity and small left nodule",
)
INDEX = PreparedIndex((PreparedCase("a"),), (), ("image",), None, ("RescaleTo01Normalization",))
DATA = SimpleNamespace(max_length=24)


def method(bert, network=VIT, size=32, **settings):
    torch.manual_seed(0)
    arguments = {"patch_size": (size, size), "input_channels": 1, "num_text_layers": 2, "num_prototypes": 8}
    module = MGCA(bert, network, **{**arguments, **settings})
    module.log_dict = lambda *args, **kwargs: None
    return module


def checkpoints(module):
    """Build the checkpoints that a run on these data writes."""
    module.trainer = SimpleNamespace(datamodule=DATA)
    return module.checkpoints(INDEX, {})


def batch(bert, size=32, length=24):
    return {"image": torch.rand(4, 1, size, size), **tokenize(load_tokenizer(bert), REPORTS, length)}


class TestImageEncoders:
    def test_vit(self):
        encoder = create_image_encoder(VIT, 1, (32, 48)).eval()
        image = torch.rand(2, 1, 32, 48)
        with torch.no_grad():
            features = encoder(image)
            tokens = encoder.network.forward_features(image)
        torch.testing.assert_close(features.instance, tokens[:, 0])
        torch.testing.assert_close(features.patches, tokens[:, 1:])
        assert features.attention.shape == (2, 6)
        block = encoder.network.blocks[-1]
        with torch.no_grad():
            x = encoder.network.patch_embed(image)
            x = encoder.network.blocks[:-1](encoder.network.norm_pre(encoder.network._pos_embed(x)))
            q, k, _ = block.attn.qkv(block.norm1(x)).reshape(2, 7, 3, 3, 64).permute(2, 0, 3, 1, 4)
            expected = (q @ k.transpose(2, 3) / 8).softmax(-1).mean(1)[:, 0, 1:]
        torch.testing.assert_close(features.attention, expected)
        assert not block.attn.attn_drop._forward_pre_hooks

    def test_cnn(self):
        encoder = create_image_encoder("resnet18", 3, (224, 224))
        with torch.device("meta"):
            features = encoder.to("meta")(torch.empty(2, 3, 224, 224))
        assert features.instance.shape == (2, encoder.dim) == (2, 512)
        assert features.patches.shape == (2, 361, encoder.local_dim) == (2, 361, 256)
        assert features.attention is None

    @pytest.mark.parametrize("name", ["resnet18", *SMALLEST])
    @pytest.mark.parametrize("used", ["instance", "patches"])
    def test_unused_parameters_are_frozen(self, name, used):
        encoder = create_image_encoder(
            name, 1, (64, 96), **{"instance": used == "instance", "patches": used == "patches"}
        )
        getattr(encoder(torch.rand(2, 1, 64, 96)), used).square().mean().backward()
        trained = {n for n, p in encoder.named_parameters() if p.requires_grad}
        assert trained == {n for n, p in encoder.named_parameters() if p.grad is not None}
        frozen = {n for n, p in encoder.named_parameters() if not p.requires_grad}
        # the patches of a ViT are those of its last layer, so nothing is frozen
        is_last = used == "instance" or name.startswith("setr_pup")
        assert is_last or any("layer4" in n or "stages.3" in n or "norm" in n for n in frozen)

    def test_errors(self):
        with pytest.raises(ValueError, match="unknown network 'resnet5'; did you mean resnet50"):
            create_image_encoder("resnet5", 1, (64, 64))
        with pytest.raises(ValueError, match="pretrained is for timm's networks"):
            create_image_encoder("unet2022_tiny", 1, (64, 64), pretrained=True)
        with pytest.raises(ValueError, match="resnet18 is a timm model or unknown"):
            create_image_encoder("resnet18", 1, (64, 64), {"embed_dim": 8})
        with pytest.raises(ValueError, match="class token"):
            create_image_encoder("vit_base_patch16_gap_224", 1, (32, 32))

    def test_file_of_weights(self, tmp_path):
        released = timm.create_model(VIT)
        torch.save(released.state_dict(), tmp_path / "weights.pth")
        encoder = create_image_encoder(VIT, 1, (32, 32), pretrained=str(tmp_path / "weights.pth"))
        kernel = released.patch_embed.proj.weight.sum(1, keepdim=True)
        torch.testing.assert_close(encoder.network.patch_embed.proj.weight, kernel)


@pytest.mark.parametrize("name", [VIT, "resnet18", *SMALLEST])
def test_every_encoder_trains(name, bert):
    module = method(bert, name, 64)
    module.training_step(batch(bert, 64), 0).backward()
    assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", SMALLEST)
def test_registered_network_goes_downstream(name, bert, tmp_path):
    module = method(bert, name, 64)
    checkpoints(module)["encoder.pth"].save(tmp_path / "encoder.pth")
    checkpoint = load_encoder(tmp_path / "encoder.pth")
    network = create_network(name, 1, 2, (64, 64), **checkpoint.overrides)
    report = load_encoder_weights(network, checkpoint)
    assert report.coverage(dict(network.named_parameters()), "encoder.") == 1


class TestLosses:
    @pytest.mark.parametrize("network", [VIT, "resnet18", "unet2022_tiny"])
    @pytest.mark.parametrize("kept", ["ita", "cta", "cpa"])
    def test_left_out(self, bert, network, kept):
        weights = {f"{name}_weight": float(name == kept) for name in ("ita", "cta", "cpa")}
        module = method(bert, network, 64, **weights)
        losses, _ = module.losses(batch(bert, 64))
        assert list(losses) == [kept]
        losses[kept].backward()
        assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []

    def test_heads_of_the_token_wise_loss(self, bert):
        """The supplement's table 5."""
        torch.manual_seed(0)
        module = method(bert, cta_heads=2, ita_weight=0, cpa_weight=0).eval()
        data, longer = batch(bert, length=16), batch(bert, length=60)
        loss = module.losses(data)[0]["cta"]
        torch.testing.assert_close(module.losses({**longer, "image": data["image"]})[0]["cta"], loss)
        loss.backward()
        assert all(p.grad.abs().sum() > 0 for p in module.cta_attention.parameters() if p.dim() > 1)
        assert not list(method(bert).cta_attention.parameters())
        with pytest.raises(ValueError, match="cta_heads must be 0 or divide the 128 channels of the heads, got 3"):
            method(bert, cta_heads=3)

    def test_weights(self, bert):
        module = method(bert, ita_weight=2.0, cpa_weight=0.5).eval()
        data = batch(bert)
        losses, _ = module.losses(data)
        expected = 2 * losses["ita"] + losses["cta"] + 0.5 * losses["cpa"]
        torch.testing.assert_close(module.training_step(data, 0), expected)
        with pytest.raises(ValueError, match="one at least not 0"):
            method(bert, ita_weight=0, cta_weight=0, cpa_weight=0)
        with pytest.raises(ValueError, match="must not be negative"):
            method(bert, ita_weight=-1)

    def test_chance(self, bert):
        module, data = method(bert).eval(), batch(bert)
        data["image"] = data["image"][:1].expand(4, -1, -1, -1)
        data = {name: value if name == "image" else value[:1].expand(4, -1) for name, value in data.items()}
        losses, _ = module.losses(data)
        assert losses["ita"].item() == pytest.approx(2 * math.log(4), rel=1e-4)

    @pytest.mark.parametrize("training", [True, False])
    def test_padding_does_not_matter(self, bert, training):
        module = method(bert).train(training)
        for dropout in (m for m in module.modules() if isinstance(m, torch.nn.Dropout)):
            dropout.p = 0
        data = batch(bert, length=16)
        longer = {**batch(bert, length=60), "image": data["image"]}
        for name, value in module.losses(data)[0].items():
            torch.testing.assert_close(module.losses(longer)[0][name], value, rtol=1e-3, atol=1e-4)

    def test_head_sees_no_padding(self):
        head, tokens = AlignmentHead(6, 16, 4), torch.randn(2, 5, 6)
        padding = torch.tensor([[False] * 5, [False, False, True, True, True]])
        tokens[1, 2:] = 100
        rows = apply_to_tokens(head, tokens, padding)
        torch.testing.assert_close(rows[~padding], head(torch.cat([tokens[0], tokens[1, :2]])))
        assert (rows[padding] == 0).all()
        assert apply_to_tokens(head, tokens).shape == (2, 5, 4)

    def test_half_precision(self, bert):
        module = method(bert)
        with torch.autocast("cpu", torch.bfloat16):
            losses, _ = module.losses(batch(bert))
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())

    def test_one_pair_alone(self, bert):
        with pytest.raises(ValueError, match="batch_size must be at least 2"):
            method(bert).losses({name: value[:1] for name, value in batch(bert).items()})


def still(bert, network=VIT, **settings):
    """Build the method without dropout, with different loss weights."""
    weights = {"ita_weight": 2.0, "cta_weight": 3.0, "cpa_weight": 0.5}
    module = method(bert, network, **{**weights, **settings}).double()
    for dropout in (m for m in module.modules() if isinstance(m, torch.nn.Dropout)):
        dropout.p = 0.0
    module.log_dict = lambda values, **kwargs: setattr(module, "logged", values)
    return module


class TestFormula:
    """Section 3 and supplement A: the weighted sum of ITA, CTA and CPA, each in both directions."""

    def unit(self, x):
        return x / x.square().sum(-1, keepdim=True).sqrt()

    def clipped(self, attention):
        """Clip to the 10 % and 90 % quantiles and normalise to sum 1."""
        low, high = attention.quantile(0.1), attention.quantile(0.9)
        weights = attention.detach().clamp(low, high)
        return weights / weights.sum()

    def ita(self, image, report):
        similarity = self.unit(image) @ self.unit(report).T / 0.07
        own = torch.arange(len(image))
        return cross_entropy(similarity, own) + cross_entropy(similarity.T, own)

    def direction(self, tokens, others, weights):
        """Contrast each token with its own context in the other modality among those of the sample's tokens."""
        attention = (tokens @ others.T / 0.1).exp()
        context = self.unit(attention / attention.sum(1, keepdim=True) @ others)
        similarity = tokens @ context.T / 0.1
        loss = 0.0
        for logits in (similarity, similarity.T):
            own = logits.diagonal() - logits.exp().sum(1).log()
            loss -= (own * weights).sum() / 2
        return loss

    def cta(self, patches, words, patch_weights, word_weights):
        """Compute CTA of lists with one entry per sample, words without padding."""
        losses = []
        for p, w, own_p, own_w in zip(patches, words, patch_weights, word_weights, strict=True):
            p, w = self.unit(p), self.unit(w)
            losses.append(self.direction(w, p, own_w) + self.direction(p, w, own_p))
        return sum(losses) / len(losses)

    def codes(self, scores):
        """Sinkhorn: alternately normalise over the samples of each prototype and the prototypes of each sample."""
        q = (scores.detach() / 0.05).exp().T
        for _ in range(3):
            q = q / q.sum(1, keepdim=True)
            q = q / q.sum(0, keepdim=True)
        return q.T

    def cpa(self, image, report, prototypes):
        image, report = (self.unit(x) @ prototypes.T for x in (image, report))
        return (cross_entropy(image / 0.2, self.codes(report)) + cross_entropy(report / 0.2, self.codes(image))) / 2

    @pytest.mark.parametrize("network", [VIT, "resnet18"])
    def test_training_step(self, bert, network):
        module, data = still(bert, network, size=64), batch(bert, 64)
        data["image"] = data["image"].double()
        prototypes = self.unit(module.prototypes.weight.detach().clone())
        loss = module.training_step(data, 0)
        seen = module.image_encoder(data["image"])
        read = module.text_encoder(data["input_ids"], data["attention_mask"], data["word_ids"])
        image, report = module.image_head(seen.instance), module.report_head(read.report)
        patches = module.patch_head(seen.patches.flatten(0, 1)).unflatten(0, seen.patches.shape[:2])
        lengths = [len(text.split()) for text in REPORTS]
        assert len(set(lengths)) > 1
        present = [row[:n] for row, n in zip(read.words, lengths, strict=True)]
        words = module.word_head(torch.cat(present)).split(lengths)
        word_weights = [self.clipped(row[:n]) for row, n in zip(read.attention, lengths, strict=True)]
        if seen.attention is None:
            patch_weights = torch.full(patches.shape[:2], 1 / patches.shape[1])
        else:
            patch_weights = [self.clipped(row) for row in seen.attention]
        expected = {
            "ita": self.ita(image, report),
            "cta": self.cta(patches, words, patch_weights, word_weights),
            "cpa": self.cpa(image, report, prototypes),
        }
        for name, value in expected.items():
            torch.testing.assert_close(module.logged[name], value, msg=name)
        torch.testing.assert_close(loss, 2.0 * expected["ita"] + 3.0 * expected["cta"] + 0.5 * expected["cpa"])
        assert module.logged["feature_spread"] > 0.05  # or no image would differ from another
        torch.testing.assert_close(module.prototypes.weight.detach(), prototypes)


class TestSteps:
    def test_rate_and_decay(self, bert):
        module = still(bert, lr=1e-3, min_lr=1e-5, weight_decay=100.0, warmup_share=0.5, frozen_epochs=0)
        recorder = train(module, [batch(bert) for _ in range(2)], epochs=2)
        assert recorder.settings("lr") == pytest.approx(warmup_cosine(4, 2, 1e-3, 1e-5))
        before, after = recorder.weights[:2]
        for name in recorder.gradients[0]:
            # besides weight decay, which every parameter has, AdamW's first step is at most the learning rate
            value = before[name]
            value = torch.nn.functional.normalize(value) if name == "prototypes.weight" else value
            torch.testing.assert_close(after[name], value * (1 - 0.05), rtol=0, atol=5e-4 + 1e-9, msg=name)

    def test_prototypes_are_frozen_in_the_first_epoch(self, bert):
        recorder = train(still(bert, lr=1e-2, warmup_share=0), [batch(bert) for _ in range(2)], epochs=2)
        first, *steps = (weights["prototypes.weight"] for weights in recorder.weights)
        unit = torch.nn.functional.normalize(first)
        torch.testing.assert_close(steps[1], unit)
        assert (steps[2] - unit).abs().max() > 1e-3


class TestRuns:
    def run(self, bert, folder, network, **changes):
        table = folder / "images" / "reports.csv"
        settings = {
            "data.init_args.table": table if table.is_file() else write_dataset(table.parent, images=12, size=40),
            "data.init_args.batch_size": 4,
            "data.init_args.num_workers": 0,
            "data.init_args.max_length": 40,
            "data.init_args.val_share": 0.3,
            "model.init_args.text_encoder": bert,
            "model.init_args.num_text_layers": 2,
            "model.init_args.network": network,
            "model.init_args.patch_size": "[32,32]",
            "model.init_args.input_channels": 1,
            "model.init_args.pretrained": "false",
            "model.init_args.num_prototypes": 8,
            "trainer.max_epochs": 2,
            "trainer.accelerator": "cpu",
            "trainer.default_root_dir": folder,
            "trainer.enable_progress_bar": "false",
            **changes,
        }
        return fit("mgca", [f"--{name}={value}" for name, value in settings.items()])

    def test_recipe(self, bert, tmp_path):
        trainer = self.run(bert, tmp_path, VIT, **{"model.init_args.lr": 1e-3})
        module = trainer.lightning_module
        assert (trainer.early_stopping_callback.monitor, trainer.early_stopping_callback.patience) == ("val_loss", 5)
        checkpoint = TimmCheckpoint.load(tmp_path / "encoder.pth")
        assert checkpoint.num_cases == len(trainer.datamodule.training)
        assert checkpoint.recipe["epochs"] in (1, 2)
        assert checkpoint.normalization == ("RescaleTo01Normalization",)
        network = checkpoint.build_network().eval()
        assert network(torch.rand(1, 1, 32, 32)).shape == (1, 192)
        if checkpoint.recipe["epochs"] == 2:
            weight = module.image_encoder.network.patch_embed.proj.weight
            torch.testing.assert_close(network.patch_embed.proj.weight, weight)
        assert float(module.lowest_val_loss) < math.inf
        alignment = AlignmentCheckpoint.load(tmp_path / "alignment.pth")
        assert alignment.max_length == 40
        twin = alignment.build_method(MGCA).image_encoder.network
        assert torch.equal(twin.patch_embed.proj.weight, network.patch_embed.proj.weight)
        # the file holds no pickles, and an altered file is refused
        content = load_checkpoint(tmp_path / "encoder.pth")
        content["timm_encoder"]["num_cases"] += 1
        torch.save(content, tmp_path / "altered.pth")
        with pytest.raises(ValueError, match="altered"):
            TimmCheckpoint.load(tmp_path / "altered.pth")
        # downstream the ViT is the encoder of a SETR-PUP
        downstream = load_encoder(tmp_path / "encoder.pth")
        assert (downstream.name, downstream.overrides["embed_dim"], downstream.patch_size) == (
            "setr_pup",
            192,
            (32, 32),
        )

    def test_recipe_with_a_registered_network(self, bert, tmp_path):
        changes = {"model.init_args.patch_size": "[64,64]", "trainer.max_epochs": 1}
        self.run(bert, tmp_path, "qt_unet_tiny", **changes)
        checkpoint = load_encoder(tmp_path / "encoder.pth")
        assert (checkpoint.name, checkpoint.method, checkpoint.patch_size) == ("qt_unet_tiny", "MGCA", (64, 64))
        pairs = json.loads((tmp_path / "pairs.json").read_text())
        assert len(pairs["cases"]) == checkpoint.num_cases

    def test_resumes(self, bert, tmp_path, monkeypatch):
        whole = self.run(bert, tmp_path / "instance", SMALL_RESNET).lightning_module

        def stop(module):
            if module.current_epoch == 1:
                raise RuntimeError("stop")

        with monkeypatch.context() as context, pytest.raises(RuntimeError, match="stop"):
            context.setattr(MGCA, "on_train_epoch_start", stop)
            self.run(bert, tmp_path / "killed", SMALL_RESNET)
        assert (tmp_path / "killed" / "last.ckpt").is_file()
        resumed = self.run(bert, tmp_path / "killed", SMALL_RESNET, ckpt_path="last").lightning_module
        for name, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), name

    def test_a_validation_loss_of_nan_names_the_images(self, bert, tmp_path, monkeypatch):
        """And its epoch is not the best one, nor does the early stop end the run quietly."""

        def losses(module, batch, learn=MGCA.losses):
            found, features = learn(module, batch)
            if not module.training and module.current_epoch:
                found["ita"] = found["ita"] * math.nan
            return found, features

        monkeypatch.setattr(MGCA, "losses", losses)
        names = r"images image_\d+\.png, image_.*png"
        with pytest.raises(RuntimeError, match=rf"diverged: the validation loss is nan \(epoch 1; {names}\)"):
            self.run(bert, tmp_path, "resnet18")
        assert TimmCheckpoint.load(tmp_path / "encoder.pth").recipe["epochs"] == 1

    def test_an_epoch_cut_short_is_not_written(self, bert, tmp_path):
        """Files of an unvalidated epoch are written only if no epoch was validated before."""
        settings = {"model.init_args.lr": 1e-3, "trainer.max_epochs": 1}
        steps = self.run(bert, tmp_path / "instance", SMALL_RESNET, **settings).global_step
        assert steps > 1
        for given, written in ((1, 1), (steps + 1, steps)):
            changes = settings | {"trainer.max_epochs": -1, "trainer.max_steps": given}
            self.run(bert, tmp_path / str(given), SMALL_RESNET, **changes)
            assert TimmCheckpoint.load(tmp_path / str(given) / "encoder.pth").recipe["steps"] == written

    def test_only_the_best_is_written(self, bert):
        module = method(bert)
        assert list(checkpoints(module)) == ["encoder.pth", "alignment.pth"]
        written = []
        for loss in (3.0, 2.0, 2.5, 1.0):
            module.trainer = SimpleNamespace(sanity_checking=False, callback_metrics={"val_loss": loss})
            module.on_validation_epoch_end()
            written.append(bool(checkpoints(module)))
        assert written == [True, True, False, True]
        assert module.lowest_val_loss == 1.0
        for loss in (math.nan, math.inf):
            module.trainer = SimpleNamespace(
                sanity_checking=False, callback_metrics={"val_loss": loss}, current_epoch=5
            )
            with pytest.raises(RuntimeError, match=rf"diverged: the validation loss is {loss} \(epoch 5\)"):
                module.on_validation_epoch_end()
        assert module.lowest_val_loss == 1.0
