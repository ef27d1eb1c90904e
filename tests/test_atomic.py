"""Folders are written whole or not at all."""

from __future__ import annotations

import pytest

from nnunet_transformers._atomic import new_folder


def fill(path, fails=False):
    with new_folder(path) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").touch()
        (folder / "file").touch()
        if fails:
            raise KeyboardInterrupt


@pytest.mark.parametrize("is_there", [False, True])
def test_new_folder(tmp_path, is_there):
    path = tmp_path / "folder"
    if is_there:
        path.mkdir()
    before = [(p, p.stat().st_ino) for p in tmp_path.iterdir()]
    with pytest.raises(KeyboardInterrupt):
        fill(path, fails=True)
    assert [(p, p.stat().st_ino) for p in tmp_path.iterdir()] == before
    assert not is_there or not list(path.iterdir())
    fill(path)
    assert {p.name for p in path.iterdir()} == {"sub", "file"}
    # one that is there, which may be a mount, is not replaced
    assert not is_there or path.stat().st_ino == before[0][1]
