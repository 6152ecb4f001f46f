"""Push a cache to a store, or pull one: copy its objects, check each, write the manifest last."""

import logging
import sys
from typing import Any

from kdscale.cache.hub_copy import pull_from_hub, push_to_hub
from kdscale.cache.manifest import read_manifest
from kdscale.cache.stores.store import Place
from kdscale.cache.transfer import transfer
from kdscale.formatting import number_of
from kdscale.hub import is_hub
from kdscale.progress import progress

log = logging.getLogger(__name__)


def copy_cache(source: Place, destination: Place) -> dict[str, Any]:
    """Copy a finished cache; valid objects at the destination are not copied again.

    Args:
        source: folder or URL of a finished cache.
        destination: folder or URL that is empty, or has this cache, whole or in part.

    Returns:
        The JSON object of `kdscale cache push --json` and `pull --json`.

    Raises:
        KdscaleError: see `kdscale.cache.transfer`; the same command resumes.
    """
    if is_hub(destination):
        done, found = push_to_hub(source, str(destination)), read_manifest(source)
    elif is_hub(source):
        done = pull_from_hub(str(source), destination)
        found = read_manifest(destination)
    else:
        done = _copy(source, destination)
        found = read_manifest(destination)
    log.info(
        "%s: complete, every object checked; %s copied, %d were there",
        destination, number_of(done["copied"], "shard"), done["kept"],
    )  # fmt: skip
    return {
        "source": str(source),
        "destination": str(destination),
        "id": found.id,
        "copied": done["copied"],
        "kept": done["kept"],
        "bytes": found.build.get("bytes"),
    }


def _copy(source: Place, destination: Place) -> dict[str, int]:
    manifest = read_manifest(source)
    with progress(
        manifest.num_views * manifest.num_samples, "targets", visible=sys.stderr.isatty()
    ) as bar:
        return transfer(source, destination, lambda samples: bar.update(samples))
