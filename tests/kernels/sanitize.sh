#!/bin/sh
# memcheck and racecheck of the sm_90 kernel on a small site; needs compute-sanitizer and a Hopper GPU.
# From the top of the repository: sh tests/kernels/sanitize.sh [python]
# racecheck does not follow mbarriers between warp partitions: its reports are listed by kind and judged by a person
# (docs/measurements.md says which are known and why they are ordered); memcheck must be clean.
set -e
python=${1:-python3}
site=tests/kernels/sanitized_site.py
compute-sanitizer --tool memcheck --error-exitcode 1 "$python" -P $site
compute-sanitizer --tool racecheck "$python" -P $site | grep -oE "(between|and) [A-Z][a-z]+ access at .* in [a-z_]+\.py:[0-9]+" |
    paste - - | sort | uniq -c
