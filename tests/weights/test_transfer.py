"""Transfer of weights and its adapters: exact values, load reports, refusals."""

from __future__ import annotations

import pytest
import timm
import torch
from dynamic_network_architectures.architectures.primus import PrimusV2
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from safetensors.torch import save_model
from torch import nn

from nnunet_transformers.architectures import create_network
from nnunet_transformers.architectures.layers import PositionEmbedding, RelativePositionBias
from nnunet_transformers.weights import (
    EncoderCheckpoint,
    ImageNetWeights,
    PrimusCheckpoint,
    create_primus,
    encoder_weights,
    find_weights,
    load_imagenet,
    load_primus_weights,
    transfer,
)
from nnunet_transformers.weights.adapters import (
    bias_tables,
    convolution_kernels,
    depthwise_kernels,
    first_layers,
    pointwise_convolutions,
    position_embeddings,
)
from nnunet_transformers.weights.transfer import by_first_names


def test_report_and_values():
    target = nn.ModuleDict({"a": nn.BatchNorm1d(2), "b": nn.Linear(2, 3), "c": nn.Linear(1, 1)}).half()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    source = {
        "a.weight": torch.tensor([2.0, 3.0]),
        "a.running_mean": torch.tensor([4.0, 5.0]),
        "b.weight": torch.ones(4, 2),
        "b.bias": torch.full((3,), 6.0),
        "d.weight": torch.ones(1),
    }

    def double(name, value, tensor):
        return (2 * value, "doubled") if name == "b.bias" else None

    report = transfer(target.state_dict(), source, [double, lambda *_: None], "a test")
    assert report.source == "a test"
    assert report.loaded == ["a.weight", "a.running_mean"]
    assert report.adapted == {"b.bias": "doubled"}
    assert report.unused == ["d.weight"]
    assert report.fresh == {
        "a.bias": "not in the source",
        "a.running_var": "not in the source",
        "a.num_batches_tracked": "not in the source",
        "b.weight": "shape (4, 2) in the source, (3, 2) here",
        "c.weight": "not in the source",
        "c.bias": "not in the source",
    }
    after = target.state_dict()
    assert after["a.weight"].tolist() == [2, 3]
    assert after["a.running_mean"].tolist() == [4, 5]
    assert after["b.bias"].tolist() == [12, 12, 12]
    assert after["b.bias"].dtype == torch.float16
    assert all(torch.equal(after[name], before[name]) for name in report.fresh)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2, dtype=torch.int8), "a file holds torch.int8 in b, so it is quantised: get the weights as float"),
        (torch.ones(2) * torch.nan, "a file is damaged, or of a training that diverged: b holds NaN or infinity"),
        (torch.ones(2) * 1j, "a file holds torch.complex64 in b, so it is complex: get the weights as float"),
    ],
)
def test_values_that_are_no_weights(value, message):
    """Refused before anything is loaded, but not where they are unused."""
    target = {"a": torch.zeros(2), "b": torch.zeros(2)}
    with pytest.raises(ValueError, match=f"^{message}"):
        transfer(target, {"a": torch.ones(2), "b": value}, origin="a file")
    assert not target["a"].any()
    assert transfer(target, {"a": torch.ones(2), "c": value}).unused == ["c"]
    steps = {"steps": torch.tensor(0)}
    assert transfer(steps, {"steps": torch.tensor(3)}).loaded and steps["steps"] == 3


