"""Merge a trained adapter into its base, so that a plain model can be saved and shared."""

from pathlib import Path

from posttrain.cards import CARD, build_card
from posttrain.files import require_new_folder, write, written_whole
from posttrain.hub import fetch, identify
from posttrain.models import (
    LARGEST_DIFFERENCE,
    PROBES,
    can_merge,
    load_base,
    load_models,
    load_tokenizer,
    logits_of,
    require_as_made,
    require_model,
)
from posttrain.record import Model
from posttrain.run import Run


def merge(run: Run, name: str, out: str, base_model: str | None = None) -> float:
    """Merge the adapter of a model into its base in fp32, and save the plain model in a folder.

    The folder has safetensors, config, tokenizer and a card, and is written whole or not at all.

    Args:
        run: the run that the model belongs to.
        name: the model's name.
        out: the new folder.
        base_model: where the run's base lies now, None if it is where the record says.

    Returns:
        The largest difference between the logits of the model in the folder and those of the
        adapter over its base.

    Raises:
        ValueError: if the run has no such model, nothing can be merged, the adapter was changed, or
            the folder is not empty or cannot be written.
        RuntimeError: if the model in the folder gives other logits than the adapter.
    """
    model = _require_adapter(run, name)
    folder = Path(out).resolve()
    require_new_folder(Path(out))
    require_as_made(run, model.adapter)
    base_folder = _find_base(run, base_model)
    card = build_card(run, model, out, merged=True)
    tokenizer = load_tokenizer(base_folder)
    adapted = load_models(run, base_folder, [name])[name]
    if not can_merge(adapted):
        raise ValueError(
            f"MODEL: {name} cannot be merged. Either its adapter is not a LoRA adapter, or it "
            "adapts an embedding that is tied to the output layer, so that merging would "
            f"change the output layer too. Use the adapter as it is: {run.path(model.adapter)}."
        )
    expected = logits_of(adapted, tokenizer, PROBES)
    merged = adapted.merge_and_unload(safe_merge=True)
    with written_whole(folder) as temporary:
        merged.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write(temporary / CARD, str(card))
        saved = load_base(temporary, safetensors=True)
        found = logits_of(saved, load_tokenizer(temporary), PROBES)
        difference = (found - expected).abs().max().item()
        if not difference < LARGEST_DIFFERENCE:  # written so that NaN fails too
            raise RuntimeError(
                f"OUT: the logits of the merged model differ by {difference:.3g} from those of "
                f"{name}, so it was not saved. Use the adapter as it is: "
                f"{run.path(model.adapter)}."
            )
    return difference


def _find_base(run: Run, base_model: str | None) -> Path:
    """Find the folder of a run's base, which may have moved, without noting it in the record."""
    known = run.record.sources.get("base_model", {"name": run.models[0].base})
    name = base_model or known["name"]
    folder = fetch("BASE_MODEL", name, commit=known.get("commit"))
    identity = known.get("commit") or known.get("sha256")
    if identity not in (None, identify(folder)):
        raise ValueError(
            f"BASE_MODEL = {name!r} is not the base that {run.folder} was trained on "
            f"({known['name']}), or was changed since. Name that base."
        )
    return folder


def _require_adapter(run: Run, name: str) -> Model:
    """Find a model of a run that has an adapter."""
    model = require_model(run, name)
    if model.adapter is not None:
        return model
    if model.place is not None:
        raise ValueError(
            f"MODEL: all weights of {name} were trained, so {run.path(model.place)} is a plain "
            "model already. Its tokenizer is that of its base."
        )
    trained = [row.name for row in run.models if row.adapter is not None]
    raise ValueError(
        f"MODEL: {name} has no adapter that could be merged. The models of {run.folder} with an "
        f"adapter are: {', '.join(trained) or 'none'}."
    )
