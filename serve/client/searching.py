"""The Python client of a server's code search, blocking and asynchronous.

    with SearchClient("http://127.0.0.1:8000") as client:
        client.index(IndexRequest(project="shop", files=(SourceFile("cart.py", code),)))
        for result in client.search("total of the cart", "shop").results:
            ...

It can do all that `serve.client.api.Client` can, and fails as it does.
"""

from collections.abc import Sequence

from serve.client.api import AsyncClient, Client
from serve.search.messages import (
    IndexedFiles,
    IndexReport,
    IndexRequest,
    Kind,
    ProjectInfo,
    SearchRequest,
    SearchResults,
)


class SearchClient(Client):
    """Asks one server and waits for the answers."""

    def index(self, request: IndexRequest) -> IndexReport:
        """Take files into a project's index, and out of it.

        Raises:
            ClientError: it was not done, or not wholly; the subclasses say why.
        """
        return self._server.answer(self._read(self._server.indexing(request)), IndexReport)

    def search(
        self, query: str, project: str, *, k: int = 10, path: str | None = None, kinds: Sequence[Kind] | None = None
    ) -> SearchResults:
        """The k units of a project that fit a question best.

        Args:
            query: in words, or words of an identifier.
            project: that was indexed.
            k: 1 to 100.
            path: only files whose path matches this pattern; `*` stands for anything.
            kinds: only these kinds of units.

        Raises:
            ClientError: there is no answer; `UnknownProject` and `NoSearch` among others say why.
        """
        request = _as_request(query, project, k, path, kinds)
        return self._server.answer(self._read(self._server.search(request)), SearchResults)

    def files(self, project: str) -> IndexedFiles:
        """What a project's index holds.

        Raises:
            ClientError: as `search`.
        """
        return self._server.answer(self._read(self._server.project("GET", project)), IndexedFiles)

    def projects(self) -> list[ProjectInfo]:
        """What is indexed.

        Raises:
            ClientError: as `search`.
        """
        return self._server.answer(self._read(self._server.projects()), list[ProjectInfo])

    def forget(self, project: str) -> None:
        """Take a project out of the index.

        Raises:
            ClientError: as `search`.
        """
        self._read(self._server.project("DELETE", project))


class AsyncSearchClient(AsyncClient):
    """The same for asyncio."""

    async def index(self, request: IndexRequest) -> IndexReport:
        """As `SearchClient.index`."""
        return self._server.answer(await self._read(self._server.indexing(request)), IndexReport)

    async def search(
        self, query: str, project: str, *, k: int = 10, path: str | None = None, kinds: Sequence[Kind] | None = None
    ) -> SearchResults:
        """As `SearchClient.search`."""
        request = _as_request(query, project, k, path, kinds)
        return self._server.answer(await self._read(self._server.search(request)), SearchResults)

    async def files(self, project: str) -> IndexedFiles:
        """As `SearchClient.files`."""
        return self._server.answer(await self._read(self._server.project("GET", project)), IndexedFiles)

    async def projects(self) -> list[ProjectInfo]:
        """As `SearchClient.projects`."""
        return self._server.answer(await self._read(self._server.projects()), list[ProjectInfo])

    async def forget(self, project: str) -> None:
        """As `SearchClient.forget`."""
        await self._read(self._server.project("DELETE", project))


def _as_request(query: str, project: str, k: int, path: str | None, kinds: Sequence[Kind] | None) -> SearchRequest:
    return SearchRequest(query=query, project=project, k=k, path=path, kinds=None if kinds is None else tuple(kinds))
