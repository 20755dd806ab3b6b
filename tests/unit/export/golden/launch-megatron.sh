#!/usr/bin/env bash
# Written by ep-plan VERSION.
# Megatron-LM d98e8a64: give the training or inference script and its arguments after the node.
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
      "$@" \
      --tensor-model-parallel-size 2 \
      --pipeline-model-parallel-size 2 \
      --expert-model-parallel-size 4 \
      --expert-tensor-parallel-size 1 \
      --num-experts 16 \
      --moe-router-topk 2 \
      --pipeline-model-parallel-layout 'Et*2|t*3L'
    ;;
  1)
    export CUDA_VISIBLE_DEVICES=0,1,2,3
    exec torchrun \
      --nnodes 2 \
      --node-rank 1 \
      --nproc-per-node 4 \
      --master-addr node0 \
      --master-port 29500 \
      "$@" \
      --tensor-model-parallel-size 2 \
      --pipeline-model-parallel-size 2 \
      --expert-model-parallel-size 4 \
      --expert-tensor-parallel-size 1 \
      --num-experts 16 \
      --moe-router-topk 2 \
      --pipeline-model-parallel-layout 'Et*2|t*3L'
    ;;
  *)
    echo "no node $node: give 0 to 1" >&2
    exit 2
    ;;
esac
