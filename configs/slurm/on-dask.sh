#!/bin/bash
# sbatch configs/slurm/on-dask.sh train-mil …     a command on a Dask cluster that lives as long as it: a worker a task
#SBATCH --job-name=slidemil-on-dask
#SBATCH --ntasks=16
#SBATCH --cpus-per-task=4
#SBATCH --mem-per-cpu=4G
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
port=$((20000 + SLURM_JOB_ID % 20000))
address="tcp://$(hostname):$port"
trap 'kill $(jobs -p) 2> /dev/null' EXIT
dask scheduler --port "$port" --no-dashboard &
srun --ntasks="$SLURM_NTASKS" dask worker "$address" --nthreads 1 --no-dashboard &
"$@" --scheduler "$address"
