"""Ids and paths that cannot be, or that nothing has: each is refused and nothing is harmed."""

from urllib.parse import quote

import pytest
from bad_requests import CREATE, SOUND, Case, case_id, check_told
from servers import Api

UNKNOWN = [
    *(
        Case(f"unknown stream: {call}", call, 404, ("There is no stream 'none'", "POST /v1/streams"), request)
        for call, request in {
            "GET /v1/streams/none": {},
            "DELETE /v1/streams/none": {},
            "POST /v1/streams/none/predict": SOUND,
            "POST /v1/streams/none/predict?adapt=false": SOUND,
            "POST /v1/streams/none/reset": {},
            "POST /v1/streams/none/snapshots": {},
            "POST /v1/streams/none/fork": {},
            "GET /v1/streams/none/events": {},
        }.items()
    ),
    Case("unknown model", "GET /v1/models/none", 404, ("'none'", "tiny, other")),
    Case("a stream of an unknown model", CREATE, 404, ("'none'", "tiny, other"), {"json": {"model": "none"}}),
    *(
        Case(f"unknown snapshot: {call}", call, 404, ("There is no snapshot 'none'",), request)
        for call, request in {
            "GET /v1/snapshots/none": {},
            "DELETE /v1/snapshots/none": {},
            "POST /v1/streams/{victim}/restore": {"json": {"snapshot": "none"}},
        }.items()
    ),
    Case("unknown path", "GET /v1/nothing", 404),
    Case("wrong method", "PUT /v1/streams/{victim}", 405),
    Case("wrong method on predict", "GET /v1/streams/{victim}/predict", 405),
]


NOT_IDS = {
    "longer than 128": "a" * 129,
    "a leading dot": ".a",
    "braces": "{a}",
    "unicode": "straße",
    "a space": "a b",
    "a line break": "a\n",
    "a zero byte": "a\0",
    "a colon": "a:b",
    "a slash": "a/b",
    "up the tree": "../../etc/passwd",
    "two dots": "..",
}

IDS = [
    *(
        Case(f"stream id with {name}", CREATE, 422, ("body.id",), {"json": {"id": value}})
        for name, value in {**NOT_IDS, "nothing": ""}.items()
    ),
    *(
        Case(f"fork's id with {name}", "POST /v1/streams/{victim}/fork", 422, ("body.id",), {"json": {"id": value}})
        for name, value in NOT_IDS.items()
    ),
    *(
        Case(f"{call} of {name}", call.format(quote(value)), 422, ("path.",))
        for name, value in NOT_IDS.items()
        if "/" not in value and value != ".."
        for call in ("GET /v1/streams/{}", "POST /v1/streams/{}/reset", "PUT /v1/snapshots/{}")
    ),
    Case("a path up the tree", "GET /v1/streams/%2E%2E%2F%2E%2E%2Fetc%2Fpasswd", 404),
    Case("a path up the tree to a snapshot", "GET /v1/snapshots/..%2F..%2Fetc%2Fpasswd", 404),
]


@pytest.mark.parametrize("case", [*UNKNOWN, *IDS], ids=case_id)
def test_bad_input_is_told_and_harms_nothing(api: Api, unharmed: str, case: Case) -> None:
    check_told(api, unharmed, case)
