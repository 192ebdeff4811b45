"""What parallel trajectory tempering carries along, and what it shows of every update."""

from __future__ import annotations

from typing import NamedTuple

from poejax._bases import Base
from poejax.estimators._exchange import Population
from poejax.types import Array, Params


class Checkpoint(NamedTuple):
    """A frozen point of the path from the base to the model.

    params: the model's, without coordinates.
    beta: temperature: 0 is the base, whatever the params, 1 the model, [].
    log_z: log Z there, [].
    variance: its squared standard error, the sum of those of all ratios since the base, [].
    """

    params: Params
    beta: Array
    log_z: Array
    variance: Array


class PTTState(NamedTuple):
    """What goes on from update to update; events are in the coordinates of the parameters.

    population: chains of the present model [C], and the reservoir of the checkpoint [R, ...].
    checkpoint: the last one.
    base: where the path starts.
    acceptance: of jumps to the reservoir, smoothed over a few updates, [].
    last: the same of the last update alone, [].
    log_ratio: log Z of the present model less the checkpoint's, of the last update, [].
    num_checkpoints: frozen so far, bridges from the base to the first params included, [].
    """

    population: Population
    checkpoint: Checkpoint
    base: Base
    acceptance: Array
    last: Array
    log_ratio: Array
    num_checkpoints: Array


class PTTInfo(NamedTuple):
    """Diagnostics of one update, [] each; densities and log Z in nats.

    data_log_density, model_log_density: unnormalised means.
    acceptance: mean probability of this update's jumps.
    log_z: of the present model, from this update's chains alone; data_log_density - log_z is the
      log-likelihood of the batch.
    num_checkpoints: frozen so far.
    is_rejected: whether overlap was lost: what `training.Rollback` takes back.
    """

    data_log_density: Array
    model_log_density: Array
    acceptance: Array
    log_z: Array
    num_checkpoints: Array
    is_rejected: Array
