"""What is trained, for each way to adapt; and adapters merged against adapters applied."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from tests.tiny.images import CONFIGS, SIZE
from tests.tiny.pairs import crossed
from tltasks.config.adaptation import Adapt
from tltasks.config.stage import STAGES
from tltasks.config.tasks.image import ImageStage
from tltasks.errors import CheckpointError, RecipeError
from tltasks.models import adapters
from tltasks.models.adapters import (
    _freeze,
    adapt,
    count_parameters,
    find_head,
    find_lora_targets,
    freeze_unused,
    merged,
    relabel,
    set_training_mode,
)
from tltasks.models.trial import Trial

# peft 0.21 asks transformers 5.24 by an old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def build(name: str = "vit", seed: int = 0) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    config = CONFIGS[name]()
    relabel(config, [f"class {i}" for i in range(5)])
    classes: dict[str, Any] = {"deit": transformers.DeiTForImageClassification}
    model: transformers.PreTrainedModel = classes.get(name, transformers.AutoModelForImageClassification.from_config)(
        config
    )
    return model.eval()


def adapted(model: transformers.PreTrainedModel, how: Any, row: str = "transfer", **keys: Any) -> nn.Module:
    stage = ImageStage.model_validate({"stage": row, "learning_rate": 1e-3, "epochs": 1.0, "adapt": how, **keys})
    head = find_head(model)
    targets = find_lora_targets(model, head=head)
    return adapt(
        model,
        stage.adapt,
        freeze=stage.freeze,
        new_head=STAGES[row].head == "new",  # type: ignore[index]
        head=head,
        targets=targets,
        display_name="ada/base",
        revision="v1",
    )


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


# ------------------------------------------------------------------------------------------ full and head


def test_full_trains_all_and_head_the_head() -> None:
    assert trained(adapted(build(), "full")) == {name for name, _ in build().named_parameters()}
    assert trained(adapted(build(), "head")) == {"classifier.weight", "classifier.bias"}


def test_freezing_by_module_and_by_wildcard() -> None:
    model = adapted(build(), "full", freeze=["vit.embeddings", "vit.layers.0*", "*.bias"])
    frozen = {name for name, _ in model.named_parameters()} - trained(model)
    assert frozen == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("vit.embeddings.", "vit.layers.0.")) or name.endswith(".bias")
    }
    assert trained(model)


def test_freezing_nothing_or_all_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"freeze: no weight matches `vti\*`. Modules: .*vit.embeddings"):
        adapted(build(), "full", freeze=["vti*"])
    with pytest.raises(RecipeError, match=r"leaves no weight to train"):
        adapted(build(), "full", freeze=["*"])


def test_a_head_that_is_not_there_is_no_head_to_train() -> None:
    """As of models whose head is their vocabulary, or texts."""
    stage = ImageStage.model_validate({"stage": "finetune", "learning_rate": 1e-3, "epochs": 1.0, "adapt": "head"})
    kept: dict[str, Any] = {"new_head": False, "head": [], "targets": [], "display_name": "a/b", "revision": "main"}
    with pytest.raises(RecipeError, match=r"^adapt\.head: ViTForImageClassification has no head apart from"):
        adapt(build(), stage.adapt, **kept)


# ----------------------------------------------------------------------------------------------- adapters

METHODS: dict[str, Any] = {
    "lora": {"lora": {"rank": 4}},
    "rslora": {"lora": {"rank": 4, "alpha": 3.0, "rslora": True}},
    "dora": {"dora": {"rank": 2}},
    "gaussian": {"lora": {"rank": 4, "init": "gaussian"}},
    "pissa": {"lora": {"rank": 4, "init": "pissa"}},
    "olora": {"lora": {"rank": 4, "init": "olora"}},
    "orthogonal": {"lora": {"rank": 4, "init": "orthogonal"}},
    "dora-pissa": {"dora": {"rank": 2, "init": "pissa"}},
    "ia3": {"ia3": {}},
    "loha": {"peft": {"type": "loha", "r": 2}},
}


def shaken(model: nn.Module) -> nn.Module:
    """Adapters start where they change nothing; move them away from there."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, p in model.named_parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize(("method", "architecture"), crossed(METHODS, ["vit", "resnet", "timm-vit"]))
