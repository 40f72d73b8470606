"""From a trained model to a file that other runtimes run, checked against the model."""

from linvit.deploy.onnx import Check, check_onnx, export_onnx

__all__ = ["Check", "check_onnx", "export_onnx"]
