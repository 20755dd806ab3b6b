#!/usr/bin/env bash
# Written by ep-plan VERSION.
# vllm-ascend 0.25.0: tp=1 dp=16 ep=16; 2 nodes, 16 GPUs.
set -euo pipefail

node="${1:?give the number of this node, 0 to 1}"
shift
case "$node" in
  0)
    export ASCEND_RT_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
    exec vllm serve models/x \
      --tensor-parallel-size 1 \
      --pipeline-parallel-size 1 \
      --data-parallel-size 16 \
      --enable-expert-parallel \
      --additional-config '{"eplb_config": {"expert_map_path": "map.json"}}' \
      --data-parallel-size-local 8 \
      --data-parallel-address node0 \
      --data-parallel-rpc-port 29500 \
      "$@"
    ;;
  1)
    export ASCEND_RT_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
    exec vllm serve models/x \
      --tensor-parallel-size 1 \
      --pipeline-parallel-size 1 \
      --data-parallel-size 16 \
      --enable-expert-parallel \
      --additional-config '{"eplb_config": {"expert_map_path": "map.json"}}' \
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
