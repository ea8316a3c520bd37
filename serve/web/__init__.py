"""The page at `/`: static files and the rules under which a browser may run them."""

from pathlib import Path

from litestar import MediaType, Response, get
from litestar.datastructures import CacheControlHeader
from litestar.static_files import create_static_files_router

STATIC = Path(__file__).parent / "static"

# The page loads nothing but its own files, is framed by nobody, and sends code nowhere but to this server. Images may
# be data: URLs because the editor's gutter marks are.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
REVALIDATE = CacheControlHeader(no_cache=True)


@get("/", exclude_from_auth=True, include_in_schema=False, sync_to_thread=True, cache_control=REVALIDATE)
def page() -> Response[bytes]:
    """The page itself holds nothing of the bundle; what it shows it asks for, with a key where one is needed."""
    return Response((STATIC / "index.html").read_bytes(), media_type=MediaType.HTML, headers=HEADERS)


def _with_headers(response: Response[object]) -> Response[object]:
    response.headers.update(HEADERS)
    return response


page_files = create_static_files_router(
    path="/page",
    directories=[STATIC],
    opt={"exclude_from_auth": True},
    include_in_schema=False,
    cache_control=REVALIDATE,
    after_request=_with_headers,
)
