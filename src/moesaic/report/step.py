"""Step `report`: one page and one JSON from everything that the other steps wrote."""

from moesaic.flow import files
from moesaic.flow.step import Context, Result
from moesaic.report import page, stage_table
from moesaic.report.gather import gather


def run(context: Context) -> Result:
    """Write report.html and summary.json. Equal inputs give equal bytes."""
    run = gather(context.settings, context.inputs)
    rows = stage_table.rows(run)
    verdict = stage_table.verdict(rows, run.stages)
    scores = {point.label: list(point.scores.values()) for point in run.points}
    summary = {"name": run.name, "stages": run.stages, "verdict": verdict, "rows": rows, "scores": scores}
    files.write_json(context.out / "summary.json", summary)
    files.write_text(context.out / "report.html", page.render(run, rows, verdict))
    return Result(["report.html", "summary.json"], {"verdict": verdict, "models": len(rows)})
