#!/usr/bin/env bash
# Train with several processes: tools/dist_train.sh CONFIG NPROC [flags of tools/train.py]
# On several machines, set NNODES, NODE_RANK, MASTER_ADDR and PORT on each.
exec "$(dirname "$0")/launch.sh" train.py "$@"
