"""One program run as several processes, each with its own devices: how train.py and sample.py are told."""

import jax
from absl import flags

DISTRIBUTED = flags.DEFINE_bool("distributed", False, "one of several processes with own devices; SLURM, Kubernetes and TPU pods are recognised")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, elsewhere")
PROCESSES = flags.DEFINE_integer("processes", None, "how many there are, elsewhere")
PROCESS = flags.DEFINE_integer("process", None, "which of them this is, elsewhere")


def join_processes() -> None:
    """Meet the other processes if the flags say that there are any; to be called before JAX is used."""
    if DISTRIBUTED.value:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")  # where devices are CPU cores
        jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
