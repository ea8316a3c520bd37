"""A bundle as one file to release: an archive that is the same whenever the bundle is, its checksum, its signature."""

import getpass
import gzip
import io
import os
import tarfile
from pathlib import Path

import minisign
import msgspec

from bundle.manifest import MANIFEST_FILE, BundleError, FileEntry, file_sha256, verify_files
from bundle.signature import SIGNATURE_FILE, sign_manifest
from compress.errors import StageError


class _Released(msgspec.Struct, frozen=True):
    """What the manifests of all kinds of bundles have."""

    name: str
    weights_sha256: str
    files: dict[str, FileEntry]


def make_key(file: Path) -> str:
    """Make a key to sign with: the secret one in `file`, which its owner alone may read, the public one beside it.

    Returns:
        The public key, one line, which those who serve are given.

    Raises:
        StageError: the file exists.
    """
    pair = minisign.KeyPair.generate()
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            opened.write(bytes(pair.secret_key) + b"\n")
    except FileExistsError as error:
        raise StageError(f"{file} exists, and a key is not overwritten: name another file") from error
    file.with_name(f"{file.name}.pub").write_bytes(bytes(pair.public_key) + b"\n")
    return pair.public_key.to_base64().decode()


def pack(root: Path, folder: Path, key_file: Path | None) -> Path:
    """Write NAME-REVISION.tar.gz and its .sha256 into `folder`.

    The archive holds the manifest, the files that it lists, and a signature: a new one if there is a key, else the one
    the bundle has, if it has one. The bundle's folder is left as it is.

    Args:
        root: a bundle's folder, of either kind.
        folder: made if it is not there.
        key_file: a minisign secret key; its password is asked for if it has one.

    Raises:
        StageError: the folder is no bundle, a file of it is damaged, or the key can not be used.
    """
    try:
        manifest = (root / MANIFEST_FILE).read_bytes()
        released = msgspec.json.decode(manifest, type=_Released)
        verify_files(root, released.files, {}, ())
    except (OSError, msgspec.MsgspecError, BundleError) as error:
        raise StageError(f"{root} can not be packed: {error}") from error
    version = f"{released.name}-{released.weights_sha256[:12]}"
    made: dict[str, bytes] = {}
    if key_file is not None:
        made[SIGNATURE_FILE] = sign_manifest(manifest, _unlocked(key_file), f"deepcode bundle {version}")
    signed = key_file is None and (root / SIGNATURE_FILE).is_file()
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{version}.tar.gz"
    _write_archive(archive, root, [MANIFEST_FILE, *released.files, *([SIGNATURE_FILE] if signed else [])], made)
    archive.with_name(f"{archive.name}.sha256").write_text(f"{file_sha256(archive)}  {archive.name}\n")
    return archive


def _unlocked(file: Path) -> minisign.SecretKey:
    try:
        key = minisign.SecretKey.from_file(file)
        if key.is_encrypted():
            key.decrypt(getpass.getpass(f"password of {file}: "))
    except (OSError, ValueError) as error:
        raise StageError(
            f"{file} can not be signed with: {error}; deepcode-compress new-key FILE or minisign -G makes a key"
        ) from error
    return key


def _write_archive(archive: Path, root: Path, names: list[str], made: dict[str, bytes]) -> None:
    """The same bytes for the same bundle: sorted, without times and owners."""
    # Weights hardly shrink, and there may be gigabytes of them.
    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted([*names, *made]):
            member = tarfile.TarInfo(name)
            member.mode = 0o644
            with io.BytesIO(made[name]) if name in made else (root / name).open("rb") as file:
                member.size = file.seek(0, os.SEEK_END)
                file.seek(0)
                tar.addfile(member, file)
