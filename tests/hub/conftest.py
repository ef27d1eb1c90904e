"""A hub on this machine, and huggingface_hub's client set to it as its environment variables would."""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from .server import TOKEN, Hub, running_hub


def connect(hub: Hub, monkeypatch: pytest.MonkeyPatch, cache) -> None:
    """Set what huggingface_hub read from its variables when it was imported; the token it reads each time."""
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": False,
        # a storage of its own protocol, which the client prefers where it is installed
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub, with the token that may write to it."""
    with running_hub() as hub:
        connect(hub, monkeypatch, tmp_path / "cache")
        yield hub
