"""Follow the manifests: read them again when they change.

The kernel's notifications say *when to look*, and never *what changed*: an editor replaces a file by
renaming another over it, Kubernetes swaps the symbolic link that all files of a ConfigMap lie behind, and a
folder on a network or in some containers notifies nobody. So each notification, and a timer for where there
are none, leads to the same look at the files' metadata, and only a difference there to reading them.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from pathlib import Path

from watchfiles import awatch

from meritorder.manifests import folder
from meritorder.manifests.catalog import catalog
from meritorder.manifests.folder import ManifestSet
from meritorder.manifests.yaml_source import ManifestError

log = logging.getLogger(__name__)

POLL_MILLISECONDS = 500
"""How long a change goes unnoticed at most where there are no notifications."""
QUIET_MILLISECONDS = 50
"""An editor writes a file in several steps: look when nothing has happened for this long..."""
PATIENCE_MILLISECONDS = 250
"""...and look anyway after this long, in a folder that is never quiet."""

_Metadata = tuple[tuple[Path, int, int, int], ...]


async def changes(
    paths: Sequence[Path], current: ManifestSet | ManifestError | None = None
) -> AsyncGenerator[ManifestSet | ManifestError, None]:
    """What the manifests at `paths` say now, and again whenever they say something else. It never ends.

    Manifests that are given can be used: `catalog` resolves them, too. An error is given in place of
    manifests that cannot be; whoever follows them keeps what was good before. `current` is what the caller
    has read already, and is not given again.
    """
    looked: _Metadata | None = None
    async with aclosing(_occasions(paths)) as occasions:
        async for _ in occasions:
            # Metadata first: a change that comes while the files are read is seen as one the next time.
            metadata = await asyncio.to_thread(_metadata, paths)
            if metadata == looked:
                continue
            looked = metadata
            state = await asyncio.to_thread(_read, paths)
            if not _same(state, current):
                current = state
                yield state


async def _occasions(paths: Sequence[Path]) -> AsyncGenerator[None, None]:
    """Come round at once, whenever something may have changed, and at least every POLL_MILLISECONDS."""
    while True:
        folders = await asyncio.to_thread(_folders, paths)
        yield
        try:
            async with aclosing(_notifications(folders)) as notifications:
                async for _ in notifications:
                    yield
                    # A new folder needs a watch of its own.
                    if await asyncio.to_thread(_folders, paths) != folders:
                        break
        except (OSError, RuntimeError) as error:
            # No notifications on this system, or none left: each watch counts against a limit of the user.
            log.debug("manifests are polled: %s", error)
            await asyncio.sleep(POLL_MILLISECONDS / 1000)


def _notifications(folders: Sequence[Path]) -> AsyncGenerator[object, None]:
    # Folders, because a watch on a file follows the old one when another is renamed over it. Not recursive,
    # because `-f .` would watch all of .git and .venv.
    return awatch(
        *folders,
        watch_filter=None,
        recursive=False,
        step=QUIET_MILLISECONDS,
        debounce=PATIENCE_MILLISECONDS,
        rust_timeout=POLL_MILLISECONDS,
        yield_on_timeout=True,
    )


def _read(paths: Sequence[Path]) -> ManifestSet | ManifestError:
    try:
        manifests = folder.read(paths)
        catalog(manifests)
    except ManifestError as error:
        return error
    return manifests


def _same(one: ManifestSet | ManifestError, other: ManifestSet | ManifestError | None) -> bool:
    if isinstance(one, ManifestSet) and isinstance(other, ManifestSet):
        # The order counts, too: it is the order in which names are listed.
        return [each.manifest for each in one.written.values()] == [each.manifest for each in other.written.values()]
    return type(one) is type(other) and str(one) == str(other)


def _metadata(paths: Sequence[Path]) -> _Metadata:
    # Links are followed: the file that one leads to has another number (inode) after a swap.
    return tuple(entry for path in paths for entry in _entries(path))


def _entries(path: Path) -> list[tuple[Path, int, int, int]]:
    try:
        stats = [(file, file.stat()) for file in folder.files(path)]
    except OSError:
        return [(path, 0, 0, 0)]  # gone, or between two states; reading it says what is the matter
    return [(file, stat.st_ino, stat.st_mtime_ns, stat.st_size) for file, stat in stats]


def _folders(paths: Sequence[Path]) -> list[Path]:
    return sorted({found for path in paths for found in _existing_folders(path)})


def _existing_folders(path: Path) -> list[Path]:
    with suppress(OSError):  # as good as not there; reading it says what is the matter
        if path.exists():
            return folder.folders(path)
    return [next(parent for parent in path.absolute().parents if parent.is_dir())]
