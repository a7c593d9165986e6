"""One layer, blocks of a language model, decoding, compiling and starts on one device: the floor, ours, peft's.

    python benchmarks/device/run.py --results results/NAME.json         # some minutes on a GPU
    python benchmarks/device/run.py --small --results small.json        # on a CPU: whether it runs, and what it begins
    python benchmarks/device/run.py --part layers --part decoding --results ...

All arms of a table run in one process, a step of each in turn; a time is a median, and a ratio to peft's the median of
the ratios within a round.
"""

from __future__ import annotations

import copy
import gc
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from subspace_tuning import SubspaceConfig, methods
from subspace_tuning.bench.arms import PEFT
from subspace_tuning.bench.device import device, operations, peak_mib, seconds, wait
from subspace_tuning.files import write_json
from subspace_tuning.jobs.script import one_line_errors, parser
from subspace_tuning.jobs.units import measured
from subspace_tuning.provenance import provenance

DEVICE = device().type
RANK = 16
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FEW = ("lora", "dora", "ssb", "ia3", "pissa", "adalora", "liera", "pafi")
MANY = tuple(
    case.name
    for case in methods.every()
    if not (case.needs_calibration or case.formula.wraps_norm or case.formula.names_bias or case.name == "xattn")
)
Step = Callable[[], Any]
Table = dict[str, dict[str, Any]]


def timed(steps: dict[str, Step], rounds: int, warm: int = 3) -> dict[str, list[float]]:
    """Return the milliseconds of each step in each round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    turns = random.Random(0)  # what runs before a step changes its time
    for index in range(rounds + warm):
        for name in turns.sample(list(steps), len(steps)):
            taken = seconds(steps[name])
            if index >= warm:
                times[name].append(1e3 * taken)
    return times


def tabled(steps: dict[str, Step], rounds: int) -> Table:
    """Measure steps, and those of ours against peft's."""
    rows: Table = {}
    for name, step in steps.items():
        step()
        peak = peak_mib(step)
        rows[name] = {"operations": len(operations(step)), "peak MiB": None if peak is None else round(peak, 1)}
    times = timed(steps, rounds)
    floor = statistics.median(times["floor"]) if "floor" in times else None
    for name, own in times.items():
        row, median = rows[name], statistics.median(own)
        row["ms"] = round(median, 4)
        if floor is not None:
            row["of the floor"] = round(median / floor, 3)
        theirs = times.get(name.replace("ours", "peft"))
        if name.startswith("ours") and theirs is not None:
            row["of peft's"] = round(statistics.median(a / b for a, b in zip(own, theirs, strict=True)), 3)
    return rows


def arms(names: Iterable[str]) -> list[str]:
    return ["floor", *(f"{who} {name}" for name in names for who in ("ours", "peft") if who == "ours" or name in PEFT)]


def adapted(base: nn.Module, arm: str, targets: list[str], **options: Any) -> nn.Module:
    """Return a model with the adapter of an arm; the floor is the model."""
    if arm == "floor":
        return base
    who, name = arm.split()
    ours = SubspaceConfig(method=name, r=RANK, alpha=RANK, target_modules=targets, **options)
    return get_peft_model(base, ours if who == "ours" else PEFT[name](RANK, targets))  # type: ignore[arg-type]


# The parts


