"""Requests as multipart forms: files, and all other fields as text."""

from collections.abc import AsyncGenerator
from typing import Any

from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.errors import InvalidRequestError, MalformedRequestError
from service.routes.documentation import without_null

FORM = "multipart/form-data"

_MAX_FIELDS = 32


async def parse_form(
    request: Request, body: bytes, files_field: str, max_files: int
) -> tuple[dict[str, Any], list[bytes]]:
    """Take a form apart.

    Args:
        request: The request, whose headers tell the boundary.
        body: Its body.
        files_field: Name of the one field whose values are files.
        max_files: How many of them there may be.

    Returns:
        The texts by their names, and the files, at least one.

    Raises:
        MalformedRequestError: It is no form.
        InvalidRequestError: There is no file, or something is where it does not belong.
    """

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    if not body.rstrip().endswith(b"--"):
        raise MalformedRequestError("the form cannot be read: its end is missing")
    parser = MultiPartParser(request.headers, stream(), max_files=max_files, max_fields=_MAX_FIELDS)
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        reason = getattr(error, "message", "is the boundary right?")
        raise MalformedRequestError(f"the form cannot be read: {reason}") from error
    fields: dict[str, Any] = {}
    files: list[bytes] = []
    try:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                if name in fields:
                    raise InvalidRequestError.of_field(name, "is given twice; give it once")
                fields[name] = value
            elif name == files_field:
                files.append(await value.read())
            else:
                raise InvalidRequestError.of_field(name, f"files are sent as `{files_field}`")
    finally:
        await form.close()
    if not files:
        raise InvalidRequestError.of_field(files_field, "send at least one file")
    return fields, files


def form_schema(
    options_type: type[BaseModel], files_field: str, files: dict[str, Any]
) -> dict[str, Any]:
    """Describe a form for the OpenAPI document.

    Args:
        options_type: Its fields but the files.
        files_field: Name of the field whose values are files.
        files: Schema of that field.
    """
    options = without_null(options_type.model_json_schema()["properties"])
    for name in ("labels", "include"):
        if name in options:
            told = f"{options[name]['description']} By commas."
            options[name] = {"type": "string", "description": told}
    return {
        "type": "object",
        "properties": options | {files_field: files},
        "required": [files_field],
        "additionalProperties": False,
    }
