"""A plan as people read it."""

from typing import Any

GB = 1e9


def described(found: dict[str, Any]) -> str:
    """The table of phases, what stands behind its figures, and every assumption. found: of `plan.plan`."""
    model, hardware = found["model"], found["hardware"]
    parts = ", ".join(f"{name} {count:,}" for name, count in model["parameters"].items())
    lines = [
        f"{model['name']}: {model['total']:,} parameters ({parts})",
        f"{hardware['gpus']} x {hardware['gpu']} with {hardware['gpu_memory'] / GB:g} GB",
        "",
        f"{'phase':<10}{'a GPU':>10}{'host':>10}{'first':>12}{'last':>12}   fits",
    ]
    lines += [row(name, phase) for name, phase in found["phases"].items()]
    lines += ["", f"it {'fits' if found['fits'] else 'does NOT fit'}", ""]
    lines += [f"{name}: {note}" for name, phase in found["phases"].items() for note in phase["notes"]]
    lines += ["", "assumed:"]
    lines += [f"  {name} = {entry['value']:,}: {' '.join(entry['what'].split())}"
              for name, entry in found["assumptions"].items()]  # fmt: skip
    return "\n".join(lines)


def row(name: str, phase: dict[str, Any]) -> str:
    memory = [f"{phase[where] / GB:.1f} GB" if phase[where] else "-" for where in ("gpu_memory", "host_memory")]
    people = phase.get("people_seconds")
    times = [f"{people[when] / 3600:.1f} h work" if people else duration(phase["seconds"][when])
             for when in ("first", "last")]  # fmt: skip
    return f"{name:<10}{memory[0]:>10}{memory[1]:>10}{times[0]:>12}{times[1]:>12}   {'yes' if phase['fits'] else 'NO'}"


def duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min"
