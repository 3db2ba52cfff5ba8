"""The cache: what was answered is there for any reader, whatever was torn or damaged is told."""

import pytest

from medq_ray.model.cache import Cache, request_key
from medq_ray.model.chat import Choice, Endpoint, Sampling


def test_request_keys_differ_where_requests_do():
    endpoint, sampling = Endpoint("http://127.0.0.1:1/v1", "m", identity="a"), Sampling(n=5, temperature=0.7)
    keys = {
        request_key(endpoint, ["i"], "p", sampling),
        request_key(endpoint, ["j"], "p", sampling),
        request_key(endpoint, ["i"], "q", sampling),
        request_key(endpoint, ["i"], "p", Sampling(n=4, temperature=0.7)),
        request_key(endpoint, ["i"], "p", Sampling(n=5, temperature=0.7, seed=1)),
        request_key(Endpoint("http://127.0.0.1:1/v1", "m", identity="b"), ["i"], "p", sampling),
        request_key(Endpoint("http://127.0.0.1:1/v1", "n", identity="a"), ["i"], "p", sampling),
    }
    assert len(keys) == 7
    moved = Endpoint("http://127.0.0.1:2/v1", "m", identity="a", concurrency=1, retries=0, timeout=1.0)
    assert request_key(moved, ["i"], "p", sampling) in keys


CHOICES = [Choice("A", 0.25, 1, "stop"), Choice("B", None, None, "length")]


def test_the_cache_returns_what_was_put_to_any_reader(tmp_path):
    cache = Cache(tmp_path / "cache")
    assert cache.get("k") is None
    cache.put("k", CHOICES)
    assert cache.get("k") == CHOICES == Cache(tmp_path / "cache").get("k")
    Cache(tmp_path / "cache").put("l", CHOICES)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # one file for each writer
    assert len(again := Cache(tmp_path / "cache")) == 2 and "k" in again and "l" in again


def test_a_torn_last_line_is_ignored_and_other_damage_is_named(tmp_path):
    cache = Cache(tmp_path)
    cache.put("k", CHOICES)
    cache.put("l", CHOICES)
    (path,) = tmp_path.iterdir()
    whole = path.read_text()
    for cut in range(1, len(whole.splitlines()[1])):
        path.write_text(whole[:-cut])
        assert len(again := Cache(tmp_path)) == 1 and "k" in again
    path.write_text("damage\n" + whole)
    with pytest.raises(ValueError, match=rf"{path.name}:1: damaged; delete the file"):
        Cache(tmp_path)
