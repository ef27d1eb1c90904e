"""Ablations of every registered network: what is left, what has no effect, and weights that still load."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunet_transformers.architectures import create_network, get_network
from nnunet_transformers.architectures._removal import bypass, silence
from nnunet_transformers.architectures.without import class_without
from nnunet_transformers.cpu import optimize
from nnunet_transformers.plans.gate import check_network
from tests.architectures.test_networks import INSTALLED, reduced

# a small one of each class
SMALL = {
    "qt_unet_tiny": {"num_stages": 2, "window_sizes": 4},
    "vt_unet_tiny": {"num_stages": 2, "window_sizes": 4},
    "unet2022_tiny": {"embed_dim": 24, "num_heads": 3, "num_stages": 2, "depths": (2, 2)},
    "mit_7": {"num_stages": 2},
    "setr_pup": {"embed_dim": 32, "num_heads": 2, "depth": 2},
    "setr_pup_dinov3": {"embed_dim": 32, "num_heads": 2, "depth": 2},
    "resnet18_unet": {},
    "mednext_s": reduced("mednext_s"),
    "swin_unetr": reduced("swin_unetr"),
    "unetr": reduced("unetr"),
    "primus_v3_s": reduced("primus_v3_s"),
    "resunet_50": {"widths": (8, 8), "depths": (1, 1), "merge_strides": 2},
}
NAMES = [name for name in INSTALLED if name in SMALL]
# modules have the same names in 3D
CASES = [(name, part) for name in NAMES for part in sorted(get_network(name).network_class.may_be_removed())]


def build(name, ndim, **options):
    edge = 64 if name.startswith("swin_unetr") else 16 if ndim == 3 else 32
    torch.manual_seed(0)
    network = create_network(name, 1, 2, (edge,) * ndim, **{**SMALL[name], **options})
    with torch.no_grad():  # LayerScale and tables that start near zero hide what a branch does
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return network.eval(), torch.randn(1, 1, *(edge,) * ndim)


def test_every_class_is_among_the_cases():
    assert {get_network(name).network_class for name in INSTALLED} == {
        get_network(name).network_class for name in NAMES
    }
    # each states what it can do without
    assert all(get_network(name).network_class.may_be_removed() for name in NAMES)


def test_under_inference_mode():
    """Whose tensors record no gradients, by which what has no further use is found."""
    registered = get_network("mit_7")
    with torch.inference_mode():
        network = class_without(registered.network_class, "attention")(
            1, 2, (32, 32), **registered.arguments_for(2) | SMALL["mit_7"]
        )
    assert not all(parameter.requires_grad for parameter in network.parameters())


def used_by(network, image):
    """Names of the parameters that the output depends on."""
    network.zero_grad()
    network(image).square().sum().backward()
    return {n for n, p in network.named_parameters() if p.grad is not None and bool(p.grad.abs().max() > 0)}


@pytest.mark.parametrize("name,part", CASES)
def test_part(name, part):
    network, image = build(name, min(get_network(name).dimensions))
    whole, used = network(image), used_by(network, image)
    state = network.state_dict()
    network.remove(part)
    assert (network(image) - whole).abs().max() > 1e-5
    left = used_by(network, image)
    assert left < used or part == "skips"
    if part == "attention":
        assert not [n for n in left if ".qkv." in n or ".kv." in n or n.endswith(".q.weight")]
        assert [n for n in left if ".mlp." in n]
    if part == "blocks":
        # UNETR's decoder has blocks of convolutions, decoder.encoder2 and so on, which stay
        others = ("stem.", "decoder.seg_layers.", "decoder.encoder")
        assert not [n for n in left if ".blocks." in n and not n.startswith(others)]
    if part == "skips":
        # the image reaches the output by way of the bottleneck alone
        bottleneck = {n for n in left if not n.startswith("decoder.")}
        assert bottleneck
    # frozen is what nothing depends on, and all that nothing depends on any more is frozen or of no effect
    assert not [n for n, p in network.named_parameters() if not p.requires_grad and n in left]
    # names stay
    assert list(network.state_dict()) == list(state)
    network.load_state_dict(state)
    fast = optimize(network)
    before = network(image)
    torch.testing.assert_close(fast(image), before, atol=1e-4, rtol=1e-4)


def test_what_is_removed_is_frozen():
    """Which DistributedDataParallel requires; the group of a pattern says what that is."""
    network = nn.Sequential(*(nn.ModuleDict({"inner": nn.Linear(2, 2), "outer": nn.Linear(2, 2)}) for _ in range(2)))
    assert silence(network, r"(\d\.inner)") == 2
    assert bypass(network, r"(1)\.outer") == 1
    left = {name for name, p in network.named_parameters() if p.requires_grad}
    assert left == {"0.outer.weight", "0.outer.bias"}


def test_a_transformer_passed_by():
    """Without its blocks, a network is what its blocks would be if they returned their input."""
    network, image = build("setr_pup", 2)
    tokens = network.encoder.position(network.stem(image))
    network.remove("blocks")
    expected = network.encoder.norm(tokens).transpose(1, 2).unflatten(2, network.encoder.position.grid_size)
    torch.testing.assert_close(network.encode(image)[0], expected)


@pytest.mark.parametrize("part,left", [("attention", "convolution"), ("convolution", "attention")])
def test_half_of_the_pi_block(part, left):
    """Removing a half gives the network that was built without it (paper, table 6)."""
    network, image = build("unet2022_tiny", 2)
    other = create_network("unet2022_tiny", 1, 2, (32, 32), **SMALL["unet2022_tiny"], **{part: False}).eval()
    state = network.state_dict()
    if part == "attention":
        state = {k.replace(".parallel.attn.proj.", ".parallel.proj."): v for k, v in state.items()}
    other.load_state_dict({k: v for k, v in state.items() if k in other.state_dict()})
    network.remove(part)
    torch.testing.assert_close(network(image), other(image))
    assert other.parts == [left, "blocks", "skips"]
    other.remove(left)
    assert (other(image) - network(image)).abs().max() > 1e-6


def test_bottleneck_alone():
    """Without skips, what the first stages hand on has no effect."""
    network, image = build("mit_7", 3)
    network.remove("skips")
    features = network.encoder(network.stem(image))[0]
    stem = network.stem(image)
    changed = [torch.randn_like(f) for f in features[:-1]]
    one, other = network.decoder(stem, features), network.decoder(stem + 1, [*changed, features[-1]])
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["qt_unet_tiny", "vt_unet_tiny", "unet2022_tiny"])
def test_the_branch_at_full_resolution_is_a_skip(name):
    """Without skips it gets an empty image; the bottleneck still reaches the logits."""
    network, image = build(name, 2, full_resolution_channels=4)
    other = torch.rand_like(image)
    assert (network(image) - network(other)).abs().max() > 1e-6
    network.remove("skips")
    seen = []
    network.decoder.full_resolution.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    assert (network(image) - network(other)).abs().max() > 1e-6
    assert [float(image.abs().max()) for image in seen] == [0, 0]


def test_unknown_part():
    network, _ = build("setr_pup", 2)
    with pytest.raises(ValueError, match="SETRPUP has no 'skips' to remove, only attention, blocks"):
        network.remove("skips")


def test_class_for_a_plan():
    """Plans name it, nnU-Net finds it, the gate lets it pass, and it computes the same as the network after removal."""
    network, image = build("mit_7", 2)
    found = class_without(type(network), "attention")
    assert issubclass(found, type(network)) and found is class_without(type(network), "attention")
    path = f"{found.__module__}.{found.__qualname__}"
    assert path == "nnunet_transformers.architectures.without.MiT_attention"
    check_network(
        {"architecture": {"network_class_name": path, "_kw_requires_import": [], "arch_kwargs": {}}}, "the plan"
    )
    built = found(1, 2, (32, 32), **get_network("mit_7").arguments_for(2) | SMALL["mit_7"]).eval()
    built.load_state_dict(network.state_dict())
    network.remove("attention")
    torch.testing.assert_close(built(image), network(image))
    with pytest.raises(AttributeError, match="MiT_convolution"):
        class_without(type(network), "convolution")


@pytest.mark.parametrize(
    "name,part", [("qt_unet_tiny", "attention"), ("unet2022_tiny", "skips"), ("mit_7", "attention")]
)
def test_every_trained_parameter_of_a_plans_class_has_a_gradient(name, part):
    """Norms before what is removed included, for which DDP would wait."""
    network, image = build(name, 2)
    found = class_without(type(network), part)
    built = found(1, 2, (32, 32), **get_network(name).arguments_for(2) | SMALL[name])
    built(image).sum().backward()
    trained = {n: p for n, p in built.named_parameters() if p.requires_grad}
    assert trained and not [n for n, p in trained.items() if p.grad is None]
