"""Which configs stand in peft's tests: a class per method, as its tables want, and the rows of the tables."""

from __future__ import annotations

import os
import sys
import types
from dataclasses import field, make_dataclass
from typing import Any

from subspace_tuning import SubspaceConfig

FORMULA = "D1 @ W @ D2 + s * A @ B"
METHODS = os.environ.get("METHODS", "").split() or ["dora", "pissa", "formula"]
RANK = int(os.environ.get("RANK", "8"))

Config = type[SubspaceConfig]
Row = tuple[Any, ...]


def _given(method: str) -> dict[str, Any]:
    return {"formula": FORMULA} if method == "formula" else {"method": method}


def _config_class(method: str) -> Config:
    """Return a config class whose default is one method."""
    name = f"{method.title().replace('_', '')}Config"
    fields = [(key, Any, field(default=value)) for key, value in {**_given(method), "r": RANK}.items()]
    made = make_dataclass(name, fields, bases=(SubspaceConfig,))
    made.__module__ = __name__  # some tests pickle it
    globals()[name] = made
    return made


CLASSES = [_config_class(method) for method in METHODS]
# Two methods in one tuner: each with itself, and with the next one.
PAIRS = [(one, one) for one in METHODS] + list(zip(METHODS, METHODS[1:] + METHODS[:1], strict=True)) * (
    len(METHODS) > 1
)

