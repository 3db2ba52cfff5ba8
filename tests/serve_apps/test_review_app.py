"""The review console on Ray Serve, beside other apps."""

import os

import httpx
import pytest

from medq_ray.review.accounts import enrol
from medq_ray.review.store import Store
from tests.review.database import binaries, cluster, create

pytestmark = pytest.mark.engine


def test_the_console_answers_on_serve(ray_local, tmp_path):
    from medq_ray.serving import running_app
    from serve_apps.review import build_app

    store = Store(tmp_path / "review.db")
    token = enrol(store, "ann", "reviewer")
    store.close()
    args = {"store": str(tmp_path / "review.db"), "lease_minutes": 5}
    with running_app(build_app(args), name="review", route_prefix="/") as url:
        assert httpx.get(f"{url}/api/me").status_code == 401
        reply = httpx.get(f"{url}/api/me", headers={"authorization": f"Bearer {token}"})
        assert reply.json() == {"name": "ann", "role": "reviewer"}
        assert "<form" in httpx.get(f"{url}/login").text
        assert httpx.get(f"{url}/static/page.js").status_code == 200


def test_under_a_route_prefix_one_line_says_so(ray_local, tmp_path):
    from medq_ray.serving import running_app
    from serve_apps.review import build_app

    args = {"store": str(tmp_path / "review.db")}
    with running_app(build_app(args), name="review", route_prefix="/review") as url:
        for path in ("/review", "/review/login", "/review/api/me", "/review/static/page.js"):
            reply = httpx.get(f"{url.removesuffix('/review')}{path}", follow_redirects=True)
            assert reply.json() == {"error": "the console stands at '/': serve it without a route prefix"}
            assert reply.status_code == 404


def test_replicas_share_a_store_and_its_sessions(ray_local):
    from medq_ray.serving import running_app
    from serve_apps.review import build_app

    place = binaries()
    if place is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no PostgreSQL here: apt-get install postgresql")
    with cluster(place, "-c", "fsync=off") as addresses:
        address = create(addresses, "reviews")
        store = Store(address)
        token = enrol(store, "ann", "reviewer")
        store.close()
        app = build_app({"store": address, "replicas": 2})
        with running_app(app, name="review", route_prefix="/") as url, httpx.Client(base_url=url) as browser:
            assert browser.post("/login", data={"token": token}).status_code == 303
            for _ in range(20):  # whichever replica answers
                assert browser.get("/api/me").json() == {"name": "ann", "role": "reviewer"}


def test_more_replicas_than_one_need_postgresql():
    from serve_apps.review import build_app

    with pytest.raises(ValueError, match="replicas=2 needs PostgreSQL, since r.db is a file of one machine"):
        build_app({"store": "r.db", "replicas": 2})


@pytest.mark.parametrize("wrong", [{}, {"store": "r.db", "lease_minutes": 0}, {"store": "r.db", "port": 1},
                                   {"store": "r.db", "replicas": 0}])  # fmt: skip
def test_wrong_arguments_are_refused(wrong):
    from serve_apps.review import build_app

    with pytest.raises(ValueError):
        build_app(wrong)
