import time
from email.utils import formatdate

import httpx
import pytest

from normstream.clients import InvalidArgument, calls
from normstream.clients.call import Repeat
from normstream.clients.retry import Retry

LONGEST = Retry(retries=3, base_s=1.0, cap_s=3.0, retry_after_cap_s=20.0, uniform=lambda low, high: high)
CALL = {repeat: calls.Call(method="GET", path="/", parse=lambda response: None, repeat=repeat) for repeat in Repeat}


def answer(status, **headers):
    return httpx.Response(status, headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_passing_trouble_is_retried(status):
    assert LONGEST.pause_s(CALL[Repeat.ALWAYS], answer(status), 0) == 1.0


@pytest.mark.parametrize("status", [200, 201, 204, 307, 400, 404, 405, 409, 413, 415, 422, 500, 501])
def test_a_verdict_is_not_retried(status):
    assert LONGEST.pause_s(CALL[Repeat.ALWAYS], answer(status), 0) is None


@pytest.mark.parametrize(
    "error",
    [httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadTimeout],
)
def test_a_broken_connection_is_retried(error):
    assert LONGEST.pause_s(CALL[Repeat.ALWAYS], error("broken"), 0) == 1.0


@pytest.mark.parametrize(
    "error", [httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.DecodingError, httpx.TooManyRedirects]
)
def test_our_own_mistakes_are_not_retried(error):
    assert LONGEST.pause_s(CALL[Repeat.ALWAYS], error("wrong"), 0) is None


@pytest.mark.parametrize(
    ("outcome", "retried"),
    [
        (httpx.ConnectError("refused"), True),
        (httpx.ConnectTimeout("slow"), True),
        (httpx.PoolTimeout("busy"), True),
        (httpx.ReadTimeout("slow"), False),
        (httpx.ReadError("reset"), False),
        (httpx.WriteError("reset"), False),
        (httpx.RemoteProtocolError("gone"), False),
        (answer(429), False),
        (answer(503), False),
    ],
)
def test_what_may_have_been_done_is_not_done_twice(outcome, retried):
    assert (LONGEST.pause_s(CALL[Repeat.UNSENT], outcome, 0) is not None) is retried


@pytest.mark.parametrize("outcome", [httpx.ConnectError("refused"), answer(503)])
def test_a_probe_is_not_repeated(outcome):
    assert LONGEST.pause_s(CALL[Repeat.NEVER], outcome, 0) is None


def test_pauses_double_up_to_a_cap_and_end():
    pauses = [LONGEST.pause_s(CALL[Repeat.ALWAYS], answer(503), attempt) for attempt in range(4)]
    assert pauses == [1.0, 2.0, 3.0, None]


def test_jitter_is_full():
    retry = Retry(base_s=1.0)
    pauses = [retry.pause_s(CALL[Repeat.ALWAYS], answer(503), 0) for _ in range(200)]
    assert 0.0 <= min(pauses) < 0.2
    assert 0.8 < max(pauses) <= 1.0


@pytest.mark.parametrize(
    ("header", "extra_s"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("0", 0.0),
        ("86400", 20.0),
        ("inf", 20.0),
        ("-3", 0.0),
        ("nan", 0.0),
        ("soon", 0.0),
        ("", 0.0),
    ],
)
def test_retry_after_in_seconds(header, extra_s):
    assert LONGEST.pause_s(CALL[Repeat.ALWAYS], answer(429, Retry_After=header), 0) == 1.0 + extra_s


@pytest.mark.parametrize(("from_now_s", "extra_s"), [(10, 10.0), (-10, 0.0), (9000, 20.0)])
def test_retry_after_as_a_date(from_now_s, extra_s):
    date = formatdate(time.time() + from_now_s, usegmt=True)
    pause_s = LONGEST.pause_s(CALL[Repeat.ALWAYS], answer(503, Retry_After=date), 0)
    assert pause_s == pytest.approx(1.0 + extra_s, abs=1.5)


def test_no_retries():
    assert Retry(retries=0).pause_s(CALL[Repeat.ALWAYS], answer(503), 0) is None


def test_negative_retries_are_refused():
    with pytest.raises(InvalidArgument, match="retries is -1; give 0 or more"):
        Retry(retries=-1)
