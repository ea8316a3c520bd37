"""What a code search is made of, where the operator asks for one."""

from pathlib import Path

from bundle.search import SearchManifest, open_search_bundle
from serve.search.base import IndexAway, IndexUnusable, UnitIndex
from serve.search.service import CodeSearch, Observer
from serve.settings import Settings, SettingsError

QDRANT_SECONDS = 30


def open_search(settings: Settings, observer: Observer) -> CodeSearch | None:
    """The code search of these settings; None where they name no search bundle.

    Raises:
        BundleError: the search bundle is none, or has no int8 export.
        IndexUnusable: the index belongs to another search bundle or another server, or can not be read or reached.
        SettingsError: a package that it needs is not installed, or the file of the key is not there.
    """
    if settings.search_bundle is None:
        return None
    bundle = open_search_bundle(settings.search_bundle)
    return CodeSearch(bundle, _open_index(settings, bundle.manifest), settings.threads, observer)


def _open_index(settings: Settings, manifest: SearchManifest) -> UnitIndex:
    try:
        if settings.index_url is None:
            from serve.search.folder import FolderIndex

            assert settings.index_dir is not None, "settings name one of both"
            return FolderIndex(settings.index_dir, manifest)
        from qdrant_client import QdrantClient

        from serve.search.qdrant import QdrantIndex
    except ImportError as error:
        extra = "search" if settings.index_url is None else "qdrant"
        raise SettingsError(f"--search-bundle needs: pip install 'deepcode-analyst[{extra}]' ({error})") from error
    key = None if settings.index_key is None else _read_key(settings.index_key)
    try:
        return QdrantIndex(QdrantClient(url=settings.index_url, api_key=key, timeout=QDRANT_SECONDS), manifest)
    except (IndexAway, ValueError) as error:
        raise IndexUnusable(f"--index-url {settings.index_url}: {error}") from error


def _read_key(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"--index-key {file} can not be read: {error.strerror}") from error
