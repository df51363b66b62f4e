"""Keep the world up to date: manifests, what is known of the applications, keys.

What cannot be read is reported, and the last good state stays in force.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from meritorder.ingress.world import World
from meritorder.manifests.catalog import catalog
from meritorder.manifests.folder import ManifestSet
from meritorder.manifests.status_file import read_statuses
from meritorder.manifests.watch import changes
from meritorder.manifests.yaml_source import ManifestError
from meritorder.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0


class ManifestFollower:
    """Takes over the manifests at `paths` at each change."""

    def __init__(self, world: World, metrics: Metrics, paths: tuple[Path, ...]) -> None:
        self._world = world
        self._metrics = metrics
        self._paths = paths
        self._taken: asyncio.Event = asyncio.Event()
        self._current: ManifestSet | ManifestError | None = None

    async def follow(self) -> None:
        """For ever."""
        while True:
            try:
                async for read in changes(self._paths, self._current):
                    self._take_over(read)
            except Exception as error:
                log.error("the manifests cannot be followed, which is tried again: %s", error, exc_info=error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def first(self) -> None:
        """Return when the manifests have been read once."""
        await self._taken.wait()

    def _take_over(self, read: ManifestSet | ManifestError) -> None:
        """Put `read` in force, or report why it cannot be."""
        self._current = read
        self._taken.set()
        if isinstance(read, ManifestError):
            self._world.problem = str(read)
            self._metrics.config_ok.set(0)
            log.error("the manifests are not valid, and those of before stay in force: %s", read)
            return
        generation = self._world.catalog.generation + 1
        self._world.catalog = catalog(read, generation)
        self._world.problem = None
        self._metrics.config_ok.set(1)
        self._metrics.generation.set(generation)
        log.info("configuration %d is in force: %d routes", generation, len(self._world.catalog.routes))


class StatusFollower:
    """Takes over what is known of the applications whenever `file` has changed."""

    def __init__(self, world: World, file: Path) -> None:
        self._world = world
        self._file = file
        self._seen: tuple[int, int, int] | None = None

    def refresh(self) -> None:
        """Look once. A file that is not there yet changes nothing.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not such a file. It is not looked at again before it has changed.
        """
        try:
            stat = self._file.stat()
            changed = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if changed != self._seen:
                self._seen = changed
                self._world.statuses = read_statuses(self._file)
        except FileNotFoundError:
            self._seen = None  # whoever writes it has not begun, or has ended


async def repeat(seconds: float, what: str, action: Callable[[], None]) -> None:
    """Call `action`, which may block, every `seconds`, for ever, beginning now.

    An error is reported once, `what` being its subject, until it is another.
    """
    reported = None
    while True:
        try:
            await asyncio.to_thread(action)
            reported = None
        except Exception as error:
            said = str(error)
            if said != reported:
                log.error("%s cannot be read, and what was known stays in force: %s", what, said, exc_info=error)
            reported = said
        await asyncio.sleep(seconds)
