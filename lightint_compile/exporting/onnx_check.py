"""Run as a program: a model's outputs for some calls, with onnxruntime and NumPy alone.

``python onnx_check.py MODEL INPUTS.npz OUTPUTS.npz``: arrays are named ``TYPE/CALL/ARGUMENT`` and ``TYPE/CALL/NUMBER``.
TYPE is ONNX's number of a dtype that NumPy does not have, whose elements are unsigned integers of its size; else 0.
"""

import ctypes
import sys
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime import OrtValue

BITS = {16: np.uint16, 17: np.uint8, 18: np.uint8, 19: np.uint8, 20: np.uint8}
"""``bfloat16`` and those of one byte: ``float8e4m3fn``, ``float8e4m3fnuz``, ``float8e5m2``, ``float8e5m2fnuz``."""


def main(model: str, inputs: str, outputs: str) -> None:
    """Run the model on every call in the file."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    wanted = {each.name for each in session.get_inputs()}
    calls: dict[str, dict[str, OrtValue]] = {}
    with np.load(inputs) as arrays:
        for name in arrays.files:
            code, call, argument = name.split("/", 2)
            calls.setdefault(call, {})
            if argument in wanted:
                calls[call][argument] = given(arrays[name], int(code))
    found: dict[str, Any] = {}
    for call, values in calls.items():
        for place, value in enumerate(session.run_with_ort_values(None, values)):
            code, array = returned(value)
            found[f"{code}/{call}/{place}"] = array
    np.savez(outputs, **found)


def given(array: np.ndarray, code: int) -> OrtValue:
    """The tensor that an array in the file stands for."""
    array = np.asarray(array, order="C")
    if code:
        return OrtValue.ortvalue_from_numpy_with_onnx_type(array, code)
    return OrtValue.ortvalue_from_numpy(array)


def returned(value: OrtValue) -> tuple[int, np.ndarray]:
    """TYPE and array of a tensor."""
    code = value.element_type()
    if code not in BITS:
        return 0, value.numpy()
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return code, np.frombuffer(data, BITS[code]).reshape(value.shape())


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        sys.exit("lightint check: " + " ".join(str(error).split()))
