"""Pipelines of diffusers: their UNet or transformer is adapted, and a conversion is read by the pipeline itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peft
import pytest
import torch

from subspace_cli import main
from subspace_tuning import SubspaceConfig
from subspace_tuning.errors import SubspaceError
from subspace_tuning.models.pipeline import checkpoint_of

diffusers = pytest.importorskip("diffusers")


def with_unet() -> Any:
    """A pipeline in the form of Stable Diffusion, with a few thousand parameters and without its text encoder."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    )
    return diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def with_transformer() -> Any:
    """A pipeline in the form of Stable Diffusion 3, as small."""
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=12,
        pos_embed_max_size=16,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4,),
        norm_num_groups=4,
        latent_channels=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )


class Kind(NamedTuple):
    """A pipeline, the modules of its part that are adapted, and what it is given."""

    make: Callable[[], Any]
    targets: list[str]
    given: Mapping[str, tuple[int, ...]]
    size: int


KINDS = {
    "unet": Kind(with_unet, ["to_q", "to_v", "to_out.0", "conv1"], {"prompt_embeds": (1, 5, 16)}, 16),
    "transformer": Kind(
        with_transformer,
        ["to_q", "add_k_proj", "ff.net.2"],
        {"prompt_embeds": (1, 5, 16), "pooled_prompt_embeds": (1, 12)},
        8,
    ),
}


def images(pipeline: Any, kind: Kind) -> np.ndarray:
    """Images of two steps, from the same noise and the same prompt."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    given = {name: torch.randn(shape, generator=generator) for name, shape in kind.given.items()}
    size = {"height": kind.size, "width": kind.size}
    return pipeline(
        **given, **size, num_inference_steps=2, guidance_scale=1.0, generator=generator, output_type="np"
    ).images


def adapted(part: str, folder: Path, **fields: Any) -> Any:
    """A pipeline with an adapter that changes its images, which is saved in the folder."""
    pipeline = KINDS[part].make()
    config = SubspaceConfig(r=2, target_modules=KINDS[part].targets, init_weights=False, **fields)
    peft.get_peft_model(getattr(pipeline, part), config).eval().save_pretrained(str(folder))
    return pipeline


def call(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["lora", "flora", "ssb"])
@pytest.mark.parametrize("part", KINDS)
def test_a_pipeline_reads_what_is_converted(part: str, method: str, tmp_path: Path) -> None:
    kind = KINDS[part]
    kind.make().save_pretrained(tmp_path / "pipeline")
    with_ours = images(adapted(part, tmp_path / "adapter", method=method), kind)
    base = ["--base", tmp_path / "pipeline", "--rank", "16"] if method != "lora" else []  # no matrix has a higher rank
    assert call("convert", tmp_path / "adapter", "--to", "diffusers-lora", "-o", tmp_path / "new", *base) == 0
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["pytorch_lora_weights.safetensors"]
    pipeline = kind.make()
    before = images(pipeline, kind)
    pipeline.load_lora_weights(str(tmp_path / "new"), weight_name="pytorch_lora_weights.safetensors")
    after = images(pipeline, kind)
    changed, wrong = (float(np.abs(one - with_ours).max()) for one in (before, after))
    assert changed > 1e-3 and wrong < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_a_saved_adapter_is_loaded_again(tmp_path: Path) -> None:
    for part, kind in KINDS.items():
        pipeline = adapted(part, tmp_path / part, formula="D1 @ W @ D2 + s * A @ B")
        other = kind.make()
        peft.PeftModel.from_pretrained(getattr(other, part), str(tmp_path / part))
        assert images(other, kind).tobytes() == images(pipeline, kind).tobytes()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", KINDS)
def test_diffusers_own_call_adds_an_adapter(part: str) -> None:
    kind = KINDS[part]
    pipeline = kind.make()
    before, model = images(pipeline, kind), getattr(pipeline, part)
    model.add_adapter(SubspaceConfig(method="ssb", target_modules=kind.targets))
    assert np.abs(images(pipeline, kind) - before).max() < 1e-4
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("subspace_params" in name for name in trained)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_an_unknown_part_needs_the_pipeline(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    adapted("unet", tmp_path / "adapter", method="lora")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"auto_mapping": None}), encoding="utf-8")
    words = ["convert", tmp_path / "adapter", "--to", "diffusers-lora", "-o", tmp_path / "new"]
    assert call(*words) == 2
    assert "unet or transformer: give the pipeline's folder with --base" in capfd.readouterr().err
    with_unet().save_pretrained(tmp_path / "pipeline")
    assert call(*words, "--base", tmp_path / "pipeline") == 0


def test_a_pipeline_is_read_matrix_by_matrix(tmp_path: Path) -> None:
    for part, kind in KINDS.items():
        pipeline = kind.make()
        pipeline.save_pretrained(tmp_path / part)
        checkpoint = checkpoint_of(str(tmp_path / part))
        for name, module in getattr(pipeline, part).named_modules():
            if isinstance(module, torch.nn.Linear):
                assert torch.equal(checkpoint.matrix(name), module.weight.T), name
                assert "lora" not in checkpoint


def test_a_pipeline_that_lacks_a_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SubspaceError, match=r"has no unet/config\.json and no transformer/config\.json"):
        checkpoint_of(str(tmp_path))
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "logging"}', encoding="utf-8")
    with pytest.raises(SubspaceError, match=r"unet has no diffusion_pytorch_model\.safetensors"):
        checkpoint_of(str(tmp_path))
