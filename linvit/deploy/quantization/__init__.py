"""Whole graphs in 8 bits: weights, activations, products of attention, and everything in between.

Accelerators without float arithmetic take such a graph or none. It is a graph of torchao's PT2E, which goes into ONNX
and ExecuTorch (``--precision int8-full``), calibrated on images or trained (:mod:`linvit.tasks.quantize`), and it says
which of its layers lose what (:mod:`linvit.deploy.quantization.report`). LiteRT has a quantizer of its own.
"""

from linvit.deploy.quantization.model import QuantizedModel, quantize, rebuild
from linvit.deploy.quantization.report import Loss, sensitivity

__all__ = ["Loss", "QuantizedModel", "quantize", "rebuild", "sensitivity"]
