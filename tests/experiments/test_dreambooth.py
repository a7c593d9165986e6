"""The example of subject-driven generation, on a tiny pipeline with drawn pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers

from subspace_tuning.errors import SubspaceError

pytest.importorskip("diffusers")
from ..scripts import module_of
from .test_diffusion import with_unet

SCRIPT = Path(__file__).parents[2] / "examples" / "dreambooth.py"
WORDS = ["[PAD]", "[EOS]", "a", "photo", "of", "sks", "dog"]
SIZE = 16


def _tokenizer() -> Any:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[PAD]", eos_token="[EOS]", model_max_length=6
    )


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Forget the precision of a run before."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a pipeline, of CLIP, of a ViT in DINO's place, and of three drawn pictures."""
    folder = tmp_path_factory.mktemp("dreambooth")
    text = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 6, "projection_dim": 8, "eos_token_id": 1}
    seen = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    seen |= {"image_size": SIZE, "patch_size": 8}
    pipeline = with_unet()
    pipeline.register_modules(
        text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)), tokenizer=_tokenizer()
    )
    pipeline.save_pretrained(folder / "pipeline")
    clip = transformers.CLIPConfig(text_config=text, vision_config=seen | {"projection_dim": 8}, projection_dim=8)
    transformers.CLIPModel(clip).save_pretrained(folder / "clip")
    size = {"height": SIZE, "width": SIZE}
    images = transformers.CLIPImageProcessor(size=size, crop_size=size)
    transformers.CLIPProcessor(images, _tokenizer()).save_pretrained(folder / "clip")
    transformers.ViTModel(transformers.ViTConfig(**seen)).save_pretrained(folder / "dino")
    transformers.ViTImageProcessor(size=size).save_pretrained(folder / "dino")
    (folder / "photos").mkdir()
    for number in range(3):
        picture = Image.new("RGB", (24, 20), "skyblue")
        ImageDraw.Draw(picture).ellipse((4 + number, 3, 18, 17), fill="darkred")
        picture.save(folder / "photos" / f"{number}.png")
    return {name: folder / name for name in ("pipeline", "clip", "dino", "photos")}


@pytest.fixture(scope="module")
def script() -> Any:
    return module_of(SCRIPT)


def _words(places: dict[str, Path], output: Path, **options: Any) -> list[str]:
    given = {"prompt": "a photo of sks dog", "class-prompt": "a photo of dog", "output": output, "steps": 4}
    given |= {"save-steps": 2, "prior-images": 2, "inference-steps": 2, "size": SIZE, "learning-rate": 0.01, "rank": 2}
    given |= {"show": 2, **options}
    words = [str(places["pipeline"]), str(places["photos"])]
    return words + [word for name, value in given.items() for word in (f"--{name}", str(value))]


@pytest.mark.filterwarnings("ignore")
def test_a_subject_is_learnt_shown_and_scored(script: Any, places: dict[str, Path], tmp_path: Path) -> None:
    judges = {"clip": places["clip"], "dino": places["dino"]}
    script.main(_words(places, tmp_path / "run", formula="D1 @ W @ D2 + s * A @ B", **judges))
    with Image.open(tmp_path / "run" / "grid.png") as grid:
        assert grid.size == (3 * SIZE, 3 * SIZE)
        frozen, tuned = (grid.crop((0, top, 2 * SIZE, top + SIZE)).tobytes() for top in (SIZE, 2 * SIZE))
    assert frozen != tuned
    assert len(list((tmp_path / "run" / "prior").iterdir())) == 2
    scores = json.loads((tmp_path / "run" / "scores.json").read_text(encoding="utf-8"))
    assert scores.keys() == {"CLIP-I", "CLIP-T", "DINO"} and all(-1 <= score <= 1 for score in scores.values())
    with pytest.raises(SubspaceError, match="holds a run with other settings"):
        script.main(_words(places, tmp_path / "run", method="ssb"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_killed_run_goes_on_bit_for_bit(
    script: Any, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.main(_words(places, tmp_path / "whole"))
    loss_of, calls = script.loss_of, []

    def killed(*given: Any) -> torch.Tensor:
        calls.append(given)
        if len(calls) > 2 * 3:  # in the fourth step; each has a loss of the subject and one of the class
            raise KeyboardInterrupt
        return loss_of(*given)

    with monkeypatch.context() as patch:
        patch.setattr(script, "loss_of", killed)
        with pytest.raises(KeyboardInterrupt):
            script.main(_words(places, tmp_path / "parted"))
    script.main(_words(places, tmp_path / "parted"))
    for file in ("adapter/adapter_model.safetensors", "state.safetensors", "grid.png"):
        assert (tmp_path / "parted" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
