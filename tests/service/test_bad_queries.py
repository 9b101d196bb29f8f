"""Bad questions to a prediction, and idempotency keys that are none or used already."""

import pytest
from bad_requests import PREDICT, SOUND, Case, case_id, check_told
from redis import Redis
from servers import NPY, Api, Live, check_problem, npy, tensors

from normstream.service.storage.keyspace import Keyspace

KEYS = Keyspace("normstream")


QUERIES = [
    *(
        Case(f"predict?{query}", f"{PREDICT}?{query}", 422, (f"query.{query.partition('=')[0]}",), SOUND)
        for query in (
            "top_k=0",
            "top_k=101",
            "top_k=-1",
            "top_k=x",
            "top_k=1.5",
            "output=all",
            "output=",
            "adapt=2",
            "adapt=",
        )
    ),
    *(
        Case(
            f"Idempotency-Key {key[:10]!r}",
            PREDICT,
            422,
            ("idempotency-key",),
            {**SOUND, "headers": {**SOUND["headers"], "Idempotency-Key": key}},
        )
        for key in ("", "a b", "k" * 256, b"\xfc")
    ),
]


@pytest.mark.parametrize("case", QUERIES, ids=case_id)
def test_bad_input_is_told_and_harms_nothing(api: Api, unharmed: str, case: Case) -> None:
    check_told(api, unharmed, case)


def test_an_idempotency_key_is_for_one_body_and_one_question(api: Api, redis: Redis, server: Live) -> None:
    stream, sound = api.make(), {"content": npy(tensors()), "headers": {"Content-Type": NPY, "Idempotency-Key": "k"}}
    path = f"/v1/streams/{stream}/predict"
    assert api.post(path, **sound).json()["step"] == 1
    record = redis.hgetall(KEYS.stream(stream))
    for other in (
        {"content": npy(tensors(1, 1))},
        {"params": {"top_k": 3}},
        {"params": {"adapt": False}},
        {"params": {"output": "probs"}},
        {"headers": {**sound["headers"], "Accept": NPY}},
    ):
        check_problem(api.post(path, **{**sound, **other}), 422, "Idempotency-Key", "another request")
        assert redis.hgetall(KEYS.stream(stream)) == record
    assert api.post(path, **sound).headers["Idempotent-Replay"] == "true"