def layer(n: int, m: int, rows: int, dtype: torch.dtype, names: Iterable[str], rounds: int, autocast: bool) -> Table:
    """Measure the passes of one layer, forward and back to its input and its factors."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(n, m, bias=False)).to(DEVICE, dtype).requires_grad_(False)
    x = torch.randn(rows, n, device=DEVICE, dtype=torch.float32 if autocast else dtype, requires_grad=True)
    upstream = torch.randn(rows, m, device=DEVICE, dtype=torch.bfloat16 if autocast else dtype)

    def step_of(model: nn.Module) -> Step:
        trained = [x, *(parameter for parameter in model.parameters() if parameter.requires_grad)]

        def step() -> None:
            for tensor in trained:
                tensor.grad = None
            with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
                y = model(x)
            y.backward(upstream.to(y.dtype))

        return step

    models = {arm: adapted(copy.deepcopy(base), arm, ["0"]).train() for arm in arms(names)}
    return tabled({arm: step_of(model) for arm, model in models.items()}, rounds)


def llama(width: int, inner: int, blocks: int, heads: int, vocabulary: int, dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=vocabulary,
        pad_token_id=0,
    )
    with torch.device(DEVICE):
        return LlamaForCausalLM(config).to(dtype).requires_grad_(False)


def training(
    names: Iterable[str], rounds: int, batch: int, tokens: int, checkpointed: bool = False, **sizes: Any
) -> Table:
    """Measure training steps of a language model, AdamW's included."""
    base = llama(**sizes, dtype=torch.bfloat16)
    ids = torch.randint(5, sizes["vocabulary"], (batch, tokens), device=DEVICE)
    steps = {}
    for arm in arms(names):
        # peft's PiSSA writes into W; the others share it.
        own = {} if arm == "peft pissa" else {id(parameter): parameter for parameter in base.parameters()}
        model = copy.deepcopy(base, own)
        model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_())
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        tuned = adapted(model, arm, PROJECTIONS, task_type="CAUSAL_LM").train()
        steps[arm] = _training_step(tuned, ids)
    return tabled(steps, rounds)


def _training_step(model: nn.Module, ids: Tensor) -> Step:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=DEVICE != "cpu") if trained else None

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def decoding(names: Iterable[str], rounds: int, tokens: int, **sizes: Any) -> Table:
    """Measure greedy generation, a batch of one."""
    ids = torch.randint(5, sizes["vocabulary"], (1, 8), device=DEVICE)
    options, steps = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}, {}
    for arm in arms(names):
        model: Any = adapted(llama(**sizes, dtype=torch.bfloat16), arm, ["q_proj", "v_proj", "down_proj"]).eval()
        steps[arm] = lambda model=model: model.generate(input_ids=ids, **options)
    return tabled(steps, rounds)


def compiling(names: Iterable[str], rounds: int, batch: int, tokens: int, **sizes: Any) -> Table:
    """Measure compiled steps, their graphs, and that they agree with those that are not compiled."""
    import torch._dynamo as dynamo

    ids = torch.randint(5, sizes["vocabulary"], (batch, tokens), device=DEVICE)
    steps, more = {}, {}
    for arm in arms(names):
        if arm == "floor":
            continue
        model: Any = adapted(llama(**sizes, dtype=torch.float32), arm, PROJECTIONS, task_type="CAUSAL_LM")
        dynamo.reset()
        dynamo.utils.counters.clear()
        expected = model(input_ids=ids, labels=ids).loss
        start = time.perf_counter()
        compiled = torch.compile(model)
        steps[arm] = lambda compiled=compiled: compiled(input_ids=ids, labels=ids).loss.backward()
        error = float((compiled(input_ids=ids, labels=ids).loss - expected).abs())
        steps[arm]()
        wait()
        more[arm] = {
            "graphs": dynamo.utils.counters["stats"].get("unique_graphs"),
            "breaks": sum(dynamo.utils.counters["graph_break"].values()),
            "loss off by": error,
            "seconds to compile": round(time.perf_counter() - start, 1),
        }
    rows = tabled(steps, rounds)
    return {arm: row | more[arm] for arm, row in rows.items()}


def starts(n: int, m: int) -> Table:
    """Measure how long an adapter takes to attach, and how far its start is off."""
    torch.manual_seed(0)
    weight = torch.randn(m, n, device=DEVICE) / n**0.5 * torch.logspace(0, -1, n, device=DEVICE)
    x, rows = torch.randn(64, n, device=DEVICE), {}
    for arm in ("ours pissa", "peft pissa", "ours milora", "ours spectral", "ours svdiff"):
        base = nn.Sequential(nn.Linear(n, m, bias=False)).to(DEVICE)
        base[0].weight.data = weight.clone()
        made: list[nn.Module] = []
        taken = seconds(lambda base=base, arm=arm, made=made: made.append(adapted(base, arm, ["0"])))
        model = made[0]
        error = (model(x) - x @ weight.T).norm() / (x @ weight.T).norm()
        rows[arm] = {"seconds": round(taken, 3), "start off by": float(error)}
    return rows


