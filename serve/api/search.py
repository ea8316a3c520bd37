"""Code search over HTTP: projects are indexed, and asked."""

from typing import Annotated, Any

from litestar import Request, Response, delete, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import JSONBody, Parameter

from serve.api.bodies import refuse_repeated_keys
from serve.api.errors import MALFORMED_JSON, Problem, documented
from serve.api.leaving import unless_client_leaves
from serve.api.limits import Admission, Caller
from serve.api.noted import note
from serve.search.messages import (
    PROJECT_PATTERN,
    IndexedFiles,
    IndexReport,
    IndexRequest,
    ProjectInfo,
    SearchRequest,
    SearchResults,
)
from serve.search.service import CodeSearch

ProjectName = Annotated[str, Parameter(pattern=PROJECT_PATTERN)]


@post(
    "/v1/index",
    status_code=200,
    tags=["search"],
    summary="Index files of a project",
    responses=documented(400, 401, 404, 408, 413, 422, 429, 503),
    exception_handlers=MALFORMED_JSON,
)
async def index_files(
    request: Request[Any, Caller, State],
    data: JSONBody[IndexRequest],
    search: NamedDependency[CodeSearch],
    admission: NamedDependency[Admission],
) -> Response[IndexReport]:
    """Take files in, in place of those of the same path, and files out. What did not change costs nothing."""
    refuse_repeated_keys(await request.body())
    with admission.admit(request.auth):
        report = await unless_client_leaves(request.receive, search.update(data))
    note(project=data.project, changed=report.changed, deleted=report.deleted, embedded=report.embedded)
    return Response(report)


@get("/v1/index", tags=["search"], summary="The projects that are indexed", responses=documented(401, 404, 429, 503))
async def indexed_projects(search: NamedDependency[CodeSearch]) -> list[ProjectInfo]:
    """Every project with its files and units in numbers. Whoever is let in sees all of them."""
    return await search.projects()


@get(
    "/v1/index/{project:str}",
    tags=["search"],
    summary="The files of a project",
    responses=documented(401, 404, 422, 429, 503),
)
async def indexed_files(project: ProjectName, search: NamedDependency[CodeSearch]) -> IndexedFiles:
    """The sha256 of every indexed file's text, by which a client knows what it need not send again."""
    return await search.files(project)


@delete(
    "/v1/index/{project:str}",
    status_code=204,
    tags=["search"],
    summary="Forget a project",
    responses=documented(401, 404, 422, 429, 503),
)
async def delete_project(
    request: Request[Any, Caller, State],
    project: ProjectName,
    search: NamedDependency[CodeSearch],
    admission: NamedDependency[Admission],
) -> None:
    """Take a project out of the index, with all its files."""
    with admission.admit(request.auth):
        await search.delete(project)


@post(
    "/v1/search",
    status_code=200,
    tags=["search"],
    summary="Find code",
    responses=documented(400, 401, 404, 408, 413, 422, 429, 503),
    exception_handlers=MALFORMED_JSON,
)
async def search_code(
    request: Request[Any, Caller, State],
    data: JSONBody[SearchRequest],
    search: NamedDependency[CodeSearch],
    admission: NamedDependency[Admission],
) -> Response[SearchResults]:
    """The units of a project that fit a question best, by what they mean and by the words they are made of."""
    refuse_repeated_keys(await request.body())
    with admission.admit(request.auth):
        results = await unless_client_leaves(request.receive, search.search(data))
    note(project=data.project, results=len(results.results))
    return Response(results)


def search_or_refusal(search: CodeSearch | None) -> Provide:
    """The dependency `search`; where there is none, every request that needs it is refused."""

    def give() -> CodeSearch:
        if search is None:
            raise Problem(
                "no-search",
                404,
                "This server has no code search",
                "It was started without --search-bundle and an --index-dir or --index-url.",
            )
        return search

    return Provide(give, sync_to_thread=False)
