"""Write the files of an evaluation: labels, metrics, the final table and the models' cards."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from pydantic import BaseModel

from posttrain import formats, metrics, tables
from posttrain.cards import write_cards
from posttrain.files import sha256_of, write
from posttrain.processes import decided_by_main
from posttrain.record import environment, list_changes
from posttrain.run import Run
from posttrain.spreads import compare_spreads
from posttrain.style import format_number

SECOND = "second_scores.json"  # the rewards by a second judge, where one is named


def classification(answers: pd.DataFrame) -> list[dict[str, Any]]:
    """Build the records of classification.json: the models' answers with rewards and labels.

    Answers to the same prompt come one after the other. Unknown texts are left out.

    Args:
        answers: The table of answers with its labels.

    Returns:
        Records {"id", "kind", "model", "prompt", "response", "reward", "label"}.
    """
    columns = ["id", "kind", "model", "prompt", "response", "reward", "label"]
    classified = answers.loc[answers["model"].isin(metrics.models_of(answers)), columns]
    classified = classified.dropna(axis="columns", how="all")
    return classified.sort_values(["kind", "id"], kind="stable").to_dict("records")


@decided_by_main
def write_results(
    run: Run,
    settings: BaseModel,
    answers: pd.DataFrame,
    records: Sequence[Mapping[str, Any]],
    cautions: Sequence[str],
    **parts: Any,
) -> None:
    """Write labels, metrics, table and cards, which all follow from the raw files.

    They are written again every time, so the thresholds may be changed.

    Args:
        run: the run that was evaluated.
        settings: the settings of eval.ipynb.
        answers: the table of `metrics.table` with its labels.
        records: the records of `metrics.summarise`.
        cautions: the sentences of `diagnostics.cautions`.
        parts: the other parts of metrics.json by their names: comparisons, judge, human_wins,
            threshold_decisions, behaviour, behaviour_comparisons, by_keyword, running_on,
            gain_by_not_running_on and second_judge.
    """
    raw = [*metrics.RAW, SECOND] if parts.get("second_judge") else metrics.RAW
    write(run.path("classification.json"), classification(answers))
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
            "spreads": compare_spreads(answers, settings.draws, settings.seed),
            "bootstrap": {"draws": settings.draws, "seed": settings.seed},
            "environment": environment(),
            "warnings": list_changes(run.record),
            "sha256": {name: sha256_of(run.path(name)) for name in (*raw, "classification.json")},
        },
    )
    note = " ".join([_explain_rates(settings, records[0]), *cautions])
    summary = tables.summary(records)
    caption = f"Harmlessness and helpfulness. Run {run.label}."
    write(run.path("summary.md"), formats.as_markdown(summary, f"{caption} {note}"))
    write(run.path("summary.tex"), formats.as_latex(summary, caption, note))
    write(run.path("summary.csv"), formats.as_csv(records, run.label))
    if not run.record.imported:
        run.note(settings={"evaluation": settings.model_dump(mode="json")})
    write_cards(run)


def _explain_rates(settings: BaseModel, record: Mapping[str, Any]) -> str:
    """Say below the final table which answers pass, and how many prompts the rates stand on."""
    lowest, limit = map(format_number, (settings.harmless_from, settings.helpful_above))
    rules = {
        "harmful": f"answer to a harmful prompt is harmless if its reward is at least {lowest}",
        "helpful": f"answer to a helpful prompt is helpful if its reward is above {limit}",
    }
    kinds = [kind for kind in rules if record[f"{kind}_prompts"]]
    counts = [f"{record[f'{kind}_prompts']} {kind}" for kind in kinds]
    return (
        f"An {', and an '.join(rules[kind] for kind in kinds)}. Brackets give 95% confidence "
        f"intervals over {' and '.join(counts)} prompts."
    )
