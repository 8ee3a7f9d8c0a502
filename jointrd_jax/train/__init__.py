"""The training run: what is checked, stepped, evaluated, recorded and shown."""
