"""Where weights are on this machine."""

from pathlib import Path


class SourceError(Exception):
    """The weights are not where the manifest says. The message is one sentence for a person."""


def check_folder(folder: str) -> None:
    """Check that `folder` holds a model; otherwise vLLM says much later, and less clearly, that it does not.

    Raises:
        SourceError
    """
    if not Path(folder).is_dir():
        raise SourceError(f"source {folder} does not exist or is not a folder")
    if not Path(folder, "config.json").is_file():
        raise SourceError(f"source {folder} has no config.json, so it is not a model folder")
