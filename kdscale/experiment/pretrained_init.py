"""Start of a training from pretrained weights or from scratch, and its description."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdscale import config
from kdscale.documents import DAMAGE, parse_as
from kdscale.errors import DownloadError, RunError
from kdscale.experiment.saved_runs import is_begun
from kdscale.models.pretrained import TORCHVISION, adopt, read_pretrained
from kdscale.models.weights import state_sha256, tensors_sha256
from kdscale.runs.folder import RunFolder, read_run_file

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PretrainedInit:
    """The weights that a training starts from, as described in `pretrained.json`."""

    source: str
    """The weights' name in the recipe."""
    sha256: str | None
    """SHA-256 of the tensors; None for a training from scratch."""
    reason: str | None = None
    """Reason for training from scratch; None with weights."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """The weights; empty for a training from scratch, or one that is resumed."""

    def to_json(self) -> dict[str, Any]:
        """Return the description in `pretrained.json` and `result.json`."""
        return {"source": self.source, "sha256": self.sha256, "reason": self.reason}

    def put_into(self, model: nn.Module, section: config.ModelSection, what: str) -> None:
        """Fill a new model; a head for other classes stays as it was drawn.

        Raises:
            WeightsError: they are not of this model.
        """
        if not self.tensors:
            return
        source, rename = self.source, section.rename
        new = adopt(model, self.tensors, source=source, rename=rename, what=what)
        heads = " and ".join(sorted({repr(name.rpartition(".")[0]) for name in new}))
        log.info("%s: begins from %s%s", what, source, f", with a new {heads}" if heads else "")
        if source.startswith(TORCHVISION) and getattr(model, "transform_input", None) is False:
            log.warning(
                "%s: %s were trained with transform_input = true: set %s.options = "
                "{ transform_input = true }, or it begins from wrongly normalised images",
                what, source, what,
            )  # fmt: skip


def find_pretrained_init(
    run: Path, section: config.ModelSection, what: str, *, main: bool
) -> PretrainedInit | None:
    """Return the pretrained weights that a section names; None if it names none.

    A resumed training does not read them again. The main process decides, first, whether they are
    available.

    Args:
        run: the folder of the training.
        section: of the model.
        what: the model's part, for messages.
        main: whether this process decides.

    Raises:
        DownloadError: they are not to be had, and required.
        KdscaleError: they cannot be used.
    """
    settings, note = section.train, RunFolder(run).pretrained_file
    if settings is None or settings.pretrained is None or section.weights is not None:
        return None
    if is_begun(run) or not main:
        noted = _read_note(note)
        if is_begun(run) or noted.sha256 is None:
            return noted
    found = _read(settings.pretrained, section.model, what, required=settings.pretrained_required)
    if main:
        RunFolder(run).write_pretrained(found.to_json())
    return found


def given_init(run: Path, model: nn.Module, *, main: bool) -> PretrainedInit:
    """Return the initial weights of a model that Python code gives, as noted when its run began.

    A run that goes on, or is finished, began from the weights in its note: a warning says if the
    model has others now.

    Args:
        run: the folder of the training.
        model: the model.
        main: whether this process writes the note.
    """
    folder, given = RunFolder(run), PretrainedInit(_GIVEN, tensors_sha256(model))
    if not (is_begun(run) or folder.is_finished):
        if main:
            folder.write_pretrained(given.to_json())
        return given
    noted = _read_note(folder.pretrained_file)
    if main and noted.sha256 != given.sha256:
        log.warning(
            "%s began from other initial weights than the model has now, and its result is theirs: "
            "to train from these weights, name another folder", run,
        )  # fmt: skip
    return noted


_GIVEN = "the module in memory"


def _read_note(path: Path) -> PretrainedInit:
    """Return the noted initial weights of a training, without tensors.

    Raises:
        RunError: the note is missing or damaged.
    """
    try:
        noted = parse_as(_Note, read_run_file(path))
    except DAMAGE as error:
        raise RunError(
            f"{path} is damaged or missing ({error}): which weights the run began from is not "
            "known; start again in a new --run"
        ) from None
    return PretrainedInit(noted.source, noted.sha256, noted.reason)


@dataclass(frozen=True, slots=True)
class _Note:
    source: str
    sha256: str | None
    reason: str | None


def _read(source: str, model: str, what: str, *, required: bool) -> PretrainedInit:
    try:
        tensors = read_pretrained(source, model)
    except DownloadError as error:
        if required:
            raise DownloadError(
                f"{error}, or name a weights file in {what}.train.pretrained, or train from "
                f"scratch with {what}.train.pretrained_required = false"
            ) from error
        log.warning("%s: trained FROM SCRATCH, without %s: %s", what, source, error)
        return PretrainedInit(source, None, str(error))
    return PretrainedInit(source, state_sha256(tensors), None, tensors)
