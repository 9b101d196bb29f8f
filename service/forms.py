"""Bodies that are multipart forms."""

from collections.abc import AsyncGenerator

from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from normstream.service.errors import BadRequest, TooLarge, invalid


class _FormParser(MultiPartParser):
    """Refuses a form that breaks off, whose last file would be lost without a word."""

    _ended = False

    def on_end(self) -> None:
        """Called at the last boundary."""
        self._ended = True

    async def parse(self) -> FormData:
        """The parts of the form."""
        self.stream = self._whole(self.stream)
        return await super().parse()

    async def _whole(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self._ended:
            raise MultiPartException("It breaks off before its last boundary.")


async def read_form(request: Request, *, max_files: int, max_fields: int = 0) -> FormData:
    """The form of a request; the caller closes it.

    Raises:
        Problem: when it is broken, or has more files or fields than it may.
    """
    parser = _FormParser(request.headers, request.stream(), max_files=max_files + 1, max_fields=max_fields)
    try:
        return await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise TooLarge(f"The request has more than {max_files} images.") from None
        if "Too many fields" in error.message:
            what = "a form field is no file" if max_fields == 0 else "there are too many form fields that are no files"
            raise invalid("body", f"{what}; send files in the field 'images'") from None
        raise BadRequest(f"The body is not valid multipart/form-data: {error.message}") from None
    except (KeyError, ValueError) as error:
        raise BadRequest(f"The body is not valid multipart/form-data: {error!r:.100}") from None
