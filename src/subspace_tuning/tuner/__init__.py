"""The tuner: one config, one model and one layer host every method on peft. Importing it registers the tuner."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from .calibration import calibrate
from .config import SubspaceConfig, SubspaceType
from .hotswap import hotswap
from .layer import SubspaceLayer
from .logging import PenaltyCallback
from .mam import load_mam, mam_model
from .model import SubspaceModel
from .optim import parameter_groups
from .penalties import orthogonality, penalty
from .scheduling import ScheduleCallback, schedule

PEFT_TYPE_TO_CONFIG_MAPPING[SubspaceType.SUBSPACE] = SubspaceConfig  # type: ignore[index]
PEFT_TYPE_TO_TUNER_MAPPING[SubspaceType.SUBSPACE] = SubspaceModel  # type: ignore[index]
PEFT_TYPE_TO_PREFIX_MAPPING[SubspaceType.SUBSPACE] = SubspaceModel.prefix  # type: ignore[index]

__all__ = [
    "PenaltyCallback",
    "ScheduleCallback",
    "SubspaceConfig",
    "SubspaceLayer",
    "SubspaceModel",
    "SubspaceType",
    "calibrate",
    "hotswap",
    "load_mam",
    "mam_model",
    "orthogonality",
    "parameter_groups",
    "penalty",
    "schedule",
]
