"""Compiles the kernels for GPUs that are not there, and reads what came out.

`python -m aqtopo_kernels.aot` runs the ordinary launch functions on tensors without memory, under a stand-in
for the driver: what is compiled is exactly what a node would compile, so its cache can be filled beforehand.
"""
