"""GET / and /docs: what people open in a browser, and the files that these pages are made of."""

from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.errors import NotFoundError
from service.routes.assets import read_assets
from service.routes.endpoint import Answer, Endpoint, header
from service.routes.sample import is_known_to_client

router = APIRouter(route_class=Endpoint, include_in_schema=False)

_ASSETS = read_assets(Path(__file__).parents[1] / "page")

# Nothing from elsewhere, nothing inline, and no page around ours.
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob: data:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
# Swagger UI writes styles into its elements.
_DOCS_POLICY = _POLICY | {"style-src": "'self' 'unsafe-inline'"}


@router.get("/", response_class=Response)
async def show_page(request: Request) -> Response:
    """Answer the front page: what is served, to try out."""
    return _answer(request, "index.html", _POLICY)


@router.get("/docs", response_class=Response)
async def show_docs(request: Request) -> Response:
    """Answer the page of all routes and fields: Swagger UI, from this server alone."""
    return _answer(request, "docs.html", _DOCS_POLICY)


@router.get("/page/{file}", response_class=Response)
async def show_page_file(request: Request, file: str) -> Response:
    """Answer a script, style or icon of the pages."""
    if file not in _ASSETS:
        raise NotFoundError(f"no page has a file {file!r}")
    return _answer(request, file, _POLICY)


def _answer(request: Request, name: str, policy: dict[str, str]) -> Response:
    asset = _ASSETS[name]
    content, encoding = asset.encoded(header(request, b"accept-encoding"))
    headers = encoding | {
        "content-security-policy": "; ".join(f"{key} {value}" for key, value in policy.items()),
        "referrer-policy": "no-referrer",
    }
    if is_known_to_client(request, headers):
        return Response(status_code=304, headers=headers)
    return Answer(content, asset.media_type, headers)
