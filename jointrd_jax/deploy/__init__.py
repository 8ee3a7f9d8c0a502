"""From a trained network to files that other runtimes, compilers and chips take."""