class TestNamesOfSharedLayers:
    """A safetensors file of a whole network has one name of each layer, which need not be the first."""

    def stored(self, network):
        """Each tensor under the last of its names."""
        last = {value.data_ptr(): name for name, value in network.state_dict().items()}
        return {name: value for name, value in network.state_dict().items() if last[value.data_ptr()] == name}

    def check(self, network, weights, report, encoder):
        assert not report.unused
        assert report.coverage(dict(network.named_parameters()), encoder) == 1
        assert all(torch.equal(network.state_dict()[name], value) for name, value in weights.items())

    def test_of_nnunets_cnns(self, tmp_path):
        def unet():
            return PlainConvUNet(1, 2, [4, 8], nn.Conv2d, 3, [1, 2], 1, 2, 1, conv_bias=True, nonlin=nn.LeakyReLU)

        source, network = unet(), unet()
        save_model(source, str(tmp_path / "model.safetensors"))
        weights = find_weights(tmp_path / "model.safetensors").weights
        assert all(name.startswith("decoder.") for name in weights.weights)
        report = weights.load_into(network)
        assert not report.fresh
        self.check(network, source.state_dict(), report, "encoder.")
        assert by_first_names(network, source.state_dict()).keys() == dict(network.named_parameters()).keys()

    @pytest.mark.parametrize("registered", [True, False])
    def test_of_primus(self, registered):
        source = create_primus("primus_v2_s", 1, (16, 16, 16))
        parts = (f"{source.key_to_stem}.", f"{source.key_to_encoder}.")
        weights = {name: value for name, value in self.stored(source).items() if name.startswith(parts)}
        assert not weights.keys() <= dict(source.named_parameters()).keys()
        checkpoint = PrimusCheckpoint(weights, "primus_v2_s", (16, 16, 16), 1)
        if registered:
            network = create_network("primus_v2_s", 1, 2, (16, 16, 16))
            report = checkpoint.load_into(network)
            assert report.coverage(dict(network.named_parameters()), "stem.") == 1 and not report.unused
            return
        network = create_primus("primus_v2_s", 1, (16, 16, 16))
        self.check(network, weights, checkpoint.load_into(network, (16, 16, 16)), f"{source.key_to_stem}.")

    def test_of_an_encoder_checkpoint(self):
        source, network = (create_network("primus_v2_s", 1, 2, (16, 16, 16), depth=1) for _ in range(2))
        weights = {n: v for n, v in self.stored(source).items() if n.startswith(("stem.", "encoder."))}
        checkpoint = EncoderCheckpoint(weights, "primus_v2_s", (16, 16, 16), 1, overrides={"depth": 1})
        self.check(network, weights, checkpoint.load_into(network), "stem.")


