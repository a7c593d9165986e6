"""The model card of a saved adapter, which says what to import before peft can load it."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import ModelCard

TAG = "subspace-tuning"
_HEADING = "## Loading this adapter"


def write_card(folder: str | Path, formula: str, method: str | None) -> None:
    """Create or update a folder's README.md: a tag, the formula and the import.

    Args:
        folder: the adapter's folder.
        formula: phi(W).
        method: the name of the registered method, if it has one.
    """
    path = Path(folder) / "README.md"
    card = ModelCard.load(path) if path.is_file() else ModelCard("---\nlibrary_name: peft\n---\n")
    card.data["tags"] = sorted({*(card.data.get("tags") or ()), TAG})
    section = _section(formula, method)
    own = re.compile(rf"^{re.escape(_HEADING)}\n.*?(?=^#|\Z)", re.MULTILINE | re.DOTALL)
    if own.search(card.text):
        card.text = own.sub(lambda _: section, card.text, count=1)
    else:
        card.text = f"{card.text.rstrip()}\n\n{section}".lstrip()
    card.save(path)


def _section(formula: str, method: str | None) -> str:
    named = f" (method `{method}`)" if method else ""
    return f"""{_HEADING}

The adapted weight is `{formula}`{named}. The adapter's type is registered by the package `subspace-tuning`; without its
import, peft raises `KeyError: 'SUBSPACE'`.

```python
import subspace_tuning
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "path/to/this/adapter")
```
"""
