"""Hooks of the documentation site: links out of docs/, lists of pages, the logo.

A link from docs/ to another file of the repository works on a code host. Here that file becomes a
part of the site, below `repository/`; a link to a file that does not exist fails the build.
"""

import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs/"
OUTSIDE = "repository/"
LOGO = "assets/logo.svg"
LINK = re.compile(r"(\]\()([^)\s#]+)")
CELL_CODE = re.compile(r"`[^`\n]*`(?=[^\n]*\|)")
NAME = re.compile(r"(?<=<code>)[\w/{}.:-]+(?=</code>[^\n]*</td>)")
FENCED = re.compile(r"(^[ ]*```.*?^[ ]*```[ ]*$)", re.DOTALL | re.MULTILINE)


def on_config(config: MkDocsConfig) -> None:
    """Replace `folder/*` in the navigation by the pages of that folder, in their order."""
    config.nav = [_listed(item) for item in config.nav or []]


def _listed(item: object) -> object:
    match item:
        case dict():
            return {title: _listed(below) for title, below in item.items()}
        case list():
            return [page for below in item for page in _pages(below)]
        case _:
            return item


def _pages(item: object) -> list[object]:
    if not isinstance(item, str) or not item.endswith("/*"):
        return [_listed(item)]
    folder = ROOT / DOCS / item.removesuffix("/*")
    names = sorted(path.name for path in folder.glob("*.md") if path.name != "README.md")
    return [f"{item.removesuffix('*')}{name}" for name in names]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the logo, and the files of the repository that pages link to."""
    logo = (ROOT / "gateway/console/static/logo.svg").read_bytes()
    files.append(File.generated(config, LOGO, content=logo))
    pending = [DOCS + file.src_uri for file in files.documentation_pages()]
    while pending:
        where = pending.pop()
        for path in _linked(where, (ROOT / where).read_text()):
            uri = _place(path)
            if files.get_file_from_path(uri) is None and (ROOT / path).is_file():
                files.append(File.generated(config, uri, content=(ROOT / path).read_bytes()))
                pending += [path] if path.endswith(".md") else []


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let each link name the place that its file has in the site."""
    uri = page.file.src_uri
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]
    where = uri.removeprefix(OUTSIDE) if uri.startswith(OUTSIDE) else DOCS + uri

    def moved(link: re.Match[str]) -> str:
        path = _path(where, link[2])
        if path is None or (where.startswith(DOCS) and path.startswith(DOCS)):
            return link[0]
        return link[1] + posixpath.relpath(_place(path), posixpath.dirname(uri) or ".")

    parts = FENCED.split(markdown)
    parts[::2] = [CELL_CODE.sub(_plain_bars, LINK.sub(moved, part)) for part in parts[::2]]
    return "".join(parts)


def _plain_bars(code: re.Match[str]) -> str:
    """Code in a table's cell: a code host wants its bars escaped, MkDocs shows the escape."""
    return code[0].replace("\\|", "|")


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let long names and paths in tables break after `_` and `/`, and options nowhere."""
    html = NAME.sub(lambda name: re.sub(r"([_/])(?=[\w{])", r"\1<wbr>", name[0]), html)
    return html.replace("<code>--", '<code class="whole">--')


def _linked(where: str, markdown: str) -> Iterator[str]:
    """The files outside of docs/ that a file links to, by their paths from the root."""
    for part in FENCED.split(markdown)[::2]:
        for link in LINK.finditer(part):
            path = _path(where, link[2])
            if path is not None and not path.startswith(DOCS):
                yield path


def _path(where: str, link: str) -> str | None:
    """The path from the root that a link names; None if it is not one of the repository."""
    if "://" in link or link.startswith("mailto:"):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(where), link))
    return f"{path}/README.md" if (ROOT / path).is_dir() else path


def _place(path: str) -> str:
    """The path in the site of a file of the repository; names with a leading dot are left out."""
    if path.startswith(DOCS):
        return path.removeprefix(DOCS)
    return OUTSIDE + "/".join(part.lstrip(".") for part in path.split("/"))


def on_env(env: object, config: MkDocsConfig, files: Files) -> None:
    """Refuse pages that the navigation does not name, those of the repository excepted."""
    named = set(_names(config.nav))
    lost = [file.src_uri for file in files.documentation_pages() if file.src_uri not in named]
    if missing := [uri for uri in lost if not uri.startswith(OUTSIDE)]:
        raise ValueError(f"mkdocs.yml does not name in its navigation: {', '.join(missing)}")


def _names(item: object) -> Iterator[str]:
    match item:
        case Mapping():
            for below in item.values():
                yield from _names(below)
        case list():
            for below in item:
                yield from _names(below)
        case str():
            yield item
