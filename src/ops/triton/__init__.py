"""DCNv3 as Triton kernels, compiled at run time for the GPU at hand: no build, NVIDIA and AMD."""
