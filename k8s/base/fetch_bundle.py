"""Fetch a bundle, check it and unpack it, before the server starts. Needs nothing but Python.

BUNDLE_URL names a .tar.gz of a bundle's files, BUNDLE_SHA256 its checksum; the first argument is an empty folder to
unpack it into. The server then checks each file once more against the bundle's manifest.
"""

import hashlib
import os
import shutil
import sys
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60


def fetch(url: str, sha256: str, folder: Path) -> None:
    """Unpack what is at `url` into `folder`, if it is what it should be.

    Raises:
        OSError, tarfile.TarError: it can not be fetched or unpacked.
        ValueError: it is something else.
    """
    archive = folder / ".fetched.tar.gz"
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, archive.open("wb") as file:
        while chunk := response.read(CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
    try:
        if digest.hexdigest() != sha256:
            raise ValueError(f"its sha256 is {digest.hexdigest()}, not {sha256}")
        with tarfile.open(archive) as files:
            unpack(files, folder)
    finally:
        archive.unlink()


def unpack(files: tarfile.TarFile, folder: Path) -> None:
    """Write the files of an archive into `folder`, nothing where one would land elsewhere.

    tarfile's own filters do this from Python 3.11.4 on; Debian 12 has an older one.

    Raises:
        ValueError: a name leads out of the folder, or something is neither file nor folder.
    """
    members = [member for member in files.getmembers() if not member.isdir()]
    for member in members:
        if not (folder / member.name).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{member.name} would land outside the destination")
        if not member.isfile():
            raise ValueError(f"{member.name} is no plain file")
    for member in members:
        path = folder / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.extractfile(member) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)


def main() -> int:
    """0 when the bundle is there."""
    url = os.environ["BUNDLE_URL"]
    try:
        fetch(url, os.environ["BUNDLE_SHA256"], Path(sys.argv[1]))
    except (OSError, tarfile.TarError, ValueError) as error:
        print(f"{url} was not unpacked: {error}; check BUNDLE_URL and BUNDLE_SHA256", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
