"""A queue that serves every key in turn, by cost: start-time fair queueing (Goyal et al. 1996)."""

import heapq
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from itertools import count
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
# When more keys than this are remembered, those that no longer matter are forgotten.
_MAX_REMEMBERED = 4096


class FairQueue(Generic[_Item]):
    """Items by key. Each key gets an equal share of what is taken, measured by cost.

    Examples:
        >>> queue = FairQueue()
        >>> for name in ("a1", "a2", "b1"):
        ...     queue.add(name[0], name, cost=10)
        >>> [queue.take(), queue.take(), queue.take()]
        ['a1', 'b1', 'a2']
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[tuple[_Item, int]]] = {}
        # One entry for each key that waits: the time at which its next item starts.
        self._heap: list[tuple[int, int, Hashable]] = []
        self._ends: dict[Hashable, int] = {}
        self._most_ends = _MAX_REMEMBERED
        self._now = 0
        self._order = count()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[_Item]:
        for items in self._waiting.values():
            for item, _ in items:
                yield item

    def add(self, key: Hashable, item: _Item, *, cost: int) -> None:
        """Append an item.

        Args:
            key: whose share it is taken from.
            item: to append.
            cost: in any unit, the same for all.
        """
        if key not in self._waiting:
            self._waiting[key] = deque()
            start = max(self._now, self._ends.pop(key, 0))
            heapq.heappush(self._heap, (start, next(self._order), key))
        self._waiting[key].append((item, cost))
        self._size += 1

    def take(self) -> _Item:
        """Remove the next item: that of the key that was served least.

        Raises:
            IndexError: the queue is empty.
        """
        start, _, key = heapq.heappop(self._heap)
        items = self._waiting[key]
        item, cost = items.popleft()
        # Time also passes with what is taken, in equal parts for all keys that wait, so that new
        # keys without end cannot keep those waiting that were served before.
        self._now = max(start, self._now + cost // len(self._waiting))
        self._size -= 1
        self._continue(key, start + cost)
        return item

    def remove(self, is_unwanted: Callable[[_Item], bool]) -> list[_Item]:
        """Remove items wherever they wait.

        Args:
            is_unwanted: whether to remove an item.

        Returns:
            What was removed.
        """
        removed = [item for item in self if is_unwanted(item)]
        if not removed:
            return []
        starts = {key: start for start, _, key in self._heap}
        self._heap = []
        waiting, self._waiting = self._waiting, {}
        for key, items in waiting.items():
            self._waiting[key] = deque(pair for pair in items if not is_unwanted(pair[0]))
            self._continue(key, starts[key])
        self._size -= len(removed)
        return removed

    def _continue(self, key: Hashable, start: int) -> None:
        """Put a key back with its next item, or remember until when it was served."""
        if self._waiting[key]:
            heapq.heappush(self._heap, (start, next(self._order), key))
            return
        del self._waiting[key]
        self._ends[key] = start
        if len(self._ends) > self._most_ends:
            self._ends = {key: end for key, end in self._ends.items() if end > self._now}
            self._most_ends = max(_MAX_REMEMBERED, 2 * len(self._ends))
