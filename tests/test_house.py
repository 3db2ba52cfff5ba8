"""The house's rules: who may import whom, which library lives where, what importing a phase may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "schema": 0, "config": 0, "images": 0, "tables": 0, "intervals": 0, "draws": 0, "depth": 0,
    "recipes": 1, "artifacts": 1, "ledger": 1, "console": 1, "questions": 1, "serving": 1, "dicom": 1, "privacy": 1,
    "synthetic": 2, "model": 2,
    "pool": 3, "models": 3, "judging": 3, "labels": 3, "promotion": 3,
    "evaluate": 4, "explore": 4, "annotate": 4, "review": 4, "evolve": 4,
    "report": 5, "loop": 5, "plan": 5,
    "experiments": 6,
    "cli": 7, "serve_apps": 7,
    "jobs": 8,  # each calls one command
}  # fmt: skip
HOMES = {
    "vllm": {"medq_ray/model/deploy.py", "serve_apps/vlm.py"},
    "ray.serve.llm": {"medq_ray/model/deploy.py", "serve_apps/vlm.py"},
    "open_clip": {"medq_ray/model/encoder.py", "medq_ray/model/assets/train_encoder.py"},
    "faiss": {"medq_ray/pool/search.py"},
    "openai": {"medq_ray/model/chat.py"},
    "sqlalchemy": {"medq_ray/review/store.py", "medq_ray/review/tables.py"},
}


WIDTH = 120


def sources() -> list[Path]:
    return sorted(path for folder in ("medq_ray", "jobs", "serve_apps") for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module named by an import statement anywhere in a file, dotted and absolute."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(dotted: str) -> str | None:
    """The part of the house that a dotted name belongs to, None for other libraries."""
    head, *rest = dotted.split(".")
    if head in ("jobs", "serve_apps"):
        return head
    if head != "medq_ray" or not rest:
        return None
    return rest[0] if rest[0] in FLOORS else None


def own_part(path: Path) -> str | None:
    """Programs that nothing imports, the training scripts beside the embedded weights, stand on the top floor."""
    if path.is_relative_to(ROOT / "medq_ray/model/assets"):
        return "jobs"
    return part(".".join(path.relative_to(ROOT).with_suffix("").parts))


def test_every_part_has_a_floor():
    for path in sources():
        if path != ROOT / "medq_ray/__init__.py":
            assert own_part(path) in FLOORS, f"{path} stands on no floor: add it to FLOORS"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_lower_floors(path):
    mine = own_part(path)
    for name in imports(path):
        other = part(name)
        if mine and other and other != mine:
            allowed = FLOORS[other] < FLOORS[mine]
            assert allowed, f"{path.relative_to(ROOT)} (floor {FLOORS[mine]}) imports {name} (floor {FLOORS[other]})"


def test_no_import_cycle():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in sources()}
    graph = {}
    for name, path in modules.items():
        named = imports(path)
        targets = {n for n in named if n in modules} | {n.rpartition(".")[0] for n in named if n not in modules}
        graph[name] = {t for t in targets if t in modules and t != name}
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "import cycle: " + " -> ".join([*trail[trail.index(name) :], name])
        if name not in finished:
            for target in sorted(graph[name]):
                visit(target, (*trail, name))
            finished.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("library", sorted(HOMES))
def test_heavy_libraries_have_one_home(library):
    for path in sources():
        if str(path.relative_to(ROOT)) not in HOMES[library]:
            used = {name for name in imports(path) if name == library or name.startswith(library + ".")}
            assert not used, f"{path.relative_to(ROOT)} imports {sorted(used)}; its home is {sorted(HOMES[library])}"


def test_phases_import_without_heavy_libraries():
    code = (
        "import sys; import medq_ray.evaluate, medq_ray.explore, medq_ray.annotate, medq_ray.review, medq_ray.evolve;"
        "print(sorted({'vllm','open_clip','faiss','openai','sqlalchemy','torch','transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_lines_have_at_most_120_characters():
    for path in sources():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert len(line) <= WIDTH, f"{path}:{number} has {len(line)} characters"


def test_no_broad_except():
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                assert caught not in ("everything", "Exception", "BaseException"), f"{path}:{node.lineno}"
