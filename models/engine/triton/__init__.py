"""Triton kernels for CUDA GPUs: nothing to build, compiled in seconds at first use, the same bits in every run.

Each operation is a file of the operators of torch that launch its kernels, forward and backward, and files of these.
Only the latter import triton, at the first launch. What surrounds launches runs on fake tensors as well, without triton
and kernels: `utils.profiling` counts what it allocates. Kernels take float32, bfloat16 and float16, compute
and keep their states in float32, and save their inputs and a state every some frames: backward recomputes the rest.

How they are launched depends on the sizes of the problem and not on measurements made at first use: such tuning is what
users of other Triton kernels wait for, minutes for each new shape. No sum depends on the order in which programs run.

With TRITON_INTERPRET=1 they run in Triton's interpreter, on CPU tensors: slowly, but as they are.
"""
