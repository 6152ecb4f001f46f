"""Fixed mode: targets of clean images, for comparison."""

from kdscale.cache.manifest import Manifest
from kdscale.data.loader import Batch, DeviceImages
from kdscale.data.views.pipeline import Pipeline
from kdscale.data.views.schedule import ViewSchedule
from kdscale.data.windows import Windows
from kdscale.errors import ConfigError
from kdscale.target_sources.cached import CachedTargets
from kdscale.targets import Targets, mixed_targets


def check_partners(clean: Manifest, views: Pipeline) -> None:
    """Check that both images of a mixture are in one window, where targets are read by windows.

    Raises:
        ConfigError: they may be in different windows.
    """
    if views.pairing is not None and views.pairing.within is None:
        raise ConfigError(
            "views.mode is 'fixed' and the views mix images, so the targets of both are needed at "
            "once, but an epoch's do not fit cache.targets_memory: set a larger one, or "
            f"views.pair_within = {clean.shard_samples}"
        )


class CleanImageTargets:
    """The teacher's targets for clean images, whatever views the student gets.

    The method of most known systems, for comparison only: the targets belong to other pixels than
    the student's input. Targets of mixed images are mixed like the labels.
    """

    def __init__(self, clean: CachedTargets, images: DeviceImages, schedule: ViewSchedule) -> None:
        self.clean, self.schedule = clean, schedule
        self._images = images

    @property
    def windows(self) -> Windows | None:
        """Windows in which the targets of clean images are read."""
        return self.clean.windows

    def start_epoch(self, epoch: int) -> None:
        """Prepare for an epoch: its targets are those of all epochs, by other windows perhaps."""
        self.clean.start_epoch(epoch)

    def targets(self, batch: Batch) -> Targets:
        """Return the targets of a batch's clean images; their pixels are checked now and then."""
        clean = batch.samples.in_view(0)
        if self.clean.check_is_due(len(clean)):
            self.clean.check(clean, self._images.gather(clean.host_index)[0])
        own = self.clean.targets_of(clean)
        if batch.mix is None or batch.partners is None:
            return own
        partners = self.clean.targets_of(batch.partners.in_view(0))
        return mixed_targets(own, partners, batch.mix.weight_B)

    def finish_checks(self) -> None:
        """Wait for the checks of clean images; errors as of `CachedTargets.check`."""
        self.clean.finish_checks()
