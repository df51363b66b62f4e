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


def take_over(world: World, metrics: Metrics, read: ManifestSet | ManifestError) -> None:
    """Put `read` in force, or report why it cannot be."""
    try:
        if isinstance(read, ManifestError):
            raise read
        world.catalog = catalog(read, world.catalog.generation + 1)
    except ManifestError as error:
        world.problem = str(error)
        metrics.config_ok.set(0)
        log.error("the manifests are not valid, and those of before stay in force: %s", error)
        return
    world.problem = None
    metrics.config_ok.set(1)
    metrics.generation.set(world.catalog.generation)
    log.info("configuration %d is in force: %d routes", world.catalog.generation, len(world.catalog.routes))


async def follow_manifests(
    world: World, metrics: Metrics, paths: tuple[Path, ...], current: ManifestSet | ManifestError
) -> None:
    """Take over the manifests at each change after `current`, for ever."""
    async for read in changes(paths, current):
        take_over(world, metrics, read)


class StatusFollower:
    """Takes over what is known of the applications whenever `file` has changed."""

    def __init__(self, world: World, file: Path) -> None:
        self._world = world
        self._file = file
        self._seen = 0

    def refresh(self) -> None:
        """Look once. A file that is not there yet, or cannot be read, changes nothing."""
        try:
            changed = self._file.stat().st_mtime_ns
            if changed != self._seen:
                self._seen = changed
                self._world.statuses = read_statuses(self._file)
        except FileNotFoundError:
            pass  # whoever writes it has not begun
        except ValueError as error:
            log.error("%s cannot be read, and what was known stays in force: %s", self._file, error)


async def repeat(seconds: float, action: Callable[[], None]) -> None:
    """Call `action`, which may block, every `seconds`, for ever; an error is reported and tried again."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await asyncio.to_thread(action)
        except Exception:
            log.exception("%s failed, and is tried again in %g s", getattr(action, "__qualname__", action), seconds)