def test_merged_is_the_adapter(method: str, architecture: str) -> None:
    plain = build(architecture)
    pixels = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    if architecture == "resnet" and method in {"pissa", "olora", "orthogonal", "dora-pissa"}:
        with pytest.raises(
            CheckpointError, match=r"init: only linear layers can start so, and ResNet.*has convolutions"
        ):
            adapted(plain, METHODS[method])
        return
    with torch.inference_mode():
        before = plain(pixel_values=pixels).logits
        model = shaken(adapted(plain, METHODS[method]))
        expected = model(pixel_values=pixels).logits
        whole = merged(model)
        found = whole(pixel_values=pixels).logits
        again = model(pixel_values=pixels).logits
    assert isinstance(whole, transformers.PreTrainedModel)
    assert not isinstance(whole, peft.PeftModel)
    scale = float(expected.abs().max())
    assert float((before - expected).abs().max()) > 1e-2 * scale
    torch.testing.assert_close(found, expected, atol=1e-4 * scale, rtol=1e-4)
    assert torch.equal(again, expected), "the adapter itself stays as it was"
    assert whole.state_dict().keys() == build(architecture).state_dict().keys()


OTHERS: dict[str, dict[str, Any]] = {
    "adalora": {"adalora": {"target_r": 2, "init_r": 4}},
    **{
        kind: {"peft": {"type": kind, **keys}}
        for kind, keys in {
            "lokr": {"r": 4},
            "oft": {"oft_block_size": 4},
            "vera": {"r": 4},
            "hra": {"r": 4},
            "fourierft": {"n_frequency": 16},
            "randlora": {"r": 4},
            "miss": {"r": 4},
            "ln_tuning": {"target_modules": ["layernorm"]},
        }.items()
    },
}


@pytest.mark.parametrize("method", OTHERS)
def test_merging_leaves_weights_that_it_shares_as_they_were(method: str) -> None:
    model = shaken(adapted(build(), OTHERS[method]))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert [name for name, tensor in before.items() if not torch.equal(tensor, after[name])] == []


def t5() -> tuple[transformers.PreTrainedModel, list[str], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ids = torch.arange(3, 17).view(2, 7)
    return transformers.T5ForConditionalGeneration(config), ["lm_head"], {"input_ids": ids, "decoder_input_ids": ids}


def whisper() -> tuple[transformers.PreTrainedModel, list[str], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    sizes = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 32))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 0, "max_source_positions": 50}
    config = transformers.WhisperConfig(vocab_size=40, d_model=16, num_mel_bins=16, **sizes, **heads)
    sound = torch.randn(2, 16, 100)
    inputs = {"input_features": sound, "decoder_input_ids": torch.arange(3, 11).view(2, 4)}
    return transformers.WhisperForConditionalGeneration(config), ["proj_out"], inputs


@pytest.mark.parametrize(("method", "make"), crossed(METHODS, [t5, whisper]))
def test_adapters_of_text_and_speech_models_merge(method: str, make: Any) -> None:
    plain, head, inputs = make()
    stage = ImageStage.model_validate(
        {"stage": "finetune", "learning_rate": 1e-3, "epochs": 1.0, "adapt": METHODS[method]}
    )
    targets = find_lora_targets(plain, head=head)
    with torch.inference_mode():
        before = plain.eval()(**inputs).logits
        made = adapt(
            plain, stage.adapt, new_head=False, head=[], targets=targets, display_name="ada/base", revision="v1"
        ).eval()
        torch.testing.assert_close(made(**inputs).logits, before, msg="training starts at the checkpoint")
        expected = shaken(made)(**inputs).logits
        found = merged(made)(**inputs).logits
    scale = float(expected.abs().max())
    assert float((before - expected).abs().max()) > 1e-3 * scale
    torch.testing.assert_close(found, expected, atol=1e-4 * scale, rtol=1e-4)


