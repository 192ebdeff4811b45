"""Several devices and processes: a mesh of them, what lies where, and which process speaks.

One program runs in every process. All compute; process 0 alone writes files, prints and shows the
bar. Chains and the rows of a batch are shared out over the mesh's axis `data`, hidden units over
`model`; all else, the data set too, is whole on every device. What is drawn depends on none of it,
what is learned only in the order of sums.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from poejax.evidence import AISState
from poejax.training import Preprocess
from poejax.types import Array, ChainState

OPTIONS = (
    "coordinator_address",
    "num_processes",
    "process_id",
    "data_devices",
    "model_devices",
)
"""Names of options that say where a run takes place: no part of what it is."""

T = TypeVar("T")


def connect(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Join the processes that run the same command, once; do nothing if all are None.

    Raises:
      ValueError: if some but not all are given, or the number is none of theirs.
      RuntimeError: if JAX has computed something already, or the others do not come.
    """
    given = (coordinator_address, num_processes, process_id)
    if all(value is None for value in given) or jax.distributed.is_initialized():
        return
    if coordinator_address is None or num_processes is None or process_id is None:
        raise ValueError(
            "coordinator_address, num_processes, process_id: expected all three or none of them, "
            f"got {coordinator_address}, {num_processes} and {process_id}"
        )
    if process_id >= num_processes:
        raise ValueError(f"process_id: expected 0 to {num_processes - 1}, got {process_id}")
    jax.distributed.initialize(coordinator_address, num_processes, process_id)


def leave(status: int) -> int:
    """Return the exit status; after a failure end here, as others would be waited for at exit."""
    if status and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def is_first() -> bool:
    """Whether this is the process that writes files and prints."""
    return jax.process_index() == 0


def agree(value: int) -> int:
    """Return what process 0 says, once all processes are here: of a folder it may change next."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def make_mesh(data_devices: int | None, model_devices: int) -> Mesh | None:
    """Return the mesh `data` x `model`; None where all is on one device.

    Args:
      data_devices: how many share chains and rows; None: one in a single process, of several
        processes all their devices.
      model_devices: how many share the hidden units.

    Raises:
      ValueError: if there are not as many devices, or of several processes some would have none.
    """
    there = jax.device_count()
    several = jax.process_count() > 1
    if data_devices is None:
        data_devices = max(1, there // model_devices) if several else 1
    count = data_devices * model_devices
    if count > there or (several and count != there):
        raise ValueError(
            f"data_devices, model_devices: expected a product of {'' if several else 'at most '}"
            f"{there}, the number of devices, got {data_devices} x {model_devices}"
        )
    if count == 1 and not several:
        return None
    return jax.make_mesh(
        (data_devices, model_devices),
        ("data", "model"),
        axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[:count],
    )


def require_shares(mesh: Mesh | None, data: Mapping[str, int], model: Mapping[str, int]) -> None:
    """Raise ValueError unless the devices of each axis share its numbers, by name, evenly."""
    for axis, numbers in {"data": data, "model": model}.items():
        count = 1 if mesh is None else mesh.shape[axis]
        for name, number in numbers.items():
            if number % count:
                raise ValueError(
                    f"{name}: expected a multiple of the {count} devices that share them, got "
                    f"{number}"
                )


def place(tree: T, mesh: Mesh | None) -> T:
    """Put parameters, a training state, chains or a run of AIS where they belong.

    Chains (`ChainState`) and their weights lie over `data` where their number allows it, leaves "w"
    of hidden banks over `model` by their columns, all else is whole everywhere; no mesh leaves all
    as it is. Every process gives the same values, or arrays that lie on the mesh already.
    """
    if mesh is None:
        return tree
    chains, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

    def put_rows(leaf: Any) -> Any:
        return _put(leaf, whole if leaf.shape[0] % mesh.shape["data"] else chains)

    def put(path: Any, node: Any) -> Any:
        if isinstance(node, AISState):
            rows = ("chains", "log_weights", "rest")
            return AISState(
                **{
                    name: jax.tree.map(put_rows, leaf) if name in rows else _put(leaf, whole)
                    for name, leaf in node._asdict().items()
                }
            )
        if isinstance(node, ChainState):
            return jax.tree.map(put_rows, node)
        if path and getattr(path[-1], "key", None) == "w":
            return _put(node, NamedSharding(mesh, PartitionSpec(None, "model")))
        return _put(node, whole)

    placed: T = jax.tree_util.tree_map_with_path(
        put, tree, is_leaf=lambda node: isinstance(node, (AISState, ChainState))
    )
    return placed


def spread(preprocess: Preprocess, mesh: Mesh | None) -> Preprocess:
    """Return a `preprocess` whose events, where their number allows it, are shared over `data`."""
    if mesh is None:
        return preprocess
    rows = NamedSharding(mesh, PartitionSpec("data"))

    def spread_out(rng_key: Array, data: Any) -> Any:
        def share(leaf: Array) -> Array:
            if leaf.shape[0] % rows.mesh.shape["data"]:
                return leaf
            return jax.lax.with_sharding_constraint(leaf, rows)

        return jax.tree.map(share, preprocess(rng_key, data))

    if hasattr(preprocess, "check"):
        spread_out.check = preprocess.check  # type: ignore[attr-defined]
    return spread_out


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
