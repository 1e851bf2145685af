"""The backends by name, and where their builders live; read before anything of them is loaded."""

BUILDERS = {
    "onnxruntime": ("fairy.engines.onnxruntime", "OnnxRuntimeBuilder"),
    "tensorrt": ("fairy.engines.tensorrt.builder", "TensorRTBuilder"),
    "compiled": ("fairy.engines.compiled", "CompiledBuilder"),
}
BUILDABLE = tuple(BUILDERS)
BACKENDS = ("eager", "cuda-graphs", *BUILDABLE)