def test_biases_alone_and_a_new_head() -> None:
    model = adapted(build(), "bitfit")
    biases = {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    assert len(biases) > 10
    assert trained(model) == biases | {"classifier.weight"}
    assert trained(adapted(build(), "bitfit", "finetune")) == biases
    plain, _, _ = t5()
    stage = ImageStage.model_validate({"stage": "finetune", "learning_rate": 1e-3, "epochs": 1.0, "adapt": "bitfit"})
    with pytest.raises(RecipeError, match="T5ForConditionalGeneration has no biases"):
        adapt(plain, stage.adapt, new_head=False, head=[], targets=[], display_name="", revision="")


@pytest.mark.parametrize("init", ["pissa", "olora", "orthogonal"])
def test_an_adapter_that_takes_from_the_weights_does_not_stand_alone(init: str) -> None:
    keys = {"stage": "transfer", "learning_rate": 1e-3, "epochs": 1.0}
    assert not ImageStage.model_validate({**keys, "adapt": {"lora": {"init": init}}}).adapt.stands_alone
    assert ImageStage.model_validate({**keys, "adapt": {"lora": {"init": "gaussian"}}}).adapt.stands_alone
    assert ImageStage.model_validate({**keys, "adapt": "dora"}).adapt.stands_alone


@pytest.mark.parametrize(
    ("keys", "error", "said"),
    [
        ({"type": "ADALORA", "total_step": 9}, RecipeError, "ADALORA has a key of its own"),
        ({"type": "prompt_tuning"}, RecipeError, "PROMPT_TUNING has a key of its own"),
        ({"type": "XLORA"}, RecipeError, "combines adapters"),
        ({"type": "LILY", "r": 2}, CheckpointError, r"LILY cannot be merged into the weights of ViT.*; use lora"),
    ],
)
def test_methods_that_could_not_be_saved_are_refused(keys: dict[str, Any], error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        adapted(build(), {"peft": keys})


@pytest.mark.parametrize("how", ["qlora", {"qlora": {"rank": 4}}])
def test_qlora_is_refused_by_name(how: Any) -> None:
    with pytest.raises(ValueError, match="`adapt: lora` with `base_dtype: nf4`"):
        adapted(build(), how)


def test_a_plain_model_is_merged_already() -> None:
    model = build()
    assert merged(model) is model


def test_a_new_head_is_trained_and_a_kept_one_is_not() -> None:
    new, kept = adapted(build(), METHODS["lora"]), adapted(build(), METHODS["lora"], "finetune")
    assert {n for n in trained(new) if "lora_" not in n} == {
        "base_model.model.classifier.modules_to_save.default.weight",
        "base_model.model.classifier.modules_to_save.default.bias",
    }
    assert trained(kept)
    assert all("lora_" in name for name in trained(kept))


def test_the_base_that_an_adapter_names_is_the_recipes() -> None:
    model = adapted(build(), {"lora": {"rank": 3, "dropout": 0.1}})
    assert isinstance(model, peft.PeftModel)
    config = model.peft_config["default"]
    assert (config.base_model_name_or_path, config.revision) == ("ada/base", "v1")
    assert (config.r, config.lora_alpha, config.lora_dropout, config.task_type) == (3, 6, 0.1, None)


def test_targets_by_name_and_further_keys() -> None:
    model = adapted(build(), {"lora": {"targets": ["q_proj"]}}, "finetune")
    assert len(trained(model)) == 4
    assert all("q_proj" in name for name in trained(model))
    model = adapted(build(), {"peft": {"type": "LOHA", "r": 2, "target_modules": ["v_proj"]}}, "finetune")
    assert trained(model)
    assert all("v_proj" in name for name in trained(model))


@pytest.mark.parametrize(
    ("keys", "error", "said"),
    [
        ({"type": "LOHAA"}, RecipeError, r"adapt.peft.type: PEFT has no LOHAA; did you mean `LOHA`\? It has: .*VERA"),
        ({"type": "zzzzz"}, RecipeError, r"has no zzzzz. It has: "),
        (
            {"type": "LOHA", "rank_dropuot": 0.1},
            RecipeError,
            r"LoHaConfig has no such key; did you mean `rank_dropout`",
        ),
        (
            {"type": "LOHA", "r": 2, "target_modules": ["no_such"]},
            CheckpointError,
            r"adapt.peft: PEFT cannot adapt ViT",
        ),
        (
            {"type": "LORA", "modules_to_save": []},
            RecipeError,
            r"peft.modules_to_save: .* new head .* leave the key out",
        ),
        ({"type": "LORA", "inference_mode": True}, RecipeError, r"adapt.peft.inference_mode: .* leave the key out"),
        ({"type": "LORA", "layer_replication": [[0, 1]]}, RecipeError, r"peft.layer_replication: .* leave the key out"),
        ({"type": "OFT", "r": 3, "oft_block_size": 5}, (RecipeError, CheckpointError), r"adapt.peft: "),
    ],
)
def test_mistakes_in_a_method_of_peft(keys: dict[str, Any], error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        adapted(build(), {"peft": keys})


def test_targets_that_the_model_lacks() -> None:
    with pytest.raises(CheckpointError, match=r"adapt.lora: PEFT cannot adapt ViTForImageClassification"):
        adapted(build(), {"lora": {"targets": ["no_such_module"]}})


# ------------------------------------------------------------------------------ looking at the model


class TwoLayerHead(transformers.ViTPreTrainedModel):
    """A head of two layers, of which only the last has to do with the labels, and its scale."""

    def __init__(self, config: transformers.ViTConfig) -> None:
        super().__init__(config)
        self.vit = transformers.ViTModel(config)
        self.head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, config.num_labels))
        self.scale = nn.Linear(config.num_labels, config.num_labels, bias=False)
        self.post_init()


def test_a_head_of_several_layers() -> None:
    config = CONFIGS["vit"]()
    relabel(config, list("abc"))
    assert find_head(TwoLayerHead(config)) == ["head.2", "scale"]


def test_a_head_is_looked_for_once_by_architecture() -> None:
    adapters._sizes.cache_clear()
    model = build()
    assert find_head(model) == find_head(build()) == ["classifier"]
    assert adapters._sizes.cache_info().misses == 1
    relabel(model.config, list("abcde"))
    assert find_head(model) == ["classifier"]
    assert adapters._sizes.cache_info().misses == 2


def test_finding_a_head_leaves_the_model_as_it_was() -> None:
    model = build()
    before = dict(model.config.id2label), model.config.num_labels, torch.get_rng_state()
    assert find_head(model) == ["classifier"]
    assert (dict(model.config.id2label), model.config.num_labels) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_targets_of_a_convolutional_net_leave_out_stem_depthwise_and_head() -> None:
    model = build("timm-efficientnet")
    modules = dict(model.named_modules())
    targets = find_lora_targets(model, head=find_head(model))
    assert len(targets) > 20
    assert all(isinstance(modules[t], nn.Conv2d | nn.Linear) for t in targets)
    assert all(getattr(modules[t], "groups", 1) == 1 for t in targets)
    assert "timm_model.conv_stem" not in targets
    assert "timm_model.classifier" not in targets


def test_linear_layers_of_gpt2_are_found() -> None:
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20, n_positions=8)
    targets = find_lora_targets(transformers.GPT2Model(config), head=[])
    assert targets == ["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.0.mlp.c_proj"]


