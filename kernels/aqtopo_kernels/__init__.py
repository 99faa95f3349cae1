"""aqtopo_kernels."""
