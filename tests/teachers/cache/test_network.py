"""The network traffic of a cache at a URL, and network failures."""

import typing
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from attar.errors import CacheError
from teachers.cache.reader import SignalCache
from teachers.cache.repair import faults_in, repair_files
from teachers.cache.store import SignalStore


def upload(folder, url):
    """Copy a cache to a URL; bytes of its files by name."""
    fs, root = fsspec.url_to_fs(url, use_listings_cache=False)
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    for name, data in files.items():
        fs.pipe_file(f"{root}/{name}", data)
    return files


class Watched(MemoryFileSystem):
    """Objects in memory that record requests and can fail in the middle of one."""

    protocol = "watched"
    store: typing.ClassVar = {}
    pseudo_dirs: typing.ClassVar = [""]
    asked: typing.ClassVar = []  # (name, bytes) of each read
    lost_after: typing.ClassVar = None  # bytes until the network is gone

    def _count(self, path, size):
        Watched.asked.append((path.rsplit("/", 1)[-1], size))

    def cat_file(self, path, **options):
        """Read the whole object or fail."""
        if Watched.lost_after is not None:
            raise ConnectionResetError("Connection reset by peer")
        data = super().cat_file(path, **options)
        self._count(path, len(data))
        return data

    def get_file(self, path, target, **options):
        """Write to a file, of which a part may exist when the network fails."""
        data = super().cat_file(path)
        part = data[: Watched.lost_after]
        Path(target).write_bytes(part)
        self._count(path, len(part))
        if len(part) < len(data):
            raise ConnectionResetError("Connection reset by peer")


@pytest.fixture
def watched(sound, tmp_path):
    """The URL of a finished cache in a store that records requests."""
    fsspec.register_implementation("watched", Watched, clobber=True)
    url = f"watched://bucket/{tmp_path.name}"
    upload(sound, url)
    Watched.asked.clear()
    yield url
    Watched.lost_after = None
    Watched.store.clear()


def check_same(cache, sound):
    """Assert that all columns equal those of the intact cache."""
    whole = SignalCache(str(sound))
    assert cache.keys() == whole.keys()
    for key in whole.keys():  # noqa: SIM118  (a cache is no dictionary)
        for name, column in whole.columns(key).items():
            assert (cache.columns(key)[name] == column).all()


# What is fetched, and when -----------------------------------------------------------------------


def test_opening_reads_no_shard_and_reading_fetches_each_once(watched, sound):
    sizes = {path.name: path.stat().st_size for path in sound.glob("shards/*.arrow")}
    cache = SignalCache(watched)
    assert len(cache.keys()) == 24
    assert not {name for name, _ in Watched.asked} & sizes.keys()
    assert sum(size for _, size in Watched.asked) < sum(sizes.values()) + 20_000
    Watched.asked.clear()
    cache.signals(cache.keys()[:1])
    assert Watched.asked == [("00000.arrow", sizes["00000.arrow"])]
    for _ in range(2):
        check_same(cache, sound)
    assert sorted(Watched.asked) == sorted(sizes.items())


def test_copies_go_when_the_cache_does(watched):
    cache = SignalCache(watched)
    cache.signals(cache.keys())
    spool = cache.store.folder.local_copy("shards/00000.arrow").parent
    assert len(list(spool.glob("*.arrow"))) > 1
    del cache
    assert not spool.exists()


# Network failures --------------------------------------------------------------------------------


@pytest.mark.parametrize("lost_after", [0, 1000, 6000])
def test_network_lost_in_the_middle_of_a_shard_gives_an_error_and_no_part(
    watched, sound, lost_after
):
    cache = SignalCache(watched)
    cache.signals(cache.keys()[:1])
    Watched.lost_after = lost_after
    last = cache.keys()[-1:]
    with pytest.raises(CacheError) as told:
        cache.signals(last)
    assert str(told.value).startswith(f"{watched}/shards/0000")
    assert "Connection reset by peer" in str(told.value)
    with pytest.raises(CacheError):
        cache.signals(last)
    cache.signals(cache.keys()[:1])  # what is here stays here
    Watched.lost_after = None
    check_same(cache, sound)


def test_copy_that_is_short_is_noticed(watched, sound, monkeypatch):
    """A network that drops the end without an error."""
    cache = SignalCache(watched)
    whole = Watched.get_file
    monkeypatch.setattr(Watched, "get_file", cut_short)
    with pytest.raises(CacheError, match=rf"{watched}/shards/00000.arrow is truncated \(1000 of"):
        cache.signals(cache.keys()[:1])
    monkeypatch.setattr(Watched, "get_file", whole)
    check_same(cache, sound)


def cut_short(self, path, target, **options):
    Path(target).write_bytes(self.cat_file(path)[:1000])


def test_repair_without_a_network_forgets_nothing(watched, forged):
    store, before = SignalStore(watched), dict(Watched.store)
    Watched.lost_after = 0
    for ask in (lambda: faults_in(store), lambda: repair_files(store, forged.manifest())):
        with pytest.raises(CacheError, match="Connection reset by peer"):
            ask()
    assert dict(Watched.store) == before


def test_server_that_stops_is_named_and_reading_goes_on_when_it_is_back(
    start_s3, sound, monkeypatch, tmp_path
):
    pytest.importorskip("s3fs")
    server = start_s3()
    options = {"endpoint_url": server.url, "key": "someone", "secret": "secret"}
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.filesystem("s3").mkdir("stopping")
    url = "s3://stopping/cache"
    upload(sound, url)
    cache = SignalCache(url)
    cache.signals(cache.keys()[:1])
    server.stop()
    with pytest.raises(CacheError, match=r"s3://stopping/cache/shards/0000\d\.arrow cannot be"):
        cache.signals(cache.keys())
    with pytest.raises(CacheError, match=r"s3://stopping/cache/manifest\.json cannot be read"):
        SignalCache(url)
    lock = SignalStore(url).writing()
    with pytest.raises(CacheError, match=r"s3://stopping/cache/writer\.lock"), lock:
        pass
    again = start_s3(server.port)
    check_same(cache, sound)
    again.stop()


def test_bucket_that_is_not_there_is_named(start_s3, sound, monkeypatch):
    pytest.importorskip("s3fs")
    server = start_s3()
    options = {"endpoint_url": server.url, "key": "someone", "secret": "secret"}
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    store = SignalStore("s3://no-such-bucket/cache")
    assert store.manifest() is None
    with pytest.raises(CacheError, match=r"s3://no-such-bucket/cache/.* cannot be written"):
        store.begin({"teacher": {}})
    lock = store.writing()
    with pytest.raises(CacheError, match=r"no-such-bucket/cache/writer.lock cannot"), lock:
        pass
    server.stop()
