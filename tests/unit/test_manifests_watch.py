"""A change of the manifests is seen within a second, however it was made."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from meritorder.manifests import watch
from meritorder.manifests.folder import ManifestSet, read
from meritorder.manifests.watch import changes
from meritorder.manifests.yaml_source import ManifestError

State = ManifestSet | ManifestError

PROMISED = 1.0
"""Seconds in which a change is seen. One test holds us to it; the others would fail on a machine that is busy."""
PATIENCE = 20.0


def team(name: str) -> str:
    return f"apiVersion: meritorder.dev/v1alpha1\nkind: Team\nmetadata: {{name: {name}}}\n"


def names(state: State) -> list[str]:
    """The names of the teams, or where the problem is."""
    if isinstance(state, ManifestError):
        return [f"error in {problem.file.name}" for problem in state.problems]
    return [each.name for each in state.teams]


class Follower:
    """What a consumer has been given so far."""

    def __init__(self) -> None:
        self.states: list[State] = []
        self._more = asyncio.Event()

    async def follow(self, *paths: Path, current: State | None = None) -> None:
        async with aclosing(changes(paths, current)) as states:
            async for state in states:
                self.states.append(state)
                self._more.set()

    async def sees(self, *expected: str) -> None:
        """Wait until the last state is `expected`. What an editor leaves halfway may be seen before."""
        async with asyncio.timeout(PATIENCE):
            while not self.states or names(self.states[-1]) != list(expected):
                self._more.clear()
                await self._more.wait()


@asynccontextmanager
async def following(*paths: Path, current: State | None = None) -> AsyncIterator[Follower]:
    follower = Follower()
    task = asyncio.create_task(follower.follow(*paths, current=current))
    try:
        yield follower
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def rename_over(file: Path, text: str) -> None:
    """As vim, Emacs, `kubectl` and most careful programs save."""
    fresh = file.with_name(f".{file.name}.tmp")
    fresh.write_text(text)
    os.replace(fresh, file)


def set_aside_and_write(file: Path, text: str) -> None:
    """As vim with `backupcopy=no`: for a moment there is no such file."""
    file.rename(file.with_name(f"{file.name}~"))
    file.write_text(text)


def remove_and_write(file: Path, text: str) -> None:
    """As `git checkout`."""
    file.unlink()
    file.write_text(text)


SAVES = [write, rename_over, set_aside_and_write, remove_and_write]


@pytest.fixture(params=["notified", "polled"])
def notified(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the system has notifications; without them, everything is still seen in time."""
    if request.param == "polled":

        def refuse(*_: object, **__: object) -> AsyncIterator[object]:
            raise OSError(28, "OS file watch limit reached")

        monkeypatch.setattr(watch, "awatch", refuse)
        monkeypatch.setattr(watch, "POLL_MILLISECONDS", 100)
    return bool(request.param == "notified")


