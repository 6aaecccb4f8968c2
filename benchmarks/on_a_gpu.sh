#!/usr/bin/env bash
# Test and measure on a GPU, from the root of the repository:
#
#     bash benchmarks/on_a_gpu.sh [OUTPUT_FOLDER] [STAGE...]
#
# The stages are, in this order: tests (those that need a GPU), speed (the lines of the speed table that need a GPU) and
# quality (a long training on glyphs). Each has a time limit, so that all end within 12 minutes and 15 minutes of GPU
# time are enough to install the package as well. A stage that fails does not stop the others; the exit code is 1 if one
# failed. Logs and results are written to the output folder (default: runs/gpu). Set PYTHON to use another interpreter.
set -uo pipefail

out=${1:-runs/gpu}
shift $(($# > 0))
stages=${*:-tests speed quality}
python=${PYTHON:-python}
failed=0
export PYTHONUNBUFFERED=1
mkdir -p "$out"

run() { # run STAGE SECONDS COMMAND...: run the command of a stage with a time limit, and log its output
    local stage=$1 limit=$2
    shift 2
    [[ " $stages " == *" $stage "* ]] || return 0
    echo "== $stage: $*"
    timeout "$limit" "$@" 2>&1 | tee "$out/$stage.log"
    local code=${PIPESTATUS[0]}
    echo "== $stage: exit code $code; $SECONDS s since the start"
    ((code == 0)) || failed=1
}

run tests 150 "$python" -m pytest -q -rs tests/integration/test_gpu.py
run speed 300 "$python" benchmarks/speed.py --only gpu,gpu-clustering,gpu-loader --out "$out/speed"
run quality 270 "$python" benchmarks/quality.py --data glyphs --methods udml,recipe --seeds 1 \
    --steps 6000 --relabel-every 300 --workers 8 --out "$out/glyphs"
exit "$failed"
