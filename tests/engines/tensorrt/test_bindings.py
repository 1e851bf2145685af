"""Building and running through the API of TensorRT 10.16 and 11.4: their real bindings over a fake library."""

from collections.abc import Callable

import pytest

# What the build and the run consist of; without one of these the scenarios would not have met it.
SEQUENCE = """
    Builder create_network OnnxParser parse_from_file get_error desc node_operator num_layers get_layer type attention
    decomposable create_builder_config progress_monitor clear_flag set_memory_pool_limit get_memory_pool_limit
    builder_optimization_level create_optimization_profile num_inputs get_input name set_shape add_optimization_profile
    create_timing_cache set_timing_cache get_timing_cache serialize build_serialized_network error_recorder Runtime
    deserialize_cuda_engine num_io_tensors get_tensor_name get_tensor_dtype get_tensor_profile_shape
    create_execution_context set_optimization_profile_async set_input_shape infer_shapes get_tensor_shape
    update_device_memory_size_for_shapes set_device_memory set_tensor_address execute_async_v3
"""


@pytest.mark.slow
def test_whole_sequence(bindings: dict[str, str], run_script: Callable[..., str]) -> None:
    lines = run_script("drive_bindings.py", bindings).splitlines()
    calls = set(lines[-1].removeprefix("calls ").split())
    assert not set(SEQUENCE.split()) - calls
    assert sum(line.startswith("passed ") for line in lines) == 12
