"""nnU-Net's own CNNs as networks of this package: outputs, maps, weights into the networks that nnU-Net builds."""

from __future__ import annotations

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_transformers.architectures import (
    create_encoder,
    create_network,
    create_pair,
    find_stock,
    get_network,
    list_networks,
)
from nnunet_transformers.architectures.stock_unet import LAYERS
from nnunet_transformers.classification.classifier import pretrained_backbone
from nnunet_transformers.weights import EncoderCheckpoint, encoder_weights, load_checkpoint, load_encoder

CLASSES = "dynamic_network_architectures.architectures.unet"
DEPTHS = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}
PATCH = (8, 16, 32)
NAMES = pytest.mark.parametrize("name", DEPTHS)


def architecture(name, ndim=3, **changed):
    """The entry ``arch_kwargs`` of a plan of nnU-Net's for thick slices, with few channels."""
    strides = [(1, 1, 1), (1, 2, 2), (2, 2, 2)]
    return {
        "n_stages": 3,
        "features_per_stage": [4, 6, 8],
        "conv_op": f"torch.nn.modules.conv.Conv{ndim}d",
        "kernel_sizes": [[1, 3, 3][-ndim:], [3] * ndim, [3] * ndim],
        "strides": [list(stride[-ndim:]) for stride in strides],
        DEPTHS[name]: [2, 2, 2],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{ndim}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        **changed,
    }


def stock(name, channels=1, ndim=3, **changed):
    """The network that nnU-Net builds from such a plan."""
    arguments = architecture(name, ndim, **changed)
    return get_network_from_plans(f"{CLASSES}.{name}", arguments, LAYERS, channels, 3, deep_supervision=True)


def checkpoint_of(name):
    network = create_encoder(name, 1, PATCH, architecture=architecture(name))
    return EncoderCheckpoint(
        encoder_weights(network), name, PATCH, 1, overrides={"architecture": architecture(name)}, method="MAE"
    )


@NAMES
def test_same_network(name):
    """Names, maps and outputs are those of the network that nnU-Net builds."""
    theirs = stock(name).eval()
    ours = create_network(name, 1, 3, PATCH, deep_supervision=True, architecture=architecture(name)).eval()
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(1, 1, *PATCH)
    with torch.no_grad():
        maps = ours.encode(image)
        for a, b in zip([*maps, *ours(image)], [*theirs.encoder(image), *theirs(image)], strict=True):
            assert torch.equal(a, b)
    assert [m.shape[1:] for m in maps] == [
        (dim, *grid) for dim, grid in zip(ours.feature_channels, ours.grid_sizes, strict=True)
    ]
    assert ours.feature_strides == [(1, 1, 1), (1, 2, 2), (2, 4, 4)]


@NAMES
def test_weights_go_into_nnunets_network(name, tmp_path):
    checkpoint = checkpoint_of(name)
    checkpoint.save(tmp_path / "encoder.pth")
    network = stock(name)
    report = load_encoder(tmp_path / "encoder.pth").load_into(network)
    parameters = dict(network.named_parameters())
    assert report.coverage(parameters, "encoder.") == 1 and not report.adapted and not report.unused
    assert len(report.loaded) == len(set(report.loaded)) == sum(n.startswith("encoder.") for n in parameters)
    assert all(n.startswith("decoder.") for n in report.fresh)
    for n in report.loaded:
        assert torch.equal(parameters[n], checkpoint.weights[n])


@NAMES
def test_other_channels_and_axes(name):
    """Another number of channels, and a plan that convolves along all axes."""
    checkpoint = checkpoint_of(name)
    report = checkpoint.load_into(stock(name, channels=2, kernel_sizes=[[3, 3, 3]] * 3))
    assert any("channels 1 to 2" in how for how in report.adapted.values())
    assert any("kernel 1x3x3 to 3x3x3" in how for how in report.adapted.values())
    assert all(n.startswith("decoder.") for n in report.fresh)


@NAMES
def test_nnssls_plan(name, tmp_path):
    """A reader of nnssl's checkpoints builds the network from the plan inside, and finds its weights."""
    checkpoint_of(name).save(tmp_path / "encoder.pth")
    content = load_checkpoint(tmp_path / "encoder.pth")
    plan = content["nnssl_adaptation_plan"]
    described = plan["architecture_plans"]
    network = get_network_from_plans(
        described["arch_class_name"], described["arch_kwargs"], described["arch_kwargs_requiring_import"], 1, 3
    )
    own = {n for n in network.state_dict() if n.startswith((plan["key_to_encoder"], plan["key_to_stem"]))}
    assert own == set(content["network_weights"])
    assert all(network.get_submodule(key) for key in plan["keys_to_in_proj"])


def test_classifier_starts_from_it():
    backbone, description, _ = pretrained_backbone(checkpoint_of("PlainConvUNet"))
    assert description.name == "PlainConvUNet"
    assert backbone(torch.zeros(2, 1, *PATCH)).shape == (2, 8)


def test_refused():
    checkpoint = checkpoint_of("PlainConvUNet")
    with pytest.raises(ValueError, match=r"\(PlainConvUNet\), the network is ResidualEncoderUNet"):
        checkpoint.load_into(stock("ResidualEncoderUNet"))
    with pytest.raises(ValueError, match="of a 3D network, this one is 2D"):
        checkpoint.load_into(stock("PlainConvUNet", ndim=2))
    with pytest.raises(ValueError, match="needs a network with a 2D and a 3D form; PlainConvUNet"):
        create_pair("PlainConvUNet", (16, 32), PATCH, 3, 1, {"architecture": architecture("PlainConvUNet")})


@pytest.mark.parametrize(
    "changed,message",
    [
        ({"norm_op": "subprocess.Popen"}, "torch.nn has no layer 'subprocess.Popen'"),
        ({"nonlin": "torch.nn.functional.relu"}, "torch.nn has no layer"),
        ({"n_stages": 10**6}, "n_stages must be 0 to 256"),
        ({"n_conv_per_stage": 10**6}, "n_conv_per_stage must be 0 to 256"),
        ({"strides": [[1, 1, 1], [1, 2, 2], [2, 3, 2]]}, "does not divide"),
    ],
)
def test_mistakes(changed, message):
    with pytest.raises(ValueError, match=message):
        create_network("PlainConvUNet", 1, 2, PATCH, architecture=architecture("PlainConvUNet", **changed))


def test_they_exist_for_plans():
    assert not {*DEPTHS} & {*list_networks()}
    assert [find_stock(f"{CLASSES}.{name}") for name in DEPTHS] == [*DEPTHS]
    assert find_stock(get_network("mit_7").class_path) is None
