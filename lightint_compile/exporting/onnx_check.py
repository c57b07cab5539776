"""Run as a program: a model's outputs for some calls, with onnxruntime and NumPy alone.

``python onnx_check.py MODEL INPUTS.npz OUTPUTS.npz``: arrays are named ``CALL/ARGUMENT`` and ``CALL/NUMBER``.
"""

import sys

import numpy as np
import onnxruntime


def main(model: str, inputs: str, outputs: str) -> None:
    """Run the model on every call in the file."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    wanted = {each.name for each in session.get_inputs()}
    calls: dict[str, dict[str, np.ndarray]] = {}
    with np.load(inputs) as arrays:
        for name in arrays.files:
            call, argument = name.split("/", 1)
            calls.setdefault(call, {})
            if argument in wanted:
                calls[call][argument] = arrays[name]
    results = {call: session.run(None, given) for call, given in calls.items()}
    np.savez(
        outputs, **{f"{call}/{place}": each for call, found in results.items() for place, each in enumerate(found)}
    )


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        sys.exit("lightint check: " + " ".join(str(error).split()))