class TestAdapters:
    def test_bias_tables(self):
        """A linear function of the offset stays linear; tables with equally many rows are not confused."""
        network = nn.ModuleDict({"bias": RelativePositionBias((2, 3), (2, 3), 1)})  # 3x5 offsets
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 3), indexing="ij")
        table = (rows + 10 * columns).reshape(15, 1)
        report = transfer(network.state_dict(), {"bias.table": table}, [bias_tables(network, lambda *_: (5, 3))])
        assert report.adapted == {"bias.table": "offsets 5x3 to 3x5"}
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, 3), torch.linspace(-1, 1, 5), indexing="ij")
        torch.testing.assert_close(network["bias"].table.detach(), (rows + 10 * columns).reshape(15, 1))
        report = transfer(network.state_dict(), {"bias.table": table}, [bias_tables(network, lambda *_: (3, 5))])
        assert report.loaded == ["bias.table"]
        assert torch.equal(network["bias"].table, table)
        report = transfer(network.state_dict(), {"bias.table": torch.ones(15, 2)}, [bias_tables(network, lambda *_: 0)])
        assert report.fresh == {"bias.table": "shape (15, 2) in the source, (15, 1) here"}

    def test_position_embeddings(self):
        network = nn.ModuleDict({"position": PositionEmbedding((2, 4), 1)})
        adapters = [position_embeddings(network)]
        report = transfer(network.state_dict(), {"position.weight": torch.arange(8.0).view(1, 4, 2, 1)}, adapters)
        assert report.adapted == {"position.weight": "grid 4x2 to 2x4"}
        expected = torch.tensor([[1, 1.25, 1.75, 2], [5, 5.25, 5.75, 6]])  # means of two rows, columns between two
        torch.testing.assert_close(network["position"].weight.detach()[0, ..., 0], expected)
        report = transfer(network.state_dict(), {"position.weight": torch.ones(1, 4, 2, 2)}, adapters)
        assert report.fresh == {"position.weight": "shape (1, 4, 2, 2) in the source, (1, 2, 4, 1) here"}

    def test_flat_position_embeddings(self):
        """Laid out on the network's grid if they have as many tokens; else their grid is unknown."""
        network = nn.ModuleDict({"position": PositionEmbedding((2, 4), 1)})
        adapters = [position_embeddings(network)]
        flat = torch.arange(8.0).view(1, 8, 1)
        assert transfer(network.state_dict(), {"position.weight": flat}, adapters).loaded == ["position.weight"]
        assert torch.equal(network["position"].weight.flatten(1, 2), flat)
        for shape in ((1, 9, 1), (8,), ()):
            report = transfer(network.state_dict(), {"position.weight": torch.ones(shape)}, adapters)
            assert list(report.fresh) == ["position.weight"]

    @pytest.mark.parametrize("shape", [(), (15,), (0, 1), (1, 15, 1)])
    def test_bias_tables_that_are_none(self, shape):
        network = nn.ModuleDict({"bias": RelativePositionBias((2, 3), (2, 3), 1)})
        adapters = [bias_tables(network, lambda _, value: (len(value) if value.dim() else 1,))]
        assert list(transfer(network.state_dict(), {"bias.table": torch.ones(shape)}, adapters).fresh) == ["bias.table"]

    def test_first_layers(self):
        value = torch.arange(2 * 2 * 4 * 4.0).view(2, 2, 4, 4)
        target = {"first": torch.zeros(2, 3, 2, 2), "other": torch.zeros(2, 3, 4, 4)}
        report = transfer(target, {"first": value, "other": value}, [first_layers(["first"])])
        assert report.adapted == {"first": "kernel 4x4 to 2x2, channels 2 to 3"}
        assert list(report.fresh) == ["other"]
        # halving an edge averages pairs; the response to a constant image in every channel stays the same
        expected = 4 * nn.functional.avg_pool2d(value, 2).sum(1, keepdim=True).expand(-1, 3, -1, -1) / 3
        torch.testing.assert_close(target["first"], expected)
        torch.testing.assert_close(target["first"].sum((1, 2, 3)), value.sum((1, 2, 3)))
        for other in (torch.ones(4, 3, 2, 2), torch.ones(2, 3, 2, 2, 2), torch.ones(2, 3, 2)):
            report = transfer(target, {"first": other}, [first_layers(["first"])])
            assert list(report.fresh) == ["first", "other"]

    @pytest.mark.parametrize("kernel", [(3, 5), (3, 3, 5), (4, 3, 5), (1, 7, 7)])
    def test_depthwise_kernels(self, kernel):
        """Kernels are cropped in-plane and, in 3D, repeated along the depth and divided by its length."""
        value = torch.randn(2, 1, 7, 7)
        target = {"conv_dw.weight": torch.zeros(2, 1, *kernel)}
        adapters = [pointwise_convolutions, depthwise_kernels("conv_dw.weight")]
        report = transfer(target, {"conv_dw.weight": value}, adapters)
        expected = value if kernel == (1, 7, 7) else value[:, :, 2:5, 1:6]
        if len(kernel) == 3:
            expected = expected[:, :, None].expand(-1, -1, kernel[0], -1, -1) / kernel[0]
        assert torch.equal(target["conv_dw.weight"], expected)
        change = f"kernel 7x7 to {'x'.join(map(str, kernel))}"
        assert report.adapted == ({} if kernel == (1, 7, 7) else {"conv_dw.weight": change})

    @pytest.mark.parametrize("before", [1, 2])
    def test_transposed_kernels_keep_the_response_to_a_constant_image(self, before):
        """That of the source, on average over the voxels that it makes of one along the depth."""
        source, network = (
            nn.Sequential(nn.ConvTranspose3d(3, 4, (n, 2, 2), (n, 2, 2), bias=False)) for n in (before, 3 - before)
        )
        report = transfer(network.state_dict(), source.state_dict(), [convolution_kernels(network)])
        assert report.adapted == {"0.weight": f"kernel {before}x2x2 to {3 - before}x2x2"}
        image = torch.rand(1, 3, 1, 5, 6).expand(-1, -1, 4, -1, -1)
        torch.testing.assert_close(network(image).mean(2), source(image).mean(2))

    def test_kernels_that_do_not_fit(self):
        adapters = [pointwise_convolutions, depthwise_kernels("conv_dw.weight")]
        target = {
            "conv_dw.weight": torch.zeros(2, 1, 9, 9),
            "conv.weight": torch.zeros(2, 1, 3, 3),
            "fc.weight": torch.zeros(2, 6),
        }
        source = {
            "conv_dw.weight": torch.ones(2, 1, 7, 7),
            "conv.weight": torch.ones(2, 1, 7, 7),
            "fc.weight": torch.ones(3, 4, 1, 1),
        }
        assert list(transfer(target, source, adapters).fresh) == list(target)

    def test_pointwise_convolutions(self):
        linear, convolution = torch.arange(6.0).view(2, 3), torch.arange(6.0).view(2, 3, 1, 1)
        assert torch.equal(pointwise_convolutions("", linear, torch.zeros(2, 3, 1, 1))[0], convolution)
        assert torch.equal(pointwise_convolutions("", convolution, torch.zeros(2, 3))[0], linear)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, models = tmp_path_factory.mktemp("imagenet"), {}
    for name in ("convnext_femto", "convnext_tiny", "swin_tiny_patch4_window7_224"):
        torch.manual_seed(0)
        models[name] = {n: torch.randn_like(v) for n, v in timm.create_model(name).state_dict().items()}
        torch.save(models[name], folder / f"{name}.pth")
    return folder, models


