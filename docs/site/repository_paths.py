"""Give the pages of the site their paths in the repository, so that relative links hold in both.

MkDocs reads one folder, `docs/`; the README, `launch/README.md` and source files lie beside it.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
SITE_FOLDER = Path(__file__).parent
BESIDE_DOCS = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
BESIDE_DOCS += [f"{folder}/README.md" for folder in ("benchmarks", "cache", "launch")]


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Return the theme's files, those of `docs/`, pages beside it, and files that pages link to."""
    docs = Path(config.docs_dir)
    paths = {ROOT / path for path in BESIDE_DOCS}
    paths |= {docs / file.src_uri for file in files if file.src_dir == config.docs_dir}
    paths -= set(SITE_FOLDER.glob("*.py"))
    pages = [path for path in paths if path.suffix == ".md"]
    paths |= {linked for page in pages for linked in _linked_files(page)}
    theme = [file for file in files if file.src_dir != config.docs_dir]
    return Files([*theme, *(_file(path, config) for path in sorted(paths))])


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Name links by the title of their page where the repository names its file."""
    folder = (ROOT / page.file.src_uri).parent

    def named(link: re.Match[str]) -> str:
        target = folder / link[1].partition("#")[0]
        title = (
            re.search(r"^# (.*)$", target.read_text(), re.MULTILINE) if target.is_file() else None
        )
        return f"[{title[1]}]({link[1]})" if title else link[0]

    return re.sub(r"\[[\w./-]+\.md\]\(([^)\s]+)\)", named, markdown)


def _linked_files(page: Path) -> set[Path]:
    """Return the files of the repository that a page links to."""
    links = re.findall(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)", page.read_text())
    linked = {(page.parent / link).resolve() for link in links}
    return {path for path in linked if path.is_file() and path.is_relative_to(ROOT)}


def _file(path: Path, config: MkDocsConfig) -> File:
    name = path.relative_to(ROOT).as_posix()
    return File(name, str(ROOT), config.site_dir, config.use_directory_urls)
