"""What the tests let several processes do: `python tests/several.py FOLDER [OPTION=VALUE ...]`.

torchrun starts this file once for each process. It trains SFT and SFT+DPO in the run FOLDER/demo.
"""

import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from small_trainers import LORA, begin_run, make_sft, make_sft_dpo, pairs  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

from posttrain import device, processes  # noqa: E402
from posttrain.training import train  # noqa: E402

ODD = 45  # a number of pairs that no batch and no number of processes divides


# What happens in a training. It is no attribute of the callback, since a trainer is described by
# its callbacks' attributes.
EVENTS = {"mishap": "", "step": 0, "rank": 0, "stop": 0}


class Events(TrainerCallback):
    """Let something happen at the beginning of a step, and the last process come late after it."""

    def on_step_begin(self, args, state, control, **kwargs):
        step = state.global_step + 1
        if step == EVENTS["stop"]:
            raise RuntimeError("stopped")
        if step != EVENTS["step"] or processes.rank() != EVENTS["rank"]:
            return
        what = EVENTS["mishap"]
        print(f"MISHAP {time.time()}", file=sys.stderr, flush=True)
        if what == "raise":
            raise ValueError("this process has a mishap of its own")
        if what == "kill":
            os.kill(os.getpid(), 9)
        if what == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if what == "hang":
            time.sleep(1000)

    def on_step_end(self, args, state, control, **kwargs):
        if processes.rank() == processes.count() - 1:
            time.sleep(0.2)


def main(folder, mishap="", stop="", small="", dropout="0", data="", rows=ODD):
    """Train both models.

    Args:
        folder: the folder of the results.
        mishap: "what,step,rank" of a mishap in SFT.
        stop: a step of SFT before which all processes stop.
        small: whether a pass has as few pairs as possible.
        dropout: that of SFT's adapter.
        data: "other": the second process reads other pairs.
        rows: the number of pairs to train on.
    """
    if small:
        device.CPU_PASS = 1
    rows = int(rows) - (data == "other" and processes.rank() == 1)
    EVENTS["stop"] = int(stop or 0)
    if mishap:
        EVENTS["mishap"], step, rank = mishap.split(",")
        EVENTS.update(step=int(step), rank=int(rank))
    options = device.device_options("fp32")
    if os.environ.get("WITHOUT_SPLIT"):
        del options["accelerator_config"]
    run = begin_run(Path(folder))
    trainer = make_sft(
        lora={**LORA, "lora_dropout": float(dropout)},
        constructor={
            "train_dataset": pairs().for_sft("train", True).select(range(rows)),
            "eval_dataset": pairs().for_sft("validation", True),
            "callbacks": [Events()],
        },
        **options,
    )
    train(trainer, run, "SFT")
    trainer = make_sft_dpo(
        run,
        constructor={"train_dataset": pairs().for_dpo("train").select(range(rows))},
        **options,
    )
    train(trainer, run, "SFT+DPO")


def start(arguments):
    """Train, and end as the command line does."""
    processes.quiet_others()
    processes.state()
    try:
        main(arguments[0], **dict(option.split("=", 1) for option in arguments[1:]))
        processes.end()
    except (ValueError, RuntimeError, OSError) as error:
        processes.stop(error)


if __name__ == "__main__":
    import several  # so that its classes are not those of a notebook

    several.start(sys.argv[1:])
