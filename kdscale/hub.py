"""Repositories of the Hugging Face Hub: one commit up, one snapshot down, errors in one line.

Address and token are those of `huggingface_hub`: `HF_ENDPOINT`, `HF_TOKEN`, or `hf auth login`.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    RepositoryNotFoundError,
    SafetensorsParsingError,
)

from kdscale.errors import ConfigError, StorageError
from kdscale.regular_files import check_key

CARD = "README.md"
_KINDS: dict[str, tuple[re.Pattern[str], str]] = {
    "dataset": (
        re.compile(r"hf://datasets/(?P<name>[\w.-]+/[\w.-]+?)(?:/(?P<folder>.+))?"),
        "hf://datasets/USER/NAME[/PATH]",
    ),
    "model": (
        re.compile(
            r"hf://(?P<name>(?!datasets/|spaces/)[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?"
        ),
        "hf://USER/NAME[@REVISION]",
    ),
}
"""URLs of a kind of repository, and how messages state them."""


def is_hub(place: object) -> bool:
    """Whether a place is a repository of the Hub."""
    return str(place).startswith("hf://")


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository of the Hub, as a URL names it."""

    url: str
    kind: Literal["dataset", "model"]
    name: str
    """USER/NAME."""
    folder: str | None = None
    """Path within the repository; None = all of it."""
    revision: str | None = None
    """Branch, tag or commit to download; None = the newest commit."""

    @classmethod
    def parse(cls, url: str, kind: Literal["dataset", "model"]) -> "HubRepository":
        """Return the repository that a URL names.

        Raises:
            ConfigError: the URL names no repository of this kind, or a path that leads out of it.
        """
        pattern, wanted = _KINDS[kind]
        found = pattern.fullmatch(url)
        if found is None or not {".", ".."}.isdisjoint(url.split("/")):
            raise ConfigError(f"{url} is no repository: {wanted} is wanted")
        parts = found.groupdict()
        if (folder := parts.get("folder")) is not None:
            check_key(folder, url.removesuffix(f"/{folder}"))
        return cls(url, kind, found["name"], folder, parts.get("revision"))

    def key(self, file: str) -> str:
        """Return the path in the repository of a file of the folder."""
        return file if self.folder is None else f"{self.folder}/{file}"

    def fetch(self, file: str, into: Path) -> Path | None:
        """Download one file of the folder; None if it, or the repository, is not there."""
        with self._one_line():
            try:
                found = HfApi().hf_hub_download(
                    self.name, self.key(file), repo_type=self.kind, revision=self.revision,
                    local_dir=into,
                )  # fmt: skip
            except (RepositoryNotFoundError, EntryNotFoundError):
                return None
        return Path(found)

    def safetensors_header(self, file: str) -> dict[str, str] | None:
        """Return the metadata of a safetensors file; None if it, or the repository, is not there.

        {} if the file is not safetensors or has none.
        """
        with self._one_line():
            try:
                found = HfApi().parse_safetensors_file_metadata(
                    self.name, self.key(file), repo_type=self.kind, revision=self.revision
                )
            except (RepositoryNotFoundError, EntryNotFoundError):
                return None
            except SafetensorsParsingError:
                return {}
        return dict(found.metadata or {})

    def download(self, into: Path | None = None, files: Sequence[str] | None = None) -> Path:
        """Download the folder, and return its place.

        Args:
            into: the folder to write to; None = the cache of `huggingface_hub`, where a repository
                is found without a network once it was downloaded.
            files: names to download, those that are there; None = all.

        Raises:
            UnsafePathError: a file's name could lead out of a folder; nothing was downloaded.
            StorageError: the repository is not there, or the Hub is not reached.
        """
        api = HfApi()
        with self._one_line():
            revision = self.revision if files is not None else self._checked_revision(api)
            wanted = ["*"] if files is None else files
            place = api.snapshot_download(
                self.name, repo_type=self.kind, revision=revision, local_dir=into,
                allow_patterns=[self.key(one) for one in wanted],
            )  # fmt: skip
        return Path(place)

    def upload(self, staged: Path, *, message: str, card: str, replace_card: bool = False) -> None:
        """Upload a folder's files in one commit, then compare all checksums there.

        A repository that is not there is created, private. Files that it has already are not
        uploaded again, and its card stays as it is.

        Args:
            staged: the folder.
            message: of the commit.
            card: README.md for a repository that has none.
            replace_card: write the card even if there is one.

        Raises:
            StorageError: the Hub refuses, is not reached, or stores other bytes.
        """
        api = HfApi()
        with self._one_line():
            api.create_repo(self.name, repo_type=self.kind, private=True, exist_ok=True)
            has_card = api.file_exists(self.name, CARD, repo_type=self.kind)
            if replace_card or not has_card:
                self._stage_card(api, staged, card)
            api.upload_folder(
                repo_id=self.name, folder_path=staged, path_in_repo=self.folder,
                repo_type=self.kind, commit_message=message,
            )  # fmt: skip
            self._check_uploaded(api, staged)

    def _stage_card(self, api: HfApi, staged: Path, card: str) -> None:
        if self.folder is None:
            (staged / CARD).write_text(card)
            return
        api.upload_file(
            path_or_fileobj=card.encode(), path_in_repo=CARD, repo_id=self.name, repo_type=self.kind
        )

    def _checked_revision(self, api: HfApi) -> str | None:
        """Return the newest commit, once no name of its files could lead out of a folder."""
        look_up = api.dataset_info if self.kind == "dataset" else api.model_info
        about = look_up(self.name, revision=self.revision)
        for file in about.siblings or ():
            check_key(file.rfilename, self.url)
        return about.sha

    def _check_uploaded(self, api: HfApi, staged: Path) -> None:
        files = {file.relative_to(staged).as_posix(): file for file in staged.rglob("*")}
        wanted = {self.key(key): file for key, file in files.items() if file.is_file()}
        listed = api.get_paths_info(self.name, [*wanted], repo_type=self.kind)
        found = {one.path: one for one in listed}
        wrong = [key for key, file in wanted.items() if not _is_stored(found.get(key), file)]
        if wrong:
            raise StorageError(
                f"{self.url}: {', '.join(wrong[:10])} of {len(wrong)} are not there as they were "
                "uploaded: run the same command again"
            )

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """Turn errors of the Hub into one line each."""
        try:
            yield
        except RepositoryNotFoundError:
            raise StorageError(
                f"{self.url} is not there, or is private and the token in HF_TOKEN may not read "
                "it: correct the name, or log in with `hf auth login`"
            ) from None
        except Exception as error:
            if not _is_the_hubs(error):
                raise
            reason = str(error).strip().partition("\n")[0][:300]
            raise StorageError(
                f"{self.url}: {reason}: check the name, the network and the token (HF_TOKEN, or "
                "`hf auth login`), then run the same command again"
            ) from None


def _is_the_hubs(error: BaseException | None) -> bool:
    """Whether the Hub, the way there, or its client failed; which client it has, changed."""
    if error is None:
        return False
    names = ("huggingface_hub", "http", "requests", "urllib3")
    return type(error).__module__.startswith(names) or _is_the_hubs(error.__cause__)


def _is_stored(found: Any, file: Path) -> bool:
    """Whether the Hub's checksum of a file, large or as Git has it, is that of ours."""
    if found is None:
        return False
    data = file.read_bytes()
    if found.lfs is not None:
        return bool(found.lfs.sha256 == hashlib.sha256(data).hexdigest())
    blob = b"blob %d\0" % len(data) + data
    return bool(found.blob_id == hashlib.sha1(blob, usedforsecurity=False).hexdigest())
