"""Emulator of compiled AMD kernels (gfx90a, gfx942) on the CPU.

It executes the amdgcn text that Triton emits, one wave of 64 lanes at a time, on ordinary CPU tensors:

    with emulating("gfx90a") as device:
        out, lse = launch.forward(q, k, v, elevation, alpha, order, scale)

`EmulationError` names the line of the text if the kernel

* contains an instruction that the emulator does not know, or jumps behind its end;
* uses a register that was never written, or whose load it did not wait for (`s_waitcnt`);
* issues an instruction before the wait states that the hardware needs have passed (`hazards.py`);
* loads or stores outside the tensors that were passed, or without alignment;
* reads LDS out of bounds or where nothing was written, or races with another wave between two barriers;
* leaves some waves of a program at a barrier that the others do not reach.

What it cannot tell:

* time, caches, bank conflicts and the order in which real waves run;
* races between programs in global memory;
* rounding of transcendentals and of sums in the matrix unit: exp2, log2 and reciprocals are rounded to
  nearest here (the hardware guarantees 1 ulp), and a matrix instruction adds its products in float64;
* faults of the assembler: it reads the text, not the ELF file.

Files: `assembly.py` (parser), `operands.py` (registers), `numerics.py` (float32 arithmetic), `scalar.py`,
`vector.py` and `rules.py` (what they compute), `lanes.py` (DPP, SDWA, packed), `matrix.py`, `transfer.py`
(loads, stores and LDS instructions), `memory.py` (tensors and LDS), `hazards.py`, `program.py` (instructions
to operations), `wave.py`, `workgroup.py` (launch), `device.py` (driver for Triton), `mutants.py` (faults put
into the text, as the test of the checks), `snippets.py` (kernels of a few lines for tests).
"""
