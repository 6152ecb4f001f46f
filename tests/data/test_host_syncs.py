"""A batch on a GPU waits for nothing: counted on fake tensors, so that no GPU is needed."""

import multiprocessing
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # as when the script is run

from sync_cases import all_cases
from sync_cases.counting import CUDA, Case, count


def count_apart(case):
    """Count in a child: where a fake GPU was, autograd starts threads, and nothing can fork."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: sender.send(count(case)))
    child.start()
    sender.close()  # so that a child that fails is the end of the pipe
    with receiver:
        found = receiver.recv()
    child.join()
    return found


def counts(batch):
    found = count_apart(Case("one", lambda: batch))
    return found.host_syncs, found.blocking_copies, found.async_copies, found.kernels


def on_cuda(*shape, dtype=torch.int64):
    return torch.empty(*shape, dtype=dtype, device=CUDA)


@pytest.mark.parametrize(
    ("name", "batch", "expected"),
    [
        ("arithmetic", lambda: on_cuda(4) + 1, (0, 0, 0, 1)),
        ("views of memory", lambda: on_cuda(4).view(2, 2)[:, :1].expand(2, 3), (0, 0, 0, 0)),
        ("a gather", lambda: on_cuda(4)[on_cuda(2)], (0, 0, 0, 1)),
        ("item", lambda: on_cuda(4).sum().item(), (1, 0, 0, 0)),
        ("tolist", lambda: on_cuda(4).tolist(), (1, 0, 0, 0)),
        ("nonzero", lambda: on_cuda(4).nonzero(), (1, 0, 0, 0)),
        ("unique", lambda: on_cuda(4).unique(), (1, 0, 0, 0)),
        ("a mask as index", lambda: on_cuda(4)[on_cuda(4, dtype=torch.bool)], (1, 0, 0, 0)),
        ("truth of a tensor", lambda: bool(on_cuda(1)), (1, 0, 0, 0)),
        ("a copy to the host", lambda: on_cuda(4).cpu(), (1, 0, 0, 0)),
        ("a pageable copy", lambda: torch.zeros(4).to(CUDA), (0, 1, 0, 0)),
        ("a pageable copy, non_blocking", lambda: torch.zeros(4).to(CUDA, non_blocking=True),
         (0, 1, 0, 0)),
        ("numbers of the host", lambda: torch.tensor([1, 2], device=CUDA), (0, 1, 0, 0)),
        ("an index on the host", lambda: on_cuda(4)[torch.zeros(2, dtype=torch.int64)],
         (0, 1, 0, 1)),
        ("a pinned copy", lambda: torch.zeros(4).pin_memory().to(CUDA, non_blocking=True),
         (0, 0, 1, 0)),
        ("a blocking pinned copy", lambda: torch.zeros(4).pin_memory().to(CUDA), (0, 1, 0, 0)),
        ("a pinned buffer into a given one",
         lambda: on_cuda(4).copy_(torch.empty(4, pin_memory=True), non_blocking=True),
         (0, 0, 1, 0)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_counts_what_a_gpu_would_wait_for(name, batch, expected):
    found = counts(batch)
    kernels = found[3] if expected[0] else expected[3]  # beside a wait, kernels do not matter
    assert found == (*expected[:3], kernels)


def test_tables_of_the_first_batch_are_not_counted():
    made = []

    def batch():
        if not made:
            made.append(torch.tensor([1, 2], device=CUDA))
        return made[0] + 1

    assert counts(batch) == (0, 0, 0, 1)


def test_counts_are_the_same_again_and_names_differ():
    cases = list(all_cases())
    assert len({case.name for case in cases}) == len(cases)
    assert count_apart(cases[0]) == count_apart(cases[0])


@pytest.mark.filterwarnings("ignore:CUDA is not available")  # autocast, of steps
@pytest.mark.parametrize("case", list(all_cases()), ids=lambda case: case.name)
def test_a_batch_waits_for_nothing(case):
    found = count_apart(case)
    assert (found.host_syncs, found.blocking_copies, found.stopped_at) == (0, 0, None)
    assert found.async_copies <= case.most_async_copies


HALF = {
    "crop and flip": 18, "random_resized_crop": 56, "trivial_augment_wide": 99, "rand_augment": 177,
    "color_jitter": 296,
}  # fmt: skip


@pytest.mark.parametrize("name", HALF)
def test_eager_views_launch_few_kernels(name):
    """At most half of what commit 624cdaf launched for 128 images of 32 px."""
    case = next(case for case in all_cases() if case.name == f"views: {name}")
    assert count_apart(case).kernels <= HALF[name]
