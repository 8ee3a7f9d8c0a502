"""The gradient of an ImageNet stem's max-pool in three equal forms, by what a compiler for a chip makes of each.

    python benchmarks/pool.py h100x1 v5e:1x1            needs the extras [plan-tpu] and [plan-gpu]

The part of a step that holds it (stem, one bottleneck, head; 64 images of 224x224, bfloat16, forward and backward) is
compiled ahead of time: MB read and written (TPUs by XLA's cost analysis, GPUs as counted in the text) and temporaries.
"""

import os
import sys

from jointrd_jax.plan.run import ENVIRONMENT

if not all(os.environ.get(name) == value for name, value in ENVIRONMENT.items()):  # they are read when JAX is imported
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P

from jointrd_jax.method import networks, pooling
from jointrd_jax.plan import chips, compiled
from jointrd_jax.system import runtime
from jointrd_jax.train import step as step_lib

IMAGES = (64, 224, 224, 3)


@jax.custom_vjp
def by_comparison(x: jax.Array) -> jax.Array:
    """The pool whose gradient compares the map at each place of the windows with the maxima again."""
    return pooling.pool_by_window(x)


def forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y = pooling.pool_by_window(x)
    return y, (x, y)


def backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    x, y = kept
    place = jnp.zeros(y.shape, jnp.uint8)
    for number in reversed(range(len(pooling.PLACES))):  # the first of equal ones stays
        place = jnp.where(pooling.seen(x, number) == y, jnp.uint8(number), place)
    return pooling.pool_backward((place, x[..., :0]), gradient)


by_comparison.defvjp(forward, backward)
FORMS = {'XLA': pooling.pool_by_window, 'place': pooling.pool_by_place, 'comparisons': by_comparison}


def main() -> None:
    network = networks.Network((1,), True, 64, 1000, shortcuts='none', dtype=jnp.bfloat16)
    variables = network.shapes(IMAGES[1:])
    for topology in sys.argv[1:] or ['h100x1']:
        target = chips.parse(topology)
        if target.chip.platform == 'tpu':
            jax.config.update('jax_optimization_level', 'O0')
        sharding = NamedSharding(step_lib.make_mesh(chips.devices(target)), P())
        for name, form in FORMS.items():
            networks.pool = form

            def loss(params, batch_stats, images):
                seen = {'params': params, 'batch_stats': batch_stats}
                outputs, updates = network.apply(seen, images, train=True, mutable=['batch_stats'])
                return jnp.square(outputs.logits).sum(), updates

            images = jax.ShapeDtypeStruct(IMAGES, jnp.float32)
            arguments = runtime.template((variables['params'], variables['batch_stats'], images), sharding)
            made = jax.jit(jax.grad(loss, has_aux=True)).lower(*arguments).compile()
            moved = compiled.moved(compiled.cost(made).get('bytes accessed'), made.as_text() or '')
            kept = compiled.memory(made)['temporaries']
            print(f'{topology} {name}: {moved / 1e6:.0f} MB, {kept / 1e6:.0f} of temporaries', flush=True)


if __name__ == '__main__':
    main()
