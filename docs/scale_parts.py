"""What the computation for GPUs stands on, as markdown: rates, lengths and assumptions."""

from collections.abc import Sequence

from docs.benchmark_tables import Record, read_record, write_table


def write_devices() -> str:
    """Write the rates of the GPUs as a table, with the data sheets that they come from."""
    rows = []
    for device in read_record("scale")["devices"]:
        if device["number"] > 1:
            continue
        rows.append([
            device["name"],
            f"{device['training'] / 1e12:g}",
            f"{device['fp32'] / 1e12:g}",
            f"{device['bandwidth'] / 1e9:,.0f}",
            f"{device['memory'] / 1e9:.0f}",
            f"{device['link'] / 1e9:.0f}",
            f"“{device['sheet']}”",
        ])  # fmt: skip
    headings = ["GPU", "bf16, fp16 on a T4 (TFLOP/s)", "fp32 (TFLOP/s)", "memory (GB/s)",
                "memory (GB)", "to other GPUs (GB/s)", "data sheet"]  # fmt: skip
    return write_table(headings, rows)


def write_lengths() -> str:
    """Write how long the texts are, and in the tokens of which tokenizer."""
    lengths = read_record("scale")["lengths"]
    return (
        f"The means are those of {lengths['pairs']:,} pairs and {lengths['test prompts']:,} test "
        f"prompts, in tokens of the tokenizer of `{lengths['tokenizer']}`: {lengths['prompt']:.0f} "
        f"for a prompt, {lengths['chosen']:.0f} for a chosen and {lengths['rejected']:.0f} for a "
        f"rejected reply, and {lengths['test prompt']:.0f} for a test prompt. The longest prompt "
        f"with a reply has {lengths['longest text']} tokens, and the longest pair, if its prompt "
        f"is read once, {lengths['longest pair']}."
    )


def write_assumptions() -> str:
    """Write what a GPU is assumed to reach, and what the CPU was measured to reach."""
    record = read_record("scale")
    assumptions, speed = record["assumptions"], record["speed"]
    operators = record["operators"]
    forward = f"{operators['adapters']['forward']:.0f} in a forward"
    backward = f"{operators['adapters']['backward']:.0f} in a backward pass"
    starting = _span(assumptions, "operator", 1e6)
    lines = [
        f"- **Training** reaches {_span(assumptions, 'training', 100)}% of the peak rate. The CPU "
        f"reached {100 * speed['SFT']['share']:.0f}% in SFT and {100 * speed['DPO']['share']:.0f}% "
        "in DPO of the rate of its own fastest matrix product, which is less than a data sheet's "
        "peak. The share in DPO is too high, because a pair's prompt counts twice although it is "
        "read once.",
        f"- **Generation and judging** reach {_span(assumptions, 'fp32', 100)}% of the peak rate "
        f"in fp32, where the CPU reached {100 * speed['judging']['share']:.0f}% in judging.",
        f"- **Memory** is read with {_span(assumptions, 'bandwidth', 100)}% of its bandwidth, and "
        "gradients are sent with the same share of a link's.",
        f"- **Starting an operator** on the GPU takes the processor {starting} µs. Counted in "
        f"torch, a layer with adapters starts {forward} and {backward}, and "
        f"{operators['asked']:.0f} when a model answers.",
        f"- **CUDA and its libraries** take {record['libraries'] / 1e9:g} GB.",
        f"- **The number of pairs** for `full` and `paper` is {record['pairs of HH-RLHF']:,}, "
        "all of HH-RLHF before any is dropped, and every answer is as long as its limit. Both are "
        "upper limits.",
    ]
    return "\n".join(lines)


def _span(assumptions: Sequence[Record], name: str, unit: float) -> str:
    """Write the lowest and the highest value of an assumption."""
    values = [unit * assumption[name] for assumption in assumptions]
    return f"{min(values):.0f} to {max(values):.0f}"


def write_left_out() -> str:
    """Write how much would be added by what the arithmetic and the memory leave out."""
    record = read_record("scale")
    shares = {base: 100 * share for base, share in record["share left out"].items()}
    least, most = min(shares, key=shares.get), max(shares, key=shares.get)
    unit, most_bytes = record["activation bytes"]["bf16"], record["most activation bytes"]
    return (
        "The scores of attention and the head, which the arithmetic leaves out, would add "
        f"{shares[least]:.1f}% to the arithmetic of {least} and {shares[most]:.0f}% to that of "
        f"{most}. A base of another family can keep up to {most_bytes / unit:.1f} times the "
        "activations of OPT ([measured](#memory-of-a-pass))."
    )


def write_pays() -> str:
    """Write up to how many GPUs the first training of the table of several GPUs pays."""
    record = read_record("scale")
    first = record["processes"][0]
    clauses = []
    for row in record["processes"]:
        if (row["base"], row["stage"]) == (first["base"], first["stage"]):
            lowest, highest = min(row["pays to"]), max(row["pays to"])
            span = f"{lowest}" if lowest == highest else f"{lowest} to {highest}"
            clauses.append(f"{span} ({row['device']})")
    gain = 100 * (record["doubling pays from"] - 1)
    return (
        f"A doubling of the GPUs *pays*, as we count it, if it makes a step at least {gain:.0f}% "
        f"faster. {first['stage']} of {first['base']} with {first['pairs']} pairs in a step pays "
        f"up to this number of GPUs: {', '.join(clauses[:-1])} and {clauses[-1]}."
    )
