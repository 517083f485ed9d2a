"""Builds a dataset by workers that SLURM starts as jobs of their own; dask-jobqueue asks for them.

    pip install dask-jobqueue
    . examples/cluster/cluster.env
    python examples/cluster/slurm_build.py --jobs 8 --cores 32 --memory 64GB -- webface42m --out ... --work ...

It runs on a machine from which `sbatch` works, and which the workers reach: the scheduler and the build are in it. What
follows -- is for `faceshards build`. A job that ends is replaced by a new one, and its work is done again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from dask_jobqueue import SLURMCluster
from distributed import Security


def cluster_of(options: argparse.Namespace) -> SLURMCluster:
    """Returns a cluster without workers yet, whose members know each other by the certificate of cluster.env."""
    return SLURMCluster(
        cores=options.cores,
        processes=options.cores,  # single-threaded ones: a stage is Python code
        memory=options.memory,
        walltime=options.time,
        interface=options.interface,
        local_directory=options.scratch,
        job_name="faceshards-worker",
        job_extra_directives=options.sbatch,
        protocol="tls://",
        security=Security(require_encryption=True),
        scheduler_options={"dashboard": False},
    )


def main() -> int:
    """Returns the exit code of the build."""
    parser = argparse.ArgumentParser(description="Build a dataset by workers that SLURM starts.")
    parser.add_argument("--jobs", type=int, default=2, help="of workers")
    parser.add_argument("--cores", type=int, default=8, help="of a job, with a worker process for each")
    parser.add_argument("--memory", default="16GB", help="of a job")
    parser.add_argument("--time", default="12:00:00", help="of a job; the next one goes on")
    parser.add_argument("--interface", help="network that workers and scheduler talk on, such as ib0")
    parser.add_argument("--scratch", default="/tmp", help="folder on a disk of the node's own, for Dask")
    parser.add_argument(
        "--sbatch", action="append", metavar="OPTION", help="for sbatch, such as --sbatch=--partition=cpu"
    )
    parser.add_argument("--show", action="store_true", help="print the script of a job, and stop")
    parser.add_argument("build", nargs="*", help="what faceshards build gets")
    options = parser.parse_args()
    with cluster_of(options) as cluster:
        if options.show:
            print(cluster.job_script())
            return 0
        cluster.adapt(minimum_jobs=options.jobs, maximum_jobs=options.jobs)
        build = [sys.executable, "-m", "faceshards", "build", *options.build]
        return subprocess.run([*build, "--scheduler", cluster.scheduler_address]).returncode


if __name__ == "__main__":
    sys.exit(main())
