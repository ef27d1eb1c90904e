"""The first hour on a GPU: what it is, which kernels it takes, and what every network costs there.

    python -m benchmarks.gpu --steps facts,kernels,eager,memory --limit-seconds 150
    python -m benchmarks.gpu --steps compile --parallel 8

Each step consists of rows. A row runs in a worker process, so that one that hangs or dies costs only itself; after each
row `gpu.json` and `gpu.md` are written. A second call with the same output adds the rows that are missing or failed.
`--device cpu --tiny` is a dry run.

| step | its rows |
|---|---|
| `facts` | the device, its driver and clocks, rates of matrix products, convolutions and memory |
| `kernels` | a network's attention calls, the kernel that PyTorch selects for each, and the time of every kernel |
| `eager` | a training step: time, peak memory, samples a second, and where the host waits for the device |
| `memory` | the planner's estimate beside the measured peak |
| `profile` | kernels of a training step that take most time, and the share of the step in which the device works |
| `prediction` | the sliding window over a CT, nnU-Net's predictor and ours |
| `graphs` | forward pass and training step as CUDA graphs |
| `compile` | `eager` through `torch.compile`; several networks compile at once and are timed one after the other |
"""
