"""Windows of an epoch as they come: what a rank reads now and next is made ready, what it has read is given up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

import numpy as np

from training.data.layout import LaneOrder, Layout


class Windows:
    """The windows of a rank's lanes in an epoch, from a step on.

    Ready at any time are, of each lane, the windows that the oldest step not yet done takes rows of; if that is one,
    the next too.

    Args:
        layout: of the dataset.
        orders: of the rank's lanes.
        step: the first one to come.
        ready: makes a window ready, by lane and window, with an event that is set when nobody waits any more; called
            in threads.
        done: gives it up again, by lane and window; called once for each that ready() made so.
        at_once: windows that are made ready at the same time.
    """

    def __init__(
        self,
        layout: Layout,
        orders: Sequence[LaneOrder],
        step: int,
        ready: Callable[[int, int, Event], None],
        done: Callable[[int, int], None],
        at_once: int = 2,
    ) -> None:
        self._layout, self._orders, self._step = layout, orders, step
        self._ready, self._done = ready, done
        self._ended = Event()
        self._windows: list[list[Future[None]]] = [[Future() for _ in order.pieces] for order in orders]
        firsts = (self._window(lane, step)[0] for lane in range(len(orders)))
        self._held = [range(first, first) for first in firsts]  # of each lane
        self._pool = ThreadPoolExecutor(at_once, "windows")
        self._move()

    def _window(self, lane: int, step: int) -> tuple[int, int]:
        """Returns the windows that a lane's first and last rows of a step are in."""
        places = self._layout.places(step, lane)
        starts = self._orders[lane].starts
        first = np.searchsorted(starts, places.start, side="right") - 1
        last = np.searchsorted(starts, max(places.start, places.stop - 1), side="right") - 1
        most = len(self._windows[lane]) - 1  # a lane that gives a step no row may be at its end
        return min(int(first), most), min(int(last), most)

    def _move(self) -> None:
        """Gives up what comes before the oldest step; then makes ready what it takes, and after that what is next."""
        wanted = []
        for lane, held in enumerate(self._held):
            first, last = self._window(lane, self._step)
            stop = min(max(last, first + 1) + 1, len(self._windows[lane]))
            for window in range(held.start, min(first, held.stop)):
                self._done(lane, window)
            wanted += [(window > last, window - first, lane, window) for window in range(held.stop, stop)]
            self._held[lane] = range(first, stop)
        for *_, lane, window in sorted(wanted):
            self._pool.submit(self._make_ready, lane, window)

    def _make_ready(self, lane: int, window: int) -> None:
        future = self._windows[lane][window]
        if not future.set_running_or_notify_cancel():
            return
        try:
            self._ready(lane, window, self._ended)
        except BaseException as error:  # for whoever waits
            future.set_exception(error)
        else:
            future.set_result(None)

    def step_done(self) -> None:
        """Goes on to the next step."""
        self._step += 1
        if self._step < self._layout.steps_per_epoch:
            self._move()

    def wait(self, step: int) -> None:
        """Returns when all windows that a step takes rows of are ready; raises what kept one from being so."""
        for lane, windows in enumerate(self._windows):
            first, last = self._window(lane, step)
            for future in windows[first : last + 1]:
                future.result()

    def cancel(self) -> None:
        """Has nobody wait any more for what is not ready."""
        self._ended.set()
        for future in (future for windows in self._windows for future in windows):
            future.cancel()

    def close(self) -> None:
        """Gives up all that is ready."""
        self.cancel()
        self._pool.shutdown(cancel_futures=True)
        for lane, held in enumerate(self._held):
            for window in held:
                future = self._windows[lane][window]
                if future.done() and not future.cancelled() and future.exception() is None:
                    self._done(lane, window)
            self._held[lane] = range(held.stop, held.stop)
