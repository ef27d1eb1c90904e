"""UniMiSS: losses, optimiser steps, networks, gradients, data, a run of the recipe."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nnunet_transformers.architectures import create_network, create_pair
from nnunet_transformers.architectures.mit import MiTTrunk
from nnunet_transformers.pretraining.data import PreparedIndex, TwoViewData, TwoViews, two_views
from nnunet_transformers.pretraining.data.index import read_index
from nnunet_transformers.pretraining.data.prepare import prepare
from nnunet_transformers.pretraining.data.two_views import count_tiles
from nnunet_transformers.pretraining.encoder_checkpoint import pair_checkpoints
from nnunet_transformers.pretraining.encoders.slices import slice_logits
from nnunet_transformers.pretraining.fit import fit
from nnunet_transformers.pretraining.losses import CrossDimensionLoss
from nnunet_transformers.pretraining.methods.unimiss import UniMiSS
from nnunet_transformers.runs.schedules import total_steps
from nnunet_transformers.testing.network import shallow
from nnunet_transformers.weights import load_encoder, load_encoder_weights
from tests.architectures.test_networks import IN_3D
from tests.conftest import write_dataset

from .steps import check_target_follows, cosine, cross_entropy, separate, train, warmup_cosine

SIZES = {"patch_size_2d": (64, 64), "patch_size_3d": (16, 32, 64)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare(write_dataset(folder / "raw", cases=4), folder / "prepared", patch_size=(16, 32, 64))
    return folder / "prepared"


@pytest.fixture
def method():
    torch.manual_seed(0)
    module = UniMiSS("mit_7", output_dim=32, **SIZES)
    module.log_dict = lambda *args, **kwargs: None
    return module


def views(ndim, batch=2):
    size, channels = (SIZES["patch_size_3d"], 1) if ndim == 3 else (SIZES["patch_size_2d"], 3)
    return [torch.randn(batch, channels, *size) for _ in range(2)]


class TestLoss:
    def cross_entropy(self, teacher, student, center):
        target = F.softmax((teacher - center) / 0.04, dim=-1)
        return -(target * F.log_softmax(student / 0.1, dim=-1)).sum(-1).mean()

    def test_four_terms_and_one_centre(self):
        loss = CrossDimensionLoss(8, student_temp=0.1)
        loss.center = torch.randn(1, 1, 8)
        center = loss.center.clone()
        teacher, student = ([[torch.randn(3, 8) for _ in range(2)] for _ in range(2)] for _ in range(2))
        value = loss(teacher, student)
        expected = sum(
            self.cross_entropy(t[a], s[1 - a], center[0]) / 2 for t in teacher for s in student for a in range(2)
        )
        torch.testing.assert_close(value, expected)
        assert torch.equal(loss.center, center)
        other = [[torch.randn(3, 8) for _ in range(2)] for _ in range(2)]
        loss(other, student)  # another batch of the same step
        loss.move_center()
        mean = torch.cat([view for views in (*teacher, *other) for view in views]).mean(0)
        moved = 0.9 * center[0, 0] + 0.1 * mean
        torch.testing.assert_close(loss.center[0, 0], moved)
        loss(other, student)
        loss.move_center()
        mean = torch.cat([view for views in other for view in views]).mean(0)
        torch.testing.assert_close(loss.center[0, 0], 0.9 * moved + 0.1 * mean)

    def test_slices_averaged_before_the_last_layer(self, method):
        pair, head = method.encoder.eval(), method.head.eval()
        volume = torch.randn(1, 1, *SIZES["patch_size_3d"])
        with torch.no_grad():
            images = volume[0].transpose(0, 1).expand(-1, 3, -1, -1)
            expected = torch.stack([head(pair(image[None]))[0] for image in images]).mean(0)
            torch.testing.assert_close(slice_logits(pair, head, volume)[0], expected, rtol=1e-4, atol=1e-5)


def still(**kwargs):
    """Build the method without drop path, with a perturbed target network and centre."""
    torch.manual_seed(0)
    overrides = {"drop_path_rate": 0, "embed_dims": (8, 16, 24, 32)}
    module = UniMiSS("mit_7", **SIZES, network_overrides=overrides, output_dim=8, **kwargs).double()
    module.log_dict = lambda values, **kwargs: setattr(module, "logged", values)
    # of small initial weights all views have nearly the same logits, and no pair of them would be another's
    with torch.no_grad():
        for weight in (*module.encoder.parameters(), *module.head.layers.parameters()):
            if weight.dim() > 1:
                weight.mul_(8)
    for name, network in module.target.items():
        network.load_state_dict(getattr(module, name).state_dict())
    separate(module.target)
    module.loss.center.normal_(std=0.1)  # a large centre would decide the target by itself
    return module


def networks(module):
    """Return pair and head of the online and of the target network."""
    return (module.encoder, module.head), (module.target["encoder"], module.target["head"])


def at_size(form, size):
    """Build the 2D form anew for another size, its position embeddings interpolated as in the release."""
    trunk = MiTTrunk(3, size, embed_dims=(8, 16, 24, 32), patch_embed_stride=4, ssl_token=True).double()
    weights = form.state_dict()
    for name, value in trunk.state_dict().items():
        if name.endswith("position.weight"):
            plane = weights[name].permute(0, 3, 1, 2)
            weights[name] = F.interpolate(plane, value.shape[1:3], mode="bicubic").permute(0, 2, 3, 1)
    trunk.load_state_dict(weights)
    return trunk


class TestFormula:
    """Appendix and release: DINO's cross-entropy between different views, over all pairs of dimensionalities."""

    @torch.no_grad()
    def slices(self, pair, head, volumes):
        """Compute the mean logits of the slices, each repeated to an image of three channels."""
        rows, form = [], at_size(pair.form_2d, volumes.shape[3:])
        for volume in volumes:
            images = [image[None, None].repeat(1, 3, 1, 1) for image in volume[0]]
            rows.append(sum(head(form(image)) for image in images) / len(images))
        return torch.cat(rows)

    @torch.no_grad()
    def expected(self, module, batch):
        forms = [lambda pair, head, view: head(pair.form_2d(view))]
        if batch[0].dim() == 5:
            forms = [lambda pair, head, view: head(pair.form_3d(view)), self.slices]
        online, target = ([[form(*own, view) for view in batch] for form in forms] for own in networks(module))
        center, loss = module.loss.center[0, 0].clone(), 0.0
        for theirs in target:
            for ours in online:
                for a, b in ((0, 1), (1, 0)):
                    sharp = ((theirs[a] - center) / 0.05).exp()
                    loss += cross_entropy(ours[b] / 0.2, sharp / sharp.sum(1, keepdim=True)) / 2
        return loss, 0.8 * center + 0.2 * torch.cat([view for views in target for view in views]).mean(0)

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_training_step(self, ndim):
        module = still(teacher_temperature=0.05, student_temperature=0.2, center_momentum=0.8)
        batch = [view.double() for view in views(ndim, batch=3)]
        expected, center = self.expected(module, batch)
        loss = module.training_step(batch, 0)
        assert module.logged["feature_spread"] > 0.2
        torch.testing.assert_close(loss.detach(), expected)
        torch.testing.assert_close(module.logged[f"loss_{ndim}d"].detach(), expected)
        module.loss.move_center()
        torch.testing.assert_close(module.loss.center[0, 0], center)
        loss.backward()
        assert all(p.grad is None for p in module.target.parameters())


