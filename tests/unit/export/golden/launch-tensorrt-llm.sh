#!/usr/bin/env bash
# Written by ep-plan VERSION.
# TensorRT-LLM 1.3: tp=1 dp=16 ep=16; 2 nodes, 16 GPUs.
# Run it once, on the first host; with several hosts the working folder must be shared.
set -euo pipefail

config="$PWD/ep-plan.trtllm.yaml"
cat > "$config" <<'EP_PLAN_CONFIG'
enable_attention_dp: true
moe_tensor_parallel_size: 1
moe_expert_parallel_size: 16
moe_config:
  load_balancer: "map.json"
EP_PLAN_CONFIG
export CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
exec mpirun -np 16 \
  --host node0:8,node1:8 \
  --map-by slot -x CUDA_VISIBLE_DEVICES trtllm-llmapi-launch trtllm-serve models/x \
  --tp_size 16 \
  --pp_size 1 \
  --ep_size 16 \
  --gpus_per_node 8 \
  --config "$config" \
  "$@"
