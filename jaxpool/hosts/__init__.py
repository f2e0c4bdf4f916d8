"""Several processes, one program: whose rows are whose, one schedule for all, and one's error that ends all.

A model that fits the devices of one host needs none of this: every process then works by itself. Where a replica's mesh
holds devices of several processes, all of them run the same programs in the same order: `rows` says which rows of a
batch a process fills and reads, `schedule` which batches all run, `messages` is how they agree.
"""

from jaxpool.hosts.gather import gather
from jaxpool.hosts.messages import HostError
from jaxpool.hosts.rows import Rows
from jaxpool.hosts.schedule import Alone, Schedule, make_schedule

__all__ = ["Alone", "HostError", "Rows", "Schedule", "gather", "make_schedule"]