class TestSteps:
    def test_target_follows_once_a_step(self):
        module = still(lr=1.0, warmup_epochs=0, tau=0.9)
        recorder = train(module, [views(2, batch=3) for _ in range(3)])
        taus = [cosine(step, 3, 0.9, 1.0) for step in range(3)]
        check_target_follows(recorder, {"target.encoder.": "encoder.", "target.head.": "head."}, taus)

    def test_rate_and_decay(self):
        module = still(lr=1e-3 * 256 / 6, min_lr=1e-5, warmup_epochs=1, weight_decay=(100.0, 400.0))
        # a step has two batches of three
        recorder = train(module, [views(2, batch=3) for _ in range(4)], epochs=2, accumulate_grad_batches=2)
        assert recorder.settings("lr") == pytest.approx(warmup_cosine(4, 2, 1e-3, 1e-5))
        decays = [sorted(group["weight_decay"] for group in groups) for groups in recorder.groups]
        assert decays == [[0.0, pytest.approx(cosine(step, 4, 100.0, 400.0))] for step in range(4)]
        before, after = recorder.weights[0], recorder.weights[2]
        assert any(before[name].dim() == 1 for name in recorder.gradients[0])
        for name in recorder.gradients[0]:
            if "last_layer" not in name:
                decay = 100.0 if before[name].dim() > 1 and not name.endswith(".bias") else 0.0
                expected = before[name] * (1 - 5e-4 * decay)
                torch.testing.assert_close(after[name], expected, rtol=0, atol=5e-4 + 1e-9, msg=name)

    def test_the_centre_moves_once_a_step(self):
        centres = [
            w["loss.center"] for w in train(still(), [views(2) for _ in range(4)], accumulate_grad_batches=2).weights
        ]
        assert [torch.equal(a, b) for a, b in pairwise(centres)] == [True, False, True, False]

    def test_decay_that_starts_at_zero(self):
        recorder = train(still(weight_decay=(0.0, 4.0)), [views(2, batch=3) for _ in range(2)])
        assert [max(group["weight_decay"] for group in groups) for groups in recorder.groups] == [0.0, 4.0]

    def test_gradients_are_clipped_one_by_one(self):
        module = still(lr=1.0, warmup_epochs=0, clip_grad_norm=1e-3)
        recorder = train(module, [views(2, batch=3)])
        clipped = 0
        for name, moment in recorder.moments[0].items():
            gradient = recorder.gradients[0][name]
            norm = gradient.square().sum().sqrt()
            expected = gradient * min(1.0, 1e-3 / (norm + 1e-6))
            torch.testing.assert_close(moment / 0.1, expected, msg=name)
            clipped += int(norm > 1e-3)
        assert 0 < clipped < len(recorder.moments[0])

    def test_last_layer_is_frozen_in_the_first_epoch(self):
        recorder = train(still(lr=1.0, warmup_epochs=0), [views(2, batch=3) for _ in range(2)], epochs=2)
        first, *_, epoch, step, _ = recorder.weights
        (name,) = (n for n in first if n == "head.last_layer.weight_v")
        assert torch.equal(epoch[name], first[name])
        assert not torch.equal(step[name], epoch[name])
        other = name.replace("last_layer.weight_v", "layers.0.weight")
        assert not torch.equal(epoch[other], first[other])
        length = name.replace("weight_v", "weight_g")
        assert (recorder.weights[-1][length] == 1).all()


