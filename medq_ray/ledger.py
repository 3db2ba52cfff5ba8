"""What a run cost: one JSON line for each expense of a step.

Wall time of every step; requests, tokens, waiting time and money of every model that it asked, as `model.account` wrote
them down one by one. Simulated expenses are marked and never added to real ones. A step that was killed books all its
requests when it is done again, those before the kill too; the last entry of a step's expense is therefore the one that
counts.
"""

import json
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ledger:
    path: Path

    def add(self, *, step: str, what: str, amount: float, unit: str, simulated: bool = False) -> None:
        """Append one expense; `unit` is seconds, tokens, requests or money."""
        line = {"at": round(time.time(), 3), "step": step, "what": what, "amount": amount, "unit": unit,
                "simulated": simulated}  # fmt: skip
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")

    def total(self, step_prefix: str = "") -> dict[str, float]:
        """Sums over steps whose name starts with the prefix: 'what (unit)' or 'what (unit, simulated)' -> amount."""
        last: dict[tuple[str, str], float] = {}
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        for entry in map(json.loads, lines):
            mark = ", simulated" if entry["simulated"] else ""
            last[entry["step"], f"{entry['what']} ({entry['unit']}{mark})"] = entry["amount"]
        sums: dict[str, float] = defaultdict(float)
        for (step, what), amount in last.items():
            if step.startswith(step_prefix):
                sums[what] += amount
        return {what: round(amount, 6) for what, amount in sorted(sums.items())}
