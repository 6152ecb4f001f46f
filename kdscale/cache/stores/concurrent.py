"""Several requests at once, where a store answers late and not slowly."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from kdscale.cache.stores.store import Store

_IN_HAND_BYTES = 64 << 20
"""Most bytes that are requested concurrently, before compression."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    store: Store, request: Callable[[Item], Result], items: Iterable[Item], item_bytes: int = 1
) -> Iterator[Result]:
    """Yield the result of `request` for each item in order, with as many threads as the store has.

    In a folder that is one after the other. Items are taken as there is place for them. Where one
    raises, or the caller stops, requests that have not begun are dropped.

    Args:
        store: the store that `request` reads, from several threads.
        request: a function of one item.
        items: any number of them.
        item_bytes: of memory that one takes; large ones are fewer at once.
    """
    threads = min(store.requests, max(1, _IN_HAND_BYTES // item_bytes))
    if threads == 1:
        yield from map(request, items)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="requests")
    requested: deque[Future[Result]] = deque()
    try:
        for item in items:
            requested.append(pool.submit(request, item))
            if len(requested) == threads:
                yield requested.popleft().result()
        while requested:
            yield requested.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
