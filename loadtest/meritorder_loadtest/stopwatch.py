"""CPU time of single calls and coroutines in one thread, in microseconds.

A coroutine's time is that of its own steps: what others do in the same thread while it waits is none of its. To read
the clock of a thread is a system call, so every measurement has some of its time in it: `clock_microseconds()`.
"""

import functools
import inspect
import time
import types
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

_CALIBRATIONS = 20_000


class Lap:
    """The time of one coroutine. `suspended` is how often it waited for something."""

    __slots__ = ("_spent", "suspended")

    def __init__(self) -> None:
        self._spent = 0
        self.suspended = 0

    @property
    def microseconds(self) -> float:
        return self._spent / 1000

    @types.coroutine
    def measure(self, work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Run `work`, and count the time that it takes; what it is sent and what it raises goes through."""
        resume: Callable[..., Any] = work.send
        given: Any = None
        while True:
            began = time.thread_time_ns()
            try:
                waits_for = resume(given)
            except StopIteration as stop:
                return stop.value
            finally:
                self._spent += time.thread_time_ns() - began
            self.suspended += 1
            try:
                given = yield waits_for
                resume = work.send
            except BaseException as error:
                resume, given = work.throw, error


class Stopwatch:
    """The time of methods and functions by name. What is measured inside of what is measured counts for both."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)

    def watch(self, target: Any, attribute: str, name: str) -> None:
        """Measure `attribute` of a class or module, a coroutine or not, from now on.

        It is replaced for good: a program that measures does nothing else.
        """
        inner = getattr(target, attribute)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time_ns()
            try:
                return inner(*args, **kwargs)
            finally:
                self.spent[name] += (time.thread_time_ns() - began) / 1000

        @functools.wraps(inner)
        async def timed_coroutine(*args: Any, **kwargs: Any) -> Any:
            lap = Lap()
            work: Awaitable[Any] = lap.measure(inner(*args, **kwargs))
            try:
                return await work
            finally:
                self.spent[name] += lap.microseconds

        setattr(target, attribute, timed_coroutine if inspect.iscoroutinefunction(inner) else timed)


def clock_microseconds() -> float:
    """What it takes on this machine to read the clock."""
    began = time.thread_time_ns()
    for _ in range(_CALIBRATIONS):
        time.thread_time_ns()
    return (time.thread_time_ns() - began) / 1000 / _CALIBRATIONS
