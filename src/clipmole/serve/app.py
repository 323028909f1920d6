"""The routes: what is asked, what is answered, and how OpenAPI describes it.

In: a `Service`. Out: an ASGI application, guarded. It knows nothing of sockets and processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import clipmole
from clipmole.images.crops import Box, region_box
from clipmole.serve.errors import INTERNAL, Problem
from clipmole.serve.metrics import CONTENT_TYPE
from clipmole.serve.middleware import Exchange, SecurityMiddleware, refusal
from clipmole.serve.schemas import (
    BytesAnswer,
    DetectAnswer,
    DetectorsAnswer,
    EvidenceKind,
    Health,
    Refusal,
    Result,
)
from clipmole.serve.service import Service
from clipmole.serve.upload import FIELD, Upload, read_body, read_images

STATIC = Path(__file__).parent / "static"
_REFUSALS = {
    400: "The body is not what its header says, or has no image.",
    401: "The server requires a token.",
    403: "A page of another site made the request.",
    408: "The body arrived too slowly.",
    413: "More bytes or images than are allowed.",
    415: "The route does not take this content type.",
    421: "The Host header names another server.",
    422: "A query parameter has a value that it cannot have, or that this detector cannot answer.",
    429: "As many requests or images as the server takes at once; Retry-After says when to try again.",
    500: "An error inside the server.",
    503: "Loading, stopping, or too slow; Retry-After says when to try again.",
}
_BY_SPECIAL = {404: "not_found", 405: "method_not_allowed"}
_CLIENT_GONE = 499  # nginx's number
Returned = TypeVar("Returned")

EvidenceQuery = Annotated[
    EvidenceKind,
    Query(description="`tiles`: each crop's logit and box; `tokens`: also what each patch contributed, much slower."),
]
ProvenanceQuery = Annotated[bool, Query(description="Also what the file's metadata say of its origin.")]
Region = Annotated[
    str | None,
    Query(
        description="The only part of each image to look at: x,y,w,h, pixels of the upright image.",
        pattern=r"^\d{1,6},\d{1,6},\d{1,6},\d{1,6}$",
        examples=["100,50,400,300"],
    ),
]


def create_app(service: Service, *, token: str | None = None, hosts: tuple[str, ...] = ()) -> SecurityMiddleware:
    """The application.

    Args:
        token: the bearer token that /v1 and /metrics ask for; None: none.
        hosts: names that the Host header may be; (): any.
    """
    app = FastAPI(
        title="clipmole",
        version=clipmole.__version__,
        summary="Tells AI-generated images from photographs.",
        description='A likelihood, not a proof. Errors are `{"error": {"code", "message"}, "request_id"}`.',
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # its redirect is no typed error
        separate_input_output_schemas=False,
    )
    if token is not None:
        _describe_token(app)
    app.include_router(_detection(service, secured=token is not None))
    app.include_router(_operation(service))
    if STATIC.is_dir():
        app.mount("/static", StaticFiles(directory=STATIC))
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(Exception, _internal)
    return SecurityMiddleware(app, service.metrics, token, hosts)


def _describe_token(app: FastAPI) -> None:
    """Let OpenAPI say that there is a token; `SecurityMiddleware` asks for it."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        schema = describe()
        schema.setdefault("components", {})["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _detection(service: Service, *, secured: bool) -> APIRouter:
    """POST /v1/detect, POST /v1/detect/bytes, GET /v1/detectors."""
    router = APIRouter(prefix="/v1", tags=["detection"])
    errors = _refusals(400, 401, 403, 408, 413, 415, 421, 422, 429, 500, 503)
    security: list[dict[str, list[str]]] = [{"bearer": []}] if secured else []

    @router.post(
        "/detect",
        operation_id="detect",
        summary="Score one or several images",
        response_model=DetectAnswer,
        responses=errors,
        openapi_extra=_multipart(service.settings.max_images) | {"security": security},
    )
    async def detect(
        request: Request, evidence: EvidenceQuery = "none", provenance: ProvenanceQuery = False, region: Region = None
    ) -> Response:
        """One result per image, in the order they were sent; an image that cannot be scored has an `error`."""
        exchange: Exchange = request.state.exchange
        box = _box(region)
        with service.request(), service.memory.lease() as lease:
            uploads = await read_images(request, service.settings, lease)
            results = await _answered(request, service.detect(uploads, evidence, provenance, box))
        answer = DetectAnswer(request_id=exchange.id, detector=service.detector.name, results=tuple(results))
        return _json(answer)

    @router.post(
        "/detect/bytes",
        operation_id="detect_bytes",
        summary="Score one image, sent as it is",
        response_model=BytesAnswer,
        responses=errors,
        openapi_extra=_raw() | {"security": security},
    )
    async def detect_bytes(
        request: Request, evidence: EvidenceQuery = "none", provenance: ProvenanceQuery = False, region: Region = None
    ) -> Response:
        """The result of one image; if it cannot be scored the result has an `error`."""
        exchange: Exchange = request.state.exchange
        box = _box(region)
        with service.request(), service.memory.lease() as lease:
            upload: Upload = await read_body(request, service.settings, lease)
            results: list[Result] = await _answered(request, service.detect([upload], evidence, provenance, box))
        return _json(BytesAnswer(request_id=exchange.id, detector=service.detector.name, result=results[0]))

    @router.get(
        "/detectors",
        operation_id="detectors",
        summary="What this server runs, its thresholds and limits",
        responses=_refusals(401, 421, 503),
        openapi_extra={"security": security},
    )
    async def detectors() -> DetectorsAnswer:
        return DetectorsAnswer(detectors=(service.describe(),))

    return router


def _operation(service: Service) -> APIRouter:
    """The page, health, readiness and metrics."""
    router = APIRouter(tags=["operation"])

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        if not (STATIC / "index.html").is_file():
            raise Problem("not_found", "this installation has no page; /openapi.json describes the API")
        return FileResponse(STATIC / "index.html")

    @router.get("/healthz", operation_id="healthz", summary="Does the process answer?")
    async def healthz() -> Health:
        return Health(status="ok")

    @router.get(
        "/readyz",
        operation_id="readyz",
        summary="Does it take requests? 503 while the detector is loaded and while the server stops.",
        response_model=Health,
        responses={503: {"model": Health, "description": "Loading or stopping."}},
    )
    async def readyz() -> Response:
        ready = service.state == "ready"
        return JSONResponse({"status": service.state}, 200 if ready else 503)

    @router.get(
        "/metrics",
        operation_id="metrics",
        summary="Counters for Prometheus",
        response_class=Response,
        responses=_refusals(401, 421) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})

    return router


