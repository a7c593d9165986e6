"""Subject-driven generation (DreamBooth, arXiv 2208.12242): a pipeline learns one subject from a few photographs.

    python examples/dreambooth.py PIPELINE PHOTOS --prompt "a photo of sks dog" --class-prompt "a photo of a dog" -o RUN

PIPELINE is a folder or a hub name in the form of Stable Diffusion; an adapter of its UNet is trained, by a method or a
formula. The prior is preserved with images that the frozen pipeline makes from the class prompt. RUN gets the adapter,
``grid.png`` (photographs, frozen pipeline, adapted pipeline) and, with --clip or --dino, ``scores.json``. If it is
killed, the same command goes on from the last saved step, and on a CPU the result is the same bit for bit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, DiffusionPipeline
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss
from transformers import AutoImageProcessor, AutoModel, CLIPModel, CLIPProcessor

from subspace_tuning import SubspaceConfig, SubspaceError
from subspace_tuning.files import write_json, written

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
FREE = ("steps", "save_steps", "output", "clip", "dino", "show")  # arguments that do not change a step


def photographs(folder: Path, size: int) -> list[Image.Image]:
    """Return the images in a folder in the order of their names, upright, cropped to a square of ``size`` pixels."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    if not files:
        raise SubspaceError(f"{folder} has no images")
    return [ImageOps.fit(ImageOps.exif_transpose(Image.open(file)).convert("RGB"), (size, size)) for file in files]


def made(pipeline: Any, prompt: str, seed: int, args: argparse.Namespace) -> Image.Image:
    """Return an image of the pipeline, which the seed determines."""
    generator = torch.Generator().manual_seed(seed)
    size = {"height": args.size, "width": args.size}
    image: Image.Image = pipeline(prompt, **size, num_inference_steps=args.inference_steps, generator=generator).images[
        0
    ]
    return image


def prior(pipeline: Any, args: argparse.Namespace) -> list[Image.Image]:
    """Return images of the class by the frozen pipeline; those that an earlier call has written are not made again."""
    folder = args.output / "prior"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(args.prior_images):
        file = folder / f"{number:04}.png"
        if not file.is_file():
            with written(file) as temporary:
                made(pipeline, args.class_prompt, args.seed + number, args).save(temporary, "PNG")
    return photographs(folder, args.size) if args.prior_images else []


@torch.no_grad()
def encoded(pipeline: Any, images: list[Image.Image], prompt: str) -> tuple[Tensor, Tensor]:
    """Return the latents of images, and the embedding of their prompt."""
    pixels = torch.stack([torch.from_numpy(np.asarray(image).copy()) for image in images])
    pixels = (pixels.permute(0, 3, 1, 2) / 127.5 - 1.0).to(pipeline.device)
    latents = torch.cat([pipeline.vae.encode(one[None]).latent_dist.mode() for one in pixels])
    embedding, _ = pipeline.encode_prompt(prompt, pipeline.device, 1, do_classifier_free_guidance=False)
    return latents * pipeline.vae.config.scaling_factor, embedding


