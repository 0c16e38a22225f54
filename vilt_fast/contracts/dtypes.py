"""Names of dtypes: Triton's for what kernels take, PyTorch's in the tables of configurations."""

import torch

FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_name(dtype: torch.dtype | str) -> str:
    """Name of a dtype in the tables: "float32", "float16", "bfloat16", ..."""
    return str(dtype).removeprefix("torch.")


def product_name(dtype: torch.dtype, precision: str) -> str:
    """Name of a product's dtype in the tables: "tf32" for fp32 on tensor cores, else `dtype_name`."""
    return "tf32" if precision == "tf32" else dtype_name(dtype)
