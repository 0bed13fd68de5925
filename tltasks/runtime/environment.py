"""Variables of the environment that launchers and libraries read: what is supported, and what the recipe alone decides.

All that accelerate (1.15) reads was looked through; what is not named here changes no number of a run.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tltasks.errors import RecipeError

if TYPE_CHECKING:
    import torch

SUPPORTED = "`torchrun` and `accelerate launch --multi_gpu` do, or with `--use_fsdp --fsdp_version 2`"
_UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", "distributed_type: DEEPSPEED"),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", "distributed_type: MEGATRON_LM"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("a parallelism of tensors, contexts or sequences", "parallelism_config"),
}
"""By variable, what it asks for, and the key of accelerate's configuration file that sets it."""
_OF_FSDP = {
    "FSDP_VERSION": ({"2"}, "fsdp_version: 2", ""),
    "FSDP_OFFLOAD_PARAMS": ({"", "0", "false"}, "fsdp_offload_params: false", ""),
    # accelerate computes the layers again without their random state (1.15, utils/fsdp_utils.py, fsdp2_apply_ac):
    # gradients would be those of other dropout masks.
    "FSDP_ACTIVATION_CHECKPOINTING": (
        {"", "0", "false"},
        "fsdp_activation_checkpointing: false",
        ", and stages.N.gradient_checkpointing: true in the recipe, where that is meant",
    ),
    "FSDP_IGNORED_MODULES": ({"", "none"}, "no fsdp_ignored_modules", ""),  # their gradients would not be shared
    "FSDP_AUTO_WRAP_POLICY": (
        {"", "none", "transformer_based_wrap"},
        "fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP",
        "",
    ),
    "FSDP_STATE_DICT_TYPE": (
        {"", "none", "full_state_dict", "sharded_state_dict"},
        "fsdp_state_dict_type: FULL_STATE_DICT",
        "",
    ),
}
"""By variable, the values that are supported, what accelerate's `fsdp_config` should say instead, and what else."""
_DECIDED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        {"", "1", "auto"},
        "set stages.N.batch_size and micro_batch",
        "gradient_accumulation_steps",
    ),
    "ACCELERATE_GRADIENT_CLIPPING": ({"", "none", "auto"}, "set stages.N.max_grad_norm", "gradient_clipping"),
    "ACCELERATE_DYNAMO_BACKEND": ({"", "no"}, "set stages.N.compile: true", "dynamo_backend"),
    "ACCELERATE_FP8_BACKEND": ({"", "no"}, "set precision: bf16 for speed", "fp8_config"),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": ({"", "0"}, "set precision: bf16 for speed", ""),
    "DNNL_DEFAULT_FPMATH_MODE": ({"", "strict"}, "set precision: bf16 for speed", ""),
    "ONEDNN_DEFAULT_FPMATH_MODE": ({"", "strict"}, "set precision: bf16 for speed", ""),
}
"""By variable, the values that change nothing, the key that is meant, and accelerate's own that sets it."""
_TRUE = {"1", "true", "yes", "on", "y", "t"}
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables of the number of processes, of torch's launchers and of MPI's."""


def shares_states() -> bool:
    """Tell whether this process was launched to share weights, gradients and moments out by FSDP 2."""
    return _value("ACCELERATE_USE_FSDP") in _TRUE


def check_launch() -> None:
    """Raise RecipeError for a way to launch processes that is not supported."""
    for variable, (what, key) in _UNSUPPORTED.items():
        if _value(variable) in _TRUE:
            raise RecipeError(
                f"{variable} (accelerate's `{key}`): {what} is not supported. Launch without it, as {SUPPORTED}."
            )
    if shares_states():
        _check_fsdp()
    if _value("ACCELERATE_USE_SAGEMAKER") in _TRUE and _value("ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE") != "no":
        raise RecipeError(
            f"ACCELERATE_USE_SAGEMAKER: its own data parallelism is not supported. Launch as {SUPPORTED}."
        )
    if _value("MASTER_ADDR") and _value("ACCELERATE_USE_CPU") in _TRUE and not any(map(_value, _SIZES)):
        raise RecipeError(  # accelerate 1.15, utils/launch.py, prepare_simple_launcher_cmd_env
            "accelerate was asked for several processes on CPUs, of which it starts one alone without MPI. Start by "
            "`torchrun --nproc_per_node N`, or set num_processes: 1 (or unset MASTER_ADDR) for a run in one process."
        )
    _check_ranks()


def _check_fsdp() -> None:
    """Raise RecipeError for settings of accelerate's FSDP that would compute otherwise than the recipe says."""
    for variable, (harmless, key, more) in _OF_FSDP.items():
        if _value(variable) not in harmless:
            shown = f"{variable}={_value(variable)}" if _value(variable) else "FSDP 1"
            raise RecipeError(
                f"{shown} is not supported with ACCELERATE_USE_FSDP: set `{key}` in the fsdp_config of accelerate's "
                f"configuration file (or its flag){more}."
            )


def _check_ranks() -> None:
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

    for variable, (harmless, instead, key) in _DECIDED.items():
        if _value(variable) not in harmless:
            own = f" (accelerate's `{key}`)" if key else ""
            raise _conflict(variable, f"unset it{own}, and {instead}, where that is meant")
    asked = _value("ACCELERATE_MIXED_PRECISION")  # launchers say `no` where nobody said anything
    if asked not in {"", "no", precision}:
        raise _conflict(
            "ACCELERATE_MIXED_PRECISION",
            f"this run computes in {precision}. Set `precision` there, or unset it (accelerate's `mixed_precision`)",
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
