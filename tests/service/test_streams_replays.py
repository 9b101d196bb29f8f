"""Requests that come again: each gets its first answer, and adapts once."""

from collections.abc import Callable

from servers import Api, Live
from streams import keyed, stepped, together


def test_a_request_that_comes_again_gets_its_first_answer_and_adapts_once(api: Api) -> None:
    stream = api.make()
    first = keyed(api, stream, "k")
    stepped(api, stream, 5)
    again = keyed(api, stream, "k")
    assert "Idempotent-Replay" not in first.headers
    assert again.headers["Idempotent-Replay"] == "true"
    assert again.content == first.content
    for name in ("Content-Type", "Normstream-Step", "Normstream-Version", "Normstream-Adapted", "Normstream-Model"):
        assert again.headers[name] == first.headers[name]
    assert api.show(stream)["step"] == 2
    assert keyed(api, stream, "l").json()["step"] == 3
    assert keyed(api, api.make(), "k").json()["step"] == 1  # keys are the stream's own


def test_without_adaptation_a_replay_is_the_first_answer_too(api: Api) -> None:
    stream = api.make()
    first = keyed(api, stream, "k", adapt=False)
    stepped(api, stream, 5)
    again = keyed(api, stream, "k", adapt=False)
    assert again.content == first.content
    assert again.headers["Idempotent-Replay"] == "true"


def test_a_stream_made_anew_knows_no_old_keys(api: Api) -> None:
    stream = api.make()
    keyed(api, stream, "k")
    api.delete(f"/v1/streams/{stream}")
    api.make(stream)
    assert "Idempotent-Replay" not in keyed(api, stream, "k", seed=1).headers


def test_duplicates_at_once_adapt_once(serve: Callable[..., Live], api: Api) -> None:
    stream = api.make()
    with Api(serve().url) as other:
        answers = together(*[lambda client=client: keyed(client, stream, "k") for client in [api, other] * 8])
        assert [answer.status_code for answer in answers] == [200] * 16
        assert len({answer.content for answer in answers}) == 1
        assert sum("Idempotent-Replay" not in answer.headers for answer in answers) == 1
        assert api.show(stream)["step"] == 1