# a CNN's forms in 2D and 3D have no layers in common
@pytest.mark.parametrize("name", [name for name in IN_3D if not name.startswith("res")])
def test_any_network(name):
    sizes = {"patch_size_2d": (64, 64), "patch_size_3d": (32, 64, 64)}
    module = UniMiSS(name, output_dim=32, network_overrides=shallow(name, 3), **sizes)
    module.log_dict = lambda *args, **kwargs: None
    module.training_step([torch.randn(2, 1, 32, 64, 64) for _ in range(2)], 0).backward()
    missing = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    twin = dict(module.encoder.form_3d.named_parameters(remove_duplicate=False))
    shared = [n for n, p in module.encoder.form_2d.named_parameters() if twin.get(n) is p]
    assert len(shared) > 10
    index = PreparedIndex((), (), ("image",), (1.0, 1.0, 1.0), ("ZScoreNormalization",))
    for ndim, size in zip((2, 3), sizes.values(), strict=True):
        checkpoint = module.checkpoints(index, {})[f"encoder_{ndim}d.pth"]
        network = create_network(name, checkpoint.input_channels, 2, size, **checkpoint.overrides)
        report = load_encoder_weights(network, checkpoint)
        assert report.coverage(dict(network.named_parameters()), "encoder.") == 1
        assert not report.adapted


def test_slices_that_do_not_fit_are_enlarged():
    sizes = {"input_channels_2d": 1, "input_channels_3d": 1}
    fitting = create_pair("mit_7", (64, 64), (16, 32, 64), **sizes)
    assert fitting.slice_size == (32, 64)
    # one token in the last stage, which the volume's depth makes two
    assert create_pair("mit_7", (64, 64), (32, 32, 32), **sizes).slice_size == (64, 64)
    with pytest.raises(ValueError, match=r"axis 0 \(height\) has 32"):
        fitting.form_2d(torch.zeros(1, 1, 32, 32))


def test_network_without_a_3d_form():
    with pytest.raises(ValueError, match="a 2D and a 3D form; setr_pup_tiny has only one"):
        UniMiSS("setr_pup_tiny", output_dim=32, **SIZES)


