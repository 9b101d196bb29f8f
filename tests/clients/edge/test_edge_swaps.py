"""Updates that an edge client takes into use, refuses or rolls back."""

import itertools
import math
import threading

import numpy as np
import pytest
from cloud import Cloud, problem, sign
from surroundings import Publisher, answers, photo, until

from normstream.clients.edge.folder import Folder
from normstream.clients.edge.local import EMA
from normstream.clients.edge.prediction import EdgePrediction, Likelihoods
from normstream.clients.edge.preprocessing import preprocess
from normstream.clients.edge.runtime import Runtime


def test_an_update_is_taken_into_use_between_two_steps(server, start, publisher):
    client = start(options={"top_k": 1000})
    parameters = publisher.publish(1)
    until(lambda: client.status().version == "a.1")
    assert client.step([photo()])[0].version == "a.1"
    assert answers(client, parameters, photo())
    assert until(lambda: client.status().applied_ms) > 0
    assert client.status().counters.updates == 1
    assert client.status().age_s >= 0
    parameters = publisher.publish(2, delta=True)
    until(lambda: client.status().version == "a.2")
    assert answers(client, parameters, photo())
    until(lambda: server.asked[-1].get("since") == "a.2")


# The second keeps statistics of its own, in threads of its own; they weigh nothing, so that the answers are known.
OWN_STATISTICS = pytest.mark.parametrize("local", [None, EMA(alpha=0.0, share=1e-3)], ids=["off", "ema"])


@OWN_STATISTICS
def test_no_frame_is_lost_over_many_updates(start, publisher, local):
    """Frame n is of colour n % 16, which its prediction shows: each comes once, in its place, of one version, whole."""
    colours = np.random.default_rng(0).integers(0, 256, (16, 1, 1, 3), dtype=np.uint8)
    frames = [np.broadcast_to(colour, (40, 50, 3)) for colour in colours]
    given, came, stop = 0, [], threading.Event()
    client = start(options={"top_k": 1000, "local": local}, on_prediction=came.append)

    def look() -> None:
        nonlocal given
        while not stop.is_set():
            together = range(given, given + 1 + given % 3)
            client.step([frames[number % 16] for number in together])
            given = together.stop

    parameters = {None: publisher.package.source}
    thread = threading.Thread(target=look)
    thread.start()
    try:
        for seed in range(1, 101):
            parameters[f"a.{seed}"] = publisher.publish(seed, delta=seed % 3 != 1)
            until(lambda seed=seed: came and came[-1].version == f"a.{seed}")
    finally:
        stop.set()
        thread.join()
    assert client.status().counters.updates == 100
    assert len(came) == client.status().counters.seen == given
    versions = [prediction.version for prediction in came]
    assert versions == sorted(versions, key=list(parameters).index)
    probabilities = np.array([by_class(prediction) for prediction in came])
    assert np.isfinite(probabilities).all()
    batch = preprocess(frames, publisher.package.manifest.preprocessing)
    for version in set(versions):
        expected = Likelihoods.of(Runtime(publisher.package, parameters[version]).logits(batch)).probabilities
        assert min(np.abs(a - b).max() for a, b in itertools.combinations(expected, 2)) > 1e-3  # no two look alike
        numbers = [number for number, each in enumerate(versions) if each == version]
        np.testing.assert_allclose(probabilities[numbers], expected[np.mod(numbers, 16)], rtol=0, atol=1e-4)


def by_class(prediction: EdgePrediction) -> list[float]:
    return [each.probability for each in sorted(prediction.top, key=lambda each: each.index)]


