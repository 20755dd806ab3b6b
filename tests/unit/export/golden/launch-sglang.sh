#!/usr/bin/env bash
# Written by ep-plan VERSION.
# SGLang 0.5.23: tp=1 dp=16 ep=16; 2 nodes, 16 GPUs.
set -euo pipefail

node="${1:?give the number of this node, 0 to 1}"
shift
case "$node" in
  0)
    export CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
    exec python3 -m sglang.launch_server \
      --model-path models/x \
      --tp-size 16 \
      --pp-size 1 \
      --ep-size 16 \
      --dp-size 16 \
      --enable-dp-attention \
      --moe-a2a-backend deepep \
      --deepep-mode normal \
      --init-expert-location map.json \
      --ep-num-redundant-experts 16 \
      --ep-dispatch-algorithm dynamic \
      --nnodes 2 \
      --node-rank 0 \
      --dist-init-addr node0:29500 \
      "$@"
    ;;
  1)
    export CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
    exec python3 -m sglang.launch_server \
      --model-path models/x \
      --tp-size 16 \
      --pp-size 1 \
      --ep-size 16 \
      --dp-size 16 \
      --enable-dp-attention \
      --moe-a2a-backend deepep \
      --deepep-mode normal \
      --init-expert-location map.json \
      --ep-num-redundant-experts 16 \
      --ep-dispatch-algorithm dynamic \
      --nnodes 2 \
      --node-rank 1 \
      --dist-init-addr node0:29500 \
      "$@"
    ;;
  *)
    echo "no node $node: give 0 to 1" >&2
    exit 2
    ;;
esac
