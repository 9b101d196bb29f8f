"""Two servers on one Redis: neither uses an old state, and no update is lost."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from servers import Api, Live, check_problem, tensors
from streams import keyed, same_answer, same_state, stepped, together


@pytest.fixture
def pair(serve: Callable[..., Live]) -> Iterator[tuple[Api, Api]]:
    with Api(serve().url) as one, Api(serve().url) as other:
        yield one, other


def test_no_server_uses_a_state_that_another_has_moved(pair: tuple[Api, Api], api: Api) -> None:
    one, other = pair
    stream, alone = one.make(), api.make()
    for seed, server in enumerate((one, one, other, one, other, other, one)):
        answer = server.step(stream, tensors(1, seed)).json()
        same_answer(answer, api.step(alone, tensors(1, seed)).json())
        assert answer["step"] == seed + 1
    other.post(f"/v1/streams/{stream}/reset")
    np.testing.assert_array_equal(one.logits(stream, tensors(1, 9)), other.logits(api.make(), tensors(1, 9)))
    one.delete(f"/v1/streams/{stream}")
    check_problem(other.step(stream, tensors()), 404)


def test_two_servers_at_once_lose_no_update(pair: tuple[Api, Api], api: Api) -> None:
    stream, alone = api.make(), api.make()
    answers = together(*[lambda seed=seed: pair[seed % 2].step(stream, tensors(1, seed)) for seed in range(16)])
    # A server that is overtaken again and again may give up, and then has changed nothing.
    assert {answer.status_code for answer in answers} <= {200, 409}
    seeds = {answer.json()["step"]: seed for seed, answer in enumerate(answers) if answer.status_code == 200}
    assert len(seeds) == sum(answer.status_code == 200 for answer in answers)
    assert sorted(seeds) == list(range(1, len(seeds) + 1))
    assert (api.show(stream)["step"], api.show(stream)["version"]) == (len(seeds), len(seeds) + 1)
    stepped(api, alone, *(seeds[step] for step in sorted(seeds)))
    same_state(api.state(alone), api.state(stream))


def test_a_replay_comes_from_any_server(pair: tuple[Api, Api]) -> None:
    stream = pair[0].make()
    first, again = (keyed(server, stream, "k") for server in pair)
    assert again.content == first.content
    assert again.headers["Idempotent-Replay"] == "true"
