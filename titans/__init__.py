"""Sequence models around any memory: Titans' LMM, MAC, MAG and MAL, the MIRAS blocks, generation."""

from titans.attention import Attention, AttentionSpec
from titans.blocks import LMM, MAC, MAG, MAL, Mixer, Parallel, SelfAttention
from titans.cache import ModelCache
from titans.config import KINDS, SIZES, TitansConfig, preset
from titans.cost import Cost, cost
from titans.generate import Sampling, generate, stream
from titans.inspection import Inspection, draw, inspect
from titans.layer import Layer
from titans.loss import chunked_cross_entropy
from titans.model import TitansLM
from titans.place import Place
from titans.residual import WeightResidual

__all__ = [
    "KINDS",
    "LMM",
    "MAC",
    "MAG",
    "MAL",
    "SIZES",
    "Attention",
    "AttentionSpec",
    "Cost",
    "Inspection",
    "Layer",
    "Mixer",
    "ModelCache",
    "Parallel",
    "Place",
    "Sampling",
    "SelfAttention",
    "TitansConfig",
    "TitansLM",
    "WeightResidual",
    "chunked_cross_entropy",
    "cost",
    "draw",
    "generate",
    "inspect",
    "preset",
    "stream",
]