@pytest.mark.usefixtures("notified")
class TestEverywhere:
    @pytest.mark.parametrize("save", SAVES)
    async def test_a_saved_file_is_seen_again_and_again(
        self, tmp_path: Path, save: Callable[[Path, str], None]
    ) -> None:
        file = tmp_path / "team.yaml"
        write(file, team("a"))
        async with following(tmp_path) as follower:
            await follower.sees("a")
            for name in ("b", "c", "d"):
                save(file, team(name))
                await follower.sees(name)

    @pytest.mark.parametrize("save", SAVES)
    async def test_a_file_given_by_itself_is_seen_too(self, tmp_path: Path, save: Callable[[Path, str], None]) -> None:
        file = tmp_path / "team.yaml"
        write(file, team("a"))
        write(tmp_path / "other.yaml", "not: [a manifest")
        async with following(file) as follower:
            await follower.sees("a")
            for name in ("b", "c", "d"):
                save(file, team(name))
                await follower.sees(name)

    async def test_a_config_map_that_is_updated(self, tmp_path: Path) -> None:
        """Kubernetes writes a new folder with a timestamp, and renames a link over `..data`."""

        def publish(timestamp: str, name: str) -> None:
            write(tmp_path / timestamp / "team.yaml", team(name))
            (tmp_path / "..data_tmp").symlink_to(timestamp)
            os.replace(tmp_path / "..data_tmp", tmp_path / "..data")

        publish("..2026_01_01", "a")
        (tmp_path / "team.yaml").symlink_to("..data/team.yaml")
        async with following(tmp_path) as follower:
            await follower.sees("a")
            publish("..2026_01_02", "b")
            shutil.rmtree(tmp_path / "..2026_01_01")
            await follower.sees("b")
            publish("..2026_01_03", "c")
            await follower.sees("c")

    async def test_files_that_come_and_go_at_any_depth(self, tmp_path: Path) -> None:
        write(tmp_path / "a.yaml", team("a"))
        async with following(tmp_path) as follower:
            await follower.sees("a")
            write(tmp_path / "below" / "deep" / "b.yaml", team("b"))
            await follower.sees("a", "b")
            write(tmp_path / "below" / "deep" / "b.yaml", team("c"))
            await follower.sees("a", "c")
            shutil.rmtree(tmp_path / "below")
            await follower.sees("a")

    async def test_a_broken_state_is_an_error_and_its_repair_is_seen(self, tmp_path: Path) -> None:
        file = tmp_path / "team.yaml"
        write(file, team("a"))
        async with following(tmp_path) as follower:
            await follower.sees("a")
            write(file, "kind: [")
            await follower.sees("error in team.yaml")
            write(file, team("a"))
            await follower.sees("a")

    async def test_a_reference_that_leads_nowhere_is_an_error(self, tmp_path: Path) -> None:
        file = tmp_path / "team.yaml"
        write(file, team("a"))
        async with following(tmp_path) as follower:
            await follower.sees("a")
            write(file, team("a") + "spec: {routes: [missing]}\n")
            await follower.sees("error in team.yaml")

    async def test_a_folder_that_does_not_exist_yet_and_is_replaced_later(self, tmp_path: Path) -> None:
        folder = tmp_path / "not" / "yet"
        async with following(folder) as follower:
            await follower.sees("error in yet")
            write(folder / "team.yaml", team("a"))
            await follower.sees("a")
            shutil.rmtree(folder)
            await follower.sees("error in yet")
            write(folder / "team.yaml", team("b"))
            await follower.sees("b")

    async def test_what_lies_behind_a_link_to_elsewhere(self, tmp_path: Path) -> None:
        write(tmp_path / "elsewhere" / "team.yaml", team("a"))
        (tmp_path / "manifests").mkdir()
        (tmp_path / "manifests" / "team.yaml").symlink_to("../elsewhere/team.yaml")
        async with following(tmp_path / "manifests") as follower:
            await follower.sees("a")
            write(tmp_path / "elsewhere" / "team.yaml", team("b"))
            await follower.sees("b")


@pytest.mark.usefixtures("notified")
async def test_a_change_is_seen_in_the_time_that_is_promised(tmp_path: Path) -> None:
    file = tmp_path / "team.yaml"
    write(file, team("a"))
    async with following(tmp_path) as follower:
        await follower.sees("a")
        async with asyncio.timeout(PROMISED):
            rename_over(file, team("b"))
            await follower.sees("b")


async def test_a_change_before_the_first_look_is_not_missed(tmp_path: Path) -> None:
    file = tmp_path / "team.yaml"
    write(file, team("a"))
    current = read([tmp_path])
    write(file, team("b"))
    async with following(tmp_path, current=current) as follower:
        await follower.sees("b")


async def test_what_says_the_same_is_not_given_again(tmp_path: Path) -> None:
    file = tmp_path / "team.yaml"
    write(file, team("a"))
    async with following(tmp_path, current=read([tmp_path])) as follower:
        rename_over(file, "# a comment\n" + team("a"))
        write(tmp_path / "README.md", "not a manifest")
        write(file, team("b"))
        await follower.sees("b")
        assert [names(state) for state in follower.states if isinstance(state, ManifestSet)] == [["b"]]


async def test_hidden_folders_are_not_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "models" / "team.yaml", team("a"))
    write(tmp_path / ".git" / "objects" / "aa" / "x", "")
    watched = asyncio.get_running_loop().create_future()

    async def awatch(*folders: Path, **_: object) -> AsyncIterator[object]:
        watched.set_result(folders)
        yield await asyncio.Event().wait()

    monkeypatch.setattr(watch, "awatch", awatch)
    async with following(tmp_path), asyncio.timeout(PATIENCE):
        assert await watched == (tmp_path, tmp_path / "models")


async def test_a_follower_can_be_cancelled_at_once(tmp_path: Path) -> None:
    write(tmp_path / "team.yaml", team("a"))
    async with asyncio.timeout(PATIENCE), following(tmp_path) as follower:
        await follower.sees("a")
