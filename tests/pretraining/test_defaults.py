"""Default hyper-parameters of the methods: the papers', or where paper and release are silent, those stated here."""

from __future__ import annotations

import inspect

import pytest

from nnunet_transformers.pretraining.methods.alice import Alice
from nnunet_transformers.pretraining.methods.anatomical_embedding import AnatomyMatching
from nnunet_transformers.pretraining.methods.mae import MAE
from nnunet_transformers.pretraining.methods.mgca import MGCA
from nnunet_transformers.pretraining.methods.qt_ssl import QTSSL
from nnunet_transformers.pretraining.methods.unimiss import UniMiSS
from nnunet_transformers.pretraining.methods.volume_fusion import VolumeFusion

NETWORK = {"network_overrides": None}
DEFAULTS = {
    # thesis, self-supervised pretraining: Adam, 10 warm-up epochs, EMA from 0.996
    QTSSL: {
        "network": "qt_unet_tiny",
        "patch_size": (96, 96, 96),
        "input_channels": 1,
        "heads": ("reconstruction", "rotation", "byol"),
        "byol_weight": 2.0,
        "lr": 0.4e-4,
        "weight_decay": 1.5e-6,
        "warmup_epochs": 10,
        "tau": 0.996,
    },
    # appendix, pretraining; DINO's temperatures
    UniMiSS: {
        "network": "mit_7",
        "patch_size_2d": (224, 224),
        "patch_size_3d": (16, 96, 96),
        "input_channels_2d": 3,
        "output_dim": 65536,
        "batch_norm": False,
        "lr": 8e-4,
        "warmup_epochs": 10,
        "min_lr": 1e-6,
        "weight_decay": (0.04, 0.4),
        "tau": 0.996,
        "student_temperature": 0.1,
        "teacher_temperature": 0.04,
        "center_momentum": 0.9,
        "clip_grad_norm": 0.3,
    },
    # section 4.1; the release's head
    Alice: {
        "network": "qt_unet_tiny",
        "patch_size": (64, 192, 192),
        "input_channels": 1,
        "losses": ("reconstruction", "views", "alignment"),
        "similarity": "cosine",
        "released_casa": False,
        "decoder_depth": 2,
        "decoder_heads": 8,
        "hidden_dim": 2048,
        "bottleneck_dim": 256,
        "lr": 5e-5,
        "weight_decay": 0.05,
        "warmup_epochs": 100,
        "tau": 0.996,
    },
    # nnssl's trainers of OpenMind's Primus-M (BaseEvaMAETrainer_BS8), and the cells of its ResEnc-L
    MAE: {
        "network": "qt_unet_tiny",
        "patch_size": (160, 160, 160),
        "input_channels": 1,
        "mask_size": 16,
        "decoder_depth": 2,
        "decoder_heads": 12,
        "optimizer": "adamw",
        "lr": 3e-4,
        "weight_decay": 0.05,
        "warmup_epochs": 50,
    },
    # nnssl's VolumeFusionEvaTrainer_BS8
    VolumeFusion: {
        "network": "qt_unet_tiny",
        "patch_size": (160, 160, 160),
        "input_channels": 1,
        "num_classes": 5,
        "decoder_depth": 2,
        "decoder_heads": 12,
        "optimizer": "adamw",
        "lr": 3e-4,
        "weight_decay": 0.05,
        "warmup_epochs": 50,
    },
    # section 4.1 and the release's configuration
    MGCA: {
        "network": "vit_base_patch16_224",
        "patch_size": (224, 224),
        "input_channels": 3,
        "pretrained": False,
        "num_text_layers": 6,
        "summed_text_layers": 1,
        "ita_weight": 1.0,
        "cta_weight": 1.0,
        "cpa_weight": 1.0,
        "cta_heads": 0,
        "num_prototypes": 500,
        "frozen_epochs": 1,
        "lr": 2e-5,
        "min_lr": 1e-8,
        "weight_decay": 0.05,
        "warmup_share": 0.4,
        "reference_compat": False,
    },
    # SAM, section IV: 0.02 with a polynomial decay, temperature 0.5
    AnatomyMatching: {
        "channels": (24, 48, 96),
        "dim": 64,
        "points": 200,
        "negative_radius": 10.0,
        "negatives": 500,
        "temperature": 0.5,
        "lr": 0.02,
        "weight_decay": 1e-4,
    },
}


@pytest.mark.parametrize("method", DEFAULTS, ids=lambda method: method.__name__)
def test_defaults(method):
    parameters = inspect.signature(method).parameters.values()
    given = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    expected = DEFAULTS[method] | ({} if method is AnatomyMatching else NETWORK)
    assert given == expected
