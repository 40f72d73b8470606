"""What goes on inside a model: where each attention looks, how sharply, how far, of what rank; what speaks for a class.

The mathematics is in :mod:`linvit.analysis.measures` (one layer), :mod:`linvit.analysis.gradients` (a model) and
:mod:`linvit.analysis.contributions` (CARE). Never is an N x N tensor made.
"""

from linvit.analysis.colours import principal_colours
from linvit.analysis.contributions import GROUPS, care_contributions
from linvit.analysis.gradients import effective_receptive_field, grad_cam, map_modules
from linvit.analysis.layer import Layer
from linvit.analysis.maps import fine_maps, received_map
from linvit.analysis.measures import (
    Rank,
    attention_distance,
    attention_entropy,
    attention_of,
    attention_rank,
    attention_received,
    key_saliency_map,
    mixing_of,
)
from linvit.analysis.views import has_attention, visit_layers

__all__ = [
    "GROUPS",
    "Layer",
    "Rank",
    "attention_distance",
    "attention_entropy",
    "attention_of",
    "attention_rank",
    "attention_received",
    "care_contributions",
    "effective_receptive_field",
    "fine_maps",
    "grad_cam",
    "has_attention",
    "key_saliency_map",
    "map_modules",
    "mixing_of",
    "principal_colours",
    "received_map",
    "visit_layers",
]
