#!/usr/bin/env bash
# Called by dist_train.sh and dist_test.sh: runs a tool under torchrun, on GPUs or on the CPU.
set -euo pipefail
tools=$(cd "$(dirname "$0")" && pwd)
tool=$1; shift
python=${PYTHON:-${VIRTUAL_ENV:-$tools/../.venv}/bin/python}
command -v "$python" >/dev/null || python=python3

positional=("${1:-}"); shift || true          # CONFIG
if [ "$tool" = test.py ]; then
    positional+=("${1:-}"); shift || true # CHECKPOINT
fi
processes=${1:-}
if ! [[ $processes =~ ^[1-9][0-9]*$ ]]; then
    echo "error: the number of processes is missing; usage: dist_${tool%.py}.sh CONFIG" \
        "$([ "$tool" = test.py ] && echo 'CHECKPOINT ')NPROC [flags]" >&2
    exit 2
fi
shift

if [ "${NNODES:-1}" = 1 ] && [ -z "${PORT:-}" ]; then
    where=(--standalone)                  # finds a free port
else
    where=(--nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}"
           --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${PORT:-29500}")
fi
# The processes report their own errors, so torchrun's traceback is suppressed.
exec "$python" -c '
import sys
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main
try:
    main()
except ChildFailedError as error:
    sys.exit(abs(error.get_first_failure()[1].exitcode))  # torchrun stopped the others
' "${where[@]}" --nproc-per-node "$processes" \
    "$tools/$tool" "${positional[@]}" --launcher pytorch "$@"