MODELS = [  # a title, the name of a model in test_custom_models, and options
    ("Vanilla MLP 1", "MLP", {"target_modules": "lin0"}),
    ("Vanilla MLP 2", "MLP", {"target_modules": ["lin0"]}),
    ("Vanilla MLP 3", "MLP", {"target_modules": ["lin1"]}),
    ("Vanilla MLP 4", "MLP", {"target_modules": ["lin0", "lin1"]}),
    ("Vanilla MLP 5", "MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("Vanilla MLP 6", "MLP", {"target_modules": ["lin0"], "dropout": 0.1}),
    ("Embedding + transformers Conv1D 1", "EmbConv1D", {"target_modules": ["conv1d"]}),
    ("Embedding + transformers Conv1D 2", "EmbConv1D", {"target_modules": ["emb"]}),
    ("Embedding + transformers Conv1D 3", "EmbConv1D", {"target_modules": ["emb", "conv1d"]}),
    ("Conv1d", "Conv1d", {"target_modules": ["conv1d"]}),
    ("Conv2d 1", "Conv2d", {"target_modules": ["conv2d"]}),
    ("Conv2d 2", "Conv2d", {"target_modules": ["conv2d", "lin0"]}),
    ("Conv2d Groups", "Conv2dGroups", {"target_modules": ["conv2d"]}),
    ("Conv3d 1", "Conv3d", {"target_modules": ["conv3d"]}),
]
TASKS = {
    "test_decoder_models": {"ALL_CONFIGS": "CAUSAL_LM"},
    "test_encoder_decoder_models": {"ALL_CONFIGS": "SEQ_2_SEQ_LM"},
    "test_feature_extraction_models": {"ALL_CONFIGS": "FEATURE_EXTRACTION"},
    "test_seq_classifier": {"ALL_CONFIGS": "SEQ_CLS"},
    "test_token_classification_qa": {"TOKEN_CLS_CONFIGS": "TOKEN_CLS", "QA_CONFIGS": "QUESTION_ANS"},
}


def tables(module: str) -> dict[str, Any]:
    """Return the tables of a test module, with our rows."""
    if module == "test_custom_models":
        return {
            "TEST_CASES": [
                (f"{title} {config.__name__}", model, config, dict(options))
                for config in CLASSES
                for title, model, options in MODELS
            ],
            "ALL_PEFT_CONFIG_CLASSES": CLASSES,
            "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES": [
                (f"{a}+{b} {kind}", "subspace", SubspaceConfig, _lin0(a), {**_lin0(b), "target_modules": [target]})
                for a, b in PAIRS
                for kind, target in (("Same", "lin0"), ("Different", "lin1"))
            ],
            "MIXED_ADAPTER_TEST_CASES": _pairs(["lin0"], ["lin0"]),
        }
    if module == "test_config":
        ours = [(SubspaceConfig, _given(method)) for method in METHODS]
        return {"ALL_CONFIG_CLASSES": tuple(ours), "LAYER_INDEXING_CONFIG_CLASSES": ours}
    return {
        table: [(config, {"task_type": task, "target_modules": None}) for config in CLASSES]
        for table, task in TASKS.get(module, {}).items()
    }


def rows_of_tests(module: str) -> dict[tuple[str, str], list[Any]]:
    """Return the rows of tests whose parameters stand in no table, by the test's and the parameters' names."""
    if module != "test_custom_models":
        return {}
    mixed, two = "test_mixed_adapter_batches_", "test_name, config0, config1"
    classes = [
        "test_default_target_modules_not_set_raises",
        "test_default_target_modules_not_set_model_type_set_raises",
        "test_default_target_modules_list_of_str",
        "test_default_target_modules_str",
        "test_loading_model_requires_grad_set_correctly_switch_inference_mode",
        "test_loading_model_requires_grad_load_adapter_then_add_adapter",
    ]
    rows: dict[tuple[str, str], list[Any]] = {(test, "config_cls"): list(CLASSES) for test in classes}
    return rows | {
        (f"{mixed}different_target_layers", two): _pairs(["lin0"], ["lin1"]),
        (f"{mixed}multiple_modules_to_save", two): _pairs(["lin0"], ["lin0"], modules_to_save=["lin1"]),
        (f"{mixed}unsupported_layer_raises", two): _pairs(["lin0"], ["lin0"], modules_to_save=["gru"]),
        (f"{mixed}partly_overlapping_target_layers", two): _pairs(["lin0"], ["lin0", "lin1"]),
        (f"{mixed}lora_conv1d_emb", two): _pairs(["emb", "conv1d"], ["emb", "conv1d"]),
        (f"{mixed}lora_conv2d", two): _pairs(["conv2d"], ["conv2d"]),
        (f"{mixed}lora_wrong_adapter_name_raises", "test_name, config"): [
            (config.__name__, config(target_modules=["lin0"], init_weights=False)) for config in CLASSES
        ],
    }


def _lin0(method: str) -> dict[str, Any]:
    return {**_given(method), "target_modules": ["lin0"], "init_weights": False}


def _pairs(first: list[str], second: list[str], **options: Any) -> list[Row]:
    def config(method: str, targets: list[str]) -> SubspaceConfig:
        return SubspaceConfig(
            **_given(method), r=RANK, alpha=RANK, target_modules=targets, init_weights=False, **options
        )

    return [(f"{a}+{b}", config(a, first), config(b, second)) for a, b in PAIRS]


class _Ours(type):
    """The type of a class that stands for every config of this package where a test asks ``config_cls in (...)``."""

    def __eq__(cls, other: object) -> bool:
        return isinstance(other, type) and issubclass(other, SubspaceConfig)

    __hash__ = type.__hash__


class _Steep(type):
    """The type of a class that stands for the configs whose steps are so large that peft's learning rate gives NaN."""

    def __subclasscheck__(cls, kind: type) -> bool:
        return kind in CLASSES and kind(target_modules=["lin0"]).resolved.takes_triples


class _Flat(type):
    """The type of a class that stands for the configs whose start is so flat that peft's learning rate moves little."""

    def __subclasscheck__(cls, kind: type) -> bool:
        return kind in CLASSES and "G" in kind(target_modules=["lin0"]).resolved.formula.trainable


def lift_skips(name: str, module: types.ModuleType) -> None:
    """Run what peft's tests skip by a closed list of peft's own classes, and this package does as well."""
    common: Any = sys.modules.get(f"{module.__name__.rpartition('.')[0]}.testing_common")
    if common is None:
        return
    common._skip_if_conv1d_not_supported = lambda *_: None  # GPT-2
    if name == "test_custom_models":
        module.RandLoraConfig = _Steep("RandLoraConfig", (), {})  # type: ignore[attr-defined]
        module.LilyConfig = _Flat("LilyConfig", (), {})  # type: ignore[attr-defined]
    common.RoadConfig = _Ours("RoadConfig", (), {})  # mixed batches
    # Conversion: an absolute error, and our random factors are large.
    common.GraloraConfig = _Ours("GraloraConfig", (), {})
    # The bound that LoRA has after merging into a convolution: in float32 outputs of 10 differ by 6e-6, in float64 by
    # 1e-14.
    common.HiraConfig = SubspaceConfig
    if name in ("test_decoder_models", "test_encoder_decoder_models"):  # generation with mixed batches, beam search
        module.LoraConfig = common.LoraConfig = _Ours("LoraConfig", (), {})  # type: ignore[attr-defined]
