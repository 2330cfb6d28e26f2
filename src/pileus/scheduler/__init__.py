"""Pure placement: a view of the hosts and a demand in, a choice with its reasons out."""

from pileus.scheduler.advice import Advice, Change, advise
from pileus.scheduler.fleet import Batch, Fleet
from pileus.scheduler.model import (
    Capacity,
    Demand,
    Domain,
    GroupDemand,
    GroupPolicy,
    HostRole,
    HostView,
    Load,
    Placement,
    StorageRoom,
    Weights,
)
from pileus.scheduler.verdicts import Hindrance, Obstacle, Verdict

__all__ = [
    "Advice",
    "Batch",
    "Capacity",
    "Change",
    "Demand",
    "Domain",
    "Fleet",
    "GroupDemand",
    "GroupPolicy",
    "Hindrance",
    "HostRole",
    "HostView",
    "Load",
    "Obstacle",
    "Placement",
    "StorageRoom",
    "Verdict",
    "Weights",
    "advise",
]
