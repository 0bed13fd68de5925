"""Variables of the environment that launchers and libraries read: what is supported, and what the recipe alone decides.

All that accelerate (1.15) reads was looked through; what is not named here changes no number of a run.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tltasks.errors import RecipeError

if TYPE_CHECKING:
    import torch

SUPPORTED = "`accelerate launch --multi_gpu` and `torchrun` do, with the whole model on each device"
_UNSUPPORTED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism of tensors, contexts or sequences",
}
_DECIDED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ({"", "1", "auto"}, "set stages.N.batch_size and micro_batch"),
    "ACCELERATE_GRADIENT_CLIPPING": ({"", "none", "auto"}, "set stages.N.max_grad_norm"),
    "ACCELERATE_DYNAMO_BACKEND": ({"", "no"}, "set stages.N.compile: true"),
    "ACCELERATE_FP8_BACKEND": ({"", "no"}, "set precision: bf16 for speed"),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": ({"", "0"}, "set precision: bf16 for speed"),
    "DNNL_DEFAULT_FPMATH_MODE": ({"", "strict"}, "set precision: bf16 for speed"),
    "ONEDNN_DEFAULT_FPMATH_MODE": ({"", "strict"}, "set precision: bf16 for speed"),
}
"""By variable, the values that change nothing, and the key that is meant."""
_TRUE = {"1", "true", "yes", "on", "y", "t"}


def check_launch() -> None:
    """Raise RecipeError for a way to launch processes that is not supported."""
    for variable, what in _UNSUPPORTED.items():
        if _value(variable) in _TRUE:
            raise RecipeError(f"{variable}: {what} is not supported. Launch without it, as {SUPPORTED}.")
    if _value("ACCELERATE_USE_SAGEMAKER") in _TRUE and _value("ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE") != "no":
        raise RecipeError(
            f"ACCELERATE_USE_SAGEMAKER: its own data parallelism is not supported. Launch as {SUPPORTED}."
        )
    numbers = {name: _value(name) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    for name, value in numbers.items():
        if value and value != "-1" and not (value.isascii() and value.isdecimal()):
            raise RecipeError(f"{name}={value} in the environment is no number; start by a launcher, or unset it.")
    if numbers["WORLD_SIZE"] in {"", "1"} and numbers["LOCAL_RANK"] in {"", "-1"}:
        return
    wanted = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR")
    if missing := [name for name in wanted if _value(name) in {"", "-1"}]:
        there = ", ".join(f"{name}={_value(name)}" for name in wanted if name not in missing)
        raise RecipeError(
            f"{there} in the environment, as a launcher sets it, but no {', '.join(missing)}: the processes would wait "
            "for each other. Start by `accelerate launch` or `torchrun`, or unset these for a run in one process."
        )
    if int(numbers["RANK"]) >= int(numbers["WORLD_SIZE"]):
        raise RecipeError(
            f"RANK={numbers['RANK']} in the environment is beyond WORLD_SIZE={numbers['WORLD_SIZE']}; check the "
            "launcher."
        )


def check_settings(precision: str, device: torch.device) -> None:
    """Raise RecipeError for what would change a run's numbers beside its recipe, which says how it is computed."""
    import torch

    for variable, (harmless, instead) in _DECIDED.items():
        if _value(variable) not in harmless:
            raise _conflict(variable, f"unset it, and {instead}, where that is meant")
    asked = _value("ACCELERATE_MIXED_PRECISION")  # launchers say `no` where nobody said anything
    if asked not in {"", "no", precision}:
        raise _conflict(
            "ACCELERATE_MIXED_PRECISION", f"this run computes in {precision}. Set `precision` there, or unset it"
        )
    if device.type == "cuda" and _value("NVIDIA_TF32_OVERRIDE"):
        raise _conflict("NVIDIA_TF32_OVERRIDE", "unset it, and set precision: bf16 for speed")
    if device.type == "meta":
        raise RecipeError("the device meta holds no numbers; unset ACCELERATE_TORCH_DEVICE.")
    if torch.is_autocast_enabled(device.type):
        raise RecipeError("torch.autocast is on around this call; the recipe decides. Leave it, and set `precision`.")
    if torch.get_default_dtype() != torch.float32:
        raise RecipeError(f"torch's default dtype is {torch.get_default_dtype()}; tltasks computes as the recipe says.")
    if torch.get_float32_matmul_precision() != "highest":
        raise RecipeError(
            f"torch's precision of fp32 products is {torch.get_float32_matmul_precision()!r}; the recipe decides. Call "
            "torch.set_float32_matmul_precision('highest'), and set precision: bf16 for speed."
        )


def _conflict(variable: str, do: str) -> RecipeError:
    return RecipeError(f"{variable}={os.environ[variable]} in the environment: the recipe decides this; {do}.")


def _value(variable: str) -> str:
    return os.environ.get(variable, "").strip().lower()
