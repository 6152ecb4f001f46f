"""Batch-norm over a step's whole batch, where each process has a part of it."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed import get_world_size
from torch.nn.modules.batchnorm import _BatchNorm

from kdscale.collectives import all_reduce_sum
from kdscale.errors import ModelError

_REPLACED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def with_whole_batches(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model with batch-norm over all processes; weights and their names stay.

    Args:
        model: the model; its batch-norms are replaced in place, itself where it is one.
        device: the device it will be trained on. torch's own `SyncBatchNorm` works on GPUs only.

    Raises:
        ModelError: a layer of its own is built upon batch-norm, and would lose what it adds.
    """
    for name, module in _own_norms(model):
        raise ModelError(
            f"sync_batch_norm cannot replace module {name!r}, a {type(module).__name__} built upon "
            "batch-norm: leave it out, start one process, or choose a model with torch's own layers"
        )
    if device.type != "cpu":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    if isinstance(model, _REPLACED):
        return _like(model)
    for name, child in model.named_children():
        model.add_module(name, with_whole_batches(child, device))
    return model


class WholeBatchNorm(_BatchNorm):
    """`SyncBatchNorm` for processes without GPUs."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise over the samples of all processes; in evaluation by the running statistics."""
        if not self.training:
            return super().forward(inputs)
        dims = [0, *range(2, inputs.ndim)]
        shape = [1, -1] + [1] * (inputs.ndim - 2)
        values = inputs.float()
        count = get_world_size() * values.numel() // values.shape[1]  # all have as many samples
        mean_C = all_reduce_sum(values.sum(dims)) / count
        centred = values - mean_C.view(shape)
        variance_C = all_reduce_sum(centred.square().sum(dims)) / count
        self._update_statistics(mean_C.detach(), variance_C.detach(), count)
        normalised = centred * (variance_C + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            normalised = normalised * self.weight.view(shape)
        if self.bias is not None:
            normalised = normalised + self.bias.view(shape)
        return normalised.to(inputs.dtype)

    def _update_statistics(self, mean_C: Tensor, variance_C: Tensor, count: int) -> None:
        """Update running statistics as batch-norm does: unbiased variance, by momentum."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None, (
            "running statistics come with a count of batches"
        )
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:  # the mean of all batches
            share = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean_C, share)
        self.running_var.lerp_(variance_C * (count / max(count - 1, 1)), share)

    def _check_input_dim(self, inputs: Tensor) -> None:
        """Accept any number of positions: the model was written for its own."""


def _like(module: nn.Module) -> WholeBatchNorm:
    """Return a `WholeBatchNorm` with the same parameters, buffers, settings and mode."""
    assert isinstance(module, _BatchNorm)
    norm = WholeBatchNorm(
        module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
    )
    norm._parameters, norm._buffers = module._parameters, module._buffers
    return norm.train(module.training)


def _own_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that are batch-norm and something else."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and type(module) not in _REPLACED:
            yield name, module
