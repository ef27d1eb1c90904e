"""The site of ``make docs``: pages from the whole repository, and a reference made from the package's code.

Pages link to files as GitHub shows them, relative to the page, out of ``docs/`` as well. On the site a file of
``docs/`` stands at the top, the README is the first page, ``INCLUDED`` files keep their paths, and a link to any other
file goes to the repository.
"""

from __future__ import annotations

import ast
import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent
PACKAGE = "nnunet_transformers"
README, INDEX = "README.md", "index.md"
INCLUDED = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/NOTES.md", "benchmarks/results/**/*.*")
# packages without an interface in Python; and files that nnU-Net imports
LEFT_OUT = {"benchmarking", "cli", "demo", "ext_trainers"}
REFERENCE = "Reference"
# [text](target) and ![text](target), but for addresses and anchors of the same page
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def site_files() -> dict[str, Path]:
    """The files from outside ``docs/`` by their path on the site."""
    paths = [path for pattern in INCLUDED for path in sorted(ROOT.glob(pattern))]
    return {INDEX: ROOT / README} | {path.relative_to(ROOT).as_posix(): path for path in paths}


def rewrite_links(markdown: str, page: str, repository: str) -> str:
    """Turn the links of a page from those between files of the repository into those between files of the site.

    Args:
        markdown: text of the page.
        page: its path on the site.
        repository: address at which a path of the repository can be appended.
    """
    included = site_files()
    sources = {path.relative_to(ROOT).as_posix(): site for site, path in included.items()}
    source = included[page].relative_to(ROOT).as_posix() if page in included else f"docs/{page}"

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        if target not in sources and not target.startswith("docs/"):
            return f"{repository}/{target}"
        return posixpath.relpath(sources.get(target, target.removeprefix("docs/")), posixpath.dirname(page) or ".")

    return LINK.sub(rewrite, markdown)


def reference_pages() -> dict[str, str]:
    """A page for each package, by its path on the site: what ``__all__`` lists, or else the package's modules."""
    pages = {}
    for init in sorted((ROOT / PACKAGE).rglob("__init__.py")):
        parts = init.parent.relative_to(ROOT).parts
        if len(parts) == 1 or parts[1] in LEFT_OUT:
            continue
        names = [".".join(parts)]
        if not lists_names(init):
            modules = sorted(path.stem for path in init.parent.glob("*.py") if not path.stem.startswith("_"))
            names += [f"{names[0]}.{module}" for module in modules]
        title = ".".join(parts[1:])
        pages[f"api/{title}.md"] = "\n\n".join([f"# {title}", *(f"::: {name}" for name in names)]) + "\n"
    return pages


def lists_names(init: Path) -> bool:
    """Whether a package states its ``__all__`` as a list, which can be read without importing it."""
    return any(
        isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
        and isinstance(node.value, ast.List)
        for node in ast.parse(init.read_text(encoding="utf-8")).body
    )


def on_config(config: MkDocsConfig) -> None:
    """Add the reference to the navigation."""
    assert config.nav is not None
    config.nav.append({REFERENCE: [{Path(page).stem: page} for page in reference_pages()]})


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages from outside ``docs/``."""
    from mkdocs.structure.files import File

    for site, path in site_files().items():
        files.append(File.generated(config, site, abs_src_path=os.fspath(path)))
    for site, content in reference_pages().items():
        files.append(File.generated(config, site, content=content))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page."""
    return rewrite_links(markdown, page.file.src_uri, f"{config.repo_url}/blob/main")
