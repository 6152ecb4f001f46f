"""Fixed mode: the teacher's answers to the clean images, for comparison."""

from kdscale.data.loader import Batch, Images
from kdscale.data.views.schedule import ViewSchedule
from kdscale.engine.cached import CachedTargets
from kdscale.targets import Targets, mixed_targets


class FixedTargets:
    """The teacher's answers to the clean images, whatever view of them the student is shown.

    The way of most known systems, for comparison only: the targets belong to other pixels than the
    student sees. Of mixed images the targets are mixed like the labels.
    """

    def __init__(self, clean: CachedTargets, images: Images, schedule: ViewSchedule) -> None:
        self.clean, self.schedule = clean, schedule
        self._images = images

    def start_epoch(self, epoch: int) -> None:
        """The clean answers are the same in each."""
        self.clean.start_epoch(0)

    def targets(self, batch: Batch) -> Targets:
        """The targets of a batch's clean images; those are checked where that is due."""
        if self.clean.check_is_due(len(batch.index)):
            self.clean.check(0, batch.index, self._images.take(batch.index)[0])
        own = self.clean.read(0, batch.index)
        if batch.mix is None:
            return own
        return mixed_targets(own, self.clean.read(0, batch.mix.index_B), batch.mix.weight_B)