class TestImageNet:
    def test_2d(self, files):
        folder, models = files
        network = create_network("unet2022_tiny", 1, 2, (64, 64))
        convnext, swin = folder / "convnext_tiny.pth", folder / "swin_tiny_patch4_window7_224.pth"
        report = load_imagenet(network, convnext, swin)
        state = network.state_dict()
        tables = {n: m.table_shape for n, m in network.named_modules() if isinstance(m, RelativePositionBias)}
        assert report.adapted == {
            f"{name}.table": f"offsets 13x13 to {'x'.join(map(str, shape))}"
            for name, shape in tables.items()
            if shape != (13, 13)
        }
        assert len(report.adapted) == 21
        expected = {}
        for stage in range(4):
            for index in range(3):
                places = [f"encoder.stages.{stage}.{index}"]
                places += [f"decoder.levels.{2 - stage}.blocks.{index}"] if stage < 3 else []
                for source, start, part in (
                    ("convnext_tiny", f"stages.{stage}.blocks.{index}.", "convnext"),
                    # two blocks in Swin-T's stages but for the third
                    (
                        "swin_tiny_patch4_window7_224",
                        f"layers.{stage}.blocks.{index if stage == 2 else min(index, 1)}.",
                        "parallel",
                    ),
                ):
                    for name, value in models[source].items():
                        if name.startswith(start):
                            ours = name.removeprefix(start).replace("norm1.", "norm.")
                            expected |= {f"{place}.{part}.{ours}": value for place in places}
        loaded = {name: value for name, value in expected.items() if name in state}
        assert report.loaded == [name for name in state if name in loaded]
        for name, value in loaded.items():
            assert torch.equal(state[name], value.view_as(state[name])), name
        used = {"convnext: stages.2.blocks.0.conv_dw.weight", "swin: layers.2.blocks.2.norm1.weight"}
        assert used.isdisjoint(report.unused)
        assert {
            "convnext: stem.0.weight",
            "convnext: stages.2.blocks.3.conv_dw.weight",
            "swin: layers.2.blocks.3.norm1.weight",
            "swin: layers.0.blocks.0.norm2.bias",
        } <= set(report.unused)

    def test_3d(self, files):
        folder, models = files
        network = create_network("unet2022_tiny", 1, 2, (32, 32, 32))
        report = load_imagenet(network, folder / "convnext_femto.pth", spread=True)
        kernels = [name for name in network.state_dict() if name.endswith("convnext.conv_dw.weight")]
        assert report.adapted == dict.fromkeys(kernels, "kernel 7x7 to 3x3x3")
        for index, source in enumerate((0, 2, 5)):
            kernel = models["convnext_femto"][f"stages.2.blocks.{source}.conv_dw.weight"][:, :, 2:5, 2:5]
            for stage in (network.encoder.stages[2], network.decoder.levels[0].blocks):
                assert torch.equal(
                    stage[index].convnext.conv_dw.weight, kernel[:, :, None].expand(-1, -1, 3, -1, -1) / 3
                )

    @pytest.mark.parametrize("prefix", ["module.", "backbone.", "model.encoder."])
    def test_prefixes(self, prefix, files, tmp_path):
        network = create_network("unet2022_tiny", 1, 2, (32, 32, 32))
        torch.save({f"{prefix}{n}": v for n, v in files[1]["convnext_femto"].items()}, tmp_path / "file.pth")
        report = load_imagenet(network, tmp_path / "file.pth")
        assert report.loaded == load_imagenet(network, files[0] / "convnext_femto.pth").loaded

    def test_files_are_read_once(self, files, monkeypatch):
        reads = []
        load = torch.load
        monkeypatch.setattr(
            torch, "load", lambda file, **keywords: (reads.append(file.name), load(file, **keywords))[1]
        )
        weights = ImageNetWeights(files[0] / "convnext_femto.pth")
        first, second = (create_network("unet2022_tiny", 1, 2, (s, 32, 32)) for s in (32, 64))
        assert weights.load_into(first).loaded == weights.load_into(second).loaded
        assert reads == [str(files[0] / "convnext_femto.pth")]


