"""Several requests at once, where a store answers late and not slowly."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from kdscale.cache.stores.base import Store

_IN_HAND_BYTES = 64 << 20
"""Of what is asked for at once, before compression."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def each(
    store: Store, ask: Callable[[Item], Answer], items: Iterable[Item], item_bytes: int = 1
) -> Iterator[Answer]:
    """What `ask` says of each item, in their order: as many are asked about as the store serves.

    In a folder that is one after the other. Items are taken as there is place for them. Where one
    raises, or nobody wants the rest, what has not begun is not asked.

    Args:
        store: what `ask` asks, from several threads.
        ask: a function of one item.
        items: any number of them.
        item_bytes: of memory that one takes; large ones are fewer at once.
    """
    threads = min(store.requests, max(1, _IN_HAND_BYTES // item_bytes))
    if threads == 1:
        yield from map(ask, items)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="requests")
    asked: deque[Future[Answer]] = deque()
    try:
        for item in items:
            asked.append(pool.submit(ask, item))
            if len(asked) == threads:
                yield asked.popleft().result()
        while asked:
            yield asked.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
