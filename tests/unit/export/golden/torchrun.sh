#!/usr/bin/env bash
# Written by ep-plan VERSION.
# torchrun: give the program and its arguments after the node.
# tp=2 dp=2 ep=4 pp=2 micro_batches=1; 2 nodes, 8 GPUs.
set -euo pipefail

node="${1:?give the number of this node, 0 to 1}"
shift
case "$node" in
  0)
    export CUDA_VISIBLE_DEVICES=0,1,2,3
    exec torchrun \
      --nnodes 2 \
      --node-rank 0 \
      --nproc-per-node 4 \
      --master-addr node0 \
      --master-port 29500 \
      "$@"
    ;;
  1)
    export CUDA_VISIBLE_DEVICES=0,1,2,3
    exec torchrun \
      --nnodes 2 \
      --node-rank 1 \
      --nproc-per-node 4 \
      --master-addr node0 \
      --master-port 29500 \
      "$@"
    ;;
  *)
    echo "no node $node: give 0 to 1" >&2
    exit 2
    ;;
esac
