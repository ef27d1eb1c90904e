"""MGCA: image encoders, what a step trains, losses left out, runs of the recipe."""

from __future__ import annotations

import json
import math

import pytest
import timm
import torch

from benchmarks.synthetic_reports import write_dataset
from nnunet_transformers.architectures import create_network
from nnunet_transformers.pretraining.alignment import AlignmentCheckpoint
from nnunet_transformers.pretraining.encoders.image import create_image_encoder
from nnunet_transformers.pretraining.encoders.text import load_tokenizer, tokenize
from nnunet_transformers.pretraining.fit import fit
from nnunet_transformers.pretraining.methods.mgca import MGCA, on_rows, projection_head
from nnunet_transformers.weights import (
    TimmCheckpoint,
    load_checkpoint,
    load_encoder,
    load_encoder_weights,
)
from tests.architectures.test_networks import SMALLEST

VIT = "vit_tiny_patch16_224"
REPORTS = (
    "small left nodule",
    "there is a large cavity in the right lung",
    "normal chest both lungs clear",
    "large right opacity and small left nodule",
)
INDEX = {"cases": [{"name": "a"}], "normalization": ["RescaleTo01Normalization"], "max_length": 24}


def method(bert, network=VIT, size=32, **settings):
    torch.manual_seed(0)
    arguments = {"patch_size": (size, size), "input_channels": 1, "num_text_layers": 2, "num_prototypes": 8}
    module = MGCA(bert, network, **{**arguments, **settings})
    module.log_dict = lambda *args, **kwargs: None
    return module


def batch(bert, size=32, length=24):
    return {"image": torch.rand(4, 1, size, size), **tokenize(load_tokenizer(bert), REPORTS, length)}


class TestImageEncoders:
    def test_vit(self):
        encoder = create_image_encoder(VIT, 1, (32, 48)).eval()
        image = torch.rand(2, 1, 32, 48)
        with torch.no_grad():
            features = encoder(image)
            tokens = encoder.network.forward_features(image)
        torch.testing.assert_close(features.whole, tokens[:, 0])
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
        assert features.whole.shape == (2, encoder.dim) == (2, 512)
        assert features.patches.shape == (2, 361, encoder.local_dim) == (2, 361, 256)
        assert features.attention is None

    @pytest.mark.parametrize("name", ["resnet18", *SMALLEST])
    @pytest.mark.parametrize("used", ["whole", "patches"])
    def test_what_is_not_used_rests(self, name, used):
        encoder = create_image_encoder(name, 1, (64, 96), **{"whole": used == "whole", "patches": used == "patches"})
        getattr(encoder(torch.rand(2, 1, 64, 96)), used).square().mean().backward()
        trained = {n for n, p in encoder.named_parameters() if p.requires_grad}
        assert trained == {n for n, p in encoder.named_parameters() if p.grad is not None}
        resting = {n for n, p in encoder.named_parameters() if not p.requires_grad}
        # a ViT's patches are of its last layer
        is_last = used == "whole" or name.startswith("setr_pup")
        assert is_last or any("layer4" in n or "stages.3" in n or "norm" in n for n in resting)

    def test_errors(self):
        with pytest.raises(ValueError, match="unknown network 'resnet5'; did you mean resnet50"):
            create_image_encoder("resnet5", 1, (64, 64))
        with pytest.raises(ValueError, match="pretrained is for timm's networks"):
            create_image_encoder("unet2022_tiny", 1, (64, 64), pretrained=True)
        with pytest.raises(ValueError, match="resnet18 is none of them"):
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
def test_own_network_goes_downstream(name, bert, tmp_path):
    module = method(bert, name, 64)
    module.checkpoints(INDEX, {})["encoder.pth"].save(tmp_path / "encoder.pth")
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
        assert list(losses) == [kept, "loss"]
        losses["loss"].backward()
        assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []

    def test_weights(self, bert):
        module = method(bert, ita_weight=2.0, cpa_weight=0.5).eval()
        losses, _ = module.losses(batch(bert))
        expected = 2 * losses["ita"] + losses["cta"] + 0.5 * losses["cpa"]
        torch.testing.assert_close(losses["loss"], expected)
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
        head, tokens = projection_head(6, 16, 4), torch.randn(2, 5, 6)
        padding = torch.tensor([[False] * 5, [False, False, True, True, True]])
        tokens[1, 2:] = 100
        rows = on_rows(head, tokens, padding)
        torch.testing.assert_close(rows[~padding], head(torch.cat([tokens[0], tokens[1, :2]])))
        assert (rows[padding] == 0).all()
        assert on_rows(head, tokens).shape == (2, 5, 4)

    def test_half_precision(self, bert):
        module = method(bert)
        with torch.autocast("cpu", torch.bfloat16):
            losses, _ = module.losses(batch(bert))
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())

    def test_one_pair_alone(self, bert):
        with pytest.raises(ValueError, match="batch_size must be at least 2"):
            method(bert).losses({name: value[:1] for name, value in batch(bert).items()})