def loss_of(unet: nn.Module, noise: DDPMScheduler, part: tuple[Tensor, Tensor], count: int, draws: Any) -> Tensor:
    """Return the denoising loss of ``count`` images, drawn with their noise and their times from a generator."""
    latents, prompt = part
    latents = latents[torch.randint(len(latents), (count,), generator=draws).to(latents.device)]
    added = torch.randn(latents.shape, generator=draws).to(latents.device)
    times = torch.randint(noise.config.num_train_timesteps, (count,), generator=draws).to(latents.device)
    velocity = noise.config.prediction_type == "v_prediction"
    wanted = noise.get_velocity(latents, added, times) if velocity else added
    found = unet(noise.add_noise(latents, added, times), times, prompt.expand(count, -1, -1)).sample
    return mse_loss(found.float(), wanted.float())


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save(file: Path, step: int, unet: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the factors and the optimiser's state."""
    tensors = {}
    for name, parameter in trained(unet).items():
        tensors |= {f"{name}@{key}": value for key, value in optimizer.state[parameter].items()}
        tensors[f"{name}@"] = parameter.detach()
    with written(file) as temporary:
        save_file({name: one.cpu().contiguous() for name, one in tensors.items()}, temporary, {"step": str(step)})


@torch.no_grad()
def resume(file: Path, unet: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore what ``save`` has written, and return its step; 0 if there is none."""
    if not file.is_file():
        return 0
    parameters = trained(unet)
    with safe_open(file, framework="pt") as held:
        for key in held.keys():  # noqa: SIM118 (it is no mapping)
            name, _, part = key.rpartition("@")
            if part:
                optimizer.state[parameters[name]][part] = held.get_tensor(key).to(
                    "cpu" if part == "step" else parameters[name].device
                )
            else:
                parameters[name].copy_(held.get_tensor(key))
        return int(held.metadata()["step"])


def train(
    pipeline: Any, images: list[Image.Image], classes: list[Image.Image], args: argparse.Namespace
) -> peft.PeftModel:
    """Adapt the pipeline's UNet to images of a subject, beside images of its class, and return it."""
    accelerator = Accelerator(mixed_precision=args.precision)
    pipeline.to(accelerator.device)
    parts = [(1.0, encoded(pipeline, images, args.prompt))]
    if classes:
        parts.append((args.prior_weight, encoded(pipeline, classes, args.class_prompt)))
    torch.manual_seed(args.seed)  # from here on the factors are drawn
    method = None if args.formula else args.method
    config = SubspaceConfig(method=method, formula=args.formula, r=args.rank, target_modules=TARGETS)
    unet = peft.get_peft_model(pipeline.unet, config).train()
    optimizer = torch.optim.AdamW(trained(unet).values(), lr=args.learning_rate)
    first = resume(args.output / "state.safetensors", unet, optimizer)
    ready, stepper = accelerator.prepare(unet, optimizer)
    noise = DDPMScheduler.from_config(pipeline.scheduler.config)
    for step in range(first, args.steps):
        # A step draws from a generator of its own, so that it is the same after an interruption.
        draws = torch.Generator().manual_seed(int(np.random.SeedSequence((args.seed, step)).generate_state(1)[0]))
        with accelerator.autocast():
            losses = [weight * loss_of(ready, noise, part, args.batch_size, draws) for weight, part in parts]
        accelerator.backward(torch.stack(losses).sum())
        stepper.step()
        stepper.zero_grad()
        if (step + 1) % args.save_steps == 0 or step + 1 == args.steps:
            save(args.output / "state.safetensors", step + 1, unet, optimizer)
            accelerator.print(f"step {step + 1}: loss {float(sum(losses)):.4f}")
    unet.eval().save_pretrained(str(args.output / "adapter"))
    return unet


def grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Return images in rows and columns; a row may be shorter than others."""
    width, height = rows[0][0].size
    whole = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)), "white")
    for top, row in enumerate(rows):
        for left, image in enumerate(row):
            whole.paste(image, (left * width, top * height))
    return whole


@torch.no_grad()
def scores(images: list[Image.Image], photos: list[Image.Image], args: argparse.Namespace) -> dict[str, float]:
    """Return the means of cosines: CLIP-I and DINO between images and photographs, CLIP-T between images and prompt."""
    found = {}
    if args.clip:
        model, processor = CLIPModel.from_pretrained(args.clip).eval(), CLIPProcessor.from_pretrained(args.clip)
        inputs = processor(text=[args.class_prompt], images=[*images, *photos], return_tensors="pt", padding=True)
        outputs = model(**inputs)
        ours, theirs = outputs.image_embeds[: len(images)], outputs.image_embeds[len(images) :]
        found["CLIP-I"] = float(cosine_similarity(ours[:, None], theirs[None], dim=-1).mean())
        found["CLIP-T"] = float(cosine_similarity(ours, outputs.text_embeds).mean())
    if args.dino:
        model, processor = AutoModel.from_pretrained(args.dino).eval(), AutoImageProcessor.from_pretrained(args.dino)
        seen = model(**processor([*images, *photos], return_tensors="pt")).last_hidden_state[:, 0]
        found["DINO"] = float(cosine_similarity(seen[: len(images), None], seen[None, len(images) :], dim=-1).mean())
    return found


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline", help="a folder or a hub name")
    parser.add_argument("photos", type=Path, help="a folder of photographs of the subject")
    parser.add_argument("--prompt", required=True, help="names the subject by a rare word: a photo of sks dog")
    parser.add_argument("--class-prompt", required=True, help="names its class alone: a photo of a dog")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--method", default="lora")
    parser.add_argument("--formula", help="instead of a method, such as D1 @ W @ D2 + s * A @ B")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--save-steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=1, help="images of the subject and of its class per step")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--prior-images", type=int, default=100, help="0: the prior is not preserved")
    parser.add_argument("--prior-weight", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=512, help="of an image's sides, in pixels")
    parser.add_argument("--inference-steps", type=int, default=25)
    parser.add_argument("--precision", choices=["no", "fp16", "bf16"], default="no")
    parser.add_argument("--show", type=int, default=4, help="images of each pipeline in the grid")
    parser.add_argument("--clip", help="a folder of CLIP, for CLIP-I and CLIP-T")
    parser.add_argument("--dino", help="a folder of a DINO ViT")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(words)


def check_settings(args: argparse.Namespace) -> None:
    """Write the settings beside the state. Raises SubspaceError if the output is of a run with others."""
    file = args.output / "settings.json"
    settings = {name: str(value) for name, value in vars(args).items() if name not in FREE}
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != settings:
        raise SubspaceError(f"{args.output} holds a run with other settings: choose another folder")
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(file, settings)


def main(words: Sequence[str] | None = None) -> None:
    """Train, and show and score the result."""
    args = arguments(words)
    check_settings(args)
    pipeline = DiffusionPipeline.from_pretrained(args.pipeline)
    pipeline.set_progress_bar_config(disable=True)
    photos = photographs(args.photos, args.size)
    unet = train(pipeline, photos, prior(pipeline, args), args)
    seeds = range(args.seed, args.seed + args.show)
    images = [made(pipeline, args.prompt, seed, args) for seed in seeds]
    with unet.disable_adapter():
        frozen = [made(pipeline, args.prompt, seed, args) for seed in seeds]
    grid([photos, frozen, images]).save(args.output / "grid.png")
    if args.clip or args.dino:
        write_json(args.output / "scores.json", scores(images, photos, args))


if __name__ == "__main__":
    main()
