"""Which row of the configuration table the device at hand uses.

The kernels are compiled for what the driver reports; only the choice of block sizes goes by family.
"""

from triton import knobs
from triton.runtime import driver

WITHOUT_DEVICE = "gfx90a"
"""Whose blocks the interpreter runs with."""


def architecture() -> str:
    """The row: gfx90a, gfx942, sm_80 or sm_90.

    Raises:
        ValueError: the device has not got the matrix instructions that the kernels use.
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
        f"The Triton kernels are made for CDNA2 and later (gfx90a, gfx942) and for NVIDIA from sm_80 on, but "
        f"this device is {target.backend} {target.arch}; ask for the reference instead."
    )
