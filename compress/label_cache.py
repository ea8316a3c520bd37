"""A folder of what a teacher said, with the key of everything that it depends on: what is stale is an error."""

from pathlib import Path

import msgspec
import numpy as np

from compress.errors import StageError


class StaleSoftLabels(StageError):
    """The cache on disk was made from other examples, another teacher or another temperature."""


def claim(folder: Path, key: msgspec.Struct, stage: str) -> None:
    """Make sure that a folder holds soft labels of this key or none yet, in which case the key is written to it.

    Args:
        stage: what a run redoes to make them anew.

    Raises:
        StaleSoftLabels: the folder's labels have another key, or none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = folder / "key.json"
    again = f"delete the folder or run with --from {stage}"
    if held.is_file():
        try:
            found = msgspec.json.decode(held.read_bytes(), type=type(key))
        except msgspec.DecodeError as error:
            raise StaleSoftLabels(f"{folder} holds soft labels of another version; {again}") from error
        if found != key:
            different = [name for name in key.__struct_fields__ if getattr(found, name) != getattr(key, name)]
            raise StaleSoftLabels(f"{folder} holds soft labels made with another {', '.join(different)}; {again}")
    elif any(folder.glob("shard-*")):
        raise StaleSoftLabels(f"{folder} holds soft labels without a key; delete the folder")
    else:
        staged = held.with_suffix(".tmp")
        staged.write_bytes(msgspec.json.encode(key))
        staged.replace(held)


def write_array(file: Path, array: np.ndarray) -> None:
    """Write a .npy file whole or not at all."""
    staged = file.with_suffix(".tmp")
    with staged.open("wb") as handle:
        np.save(handle, array)
    staged.replace(file)
