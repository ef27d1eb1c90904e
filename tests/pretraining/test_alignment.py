"""MGCA's attention: maps, figure, command, error messages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from typer.testing import CliRunner

from benchmarks.synthetic_reports import write_dataset
from nnunet_transformers import cli
from nnunet_transformers.pretraining.alignment import AlignmentCheckpoint
from nnunet_transformers.pretraining.figures.attention_maps import draw_attention
from nnunet_transformers.pretraining.losses import word_attention
from nnunet_transformers.pretraining.methods.mgca import MGCA
from nnunet_transformers.pretraining.report_attention import attend

from .test_mgca import VIT, checkpoints, method

REPORT = "There is a large nodule in the left lung, 2.5 cm."
NETWORKS = {VIT: (3, 2), "resnet18": (4, 3), "unet2022_tiny": (4, 4)}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("radiographs")
    write_dataset(folder, images=1, size=80)
    return next(folder.glob("*.png"))


def saved(bert, folder, network=VIT, size=(48, 32), **settings):
    module = method(bert, network, **{"patch_size": size, **settings}).eval()
    checkpoints(module)["alignment.pth"].save(folder / "alignment.pth")
    return module


@pytest.mark.parametrize("network", NETWORKS)
def test_maps_of_every_kind_of_encoder(network, bert, image, tmp_path):
    size = (64, 64) if network == "unet2022_tiny" else (48, 32)
    module = saved(bert, tmp_path, network, size)
    checkpoint = AlignmentCheckpoint.load(tmp_path / "alignment.pth")
    loaded = checkpoint.build_method(MGCA)
    assert not loaded.training
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in loaded.state_dict().items())
    attention = attend(loaded, checkpoint.max_length, image, REPORT)
    assert attention.words == ["There", "is", "a", "large", "nodule", "in", "the", "left", "lung", "2.5", "cm"]
    assert attention.image.shape == (1, *size)
    assert attention.maps.shape == (11, *NETWORKS[network])
    np.testing.assert_allclose(attention.maps.sum((1, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose(attention.word_weights.sum(), 1, rtol=1e-5)
    if network == VIT:
        assert attention.patch_weights.shape == NETWORKS[network]
        np.testing.assert_allclose(attention.patch_weights.sum(), 1, rtol=1e-5)
    else:
        assert attention.patch_weights is None
    draw_attention(attention, tmp_path / "attention.png", words=3)
    picture = imread(tmp_path / "attention.png")[..., :3]
    upper, lower = picture[: len(picture) // 2], picture[-len(picture) // 8 :]
    assert min((upper < 0.9).mean(), (lower < 0.9).mean()) > 0.001  # neither half is blank


def test_a_word_finds_its_patch():
    patches = torch.eye(6)[None]
    words = torch.eye(6)[None, [4, 1]]
    attention = word_attention(words, patches, temperature=0.05)
    assert attention.argmax(-1).tolist() == [[4, 1]]
    assert attention.amax() > 0.99


def test_command(bert, image, tmp_path):
    saved(bert, tmp_path)
    picture = tmp_path / "attention.png"
    command = ["pretrain", "show-attention", str(tmp_path / "alignment.pth"), str(image), REPORT, str(picture)]
    result = CliRunner().invoke(cli.app, [*command, "--words", "2"])
    assert result.exit_code == 0, result.output
    assert picture.is_file()
    assert result.stdout.splitlines()[0].count(",") == 1

    def mistake(position, value):
        changed = [*command]
        changed[position] = str(value)
        return str(CliRunner().invoke(cli.app, changed).exception)

    assert "no words" in mistake(4, "...")
    assert "none.pth" in mistake(2, tmp_path / "none.pth")
    assert "none.png" in mistake(3, tmp_path / "none.png")
    checkpoints(method(bert))["encoder.pth"].save(tmp_path / "encoder.pth")
    assert "is not a checkpoint of kind alignment" in mistake(2, tmp_path / "encoder.pth")
    saved(bert, tmp_path, cta_weight=0)
    assert "without CTA" in mistake(4, REPORT)


def test_altered_files_are_refused(bert, tmp_path):
    saved(bert, tmp_path)
    path = tmp_path / "alignment.pth"
    content = torch.load(path, weights_only=True)
    content["alignment"]["max_length"] += 1
    torch.save(content, path)
    with pytest.raises(ValueError, match="altered"):
        AlignmentCheckpoint.load(path)
