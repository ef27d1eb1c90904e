"""Dice at equal cost: our networks beside nnU-Net's own, each trained for the same processor time.

    export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=...
    python -m benchmarks.accuracy prepare          # plan, preprocess and split the datasets
    python -m benchmarks.accuracy calibrate        # seconds per iteration, which `run` otherwise measures itself
    python -m benchmarks.accuracy pretrain mit_mae # for rows that start from an encoder: makes it and their plan
    python -m benchmarks.accuracy run --queue benchmarks/accuracy/judge.jsonl
    python -m benchmarks.accuracy report           # benchmarks/results/accuracy.{jsonl,md,png}

Planners, preprocessing, augmentation, loss, schedule and validation of whole cases are nnU-Net's. `tables.py` has
datasets, rows and budgets; a run is one of each with a fold and a seed. The unit of the budgets is the processor time
that stock nnU-Net takes for 2,000 iterations on hippocampus. A run has the number of iterations that the budget allows
by the calibrated cost, and its schedules are those of a training of this length. All is measured in processes of one
thread, which other work on the machine hardly changes.

`run` takes the runs of the queue one after another, leaves out those that are finished or held by another process, and
goes on with those that were killed, from their last epoch; start one process per core. SIGTERM, or `--until HH:MM`,
ends it after the epoch. The queue is read again before each run, so lines may be added to it; while it is not readable,
the runs that it had go on. A run's line in $nnUNet_results/accuracy/results.jsonl says that it is finished. A run is
refused if its dataset is not split by patient, and if its cost, finished runs beside it or the state in its folder are
of another plan.

`reproduce` does it all for a queue, where a GPU is at hand: it prepares what the runs need, makes them in several
processes and reports beside the results.

    python -m benchmarks.accuracy reproduce --workers 2 --loaders 6

The default queue is `hundred_epochs.jsonl`: 100 of nnU-Net's epochs of each network at the planned batch on all
datasets, for which ResEnc-L needs a GPU of 24 GB.

`run --device cuda --graphs --loaders 1 --discard-state` makes the same runs on a GPU, with a step's passes as CUDA
graphs; their length still follows from the costs on a processor. Start several processes: one training of this size
leaves most of a GPU idle.

`pretrain` learns from the images of fold 0's training cases without labels; `tables.py` has the methods with their
settings. The same command goes on with one that was killed, and the time of all parts counts. The datasets
`hippocampus_ten` and `acdc_3d_ten` train on ten of these cases, drawn by the seed, with and without the encoder.

Rows are tuned on folds 1 and 2 (`tune.jsonl`); fold 0 judges (`judge.jsonl`). Before the benchmark was there, the rate
of our trainers, and the norm and windows of QT-UNet's planner, were chosen on fold 0 of hippocampus.
"""
