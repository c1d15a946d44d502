"""Write the generated parts of README.md and of docs/*.md from the committed results.

    python -m docs.build

A generated part stands between two comments, `<!-- NAME, written by docs/build.py -->` and
`<!-- end of NAME -->`. What stands outside of such comments is written by hand and is left alone.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from docs import (
    behaviour_tables,
    benchmark_tables,
    claims_tables,
    findings,
    readme_parts,
    scale_parts,
    settings_table,
    study_tables,
)
from docs.benchmark_tables import BENCHMARKS, ROOT
from docs.study_tables import PUBLISHED
from posttrain.files import read_json, write
from posttrain.known_judges import list_known_judges

BEGIN = ", written by docs/build.py -->"
PART = re.compile(rf"(<!-- ([^\n]+){BEGIN}\n)(.*?)(<!-- end of \2 -->)", re.DOTALL)


def list_documents() -> list[Path]:
    """List the documents that may have generated parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def list_parts(
    published: Path = PUBLISHED, address: str = readme_parts.PLACEHOLDER
) -> dict[str, Callable[[], str]]:
    """List the generated parts by name, each with the function that writes it as markdown.

    Args:
        published: the folder with the study's results.
        address: from which README says that the repository is cloned.
    """
    metrics = read_json(published / "metrics.json", dict)
    models = [record["model"] for record in metrics["models"]]
    assessments = claims_tables.assess_study(published, metrics)
    parts: dict[str, Callable[[], str]] = {
        "clone": partial(readme_parts.write_clone, address),
        "presets": readme_parts.write_presets,
        "results": partial(study_tables.write_results, metrics),
        "measures": partial(study_tables.write_measures, published, metrics),
        "conclusion": partial(findings.write_conclusion, published, metrics),
        "findings": partial(findings.write_findings, published, metrics),
        "claims in short": partial(claims_tables.write_claims_in_short, assessments, models),
        "claims counted": partial(claims_tables.write_counts, assessments),
        "claims": partial(claims_tables.write_claims, assessments, models),
        "evidence": partial(claims_tables.write_evidence, assessments, models),
        "summary": partial(study_tables.write_summary, metrics),
        "headlines": partial(study_tables.write_headlines, metrics),
        "pairs": partial(study_tables.write_pairs, metrics),
        "rewards say more": partial(study_tables.write_rewards_say_more, metrics),
        "thresholds": partial(study_tables.write_thresholds, published, metrics),
        "apologies": partial(behaviour_tables.write_apologies, published),
        "harmless answers": partial(behaviour_tables.write_harmless, published),
        "behaviour": partial(behaviour_tables.write_behaviour, metrics),
        "behaviour differences": partial(behaviour_tables.write_behaviour_differences, metrics),
        "labels compared": partial(behaviour_tables.write_labels_compared, published, metrics),
        "patterns": partial(behaviour_tables.write_patterns, published),
        "running on": partial(study_tables.write_running_on, metrics),
        "without running on": partial(study_tables.write_without_running_on, published),
        "gains": partial(study_tables.write_gains, metrics),
        "prompts in words": partial(study_tables.write_prompts_in_words, published),
        "openings": partial(study_tables.write_openings, published),
        "real model setup": benchmark_tables.write_real_model_setup,
        "same work": benchmark_tables.write_same_work,
        "preset small": benchmark_tables.write_preset_small,
        "seeds setup": partial(benchmark_tables.write_machine, "seeds"),
        "demo run setup": partial(benchmark_tables.write_machine, "demo_run"),
        "known judges": list_known_judges,
        "processes setup": partial(benchmark_tables.write_machine, "processes"),
        "growth setup": partial(benchmark_tables.write_machine, "growth"),
        "speed setup": partial(benchmark_tables.write_speed_setup, "speed"),
        "speed setup without bf16": partial(
            benchmark_tables.write_speed_setup, benchmark_tables.WITHOUT_BF16
        ),
        "scale devices": scale_parts.write_devices,
        "scale lengths": scale_parts.write_lengths,
        "scale assumptions": scale_parts.write_assumptions,
        "scale left out": scale_parts.write_left_out,
        "scale pays": scale_parts.write_pays,
    }
    parts |= settings_table.list_parts()
    for path in sorted(BENCHMARKS.rglob("*.md")):
        name = path.relative_to(ROOT).as_posix()
        parts[name] = partial(benchmark_tables.read_table, path)
    return parts


def fill_in(text: str, parts: dict[str, Callable[[], str]]) -> str:
    """Write the generated parts of a document anew.

    Args:
        text: the document.
        parts: {name: function that writes the part}.

    Returns:
        The document with these parts.

    Raises:
        ValueError: a part has no end, or nothing writes a part of its name.
    """

    def write_part(match: re.Match) -> str:
        begin, name, _, end = match.groups()
        if name not in parts:
            raise ValueError(f"Nothing writes the part “{name}”. Parts: {', '.join(parts)}.")
        return f"{begin}{parts[name]().strip()}\n{end}"

    if len(PART.findall(text)) != text.count(BEGIN):
        raise ValueError("A generated part lacks its last line, <!-- end of NAME -->.")
    return PART.sub(write_part, text)


if __name__ == "__main__":
    origin = readme_parts.read_origin()
    written_parts = list_parts(address=readme_parts.public_address(origin))
    for document in list_documents():
        write(document, fill_in(document.read_text(encoding="utf-8"), written_parts))
