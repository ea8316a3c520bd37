"""A released bundle: one file, the same whenever the bundle is, that says who made it; a server checks that."""

import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import httpx
import minisign
import pytest

from bundle.manifest import MANIFEST_FILE, BundleError, open_bundle
from bundle.signature import SIGNATURE_FILE, verify_signature
from compress.cli import main
from compress.packing import make_key, pack
from serve.cli import main as serve
from tests.support.server_process import serving


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "release.key"
    make_key(file)
    return file


def public_key(key_file: Path) -> str:
    """As it is given to servers: the second line of the public file."""
    return key_file.with_name("release.key.pub").read_text().splitlines()[1]


def unpacked(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    return folder


@pytest.fixture
def signed(tiny_bundle: Path, tmp_path: Path, key_file: Path) -> Path:
    """The tiny bundle as somebody has it who fetched its release."""
    return unpacked(pack(tiny_bundle, tmp_path / "dist", key_file), tmp_path / "signed")


def test_the_command_makes_an_archive_named_for_its_weights_and_a_checksum_for_it(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "dist"

    assert main(["pack", str(tiny_bundle), "--out", str(folder)]) == 0

    manifest = open_bundle(tiny_bundle).manifest
    archive = folder / f"{manifest.name}-{manifest.revision}.tar.gz"
    assert capsys.readouterr().out.split() == [str(archive)]
    checked = subprocess.run(["sha256sum", "--check", f"{archive.name}.sha256"], cwd=folder, capture_output=True)
    assert checked.returncode == 0
    assert open_bundle(unpacked(archive, tmp_path / "unpacked")).manifest == manifest


def test_the_same_bundle_makes_the_same_bytes(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bundle, copy, copy_function=shutil.copyfile)  # another time, other permissions
    (copy / "notes.txt").write_text("no part of the bundle")

    first, second = (pack(root, tmp_path / name, None) for root, name in ((tiny_bundle, "one"), (copy, "two")))

    assert first.read_bytes() == second.read_bytes()


def test_what_is_damaged_or_no_bundle_is_not_packed(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bundle, copy)
    (copy / "rules.yaml").write_text("[]")

    assert main(["pack", str(copy), "--out", str(tmp_path / "dist")]) == 3
    assert main(["pack", str(tmp_path), "--out", str(tmp_path / "dist")]) == 3
    assert not (tmp_path / "dist").exists()


def test_a_key_is_its_owners_alone_and_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "release.key"

    assert main(["new-key", str(file)]) == 0
    assert capsys.readouterr().out.strip() == public_key(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    assert main(["new-key", str(file)]) == 3
    assert file.read_bytes() == before


def test_a_signature_says_what_was_released_and_is_kept_when_it_is_packed_again(
    signed: Path, tmp_path: Path, key_file: Path
) -> None:
    verify_signature(signed, public_key(key_file))

    manifest = open_bundle(signed).manifest
    signature = minisign.Signature.from_file(signed / SIGNATURE_FILE)
    assert signature.trusted_comment == f"deepcode bundle {manifest.name}-{manifest.revision}"
    again = unpacked(pack(signed, tmp_path / "again", None), tmp_path / "again")
    verify_signature(again, public_key(key_file))


def test_a_key_with_a_password_is_unlocked_with_it(
    tiny_bundle: Path, tmp_path: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = minisign.SecretKey.from_file(key_file)
    key.encrypt("correct horse", opslimit=1 << 15, memlimit=1 << 24)  # little work: the default takes a gigabyte
    key_file.write_bytes(bytes(key))
    monkeypatch.setattr("getpass.getpass", lambda prompt: "correct horse")

    archive = pack(tiny_bundle, tmp_path / "dist", key_file)

    verify_signature(unpacked(archive, tmp_path / "signed"), public_key(key_file))
    monkeypatch.setattr("getpass.getpass", lambda prompt: "wrong horse")
    assert main(["pack", str(tiny_bundle), "--out", str(tmp_path), "--key", str(key_file)]) == 3


def test_what_another_program_signed_is_accepted(tmp_path: Path) -> None:
    # Made by minisign 0.11, of Debian.
    (tmp_path / MANIFEST_FILE).write_bytes(b'{"name": "paper"}\n')
    (tmp_path / SIGNATURE_FILE).write_text("""\
untrusted comment: signature from minisign secret key
RUQna9udl/kn+Ls08iOTdz9SFsrpuOJ1TXSFTprcPJRsoU5wwpgN5TT+yu8BDt1nVxafiicKGRM/qMkWvIRS2TZm0HmXdB4HZgk=
trusted comment: paper, by another program
cmlk/bBdvlZsA/po4yYEL3JsCM6mQAS2X3DUxE8ZWUuEApI73726EV+NIY5/anPtJrfuPAWfsqF5ZOWipxtkDw==
""")

    verify_signature(tmp_path, "RWQna9udl/kn+OOoP6HE8yJFZSXYuABPlAvyigot3qHbDerQPYif+eID")


def test_a_bundle_is_refused_that_the_key_did_not_sign(signed: Path, tmp_path: Path, key_file: Path) -> None:
    key = public_key(key_file)
    other = make_key(tmp_path / "other.key")

    with pytest.raises(BundleError, match="did not sign"):
        verify_signature(signed, other)
    with pytest.raises(BundleError, match="no minisign public key"):
        verify_signature(signed, key[:-4])
    manifest = (signed / MANIFEST_FILE).read_bytes()
    (signed / MANIFEST_FILE).write_bytes(manifest.replace(b'"thresholds"', b'"thresholds" '))
    with pytest.raises(BundleError, match="did not sign"):
        verify_signature(signed, key)
    (signed / SIGNATURE_FILE).write_text("nonsense")
    with pytest.raises(BundleError, match="did not sign"):
        verify_signature(signed, key)
    (signed / SIGNATURE_FILE).unlink()
    with pytest.raises(BundleError, match="is not signed"):
        verify_signature(signed, key)


def test_a_server_with_a_trusted_key_serves_what_it_signed_and_nothing_else(
    signed: Path, tiny_bundle: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = public_key(key_file)

    assert serve([str(tiny_bundle), "--trusted-key", key]) == 2
    assert "is not signed" in capsys.readouterr().err
    assert serve([str(signed), "--search-bundle", str(tiny_bundle), "--index-dir", ".", "--trusted-key", key]) == 2
    assert f"{tiny_bundle} is not signed" in capsys.readouterr().err
    with serving(signed, "--trusted-key", key) as url:
        assert httpx.get(f"{url}/health/ready", timeout=60).status_code == 200
