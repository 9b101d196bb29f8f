import pickle

import examples
import httpx
import pytest

from normstream import clients
from normstream.clients.errors import FieldProblem, api_error


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, clients.BadRequest),
        (404, clients.NotFound),
        (409, clients.Conflict),
        (413, clients.TooLarge),
        (422, clients.InvalidInput),
        (429, clients.Overloaded),
        (502, clients.Unavailable),
        (503, clients.Unavailable),
        (504, clients.TimedOut),
        (405, clients.ApiError),
        (415, clients.ApiError),
        (500, clients.ApiError),
        (307, clients.ApiError),
    ],
)
def test_status_decides_the_class(status, kind):
    error = api_error(httpx.Response(status, json={"title": "No"}))
    assert type(error) is kind
    assert isinstance(error, clients.NormstreamError)
    assert error.status == status


def test_problem_details_are_kept():
    error = api_error(httpx.Response(404, json=examples.PROBLEM))
    assert (error.title, error.detail, error.type) == tuple(
        examples.PROBLEM[key] for key in ("title", "detail", "type")
    )
    assert error.errors == (FieldProblem("path.id", "unknown"),)
    assert str(error) == (
        "Unknown stream (404): There is no stream 'gate-4'. Create it with POST /v1/streams. [path.id: unknown]"
    )


def test_a_page_of_a_proxy_becomes_a_short_detail():
    error = api_error(httpx.Response(502, html="<h1>Bad\n\n gateway</h1>" + "x" * 1000))
    assert error.title == "Bad Gateway"
    assert error.detail.startswith("<h1>Bad gateway</h1>")
    assert len(error.detail) == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"[1]", b"null", b'{"errors": "all"}', b'{"errors": [3]}', b'{"title": null}', b"\xff\xfe\x00"],
)
def test_any_body_makes_an_error(body):
    error = api_error(httpx.Response(422, content=body))
    assert error.title == "Unprocessable Entity"
    assert error.errors == ()
    assert str(error)


def test_unknown_status_has_a_title():
    assert api_error(httpx.Response(499)).title == "Unexpected status"


def test_errors_survive_pickling():
    error = api_error(httpx.Response(404, json=examples.PROBLEM))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is clients.NotFound
    assert str(again) == str(error)


def test_invalid_argument_is_a_value_error():
    assert issubclass(clients.InvalidArgument, ValueError)
    assert issubclass(clients.InvalidArgument, clients.NormstreamError)