@pytest.mark.parametrize(
    ("changes", "counter", "words"),
    [
        ({"key": "another key"}, "rejected", "signature"),
        ({"edge": "another"}, "rejected", "for the edge another"),
        ({"fingerprint": "sha256:" + "0" * 64}, "rejected", "delete the edge's stream at the server"),
        ({"digest": "sha256:" + "0" * 64}, "rejected", "digest"),
        ({"probe": 0.5}, "rolled_back", "reference images"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_update_that_is_not_right_changes_nothing(start, server, publisher, changes, counter, words):
    client = start(uniform=lambda low, high: 0.0)
    publisher.publish(1)
    until(lambda: client.status().version == "a.1")
    publisher.publish(2, **changes)
    until(lambda: getattr(client.status().counters, counter))
    assert words in client.status().problem
    assert client.step([photo()])[0].version == "a.1"
    publisher.publish(3)
    until(lambda: client.status().version == "a.3")
    until(lambda: client.status().problem is None)
    until(lambda: server.reports[-1]["tag"] == "a.3")
    assert server.reports[-1]["rolled_back"] == client.status().counters.rolled_back


def test_an_update_of_before_is_not_taken_again(start, server, publisher):
    client = start(options={"top_k": 1000}, uniform=lambda low, high: 0.0)
    publisher.publish(9)
    until(lambda: client.status().version == "a.9")
    old = server.offer
    parameters = publisher.publish(10)
    until(lambda: client.status().version == "a.10")
    until((client._folder.path / "update").exists)
    server.publish("again", *old[1:])
    until(lambda: client.status().counters.rejected)
    assert "version a.9 is older than a.10" in client.status().problem
    assert answers(client, parameters, photo())
    client.close()
    again = start(options={"top_k": 1000}, uniform=lambda low, high: 0.0)
    until(lambda: again.status().counters.rejected > client.status().counters.rejected)
    assert answers(again, parameters, photo())
    server.publish("b.1", *_of_another_stream(publisher))
    until(lambda: again.status().version == "b.1")


def _of_another_stream(publisher: Publisher) -> tuple[bytes, str]:
    publisher.publish(11, tag="b.1")
    return publisher.server.offer[1:]


def test_an_update_that_is_cut_off_or_unsigned_changes_nothing(start, server, publisher):
    client = start(uniform=lambda low, high: 0.0)
    publisher.publish(1)
    tag, body, signature = server.offer
    for broken, signed in ((body[:-20], signature), (body, ""), (b"", sign(publisher.key, b"")), (b"\xff" * 99, "x")):
        rejected = client.status().counters.rejected
        server.publish("a.0", broken, signed)
        until(lambda before=rejected: client.status().counters.rejected > before)
    assert client.status().version is None
    server.publish(tag, body, signature)
    until(lambda: client.status().version == "a.1")


@pytest.mark.parametrize(("rise", "passes"), [(0.0, 4), (0.15, 8)])
def test_a_doubtful_update_is_tried_on_more_images(start, package, monkeypatch, rise, passes):
    client = start()
    runtime = client._in_use.network
    entropies = [client.step([photo(i)])[0].entropy for i in range(8)]
    client._recent = [
        (crop, before - rise * math.log(7)) for (crop, _), before in zip(client._recent, entropies, strict=True)
    ]
    client._updater.recent = lambda: client._recent
    run, seen = Runtime.logits, []
    monkeypatch.setattr(Runtime, "logits", lambda self, batch: seen.append(len(batch)) or run(self, batch))
    client._updater._compare(runtime)
    assert seen == [1] * passes


def test_a_network_that_gave_no_numbers_is_followed_by_one_that_does(start):
    client = start()
    client.step([photo(i) for i in range(8)])
    client._updater.recent = lambda: [(crop, math.nan) for crop, _ in client._recent]
    client._updater._compare(client._in_use.network)


def test_a_delta_to_a_version_that_is_not_held_makes_the_edge_ask_for_the_whole(start, server, publisher):
    client = start(uniform=lambda low, high: 0.0)
    publisher.publish(1)
    until(lambda: client.status().version == "a.1")
    publisher.tag = "a.0"  # what the next one builds on, as a confused server has it
    publisher.publish(2, delta=True)
    until(lambda: any("since" not in asked for asked in server.asked[2:]))
    assert client.status().version == "a.1"
    publisher.publish(3)
    until(lambda: client.status().version == "a.3")


@OWN_STATISTICS
def test_other_weights_under_the_same_name_are_fetched_and_run(
    start, server, publisher, retrained_package, tmp_path, local
):
    client = start(options={"top_k": 1000, "local": local}, uniform=lambda low, high: 0.0)
    publisher.publish(1)
    until(lambda: client.status().version == "a.1")
    client.step([photo()])
    server.package = retrained_package.folder  # the server was started with another checkpoint
    successor = Publisher(server, retrained_package)
    parameters = successor.publish(2, probe=0.5)
    until(lambda: client.status().counters.rolled_back)
    assert client.step([photo()])[0].version == "a.1"  # until an update of the new weights is good
    assert client.status().fingerprint == publisher.package.manifest.fingerprint
    parameters = successor.publish(3)
    until(lambda: client.status().version == "a.3")
    assert answers(client, parameters, photo())
    assert client.status().fingerprint == retrained_package.manifest.fingerprint
    until(lambda: client.status().problem is None)
    parameters = successor.publish(4, delta=True)
    until(lambda: client.status().version == "a.4")
    until(lambda: Folder(tmp_path / "edge").update()[0].partition(b"\n")[0].count(b'"a.4"'))
    client.close()
    server.away = True
    again = start(options={"top_k": 1000, "first_contact_s": 0.0, "local": local})
    assert answers(again, parameters, photo())


def test_other_weights_that_cannot_be_fetched_yet_are_told(start, server, publisher, retrained_package, monkeypatch):
    client = start(uniform=lambda low, high: 0.0)
    whole, file = server.package, Cloud.file
    monkeypatch.setattr(Cloud, "file", lambda *_: problem(503, "the package is being made"))
    server.package = retrained_package.folder
    Publisher(server, retrained_package).publish(1)
    until(lambda: "cannot be fetched now" in (client.status().problem or ""))
    assert retrained_package.manifest.fingerprint in client.status().problem
    assert whole.name in client.status().problem
    assert client.step([photo()])[0].version is None
    monkeypatch.setattr(Cloud, "file", file)
    until(lambda: client.status().version == "a.1")
    assert client.package.manifest.fingerprint == retrained_package.manifest.fingerprint


def test_an_update_that_makes_the_edge_unsure_is_rolled_back(start, publisher, package):
    client = start(options={"top_k": 1})
    sure = publisher.parameters(1)
    sure["weight"] = sure["weight"] * 1  # a network that is as sure as it was
    publisher.publish(1)
    until(lambda: client.status().version == "a.1")
    for i in range(20):
        client.step([photo(i)])
    client._recent.extend([(crop, 0.0) for crop, _ in client._recent.copy()])  # as if it had been certain
    publisher.publish(2)
    until(lambda: client.status().counters.rolled_back)
    assert "mean entropy" in client.status().problem
    assert client.status().version == "a.1"
    assert client._updater.held.tag == "a.2"  # not fetched again


def test_a_version_that_was_rolled_back_is_not_tried_again_after_a_restart(start, server, publisher):
    client = start(options={"top_k": 1000})
    kept = publisher.publish(1)
    until(lambda: client.status().version == "a.1")
    client.step([photo(i) for i in range(8)])
    client._recent.extend([(crop, 0.0) for crop, _ in client._recent.copy()])  # as if it had been certain
    publisher.publish(2, delta=True)
    until(lambda: client.status().counters.rolled_back)
    client.close()
    again = start(options={"top_k": 1000})  # which has seen no images
    asked = len(server.asked)
    until(lambda: server.asked[asked:] and server.asked[-1].get("since") == "a.2")
    assert again.status().version == "a.1"
    assert answers(again, kept, photo())
    assert again.status().counters.rolled_back == 1
    assert "a.2 was rolled back" in again.status().problem
    parameters = publisher.publish(3, delta=True)
    until(lambda: again.status().version == "a.3")
    assert answers(again, parameters, photo())
    until(lambda: again.status().problem is None)
    until(lambda: Folder(again._folder.path).rolled_back() is None)


def test_the_first_version_of_all_that_was_rolled_back_is_not_tried_again_either(start, server, publisher):
    client = start()
    publisher.publish(1, probe=0.5)
    until(lambda: client.status().counters.rolled_back)
    client.close()
    again = start()
    asked = len(server.asked)
    until(lambda: server.asked[asked:] and server.asked[-1].get("since") == "a.1")
    assert (again.status().version, again.tried, again.status().counters.rolled_back) == (None, "a.1", 1)
