"""A process in which Triton interprets the kernels of src.ops.fused; see triton_interpreter.py."""

import fused_cases
import triton_interpreter

if __name__ == "__main__":
    fused_cases.use_interpreter()
    triton_interpreter.main(vars(fused_cases))
