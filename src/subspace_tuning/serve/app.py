"""The API and its page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from time import perf_counter
from types import MappingProxyType
from typing import Annotated, Any

from fastapi import APIRouter, Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse

from ..errors import SubspaceError
from .choices import Choices, Input
from .gathering import Gathering

MOST_INPUTS = 1000
"""The most inputs of a request, so that nobody else waits for long."""
_CONTENTS = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Mapping[str, str] = MappingProxyType({"Content-Security-Policy": _CONTENTS})
"""With these the page loads nothing, whatever stands in it."""


def app_of(choices: Choices, most: int) -> FastAPI:
    """Return the application.

    Args:
        choices: what can answer.
        most: the most rows of a call of the model.
    """
    gathering = Gathering(most)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        with gathering:
            yield

    # Without the pages of the API, which would load scripts from elsewhere.
    app = FastAPI(title="Subspace Tuning", docs_url=None, redoc_url=None, lifespan=running)
    app.add_exception_handler(SubspaceError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    for status in (404, 405):
        app.add_exception_handler(status, _unknown)
    app.include_router(_router(choices, gathering))
    return app


def _router(choices: Choices, gathering: Gathering) -> APIRouter:
    router = APIRouter()
    page = files(__package__).joinpath("page.html").read_text(encoding="utf-8")

    @router.get("/", response_class=HTMLResponse)
    async def show() -> HTMLResponse:
        """Return the page."""
        return HTMLResponse(page, headers=_HEADERS)

    @router.get("/health")
    async def health() -> dict[str, Any]:
        """Return how much was answered, and in how many calls of the model."""
        counts = {name: getattr(gathering, name) for name in ("waiting", "requests", "calls", "mixed", "rows")}
        return {"status": "ok", "adapters": len(choices.by_name), **counts}

    @router.get("/adapters")
    async def adapters() -> dict[str, Any]:
        """Return what can answer, the base model, the task, and the columns of an input."""
        known = [{"name": one.name, **one.about, "apart": one.apart} for one in choices.by_name.values()]
        return {"base": choices.base, "task": choices.task, "columns": choices.columns, "adapters": known}

    @router.post("/predict")
    async def predict(
        inputs: Annotated[list[Input], Body(min_length=1, max_length=MOST_INPUTS)],
        adapters: Annotated[list[str] | None, Body()] = None,
    ) -> dict[str, Any]:
        """Return the answers of some adapters, by default of all, to each input, in its order."""
        start = perf_counter()
        chosen = choices.chosen(adapters)
        futures = gathering.ask(choices.columns_of(inputs), chosen)
        found = await asyncio.gather(*map(asyncio.wrap_future, futures))
        answered = {one.name: answers for one, answers in zip(chosen, found, strict=True)}
        calls = sorted({call for one in found for call in one.calls})
        return {
            "answers": {name: one.answers for name, one in answered.items()},
            "truncated": {name: one.truncated for name, one in answered.items()},
            "calls": [{"rows": call.rows, "adapters": call.adapters} for call in calls],
            "seconds": round(perf_counter() - start, 4),
        }

    return router


def _error(status: int, line: str) -> JSONResponse:
    return JSONResponse({"error": line}, status)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    return _error(400, " ".join(str(error).split()))


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = "" if first["type"] == "json_invalid" else ".".join(map(str, first["loc"][1:]))
    return _error(422, f"{place or 'the body'}: {first['msg']}")


async def _unknown(request: Request, error: Exception) -> JSONResponse:
    return _error(
        getattr(error, "status_code", 404),
        f"there is no {request.method} {request.url.path}: /openapi.json lists what there is",
    )
