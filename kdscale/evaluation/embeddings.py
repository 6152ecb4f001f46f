"""Evaluation without a classifier: k-NN and a linear probe on a model's embeddings.

Shapes: B samples, N samples with known labels (the bank), D values of an embedding, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from kdscale.data.loader import DeviceImages
from kdscale.evaluation.evaluator import Examined, in_memory, mention_unclear
from kdscale.evaluation.metrics import Counts, predict, summarize

KNN = "k-NN"
"""Field `classifier` of results of models that have none of their own."""
NEIGHBOURS, TEMPERATURE = 20, 0.07
"""k and temperature of the weighted k-NN, those of the paper for ImageNet."""
_FLOOR = 1e-6  # share of the votes of a class that no neighbour has: its logarithm is finite
_PROBE_STEPS, _PROBE_PENALTY = 100, 1e-3
_BATCH_SIZE = 500


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Embeddings of some samples, the same in every process."""

    values_ND: Tensor
    """float32, on the device."""
    labels_N: Tensor
    """int64, on the device; -1 where unlabelled."""


class EmbeddingClassifier(Protocol):
    """Classifies embeddings by those whose labels are known."""

    def __call__(self, values_BD: Tensor, own_B: Tensor | None) -> Tensor:
        """Return logits [B, C]; `own_B` are the samples' own positions in the bank, left out."""
        ...


