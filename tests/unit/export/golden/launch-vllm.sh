#!/usr/bin/env bash
# Written by ep-plan VERSION.
# vLLM pr-41141: tp=1 dp=16 ep=16; 2 nodes, 16 GPUs.
set -euo pipefail

node="${1:?give the number of this node, 0 to 1}"
shift
case "$node" in
  0)
    export CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
    exec vllm serve models/x \
      --tensor-parallel-size 1 \
      --pipeline-parallel-size 1 \
      --data-parallel-size 16 \
      --enable-expert-parallel \
      --all2all-backend deepep_high_throughput \
      --enable-eplb \
      --eplb-config '{"num_redundant_experts": 16, "initial_mapping_path": "map.json", "disable_online_rebalancing": true}' \
      --data-parallel-size-local 8 \
      --data-parallel-address node0 \
      --data-parallel-rpc-port 29500 \
      "$@"
    ;;
  1)
    export CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
    exec vllm serve models/x \
      --tensor-parallel-size 1 \
      --pipeline-parallel-size 1 \
      --data-parallel-size 16 \
      --enable-expert-parallel \
      --all2all-backend deepep_high_throughput \
      --enable-eplb \
      --eplb-config '{"num_redundant_experts": 16, "initial_mapping_path": "map.json", "disable_online_rebalancing": true}' \
      --data-parallel-size-local 8 \
      --data-parallel-address node0 \
      --data-parallel-rpc-port 29500 \
      --data-parallel-start-rank 8 \
      --headless \
      "$@"
    ;;
  *)
    echo "no node $node: give 0 to 1" >&2
    exit 2
    ;;
esac
