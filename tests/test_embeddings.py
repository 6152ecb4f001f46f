"""k-NN and a linear probe on embeddings."""

import pytest
import torch
from accelerate import Accelerator

from kdscale.evaluation.embeddings import (
    Embeddings,
    by_neighbours,
    examine_embeddings,
    linear_probe,
    nearest_neighbours,
)
from kdscale.evaluation.metrics import summarize


@pytest.fixture
def clusters():
    """Embeddings of three classes in three directions; bank and queries."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(3, 5) * 3
    labels = torch.arange(90) % 3
    values = centres[labels] + torch.randn(90, 5, generator=generator)
    return Embeddings(values[:60], labels[:60]), Embeddings(values[60:], labels[60:])


def slow_knn(bank, value, num_classes, k, temperature):
    """Votes by the definition, one embedding at a time."""
    cosines = [float(torch.cosine_similarity(value, one, dim=0)) for one in bank.values_ND]
    nearest = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k]
    votes = torch.zeros(num_classes, dtype=torch.float64)
    for i in nearest:
        votes[bank.labels_N[i]] += torch.tensor(cosines[i] / temperature).double().exp()
    return votes / votes.sum()


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (20, 1.0)])
def test_votes_are_those_of_the_definition(clusters, k, temperature):
    bank, queries = clusters
    found = nearest_neighbours(bank, 3, k=k, temperature=temperature)(queries.values_ND, None)
    for shares, value in zip(found.exp(), queries.values_ND, strict=True):
        expected = slow_knn(bank, value, 3, k, temperature).clamp(min=1e-6)
        assert torch.allclose(shares.double(), expected, atol=1e-4)


def test_both_find_classes_that_lie_apart_and_neither_what_is_not_there(clusters):
    bank, queries = clusters
    shuffled = Embeddings(bank.values_ND, bank.labels_N[torch.randperm(60)])
    for classifier in (nearest_neighbours, linear_probe):
        found = examine_embeddings(classifier(bank, 3), queries, 3, Accelerator())
        assert summarize(found.counts)["top1_accuracy"] > 0.8
        guessed = examine_embeddings(classifier(shuffled, 3), queries, 3, Accelerator())
        assert summarize(guessed.counts)["top1_accuracy"] < 0.7


def test_probe_does_not_depend_on_scale_and_offset_of_the_embeddings(clusters):
    bank, queries = clusters
    moved = [Embeddings(one.values_ND * 40 - 7, one.labels_N) for one in clusters]
    expected = linear_probe(bank, 3)(queries.values_ND, None)
    found = linear_probe(moved[0], 3)(moved[1].values_ND, None)
    assert torch.allclose(found, expected, atol=1e-2)


def test_without_a_bank_no_sample_is_its_own_neighbour():
    """Pairs of opposite labels: each sample's nearest other one has the other label."""
    values = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0]])
    tested = Embeddings(values, torch.tensor([0, 1, 0, 1]))
    assert by_neighbours(tested, tested, 2, Accelerator())["top1_accuracy"] == 1
    assert by_neighbours(tested, None, 2, Accelerator())["top1_accuracy"] == 0


def test_embedding_that_is_not_finite_is_no_prediction(clusters):
    bank, queries = clusters
    values = queries.values_ND.clone()
    values[3, 1] = torch.nan
    found = by_neighbours(Embeddings(values, queries.labels_N), bank, 3, Accelerator())
    assert found["non_finite_samples"] == 1
