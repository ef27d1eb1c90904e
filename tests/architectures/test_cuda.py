"""Networks on a GPU of fake tensors: one device, PyTorch's autocast, and the planner's rules of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nnunet_transformers.architectures import create_network
from nnunet_transformers.plans.memory import _MixedPrecision
from tests.architectures.test_networks import COMPILED, IN_3D, SMALLEST, forms, smallest_overrides
from tests.fake_cuda import backward, fake_cuda, requires_cuda_build

# the cache of a bias identifies its table by the address of the data
pytestmark = [requires_cuda_build, pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")]


def build(name, patch_size, **options):
    overrides = {**smallest_overrides(name, len(patch_size)), **options}
    return create_network(name, 1, 3, patch_size, deep_supervision=True, **overrides)


def output_types(network, image):
    """Outputs, and the types of the tensors that each module returns, by the module's name."""
    found = {}

    def keep(name):
        def hook(module, inputs, outputs):
            outputs = [outputs] if isinstance(outputs, Tensor) else outputs
            found[name] = [output.dtype for output in outputs if isinstance(output, Tensor)]

        return hook

    for name, module in network.named_modules():
        module.register_forward_hook(keep(name))
    return network(image), found


def step(network, image, dtype):
    """Take a training step; returns the types of outputs."""
    with torch.autocast("cuda", dtype):
        outputs, types = output_types(network, image)
        loss = sum(output.float().square().mean() for output in outputs)
    loss.backward()
    assert all(p.grad is not None and p.grad.device == p.device for p in network.parameters())
    torch.optim.AdamW(network.parameters(), foreach=False).step()
    return types


# each in 3D if it has that form
LARGEST_FORMS = forms(IN_3D, 3, patches=COMPILED)
LARGEST_FORMS += forms([name for name in SMALLEST if name not in IN_3D], 2, patches=COMPILED)


@pytest.mark.parametrize("name,patch_size", LARGEST_FORMS)
def test_training_step(name, patch_size):
    network = build(name, patch_size)
    with fake_cuda() as device:
        network, image = device.move(network), torch.randn(2, 1, *patch_size, device="cuda")
        types = step(network, image, torch.float16)
        assert device.waits == []
    with torch.device("meta"), _MixedPrecision():
        assert output_types(build(name, patch_size), torch.randn(2, 1, *patch_size))[1] == types


@pytest.mark.parametrize("name,patch_size", forms(["setr_pup_tiny"], patches=COMPILED))
def test_bfloat16_and_recomputation(name, patch_size):
    network = build(name, patch_size, activation_checkpointing=True)
    with fake_cuda() as device:
        network, image = device.move(network), torch.randn(2, 1, *patch_size, device="cuda")
        types = step(network, image, torch.bfloat16)
        assert device.waits == []
    assert torch.bfloat16 in types["decoder"]
    assert torch.float16 not in {dtype for dtypes in types.values() for dtype in dtypes}


@pytest.mark.parametrize("name,patch_size", forms(SMALLEST, 2, patches=COMPILED))
def test_prediction(name, patch_size):
    network = create_network(name, 1, 3, patch_size, **smallest_overrides(name, 2)).eval()
    with fake_cuda() as device:
        network = device.move(network)
        with torch.inference_mode(), torch.autocast("cuda", torch.float16):
            for _ in range(2):  # the second time with cached biases
                assert network(torch.randn(1, 1, *patch_size, device="cuda")).shape == (1, 3, *patch_size)
        assert device.waits == []


class TestTheDevice:
    """What the other tests rely on."""

    def test_two_devices_raise(self):
        with fake_cuda(), pytest.raises(RuntimeError, match="same device"):
            torch.ones(2, device="cuda") + torch.ones(2)

    def test_host_waits_are_found(self):
        with fake_cuda() as device:
            image = torch.ones(2, 8, device="cuda")
            for read in (lambda: float(image.sum()), lambda: image.cpu(), lambda: image.nonzero()):
                device.waits.clear()
                read()
                assert device.waits == ["the test"]

    def test_a_forgotten_tensor_is_found(self):
        class Forgets(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.table = torch.arange(4)

            def forward(self, image):
                return image + self.table

        network = Forgets()
        with fake_cuda() as device, pytest.raises(Exception, match=r"[Ff]ake|same device"):
            device.move(network)(torch.ones(4, device="cuda"))

    def test_gradients_are_those_of_the_engine(self):
        network = build("qt_unet_tiny", (32, 32)).double()
        image = torch.randn(1, 1, 32, 32, dtype=torch.float64)
        for call in (backward, Tensor.backward):
            torch.manual_seed(0)
            network.zero_grad()
            call(sum(output.square().mean() for output in network(image)))
            gradients = [p.grad.clone() for p in network.parameters()]
            if call is backward:
                own = gradients
        torch.testing.assert_close(own, gradients)