class TestGradients:
    def test_images_leave_the_3d_weights_alone(self, method):
        method.training_step(views(2), 0).backward()
        self.check(method, untouched=3)

    def test_volumes_reach_both_forms(self, method):
        method.training_step(views(3), 0).backward()
        for name, parameter in method.named_parameters():
            if parameter.requires_grad and "weight_v" not in name:
                assert parameter.grad is not None, name

    def check(self, method, untouched):
        pair = method.encoder
        own, others = ({id(p) for p in pair.form(ndim).parameters()} for ndim in (untouched, 5 - untouched))
        shared = own & others
        assert shared
        for name, parameter in pair.named_parameters():
            touched = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            if id(parameter) in own - shared:
                assert not touched, name
            elif "decoder.seg" not in name and not name.endswith("bias"):
                assert touched, name
        assert all(p.grad is None for p in method.target.parameters())


class TestData:
    def test_views(self, prepared):
        images = TwoViews(prepared, SIZES["patch_size_2d"], 3, samples=2)
        volumes = TwoViews(prepared, SIZES["patch_size_3d"], 1, samples=2)
        for data, shape in ((images, (3, 64, 64)), (volumes, (1, 16, 32, 64))):
            first, second = data[0]
            assert first.shape == second.shape == shape
            assert first.isfinite().all()
            assert not torch.equal(first, second)
            again, _ = data[0]
            assert torch.equal(first, again)

    def test_tiles_are_the_releases(self, prepared, monkeypatch):
        data = TwoViews(prepared, (16, 96, 96), 1, samples=2, margin=0.1)
        data.images.shapes = {"ct": (1, 60, 280, 300), "small": (1, 20, 100, 60)}
        monkeypatch.setattr(data.images, "read", lambda name, start, size: np.array([start, size]))
        rng = np.random.default_rng(0)
        starts, sizes = zip(*(data._tile("ct", rng) for _ in range(200)), strict=True)
        starts, ends, sizes = np.array(starts), np.array(starts) + sizes, np.array(sizes)
        assert (sizes[:, 0] == 24).all()
        assert (sizes[:, 1:] >= 1.4 * 96 - 1).all()
        assert (sizes[:, 1:] <= 1.8 * 96 + 1).all()
        assert len(set(map(tuple, sizes[:, 1:].tolist()))) > 100  # height and width of their own
        assert (starts.min(0) >= (0, 28, 30)).all()
        assert (starts.min(0) <= (2, 34, 36)).all()
        assert (ends.max(0) <= (60, 252, 270)).all()
        assert (ends.max(0) >= (58, 246, 264)).all()
        # at least a view; what the volume lacks is padded
        _, size = data._tile("small", rng)
        assert size.tolist() == [20, 96, 96]

    def test_views_change_as_the_releases(self, prepared):
        """No view of a volume stays as it was, and those of an image stay in its range."""
        volumes = TwoViews(prepared, SIZES["patch_size_3d"], 1, samples=2)
        images = TwoViews(prepared, SIZES["patch_size_2d"], 3, samples=2)
        tile = torch.rand(1, *SIZES["patch_size_3d"])
        for view, transform in enumerate(volumes.transforms):
            changed = [transform(image=tile.clone())["image"] - tile for _ in range(40)]
            assert all(c.abs().max() > 0 for c in changed)
            # additive brightness, more often in the first view
            assert sum(abs(float(c.mean())) > 0.2 for c in changed) > (12, 6)[view]
        image = 5 + 3 * torch.rand(1, 40, 60)
        image[0, 0, 0], image[0, -1, -1] = 5, 8
        pairs = [images._of_image(image) for _ in range(40)]
        assert all(view.shape == (1, 64, 64) and view.min() >= 5 and view.max() <= 8 for pair in pairs for view in pair)
        first, second = (np.mean([float(pair[i].std()) for pair in pairs]) for i in range(2))
        assert second < 0.8 * first  # blurred each time
        assert images._of_image(torch.rand(4, 40, 60))[0].shape == (4, 64, 64)

    def test_lengths_of_their_own(self, prepared):
        assert [count_tiles(self.of_depth(depth), 16) for depth in (10, 24, 25, 28, 29)] == [1, 1, 2, 2, 3]
        sizes = {
            "batch_size": 2,
            "batch_size_2d": 3,
            "samples_per_epoch": 8,
            "samples_per_epoch_2d": 12,
            "num_workers": 0,
        }
        data = TwoViewData(str(prepared), **SIZES, period=1, **sizes)
        data.trainer = trainer = SimpleNamespace(
            current_epoch=0, world_size=1, global_rank=0, num_devices=1, accumulate_grad_batches=1, max_epochs=5,
            max_steps=-1, limit_train_batches=1.0, datamodule=data, estimated_stepping_batches=99,
        )  # fmt: skip
        for epoch, size, batches in ((0, 3, 4), (1, 2, 4)):
            trainer.current_epoch = epoch
            loader = data.train_dataloader()
            assert (loader.batch_size, len(loader)) == (size, batches)
        trainer.accumulate_grad_batches = 3
        # four batches have one whole step of three
        assert total_steps(trainer) == 5 == sum(len(data.train_dataloader()) // 3 for _ in range(5))
        trainer.limit_train_batches = 3
        assert total_steps(trainer) == 5
        trainer.limit_train_batches, trainer.accumulate_grad_batches, trainer.world_size = 1.0, 1, 2
        assert [data.count_steps(e) for e in (1, 2, 2.5, 5)] == [2, 4, 5, 10]
        trainer.max_steps = 7
        assert total_steps(trainer) == 7

    def test_channels_of_images(self, prepared, monkeypatch):
        """A grey image is repeated; others have the channels of the 2D form."""
        index = replace(read_index(prepared), channels=("R", "G", "B", "A"))
        read = two_views.read_index
        monkeypatch.setattr(two_views, "read_index", lambda path: index if path.name == "pictures" else read(path))
        with pytest.raises(
            ValueError, match=r"4 channels, the network takes 3 or repeats a grey one: set .*input_channels_2d 4"
        ):
            TwoViewData(str(prepared), **SIZES, folder_2d="pictures")

    def test_checkpoints_state_the_normalisation_of_each_channel(self, prepared):
        """That of a grey image is repeated as the image is; images of several channels have their own."""
        volumes = read_index(prepared)
        colours = replace(volumes, normalization=("ZScoreNormalization", "NoNormalization", "NoNormalization"))
        pair = SimpleNamespace(
            form=lambda ndim: SimpleNamespace(input_channels={2: 3, 3: 1}[ndim]),
            form_weights=lambda ndim: {},
            token_weights=lambda ndim: {},
        )
        settings = {"network": "mit_7", "network_overrides": None, **SIZES}
        for images, expected in ((None, ("ZScoreNormalization",) * 3), (colours, colours.normalization)):
            files = pair_checkpoints(pair, "UniMiSS", settings, replace(volumes, images=images), {})
            assert files["encoder_2d.pth"].normalization == expected
            assert files["encoder_3d.pth"].normalization == volumes.normalization

    def of_depth(self, depth):
        return SimpleNamespace(cases=[SimpleNamespace(shape=(1, depth, 64, 64))])

    def test_a_pass_over_the_data(self, prepared):
        data = TwoViewData(str(prepared), **SIZES, batch_size=2, num_workers=0)
        assert len(data.images) == len(data.volumes) == count_tiles(data.index, 16) >= 4

    def test_epochs_of_images_and_of_volumes(self, prepared):
        data = TwoViewData(str(prepared), **SIZES, period=2)

        class At:
            current_epoch = 0

        kinds = []
        data.trainer = At
        for epoch in range(6):
            At.current_epoch = epoch
            kinds.append(data.epoch() is data.volumes)
        assert kinds == [False, False, True, True, False, False]


def test_recipe_to_networks(prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {
        "data.init_args.folder_3d": prepared,
        "data.init_args.batch_size": 2,
        "data.init_args.num_workers": 0,
        "data.init_args.samples_per_epoch": 2,
        "data.init_args.period": 1,
        "model.init_args.network": "mit_7",
        "model.init_args.patch_size_2d": "[64,64]",
        "model.init_args.patch_size_3d": "[16,32,64]",
        "model.init_args.output_dim": 32,
        "trainer.max_epochs": 2,
        "trainer.accumulate_grad_batches": 1,
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": tmp_path,
        "trainer.enable_progress_bar": "false",
    }
    words = [f"--{key}={value}" for key, value in arguments.items()]
    with pytest.raises(
        ValueError, match=r"UniMiSS clips each gradient by itself: set --model.init_args.clip_grad_norm"
    ):
        fit("unimiss", [*words, "--trainer.gradient_clip_val=1"])
    fit("unimiss", words)
    for ndim, patch_size in ((2, (96, 64)), (3, (32, 64, 64))):
        checkpoint = load_encoder(tmp_path / f"encoder_{ndim}d.pth")
        network = create_network("mit_7", 1, 2, patch_size)
        report = load_encoder_weights(network, checkpoint)
        assert report.coverage(dict(network.named_parameters()), "encoder.") == 1
        assert all("grid" in how or "channels" in how for how in report.adapted.values())
        assert all(name.startswith("decoder.") for name in report.fresh)