def test_weights_without_gradient_are_frozen_but_never_adapters() -> None:
    model = build()
    freeze_unused(model, {"vit.embeddings.cls_token"})
    assert {n for n, _ in model.named_parameters()} - trained(model) == {"vit.embeddings.cls_token"}
    for how, part in ((METHODS["lora"], "lora_B"), ({"peft": {"type": "loha", "r": 2}}, "hada_w2_b")):
        wrapped = adapted(build(), how)
        unused = next(name for name in trained(wrapped) if part in name)
        with pytest.raises(CheckpointError, match=rf"1 adapter weights receive no gradient, e.g. .*{part}"):
            freeze_unused(wrapped, {unused})


def test_a_loss_that_reaches_nothing_is_an_error() -> None:
    model = adapted(build(), "bitfit", "finetune")
    biases = trained(model)
    with pytest.raises(CheckpointError, match=rf"none of the {len(biases)} weights that would be trained.*adapt: lora"):
        freeze_unused(model, biases)


def test_biases_of_routers_alone_are_none() -> None:
    model = torch.nn.Module()
    model.register_parameter("e_score_correction_bias", torch.nn.Parameter(torch.zeros(2)))
    with pytest.raises(RecipeError, match=r"adapt\.bitfit: Module has no biases to train"):
        _freeze(model, "bitfit", [], whole=[])  # type: ignore[arg-type]


def test_tuning_of_norms_reaches_norms() -> None:
    wrapped = adapted(build(), {"peft": {"type": "LN_TUNING"}})
    reached = {name.rpartition(".")[2] for name in wrapped.targeted_module_names}
    assert reached == {"layernorm_before", "layernorm_after", "layernorm"}


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("how", ["full", METHODS["lora"]])
def test_batch_normalisation_is_frozen_on_request(frozen: bool, how: Any) -> None:
    model = adapted(build("resnet"), how)
    statistics = {n: b.clone() for n, b in model.named_buffers() if "running" in n}
    assert len(statistics) >= 8
    set_training_mode(model, frozen_batch_norm=frozen)
    assert model.training
    model(pixel_values=torch.randn(4, 3, SIZE, SIZE) + 3)
    same = {n: torch.equal(b, statistics[n]) for n, b in model.named_buffers() if n in statistics}
    assert set(same.values()) == {frozen}


def test_counts_do_not_count_a_replaced_head_twice() -> None:
    model = build()
    total = sum(p.numel() for p in model.parameters())
    head = 32 * 5 + 5
    assert count_parameters(adapted(model, "head")) == (head, total)
    wrapped = adapted(build(), {"lora": {"rank": 2, "targets": ["q_proj"]}})
    assert count_parameters(wrapped) == (head + 2 * 2 * 2 * 32, total + 2 * 2 * 2 * 32)


def test_labels_of_timm_are_renamed_too() -> None:
    for name in ("vit", "timm-vit"):
        config = CONFIGS[name]()
        relabel(config, ["x", "y"])
        saved = type(config).from_dict(config.to_dict())
        assert list(saved.id2label.values()) == ["x", "y"], name
        assert saved.label2id == {"x": 0, "y": 1}
        assert saved.num_labels == 2


