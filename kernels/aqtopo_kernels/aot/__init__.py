"""Ahead-of-time compilation of the kernels without a GPU, and analysis of the machine code.

`python -m aqtopo_kernels.aot` runs the launch functions on meta tensors with a stand-in for the GPU driver.
It compiles exactly the kernels that a node compiles, so it can fill Triton's cache beforehand.
"""
