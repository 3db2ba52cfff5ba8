"""`medq review`: from a run directory through the console to its verdicts."""

import json
import socket

import httpx
import pytest
from click.testing import CliRunner
from crowd import Server
from test_handover import CONFIG, reviewed, run_with

from medq_ray import cli
from medq_ray.review.accounts import authenticate
from medq_ray.review.store import Store


def medq(*words: object) -> str:
    done = CliRunner().invoke(cli.main, [str(word) for word in ("review", *words)])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_run_is_filled_reviewed_and_exported(tmp_path, clock):
    run, file = run_with(tmp_path / "run"), tmp_path / "review.db"
    (run / "run.yaml").write_text(CONFIG.model_dump_json())  # JSON is YAML
    where = ("--store", file, "--run-dir", run, "--iteration", 0)
    assert medq("fill", *where) == "30 items to review, 30 of them new\n"
    assert json.loads(medq("fill", *where, "--json")) == {"items": 30, "added": 0}
    early = CliRunner().invoke(cli.main, ["review", "export", *map(str, where)])
    assert early.exit_code == 1 and early.output == "error: awaiting review: 30 items of iteration 0\n"
    store = Store(file)
    reviewed(store, run, clock)
    store.close()
    told = medq("export", *where)
    found = json.loads(medq("stats", "--store", file, "--json"))
    counts = found["total"]["verdicts"]
    assert told == "30 verdicts: {accept} accepted, {edit} edited, {reject} rejected\n".format(**counts)
    table = medq("stats", "--store", file)
    assert "iteration 0" in table and "ben (simulated)" in table and "lea (lead)" in table
    assert max(len(line) for line in table.splitlines()) <= 120


def test_a_new_store_has_nothing_to_tell(tmp_path):
    lines = medq("stats", "--store", tmp_path / "review.db").splitlines()
    assert lines[0].split() == ["verdicts", "left", "min", "all"] and lines[3].split() == ["total", "0", "0", "0.0"]


def test_a_token_is_printed_once(tmp_path):
    file = tmp_path / "review.db"
    token = medq("enrol", "--store", file, "Dr Ann", "--role", "lead").strip()
    assert token.startswith("Dr Ann.")
    again = CliRunner().invoke(cli.main, ["review", "enrol", "--store", str(file), "Dr Ann"])
    assert again.exit_code == 1 and "enrolled already" in again.output and "Dr Ann." not in again.output


def test_a_lost_token_is_replaced_and_who_leaves_is_dismissed(tmp_path):
    file = tmp_path / "review.db"
    lost = medq("enrol", "--store", file, "ann").strip()
    medq("role", "--store", file, "ann", "lead")
    medq("dismiss", "--store", file, "ann")
    store = Store(file)
    assert authenticate(store, lost) is None
    new = medq("token", "--store", file, "ann").strip()
    assert authenticate(store, new)["role"] == "lead" and authenticate(store, lost) is None
    store.close()
    for command in (["dismiss", "eve"], ["token", "eve"], ["role", "eve", "lead"]):
        done = CliRunner().invoke(cli.main, ["review", command[0], "--store", str(file), *command[1:]])
        assert done.exit_code == 1 and done.output == "error: no reviewer is called 'eve'\n"


def test_a_taken_port_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = CliRunner().invoke(cli.main, ["review", "serve", "--store", str(tmp_path / "r.db"), "--port", port])
    assert done.exit_code == 1 and "in use" in done.output and len(done.output.splitlines()) == 1


@pytest.mark.parametrize("flags, refused", [((), True), (("--behind-proxy",), False)])
def test_only_a_proxy_that_is_meant_may_say_who_asks(tmp_path, flags, refused):
    """Else whoever reaches the port would name another address with each wrong token."""
    Store(str(tmp_path / "review.db")).close()
    with Server(str(tmp_path / "review.db"), flags=flags) as server:
        found = [
            httpx.post(f"{server.url}/login", data={"token": "no"}, headers={"X-Forwarded-For": f"192.0.2.{n}"}).status_code
            for n in range(12)
        ]
    assert set(found) == ({401, 429} if refused else {401})
