"""The tuner: the only ring that imports peft. Importing it registers the tuner."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from .config import SubspaceConfig, SubspaceType
from .layer import SubspaceLayer
from .model import SubspaceModel

PEFT_TYPE_TO_CONFIG_MAPPING[SubspaceType.SUBSPACE] = SubspaceConfig  # type: ignore[index]
PEFT_TYPE_TO_TUNER_MAPPING[SubspaceType.SUBSPACE] = SubspaceModel  # type: ignore[index]
PEFT_TYPE_TO_PREFIX_MAPPING[SubspaceType.SUBSPACE] = SubspaceModel.prefix  # type: ignore[index]

__all__ = ["SubspaceConfig", "SubspaceLayer", "SubspaceModel", "SubspaceType"]
