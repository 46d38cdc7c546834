"""The suite of kernels in Triton: one source for NVIDIA and Ascend, and the seam's ops on top of them."""
