"""What a code search is made of, where the operator asks for one."""

from bundle.search import SearchManifest, open_search_bundle
from serve.search.base import IndexUnusable, UnitIndex
from serve.search.service import CodeSearch, Observer
from serve.settings import Settings, SettingsError


def open_search(settings: Settings, observer: Observer) -> CodeSearch | None:
    """The code search of these settings; None where they name no search bundle.

    Raises:
        BundleError: the search bundle is none, or has no int8 export.
        IndexUnusable: the index belongs to another search bundle or another server, or can not be read or reached.
        SettingsError: a package that it needs is not installed.
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
        from serve.search.postgres.index import PostgresIndex
    except ImportError as error:
        extra = "search" if settings.index_url is None else "search-postgres"
        raise SettingsError(f"--search-bundle needs: pip install 'deepcode-analyst[{extra}]' ({error})") from error
    try:
        return PostgresIndex(settings.index_url, manifest)
    except IndexUnusable as error:
        raise IndexUnusable(f"--index-url: {error}") from error  # the URL itself may hold a password
