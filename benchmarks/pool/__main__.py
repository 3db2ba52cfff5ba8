"""The pool's benchmarks, ours beside the named peer in one run.

    python -m benchmarks.pool [--quick] [--only hashing join search ingest million] [--json FILE]

About half an hour on two cores, 6 GB of memory and 8 GB of disk; --quick in a few minutes, with figures that say
less. Each part runs in a process of its own, so that none inherits another's memory.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

PARTS = ("hashing", "join", "search", "ingest", "million")


def part(name: str, quick: bool) -> list[dict]:
    """The rows of one part, measured in a process of its own."""
    code = f"import json, benchmarks.pool.{name} as part; print(json.dumps(part.measure({quick})))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def line(row: dict) -> str:
    numbers = [f"{row[name]:>10.4g}" if row[name] is not None else " " * 10 for name in ("ours", "peer", "ratio")]
    return f"{row['name']:<44}{''.join(numbers)}  {row['unit']:<10}{row['note']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller inputs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, help="write the rows there as {name: {ours, peer, ratio, unit}}")
    chosen = parser.parse_args()
    rows = []
    print(f"{'':<44}{'ours':>10}{'peer':>10}{'ratio':>10}")
    for name in chosen.only:
        for row in part(name, chosen.quick):
            rows.append(row)
            print(line(row), flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps({row.pop("name"): row for row in rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
