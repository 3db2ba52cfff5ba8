"""`report.html`: one file that shows a run, readable without a network and years later.

    medq report runs/demo
"""

import os
from pathlib import Path

from medq_ray.report import exploring, labels, views
from medq_ray.report.gallery import gallery
from medq_ray.report.reading import RunFiles, thumbnail


def write_report(run_dir: Path) -> Path:
    """Write run_dir/report.html from the run directory alone and return its path.

    Everything is in the one file: pictures as data URLs, drawings as SVG, no script and no font from elsewhere. An
    image that cannot be read becomes a placeholder; tables of phases that did not run are left out. The same run
    directory gives the same bytes. Raises ValueError when there is no summary.json.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    run = RunFiles(Path(run_dir))
    environment = Environment(
        loader=PackageLoader("medq_ray.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        summary=run.summary,
        headline=views.headline(run),
        truth_is_known=bool(run.truth),
        simulated=views.simulated(run),
        progress=views.progress(run),
        accuracies=views.accuracies(run),
        promotions=views.promotions(run),
        work=views.work(run),
        losses=views.losses(run),
        heat=views.heat(run),
        gallery=gallery(run),
        composition=views.composition(run),
        budget=exploring.budget(run),
        asked=exploring.asked(run),
        verdicts=views.verdicts(run),
        errors=labels.errors(run),
        audits=labels.audits(run),
        curves=labels.curves(run),
        value=labels.value(run),
        costs=views.costs(run),
        settings=views.settings(run),
        evaluate=section(run, "evaluate"),
        own_server=section(run, "engine").get("base_url", "–") != "–",
    )
    thumbnail.cache_clear()
    path = run.root / "report.html"
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def section(run: RunFiles, name: str) -> dict[str, str]:
    """One section of run.yaml as it is shown; empty without the file."""
    return {field: value for title, rows in views.settings(run) if title == name for field, value, _ in rows}
