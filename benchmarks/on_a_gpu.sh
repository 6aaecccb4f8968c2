#!/usr/bin/env bash
# Test and measure on a GPU, from the root of the repository:
#
#     bash benchmarks/on_a_gpu.sh [OUTPUT_FOLDER [STAGE...]]
#
# The stages are, in this order:
#
#     tests     the tests that need a GPU, at most 150 seconds
#     speed     the lines of the speed table that need a GPU, at most 300 seconds
#     quality   UDML-SS with the published number of steps and the defaults, on glyphs, at most 270 seconds
#
# A stage that fails does not stop the others; the exit code is 1 if one failed, and 2 if the arguments are wrong. Logs
# and results are written to the output folder (default: runs/gpu). Its folder speed begins as a copy of
# benchmarks/results/speed, so that it can replace that folder afterwards.
#
# If a call must end within ten minutes, make two calls and copy two archives:
#
#     bash benchmarks/on_a_gpu.sh runs/gpu tests speed; tar czf tests-speed.tgz runs/gpu
#     bash benchmarks/on_a_gpu.sh runs/gpu quality; tar czf quality.tgz runs/gpu
#
# The stages need these packages:
#
#     pip install -e ".[faiss-cpu,report]" pytest beartype
#
# On a machine without a network that has all of them but faiss-cpu, beartype and pytorch-metric-learning, install these
# from a folder of wheels. Download the wheels elsewhere, for the Python of that machine, and copy the folder:
#
#     pip download --no-deps --only-binary=:all: --python-version 3.12 --dest wheels \
#         faiss-cpu beartype pytorch-metric-learning
#
# and on that machine:
#
#     python3 -m pip install --no-index --no-deps --target /tmp/site wheels/*.whl
#     export PYTHONPATH=/tmp/site
#
# The interpreter is that of the variable PYTHON, of .venv, or python3.
set -uo pipefail

known="tests speed quality"
out=${1:-runs/gpu}
shift $(($# > 0))
stages=${*:-$known}
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
failed=0
export PYTHONUNBUFFERED=1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} # the package need not be installed

if [[ " $known " == *" $out "* ]]; then
    echo "The first argument must be the output folder, got the stage $out." >&2
    exit 2
fi
for stage in $stages; do
    if [[ " $known " != *" $stage "* ]]; then
        echo "The stages must be among $known, got $stage." >&2
        exit 2
    fi
done
mkdir -p "$out"

run() { # run STAGE SECONDS COMMAND...: run the command of a stage with a time limit, and log its output
    local stage=$1 limit=$2
    shift 2
    [[ " $stages " == *" $stage "* ]] || return 0
    echo "== $stage: $*"
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$out/$stage.log"
    local code=${PIPESTATUS[0]}
    echo "== $stage: exit code $code; $SECONDS s since the start"
    ((code == 0)) || failed=1
}

run tests 150 "$python" -m pytest -q -rs -k "[real" tests/integration/test_gpu.py
if [[ " $stages " == *" speed "* && ! -e $out/speed ]]; then
    cp -r benchmarks/results/speed "$out/"
fi
run speed 300 "$python" benchmarks/speed.py --only gpu-clustering,gpu-loader,gpu,gpu-compiled \
    --images 12000 --steps 600 --relabel-every 300 --pairs 3 --out "$out/speed"
run quality 270 "$python" benchmarks/quality.py --data glyphs --methods udml-ss,default --seeds 1 \
    --steps 3600 --relabel-every 180 --workers 8 --no-searches --out "$out/glyphs"
exit "$failed"
