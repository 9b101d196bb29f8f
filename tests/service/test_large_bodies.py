"""Bodies over the limit: refused whether they say their length or not."""

from collections.abc import Iterator

import pytest
from bad_requests import BYTES, CREATE, JSON, PREDICT, Case, case_id, check_told
from servers import NPY, Api


def chunks(start: bytes) -> Iterator[bytes]:
    """A body without a Content-Length, that is too large and would not end soon."""
    yield start
    for _ in range(17):
        yield b" " * 2**16


TOO_LARGE = [
    Case(
        f"{name} over the limit, {how}",
        call,
        413,
        ("1048576",),
        {"content": content, "headers": {"Content-Type": kind}},
    )
    for name, call, kind, start in (
        ("array", PREDICT, NPY, b""),
        ("JSON", PREDICT, JSON, b""),
        (
            "form",
            PREDICT,
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n',
        ),
        ("stream", CREATE, JSON, b""),
        ("snapshot", "PUT /v1/snapshots/large", BYTES, b""),
    )
    for how, content in {"announced": start + b" " * 2**20 + b" ", "in chunks": chunks(start)}.items()
]


@pytest.mark.parametrize("case", TOO_LARGE, ids=case_id)
def test_bad_input_is_told_and_harms_nothing(api: Api, unharmed: str, case: Case) -> None:
    check_told(api, unharmed, case)
