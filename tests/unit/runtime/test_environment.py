"""What the environment may say, and what the recipe alone decides."""

import pytest
import torch

from tltasks.errors import RecipeError
from tltasks.runtime.environment import check_launch, check_settings

LAUNCHED = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LAUNCHED, "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)


def set_to(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"RANK": "1"},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"LOCAL_RANK": "-1"},
        LAUNCHED,
        {"ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_DEEPSPEED": ""},
        {"ACCELERATE_USE_SAGEMAKER": "true", "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE": "NO"},
        {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "PMI_SIZE": "2"},
        {"ACCELERATE_USE_CPU": "False", "MASTER_ADDR": "127.0.0.1"},
    ],
)
def test_launches_that_are_supported(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    set_to(monkeypatch, values)
    check_launch()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP 1 is not supported.*set `fsdp_version: 2`"),
        ({"ACCELERATE_USE_FSDP": "1", "FSDP_VERSION": "1"}, "FSDP_VERSION=1 is not supported.*`fsdp_version: 2`"),
        ({**FSDP, "FSDP_OFFLOAD_PARAMS": "true"}, "set `fsdp_offload_params: false` in the fsdp_config"),
        (
            {**FSDP, "FSDP_ACTIVATION_CHECKPOINTING": "true"},
            "activation_checkpointing: false`.*gradient_checkpointing: true in the recipe",
        ),
        ({**FSDP, "FSDP_IGNORED_MODULES": "head"}, "set `no fsdp_ignored_modules`"),
        ({**FSDP, "FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}, "set `fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP`"),
        ({**FSDP, "FSDP_STATE_DICT_TYPE": "LOCAL_STATE_DICT"}, "set `fsdp_state_dict_type: FULL_STATE_DICT`"),
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, "several processes on CPUs.*num_processes: 1"),
        ({"ACCELERATE_USE_DEEPSPEED": "TRUE"}, "`distributed_type: DEEPSPEED`.*DeepSpeed is not supported"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is not supported"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "parallelism of tensors"),
        ({"ACCELERATE_USE_SAGEMAKER": "true"}, "its own data parallelism"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 in the environment.*but no RANK, LOCAL_RANK, MASTER_ADDR"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0 in the environment.*but no WORLD_SIZE, RANK, MASTER_ADDR"),
        ({**LAUNCHED, "LOCAL_RANK": ""}, "but no LOCAL_RANK"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two in the environment is no number"),
        ({**LAUNCHED, "RANK": "٣"}, "is no number"),
        ({**LAUNCHED, "RANK": "7"}, "RANK=7 in the environment is beyond WORLD_SIZE=2"),
    ],
)
def test_launches_that_are_not(monkeypatch: pytest.MonkeyPatch, values: dict[str, str], said: str) -> None:
    set_to(monkeypatch, values)
    with pytest.raises(RecipeError, match=said):
        check_launch()


@pytest.mark.parametrize(
    ("values", "precision", "device"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}, "bf16", CPU),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "bf16", CPU),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}, "fp32", CPU),
        ({"NVIDIA_TF32_OVERRIDE": "0"}, "fp32", CPU),
        ({"DNNL_DEFAULT_FPMATH_MODE": "STRICT"}, "fp32", CPU),
    ],
)
def test_settings_that_change_nothing(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], precision: str, device: torch.device
) -> None:
    set_to(monkeypatch, values)
    check_settings(precision, device)


@pytest.mark.parametrize(
    ("values", "device", "said"),
    [
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, CPU, "STEPS=4.*the recipe decides this.*batch_size"),
        ({"ACCELERATE_GRADIENT_CLIPPING": "1.0"}, CPU, "max_grad_norm"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, CPU, "accelerate's `dynamo_backend`.*compile: true"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, CPU, "computes in fp32. Set `precision` there, or.*`mixed_precision`"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, CPU, "fp8 in the environment"),
        ({"NVIDIA_TF32_OVERRIDE": "1"}, GPU, "NVIDIA_TF32_OVERRIDE=1"),
        ({"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}, CPU, "precision: bf16"),
        ({"DNNL_DEFAULT_FPMATH_MODE": "BF16"}, CPU, "DNNL_DEFAULT_FPMATH_MODE=BF16"),
        ({"ACCELERATE_FP8_BACKEND": "TE"}, CPU, "ACCELERATE_FP8_BACKEND=TE in the environment.*precision: bf16"),
        ({"ACCELERATE_TORCH_DEVICE": "meta"}, torch.device("meta"), "the device meta holds no numbers"),
        ({"ONEDNN_DEFAULT_FPMATH_MODE": "ANY"}, CPU, "ONEDNN_DEFAULT_FPMATH_MODE=ANY"),
    ],
)
def test_settings_that_would_change_the_numbers(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], device: torch.device, said: str
) -> None:
    set_to(monkeypatch, values)
    with pytest.raises(RecipeError, match=said):
        check_settings("fp32", device)


def test_defaults_of_torch_that_would_change_the_numbers() -> None:
    try:
        torch.set_default_dtype(torch.bfloat16)
        with pytest.raises(RecipeError, match=r"default dtype is torch\.bfloat16"):
            check_settings("fp32", CPU)
    finally:
        torch.set_default_dtype(torch.float32)
    try:
        torch.set_float32_matmul_precision("medium")
        with pytest.raises(RecipeError, match="products is 'medium'"):
            check_settings("fp32", CPU)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_autocast_around_a_run_is_refused() -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RecipeError, match=r"torch\.autocast is on"):
        check_settings("fp32", CPU)
    check_settings("fp32", CPU)
