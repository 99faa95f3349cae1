"""Architecture of the current device: the row of the configuration table.

Kernels are compiled for the target that the driver reports; only the block sizes are chosen by family.
"""

from triton import knobs
from triton.runtime import driver

WITHOUT_DEVICE = "gfx90a"
"""Architecture whose block sizes the interpreter uses."""


def architecture() -> str:
    """Return the table row of the current device: gfx90a, gfx942, sm_80 or sm_90.

    Raises:
        ValueError: the device does not have the matrix instructions of the kernels.
    """
    if knobs.runtime.interpret:
        return WITHOUT_DEVICE
    target = driver.active.get_current_target()
    if target.backend == "cuda" and target.arch >= 80:
        return "sm_90" if target.arch >= 90 else "sm_80"
    if target.backend == "hip" and target.arch == "gfx90a":
        return "gfx90a"
    if target.backend == "hip" and target.arch.startswith(("gfx94", "gfx95")):
        return "gfx942"
    raise ValueError(
        f"The Triton kernels support CDNA2 and later (gfx90a, gfx942) and NVIDIA from sm_80 on, but this "
        f'device is {target.backend} {target.arch}; pass backend="reference".'
    )
