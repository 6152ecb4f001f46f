"""What a loss that no longer falls decides: a lower learning rate, an early end."""

import logging
import math
from dataclasses import dataclass

from kdscale.formatting import number_of
from kdscale.training.trainer import TrainerState

log = logging.getLogger(__name__)

SMALLEST_FALL = 1e-4  # nats; Keras' `min_delta` of ReduceLROnPlateau


@dataclass(frozen=True, slots=True)
class PlateauTracker:
    """How many evaluations without a smaller loss on the validation split are too many.

    Counted as Keras counts them: after `reduce_after` of them the learning rate falls and that
    count begins again; after `stop_after` of them training ends. All that is counted is in the
    loop's state, so a resumed run goes on exactly; the loss is a sum of whole numbers
    (`metrics.Counts`), so all processes count alike.
    """

    reduce_after: int | None = None
    """None: the rate does not follow the loss."""
    stop_after: int | None = None
    """None: training ends after its last epoch."""

    def note(self, state: TrainerState, validation_loss: float) -> None:
        """Count an evaluation, in `state`."""
        smallest = state.smallest_validation_loss
        falls = smallest is None or validation_loss < smallest - SMALLEST_FALL
        if falls and math.isfinite(validation_loss):
            state.smallest_validation_loss = validation_loss
            state.waited_for_plateau = state.waited_for_end = 0
            return
        before = state.plateaus
        state.waited_for_plateau += 1
        state.waited_for_end += 1
        if self.reduce_after is not None and state.waited_for_plateau >= self.reduce_after:
            state.waited_for_plateau = 0
            state.plateaus += 1
        if self.stop_after is not None and state.waited_for_end >= self.stop_after:
            state.ended_early = True
            waited = number_of(state.waited_for_end, "evaluation")
            log.info("the validation loss has not fallen in %s: training ends", waited)
        elif state.plateaus > before:
            log.info("the validation loss no longer falls: a lower learning rate from here on")
