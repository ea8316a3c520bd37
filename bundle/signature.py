"""Who released a bundle: a minisign signature of its manifest, and so of every file that the manifest lists.

minisign (https://jedisct1.github.io/minisign/) signs with Ed25519 and checks offline: there is no authority and no log
to be asked, a public key is one line, and its own command makes the keys and reads the signatures as well.
"""

from pathlib import Path

import minisign

from bundle.manifest import MANIFEST_FILE, BundleError

SIGNATURE_FILE = f"{MANIFEST_FILE}.minisig"


def sign_manifest(manifest: bytes, key: minisign.SecretKey, release: str) -> bytes:
    """The content of the signature's file.

    Args:
        manifest: the content of manifest.json.
        key: without a password, or after its password was given.
        release: what this is, in a line; signed too, and shown by `minisign -V`.
    """
    return bytes(key.sign(manifest, trusted_comment=release)) + b"\n"


def verify_signature(root: Path, public_key: str) -> None:
    """Check that the holder of a key signed this bundle's manifest.

    The files themselves are not looked at: opening the bundle holds them against the manifest.

    Args:
        public_key: as minisign prints it, "RW" and 54 more characters.

    Raises:
        BundleError: there is no signature, it is somebody else's or another manifest's, or the key is none.
    """
    try:
        key = minisign.PublicKey.from_base64(public_key)
    except ValueError as error:
        raise BundleError(
            f"{public_key!r} is no minisign public key ({error}); give the second line of the .pub file"
        ) from error
    file = root / SIGNATURE_FILE
    if not file.is_file():
        raise BundleError(
            f"{root} is not signed: it has no {SIGNATURE_FILE}, and a trusted key is set; "
            "take a bundle that deepcode-compress pack signed, or trust no key"
        )
    try:
        key.verify((root / MANIFEST_FILE).read_bytes(), minisign.Signature.from_bytes(file.read_bytes()))
    except (ValueError, OSError) as error:
        raise BundleError(
            f"{file}: the trusted key did not sign this bundle ({error}); take the bundle from its maker again, "
            "or check the key"
        ) from error