def test_primus_of_a_turned_patch():
    """The flat position embeddings of both grids have the same shape."""
    source = create_primus("primus_s", 1, (16, 8, 24))
    with torch.no_grad():
        source.eva.pos_embed.copy_(torch.arange(6.0)[None, :, None].expand_as(source.eva.pos_embed))
    checkpoint = PrimusCheckpoint(encoder_weights(source), "primus_s", (16, 8, 24), 1)
    network = create_primus("primus_s", 1, (24, 8, 16))
    report = load_primus_weights(network, (24, 8, 16), checkpoint)
    assert report.adapted == {"eva.pos_embed": "grid 2x1x3 to 3x1x2"}
    expected = torch.tensor([0.25, 1.75, 1.75, 3.25, 3.25, 4.75])
    torch.testing.assert_close(network.eva.pos_embed[0, :, 7].detach(), expected)


def test_primus_of_another_number_of_heads():
    with torch.device("meta"):
        source = create_primus("primus_v2_s", 1, (16, 16, 16))
        networks = (
            create_network("primus_v2_s", 1, 2, (16, 16, 16), num_heads=11),
            PrimusV2(1, 396, (8, 8, 8), 2, eva_depth=12, eva_numheads=11, input_shape=(16, 16, 16)),
        )
    checkpoint = PrimusCheckpoint(dict(source.state_dict()), "primus_v2_s", (16, 16, 16), 1)
    for network in networks:
        with pytest.raises(ValueError, match=r"have 6 attention heads in .*blocks\.0\.attn, this network has 11"):
            checkpoint.load_into(network, (16, 16, 16))


def test_primus_that_sees_the_image_in_two_layers():
    """The stems of later versions register layers under several names."""
    source = create_primus("primus_v2_s", 1, (16, 16, 16))
    checkpoint = PrimusCheckpoint(encoder_weights(source), "primus_v2_s", (16, 16, 16), 1)
    network = create_primus("primus_v2_s", 2, (16, 16, 16))
    report = load_primus_weights(network, (16, 16, 16), checkpoint)
    stem = "down_projection.stem.blocks.0."
    assert report.adapted == dict.fromkeys((f"{stem}conv1.conv.weight", f"{stem}skip.0.conv.weight"), "channels 1 to 2")
    assert not report.unused
    assert all(name.startswith("up_projection.") for name in report.fresh)