def _box(region: str | None) -> Box | None:
    """The box of a query's region. Raises `Problem`."""
    try:
        return None if region is None else region_box(region)
    except ValueError as error:
        raise Problem("invalid_query", "query parameter region: w and h are 1 or more") from error


def _json(answer: DetectAnswer | BytesAnswer) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


async def _answered(request: Request, work: Awaitable[Returned]) -> Returned:
    """The result of `work`, which is given up if the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Refusal, "description": _REFUSALS[status]} for status in statuses}


def _multipart(most: int) -> dict[str, Any]:
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1, "maxItems": most}
    schema = {
        "type": "object",
        "properties": {FIELD: files},
        "required": [FIELD],
        "additionalProperties": False,
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _raw() -> dict[str, Any]:
    kinds = ("application/octet-stream", "image/jpeg", "image/png", "image/webp")
    schema = {"type": "string", "format": "binary", "minLength": 1}
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema} for kind in kinds}}}


def _refused(request: Request, problem: Problem) -> Response:
    exchange: Exchange = request.state.exchange
    exchange.code = problem.code
    return Response(refusal(problem, exchange.id), problem.status, problem.headers, "application/json")


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _refused(request, error)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _BY_SPECIAL.get(error.status_code, "bad_request")
    response = _refused(request, Problem(code, f"{error.detail}; /openapi.json says what there is"))
    response.headers.update(error.headers or {})
    return response


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    names = ", ".join(sorted({str(each["loc"][-1]) for each in error.errors()}))
    return _refused(request, Problem("invalid_query", f"query parameter {names}: not a value that it can have"))


async def _disconnected(_request: Request, _error: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)  # nobody reads it


async def _internal(request: Request, _error: Exception) -> Response:
    return _refused(request, Problem("internal", INTERNAL))