class TestRuns:
    def run(self, bert, folder, network, **changes):
        table = folder / "images" / "reports.csv"
        settings = {
            "data.init_args.table": table if table.is_file() else write_dataset(table.parent, images=20, size=40),
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
        twin = alignment.build_method().image_encoder.network
        assert torch.equal(twin.patch_embed.proj.weight, network.patch_embed.proj.weight)
        # nothing in it has to be unpickled, and what was altered is refused
        content = load_checkpoint(tmp_path / "encoder.pth")
        content["timm_encoder"]["num_cases"] += 1
        torch.save(content, tmp_path / "altered.pth")
        with pytest.raises(ValueError, match="altered"):
            TimmCheckpoint.load(tmp_path / "altered.pth")
        # downstream it is the encoder of a SETR-PUP
        downstream = load_encoder(tmp_path / "encoder.pth")
        assert (downstream.name, downstream.overrides["embed_dim"], downstream.patch_size) == (
            "setr_pup",
            192,
            (32, 32),
        )

    def test_recipe_with_an_own_network(self, bert, tmp_path):
        changes = {"model.init_args.patch_size": "[64,64]", "trainer.max_epochs": 1}
        self.run(bert, tmp_path, "qt_unet_tiny", **changes)
        checkpoint = load_encoder(tmp_path / "encoder.pth")
        assert (checkpoint.name, checkpoint.method, checkpoint.patch_size) == ("qt_unet_tiny", "MGCA", (64, 64))
        pairs = json.loads((tmp_path / "pairs.json").read_text())
        assert len(pairs["cases"]) == checkpoint.num_cases

    def test_prototypes_rest_in_the_first_epoch(self, bert, tmp_path):
        settings = {"model.init_args.lr": 1e-2, "model.init_args.warmup_share": 0}
        first, second, third = (
            self.run(bert, tmp_path / f"{epochs}_{frozen}", VIT, **settings, **changes).lightning_module.prototypes
            for epochs, frozen in ((1, 1), (2, 2), (2, 1))
            for changes in [{"trainer.max_epochs": epochs, "model.init_args.frozen_epochs": frozen}]
        )
        torch.testing.assert_close(first.weight, second.weight)
        assert not torch.allclose(first.weight, third.weight, atol=1e-3)

    def test_resumes(self, bert, tmp_path, monkeypatch):
        whole = self.run(bert, tmp_path / "whole", "resnet18").lightning_module

        def stop(module):
            if module.current_epoch == 1:
                raise RuntimeError("stop")

        with monkeypatch.context() as context, pytest.raises(RuntimeError, match="stop"):
            context.setattr(MGCA, "on_train_epoch_start", stop)
            self.run(bert, tmp_path / "killed", "resnet18")
        assert (tmp_path / "killed" / "last.ckpt").is_file()
        resumed = self.run(bert, tmp_path / "killed", "resnet18", ckpt_path="last").lightning_module
        for name, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), name

    def test_an_epoch_cut_short_is_not_written(self, bert, tmp_path):
        """Unless nothing was validated before."""
        settings = {"model.init_args.lr": 1e-3, "trainer.max_epochs": 1}
        steps = self.run(bert, tmp_path / "whole", "resnet18", **settings).global_step
        for given, written in ((1, 1), (steps + 1, steps)):
            changes = settings | {"trainer.max_epochs": -1, "trainer.max_steps": given}
            self.run(bert, tmp_path / str(given), "resnet18", **changes)
            assert TimmCheckpoint.load(tmp_path / str(given) / "encoder.pth").recipe["steps"] == written

    def test_only_the_best_is_written(self, bert):
        module = method(bert)
        assert list(module.checkpoints(INDEX, {})) == ["encoder.pth", "alignment.pth"]
        written = []
        for loss in (3.0, 2.0, 2.5, 1.0):
            module.trainer = type("Trainer", (), {"sanity_checking": False, "callback_metrics": {"val_loss": loss}})()
            module.on_validation_end()
            written.append(bool(module.checkpoints(INDEX, {})))
        assert written == [True, True, False, True]
        assert module.lowest_val_loss == 1.0
