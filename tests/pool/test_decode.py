"""Nothing that a file does to its decoder reaches the process that asked."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from medq_ray.images import Refused, pixel_digest
from medq_ray.pool import sources
from medq_ray.pool.confine import FORBIDDEN, landlock_version
from medq_ray.pool.decode import NONSENSE, Limits, Look, Sandbox
from medq_ray.pool.jail import FRAME
from medq_ray.pool.sources import Options, Row

NOT_PERMITTED = "decode: damaged or of a kind that cannot be read (PermissionError)"
needs_landlock = pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock")


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
    with Sandbox(Limits(memory_mb=1500, seconds=10)) as sandbox:  # 2 were too few on two busy cores
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
        ("hang", "timeout: not decoded within 10 s"),
        ("crash", "crash: its decoder died (SIGSEGV)"),
        ("abort", "crash: its decoder died (SIGABRT)"),
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


def test_a_file_is_tried_again_in_a_fresh_child(sandbox, tmp_path, monkeypatch):
    marker, close = tmp_path / "marker", sandbox.close
    monkeypatch.setattr(sandbox, "close", lambda: (marker.touch(), close()))
    assert sandbox.decode("evil", Row("crash once", str(marker)), 256).pixels.shape == (32, 32, 3)


@pytest.mark.parametrize("how", ["fork", "spawn", "kill", "limit", "chmod", "utime", "setxattr", "attributes"])
def test_a_decoder_touches_no_other_process(sandbox, how):
    assert problem(sandbox, how, __file__) == NOT_PERMITTED


@needs_landlock
@pytest.mark.parametrize("how", ["environ", "memory", "write", "append", "remove"])
def test_a_decoder_neither_sees_other_processes_nor_changes_files(sandbox, how, tmp_path):
    path = tmp_path / "precious"
    if how != "write":
        path.write_text("data")
    assert problem(sandbox, how, str(path)) == NOT_PERMITTED
    assert not path.exists() if how == "write" else path.read_text() == "data"


@pytest.mark.parametrize("call", FORBIDDEN.get(os.uname().machine, ()))
def test_native_code_cannot_make_a_forbidden_call(sandbox, call):
    assert problem(sandbox, "native", str(call)) == "decode: it gave -1"


def test_a_decoder_may_start_threads(sandbox):
    assert sandbox.decode("evil", Row("threads"), 256).pixels.shape == (32, 32, 3)


def test_a_long_reason_is_cut_and_cleaned(sandbox):
    reason = problem(sandbox, "long")
    assert len(reason) == 300 and reason.isprintable()


def test_the_child_knows_no_secret(evil, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Sandbox(Limits()) as sandbox:
        assert problem(sandbox, "secrets") == "decode: none"


GREY = np.full((2, 4, 3), 7, np.uint8)
NUMBERS = {"phash": 5, "sharpness": 1.0, "noise": 0.0}
FACTS = {"image_id": pixel_digest(GREY), "shape": [2, 4, 3], "thumb": "00" * 256, **NUMBERS}
TRUE_ROW = Row("/data/a", "1", "ct", "p", split="pool", private=True, labels={"blur": "mild"}, beside=("/data/b",))
FOUND = asdict(TRUE_ROW)
SHAPES = ([4, 2, 3], [2, 3, 3], [8, 1, 3], [2, 4], [-2, -4, 3], [2.0, 4, 3], [True, 8, 3])
PROBLEMS = ("", "no", "decode: ", "eaten: by a bear", "decode: a\nb", "decode: \ud800", 3)
PATHS = ("/etc/passwd", "/data/ab", "/data/a/../b", "/data", "")
WRONG = (None, 3, {"a": 1}, [1], "\ud800", "x" * 5000)


class Liar(Sandbox):
    """Its child says the same whatever it is asked, with the framing of an honest one."""

    def __init__(self, said: bytes, raw: bytes, folder: Path):
        super().__init__(Limits(seconds=5))
        self.said = folder / "said"
        self.said.write_bytes(FRAME.pack(len(said), len(raw)) + said + raw)

    def _start(self, source: str) -> None:
        pipe = subprocess.PIPE
        self.child = subprocess.Popen(["cat", str(self.said), "-"], stdin=pipe, stdout=pipe, bufsize=0)


def lie(change: dict, truth: dict, *left_out: str) -> bytes:
    return json.dumps({name: value for name, value in (truth | change).items() if name not in left_out}).encode()


def test_the_truth_is_believed(tmp_path):
    with Liar(lie({}, FACTS), GREY.tobytes(), tmp_path) as sandbox:
        look = sandbox.decode("evil", Row("/data/a"), 4)
    assert isinstance(look, Look) and (look.pixels == GREY).all() and look.phash == 5
    below = FOUND | {"path": "/data/a/1"}
    with Liar(lie({"rows": [FOUND, below]}, {}), b"", tmp_path) as sandbox:
        rows = sandbox.expand("evil", Row("/data/a", private=True), Options())
    assert [row.path for row in rows] == ["/data/a", "/data/a/1"] and rows[0].labels == {"blur": "mild"}
    assert rows[0].beside == ("/data/b",)


def refusal(ask) -> str:
    with pytest.raises(Refused) as refused:
        ask()
    return str(refused.value)


LOOKS = [
    *(b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 100_000, b"9" * 10_000, b'{"rows": []}'),
    lie({"more": 1}, FACTS),
    *(lie({}, FACTS, name) for name in FACTS),
    *(lie({name: None}, FACTS) for name in FACTS),
    *(lie({name: ["x"]}, FACTS) for name in FACTS),
    *(lie({"shape": shape}, FACTS) for shape in SHAPES),
    *(lie({"phash": value}, FACTS) for value in (1 << 64, -1, True, 5.0, "5")),
    *(lie({name: v}, FACTS) for name in ("sharpness", "noise") for v in (float("nan"), float("inf"), -1.0, 1e300, "1")),
    *(lie({"image_id": name}, FACTS) for name in ("../../x", "0" * 16, "")),
    *(lie({"thumb": value}, FACTS) for value in ("00" * 255, "zz" * 256, "é" * 512)),
    *(lie({"problem": text}, {}) for text in PROBLEMS),
    lie({"problem": "decode: " + "x" * 300}, {}),
    lie({"problem": "decode: x" * 1_000_000}, {}),
    lie({"problem": "decode: x"}, FACTS),
]


@pytest.mark.parametrize("said", LOOKS, ids=range(len(LOOKS)))
def test_no_lie_about_an_image_is_believed(said, tmp_path):
    with Liar(said, GREY.tobytes(), tmp_path) as sandbox:
        assert refusal(lambda: sandbox.decode("evil", Row("/data/a"), 4)) == NONSENSE


ROWS = [
    *(lie({"rows": rows}, {}) for rows in (None, {}, "rows", [None], [[]], ["/data/a"], [{}])),
    *(lie({"rows": [{**FOUND, name: value}]}, {}) for name in FOUND for value in WRONG),
    *(lie({"rows": [{**FOUND, "path": path}]}, {}) for path in PATHS),
    *(lie({"rows": [{**FOUND, **change}]}, {}) for change in ({"private": False}, {"split": "test"}, {"more": 1})),
    *(lie({"rows": [{**FOUND, "problem": text}]}, {}) for text in ("no", "decode: a\nb", "decode: " + "x" * 300)),
    *(lie({"rows": [{**FOUND, "labels": labels}]}, {}) for labels in ({"a": None}, {"a": ["b"]}, {"\ud800": "b"})),
    lie({"rows": [{name: value for name, value in FOUND.items() if name != "key"}]}, {}),
]


@pytest.mark.parametrize("said", ROWS, ids=range(len(ROWS)))
def test_no_lie_about_rows_is_believed(said, tmp_path):
    with Liar(said, b"", tmp_path) as sandbox:
        asked = Row("/data/a", split="pool", private=True)
        assert refusal(lambda: sandbox.expand("evil", asked, Options())) == NONSENSE


def test_an_answer_of_absurd_size_is_not_read(tmp_path):
    with Liar(lie({"problem": "x" * (50 << 20)}, {}), b"", tmp_path) as sandbox:
        assert "absurd size" in refusal(lambda: sandbox.decode("evil", Row("/data/a"), 4))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_the_child_dies_with_its_parent_even_in_the_middle_of_a_file(evil):
    code = (
        "import sys\nfrom medq_ray.pool.decode import *\nbox = Sandbox(Limits(seconds=600))\nbox._start('images')\n"
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
