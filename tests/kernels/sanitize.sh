#!/bin/sh
# memcheck and racecheck of the sm_90 kernel on a small site; needs compute-sanitizer and a Hopper GPU.
# From the top of the repository: sh tests/kernels/sanitize.sh [python]
set -e
python=${1:-python3}
for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -P tests/kernels/sanitized_site.py
done
