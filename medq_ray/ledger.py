"""What a run cost: one JSON line for each expense, appended as it happens.

Kinds: engine seconds, oracle tokens and money, reviewer minutes. Simulated expenses are marked and never added to
real ones.
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
        sums: dict[str, float] = defaultdict(float)
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                entry = json.loads(line)
                if entry["step"].startswith(step_prefix):
                    mark = ", simulated" if entry["simulated"] else ""
                    sums[f"{entry['what']} ({entry['unit']}{mark})"] += entry["amount"]
        return {key: round(value, 3) for key, value in sorted(sums.items())}
