"""The files around the package agree with it: version, changelog, navigation and links of the site."""

from __future__ import annotations

import importlib.util
import posixpath
import re
from pathlib import Path

import pytest
import yaml

from nnunet_transformers import __version__

ROOT = Path(__file__).parents[1]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
MOVED = re.findall(r"^\| `([\w.]+)`.*? \| `([\w.]+)`.*? \|$", CHANGELOG, flags=re.MULTILINE)
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")


def load_hooks():
    specification = importlib.util.spec_from_file_location("mkdocs_hooks", ROOT / "mkdocs_hooks.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


hooks = load_hooks()


def module_file(name: str) -> Path | None:
    path = ROOT.joinpath("nnunet_transformers", *name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def test_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    assert re.findall(r"^## \[(\d.*?)\]", CHANGELOG, flags=re.MULTILINE)[0] == __version__


@pytest.mark.parametrize(("old", "new"), MOVED, ids=[old for old, _ in MOVED])
def test_moved_modules(old, new):
    assert module_file(new), f"there is no {new}"
    # a package may have taken the place of a module
    assert not module_file(old) or (ROOT / "nnunet_transformers" / old.replace(".", "/")).is_dir(), (
        f"{old} did not move"
    )


def test_changelog_lists_moved_modules():
    assert len(MOVED) > 40


def navigation(entries: list) -> list[str]:
    pages = []
    for entry in entries:
        for target in entry.values():
            pages += navigation(target) if isinstance(target, list) else [target]
    return pages


def test_navigation():
    configuration = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    pages = navigation(configuration["nav"])
    assert len(set(pages)) == len(pages)
    docs = {path.name for path in (ROOT / "docs").glob("*.md")}
    outside = {hooks.INDEX, "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/NOTES.md"}
    assert set(pages) == docs | outside


def site_pages() -> dict[str, Path]:
    pages = hooks.site_files() | {path.name: path for path in (ROOT / "docs").glob("*.md")}
    return {site: path for site, path in pages.items() if path.suffix == ".md"}


@pytest.mark.parametrize(("page", "path"), site_pages().items(), ids=list(site_pages()))
def test_links_of_the_site(page, path):
    repository = "https://example.org/blob"
    text = hooks.rewrite_links(path.read_text(), page, repository)
    files = {file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").rglob("*.*")} | set(
        hooks.site_files()
    )
    for target in LINK.findall(text):
        assert posixpath.normpath(posixpath.join(posixpath.dirname(page), target)) in files, f"{page} links to {target}"
    for target in re.findall(rf"\]\({repository}/([^)#]+)", text):
        assert (ROOT / target).is_file(), f"{page} links to {target}"


def test_rewritten_links():
    text = "[a](../README.md#use) [b](../LICENSE) ![c](../benchmarks/results/scaling.png) [d](planner.md) [e](https://x.org)"
    expected = (
        "[a](index.md#use) [b](R/LICENSE) ![c](benchmarks/results/scaling.png) [d](planner.md) [e](https://x.org)"
    )
    assert hooks.rewrite_links(text, "scaling.md", "R") == expected
    assert hooks.rewrite_links("[a](docs/planner.md#x) [b](#use)", "index.md", "R") == "[a](planner.md#x) [b](#use)"
    text = "[a](../../docs/planner.md) [b](cpu_2d/benchmark.md)"
    expected = "[a](../../planner.md) [b](cpu_2d/benchmark.md)"
    assert hooks.rewrite_links(text, "benchmarks/results/em.md", "R") == expected


def test_reference_has_every_package():
    pages = hooks.reference_pages()
    packages = {path.name for path in (ROOT / "nnunet_transformers").iterdir() if (path / "__init__.py").is_file()}
    assert {page.split("/")[1].split(".")[0] for page in pages} == packages - hooks.LEFT_OUT
    assert "::: nnunet_transformers.architectures\n" in pages["api/architectures.md"]
    # lists no names as its own: its modules, but for private ones
    trainers = pages["api/trainers.md"]
    assert "::: nnunet_transformers.trainers.trainer\n" in trainers and "trainers._" not in trainers


def test_package_has_types():
    assert (ROOT / "nnunet_transformers/py.typed").is_file()