def parts(small: bool) -> dict[str, dict[str, Callable[[], Table]]]:
    """Return what is measured, by part and title."""
    bfloat16, float32 = torch.bfloat16, torch.float32
    if small:
        sizes = {"width": 64, "inner": 128, "blocks": 2, "heads": 4, "vocabulary": 100}
        return {
            "layers": {"64 x 96, 128 rows, float32": lambda: layer(64, 96, 128, float32, MANY, 3, False)},
            "training": {"2 blocks of 64": lambda: training(("lora", "dora", "ssb"), 2, 2, 16, **sizes)},
            "decoding": {"2 blocks of 64": lambda: decoding(("lora", "dora", "ssb"), 2, 4, **sizes)},
            "compiling": {"1 block of 64": lambda: compiling(("lora",), 2, 2, 16, **sizes | {"blocks": 1})},
            "starts": {"256 x 256": lambda: starts(256, 256)},
        }
    pair = {"width": 4096, "inner": 11008, "blocks": 2, "heads": 32, "vocabulary": 32000}
    twelve = {"width": 768, "inner": 2048, "blocks": 12, "heads": 12, "vocabulary": 32000}
    four = {"width": 512, "inner": 1024, "blocks": 4, "heads": 4, "vocabulary": 300}
    return {
        "layers": {
            "4096 x 4096, 8192 rows, bfloat16": lambda: layer(4096, 4096, 8192, bfloat16, MANY, 12, False),
            "768 x 768, 512 rows, float32": lambda: layer(768, 768, 512, float32, MANY, 20, False),
            "4096 x 4096, 8192 rows, autocast": lambda: layer(4096, 4096, 8192, float32, FEW, 8, True),
            "4096 x 11008, 8192 rows, bfloat16": lambda: layer(4096, 11008, 8192, bfloat16, FEW, 8, False),
            "4096 x 4096, 16 rows, bfloat16": lambda: layer(4096, 4096, 16, bfloat16, FEW, 20, False),
        },
        "training": {
            "two blocks of Llama-7B, 4 x 2048": lambda: training(FEW[:5], 7, 4, 2048, **pair),
            "12 blocks of 768, 8 x 128": lambda: training(FEW[:3], 8, 8, 128, **twelve),
            "two blocks of Llama-7B, checkpointed": lambda: training(FEW[:3], 5, 4, 2048, True, **pair),
        },
        "decoding": {"12 blocks of 768, 16 tokens": lambda: decoding(FEW[:4], 5, 16, **twelve)},
        "compiling": {"4 blocks of 512, 8 x 128": lambda: compiling(("lora", "dora"), 8, 8, 128, **four)},
        "starts": {"4096 x 4096": lambda: starts(4096, 4096), "4096 x 11008": lambda: starts(4096, 11008)},
    }


def measure(unit: Callable[[], Table]) -> Table:
    gc.collect()
    return unit()


def on_result(name: str, rows: Table) -> None:
    print(f"## {name}", flush=True)
    for arm, row in rows.items():
        print(f"{arm:24s}", "  ".join(f"{name} {value}" for name, value in row.items() if value is not None))


@one_line_errors()
def main() -> None:
    words = parser(__doc__, None)
    words.add_argument("--part", action="append", help="layers, training, decoding, compiling or starts; default: all")
    words.add_argument("--small", action="store_true", help="small sizes, as a CPU can take them")
    given = words.parse_args()
    warnings.filterwarnings("ignore")
    torch.backends.cuda.matmul.allow_tf32 = False
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE
    chosen = {part: tables for part, tables in parts(given.small).items() if part in (given.part or [part])}
    units = {f"{part}: {title}": table for part, tables in chosen.items() for title, table in tables.items()}
    with measured(given.results, {"small": given.small, "device": name}, units, measure, on_result) as found:
        tables = {part: {title: found[f"{part}: {title}"] for title in titles} for part, titles in chosen.items()}
        write_json(given.results, {"provenance": provenance(), "device": name, **tables})


if __name__ == "__main__":
    main()
