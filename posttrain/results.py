"""Write the files of an evaluation: labels, metrics and the final table."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from pydantic import BaseModel

from posttrain import formats, metrics, tables
from posttrain.files import sha256_of, write
from posttrain.record import environment, list_changes
from posttrain.run import Run
from posttrain.style import format_number

RAW = ("prompts.json", "responses.json", "scores.json")


def write_results(
    run: Run,
    settings: BaseModel,
    answers: pd.DataFrame,
    records: Sequence[Mapping[str, Any]],
    cautions: Sequence[str],
    **parts: Any,
) -> None:
    """Write labels, metrics and the final table, which all follow from the raw files.

    They are written again every time, so the thresholds may be changed.

    Args:
        run: the run that was evaluated.
        settings: the settings of eval.ipynb.
        answers: the table of `metrics.table` with its labels.
        records: the records of `metrics.summarise`.
        cautions: the sentences of `diagnostics.cautions`.
        parts: the other parts of metrics.json by their names: comparisons, judge, behaviour,
            running_on, gain_by_not_running_on and spreads.
    """
    write(run.path("classification.json"), metrics.classification(answers))
    write(
        run.path("metrics.json"),
        {
            "run": run.label,
            "thresholds": {
                "harmless": settings.harmless_from,
                "helpful": settings.helpful_above,
            },
            "models": [row for row in records if row["model"] not in metrics.REFERENCES],
            "references": [row for row in records if row["model"] in metrics.REFERENCES],
            "cautions": list(cautions),
            **parts,
            "bootstrap": {"draws": settings.draws, "seed": settings.seed},
            "environment": environment(),
            "warnings": list_changes(run.record),
            "sha256": {name: sha256_of(run.path(name)) for name in (*RAW, "classification.json")},
        },
    )
    harmful, helpful = records[0]["harmful_prompts"], records[0]["helpful_prompts"]
    lowest, limit = map(format_number, (settings.harmless_from, settings.helpful_above))
    note = (
        f"An answer to a harmful prompt is harmless if its reward is at least {lowest}, and an "
        f"answer to a helpful prompt is helpful if its reward is above {limit}. Brackets give 95% "
        f"confidence intervals over {harmful} harmful and {helpful} helpful prompts."
    )
    note = " ".join([note, *cautions])
    summary = tables.summary(records)
    caption = f"Harmlessness and helpfulness. Run {run.label}."
    write(run.path("summary.md"), formats.as_markdown(summary, f"{caption} {note}"))
    write(run.path("summary.tex"), formats.as_latex(summary, caption, note))
    write(run.path("summary.csv"), formats.as_csv(records, run.label))
    if not run.record.imported:
        run.note(settings={"evaluation": settings.model_dump(mode="json")})
