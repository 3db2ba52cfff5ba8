"""The Serve builder of a checkpoint: typed arguments, and nothing starts by building."""

import pytest


def test_builder_takes_strings_and_starts_nothing():
    import ray
    from ray.serve import Application

    from serve_apps.vlm import Arguments, build_app

    running = ray.is_initialized()
    for arguments in ({"device": "cpu"}, Arguments(checkpoint="embedded", name="m", device="cpu")):
        assert isinstance(build_app(arguments), Application)
    assert ray.is_initialized() == running


def test_builder_names_bad_arguments(tmp_path):
    from serve_apps.vlm import build_app

    for bad in ({"wrong": 1}, {"checkpoint": str(tmp_path), "device": "cpu"}, {"device": "tpu"}):
        with pytest.raises(ValueError, match=r"wrong|has no config\.json|device"):
            build_app(bad)