@torch.no_grad()
def embed(
    embedding_of: Callable[[Tensor], Tensor],
    images: DeviceImages,
    samples: Tensor,
    accelerator: Accelerator,
    between_batches: Callable[[], None] | None = None,
) -> Embeddings:
    """Return the embeddings of clean images; all processes share the work.

    Args:
        embedding_of: embeddings [B, D] of uint8 pixels; tokens [B, T, D] and maps [B, D, H, W] are
            averaged.
        images: the split.
        samples: int64 [N], positions in the split.
        accelerator: its processes.
        between_batches: called as often in each process.
    """
    count, index = accelerator.num_processes, accelerator.process_index
    parts, batches = [], images.gather_each(samples[index::count], _BATCH_SIZE)
    for _ in range(-(-len(samples[::count]) // _BATCH_SIZE)):
        if between_batches is not None:
            between_batches()
        batch = next(batches, None)
        if batch is not None:  # or another process has one more
            parts.append(_pooled(in_memory(embedding_of, batch[0])).float())
    labels = images.host_labels[samples].to(accelerator.device)
    if count == 1:
        return Embeddings(torch.cat(parts), labels)
    own_width = torch.tensor([parts[0].shape[1] if parts else 0], device=accelerator.device)
    width = int(accelerator.gather(own_width).max())  # a process may have no sample
    values = torch.zeros(len(samples), width, device=accelerator.device)
    if parts:
        values[index::count] = torch.cat(parts)
    return Embeddings(accelerator.reduce(values, "sum"), labels)


def _pooled(output: Tensor) -> Tensor:
    if output.ndim == 3:
        return output.mean(1)
    return output.flatten(2).mean(2) if output.ndim == 4 else output


def nearest_neighbours(
    bank: Embeddings,
    num_classes: int,
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> EmbeddingClassifier:
    """Return the weighted k-NN classifier of a bank.

    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (CVPR
    2018), section 3.4, as Caron et al., "Emerging Properties in Self-Supervised Vision
    Transformers" (ICCV 2021), evaluate with it: each of the k embeddings of the largest cosine
    votes for its class with weight exp(cosine / temperature). Logits are the logarithms of the
    classes' shares of the votes.
    """
    directions_ND = F.normalize(bank.values_ND, dim=1)

    def classify(values_BD: Tensor, own_B: Tensor | None) -> Tensor:
        cosines_BN = F.normalize(values_BD, dim=1) @ directions_ND.T
        if own_B is not None:
            cosines_BN.scatter_(1, own_B.unsqueeze(1), -torch.inf)
        available = cosines_BN.shape[1] - (own_B is not None)
        nearest = cosines_BN.topk(min(k, available), dim=1)
        # Relative to the nearest one, so that no weight overflows.
        weights_BK = ((nearest.values - nearest.values[:, :1]) / temperature).exp()
        votes_BC = torch.zeros(len(values_BD), num_classes, device=values_BD.device)
        votes_BC.scatter_add_(1, bank.labels_N[nearest.indices], weights_BK)
        shares_BC = votes_BC / votes_BC.sum(1, keepdim=True)
        finite_B = values_BD.isfinite().all(1)
        return shares_BC.clamp(min=_FLOOR).log().where(finite_B.unsqueeze(1), torch.nan)

    return classify


def by_neighbours(
    tested: Embeddings, bank: Embeddings | None, num_classes: int, accelerator: Accelerator
) -> dict[str, float]:
    """Return the metrics of the weighted k-NN classifier (see `metrics.summarize`).

    Args:
        tested: embeddings with labels.
        bank: embeddings with labels that they are compared with; None: each is compared with the
            other tested ones.
        num_classes: C.
        accelerator: its processes share the work.
    """
    classify = nearest_neighbours(tested if bank is None else bank, num_classes)
    examined = examine_embeddings(classify, tested, num_classes, accelerator, in_bank=bank is None)
    found = summarize(examined.counts)
    mention_unclear(found, len(tested.labels_N))
    return found


def linear_probe(bank: Embeddings, num_classes: int) -> EmbeddingClassifier:
    """Return a linear classifier trained on a bank: multinomial logistic regression by L-BFGS.

    As Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
    (2021), section 3.2, evaluate embeddings, with two differences: embeddings are standardised, and
    the L2 penalty is fixed (1e-3 of the mean squared weight's sum), not searched.
    """
    values = bank.values_ND.double()
    mean_D, deviation_D = values.mean(0), values.std(0, correction=0).clamp(min=1e-12)
    inputs_ND = ((values - mean_D) / deviation_D).float()
    weight = torch.zeros(num_classes, inputs_ND.shape[1], device=inputs_ND.device)
    bias = torch.zeros(num_classes, device=inputs_ND.device)
    with torch.enable_grad():
        parameters = [weight.requires_grad_(), bias.requires_grad_()]
        optimizer = torch.optim.LBFGS(
            parameters, max_iter=_PROBE_STEPS, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            logits_NC = F.linear(inputs_ND, weight, bias)
            value = F.cross_entropy(logits_NC, bank.labels_N)
            value = value + _PROBE_PENALTY * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
    trained, offset = weight.detach(), bias.detach()

    def classify(values_BD: Tensor, own_B: Tensor | None) -> Tensor:
        inputs_BD = ((values_BD.double() - mean_D) / deviation_D).float()
        return F.linear(inputs_BD, trained, offset)

    return classify


@torch.inference_mode()
def examine_embeddings(
    classify: EmbeddingClassifier,
    tested: Embeddings,
    num_classes: int,
    accelerator: Accelerator,
    *,
    in_bank: bool = False,
) -> Examined:
    """Count what a classifier of embeddings predicts.

    Args:
        classify: the classifier.
        tested: embeddings with labels.
        num_classes: C.
        accelerator: its processes share the work.
        in_bank: whether the tested samples are the bank, in its order: each is classified by the
            others.
    """
    counts = Counts.none(num_classes, accelerator.device)
    predictions = torch.zeros_like(tested.labels_N)
    positions = torch.arange(len(predictions), device=accelerator.device)
    mine = positions[accelerator.process_index :: accelerator.num_processes]
    for part in mine.split(_BATCH_SIZE):
        logits_BC = classify(tested.values_ND[part], part if in_bank else None)
        counts += Counts.of(logits_BC, tested.labels_N[part])
        predictions[part] = predict(logits_BC)
    if accelerator.num_processes > 1:
        counts = counts.with_each(lambda one: accelerator.reduce(one, "sum"))
        predictions = accelerator.reduce(predictions, "sum")
    return Examined(counts, predictions.cpu(), tested.labels_N.cpu())
