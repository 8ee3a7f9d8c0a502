"""Step times beside what their arithmetic costs and what the machine can do (`jointrd benchmark`).

Without a config the images are synthetic and nothing is imported beyond jax, flax, optax and the step itself.
Programs are compiled anew (no cache); steps of the procedures alternate, so that a machine that is slow for a
while is slow for all of them. One device.
"""
