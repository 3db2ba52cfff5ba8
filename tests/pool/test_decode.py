"""Nothing that a file does to its decoder reaches the process that asked."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from medq_ray.images import Refused, pixel_digest
from medq_ray.pool import sources
from medq_ray.pool.decode import Limits, Sandbox
from medq_ray.pool.sources import Row


@pytest.fixture(scope="module")
def evil(tmp_path_factory) -> str:
    """Installs tests/pool/evil.py as a user would install a reader of theirs; its name."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(Path(__file__).parent / "evil.py", folder / "evil_reader.py")
    info = folder / "evil_reader-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil-reader\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[medq_ray.sources]\nevil = evil_reader\n")
    sys.path.insert(0, str(folder))
    yield "evil"
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def sandbox(evil):
    with Sandbox(Limits(memory_mb=1500, seconds=2)) as sandbox:
        yield sandbox


def problem(sandbox: Sandbox, how: str, key: str = "") -> str:
    with pytest.raises(Refused) as refused:
        sandbox.decode("evil", Row(how, key), 256)
    return str(refused.value)


def test_a_registered_reader_is_found_by_name(evil):
    assert "evil" in sources.names() and sources.reader("evil").__name__ == "evil_reader"
    with pytest.raises(ValueError, match="unknown source 'x-rays'; there are: .*dicom"):
        sources.reader("x-rays")


def test_an_image_comes_back_whole(sandbox):
    look = sandbox.decode("evil", Row("fine"), 256)
    assert look.pixels.shape == (32, 32, 3) and (look.pixels == 128).all()
    assert look.image_id == pixel_digest(look.pixels) and len(look.thumb) == 256


def test_a_long_image_is_reduced(sandbox):
    assert sandbox.decode("evil", Row("wide"), 1000).pixels.shape == (25, 1000, 3)


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("hang", "timeout: not decoded within 2 s"),
        ("crash", "crash: its decoder died (SIGSEGV)"),
        ("eat", "memory: needs more than a file may take"),
        ("python socket", "decode: damaged or of a kind that cannot be read (PermissionError)"),
        ("native socket", "decode: socket() gave -1"),
        ("program", "decode: damaged or of a kind that cannot be read (PermissionError)"),
        ("native program", "decode: execv() gave -1"),
        ("name", "decode: damaged or of a kind that cannot be read (ValueError)"),
        ("float", "decode: expected uint8 (H, W, 3) of a reader, found float32 (32, 32, 3)"),
    ],
)
def test_a_file_that_misbehaves_is_refused_with_the_reason_and_the_next_one_is_read(sandbox, how, what):
    assert problem(sandbox, how) == what
    assert sandbox.decode("evil", Row("fine"), 256).image_id == pixel_digest(np.full((32, 32, 3), 128, np.uint8))


def test_what_a_decoder_prints_goes_nowhere(sandbox, capfd):
    assert sandbox.decode("evil", Row("print"), 256).pixels.shape == (32, 32, 3)
    assert capfd.readouterr() == ("", "")


def test_a_file_is_tried_again_in_a_fresh_child(sandbox, tmp_path):
    assert sandbox.decode("evil", Row("crash once", str(tmp_path / "marker")), 256).pixels.shape == (32, 32, 3)


def test_the_child_knows_no_secret(evil, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Sandbox(Limits()) as sandbox:
        assert problem(sandbox, "secrets") == "decode: none"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_the_child_dies_with_its_parent_even_in_the_middle_of_a_file(evil):
    code = (
        "import sys\nfrom medq_ray.pool.decode import *\nbox = Sandbox(Limits(seconds=600))\nbox._start()\n"
        "print(box.child.pid, flush=True)\nbox.decode('evil', Row('hang'), 256)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        pid = int(parent.stdout.readline())
        time.sleep(1.5)  # into the file
        parent.kill()
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)
