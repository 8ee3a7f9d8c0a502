"""What compilers and runtimes of NPUs, microcontrollers, FPGAs and phones make of a network: one file per target.

A target's file needs nothing but the standard library, NumPy and its own tool, because it may run in the Python of
another environment (see `worker`). It says

    TITLE                      what the target is
    PACKAGE, VERSION           the tool's package and the version whose figures were checked
    INSTALL                    how to get it: of 'jointrd_jax[EXTRA]', or into an environment of its own
    CONFIGURATIONS             {name: {'takes': kind of artifact, ...}}; 'predicted': (memory model, bytes per value)
                               where the liveness model should give the tool's own figure
    measure(request) -> dict   fields of `results.Row`; if it raises, the exception's last line is the row's reason

`request` is what `bench` writes: 'artifact' (a path), 'baseline' (the same of the network to compare with, or None),
'configuration' (its dict), 'images' (an .npz of images [B, H, W, C] as the network takes them, labels, and logits of
the checkpoint; None for random weights), 'image_shape', 'rounds' of timing and 'directory' to write into.
"""
