"""Hooks of MkDocs: files of the repository's root as pages, and links that hold on GitHub and on the site alike."""

from __future__ import annotations

import pathlib
import posixpath
import re
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
_SOURCES = {page: source for source, page in PAGES.items()}
_PICTURES = (".png", ".jpg", ".svg")
_LINK = re.compile(r"(?<=\]\()(?P<target>[^\s()#:]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that lie outside of docs."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page with links as the site needs them; pictures from outside of docs are copied into the site."""
    address = page.file.src_uri
    source = _SOURCES.get(address, f"docs/{address}")

    def place(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["target"]))
        if path.endswith(_PICTURES) and not path.startswith("docs/") and files.get_file_from_path(path) is None:
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
        return address_of(path, address, str(config.repo_url))

    return _LINK.sub(lambda link: place(link) if _is_there(source, link["target"]) else link["target"], markdown)


def address_of(path: str, page: str, repository: str) -> str:
    """Where a page of the site finds a file of the repository.

    Args:
        path: of the file, from the repository's root.
        page: the page that links to it, from the site's root.
        repository: address of the repository, for files that the site does not have.
    """
    if path in PAGES:
        target = PAGES[path]
    elif path.startswith("docs/") and not path.endswith(".py"):
        target = path.removeprefix("docs/")
    elif path.endswith(_PICTURES):
        target = path
    else:
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{repository}/{kind}/main/{path}"
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def _is_there(source: str, target: str) -> bool:
    """Whether a link leads to something in the repository; what does not is left for MkDocs to complain about."""
    return (ROOT / posixpath.dirname(source) / target).exists()
