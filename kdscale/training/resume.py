"""Save the state of a training, and go on from it exactly."""

import logging
from pathlib import Path

from kdscale.distributed import broadcast_from_main, main_process_first
from kdscale.documents import parse_as
from kdscale.errors import KdscaleError, RunError
from kdscale.models.checkpoints import read_tensors
from kdscale.models.weights import load_weights
from kdscale.runs import checkpoint
from kdscale.runs.folder import RunFolder
from kdscale.runs.log import MetricsLog
from kdscale.training.feature_student import unwrap_student
from kdscale.training.trainer import Trainer, TrainerState

log = logging.getLogger(__name__)


def save_checkpoint(run: Path, loop: Trainer, metrics: MetricsLog) -> None:
    """Write the loop's whole state; there whole or not at all."""
    folder, accelerator = RunFolder(run).checkpoints, loop.accelerator
    loop.state.metrics_bytes = metrics.size
    state = loop.state_to_save()
    metrics.flush_to_disk()
    checkpoint.write_process_state(folder, accelerator.process_index)
    if accelerator.is_main_process:
        module, optimizer = loop.module_to_save(), loop.optimizer_step.optimizer
        checkpoint.write_shared_state(folder, module, optimizer, state.to_json())
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        checkpoint.publish(folder, loop.state.step)
    accelerator.wait_for_everyone()


def restore(run: Path, loop: Trainer) -> tuple[MetricsLog, bool]:
    """Put the newest sound checkpoint's state into the loop, if there is a checkpoint.

    Returns:
        The run's log, cut back to the checkpoint, and whether there is one.

    Raises:
        RunError: all checkpoints are damaged, or of another model or number of processes.
    """
    folder, accelerator = RunFolder(run), loop.accelerator
    newest: Path | None = None
    with main_process_first(accelerator):
        if accelerator.is_main_process:  # so that all go on from the same one
            newest = checkpoint.newest_sound(folder.checkpoints)
    newest = broadcast_from_main(accelerator, newest)
    if newest is not None:
        process = accelerator.process_index, accelerator.num_processes
        checkpoint.restore(newest, loop.module_to_save(), loop.optimizer_step.optimizer, *process)
        loop.restore(_loop_state(newest))
        log.info("going on from step %d of %s", loop.state.step, run)
        _check_best(folder, loop)
    size, writes = loop.state.metrics_bytes, accelerator.is_main_process
    return MetricsLog(folder.metrics_file, size=size, writes=writes), newest is not None


def restore_best(run: Path, loop: Trainer) -> None:
    """Give the model the weights that the validation split chose."""
    loop.accelerator.wait_for_everyone()  # until they are written
    model = unwrap_student(loop.accelerator.unwrap_model(loop.model))
    load_weights(RunFolder(run).weights_file("best"), model, what="run")
    log.info("the result is the weights of step %d, best on validation", loop.state.chosen_step)


def _check_best(folder: RunFolder, loop: Trainer) -> None:
    """Choose the best weights anew where those of an earlier evaluation are damaged or missing."""
    path, step = folder.weights_file("best"), loop.state.chosen_step
    if step < 0:
        return
    sound = True
    if loop.accelerator.is_main_process:
        try:
            read_tensors(path)
        except KdscaleError as error:
            sound = False
            log.warning(
                "the best weights, of step %d, are lost (%s): the best of the evaluations that are "
                "still to come will take their place", step, error,
            )  # fmt: skip
    if not broadcast_from_main(loop.accelerator, sound):
        loop.state.best_validation_accuracy, loop.state.chosen_step = -1.0, -1
        loop.state.chosen_top1_accuracy, loop.state.chosen_average = 0.0, False


def _loop_state(path: Path) -> TrainerState:
    try:
        return parse_as(TrainerState, checkpoint.read_loop_state(path))
    except ValueError as error:
        raise RunError(
            f"the loop state of the checkpoint {path} cannot be used ({error}): start again in a "
            "new --run"
        ) from None
