"""One of two processes that save one state together: ``shard.py RANK RENDEZVOUS DIRECTORY``."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

rank, rendezvous, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
rows = distribute_tensor(torch.arange(35.0).view(5, 7), mesh, [Shard(0)])
columns = distribute_tensor(torch.arange(24, dtype=torch.int64).view(4, 6), mesh, [Shard(1)])
same = distribute_tensor(torch.arange(3.0), mesh, [Replicate()])
dcp.save({"model": {"rows": rows, "columns": columns, "same": same}, "step": 7}, checkpoint_id=directory)
dist.destroy_process_group()
