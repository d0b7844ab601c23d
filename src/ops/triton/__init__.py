"""DCNv3 as Triton kernels, compiled at run time, for NVIDIA and AMD GPUs."""
