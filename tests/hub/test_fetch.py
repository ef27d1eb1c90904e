"""Download by huggingface_hub's own client, from a server on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from nnunet_transformers.hub import fetch

ROOT = Path(__file__).parents[2]
FILES = {"README.md": b"# weights", "encoder.pth": b"weights" * 1000, "modeling.py": b"print('never')"}


def test_the_only_file(hub):
    commit = hub.add("o/n", FILES)
    found = fetch("hf://o/n")
    assert found.path.read_bytes() == FILES["encoder.pth"]
    assert (found.repository, found.file, found.commit, found.is_package) == ("o/n", "encoder.pth", commit, False)
    assert str(found) == f"hf://o/n/encoder.pth@{commit}: encoder.pth"
    # nothing else was downloaded
    assert [path.name for path in found.snapshot.iterdir()] == ["encoder.pth"]
    assert not any("resolve" in request and "encoder.pth" not in request for request in hub.requests)


def test_revisions(hub):
    first = hub.add("o/n", FILES)
    hub.add("o/n", {"encoder.pth": b"second"})
    other = hub.add("o/n", {"encoder.pth": b"third"}, branch="feature/x")
    assert fetch("hf://o/n").path.read_bytes() == b"second"
    assert fetch(f"hf://o/n@{first}").path.read_bytes() == FILES["encoder.pth"]
    found = fetch("hf://o/n/encoder.pth@feature/x")
    assert (found.path.read_bytes(), found.commit) == (b"third", other)
    # as a plan pins it
    hub.requests.clear()
    again = fetch(found.address)
    assert again == replace(found, is_from_cache=True)
    assert not hub.requests


def test_package(hub):
    files = {"p/manifest.json": b"{}", "p/models.json": b"[]", "p/models/m/fold_0.safetensors": b"w"}
    hub.add("o/n", {"README.md": b"", "x.py": b"", **files})
    found = fetch("hf://o/n")
    assert found.is_package and found.path.name == "p"
    assert {name: path.read_bytes() for name, path in found.contents.items()} == {
        name.removeprefix("p/"): content for name, content in files.items()
    }
    assert not (found.snapshot / "README.md").exists()


def test_without_a_connection(hub, monkeypatch):
    """The last download of the revision is taken; what was never downloaded is named with its address."""
    commit = hub.add("o/n", {**FILES, "other/encoder.pth": b""})
    downloaded = fetch("hf://o/n/encoder.pth")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    assert fetch("hf://o/n/encoder.pth") == replace(downloaded, is_from_cache=True)
    for source, url in (
        ("hf://o/n/other/encoder.pth", "o/n/resolve/main/other/encoder.pth"),
        (f"hf://o/n/other/encoder.pth@{commit}", f"o/n/resolve/{commit}/other/encoder.pth"),
        ("hf://o/n/encoder.pth@v2", "o/n/resolve/v2/encoder.pth"),
        ("hf://o/another", "o/another/tree/main"),
    ):
        with pytest.raises(ConnectionError) as error:
            fetch(source)
        assert f"download the file{'' if 'resolve' in url else 's'} elsewhere from http://127.0.0.1:9/{url}," in str(
            error.value
        )
        assert "127.0.0.1:9 cannot be reached (" in str(error.value)
        assert f"is not in the cache {constants.HF_HUB_CACHE}" in str(error.value)
        assert "\n" not in str(error.value)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_out_of_order(hub, status):
    hub.add("o/n", FILES)
    downloaded = fetch("hf://o/n")
    hub.status = status
    assert fetch("hf://o/n").path == downloaded.path
    with pytest.raises(ConnectionError, match=rf"o/x on {hub.endpoint} gives no answer \({status}: out of order\)"):
        fetch("hf://o/x")


def test_the_page_of_a_network_that_wants_a_login(hub):
    hub.add("o/n", FILES)
    downloaded = fetch("hf://o/n")
    hub.page = b"<html>Welcome to the airport</html>"
    assert fetch("hf://o/n").path == downloaded.path
    with pytest.raises(ConnectionError, match=f"^{hub.endpoint} does not answer as a hub"):
        fetch("hf://o/x")


@pytest.mark.parametrize("name", ["checkpoint_final.pth", "adaptation_plan.json"])
def test_damaged_on_its_way(hub, name):
    """The client compares sizes only; a damaged file does not stay in the cache."""
    hub.add("o/n", {"checkpoint_final.pth": b"weights", "adaptation_plan.json": b"{}"})
    hub.damages = True
    with pytest.raises(ValueError, match="was damaged on its way or since, and is removed from the cache"):
        fetch("hf://o/n")
    hub.damages = False
    for _ in range(2):  # the second file, if the first was found
        with suppress(ValueError):
            found = fetch("hf://o/n")
    assert found.contents[name].read_bytes() == hub.repositories["o/n"].files[name]
    found.contents[name].resolve().write_bytes(b"changed")
    with pytest.raises(ValueError, match=rf"{name} was damaged"):
        fetch(found.address)
    assert fetch(found.address).contents[name].read_bytes() == hub.repositories["o/n"].files[name]


class TestRefusals:
    """Each is one line, without a second try."""

    def message(self, kind, source):
        started = time.monotonic()
        with pytest.raises(kind) as error:
            fetch(source)
        assert time.monotonic() - started < 2
        assert "\n" not in str(error.value)
        return str(error.value)

    @pytest.mark.parametrize("token", ["hf_of_a_stranger", ""])
    def test_no_such_repository(self, hub, monkeypatch, token):
        hub.add("o/private", FILES, private=True)
        assert fetch("hf://o/private").file == "encoder.pth"
        monkeypatch.setenv("HF_TOKEN", token)
        for name in ("missing", "private"):
            expected = (
                f"there is no repository o/{name} on {hub.endpoint}, or it is private: check the name, or log in "
            )
            assert self.message(FileNotFoundError, f"hf://o/{name}").startswith(expected)

    def test_no_such_revision(self, hub):
        hub.add("o/n", FILES)
        assert self.message(FileNotFoundError, "hf://o/n@v9") == "o/n has no revision 'v9'"
        # the order of hf://owner/name@revision/file, as huggingface_hub writes it
        message = self.message(FileNotFoundError, "hf://o/n@v9/encoder.pth")
        assert message.endswith("a revision comes last, as in hf://owner/name/file@revision")

    def test_no_such_file(self, hub):
        hub.add("o/n", FILES)
        assert "o/n has no other.pth at main; it has encoder.pth" in self.message(
            FileNotFoundError, "hf://o/n/other.pth"
        )

    def test_gated(self, hub, monkeypatch):
        hub.add("o/n", FILES, gated=True)
        monkeypatch.setenv("HF_TOKEN", "")
        message = self.message(PermissionError, "hf://o/n")
        assert message.startswith(f"o/n is gated: ask for access on {hub.endpoint}/o/n, then log in")

    def test_token_with_a_character_that_none_has(self, hub, monkeypatch):
        """Such as the dash that a text editor has made of a hyphen."""
        hub.add("o/n", FILES)
        monkeypatch.setenv("HF_TOKEN", "hf_a\N{EN DASH}b")
        message = self.message(PermissionError, "hf://o/n")
        assert message.startswith(
            f"the token for o/n on {hub.endpoint} holds '\N{EN DASH}', a character that no token has: log in"
        )

    @pytest.mark.parametrize("status", [401, 403])
    def test_status(self, hub, status):
        hub.status = status
        self.message((PermissionError, FileNotFoundError), "hf://o/n")


def test_environment_of_huggingface_hub(hub, tmp_path):
    """HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE, in processes of their own."""
    commit = hub.add("o/n", FILES)
    code = "import sys\nfrom nnunet_transformers.hub import fetch\nfor source in sys.argv[1:]: print(fetch(source))"

    def run(*sources, **variables):
        environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.endpoint, **variables}
        command = [sys.executable, "-c", code, *sources]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)

    first = run("hf://o/n")
    assert first.stdout == f"hf://o/n/encoder.pth@{commit}: encoder.pth\n", first.stderr
    hub.requests.clear()
    second = run("hf://o/n", "hf://o/x", HF_HUB_OFFLINE="1")
    assert second.stdout == f"hf://o/n/encoder.pth@{commit}: encoder.pth, from the cache\n", second.stderr
    assert "HF_HUB_OFFLINE is set, and hf://o/x is not in the cache" in second.stderr
    assert not hub.requests
