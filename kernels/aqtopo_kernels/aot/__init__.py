"""Ahead-of-time compilation of the kernels without a GPU, and analysis of the machine code.

`python -m aqtopo_kernels.aot` runs the launch functions on meta tensors with a stand-in for the GPU driver.
It compiles the same kernels as a node, so it can fill Triton's cache before a job starts.
"""
