"""What torch can compute on in this machine. It is imported late, since that takes seconds."""

import re


def is_accelerator_visible() -> bool:
    """Tell whether torch can use a GPU."""
    import torch  # takes seconds to import, which the command line's help need not wait for

    return torch.cuda.is_available()


def is_apple_gpu_visible() -> bool:
    """Tell whether torch could use the GPU of a Mac."""
    import torch

    return torch.backends.mps.is_available()


def require_kernels() -> None:
    """Refuse a GPU for which the installed torch has no kernels, such as a V100 under CUDA 13.

    Raises:
        RuntimeError: if that is so. The message says which torch to install.
    """
    import torch

    card = torch.cuda.get_device_capability()
    for name in torch.cuda.get_arch_list():  # such as sm_80, sm_90a or compute_90
        kernels = re.fullmatch(r"(sm|compute)_(\d+)(\d)\w?", name)
        if kernels is None:  # of another maker's card
            return
        kind, *numbers = kernels.groups()
        built_for = (int(numbers[0]), int(numbers[1]))
        # Machine code works within a generation of cards, and PTX is compiled for any later card.
        is_same_generation = kind == "sm" and built_for[0] == card[0]
        if built_for <= card and (is_same_generation or kind == "compute"):
            return
    version = torch.__version__.partition("+")[0]
    raise RuntimeError(
        f"The installed torch {torch.__version__} has no kernels for this GPU "
        f"({torch.cuda.get_device_name()}, compute capability {card[0]}.{card[1]}), only for "
        f"{', '.join(torch.cuda.get_arch_list())}. Builds for an older CUDA may have them: pip "
        f"install torch=={version} --index-url https://download.pytorch.org/whl/cu126 (see "
        "https://pytorch.org)."
    )
