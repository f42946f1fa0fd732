#!/usr/bin/env bash
# Train under Slurm: tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [flags of train.py]
# Environment variables: GPUS (8), GPUS_PER_NODE (GPUS), CPUS_PER_TASK (5), SRUN_ARGS, PYTHON, and
# REQUEUE=1: train on after a pre-emption. A training that receives SIGTERM saves a checkpoint and ends
# with status 143. Inside a batch job, that job is then requeued, unless REQUEUE=0; elsewhere, srun
# is started again with REQUEUE=1. The training that follows passes --resume.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [flags of train.py]" >&2
    exit 2
fi
tools=$(cd "$(dirname "$0")" && pwd)
partition=$1 name=$2 config=$3 work_dir=$4
shift 4
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$gpus}
python=${PYTHON:-${VIRTUAL_ENV:-$tools/../.venv}/bin/python}
command -v "$python" >/dev/null || python=python3

if [ "${SLURM_RESTART_COUNT:-0}" != 0 ]; then
    set -- "$@" --resume
fi
while true; do
    status=0
    # SRUN_ARGS is unquoted so that it splits into several arguments.
    # shellcheck disable=SC2086
    srun --partition "$partition" --job-name "$name" --gres "gpu:$per_node" --ntasks "$gpus" \
        --ntasks-per-node "$per_node" --cpus-per-task "${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
        ${SRUN_ARGS:-} "$python" -u "$tools/train.py" "$config" --work-dir "$work_dir" \
        --launcher slurm "$@" || status=$?
    if [ "$status" != 143 ]; then
        exit "$status"
    elif [ -n "${SLURM_JOB_ID:-}" ] && [ "${REQUEUE:-1}" != 0 ]; then
        exec scontrol requeue "$SLURM_JOB_ID"
    elif [ "${REQUEUE:-0}" != 1 ]; then
        echo "the training was pre-empted; to go on, run this again with --resume" >&2
        exit "$status"
    fi
    case " $* " in *' --resume '*) ;; *) set -- "$@" --resume ;; esac
done
