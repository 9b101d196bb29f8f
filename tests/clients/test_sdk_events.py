import json
from itertools import pairwise

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normstream.clients import ConnectionFailed, NotFound, UnexpectedAnswer
from normstream.clients.events import EventFeed, Message, MessageParser
from normstream.clients.retry import Retry

STREAM = (
    "\ufeff: welcome\n\n"
    'id: 7\nevent: step\ndata: {"step": 1,\ndata: "version": 2}\n\n'
    "\n\n: heartbeat\n\n"
    'event:reset\r\ndata:{"layer": "bn\u2028ü"}\r\nid\r\n\r\n'
    "retry: 10\rdata: x: y\r\r"
    "data: unfinished"
).encode()
MESSAGES = [
    Message("step", '{"step": 1,\n"version": 2}', "7"),
    Message("reset", '{"layer": "bn\u2028ü"}', ""),
    Message("message", "x: y", None),
]
REQUEST = httpx.Request("GET", "http://server/v1/streams/gate-3/events")


def messages(chunks):
    parser = MessageParser()
    return [message for chunk in chunks for message in parser.feed(chunk) if message.data]


def feed(**settings):
    return EventFeed("gate-3", Retry(retries=2, base_s=1.0, uniform=lambda low, high: high), **settings)


def opened(**settings):
    subject = feed(**settings)
    subject.call()
    subject.outcome = httpx.Response(200, headers={"Content-Type": "text/event-stream; charset=utf-8"}, request=REQUEST)
    subject.open(subject.outcome)
    return subject


def test_messages_of_all_line_endings():
    assert messages([STREAM]) == MESSAGES


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_cuts_on_the_way_change_nothing(cuts):
    marks = [0, *sorted(cuts), len(STREAM)]
    assert messages([STREAM[a:b] for a, b in pairwise(marks)]) == MESSAGES


def test_each_byte_alone():
    assert messages([bytes([byte]) for byte in STREAM]) == MESSAGES


def test_broken_utf8_spoils_its_own_message_only():
    assert messages([b"data: \xff\n\ndata: 1\n\n"]) == [
        Message("message", "\ufffd", None),
        Message("message", "1", None),
    ]


def test_a_step():
    data = {"step": 3, "version": 5, "images": 16, "entropy": 0.4, "drift": {"bn1": 0.2}, "new": 1}
    (event,) = opened().read(f"id: 9\nevent: step\ndata: {json.dumps(data)}\n\n".encode())
    assert (event.kind, event.id, event.step, event.version) == ("step", "9", 3, 5)
    assert (event.images, event.entropy, event.drift) == (16, 0.4, {"bn1": 0.2})
    assert event.data == data


def test_an_unknown_event_keeps_its_data():
    (event,) = opened().read(b'event: alarm\ndata: {"collapse": true}\n\n')
    assert (event.kind, event.data, event.step) == ("alarm", {"collapse": True}, None)


def test_data_cannot_pose_as_another_event():
    (event,) = opened().read(b'event: step\ndata: {"kind": "deleted", "id": "1"}\n\n')
    assert (event.kind, event.id) == ("step", None)


def test_deleted_is_the_end():
    subject = opened()
    events = list(subject.read(b'event: deleted\ndata: {}\n\nevent: step\ndata: {"step": 1}\n\n'))
    assert [event.kind for event in events] == ["deleted"]
    assert subject.ended
    assert subject.pause_s() == 0.0


@pytest.mark.parametrize("data", ["{", "nothing", "{}}"])
def test_data_that_is_no_json_is_refused(data):
    with pytest.raises(UnexpectedAnswer, match="is no JSON"):
        list(opened().read(f"data: {data}\n\n".encode()))


def test_data_that_is_no_object_is_kept():
    (event,) = opened().read(b"data: [1]\n\n")
    assert event.data == {"value": [1]}


def test_it_goes_on_after_the_last_event():
    subject = opened(last_event_id="3")
    assert subject.call().headers["Last-Event-ID"] == "3"
    assert list(subject.read(b"id: 4\n\n")) == []
    assert subject.call().headers["Last-Event-ID"] == "4"
    list(subject.read(b"id\ndata: {}\n\n"))
    assert "Last-Event-ID" not in subject.call().headers


def test_half_a_message_of_a_broken_connection_is_dropped():
    subject = opened()
    assert list(subject.read(b'event: step\ndata: {"st')) == []
    subject.call()
    (event,) = subject.read(b'event: reset\ndata: {"step": 0}\n\n')
    assert event.kind == "reset"


def test_pauses_grow_until_something_comes():
    subject = opened()
    assert [subject.pause_s(), subject.pause_s()] == [1.0, 2.0]
    list(subject.read(b": heartbeat\n\n"))
    assert subject.pause_s() == 1.0


def test_events_that_always_break_off_are_given_up():
    subject = opened()
    subject.pause_s()
    subject.pause_s()
    with pytest.raises(ConnectionFailed, match="the events broke off"):
        subject.pause_s()


def test_silence_is_no_failure():
    subject = opened()
    subject.outcome = httpx.ReadTimeout("silent", request=REQUEST)
    assert [subject.pause_s() for _ in range(5)] == [0.0] * 5


def test_silence_before_the_answer_is_a_failure():
    subject = feed()
    subject.call()
    subject.outcome = httpx.ReadTimeout("silent", request=REQUEST)
    assert [subject.pause_s(), subject.pause_s()] == [1.0, 2.0]
    with pytest.raises(ConnectionFailed, match="silent"):
        subject.pause_s()


def test_a_refusal_is_raised_at_once():
    subject = feed()
    subject.outcome = httpx.Response(404, json={"title": "Unknown stream"}, request=REQUEST)
    with pytest.raises(NotFound):
        subject.pause_s()


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/html"}])
def test_something_else_than_events_is_refused(headers):
    with pytest.raises(UnexpectedAnswer, match="in place of events"):
        feed().open(httpx.Response(200, headers=headers))
