"""The review console on Ray Serve, beside other apps."""

import httpx
import pytest

from medq_ray.review.accounts import enrol
from medq_ray.review.store import Store

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


@pytest.mark.parametrize("wrong", [{}, {"store": "r.db", "lease_minutes": 0}, {"store": "r.db", "port": 1}])
def test_wrong_arguments_are_refused(wrong):
    from serve_apps.review import build_app

    with pytest.raises(ValueError):
        build_app(wrong)
