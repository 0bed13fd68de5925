#!/usr/bin/env bash
# One would guess: LoRA with `target_modules` that are whole names of layers adapts these layers.
# peft 0.21.2 with transformers 5.24.0: of mixtures of experts (DeepSeek-V3, Qwen3-MoE, GLM-4-MoE, OLMoE and twenty others) every name
# that ends in `gate_proj`, `up_proj` or `down_proj` is taken for that of an expert of transformers 4, and the experts' weights are
# adapted in its place (utils/transformers_weight_conversion.py). The dense first layer, named here, gets no adapter, and no word is
# said; a recipe that names all linear layers leaves out the dense and the shared ones.
# Seen: "asked for: model.layers.0.mlp.down_proj, adapted: model.layers.1.mlp.experts".
# So look at what has an adapter before training.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'transformers==5.24.0' 'torch==2.14.1' 'peft==0.21.2' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/python" - 2>/dev/null <<'PY' | tee "$folder/seen"
import peft
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

config = DeepseekV3Config(
    vocab_size=60, hidden_size=32, intermediate_size=48, moe_intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, first_k_dense_replace=1, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
    kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16,
)
asked = "model.layers.0.mlp.down_proj"
model = peft.get_peft_model(DeepseekV3ForCausalLM(config), peft.LoraConfig(target_modules=[asked]))
adapted = {name.partition(".lora_")[0].removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad}
print(f"asked for: {asked}, adapted: {', '.join(sorted(adapted))}")
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: PEFT adapts other layers of mixtures now"; exit 1; }
asked for: model.layers.0.mlp.down_proj, adapted: model.layers.1.mlp.experts
SEEN