_SMALL = {"vocab_size": 20, "d_model": 16, "num_layers": 1}
TIED: dict[str, tuple[Any, dict[str, int]]] = {
    "luke": (  # its words are not tied, its entities are
        transformers.LukeForMaskedLM,
        {"vocab_size": 20, "entity_vocab_size": 4, "hidden_size": 24, "num_hidden_layers": 1},
    ),
    "bart": (transformers.BartForConditionalGeneration, {**_SMALL, "encoder_layers": 1, "decoder_layers": 1}),
    "t5": (transformers.T5ForConditionalGeneration, {**_SMALL, "d_ff": 16}),
}


@pytest.mark.parametrize("own_head", [False, True])
@pytest.mark.parametrize("name", TIED)
def test_a_merged_model_is_loaded_with_the_weights_that_it_ties(name: str, own_head: bool, tmp_path: Path) -> None:
    """Untied by its configuration, LUKE would be loaded with a random head."""
    architecture, sizes = TIED[name]
    model = architecture(transformers.AutoConfig.for_model(name, **sizes))
    if own_head:
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(torch.randn(head.weight.shape))
    linear = [
        n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not model.get_output_embeddings()
    ]
    whole = merged(peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=linear[:1])))
    whole.save_pretrained(tmp_path)
    again, info = architecture.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == set()
    assert torch.equal(again.get_output_embeddings().weight, whole.get_output_embeddings().weight)


MIXTURE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "head_dim": 8,
}


def test_layers_beside_experts_are_adapted_by_methods_that_peft_moves_nowhere() -> None:
    model = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**MIXTURE))
    ids = torch.arange(5, 25).view(2, 10)
    config = model.config
    wrapped = adapt(
        model,
        Adapt.model_validate({"ia3": {}}),
        new_head=False,
        head=["lm_head"],
        targets=find_lora_targets(model, head=["lm_head"]),
        display_name="base",
        revision="main",
        trial=Trial(lambda: lambda it: it(input_ids=ids, use_cache=False).logits),
    )
    reached = {name.partition(".ia3_")[0] for name, p in wrapped.named_parameters() if p.requires_grad}
    assert {f"base_model.model.model.layers.{it}.gate_proj" for it in ("0.mlp", "1.mlp.shared_experts")} <= reached
    assert model.config is config, "which is hidden from PEFT while layers are tried"


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_experts_that_are_one_weight_are_adapted_where_peft_can(dropout: float) -> None:
    """PEFT takes `gate_proj` of the layers beside the experts for theirs, and has no dropout for these."""
    torch.manual_seed(0)
    model = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**MIXTURE))
    ids = torch.arange(5, 25).view(2, 10)

    def run(model: Any) -> Tensor:
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
        return logits

    targets = find_lora_targets(model, head=["lm_head"])
    assert "model.layers.0.mlp.gate_proj" in targets
    wrapped = adapt(
        model,
        Adapt.model_validate({"lora": {"rank": 2, "dropout": dropout}}),
        new_head=False,
        head=["lm_head"],
        targets=targets,
        display_name="base",
        revision="main",
        trial=Trial(lambda: run),
    ).eval()
    trained = {name.partition(".lora_")[0] for name, p in wrapped.named_parameters() if p.requires_grad}
    reached = {name.rpartition(".")[2] for name in trained}
    assert {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"} <= reached
    assert any("experts" in name for name in trained) == (dropout == 0)
    with torch.no_grad():
        before = run(wrapped)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
        expected = run(wrapped)
        assert not torch.allclose(before, expected, atol=1e-2)
        assert torch.allclose(run(merged(wrapped)), expected, atol=1e-4)


def test_parts_that_are_not_run_count_for_nothing() -> None:
    """Of a model of texts and images: these have no gradient, and no adapter."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": 60, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 8}
    vision = {**size, "hidden_size": 64, "intermediate_size": 256, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = transformers.Gemma3ForConditionalGeneration(config)
    wrapped = adapt(
        model,
        Adapt.model_validate({"lora": {"rank": 2}}),
        new_head=False,
        head=["lm_head"],
        targets=find_lora_targets(model, head=["lm_head"]),
        display_name="base",
        revision="main",
        trial=Trial(lambda: lambda model: model(input_ids=torch.arange(5, 17).view(2, 6), use_cache=False).logits),
    )
    reached = wrapped.targeted_module_names
    assert len(reached) == 14
    assert all("language_model" in name for name in reached)
